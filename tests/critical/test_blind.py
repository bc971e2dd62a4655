"""The blind protocol cannot be broken: no sweep without a prediction, no prediction after a run."""

import copy
import dataclasses
import os
import random
import subprocess
from contextlib import suppress

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


def files_of(case, suffix):
    return [path for path in blind.seen_of(*case[:2]) if path.suffix == suffix]


def forge(prediction, **changes):
    """Change what the file says, and write it with a fitting checksum."""
    files.write_json(prediction.path, files.read_json(prediction.path) | changes)


def test_no_sweep_before_a_prediction(case):
    with pytest.raises(PhantomError, match="no prediction yet"):
        sweep_held_out(*case, RECIPE)
    assert not blind.seen_of(*case[:2])


def test_runs_and_searches_of_other_models_do_not_matter(case):
    other = tiny.model("GPT2")
    critical_rates(case[0], other, tiny.contexts(other, place=2), RECIPE)
    assert predict_held_out(*case, RECIPE, planted()).model == "tiny-Llama"


def the_same(module):
    return module


def another_precision(module):
    return module.double()


def another_configuration(module):
    module.config.dropout_of_nothing = 0.5
    return module


@pytest.mark.parametrize("change", [the_same, another_precision, another_configuration])
@pytest.mark.parametrize("kept", ["run", "search"])
def test_who_ran_or_searched_the_weights_has_looked_whatever_the_disguise(tmp_path, change, kept):
    """Whatever the recipe, too. The runs may be gone: what the search found of them is still there to be read."""
    held_out, store = tiny.model("Llama", "float32"), Store(tmp_path)
    contexts, module = tiny.contexts(held_out, place=2), change(copy.deepcopy(held_out.module))
    disguised = LanguageModel("another name", "", module, None, fingerprint(module))
    assert (disguised.fingerprint == held_out.fingerprint) == (change is the_same)
    critical_rates(store, disguised, contexts, Recipe(steps=2))
    for path in tmp_path.glob("searches/*.json" if kept == "run" else "*.nc"):
        path.unlink()
    with pytest.raises(PhantomError, match="would not be blind"):
        predict_held_out(store, held_out, contexts, RECIPE, planted())
    assert not list(tmp_path.glob("predictions/*.json"))


def test_files_older_than_the_name_of_weights_are_known_by_the_fingerprint(case):
    store, model, contexts = case
    older = dataclasses.replace(model)
    object.__setattr__(older, "weights_key", "")
    critical_rates(store, older, contexts, RECIPE)
    assert len(files_of(case, ".json")) == 1 and files_of(case, ".nc")
    assert not blind.seen_of(store, tiny.model("GPT2"))


def test_a_look_opens_no_run(case, monkeypatch):
    """The store's index knows what each run says of itself."""
    critical_rates(*case, RECIPE)
    for reader in ("load_dataset", "open_dataset"):
        monkeypatch.setattr(xr, reader, lambda *_, **__: pytest.fail("a run was opened"))
    with pytest.raises(PhantomError, match="would not be blind"):
        predict_held_out(*case, RECIPE, planted())


def test_predict_then_sweep_and_again(case):
    prediction = predict_held_out(*case, RECIPE, planted())
    assert prediction.predictor in blind.STEP_0 and prediction.fitted_on == tuple("abcde")
    assert prediction.interval[0] <= prediction.value <= prediction.interval[1]
    assert prediction.tried[f"{prediction.predictor}, {prediction.calibration}"] == pytest.approx(prediction.value)
    assert prediction.value == pytest.approx(np.exp(np.mean(np.log(list(prediction.rates.values())))))
    found = sweep_held_out(*case, RECIPE)
    assert found.converged.all() and files_of(case, ".nc")
    before = prediction.path.read_bytes()
    assert predict_held_out(*case, RECIPE, planted()) == prediction and prediction.path.read_bytes() == before
    assert sweep_held_out(*case, RECIPE).identical(found)


def test_a_prediction_cannot_be_improved_after_the_sweep(case):
    predict_held_out(*case, RECIPE, planted())
    sweep_held_out(*case, RECIPE)
    with pytest.raises(PhantomError, match="would not be blind"):
        predict_held_out(*case, RECIPE, planted(seed=1))


@pytest.mark.parametrize("suffix", [".nc", ".json"])
def test_a_prediction_younger_than_runs_or_searches_is_not_blind(case, suffix):
    prediction = predict_held_out(*case, RECIPE, planted())
    sweep_held_out(*case, RECIPE)
    for path in files_of(case, suffix):
        os.utime(path, (0, 0))
    for ask in (lambda: predict_held_out(*case, RECIPE, planted()), lambda: sweep_held_out(*case, RECIPE)):
        with pytest.raises(PhantomError, match="not blind"):
            ask()
    assert prediction.path.is_file()


