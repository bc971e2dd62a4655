"""Kernels forked from a process with the heavy imports done: they do what fresh ones do."""

import contextlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

import pytest

from phantombook.plan import make_job
from phantombook.preloaded_kernel import NAME, PRELOAD, Preloaded
from phantombook.project import load_profile
from phantombook.worker import Worker, execute
from phantomlib.errors import BookError

ROOT = Path(__file__).parents[2]


def test_forked_kernels_do_what_fresh_ones_do(toy_book, tmp_path):
    values = {"store": str(tmp_path / "runs")}
    plain, *forked = [
        make_job(ROOT, "04", values, tmp_path / f"{place}/03.ipynb", load_profile(ROOT, "smoke"))
        for place in ("plain", "first", "second")
    ]
    execute(plain)
    killing = make_job(toy_book, "01", {"label": "kill"}, toy_book / "01_toy.ipynb")
    with contextlib.closing(Worker(ROOT, preload=True)) as worker:
        for job in forked:
            worker.execute(job)
        with pytest.raises(BookError, match="kernel died"):
            worker.execute(killing)
    shown = [[cell.get("outputs") for cell in json.loads(job.output.read_text())["cells"]] for job in (plain, *forked)]
    assert "image/svg+xml" in json.dumps(shown[0]) and "download=" in json.dumps(shown[0])
    assert shown[0] == shown[1] == shown[2]


def test_every_module_that_is_imported_beforehand_exists():
    for name in PRELOAD:
        assert importlib.util.find_spec(name), name


def test_jupyter_finds_it_by_its_name():
    (found,) = importlib.metadata.entry_points(group="jupyter_client.kernel_provisioners", name=NAME)
    assert found.load() is Preloaded
