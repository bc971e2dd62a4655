"""One change at a time: what chapter 11 measures for a variant against the same quantities computed directly."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
from chapter import chapter

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
ALL = {"C1", "C3", "C4", "C7", "C8", "C9"}


def eleven(**given):
    return chapter("11", **{"steps": RECIPE.steps, "multiples": [0.5, 2.0]} | given)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Store, models with contexts, the chapter, and the values and runs of the unchanged setting."""
    store = Store(tmp_path_factory.mktemp("store"))
    models = [tiny.model("GPT2", "float32"), tiny.model("GPTNeoX", "float32")]
    pairs = [(model, tiny.contexts(model)) for model in models]
    tried = eleven(nb=SimpleNamespace(store=store), load=lambda dtype: pairs)
    return store, pairs, tried, *tried.measure_variant({"rank": 2, **JUMPS}, ALL)


def ids(runs):
    return {i for ds in runs for i in ds.attrs.get("run_ids", ds.attrs.get("run_id")).split()}


def test_every_variant_changes_one_thing():
    (_, unchanged), *others = eleven().variants(20).items()
    assert unchanged == ({}, "C1 C3 C4 C7 C8 C9") and len(others) == 17
    for name, (change, claims) in others:
        assert len(change) == 1 and set(claims.split()) < ALL, name


def test_variants_by_name():
    variants = eleven().variants
    names = list(variants(20))
    assert list(variants(20, [names[4], names[0]])) == [names[0], names[4]]
    with pytest.raises(ParameterError, match="no variant 'as defind'.*nearest: 'as defined'"):
        variants(20, ["as defind"])


def test_the_unchanged_setting_gives_the_claims_own_quantities(measured):
    store, pairs, _, values, runs = measured
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
    assert ids(runs) >= {ds.attrs["run_id"] for ds in grid} and all(map(store.has, ids(runs)))


def test_successes_of_lora_are_counted_at_ten_times_the_critical_rates(measured):
    store, pairs, _, values, _ = measured
    successes = []
    for m, contexts in pairs:
        rates = 10 * critical_rates(store, m, contexts, RECIPE).critical_rate.values[:, None]
        runs = store.run(m, contexts, rates, replace(RECIPE, method="lora"))
        ahead, phi = (runs.logit_gap.values > 0).any(-1), runs.phi.values[..., -1]
        successes.append(int((ahead & (phi > 0)).sum()))
    assert values["C9"]["lora_successes"] == successes and sum(successes) > 0


def test_a_context_without_a_critical_rate_is_left_out(measured, monkeypatch):
    store, pairs, tried, *_ = measured
    all_rates = {m.name: critical_rates(store, m, contexts, RECIPE) for m, contexts in pairs}
    results = []

    def of_the_first(store, model, contexts, recipe):
        found = all_rates[model.name].isel(context=slice(len(contexts)))
        return found.assign(critical_rate=found.critical_rate.where(found.context == contexts[0].id))

    monkeypatch.setattr(tried.search, "critical_rates", of_the_first)
    for given in (pairs, [(m, contexts[:1]) for m, contexts in pairs]):
        one = eleven(nb=SimpleNamespace(store=store), load=lambda dtype, given=given: given)
        results.append(one.measure_variant({"rank": 2, **JUMPS}, {"C4", "C7", "C8", "C9"}))
    (with_nan, runs), (without, _) = results
    assert with_nan == without and all(map(store.has, ids(runs)))
    assert with_nan["C4"]["fewest_jumping_contexts"] == 1


def test_a_stricter_definition_counts_no_more_structural_failures(measured):
    tried = measured[2]
    counts = []
    for threshold in (1e-6, 1e-3, 10.0):
        found, _ = tried.measure_variant({"structural": partial(silent_failure.drag_falls, by=threshold)}, {"C3"})
        counts.append(found["C3"]["structural_failures"])
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0


def test_a_variant_asks_for_models_in_its_own_dtype(measured):
    store, pairs, *_ = measured
    asked = []
    one = eleven(nb=SimpleNamespace(store=store), load=lambda dtype: asked.append(dtype) or pairs)
    change, claims = one.variants(20)["double precision"]
    values, _ = one.measure_variant(change, set(claims.split()))
    assert set(values) == {"C4", "C7"}
    assert asked == ["float64", None]  # the critical rates stay those of the notebook's own dtype


def test_the_table_marks_what_meets_the_thresholds():
    claims = {claim.id: claim for claim in load_claims()}
    (criterion,) = claims["C1"].criteria
    cell = eleven(ledger=claims).cell
    assert cell("C1", {criterion.name: criterion.threshold}).endswith("✓")
    assert cell("C1", {criterion.name: criterion.threshold - 1}).endswith("✗")
    assert cell("C9", {"lora_successes": [8, 10]}) == "8/10"


def test_the_search_is_shared_by_variants_that_only_change_the_order_parameter():
    dynamics = eleven().dynamics
    for change in ({"exponent": 1}, {"geometry": "input"}, {"rank": 32}):
        assert dynamics(replace(RECIPE, **change)) == dynamics(RECIPE)
