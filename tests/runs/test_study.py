"""A study holds one result per optimiser and model, in order."""

from types import SimpleNamespace

import pandas as pd
import xarray as xr

from phantomlib.runs.study import Study

MODELS = [SimpleNamespace(name=name) for name in ("a", "b")]


def test_of_sel_map_and_table():
    study = Study.of(lambda model, optimizer: f"{optimizer} of {model.name}", MODELS)
    assert list(study) == [("adam", "a"), ("adam", "b"), ("sgd", "a"), ("sgd", "b")]
    assert study.sel("sgd") == {"a": "sgd of a", "b": "sgd of b"}
    assert study.map(lambda text, start: text[start:], -1)["adam", "b"] == "b"
    columns = {"optimizer": ["adam", "adam", "sgd", "sgd"], "model": ["a", "b"] * 2, "length": [9, 9, 8, 8]}
    assert study.table(lambda text: {"length": len(text)}).to_dict("list") == columns
    part = pd.DataFrame({"x": [1, 2], "model": "of its own"})
    table = Study.of(lambda model, optimizer: part, MODELS, ["adam"]).table()
    assert table.x.tolist() == [1, 2, 1, 2] and table.model.tolist() == ["a", "a", "b", "b"]
    assert list(part) == ["x", "model"] and list(table) == ["optimizer", "model", "x"]


def test_fewest_contexts_looks_at_one_optimiser():
    sizes = {"adam": {"a": 3, "b": 2}, "sgd": {"a": 1, "b": 5}}
    study = Study.of(lambda m, o: xr.Dataset(coords={"context": list(range(sizes[o][m.name]))}), MODELS)
    assert study.fewest_contexts("adam") == 2 and study.fewest_contexts("sgd") == 1
