"""What the command line shows while notebooks run: bars on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class Display:
    """What runs, how far it is and how long is left: bars on a terminal, plain lines elsewhere."""

    PLAIN_INTERVAL = 30  # seconds between two plain lines about the same notebook

    def __init__(self, expected: dict[str, float | None], jobs: int = 1):
        """``expected``: the names of what is to run, and the seconds each took last time (None if unknown)."""
        self.expected, self.jobs = expected, min(jobs, len(expected))
        self.begun: dict[str, float] = {}  # by name, as are the next four
        self.share: dict[str, float] = {}
        self.done: dict[str, float] = {}
        self.spoken: dict[str, float] = {}
        self.rows: dict[str, TaskID] = {}
        console = Console(stderr=True, emoji=False, highlight=False, markup=False)
        self.plain = not console.is_terminal
        name, note = TextColumn("{task.description:<28}"), TextColumn("{task.fields[note]}")
        columns = (name, BarColumn(24), TimeElapsedColumn(), note)
        self.bars = Progress(*columns, console=console, transient=True, disable=self.plain)
        self.total = self.bars.add_task("all notebooks", total=1.0, note="")

    def __enter__(self):
        self.bars.start()
        return self

    def __exit__(self, *exception):
        self.bars.stop()

    def say(self, text: str) -> None:
        self.bars.console.print(text, soft_wrap=True)

    def started(self, name: str) -> None:
        self.begun[name] = self.spoken[name] = time.monotonic()
        self.rows[name] = self.bars.add_task(name, total=1.0, note="starting")
        if self.plain:
            known = self.expected[name]
            self.say(f"{name}: running" + (f", took {duration(known)} last time" if known else ""))

    def update(self, name: str, report: dict) -> None:
        inside = report["done"] / report["total"] if report.get("total") else 0.0
        self.share[name] = (report["cell"] - 1 + min(inside, 1.0)) / report["of"]
        note = " · ".join(filter(None, [report.get("heading"), report.get("label")]))
        share = sum(1.0 if name in self.done else self.share.get(name, 0.0) for name in self.expected)
        self.bars.update(self.rows[name], completed=self.share[name], note=note)
        self.bars.update(self.total, completed=share / len(self.expected), note=self.left().lstrip(", "))
        if self.plain and time.monotonic() - self.spoken[name] > self.PLAIN_INTERVAL:
            self.spoken[name] = time.monotonic()
            self.say(f"{name}: {100 * self.share[name]:.0f} % ({note}){self.left()}")

    def finished(self, name: str, error: BaseException | None) -> None:
        self.done[name] = time.monotonic() - self.begun[name]
        self.bars.remove_task(self.rows[name])
        outcome = f"{'failed after' if error else 'done in'} {duration(self.done[name])}"
        self.say(f"{name}: {outcome} ({len(self.done)} of {len(self.expected)}){self.left()}")

    def left(self) -> str:
        """``, about 3 min left``; empty while nothing is known to judge from."""
        seconds = 0.0
        typical = sum(self.done.values()) / len(self.done) if self.done else None
        for name in self.expected.keys() - self.done.keys():
            elapsed = time.monotonic() - self.begun[name] if name in self.begun else 0.0
            share = self.share.get(name, 0.0)
            whole = self.expected[name] or (elapsed / share if share > 0.2 else typical)
            if whole is None:
                return ""
            seconds += max(whole - elapsed, 1.0)
        return f", about {duration(seconds / self.jobs)} left" if seconds else ""


def duration(seconds: float) -> str:
    """``8 s``, ``2 min 05 s``, ``1 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
