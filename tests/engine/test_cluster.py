"""Sweeps through a real scheduler and separate worker processes: same numbers, whatever happens to the workers."""

import shutil
import socket
import threading
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import xarray as xr
from typer.testing import CliRunner

from phantombook.cli import app, use_scheduler
from phantomlib.contexts import load_contexts, resolve
from phantomlib.engine import cluster
from phantomlib.engine.finetune import ENGINE_VERSION, finetune, run_here
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import BookError, ModelError
from phantomlib.models.language_model import LanguageModel, load
from phantomlib.runs.store import Store

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """Two workers with one thread each, in processes of their own."""
    folder, options = tmp_path_factory.mktemp("dask"), {"processes": True, "dashboard_address": ":0"}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, local_directory=folder, **options) as local:
        yield local


@pytest.fixture
def there(scheduler, monkeypatch):
    monkeypatch.setenv(cluster.ENVIRONMENT, scheduler.scheduler_address)
    return scheduler


@pytest.fixture(scope="module")
def problem():
    model = load("zoo:gpt2-s")
    return model, [resolve(context, model.tokenizer) for context in load_contexts("default")]


def largest_p(p, E, c, k):
    """largest probability"""
    return p.max(1).values


@pytest.mark.parametrize(
    "rates, recipe, options",
    [
        (np.geomspace(1e-5, 1e-3, 7), Recipe(steps=2), {}),  # more than one chunk
        ([1e-3], Recipe(method="lora", steps=2), {"seeds": (0, 1), "extra": {"largest": largest_p}}),
    ],
    ids=["chunks", "seeds and further quantities"],
)
def test_a_run_of_the_cluster_is_the_same_as_one_made_here(there, problem, tmp_path, rates, recipe, options):
    model, contexts = problem
    here = finetune(model, contexts, rates, recipe, **options)
    use_scheduler(there.scheduler_address)  # one process may do so again and again
    run = Store(tmp_path, cluster.runner()).run(model, contexts, rates, recipe, **options)
    assert here.drop_attrs().identical(run.drop_attrs())


def test_workers_killed_in_the_middle(there, problem, tmp_path):
    model, contexts = problem
    rates, recipe = np.geomspace(1e-5, 1e-3, 26), Recipe(steps=10)
    thread = threading.Thread(target=Store(tmp_path, cluster.runner()).run, args=(model, contexts, rates, recipe))
    thread.start()
    with distributed.Client(there.scheduler_address, set_as_default=False) as client:
        for _ in range(2):
            while not any(client.processing().values()) and thread.is_alive():
                time.sleep(0.02)
            assert thread.is_alive()  # the run is not over: this kill matters
            busy = [address for address, tasks in client.processing().items() if tasks]
            [pid] = [nanny.pid for nanny in there.workers.values() if nanny.worker_address == busy[0]]
            psutil.Process(pid).kill()
    thread.join()
    [file] = tmp_path.glob("*.nc")  # one file, at its place, and nothing else
    assert finetune(model, contexts, rates, recipe).drop_attrs().identical(xr.load_dataset(file).drop_attrs())
    assert {path.suffix for path in tmp_path.iterdir()} == {".nc", ".lock", ".index"}


@pytest.mark.parametrize("other", [{"engine": "5"}, {"code": "0123456789ab"}, "the fingerprint that older code sends"])
def test_a_worker_with_other_code_refuses_and_names_both(there, problem, tmp_path, monkeypatch, other):
    model, contexts = problem
    here = cluster.code_version()
    assert here["engine"] == str(ENGINE_VERSION) and len(here["code"]) == 12
    if isinstance(other, str):
        with pytest.raises(BookError, match=f"other code.*{here['code']}'}} there, '{other}' here"):
            cluster._advance_there({}, other, [], None, None, None)
        return
    monkeypatch.setattr(cluster, "code_version", lambda: here | other)
    [value] = other.values()
    with pytest.raises(BookError, match=f"other code.*{here['code']}.* there, .*'{value}'.* here"):
        Store(tmp_path, cluster.runner()).run(model, contexts, [1e-4], Recipe(steps=1))
    assert not list(tmp_path.glob("*.nc"))


def test_the_key_of_the_code_is_of_every_module(tmp_path, monkeypatch):
    package, ignored = tmp_path / "phantomlib", shutil.ignore_patterns("zoo*", "weights")
    shutil.copytree(Path(cluster.__file__).parents[1], package, ignore=ignored)
    monkeypatch.setattr(cluster, "__file__", str(package / "engine" / "cluster.py"))
    key, keys = cluster.code_version.__wrapped__, set()
    for module in (None, "contexts.py", "engine/loss.py", "new.py"):
        if module:
            (package / module).open("a").write("# changed\n")
        keys.add(key()["code"])
    assert len(keys) == 4


def test_another_model_under_the_same_name_is_refused(there, problem, tmp_path):
    model, contexts = problem
    other = LanguageModel(model.name, model.ref, model.module, model.tokenizer, "0" * 16)
    with pytest.raises(ModelError, match="not the model that was asked for"):
        Store(tmp_path, cluster.runner()).run(other, contexts, [1e-4], Recipe(steps=1))
    assert not list(tmp_path.glob("*.nc"))


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
    for command in (["book"], ["run", "01"]):
        result = CliRunner().invoke(app, [*command, "--scheduler", "tcp://127.0.0.1:9"])
        assert result.exit_code != 0 and "Traceback" not in result.output


@pytest.mark.parametrize(
    "address", ["nonsense", "", "foo://x:1", "tcp://127.0.0.1:9", "tcp://127.0.0.1:99999999", "tls://127.0.0.1:9"]
)
def test_what_is_no_address(address, monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
    with pytest.raises(BookError, match="No Dask scheduler answers.*dask scheduler"):
        cluster.connect(address)


def test_a_port_at_which_something_else_listens_is_refused_in_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(BookError, match="No Dask scheduler answers"):
            cluster.connect(f"tcp://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 10


def test_a_store_computes_where_it_is_told(there, problem, tmp_path):
    (model, contexts), run_chunks = problem, Mock(side_effect=run_here)
    plain = Store(tmp_path / "here")  # although a scheduler is known: the store asks nobody
    assert plain.run_chunks is None and cluster.runner() is cluster.run_there
    Store(tmp_path / "own", run_chunks).run(model, contexts[:1], [1e-4], Recipe(steps=1))
    assert run_chunks.call_count == 1


def test_a_scheduler_without_workers():
    empty = distributed.LocalCluster(n_workers=0, dashboard_address=":0")
    with empty, pytest.raises(BookError, match="has no workers"):
        cluster.connect(empty.scheduler_address)
