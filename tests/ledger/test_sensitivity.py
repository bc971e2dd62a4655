"""One change at a time: what a variant measures against the same quantities computed directly."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny

from phantomlib.critical.numbers import coefficient_of_variation
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.search import critical_rates
from phantomlib.errors import ParameterError
from phantomlib.ledger import sensitivity
from phantomlib.ledger.claims import load_claims
from phantomlib.measure.recipe import Recipe
from phantomlib.measure.store import Store
from phantomlib.transition import silent_failure
from phantomlib.transition.jumps import find_jumps

RECIPE = Recipe(optimizer="adam", steps=8, rank=2)
BASE = sensitivity.Setting(RECIPE, multiples=(0.5, 2.0), jump_multiples=(10.0,))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Store, models with contexts, and the values and runs of the unchanged setting."""
    store = Store(tmp_path_factory.mktemp("store"))
    pairs = [
        (model, tiny.contexts(model)) for model in (tiny.model("GPT2", "float32"), tiny.model("GPTNeoX", "float32"))
    ]
    variant = sensitivity.variants(BASE)[0]
    return store, pairs, *sensitivity.measure_setting(store, lambda dtype: pairs, BASE, variant)


def test_every_variant_changes_one_thing():
    for variant in sensitivity.variants(BASE)[1:]:
        assert len(variant.recipe) + len(variant.setting) + (variant.dtype is not None) == 1, variant.name
    assert len({variant.name for variant in sensitivity.variants(BASE)}) == len(sensitivity.variants(BASE))


def test_variants_by_name():
    names = [variant.name for variant in sensitivity.variants(BASE)]
    assert [variant.name for variant in sensitivity.variants(BASE, [names[4], names[0]])] == [names[0], names[4]]
    with pytest.raises(ParameterError, match="no variant 'as defind'.*nearest: 'as defined'"):
        sensitivity.variants(BASE, ["as defind"])


def test_the_unchanged_setting_gives_the_claims_own_quantities(measured):
    store, pairs, values, runs = measured
    predicted = [predict_critical_rates(store, m, contexts, RECIPE).third_order.values for m, contexts in pairs]
    rates = [np.stack([0.5 * of_contexts, 2.0 * of_contexts], axis=1) for of_contexts in predicted]
    grid = [store.run(m, contexts, r, RECIPE) for (m, contexts), r in zip(pairs, rates, strict=True)]
    silent = min(int(silent_failure.silent(ds, 0.1).any("rate").isel(seed=0).sum()) for ds in grid)
    assert values["C1"]["fewest_silent_contexts"] == silent
    rates = [critical_rates(store, m, contexts, RECIPE) for m, contexts in pairs]
    jumps = [
        find_jumps(store.run(m, contexts, 10 * ds.critical_rate.values[:, None], RECIPE))
        for (m, contexts), ds in zip(pairs, rates, strict=True)
    ]
    assert values["C4"]["fewest_jumping_contexts"] == min(table["context"].nunique() for table in jumps)
    shares = pd.concat(jumps)["readout_share"]
    assert values["C7"]["median_readout_share"] == pytest.approx(shares.median(), nan_ok=True)
    means = [
        np.exp(np.mean(np.log([n for n in (ds.critical_rate * 8 * ds.velocity / abs(ds.gap)).values if n > 0])))
        for ds in rates
    ]
    assert values["C8"]["coefficient_of_variation"] == pytest.approx(coefficient_of_variation(means))
    assert set(runs) >= {ds.attrs["run_id"] for ds in grid} and all(map(store.has, runs))


def test_a_stricter_definition_counts_no_more_structural_failures(measured):
    store, pairs, values, _ = measured
    counts = []
    for threshold in (1e-6, 1e-3, 10.0):
        variant = sensitivity.Variant("x", ("C3",), setting={"drag_worsens": threshold})
        found, _ = sensitivity.measure_setting(store, lambda dtype: pairs, BASE, variant)
        counts.append(found["C3"]["structural_failures"])
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0


def test_a_variant_asks_for_models_in_its_own_dtype(measured):
    store, pairs, *_ = measured
    asked = []

    def load(dtype):
        asked.append(dtype)
        return pairs

    variant = next(v for v in sensitivity.variants(BASE) if v.dtype)
    values, _ = sensitivity.measure_setting(store, load, BASE, variant)
    assert set(values) == {"C4", "C7"}
    assert asked == ["float64", None]  # the critical rates stay those of the notebook's own dtype


def test_the_table_marks_what_meets_the_thresholds():
    claims = load_claims()
    c1 = next(claim for claim in claims if claim.id == "C1")
    (criterion,) = c1.criteria
    good, bad = criterion.threshold, criterion.threshold - 1
    measured = {
        "as defined": {"C1": {criterion.name: good}, "C9": {"lora_successes": [8, 10]}},
        "changed": {"C1": {criterion.name: bad}},
    }
    table = sensitivity.sensitivity_table(measured, claims).set_index("variant")
    assert table.loc["as defined", "C1"].endswith("✓") and table.loc["changed", "C1"].endswith("✗")
    assert table.loc["as defined", "C9"] == "8/10" and table.loc["changed", "C9"] == ""


def test_the_search_is_shared_by_variants_that_only_change_the_order_parameter():
    for change in ({"exponent": 1}, {"geometry": "input"}, {"rank": 32}):
        assert sensitivity._dynamics(replace(RECIPE, **change)) == sensitivity._dynamics(RECIPE)
