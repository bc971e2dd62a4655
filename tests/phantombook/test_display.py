"""The display of a book: what bars and plain lines say, and what is left."""

import time

import pytest
from rich.console import Console

from phantombook.display import Display, duration


def test_durations():
    assert [duration(s) for s in (7.6, 125, 4200)] == ["8 s", "2 min 05 s", "1 h 10 min"]


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


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
