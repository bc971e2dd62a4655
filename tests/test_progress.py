"""Progress: what a bar, a report and plain lines say, what is left, and that who waits says so."""

import json
import multiprocessing
import os
import threading
import time

import pytest
from filelock import FileLock

from phantomlib import progress
from phantomlib.progress import Display, duration, locked, read_report, track


def test_durations():
    assert [duration(s) for s in (7.6, 125, 4200)] == ["8 s", "2 min 05 s", "1 h 10 min"]


# ------------------------------------------------------------------------------------------- tracked work


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


def test_without_a_terminal_nothing_is_shown(capsys, monkeypatch):
    monkeypatch.delenv(progress.ENVIRONMENT, raising=False)
    with track("x", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------- who waits says so


def hold(path, held, free):
    with FileLock(path):
        held.set()
        free.wait(60)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock, and what lets it go."""
    fork = multiprocessing.get_context("fork")
    held, free = fork.Event(), fork.Event()
    process = fork.Process(target=hold, args=(tmp_path / "run.lock", held, free))
    process.start()
    assert held.wait(60)
    yield free
    free.set()
    process.join()


def wait_for(tmp_path, free, said):
    """Take the lock in a thread; let the other process go once something was said."""
    done = []

    def work():
        with locked(tmp_path / "run.lock"):
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    heard = ""
    for _ in range(600):
        heard += said() or ""
        if heard:
            break
        time.sleep(0.05)
    assert thread.is_alive() and not done  # it says so while it waits
    free.set()
    thread.join(60)
    assert done == [True]
    return heard + (said() or "")  # a line may be heard in two parts


def test_who_waits_for_another_process_says_so(tmp_path, other, monkeypatch, capfd):
    monkeypatch.delenv(progress.ENVIRONMENT, raising=False)
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    heard = wait_for(tmp_path, other, lambda: capfd.readouterr().err)
    assert heard == f"Waiting for another process, which holds run.lock in '{tmp_path}'.\n"


def test_in_a_notebook_the_runner_is_told(tmp_path, other, monkeypatch, capfd):
    report = str(tmp_path / "report.json")
    monkeypatch.setenv(progress.ENVIRONMENT, report)
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    heard = wait_for(tmp_path, other, lambda: json.dumps(read_report(report)) if read_report(report) else "")
    assert json.loads(heard)["label"] == "waiting for another process, which holds run.lock"
    assert read_report(report) is None and capfd.readouterr() == ("", "")


def test_a_free_lock_is_taken_in_silence_and_given_back(tmp_path, capsys):
    for _ in range(2):
        with locked(tmp_path / "run.lock"):
            pass
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "run.lock"):
        raise ZeroDivisionError
    with FileLock(tmp_path / "run.lock", timeout=0):
        pass
    assert capsys.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------- the display


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def report(cell, of, heading="", **tracked):
    return {"cell": cell, "of": of, "heading": heading} | tracked


def test_plain_lines(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Display({"01": 100.0, "02": None}, jobs=1) as display:
        display.started("01")
        display.update("01", report(1, 4))
        clock.now += 40  # a line about a notebook every half minute, no more
        display.update("01", report(3, 4, "Results", label="gpt2-s", done=1, total=2))
        display.update("01", report(4, 4))
        clock.now += 60
        display.finished("01", None)
        display.started("02")
        clock.now += 10
        display.finished("02", ValueError("x"))
    assert capsys.readouterr().err.splitlines() == [
        "01: running, took 1 min 40 s last time",
        "01: 62 % (Results · gpt2-s)",
        "01: done in 1 min 40 s (1 of 2), about 1 min 40 s left",
        "02: running",
        "02: failed after 10 s (2 of 2)",
    ]


@pytest.mark.parametrize(
    "expected, jobs, share, elapsed, left",
    [
        ({"a": 100.0, "b": 60.0}, 1, 0.5, 40, ", about 2 min 00 s left"),  # 60 of the first, 60 of the second
        ({"a": 100.0, "b": 60.0}, 2, 0.5, 40, ", about 1 min 00 s left"),  # at once
        ({"a": None}, 1, 0.25, 30, ", about 1 min 30 s left"),  # judged by its own speed
        ({"a": None}, 1, 0.1, 30, ""),  # too early to say
        ({"a": None, "b": 60.0}, 1, 0.1, 30, ""),
        ({"a": 10.0}, 1, 0.9, 30, ", about 1 s left"),  # late, but not over
    ],
)
def test_what_is_left(monkeypatch, expected, jobs, share, elapsed, left):
    clock = Clock(monkeypatch)
    display = Display(expected, jobs)
    display.started("a")
    display.update("a", report(1, 1, label="x", done=share, total=1))
    clock.now += elapsed
    assert display.left() == left


def test_a_report_of_waiting_has_no_total(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    display = Display({"a": None})
    display.started("a")
    clock.now += 40
    display.update("a", report(1, 2, "Runs", label="waiting for another process", done=0, total=0))
    assert "a: 0 % (Runs · waiting for another process)" in capsys.readouterr().err


def test_bars_on_a_terminal(monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(Console, "is_terminal", True)
    with Display({"01": 10.0, "02": 10.0}, jobs=2) as display:
        display.started("01")
        display.update("01", report(1, 2, "Runs", label="gpt2-s", done=1, total=2))
        bar = display.bars.tasks[display.rows["01"]]
        assert bar.completed == 0.25 and bar.fields["note"] == "Runs · gpt2-s"
        assert display.bars.tasks[display.total].completed == 0.125
        assert display.bars.tasks[display.total].fields["note"].startswith("about")
        display.finished("01", None)
        assert len(display.bars.tasks) == 1
