"""Say how far long work is: a bar on a terminal, a report to the book's runner, nothing in a notebook's output."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from phantomlib.errors import ParameterError, StoreError, shown

ENVIRONMENT = "PHANTOM_PROGRESS"  # set by the runner: the file in which a kernel says how far it is
JOBS = "PHANTOM_JOBS"  # how many processes of a book share the machine; set by whoever starts them
INTERVAL = 0.5  # seconds between two reports
PATIENCE = 2.0  # seconds after which a process that waits for another says so


@contextmanager
def track(label: str, total: int) -> Iterator[Callable[..., object]]:
    """Report progress of work whose size is known.

    Args:
        label: what is running, e.g. ``gpt2-s, adam``.
        total: its size, in any unit.

    Yields:
        a function to be called with the amount just done::

            with track("gpt2-s, adam", replicas * steps) as advance:
                finetune(..., progress=advance)
    """
    path = os.environ.get(ENVIRONMENT)
    if path:
        yield _to_file(path, label, total)
        _write(path, None)
    elif sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, desc=label, unit="", unit_scale=True, leave=False, mininterval=INTERVAL) as bar:
            yield bar.update
    else:
        yield lambda n=1: None


def jobs() -> int:
    """How many processes of a book share the machine; ParameterError if the environment says no number."""
    text = os.environ.get(JOBS, "1")
    if not re.fullmatch(r"0*[1-9][0-9]{0,8}", text):
        raise ParameterError(
            f"The environment variable {JOBS} is {shown(text)}; give a number of processes, or remove it."
        )
    return int(text)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; says so if another process holds it for longer than a moment.

    Raises:
        StoreError: the folder's file system has no locks, or does not let one be made.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        label, report = f"waiting for another process, which holds {path.name}", os.environ.get(ENVIRONMENT)
        if report:
            _write(report, {"label": label, "done": 0, "total": 0})
        else:
            print(f"{label[0].upper()}{label[1:]} in '{path.parent}'.", file=sys.stderr, flush=True)
        lock.acquire()
        if report:
            _write(report, None)
    except (OSError, NotImplementedError) as error:
        raise StoreError(
            f"'{path.name}' cannot be locked in '{path.parent}' ({error}). Choose a folder that you may write to, on a file "
            "system with locks, such as one of this machine."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' own bars and warnings, which clutter a notebook; afterwards they are as they were."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def read_report(path: str) -> dict | None:
    """What a kernel last reported: ``label``, ``done`` and ``total``; None if it is not inside tracked work."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def _to_file(path: str, label: str, total: int) -> Callable[[int], None]:
    done, last = 0, 0.0

    def advance(n: int = 1) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= INTERVAL:
            last = time.monotonic()
            _write(path, {"label": label, "done": done, "total": total})

    return advance


def _write(path: str, report: dict | None) -> None:
    try:
        with open(path + ".new", "w", encoding="utf-8") as file:
            json.dump(report, file)
        os.replace(path + ".new", path)
    except OSError:
        pass  # a full disk must not end a run for the sake of its progress line
