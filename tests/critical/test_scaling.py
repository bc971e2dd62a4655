"""Numbers, calibrations, classes and LoRA's law against known answers and planted laws."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plain
import pytest
import tiny
from chapter import chapter
from planted import planted

from phantomlib.critical import scaling
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store

NAN = np.nan


def test_the_critical_rate_of_lora_solves_its_law():
    v, gap, growth = (np.array(x) for x in ([2.0, 300, 5, 5], [-1.0, -2, -0.3, -3], [0.0, 400, 1e-9, -0.05]))
    rate = scaling.lora_critical_rate(0.9, 20, v, gap, growth)
    number = scaling.kinematic_number(rate, 20, v, gap)
    np.testing.assert_allclose(number * (1 + rate * 19 * growth), 0.9)
    assert rate[0] == pytest.approx(0.9 / 20 / 2) and rate[3] > 0.9 * 3 / 20 / 5  # A frozen; A turning it back
    larger_root = -1 / (19 * growth[3]) - rate[3]
    assert rate[3] < larger_root
    assert np.isnan(scaling.lora_critical_rate(0.9, 20, np.array([-1.0, 1.0, NAN]), -1.0, np.array([1, -9, 1]))).all()


def table(numbers):
    return pd.DataFrame(
        [{"model": m, "context": c, "number": x} for m, row in numbers.items() for c, x in enumerate(row)]
    )


def test_architecture_numbers_are_geometric_means_of_what_is_defined():
    summary = scaling.architecture_numbers(table({"a": [1, 4, -3, NAN], "b": [2, 2, 2, 2]})).set_index("model")
    assert summary["mean"].tolist() == pytest.approx([2, 2])
    assert summary.loc["a", ["n", "undefined"]].tolist() == [2, 2]
    assert summary.loc["b", ["log_sd", "low", "high"]].tolist() == pytest.approx([0, 2, 2])


def test_variation_is_that_of_the_means_and_its_interval_shrinks_with_agreement():
    assert scaling.coefficient_of_variation([1, 3]) == pytest.approx(np.sqrt(2) / 2)
    contexts = np.exp(np.random.default_rng(0).normal(size=10))
    shared = table({"a": 1.0 * contexts, "b": 1.1 * contexts})  # contexts scatter, the ratio of the models does not
    low, high = chapter("08", nb=SimpleNamespace(seed=0)).interval_of_spread(shared)
    assert low == pytest.approx(high) == pytest.approx(scaling.coefficient_of_variation([1.0, 1.1]))


def test_the_bootstrap_interval_covers_the_mean_of_normal_numbers():
    rng = np.random.default_rng(1)
    covered = [low <= 0 <= high for low, high in (scaling.interval(rng.normal(size=30), np.mean) for _ in range(40))]
    assert 33 <= sum(covered) <= 40


def test_calibrations_recover_the_planted_law():
    table = planted()
    assert scaling.fit_calibration(table, "velocity", "none") == (0.0, 0.0)
    assert scaling.fit_calibration(table, "velocity", "gap") == pytest.approx((0.1, 0.2))
    constant = 0.1 + 0.2 * table.gap.abs().mean()
    assert scaling.fit_calibration(table, "velocity", "constant") == pytest.approx((constant, 0))
    np.testing.assert_allclose(scaling.apply_calibration(table, "velocity", (0.1, 0.2)), table.measured)


def test_leaving_one_out_never_fits_on_what_it_predicts():
    table = planted()
    table.loc[table.model == "e", "measured"] *= 10  # an outlier must not help itself
    errors = scaling.leave_one_out(table, ["velocity"])
    of_e = errors[(errors.model == "e") & (errors.calibration == "gap")].error
    np.testing.assert_allclose(of_e, -np.log(10))


def test_the_best_predictor_ranks_first_and_partial_ones_last():
    predictors = ["first_steps", "velocity", "third_order"]  # the best is not the first
    ranked = scaling.ranking(scaling.leave_one_out(planted(), predictors))
    order = list(zip(ranked.predictor, ranked.calibration, strict=True))
    assert order[0] == ("velocity", "gap") and ranked.rms[0] < 1e-12  # the planted law
    assert [predictor for predictor, _ in order[1:4]] == ["third_order"] * 3 and ranked.rms[1] < 1e-3  # but for noise
    assert order[4:6] == [("velocity", "constant"), ("velocity", "none")]
    assert set(ranked.predictor.tail(3)) == {"first_steps"} and (ranked.missing.tail(3) == 50).all()


def test_classes_are_split_at_the_largest_gap():
    found = scaling.two_classes(pd.Series({"a": 9.0, "b": 3.0, "c": 10.0, "d": 2.8}))
    assert (found.low, found.high) == (("d", "b"), ("a", "c"))
    assert found.boundary == pytest.approx(np.sqrt(27)) and found.gap == pytest.approx(np.log(3))
    assert found.separation == pytest.approx(np.log(3) / np.log(10 / 9))
    assert scaling.two_classes(pd.Series({"a": 1.0, "b": 2.0})).separation == float("inf")


@pytest.mark.parametrize(
    "outcome, foretold, score",
    [
        ([1, 1, 0, 0, 0], [1, 1, 0, 0, 0], 1.0),
        ([1, 1, 0, 0, 0], [0, 0, 1, 1, 1], 0.0),
        ([1, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0.5),  # the commonest outcome is no skill
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0.5),  # nothing to predict
    ],
)
def test_balanced_accuracy(outcome, foretold, score):
    assert chapter("09").balanced_accuracy(pd.Series(outcome, dtype=bool), pd.Series(foretold, dtype=bool)) == score


def test_leaving_out_uses_the_others_of_the_class_only():
    classes = pd.Series({"a": "low", "b": "low", "c": "low", "d": "high"})
    outcome = pd.Series({"a": True, "b": True, "c": False, "d": False})
    foretold = chapter("09").foretold_by_peers(classes, outcome)
    assert foretold.to_dict() == {"a": False, "b": False, "c": True, "d": True}  # of two that disagree: False


def test_a_planted_power_law_is_found():
    law = pd.DataFrame({"model": np.repeat(["a", "b", "c"], 5), "width": np.repeat([1.0, 2.0, 4.0], 5), "same": 1.0})
    law["ratio"] = 3 * law.width**1.5
    explain = chapter("09", law=law).explain
    expected = {"explanation": "width", "exponent": 1.5, "r_squared": 1, "left_out_error": 0}
    assert explain("width") == pytest.approx(expected, abs=1e-12)
    assert np.isnan(explain("same")["r_squared"])


def test_lora_succeeds_at_a_large_rate_and_not_at_a_tiny_one(tmp_path):
    model, store = tiny.model("GPT2"), Store(tmp_path)
    contexts, recipe = tiny.contexts(model, place=2), Recipe(method="lora", steps=10, rank=2)
    rates = np.full(len(contexts), 1e-3)
    weak = scaling.lora_outcomes(store, model, contexts, rates, recipe, multiple=1e-4, seeds=(0, 1))
    strong = scaling.lora_outcomes(store, model, contexts, rates, recipe, multiple=50.0, seeds=(0, 1))
    assert weak.success.dims == ("context", "seed") and not weak.success.any() and not weak.sufficient.any()
    assert strong.success.all() and strong.sufficient.all() and store.has(strong.attrs["run_id"])
    swept = scaling.lora_outcomes(store, model, contexts, rates, recipe, multiple=[1e-4, 50.0])
    assert swept.success.dims == ("context", "rate", "seed")
    assert swept.sufficient.isel(seed=0).values.tolist() == [False, True]


def test_accuracy_is_the_mean_over_the_rates_at_which_outcomes_differ():
    classes = pd.Series({"a": "low", "b": "low", "c": "high", "d": "high"})
    outcomes = pd.DataFrame({3.0: [0, 0, 0, 0], 10.0: [1, 1, 0, 0], 14.0: [1, 0, 1, 0]}, classes.index).astype(bool)
    mean_accuracy = chapter("09").mean_accuracy
    assert mean_accuracy(classes, outcomes) == 0.5 * (1.0 + 0.0)  # foretold from the other of the class
    assert mean_accuracy(classes, outcomes[[3.0]]) == 0.5


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_of_lora_with_a_frozen_a_only_b_is_trained(optimizer):
    model, recipe = tiny.model("GPT2"), Recipe(method="lora", optimizer=optimizer, steps=6, rank=2)
    context, rate = tiny.contexts(model)[0], 0.05
    copy = chapter("09").only_B(model, recipe)
    assert {name.split(".")[-3] for name, _ in copy.module.named_parameters()} == {"lora_B"}
    runs = finetune(copy, [context], [rate], replace(recipe, method="full"))
    expected = [plain.gap(z, context) for _, z, _ in plain.training(model, context, [rate] * 6, recipe, only="lora_B")]
    np.testing.assert_allclose(runs.logit_gap.values.ravel(), expected, rtol=1e-7, atol=1e-9)
    whole = [plain.gap(z, context) for _, z, _ in plain.training(model, context, [rate] * 6, recipe)]
    assert abs(whole[-1] - expected[-1]) > 1e-3  # A would move
    assert (runs.readout_drift == 0).all()
