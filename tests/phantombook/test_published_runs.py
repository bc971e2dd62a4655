"""Published runs: taken up without the model, damage is found, and computing one again tells whether it is true."""

import dataclasses
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from phantombook import published, published_runs
from phantomlib import files
from phantomlib.critical.blind import predict_held_out, sweep_held_out
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.search import critical_rates
from phantomlib.dataset.rows import Row
from phantomlib.dataset.runs import train_once
from phantomlib.dataset.scan import scan
from phantomlib.engine import recorder
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ModelError, StoreError
from phantomlib.models.language_model import load
from phantomlib.runs import store as store_module
from phantomlib.runs.run_file import checksum, run_id
from phantomlib.runs.store import Store, specification

REF, CONTEXTS = "zoo:gpt2-s", "tests/two_contexts.yaml"
RECIPE = Recipe(steps=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with runs, a search and predictions of one model, and another model's run, published into a folder."""
    root = tmp_path_factory.mktemp("made")
    store = Store(root / "runs")
    [(model, fitting, left_out)] = published_runs.models_with_contexts(store, [REF], CONTEXTS, "", load)
    runs = store.run(model, fitting, [1e-4, 3e-3], RECIPE)
    made = {
        "folder": root / "results",
        "model": model,
        "fitting": fitting,
        "left_out": left_out,
        "runs": runs,
        "found": critical_rates(store, model, fitting, RECIPE, tolerance=0.1),
        "predicted": predict_critical_rates(store, model, fitting, RECIPE),
        "table": published_runs.table(store, "zoo", pd.DataFrame({"x": [0.1, 1 / 3]}), ""),
    }
    rows = [Row(n, tuple(range(n, n + 4)), (2, 3)) for n in (1, 2)]
    made["data set"] = train_once(store, model, rows, scan(model, rows), [1e-3], epochs=1)
    store.run(load("zoo:neox-s"), fitting, [1e-4], RECIPE)
    published_runs.publish(store, made["folder"])
    return made


@pytest.fixture
def folder(made, tmp_path):
    return shutil.copytree(made["folder"], tmp_path / "results")


def reader_s_model(made, folder, store):
    [(model, fitting, left_out)] = published_runs.models_with_contexts(store, [REF], CONTEXTS, str(folder), None)
    assert (fitting, left_out) == (made["fitting"], made["left_out"])
    return model


def test_everything_published_is_had_without_the_model(made, folder, tmp_path):
    store = Store(tmp_path / "reader")
    model = reader_s_model(made, folder, store)
    assert made["runs"].identical(store.run(model, made["fitting"], [1e-4, 3e-3], RECIPE))
    assert made["found"].identical(critical_rates(store, model, made["fitting"], RECIPE, tolerance=0.1))
    assert made["predicted"].identical(predict_critical_rates(store, model, made["fitting"], RECIPE))
    real = made["model"]
    for name in ("name", "ref", "fingerprint", "tied", "n_parameters", "model_type", "device"):
        assert getattr(model, name) == getattr(real, name)
    assert model.readout.shape == real.readout.shape and model.readout.dtype == torch.float32
    with pytest.raises(ModelError, match="was not published"):
        store.run(model, made["fitting"], [2e-4], RECIPE)
    with pytest.raises(ModelError, match="not among the models with published runs"):
        published.published_model(store.root, "zoo:neox-s")
    names = [path.name for path in folder.glob("*.nc")]  # only described models are published
    assert names and all(name.startswith("gpt2-s-") for name in names)


def test_a_store_without_descriptions_publishes_nothing(tmp_path):
    with pytest.raises(StoreError, match="describes no model"):
        published_runs.publish(Store(tmp_path / "runs"), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_tables_come_back_to_the_last_digit(made, folder, tmp_path):
    live = pd.DataFrame({"x": [5.0, 6.0]})
    again = published_runs.table(Store(tmp_path / "reader"), "zoo", live, str(folder))
    assert again.x.tolist() == [0.1, 1 / 3] == made["table"].x.tolist()
    with pytest.raises(StoreError, match="cannot be read"):
        published_runs.table(Store(tmp_path / "reader"), "nothing", live, str(folder))


@pytest.mark.parametrize("damage", ["changed", "missing", "is not in"])
@pytest.mark.parametrize("kind", ["*.nc", "searches/*.json", "predictors/*.json", "models/*.json", "tables/*.json"])
def test_a_changed_missing_or_added_file_is_named(folder, tmp_path, kind, damage):
    victim = sorted(folder.glob(kind))[0]
    if damage == "changed":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(bytes(content))
    elif damage == "missing":
        victim.unlink()
    else:
        victim = victim.with_name(f"other-{victim.name}")
        victim.write_bytes(b"{}")
    for check in (
        lambda: published.copy_into(folder, Store(tmp_path / "reader")),
        lambda: published_runs.check_published(folder, 0, None, print),
    ):
        with pytest.raises(StoreError, match=damage) as raised:
            check()
        assert victim.name in str(raised.value)


def test_without_a_list_nothing_is_taken_up(folder, tmp_path):
    (folder / published.LIST).unlink()
    with pytest.raises(StoreError, match="published.json cannot be read"):
        published.copy_into(folder, Store(tmp_path / "reader"))


def test_a_reader_s_own_files_stay_and_hide_nothing(made, folder, tmp_path):
    store, name = Store(tmp_path / "reader"), next(made["folder"].glob("*.nc")).name
    (store.root / name).write_bytes(b"mine")
    [(_, mine, _)] = published_runs.models_with_contexts(store, [REF], "default", "", lambda _: made["model"])
    assert mine != made["fitting"]  # the description in the store is of other contexts
    reader_s_model(made, folder, store)
    assert (store.root / name).read_bytes() == b"mine"
    with pytest.raises(ContextError, match="other contexts"):
        published_runs.models_with_contexts(store, [REF], "default", str(folder), None)


def list_anew(folder, **further):
    """The list of a folder whose owner means it so."""
    listed = files.read_json(folder / published.LIST) | further
    files.write_json(folder / published.LIST, listed)


@pytest.mark.parametrize(
    "name",
    ["../planted.py", "../x.nc", "planted.py", "searches/../../x.json", "measurements/x.json", "a/b/x.json", "models/.x.json",
     "/tmp/x.nc", "..nc", ".x.nc", "x.nc\n", "a\\x.nc", "searches/x.nc", "sitecustomize.py", "published.json"],
)  # fmt: skip
def test_a_folder_of_others_plants_nothing(folder, tmp_path, name):
    planted = (folder / name).resolve()
    planted.parent.mkdir(parents=True, exist_ok=True)
    if not planted.exists():
        planted.write_bytes(b"planted")
    list_anew(folder, **{name: files.file_digest(planted)})
    store = Store(tmp_path / "deep" / "reader")
    with pytest.raises(StoreError, match="no name of a published file"):
        published.copy_into(folder, store)
    assert list(tmp_path.joinpath("deep").rglob("*")) == [store.root]


def test_no_link_leads_out_of_the_folder_or_out_of_the_store(folder, tmp_path):
    secret = tmp_path / "secret.json"
    files.write_json(secret, {"columns": {}, "attrs": {}})
    link = folder / "tables" / "link.json"
    link.symlink_to(secret)
    list_anew(folder, **{"tables/link.json": files.file_digest(secret)})
    with pytest.raises(StoreError, match="tables/link.json is a link"):
        published.copy_into(folder, Store(tmp_path / "reader"))
    link.unlink()
    link.write_bytes(secret.read_bytes())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "reader" / "searches").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="searches' is a link"):
        published.copy_into(folder, Store(tmp_path / "reader"))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("change", [{"name": "../../x"}, {"contexts": 3}, {"shape": None}, {"left_out": [1]}], ids=str)
