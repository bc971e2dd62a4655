"""The blind protocol cannot be broken: no sweep without a prediction, no prediction after a run."""

import copy
import dataclasses
import os
import subprocess

import numpy as np
import pytest
import tiny
import xarray as xr
from planted import planted

from phantomlib import files
from phantomlib.critical import blind
from phantomlib.critical.blind import predict_held_out, sweep_held_out
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import PhantomError
from phantomlib.models.language_model import LanguageModel, fingerprint
from phantomlib.runs.store import Store

RECIPE = Recipe(optimizer="sgd", steps=4)


@pytest.fixture
def case(tmp_path):
    model = tiny.model("Llama")
    return Store(tmp_path), model, tiny.contexts(model, place=2)


def predict(case, **options):
    return predict_held_out(*case, RECIPE, planted(**options))


def refused(case, match):
    """Both steps are."""
    for step in (predict, lambda case: sweep_held_out(*case, RECIPE)):
        with pytest.raises(PhantomError, match=match):
            step(case)


def forge(prediction, **changes):
    """Change what the file says, and write it with a fitting checksum."""
    files.write_json(prediction.path, files.read_json(prediction.path) | changes)


def test_predict_then_sweep_and_again(case):
    with pytest.raises(PhantomError, match="no prediction yet"):
        sweep_held_out(*case, RECIPE)
    other = tiny.model("GPT2")
    critical_rates(case[0], other, tiny.contexts(other, place=2), RECIPE)  # does not matter
    assert not blind.seen_of(*case[:2])
    prediction = predict(case)
    assert prediction.model == "tiny-Llama"
    assert prediction.predictor in blind.STEP_0 and prediction.fitted_on == tuple("abcde")
    assert prediction.interval[0] <= prediction.value <= prediction.interval[1]
    assert prediction.tried[f"{prediction.predictor}, {prediction.calibration}"] == pytest.approx(prediction.value)
    assert prediction.value == pytest.approx(np.exp(np.mean(np.log(list(prediction.rates.values())))))
    found = sweep_held_out(*case, RECIPE)
    assert found.converged.all() and {path.suffix for path in blind.seen_of(*case[:2])} == {".nc", ".json"}
    before = prediction.path.read_bytes()
    assert predict(case) == prediction and prediction.path.read_bytes() == before
    assert sweep_held_out(*case, RECIPE).identical(found)
    with pytest.raises(PhantomError, match="would not be blind"):  # it cannot be improved any more
        predict(case, seed=1)


def the_same(module):
    return module


def another_precision(module):
    return module.double()


def another_configuration(module):
    module.config.dropout_of_nothing = 0.5
    return module


@pytest.mark.parametrize("change", [the_same, another_precision, another_configuration])
@pytest.mark.parametrize("kept", ["run", "search"])
def test_who_ran_or_searched_the_weights_has_looked_whatever_the_disguise(tmp_path, change, kept, monkeypatch):
    """Whatever the recipe, too. The runs may be gone: what the search found of them is still there to be read."""
    held_out, store = tiny.model("Llama", "float32"), Store(tmp_path)
    contexts, module = tiny.contexts(held_out, place=2), change(copy.deepcopy(held_out.module))
    disguised = LanguageModel("another name", "", module, None, fingerprint(module))
    assert (disguised.fingerprint == held_out.fingerprint) == (change is the_same)
    critical_rates(store, disguised, contexts, Recipe(steps=2))
    for path in tmp_path.glob("searches/*.json" if kept == "run" else "*.nc"):
        path.unlink()
    for reader in ("load_dataset", "open_dataset"):  # the store's index knows what each run says of itself
        monkeypatch.setattr(xr, reader, lambda *_, **__: pytest.fail("a run was opened"))
    with pytest.raises(PhantomError, match="would not be blind"):
        predict_held_out(store, held_out, contexts, RECIPE, planted())
    assert not list(tmp_path.glob("predictions/*.json"))


def test_a_name_of_250_characters_is_shortened_in_the_name_of_the_file(case):
    store, model, contexts = case
    long = [dataclasses.replace(model, name=250 * "ü" + end) for end in "ab"]
    found = [predict((store, one, contexts)) for one in long]
    assert [blind.read_prediction(one.path).model for one in found] == [one.name for one in long]


def test_files_older_than_the_name_of_weights_are_known_by_the_fingerprint(case):
    store, model, contexts = case
    older = dataclasses.replace(model)
    object.__setattr__(older, "weights_key", "")
    critical_rates(store, older, contexts, RECIPE)
    assert {path.suffix for path in blind.seen_of(store, model)} == {".nc", ".json"}
    assert not blind.seen_of(store, tiny.model("GPT2"))