@pytest.mark.parametrize("change", ["steps", "contexts", "tampered"])
def test_a_prediction_of_something_else_does_not_count(case, change):
    store, model, contexts = case
    prediction = predict_held_out(*case, RECIPE, planted())
    if change == "steps":
        with pytest.raises(PhantomError, match="no prediction yet"):
            sweep_held_out(store, model, contexts, Recipe(optimizer="sgd", steps=5))
        return
    if change == "tampered":
        files.write_json(prediction.path, files.read_json(prediction.path) | {"subject": "0" * 12})
    with pytest.raises(PhantomError, match="other weights, contexts or another recipe"):
        sweep_held_out(store, model, contexts[:1] if change == "contexts" else contexts, RECIPE)


def test_the_held_out_model_cannot_be_among_the_fitted_ones(case):
    table = planted().assign(model=lambda t: t.model.replace("a", "tiny-Llama"))
    with pytest.raises(PhantomError, match="leave it out"):
        predict_held_out(*case, RECIPE, table)
    with pytest.raises(PhantomError, match="at least 3"):
        predict_held_out(*case, RECIPE, planted().query("model in ['a', 'b']"))


@pytest.mark.parametrize(
    "changes",
    [
        *({"value": 0.123}, {"value": None}, {"interval": [0.0, 1.0]}, {"interval": "ab"}, {"tried": {}}),
        *(
            {"rates": {"c0": 1.0, "c1": 1.0}},
            {"rates": []},
            {"predictor": "quadrature"},
            {"fitted_on": ["a", "b", "c"]},
        ),
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_prediction_that_does_not_follow_from_its_evidence_is_refused(case, changes):
    forge(predict_held_out(*case, RECIPE, planted()), **changes)
    with pytest.raises(PhantomError, match="not what follows from its evidence"):
        predict_held_out(*case, RECIPE, planted())


def test_rounding_is_no_forgery(case):
    prediction = predict_held_out(*case, RECIPE, planted())
    forge(prediction, value=prediction.value * (1 + 1e-6))
    assert predict_held_out(*case, RECIPE, planted()).value != prediction.value


@pytest.mark.parametrize("name", ["time", "commit"])
def test_a_prediction_that_is_not_the_one_before_the_runs_is_refused(case, name):
    """The runs of the sweep carry the checksum of the file, so not even its time can be changed afterwards."""
    prediction = predict_held_out(*case, RECIPE, planted())
    sweep_held_out(*case, RECIPE)
    forge(prediction, **{name: {"time": "2020-01-01T00:00:00+00:00", "commit": "0123456789"}[name]})
    for ask in (lambda: predict_held_out(*case, RECIPE, planted()), lambda: sweep_held_out(*case, RECIPE)):
        with pytest.raises(PhantomError, match="changed since"):
            ask()


def test_the_commit_that_holds_a_prediction_is_named(case):
    def git(*words):
        person = ["-c", "user.name=x", "-c", "user.email=x@y.z"]
        done = subprocess.run(["git", "-C", case[0].root, *person, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    prediction = predict_held_out(*case, RECIPE, planted())
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


def test_two_hundred_flipped_bits(case):
    """Of a prediction; what is still read has the same content."""
    prediction = predict_held_out(*case, RECIPE, planted())
    whole, accepted = prediction.path.read_bytes(), 0
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        prediction.path.write_bytes(damaged)
        with suppress(PhantomError):
            assert blind.read_prediction(prediction.path) == prediction
            accepted += 1
    assert accepted < 50


@pytest.mark.parametrize(
    "wrong", [{"time": "soon"}, {"time": 3}, {"interval": 3}, {"more": 1}, "", "{}", "[1]", '{"model": "x"}'], ids=str
)
def test_a_damaged_prediction_or_one_of_another_shape_is_named(case, wrong):
    prediction = predict_held_out(*case, RECIPE, planted())
    prediction.path.write_text(wrong) if isinstance(wrong, str) else forge(prediction, **wrong)
    for ask in (lambda: predict_held_out(*case, RECIPE, planted()), lambda: sweep_held_out(*case, RECIPE)):
        with pytest.raises(PhantomError, match="cannot be read"):
            ask()


def test_a_predictor_without_a_value_is_no_prediction(case, monkeypatch):
    real = blind.predict_critical_rates
    monkeypatch.setattr(blind, "predict_critical_rates", lambda *given: real(*given).map(lambda x: x * np.nan))
    with pytest.raises(PhantomError, match="predicts nothing"):
        predict_held_out(*case, RECIPE, planted())