def test_a_description_of_others_names_no_file_elsewhere(folder, change):
    [path] = (folder / "models").glob("*.json")
    files.write_json(path, files.read_json(path) | change)
    with pytest.raises(StoreError, match="cannot be used"):
        published.published_model(folder, REF)


def test_a_new_engine_and_a_new_column_undo_no_published_run(made, folder, tmp_path, monkeypatch):
    """The reader's code numbers its engine 99, records one quantity more, and takes fingerprints in another way."""
    monkeypatch.setattr(store_module, "ENGINE_VERSION", 99)
    monkeypatch.setitem(recorder.RECORDED, "new", ("1", "recorded from now on"))
    monkeypatch.setattr(store_module, "finetune", None)
    store = Store(tmp_path / "reader")
    model = reader_s_model(made, folder, store)
    assert made["runs"].identical(store.run(model, made["fitting"], [1e-4, 3e-3], RECIPE))
    assert made["found"].identical(critical_rates(store, model, made["fitting"], RECIPE, tolerance=0.1))
    live = dataclasses.replace(made["model"], fingerprint="another")
    assert not store.has(run_id(specification(live, made["fitting"], np.zeros((2, 0)), RECIPE, (0,))))


def test_the_book_s_published_predictions_stay_blind_under_a_new_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "ENGINE_VERSION", 99)
    monkeypatch.setitem(recorder.RECORDED, "new", ("1", "recorded from now on"))
    results, store = Path(__file__).parents[2] / "results", Store(tmp_path)
    published.copy_into(results, store)
    for model in published.published_models(results):
        for optimizer in ("adam", "sgd"):
            recipe = Recipe(optimizer=optimizer, steps=20)
            table = published_runs.table(store, f"zoo-{optimizer}-20-steps", pd.DataFrame(), str(results))
            predicted = predict_held_out(store, model, list(model.contexts), recipe, table)
            measured = sweep_held_out(store, model, list(model.contexts), recipe, tolerance=0.005)
            assert predicted.value / np.exp(np.log(measured.critical_rate).mean()) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("write", ["", published.MODELS, published.TABLES])
