"""A worker: what it writes, what it keeps of a notebook that failed, and what it says."""

import contextlib
import json
import os
import threading
from pathlib import Path

import psutil
import pytest

from phantombook.plan import make_job
from phantombook.worker import Worker, execute
from phantomlib.errors import BookError, ContextError


def run(root, values, output, on_progress=None):
    job = make_job(root, "01", values, output)
    execute(job, on_progress)
    return job.output


def test_a_run_gives_the_same_file_twice(toy_book):
    first = run(toy_book, {"steps": 4}, toy_book / "a/01.ipynb").read_bytes()
    reports = []
    second = run(toy_book, {"steps": 4}, toy_book / "b/01.ipynb", on_progress=reports.append).read_bytes()
    assert first == second
    content = json.loads(first)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    tags = [cell["metadata"].get("tags", []) for cell in content["cells"]]
    assert ["hide-input", "injected-parameters"] in tags and ["hide-input", "parameters"] in tags
    assert reports and {"cell", "of", "heading"} <= set(reports[-1])


def test_a_failed_notebook_is_kept_and_named(toy_book):
    with pytest.raises(BookError, match="ZeroDivisionError: division by zero") as caught:
        run(toy_book, {"label": "bug"}, toy_book / "01_toy.ipynb")
    assert str(toy_book / "01_toy.failed.ipynb") in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not (toy_book / "01_toy.ipynb").exists() and not (toy_book / "01_toy.partial.ipynb").exists()
    assert '"text/plain"' in (toy_book / "01_toy.failed.ipynb").read_text()  # what it did before it failed
    run(toy_book, {}, toy_book / "01_toy.ipynb")
    assert not (toy_book / "01_toy.failed.ipynb").exists()


def test_an_error_on_purpose_keeps_its_kind_and_leaves_nothing(toy_book):
    with pytest.raises(ContextError, match=r"^The word is two tokens. Choose another.$"):
        run(toy_book, {"label": "purposely"}, toy_book / "01_toy.ipynb")
    assert not list(toy_book.glob("*.ipynb"))


def test_a_dead_kernel_is_reported(toy_book):
    with pytest.raises(BookError, match="kernel died"):
        run(toy_book, {"label": "kill"}, toy_book / "01_toy.ipynb")
    assert (toy_book / "01_toy.failed.ipynb").exists()


def test_an_output_that_cannot_be_written(toy_book):
    with pytest.raises(BookError, match="is a folder"):
        run(toy_book, {}, toy_book)
    (toy_book / "file").touch()
    with pytest.raises(BookError, match="Cannot write"):
        run(toy_book, {}, toy_book / "file/01.ipynb")


def test_several_jobs_one_after_the_other(toy_book):
    jobs = [make_job(toy_book, "01", {"steps": n}, toy_book / f"{n}.ipynb") for n in (1, 2)]
    with contextlib.closing(Worker(toy_book)) as worker:
        seconds = [worker.execute(job) for job in jobs]
    assert all(0 < s < 600 for s in seconds)
    for n in (1, 2):
        assert f"{n} [0.1, 1.0] x" in (toy_book / f"{n}.ipynb").read_text()
    assert worker.process.returncode == 130 and not Path(worker.scratch.name).exists()


def test_a_stopped_job_leaves_nothing(toy_book):
    stop = threading.Event()
    job = make_job(toy_book, "01", {"label": "slow"}, toy_book / "01_toy.ipynb")
    with contextlib.closing(Worker(toy_book)) as worker:
        family = []

        def on_progress(report):
            if not family:
                family.extend(psutil.Process(worker.process.pid).children(recursive=True))
                stop.set()

        with pytest.raises(KeyboardInterrupt):
            worker.execute(job, on_progress, stop)
    assert family and not psutil.wait_procs(family, timeout=60)[1]  # its kernel is gone
    assert not list(toy_book.glob("*.ipynb"))


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_worker_that_is_killed_is_reported(toy_book, when):
    job = make_job(toy_book, "01", {"label": "slow"}, toy_book / "01_toy.ipynb")
    with contextlib.closing(Worker(toy_book)) as worker:
        if when == "before":
            worker.process.kill()
            worker.process.wait()
        with pytest.raises(BookError, match="its worker ended with status -9"):
            worker.execute(job, lambda report: worker.process.kill())
    assert not (toy_book / "01_toy.ipynb").exists()


def test_what_a_worker_says_last_is_passed_on(toy_book, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(toy_book), prepend=os.pathsep)
    (toy_book / "papermill.py").write_text(
        "import sys, os; print('no papermill today', file=sys.stderr, flush=True); os._exit(3)"
    )
    with pytest.raises(BookError, match=r"status 3 \(no papermill today\)"):
        run(toy_book, {}, toy_book / "01_toy.ipynb")


def test_libraries_that_print_do_no_harm(toy_book, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(toy_book), prepend=os.pathsep)
    (toy_book / "sitecustomize.py").write_text("print('hello'); import os; os.write(1, b'{}')")
    assert "3 [0.1, 1.0] x" in run(toy_book, {}, toy_book / "01_toy.ipynb").read_text()
