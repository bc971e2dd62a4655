"""The rehearsal: its recipe, its estimate against the search itself, and the errors that are kept of it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny

from phantombook import published
from phantomlib import files
from phantomlib.contexts import load_contexts, resolve
from phantomlib.critical import rehearsal
from phantomlib.critical.rehearsal import CLOSE, OVERTAKES, SILENT, UNKNOWN, Estimate, estimate_critical_rate
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import PhantomError
from phantomlib.models import language_model, zoo_models
from phantomlib.runs.store import Store
from zoo import constants

PUBLISHED = Path(__file__).parents[2] / "results"


def test_a_rehearsal_covers_the_same_way_in_four_steps():
    few = rehearsal.rehearsal(Recipe(optimizer="adam", steps=20, snapshots=(0, 20)))
    assert few.steps == 4 and few.snapshots == ()
    assert (few.beta1, few.beta2) == pytest.approx((0.9**5, 0.999**5))  # memory in units of the run
    assert rehearsal.rehearsal(Recipe(steps=3)) == Recipe(steps=3)


def test_an_outcome_is_told_outside_the_interval_only():
    expected = {0.9: SILENT, 1.0: CLOSE, 1.5: CLOSE, 2.0: CLOSE, 2.1: OVERTAKES, math.nan: UNKNOWN, math.inf: UNKNOWN}
    for rate, outcome in expected.items():
        assert Estimate(1.4, 1.0, 2.0).outcome(rate) == outcome
        assert Estimate(math.nan, math.nan, math.nan).outcome(rate) == UNKNOWN


def test_errors_are_measured_from_the_centre_of_the_other_models():
    found = rehearsal.summarise_errors({"a": [0.0, 0.2], "b": [0.3], "c": [0.6]})  # means 0.1, 0.3, 0.6
    assert found.centre == pytest.approx(1 / 3)
    assert found.largest == pytest.approx(0.45)  # a's 0.0 against the mean of 0.3 and 0.6
    assert found.range == pytest.approx((1.0, math.exp(0.6)))
    assert rehearsal.summarise_errors({"a": [0.1, 0.3]}).largest == pytest.approx(0.1)  # no other: its own centre


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
    estimates = estimate_critical_rate(model, contexts, recipe)
    found = critical_rates(Store(tmp_path), model, contexts, recipe)
    for estimate, lower, upper in zip(estimates, found.lower.values, found.upper.values, strict=True):
        assert estimate.low <= upper and lower <= estimate.high
        assert estimate.rate == pytest.approx(np.sqrt(lower * upper), rel=0.015)


def test_rehearsals_can_be_kept(tmp_path, monkeypatch):
    model = tiny.model("GPT2")
    contexts, recipe = tiny.contexts(model), Recipe(optimizer="adam", steps=8)
    alone = estimate_critical_rate(model, contexts, recipe)
    kept = estimate_critical_rate(model, contexts, recipe, Store(tmp_path))
    assert [e.rate for e in kept] == pytest.approx([e.rate for e in alone], rel=rehearsal.TOLERANCE)
    monkeypatch.setattr("phantomlib.runs.store.finetune", None)  # nothing is run again
    assert estimate_critical_rate(model, contexts, recipe, Store(tmp_path)) == kept


@pytest.mark.parametrize(
    "name, optimizer, method",
    [("gpt2-s", "adam", "full"), ("neox-s", "sgd", "full"), ("neox-s", "adam", "lora"), ("gpt2-s", "sgd", "lora")],
)
def test_stated_uncertainty_holds_on_the_zoo(name, optimizer, method, tmp_path):
    """At least nine of ten contexts; T = 12 lies between the budgets at which the errors were measured."""
    loaded = language_model.load(f"zoo:{name}")
    ten = [resolve(context, loaded.tokenizer) for context in load_contexts()]
    recipe = Recipe(optimizer=optimizer, method=method, steps=12)
    measured = critical_rates(Store(tmp_path), loaded, ten, recipe).critical_rate.values
    estimates = estimate_critical_rate(loaded, ten, recipe)
    assert sum(e.low <= rate <= e.high for e, rate in zip(estimates, measured, strict=True)) >= 9


def test_constants_were_measured_on_the_shipped_weights():
    """After retraining the zoo: phantom zoo constants."""
    found = rehearsal.load_constants()["made_by"]["models"]
    assert list(found) == list(zoo_models.NAMES) and zoo_models.HELD_OUT not in json.dumps(rehearsal.load_constants())
    assert {name: language_model.load(f"zoo:{name}").fingerprint for name in zoo_models.NAMES} == found


def test_errors_beyond_the_zoo_are_those_of_the_published_table():
    zoo = [language_model.load(f"zoo:{name}") for name in zoo_models.NAMES]
    found = constants.errors_beyond(PUBLISHED, zoo)
    assert found == rehearsal.load_constants()["beyond"]
    assert found["parameters"] == max(one.n_parameters for one in zoo)
    table = pd.DataFrame(files.read_json(PUBLISHED / "tables/rehearsals.json")["columns"])
    error = np.log(table.measured / table.rate).abs()
    largest = (table.optimizer + "-" + table.method).map(found["largest"])
    assert (error <= largest).all() and (largest < 0.2).all()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_published_table_is_what_the_published_searches_say(optimizer, tmp_path):
    store = Store(tmp_path)
    published.copy_into(PUBLISHED, store)
    table = pd.DataFrame(files.read_json(PUBLISHED / "tables/rehearsals.json")["columns"])
    for ref in ("pretrained:smollm2-135m", "pretrained:gemma3-270m"):
        real, recipe = published.published_model(PUBLISHED, ref), Recipe(optimizer=optimizer, steps=20)
        rows = table[(table.model == real.name) & (table.optimizer == optimizer) & (table.method == "full")]
        assert rows.context.tolist() == [context.id for context in real.contexts]
        estimates = estimate_critical_rate(real, list(real.contexts), recipe, store)
        assert rows.rate.tolist() == pytest.approx([e.rate for e in estimates])
        measured = critical_rates(store, real, list(real.contexts), recipe).critical_rate.values
        assert rows.measured.tolist() == pytest.approx(measured.tolist())
        assert all(e.low <= rate <= e.high for e, rate in zip(estimates, measured, strict=True))  # it stems from these


def test_a_model_larger_than_the_zoo_has_a_wider_interval(monkeypatch):
    model, known = tiny.model("GPT2"), rehearsal.load_constants()
    recipe, [context] = Recipe(steps=8), tiny.contexts(model, place=8)[:1]

    def half(method, parameters):
        beyond = {"parameters": parameters, "largest": {"adam-full": 0.5, "sgd-full": 0.6}}
        monkeypatch.setattr(rehearsal, "load_constants", lambda: known | {"beyond": beyond})
        [found] = estimate_critical_rate(model, [context], replace(recipe, method=method))
        assert found.rate**2 == pytest.approx(found.low * found.high)
        return math.log(found.high / found.low) / 2

    assert half("full", model.n_parameters) < 0.2  # no larger than the largest there
    assert half("full", model.n_parameters - 1) == pytest.approx(0.5)
    assert half("lora", model.n_parameters - 1) == pytest.approx(0.6)  # never seen: the largest of all


def test_constants_are_measured_and_written(tmp_path):
    store, model = Store(tmp_path / "runs"), tiny.model("GPT2")
    measured = constants.measure_errors([model, tiny.model("GPTNeoX")], tiny.contexts, store, PUBLISHED, budgets=(6,))
    files.write_json(tmp_path / "constants.json", measured)
    again = files.read_json(tmp_path / "constants.json")
    assert again == measured and set(again["errors"]) == {"adam-full", "adam-lora", "sgd-full", "sgd-lora"}
    recipes = Recipe(steps=6), rehearsal.rehearsal(Recipe(steps=6))
    exact, coarse = (critical_rates(store, model, tiny.contexts(model), recipe) for recipe in recipes)
    ratio = (exact.critical_rate * 6 / (coarse.critical_rate * 4)).values
    written = again["errors"]["adam-full"]["6"]["rehearsal"]["tiny-GPT2"]
    assert [math.exp(x) for x in written] == pytest.approx(ratio.tolist(), rel=1e-3)


@pytest.mark.parametrize("text", [None, "", '{"errors": {}}', '{"checksum": "", "content": {}}'])
def test_a_missing_or_damaged_table_says_how_to_make_it(tmp_path, monkeypatch, text):
    monkeypatch.setattr(rehearsal, "CONSTANTS", tmp_path / "constants.json")
    if text is not None:
        rehearsal.CONSTANTS.write_text(text)
    rehearsal.load_constants.cache_clear()
    with pytest.raises(PhantomError, match="phantom zoo constants"):
        rehearsal.load_constants()
    rehearsal.load_constants.cache_clear()
