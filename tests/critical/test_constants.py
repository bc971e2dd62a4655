"""The errors of rehearsals: the stated uncertainty holds, and the table of constants is what was measured."""

import json
import math
import random
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tiny import contexts, model

from phantomlib import files
from phantomlib.contexts import load_contexts, resolve
from phantomlib.critical import rehearsal
from phantomlib.critical.rehearsal import estimate_critical_rate
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import PhantomError
from phantomlib.models import language_model, zoo_models
from phantomlib.runs import published
from phantomlib.runs.store import Store
from zoo import constants

PUBLISHED = Path(__file__).parents[2] / "results"


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
    inside = [
        e.low <= rate <= e.high for e, rate in zip(estimate_critical_rate(loaded, ten, recipe), measured, strict=True)
    ]
    assert sum(inside) >= 9


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
    table = files.read_json(PUBLISHED / "tables/rehearsals.json")["columns"]
    for how, rate, measured in zip(
        map("-".join, zip(table["optimizer"], table["method"], strict=True)),
        table["rate"],
        table["measured"],
        strict=True,
    ):
        assert abs(math.log(measured / rate)) <= found["largest"][how] < 0.2


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
    plain, known = model("GPT2"), rehearsal.load_constants()
    recipe, [context] = Recipe(steps=8), contexts(plain, place=8)[:1]

    def half(method, parameters):
        beyond = {"parameters": parameters, "largest": {"adam-full": 0.5, "sgd-full": 0.6}}
        monkeypatch.setattr(rehearsal, "load_constants", lambda: known | {"beyond": beyond})
        [found] = estimate_critical_rate(plain, [context], replace(recipe, method=method))
        assert found.rate**2 == pytest.approx(found.low * found.high)
        return math.log(found.high / found.low) / 2

    assert half("full", plain.n_parameters) < 0.2  # no larger than the largest there
    assert half("full", plain.n_parameters - 1) == pytest.approx(0.5)
    assert half("lora", plain.n_parameters - 1) == pytest.approx(0.6)  # never seen: the largest of all


def test_summary_of_errors():
    found = rehearsal.summarise_errors({"a": [0.1, 0.3], "b": [-0.2, 0.2], "c": [0.4]})
    assert found.centre == pytest.approx((0.2 + 0.0 + 0.4) / 3)
    assert found.largest == pytest.approx(0.5)  # b's -0.2 against the mean 0.3 of a and c
    assert found.range == pytest.approx((math.exp(-0.2), math.exp(0.4)))


def test_constants_are_measured_and_written(tmp_path):
    measured = constants.measure_errors(
        [model("GPT2"), model("GPTNeoX")], contexts, Store(tmp_path / "runs"), PUBLISHED, budgets=(6,)
    )
    files.write_json(tmp_path / "constants.json", measured)
    again = files.read_json(tmp_path / "constants.json")
    assert again == measured and set(again["errors"]) == {"adam-full", "adam-lora", "sgd-full", "sgd-lora"}
    exact = critical_rates(Store(tmp_path / "runs"), model("GPT2"), contexts(model("GPT2")), Recipe(steps=6))
    coarse = critical_rates(
        Store(tmp_path / "runs"), model("GPT2"), contexts(model("GPT2")), rehearsal.rehearsal(Recipe(steps=6))
    )
    ratio = (exact.critical_rate * 6 / (coarse.critical_rate * 4)).values
    written = again["errors"]["adam-full"]["6"]["rehearsal"]["tiny-GPT2"]
    assert [math.exp(x) for x in written] == pytest.approx(ratio.tolist(), rel=1e-3)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "null", "{}", '{"errors": {}}', '{"checksum": "", "content": {}}']
)
def test_a_missing_or_damaged_table_says_how_to_make_it(tmp_path, monkeypatch, text):
    monkeypatch.setattr(rehearsal, "CONSTANTS", tmp_path / "constants.json")
    if text is not None:
        rehearsal.CONSTANTS.write_text(text)
    rehearsal.load_constants.cache_clear()
    with pytest.raises(PhantomError, match="phantom zoo constants"):
        rehearsal.load_constants()
    rehearsal.load_constants.cache_clear()


def test_two_hundred_flipped_bits_in_the_table(tmp_path, monkeypatch):
    whole, known, accepted = rehearsal.CONSTANTS.read_bytes(), rehearsal.load_constants(), 0
    monkeypatch.setattr(rehearsal, "CONSTANTS", tmp_path / "constants.json")
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        rehearsal.CONSTANTS.write_bytes(damaged)
        rehearsal.load_constants.cache_clear()
        with suppress(PhantomError):
            assert rehearsal.load_constants() == known
            accepted += 1
    rehearsal.load_constants.cache_clear()
    assert accepted < 150  # much of the file is blanks
