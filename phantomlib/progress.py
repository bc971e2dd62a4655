"""Say how far long work is: a bar on a terminal, a report to the book's runner, nothing in a notebook's output."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from phantomlib.errors import ParameterError, StoreError, shown
from phantomlib.files import write_text

ENVIRONMENT = "PHANTOM_PROGRESS"  # set by the runner: the file in which a kernel says how far it is
JOBS = "PHANTOM_JOBS"  # how many processes of a book share the machine; set by whoever starts them
INTERVAL = 0.5  # seconds between two reports to the runner
PATIENCE = 2.0  # seconds after which a process that waits for another says so


@contextmanager
def track(label: str, total: int) -> Iterator[Callable[..., object]]:
    """Report progress of work of a known size, in any unit; gives the function to be called with the amount just done."""
    from tqdm import tqdm

    if not (path := os.environ.get(ENVIRONMENT)):  # disable=None: nothing is shown where there is no terminal
        with tqdm(total=total, desc=label, unit="", unit_scale=True, leave=False, disable=None) as bar:
            yield bar.update
        return
    done, last = 0, 0.0

    def advance(n: int = 1) -> None:
        nonlocal done, last
        done += n
        if time.monotonic() - last >= INTERVAL:
            last = time.monotonic()
            _write(path, {"label": label, "done": done, "total": total})

    yield advance
    _write(path, None)


def jobs() -> int:
    """How many processes of a book share the machine."""
    text = os.environ.get(JOBS, "1")
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise ParameterError(f"The environment variable {JOBS} is {shown(text)}; give a number, or remove it.")
    return int(text)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file; says so if another process holds it. StoreError where the file system makes no locks."""
    lock, runner = FileLock(path), os.environ.get(ENVIRONMENT)
    try:
        held = lock.acquire(timeout=PATIENCE)
    except Timeout:
        label = f"waiting for another process, which holds {path.name}"
        if runner:
            _write(runner, {"label": label, "done": 0, "total": 0})
        else:
            print(f"{label[0].upper()}{label[1:]} in '{path.parent}'.", file=sys.stderr, flush=True)
        held = lock.acquire()
        _write(runner, None)
    except (OSError, NotImplementedError) as error:
        said = f"'{path.name}' cannot be locked in '{path.parent}' ({error})"
        raise StoreError(f"{said}. Choose a folder of your own, on a file system with locks.") from None
    with held:
        yield


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
    with suppress(OSError, ValueError):
        return json.loads(Path(path).read_text(encoding="utf-8"))
    return None


def _write(path: str | None, report: dict | None) -> None:
    if path:
        with suppress(OSError):  # a full disk must not end a run for the sake of its progress line
            write_text(Path(path), json.dumps(report))
