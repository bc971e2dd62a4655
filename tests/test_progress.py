"""Progress: what a report says, and that who waits says so."""

import io
import json
import multiprocessing
import os
import sys
import threading
import time
from unittest.mock import Mock

import pytest
from filelock import FileLock

from phantomlib import progress
from phantomlib.errors import ParameterError, StoreError
from phantomlib.progress import locked, read_report, track


def test_work_is_reported_to_a_runner_and_nothing_is_shown(tmp_path, monkeypatch, capsys):
    path = str(tmp_path / "report.json")
    monkeypatch.setenv(progress.ENVIRONMENT, path)
    monkeypatch.setattr(progress, "INTERVAL", 0)
    assert read_report(path) is None
    with track("gpt2-s, adam", 10) as advance:
        advance(3)
        advance()
        assert read_report(path) == {"label": "gpt2-s, adam", "done": 4, "total": 10}
    assert read_report(path) is None  # outside tracked work
    assert capsys.readouterr() == ("", "") and os.listdir(tmp_path) == ["report.json"]


def test_reports_are_not_written_for_every_step(tmp_path, monkeypatch):
    path = str(tmp_path / "report.json")
    monkeypatch.setenv(progress.ENVIRONMENT, path)
    written = []
    monkeypatch.setattr(progress, "_write", lambda path, report: written.append(report))
    with track("x", 10_000) as advance:
        for _ in range(10_000):
            advance()
    assert 1 <= len(written) < 100


def test_a_report_that_cannot_be_written_or_read_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setenv(progress.ENVIRONMENT, str(tmp_path / "no" / "such" / "folder"))
    with track("x", 2) as advance:
        advance()
    (tmp_path / "half").write_text('{"label": "x"')
    assert read_report(str(tmp_path / "half")) is None


def test_without_a_terminal_nothing_is_shown_and_on_one_a_bar(capsys, monkeypatch):
    monkeypatch.delenv(progress.ENVIRONMENT, raising=False)
    for terminal, said in ((False, ""), (True, "x:   0%")):
        monkeypatch.setattr(sys.stderr, "isatty", lambda seen=terminal: seen)
        with track("x", 2) as advance:
            advance(2)
        assert said in capsys.readouterr().err if said else capsys.readouterr() == ("", "")


def hold(path, held, free):
    with FileLock(path):
        held.set()
        free.wait(60)


@pytest.mark.parametrize("runner", [False, True])
def test_who_waits_for_another_process_says_so(runner, tmp_path, monkeypatch):
    report, lock, done = str(tmp_path / "report.json"), tmp_path / "run.lock", []
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    monkeypatch.setenv(progress.ENVIRONMENT, report if runner else "")
    fork = multiprocessing.get_context("fork")
    held, free = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(lock, held, free))
    process.start()
    assert held.wait(60)

    def work():
        with locked(lock):
            done.append(True)

    monkeypatch.setattr(sys, "stderr", said := io.StringIO())
    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(600):
        heard = json.dumps(read_report(report) or "").strip('"') if runner else said.getvalue()
        if heard.endswith(("\n", "}")):
            break
        time.sleep(0.05)
    assert thread.is_alive() and not done  # it says so while it waits
    free.set()
    thread.join(60)
    process.join()
    label = "aiting for another process, which holds run.lock"
    assert done == [True] and read_report(report) is None and said.getvalue() == ("" if runner else heard)
    assert json.loads(heard)["label"] == f"w{label}" if runner else heard == f"W{label} in '{tmp_path}'.\n"


def test_a_free_lock_is_taken_in_silence_and_given_back(tmp_path, capsys):
    for _ in range(2):
        with locked(tmp_path / "run.lock"):
            pass
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "run.lock"):
        raise ZeroDivisionError
    with FileLock(tmp_path / "run.lock", timeout=0):
        pass
    assert capsys.readouterr() == ("", "")


def test_a_file_system_without_locks_is_named_with_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(progress.FileLock, "acquire", Mock(side_effect=OSError(37, "No locks available")))
    with pytest.raises(StoreError, match="run.lock.*No locks available.*Choose a folder"):
        locked(tmp_path / "run.lock").__enter__()


@pytest.mark.parametrize("text", ["abc", "", "0", "-1", "2.5"])
def test_a_number_of_jobs_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(progress.JOBS, text)
    with pytest.raises(ParameterError, match=f"PHANTOM_JOBS is '{text}'; give a number"):
        progress.jobs()
    monkeypatch.setenv(progress.JOBS, "3")
    assert progress.jobs() == 3
