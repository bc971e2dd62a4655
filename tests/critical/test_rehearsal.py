"""The rehearsal: its recipe, its intervals, and its estimate against the search itself."""

import math

import numpy as np
import pytest
import tiny

from phantomlib.critical import rehearsal
from phantomlib.critical.rehearsal import CLOSE, OVERTAKES, SILENT, UNKNOWN, Estimate
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store


def test_a_rehearsal_covers_the_same_way_in_four_steps():
    few = rehearsal.rehearsal(Recipe(optimizer="adam", steps=20, snapshots=(0, 20)))
    assert few.steps == 4 and few.snapshots == ()
    assert (few.beta1, few.beta2) == pytest.approx((0.9**5, 0.999**5))  # memory in units of the run
    assert rehearsal.rehearsal(Recipe(steps=3)) == Recipe(steps=3)


@pytest.mark.parametrize(
    ("rate", "outcome"),
    [
        (0.9, SILENT),
        *((x, CLOSE) for x in (1.0, 1.5, 2.0)),
        (2.1, OVERTAKES),
        *((x, UNKNOWN) for x in (math.nan, math.inf)),
    ],
)
def test_an_outcome_is_told_outside_the_interval_only(rate, outcome):
    assert Estimate(1.4, 1.0, 2.0).outcome(rate) == outcome
    assert Estimate(math.nan, math.nan, math.nan).outcome(rate) == UNKNOWN


def test_errors_are_measured_from_the_centre_of_the_other_models():
    found = rehearsal.summarise_errors({"a": [0.0, 0.2], "b": [0.3], "c": [0.6]})  # means 0.1, 0.3, 0.6
    assert found.centre == pytest.approx(1 / 3)
    assert found.largest == pytest.approx(0.45)  # a's 0.0 against the mean of 0.3 and 0.6
    assert found.range == pytest.approx((1.0, math.exp(0.6)))


def test_expected_errors_interpolate_between_budgets(monkeypatch):
    def by_steps(centre):
        return {"rehearsal": {"a": [centre], "b": [centre]}, "kinematic": {"a": [0.0], "b": [0.0]}}

    constants = {"errors": {"adam-full": {"8": by_steps(0.1), "32": by_steps(0.3)}}}
    monkeypatch.setattr(rehearsal, "load_constants", lambda: constants)
    found = [rehearsal.expected_errors("rehearsal", Recipe(steps=steps)).centre for steps in (8, 16, 32, 100)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.3])
    assert rehearsal.expected_errors("rehearsal", Recipe(steps=4)).largest == 0  # the rehearsal is the run


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_short_run_is_its_own_rehearsal(tmp_path, optimizer):
    model = tiny.model("GPT2")
    contexts, recipe = tiny.contexts(model), Recipe(optimizer=optimizer, steps=4)
    estimates = rehearsal.estimate_critical_rate(model, contexts, recipe)
    found = critical_rates(Store(tmp_path), model, contexts, recipe)
    for estimate, lower, upper in zip(estimates, found.lower.values, found.upper.values, strict=True):
        assert estimate.low <= upper and lower <= estimate.high
        assert estimate.rate == pytest.approx(np.sqrt(lower * upper), rel=0.015)


def test_rehearsals_can_be_kept(tmp_path, monkeypatch):
    model = tiny.model("GPT2")
    contexts, recipe = tiny.contexts(model), Recipe(optimizer="adam", steps=8)
    alone = rehearsal.estimate_critical_rate(model, contexts, recipe)
    kept = rehearsal.estimate_critical_rate(model, contexts, recipe, Store(tmp_path))
    assert [e.rate for e in kept] == pytest.approx([e.rate for e in alone], rel=rehearsal.TOLERANCE)
    monkeypatch.setattr("phantomlib.runs.store.finetune", None)  # nothing is run again
    assert rehearsal.estimate_critical_rate(model, contexts, recipe, Store(tmp_path)) == kept
