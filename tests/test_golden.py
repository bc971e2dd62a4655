"""Golden numbers: what tiny runs, searches and predictions gave when the engine, the search and the predictors got their version.

A store is reused as long as the version is the same. So numbers that change without it would be mixed with older ones, and
the tests here fail. If they are meant to change: raise the version, then write them anew, ``python tests/test_golden.py``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # when it is run as a program
import tiny

from phantomlib.critical import predictors, search
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.search import critical_rates
from phantomlib.engine import finetune as engine
from phantomlib.engine import optimizer
from phantomlib.engine.loss import LOSSES
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store

FOLDER = Path(__file__).with_name("golden")
RATES = [1e-3, 3e-2]
SHORT = {"steps": 3, "rank": 2, "snapshots": (0, 3)}
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9, "equal_nan": True}  # float64 leaves no more to rounding
RUNS = {
    f"{architecture}, {optimizer}, {method}": (architecture, {"optimizer": optimizer, "method": method} | more)
    for architecture in ("GPT2", "GPTNeoX", "Llama")
    for method in ("full", "lora")
    for optimizer, more in (("sgd", {}), ("adam", {}), ("adamw", {"weight_decay": 0.1}))
}
RUNS["GPT2, other overlaps"] = ("GPT2", {"exponent": 1, "geometry": "input"})
RUNS["GPT2, other memory"] = ("GPT2", {"beta1": 0.5, "beta2": 0.9, "epsilon": 1e-4})
for loss in LOSSES[1:]:
    RUNS[f"GPT2, {loss}"] = ("GPT2", {"optimizer": "sgd", "loss": loss, "weight": 0.5})


def engine_numbers(store):
    found = {}
    for name, (architecture, more) in RUNS.items():
        model, seeds = tiny.model(architecture), (0, 1) if more.get("method") == "lora" else (0,)
        found[name] = engine.finetune(model, tiny.contexts(model), RATES, Recipe(**SHORT | more), seeds=seeds)
    return {name: numbers(dataset) for name, dataset in found.items()}


def search_numbers(store):
    model, found = tiny.model("GPT2"), {}
    for update, method in (("sgd", "full"), ("adam", "full"), ("adam", "lora")):
        recipe = Recipe(optimizer=update, method=method, steps=4, rank=2)
        found[f"{update}, {method}"] = numbers(critical_rates(store, model, tiny.contexts(model), recipe))
    return found


def predictor_numbers(store):
    model, recipes = tiny.model("GPT2"), {name: Recipe(optimizer=name, steps=4) for name in ("sgd", "adam")}
    contexts = tiny.contexts(model, place=2)
    return {name: numbers(predict_critical_rates(store, model, contexts, recipe)) for name, recipe in recipes.items()}


def numbers(dataset):
    return {name: variable.values.tolist() for name, variable in dataset.data_vars.items()}


KINDS = {
    "engine": (lambda: engine.ENGINE_VERSION, "ENGINE_VERSION", engine_numbers),
    "search": (lambda: search.SEARCH_VERSION, "SEARCH_VERSION", search_numbers),
    "predictors": (lambda: predictors.VERSION, "VERSION in critical/predictors.py", predictor_numbers),
}


def differences(golden, found):
    """What is not the same in both, as "case: variable"."""
    changed = [f"{case}: missing" for case in golden.keys() ^ found.keys()]
    for case in golden.keys() & found.keys():
        for name in golden[case].keys() | found[case].keys():
            old, new = (np.array(one[case].get(name, []), dtype=float) for one in (golden, found))
            if old.shape != new.shape or not np.allclose(old, new, **TOLERANCE):
                changed.append(f"{case}: {name}")
    return sorted(changed)


def stored(kind):
    return json.loads((FOLDER / f"{kind}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_their_version(kind, tmp_path):
    version, name, compute = KINDS[kind]
    golden = stored(kind)
    assert golden["version"] == version(), f"{name} was changed: write the golden numbers anew, python {__file__}"
    changed = differences(golden["numbers"], compute(Store(tmp_path)))
    assert not changed, f"Numbers changed, so stores must not be reused: raise {name} if that is meant. {changed}"


def test_a_doubled_step_is_noticed(monkeypatch):
    """What once went unnoticed: Adam with twice its step reused every stored run."""
    real = optimizer.BatchedOptimizer.__init__
    doubled = lambda self, stacked, rates, recipe: real(self, stacked, 2 * rates, recipe)  # noqa: E731
    monkeypatch.setattr(optimizer.BatchedOptimizer, "__init__", doubled)
    monkeypatch.setitem(globals(), "RUNS", {name: RUNS[name] for name in ("GPT2, adam, full", "GPT2, sgd, lora")})
    golden = {name: values for name, values in stored("engine")["numbers"].items() if name in RUNS}
    changed = differences(golden, engine_numbers(None))
    assert {"GPT2, adam, full: logit_gap", "GPT2, sgd, lora: cross_entropy"} <= set(changed)


@pytest.mark.parametrize("factor, noticed", [(1 + 1e-8, False), (1 + 1e-5, True)])
def test_rounding_is_tolerated_and_no_more(factor, noticed):
    golden = stored("search")["numbers"]
    changed = {case: {n: (np.array(v) * factor).tolist() for n, v in found.items()} for case, found in golden.items()}
    assert bool(differences(golden, changed)) == noticed


def write(folder):
    """Write the numbers of each kind whose version is new, and cases that are; refuse where only the numbers are."""
    for kind, (version, name, compute) in KINDS.items():
        path, found = FOLDER / f"{kind}.json", compute(Store(folder / kind))
        if path.exists() and stored(kind)["version"] == version():
            golden = stored(kind)["numbers"]
            changed = differences(golden, {case: found[case] for case in golden.keys() & found.keys()})
            if changed or golden.keys() == found.keys():
                print(f"{kind}: raise {name} first; changed: {changed}" if changed else f"{kind}: as before")
                continue
            found |= golden
        short = json.loads(json.dumps(found), parse_float=lambda digits: float(f"{float(digits):.9g}"))
        path.write_text(json.dumps({"version": version(), "numbers": short}) + "\n", encoding="utf-8")
        print(f"{kind}: written")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        write(Path(scratch))
