"""One change at a time: what a variant measures against the same quantities computed directly."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny

from phantombook.ledger import sensitivity
from phantombook.ledger.claims import load_claims
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.scaling import coefficient_of_variation
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.runs.store import Store
from phantomlib.transition import silent_failure
from phantomlib.transition.jumps import find_jumps

RECIPE = Recipe(optimizer="adam", steps=8, rank=2)
JUMPS = {"size_factor": 0.05, "median_factor": 2.0}  # as small as the jumps of tiny models
BASE = sensitivity.Setting(RECIPE, multiples=(0.5, 2.0), jump_multiples=(10.0, 30.0), **JUMPS)


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
        find_jumps(store.run(m, contexts, np.outer(ds.critical_rate, [10.0, 30.0]), RECIPE), **JUMPS)
        for (m, contexts), ds in zip(pairs, rates, strict=True)
    ]
    assert values["C4"]["fewest_jumping_contexts"] == min(table["context"].nunique() for table in jumps) > 0
    shares = pd.concat(jumps)["readout_share"]
    assert np.isfinite(shares).all() and values["C7"]["median_readout_share"] == pytest.approx(shares.median())
    means = [
        np.exp(np.mean(np.log([n for n in (ds.critical_rate * 8 * ds.velocity / abs(ds.gap)).values if n > 0])))
        for ds in rates
    ]
    assert values["C8"]["coefficient_of_variation"] == pytest.approx(coefficient_of_variation(means))
    assert set(runs) >= {ds.attrs["run_id"] for ds in grid} and all(map(store.has, runs))


def test_successes_of_lora_are_counted_at_ten_times_the_critical_rates(measured):
    store, pairs, values, _ = measured
    successes = []
    for m, contexts in pairs:
        rates = 10 * critical_rates(store, m, contexts, RECIPE).critical_rate.values[:, None]
        runs = store.run(m, contexts, rates, replace(RECIPE, method="lora"))
        ahead, phi = (runs.logit_gap.values > 0).any(-1), runs.phi.values[..., -1]
        successes.append(int((ahead & (phi > 0)).sum()))
    assert values["C9"]["lora_successes"] == successes and sum(successes) > 0


def test_a_context_without_a_critical_rate_is_left_out(measured, monkeypatch):
    store, pairs, *_ = measured
    all_rates = {m.name: critical_rates(store, m, contexts, RECIPE) for m, contexts in pairs}
    variant, results = sensitivity.Variant("x", ("C4", "C7", "C8", "C9")), []

    def of_the_first(store, model, contexts, recipe):
        found = all_rates[model.name].isel(context=slice(len(contexts)))
        return found.assign(critical_rate=found.critical_rate.where(found.context == contexts[0].id))

    monkeypatch.setattr(sensitivity.search, "critical_rates", of_the_first)
    for given in (pairs, [(m, contexts[:1]) for m, contexts in pairs]):
        results.append(sensitivity.measure_setting(store, lambda dtype, given=given: given, BASE, variant))
    (with_nan, runs), (without, _) = results
    assert with_nan == without and all(map(store.has, runs))
    assert with_nan["C4"]["fewest_jumping_contexts"] == 1


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
