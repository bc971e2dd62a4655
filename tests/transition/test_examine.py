"""All tests together: on a double well they fail, on a convex loss they pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import contexts, model
from toys import STARTS, Logistic, examined, recorded, still

from phantombook.ledger.claims import load_claims
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.order_parameter import decompose
from phantomlib.transition import double_well, examine, jumps, readout_alone

C5 = next(claim for claim in load_claims() if claim.id == "C5")


def test_a_double_well_fails_what_looks_for_a_second_branch():
    measured = examine.summarise_tests([examined(double_well.DoubleWell(STARTS), 1.5)])
    failed = {test for test, ok in C5.passed_tests(measured).items() if not ok}
    assert failed == {"bistability", "slowing", "potential"}
    assert measured["bistability"]["same_branch_share"] == 0 and measured["bistability"]["ramp_same_branch_share"] == 0


def test_a_first_order_transition_fails_what_looks_for_a_discontinuity_and_for_rows_that_turn():
    toy = double_well.FirstOrder(STARTS)
    measured = examine.summarise_tests([examined(toy, 1.5)])
    failed = {test for test, ok in C5.passed_tests(measured).items() if not ok}
    assert failed == {"geometry", "refinement"}
    assert measured["refinement"]["median_slope"] == pytest.approx(0, abs=0.02)
    rates = toy.critical_rates(20)[:, None] * [0.5, 2.1]
    run = toy.run(None, toy.contexts(), rates, Recipe(optimizer="sgd", steps=20)).isel(seed=0)
    for gaps, start, rate in zip(run.logit_gap.values[:, 1], STARTS.values(), rates[:, 1], strict=True):
        for step, gap in enumerate(gaps):
            field = start**3 - start + step * rate
            wells = np.roots([1, 0, -1, -field]).real
            assert gap == pytest.approx(min(wells, key=lambda x: x**4 / 4 - x**2 / 2 - field * x))
    parts = run.phi_readout_part + run.phi_geometry_part
    assert parts.isel(step=slice(1, None)).values == pytest.approx(run.phi.diff("step").values, abs=1e-12)


def test_a_readout_trained_alone_is_that_of_torch():
    plain = model("GPT2", "float64")
    chosen, recipe = contexts(plain)[:1], Recipe(optimizer="sgd", steps=3)
    control = readout_alone.ReadoutAlone(plain, chosen)
    run = control.run(None, chosen, np.array([[0.02]]), recipe).isel(context=0, rate=0, seed=0)
    module = still(plain.module)
    ids, c, k = torch.tensor([chosen[0].prompt_ids]), chosen[0].correct_id, chosen[0].competitor_id
    hidden = module(ids, output_hidden_states=True).hidden_states[-1][0, -1].detach()
    E = torch.nn.Parameter(plain.readout.detach().clone())
    descent, E_0 = torch.optim.SGD([E], lr=0.02), plain.readout.norm()
    for step in range(4):
        z = E @ hidden
        found = decompose(z.softmax(0).detach(), E.detach(), c, k)
        loss = torch.nn.functional.cross_entropy(z[None], torch.tensor([c]))
        told = run.isel(step=step)
        assert float(told.phi) == pytest.approx(float(found.phi), abs=1e-10)
        assert float(told.logit_gap) == pytest.approx((z[c] - z[k]).item(), abs=1e-10)
        assert float(told.cross_entropy) == pytest.approx(loss.item(), abs=1e-10)
        assert float(told.readout_drift) == pytest.approx(((E - plain.readout).norm() / E_0).item(), abs=1e-10)
        descent.zero_grad()
        loss.backward()
        descent.step()
    parts = run.phi_readout_part + run.phi_geometry_part
    assert parts.values[1:] == pytest.approx(run.phi.diff("step").values, abs=1e-12)
    rate = control.critical_rates(chosen, recipe)
    assert control.run(None, chosen, rate[:, None], recipe).logit_gap.values[0, 0, 0, -1] == pytest.approx(0, abs=1e-9)


def test_a_convex_loss_passes_all_tests(monkeypatch):
    toy = Logistic(STARTS)
    # the time of gradient descent to zero: ∫ (1 + e^Δ) dΔ from Δ_0 to 0
    rates = np.array([(-x + 1 - np.exp(x)) / 20 for x in STARTS.values()])
    monkeypatch.setattr(Logistic, "critical_rates", lambda self, steps: rates)
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