@pytest.mark.parametrize("suffix", [".nc", ".json"])
def test_a_prediction_younger_than_runs_or_searches_is_not_blind(case, suffix):
    prediction = predict(case)
    sweep_held_out(*case, RECIPE)
    for path in blind.seen_of(*case[:2]):
        if path.suffix == suffix:
            os.utime(path, (0, 0))
    refused(case, "not blind")
    assert prediction.path.is_file()


@pytest.mark.parametrize("change", ["steps", "contexts", "tampered"])
def test_a_prediction_of_something_else_does_not_count(case, change):
    store, model, contexts = case
    prediction, recipe, match = predict(case), RECIPE, "other weights, contexts or another recipe"
    if change == "steps":
        recipe, match = Recipe(optimizer="sgd", steps=5), "no prediction yet"
    elif change == "contexts":
        contexts = contexts[:1]
    else:
        forge(prediction, subject="0" * 12)
    with pytest.raises(PhantomError, match=match):
        sweep_held_out(store, model, contexts, recipe)


def test_the_held_out_model_cannot_be_among_the_fitted_ones(case):
    table = planted().assign(model=lambda t: t.model.replace("a", "tiny-Llama"))
    with pytest.raises(PhantomError, match="leave it out"):
        predict_held_out(*case, RECIPE, table)
    with pytest.raises(PhantomError, match="at least 3"):
        predict_held_out(*case, RECIPE, planted().query("model in ['a', 'b']"))


EVIDENCE, SHAPE = "not what follows from its evidence", "cannot be read"


@pytest.mark.parametrize(
    "wrong, match",
    [
        *(({"value": 0.123}, EVIDENCE), ({"interval": [0.0, 1.0]}, EVIDENCE), ({"tried": {}}, EVIDENCE)),
        *(({"rates": {"c0": 1.0, "c1": 1.0}}, EVIDENCE), ({"predictor": "quadrature"}, EVIDENCE)),
        ({"fitted_on": ["a", "b", "c"]}, EVIDENCE),
        *(({"value": None}, SHAPE), ({"interval": "ab"}, SHAPE), ({"interval": 3}, SHAPE), ({"rates": []}, SHAPE)),
        *(({"time": "soon"}, SHAPE), ({"time": 3}, SHAPE), ({"more": 1}, SHAPE), ("", SHAPE), ("[1]", SHAPE)),
    ],
    ids=str,
)
def test_a_prediction_that_does_not_follow_from_its_evidence_or_is_damaged_is_refused(case, wrong, match):
    prediction = predict(case)
    prediction.path.write_text(wrong) if isinstance(wrong, str) else forge(prediction, **wrong)
    with pytest.raises(PhantomError, match=match) as refusal:
        predict(case)
    assert "\n" not in str(refusal.value)
    if match == SHAPE:
        refused(case, match)


def test_rounding_is_no_forgery(case):
    prediction = predict(case)
    forge(prediction, value=prediction.value * (1 + 1e-6))
    assert predict(case).value != prediction.value


@pytest.mark.parametrize("changes", [{"time": "2020-01-01T00:00:00+00:00"}, {"commit": "0123456789"}], ids=str)
def test_a_prediction_that_is_not_the_one_before_the_runs_is_refused(case, changes):
    """The runs of the sweep carry the checksum of the file, so not even its time can be changed afterwards."""
    prediction = predict(case)
    sweep_held_out(*case, RECIPE)
    forge(prediction, **changes)
    refused(case, "changed since")


def test_the_commit_that_holds_a_prediction_is_named(case):
    def git(*words):
        person = ["-c", "user.name=x", "-c", "user.email=x@y.z"]
        done = subprocess.run(["git", "-C", case[0].root, *person, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    prediction = predict(case)
    assert prediction.held_by == ""
    git("init", "-q")
    assert prediction.held_by == ""
    git("add", "predictions")
    git("commit", "-qm", "A prediction")
    first = git("log", "--format=%h, %cs")
    assert prediction.held_by == first
    git("commit", "-qm", "Something else", "--allow-empty")
    assert prediction.held_by == first
    forge(prediction, commit="")
    assert prediction.held_by == ""


def test_a_predictor_without_a_value_is_no_prediction(case, monkeypatch):
    real = blind.predict_critical_rates
    monkeypatch.setattr(blind, "predict_critical_rates", lambda *given: real(*given).map(lambda x: x * np.nan))
    with pytest.raises(PhantomError, match="predicts nothing"):
        predict(case)