def test_several_processes_may_share_a_store(made, folder, tmp_path, monkeypatch, write):
    replace, store = os.replace, Store(tmp_path / "reader")

    def slowly(source, target):
        time.sleep(0.05)  # another one writes its temporary file meanwhile
        replace(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    work = {
        "": lambda: published.copy_into(folder, store),
        published.MODELS: lambda: published_runs.models_with_contexts(
            store, [REF], CONTEXTS, "", lambda _: made["model"]
        ),
        published.TABLES: lambda: published_runs.table(store, "zoo", made["table"], ""),
    }[write]
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result()
    written = {p.relative_to(store.root).as_posix() for p in store.root.rglob("*") if p.suffix in (".nc", ".json")}
    listed = files.read_json(folder / published.LIST)
    assert written == {name for name in listed if name.startswith(write)}


def test_a_sample_computed_again_agrees(folder):
    said = []
    every = len(published_runs.draw(folder, 10**6, None))
    found = published_runs.check_published(folder, 4, 1, said.append)
    assert len(found) == 4 and not any(one.differing or one.difference > 1e-4 for one in found)
    assert len(said) == 5 and "are what was published" in said[0]
    assert every == sum(
        np.prod([xr.load_dataset(p).sizes.get(d, 0) for d in ("context", "rate", "seed")]) for p in folder.glob("*.nc")
    )


def test_a_training_on_a_data_set_is_published_and_has_no_replica_to_draw(made, folder):
    run_id = made["data set"].attrs["run_id"]
    assert [p.name for p in folder.glob(f"*-{run_id}.nc")]
    assert run_id not in {path.stem.rpartition("-")[2] for path, *_ in published_runs.draw(folder, 10**6, None)}


@pytest.mark.parametrize("name", published_runs.COMPARED)
def test_a_forged_quantity_is_found_although_all_checksums_fit(made, folder, name):
    path = folder / next(p.name for p in folder.glob("*.nc") if made["runs"].attrs["run_id"] in p.name)
    run = xr.load_dataset(path, engine="netcdf4")
    run[name][..., -1] = run[name][..., -1] + (0.05 if name == "logit_gap" else 1)
    run.attrs["checksum"] = checksum(run)
    files.write_bytes(path, run.to_netcdf(engine="netcdf4"))
    list_anew(folder, **{path.name: files.file_digest(path)})
    assert not published.problems(folder)
    found = published_runs.compute_again(path, 0, 1, 0)
    assert found.differing == (name,) and f"DIFFERS in {name}" in str(found)
    assert found.difference == pytest.approx(0.05 if name == "logit_gap" else 0, abs=1e-3)


def test_nothing_is_drawn_of_a_model_that_is_not_here(made, folder, tmp_path, monkeypatch):
    def lacking(ref):
        if ref == REF:
            raise ModelError(f"'{ref}' is not here")

    monkeypatch.setattr(published_runs, "find", lacking)
    with pytest.raises(ModelError, match=f"'{REF}' is not here"):
        published_runs.check_published(folder, 1, None, print)
    store = Store(tmp_path / "both")
    published.copy_into(folder, store)
    [(other, fitting, _)] = published_runs.models_with_contexts(store, ["zoo:neox-s"], CONTEXTS, "", load)
    store.run(other, fitting, [1e-4], Recipe(steps=1))
    published_runs.publish(store, folder)
    said = []
    [found] = published_runs.check_published(folder, 1, None, said.append)
    assert found.run.startswith("neox-s-") and not found.differing
    assert any(f"'{REF}' is not here" in text for text in said)


@pytest.mark.parametrize(
    "known, agree",
    [("fingerprint", True), ("weights", True), ("other weights", False), ("revision", True), ("nothing", False)],
)
def test_weights_are_compared_although_fingerprints_are_taken_anew(made, folder, monkeypatch, known, agree):
    """By the hash of their values if the description has it; by fingerprint or revision of the wheel or commit if not."""
    [path] = (folder / "models").glob("*.json")
    files.write_json(path, files.read_json(path) | {"weights_key": "0a" * 32 if "weights" in known else ""})
    anew = made["model"].fingerprint if known == "fingerprint" else "anew"
    loaded = dataclasses.replace(made["model"], fingerprint=anew, revision="1.0")
    object.__setattr__(loaded, "weights_key", "0a" * 32 if known == "weights" else "0b" * 32)
    monkeypatch.setattr(published_runs, "load", lambda *_, **__: loaded)
    [path] = folder.glob(f"*-{made['runs'].attrs['run_id']}.nc")
    run = xr.load_dataset(path, engine="netcdf4").assign_attrs(model_revision="1.0" if known == "revision" else "")
    run.to_netcdf(path, engine="netcdf4")
    with nullcontext() if agree else pytest.raises(ModelError, match="other weights"):
        assert not published_runs.compute_again(path, 0, 0, 0).differing


@pytest.mark.parametrize("revision, asked", [("0123abcd", "0123abcd"), ("", None)])
def test_a_model_of_the_hub_is_loaded_at_the_commit_of_the_run(folder, monkeypatch, revision, asked):
    path = sorted(folder.glob("*.nc"))[0]
    run = xr.load_dataset(path, engine="netcdf4")
    run.attrs |= {"model_ref": "owner/name", "model_revision": revision}
    run.to_netcdf(path, engine="netcdf4")
    seen = []
    monkeypatch.setattr(published_runs, "load", lambda ref, revision, **_: seen.append((ref, revision)) or load(REF))
    assert not published_runs.compute_again(path, 0, 0, 0).differing and seen == [("owner/name", asked)]
