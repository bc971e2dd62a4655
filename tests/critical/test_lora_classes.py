"""Classes and scores against known answers."""

import numpy as np
import pandas as pd
import pytest
import tiny

from phantomlib.critical import lora_classes
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store


def test_classes_are_split_at_the_largest_gap():
    found = lora_classes.two_classes(pd.Series({"a": 9.0, "b": 3.0, "c": 10.0, "d": 2.8}))
    assert (found.low, found.high) == (("d", "b"), ("a", "c"))
    assert found.boundary == pytest.approx(np.sqrt(27)) and found.gap == pytest.approx(np.log(3))
    assert found.separation == pytest.approx(np.log(3) / np.log(10 / 9))
    assert [found.of(x) for x in (4, 8)] == ["low", "high"]
    assert lora_classes.two_classes(pd.Series({"a": 1.0, "b": 2.0})).separation == float("inf")


@pytest.mark.parametrize(
    "outcome, predicted, score",
    [
        ([1, 1, 0, 0, 0], [1, 1, 0, 0, 0], 1.0),
        ([1, 1, 0, 0, 0], [0, 0, 1, 1, 1], 0.0),
        ([1, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0.5),  # the commonest outcome is no skill
        ([0, 0, 0, 0, 0], [0, 0, 0, 0, 0], 0.5),  # nothing to predict
    ],
)
def test_balanced_accuracy(outcome, predicted, score):
    assert lora_classes.balanced_accuracy(pd.Series(outcome, dtype=bool), pd.Series(predicted, dtype=bool)) == score


def test_leaving_out_uses_the_others_of_the_class_only():
    classes = pd.Series({"a": "low", "b": "low", "c": "low", "d": "high"})
    outcome = pd.Series({"a": True, "b": True, "c": False, "d": False})
    predicted = lora_classes.predict_from_class(classes, outcome)
    assert predicted.to_dict() == {"a": False, "b": False, "c": True, "d": True}  # of two that disagree: False


def test_explain_finds_a_planted_power_law():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"model": np.repeat(["a", "b", "c"], 5), "width": np.repeat([1.0, 2.0, 4.0], 5)})
    table["noise"], table["same"] = rng.uniform(1, 2, 15), 1.0
    table["ratio"] = 3 * table.width**1.5
    found = lora_classes.explain(table, "ratio", ["noise", "same", "width"]).set_index("explanation")
    assert found.index[0] == "width" and found.loc["width", "exponent"] == pytest.approx(1.5)
    assert found.loc["width", "r_squared"] == pytest.approx(1)
    assert found.loc["width", "left_out_error"] == pytest.approx(0, abs=1e-12)
    assert np.isnan(found.loc["same", "r_squared"])


def test_lora_succeeds_at_a_large_rate_and_not_at_a_tiny_one(tmp_path):
    model, store = tiny.model("GPT2"), Store(tmp_path)
    contexts, recipe = tiny.contexts(model, place=2), Recipe(method="lora", steps=10, rank=2)
    rates = np.full(len(contexts), 1e-3)
    weak = lora_classes.lora_outcomes(store, model, contexts, rates, recipe, multiple=1e-4, seeds=(0, 1))
    strong = lora_classes.lora_outcomes(store, model, contexts, rates, recipe, multiple=50.0, seeds=(0, 1))
    assert weak.success.dims == ("context", "seed") and not weak.success.any() and not weak.sufficient.any()
    assert strong.success.all() and strong.sufficient.all() and store.has(strong.attrs["run_id"])
