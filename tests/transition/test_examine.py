"""All tests together: on a double well they fail, on a convex loss they pass."""

from dataclasses import replace

import numpy as np
import pytest
from toys import STARTS, Logistic, examined, recorded

from phantombook.ledger.claims import load_claims
from phantomlib.errors import ParameterError
from phantomlib.transition import double_well, examine, jumps

C5 = next(claim for claim in load_claims() if claim.id == "C5")


def test_a_double_well_fails_what_looks_for_a_second_branch():
    measured = examine.summarise_tests([examined(double_well.DoubleWell(STARTS), 1.5)])
    failed = {test for test, ok in C5.passed_tests(measured).items() if not ok}
    assert failed == {"bistability", "slowing", "potential"}
    assert measured["bistability"]["same_branch_share"] == 0 and measured["bistability"]["ramp_same_branch_share"] == 0


def test_a_convex_loss_passes_all_tests(monkeypatch):
    toy = Logistic(STARTS)
    # the time of gradient descent to zero: ∫ (1 + e^Δ) dΔ from Δ_0 to 0
    rates = np.array([(-x + 1 - np.exp(x)) / 20 for x in STARTS.values()])
    monkeypatch.setattr(Logistic, "critical_rates", lambda self: rates)
    found = examined(toy, 30.0)
    measured = examine.summarise_tests([found])
    assert all(C5.passed_tests(measured).values()), measured
    assert len(found.first) == 3 and found.profile.barrier.max() == 0
    crossing = found.times.consumed.sel(multiple=0.25)  # small steps: the exact time
    assert crossing.values == pytest.approx(1, rel=0.02)


def test_the_share_of_geometry_is_that_of_the_jumps():
    phi = np.zeros((2, 1, 12))
    phi[0, 0, 3:], phi[0, 0, 8:], phi[1, 0, 5:] = 0.2, 0.5, -0.3
    by_hand = jumps.find_jumps(recorded(phi, contexts=("a", "b")))
    geometry = examine.summarise_tests([replace(examined(Logistic(STARTS), 0.02), jumps=by_hand)])["geometry"]
    assert geometry == {"median_geometry_share": pytest.approx(0.1), "high_overlap_change": 0, "high_drift": 0}


def test_without_jumps_quantities_of_jumps_are_nan_and_fail():
    toy = double_well.DoubleWell(STARTS)
    without = examined(toy, 0.02)
    assert without.branches is None and without.profile is None and without.refined == {}
    measured = examine.summarise_tests([without])
    assert np.isnan(measured["geometry"]["median_geometry_share"]) and np.isnan(measured["refinement"]["median_slope"])
    verdicts = C5.passed_tests(measured)
    assert not verdicts["geometry"] and not verdicts["refinement"]


@pytest.mark.parametrize("counted", [(10.0,), (1.5, 10.0), ()])
def test_what_is_to_count_and_is_not_run_is_refused_before_any_run(counted):
    with pytest.raises(ParameterError, match=r"counted is .*give one or more of the multiples \(0.5, 1.5\)"):
        examine.examine(None, None, [], [], None, multiples=(0.5, 1.5), counted=counted)
