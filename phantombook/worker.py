"""Run one notebook in a process of its own, and keep only what is complete.

Notebooks are executed by a worker (:mod:`phantombook.execution`) at the other end of a pipe. The worker ends when its
caller does, and takes its kernel with it, so nothing is left running after Ctrl-C or a crash.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from phantombook import notebook
from phantombook.plan import Job
from phantomlib import errors, progress
from phantomlib.errors import BookError, PhantomError

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # whatever the user has set: figures belong on the page
    # glibc: keep memory that tensors gave back, instead of fetching it anew each step; but that of really large ones must
    # not lie in pieces between what is still used
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
NO_WIDGETS = (
    "ignore:IProgress not found"  # ipywidgets is left out on purpose (see requirements.txt); tqdm would complain
)


def execute(job: Job, on_progress: Callable[[dict], None] | None = None, stop: threading.Event | None = None) -> float:
    """Run one job in a worker of its own; see :meth:`Worker.execute`."""
    with contextlib.closing(Worker(job.root)) as worker:
        return worker.execute(job, on_progress, stop)


class Worker:
    """A process that runs notebooks, one after the other.

    Args:
        root: the project's root, its working folder.
        preload: whether their kernels are forked from a process with the heavy imports done
            (:mod:`phantombook.preloaded_kernel`); pays from the second notebook on.
        jobs: how many workers share the machine's memory.
    """

    def __init__(self, root: Path, preload: bool = False, jobs: int = 1):
        warnings = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), NO_WIDGETS]))
        environment = os.environ | ENVIRONMENT | {"PYTHONWARNINGS": warnings, progress.JOBS: str(jobs)}
        if preload:
            environment["JUPYTER_DEFAULT_PROVISIONER_NAME"] = "phantom-preloaded"
        self.scratch = tempfile.TemporaryDirectory(prefix="phantom-")
        self.complaints = open(f"{self.scratch.name}/said", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.pipe, its_end = multiprocessing.Pipe()
        with its_end:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "phantombook.execution", str(its_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self.complaints,
                stderr=self.complaints,
                cwd=root,
                env=environment,
                pass_fds=[its_end.fileno()],
                start_new_session=True,  # Ctrl-C reaches only this process, which ends the worker in its own time
            )

    def execute(
        self, job: Job, on_progress: Callable[[dict], None] | None = None, stop: threading.Event | None = None
    ) -> float:
        """Run a job; the output file appears only when all of it is done. If anything is raised, the worker is closed.

        Args:
            job: what to run.
            on_progress: called with ``cell``, ``of``, ``heading`` and, inside tracked work, ``label``, ``done``, ``total``.
            stop: when set, the worker and its kernel are ended and KeyboardInterrupt is raised.

        Returns:
            seconds it took.

        Raises:
            PhantomError: raised on purpose in the notebook; only its message is passed on.
            BookError: the notebook failed otherwise; what it did until then is kept beside the output.
        """
        started = time.monotonic()
        try:
            _prepare(job)
            result = self._follow(job, on_progress or (lambda report: None), stop or threading.Event())
            if not result:
                self.process.wait()
            self.complaints.seek(0)
            _judge(job, result, self.process.returncode, self.complaints.read())
        except BaseException:
            self.close()  # before its file is removed
            with contextlib.suppress(OSError):
                job.partial.unlink()
            raise
        return time.monotonic() - started

    def close(self) -> None:
        """Close the pipe, upon which the worker shuts its kernel down; kill it if that takes too long."""
        self.pipe.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.complaints.close()
        self.scratch.cleanup()

    def _follow(self, job: Job, on_progress: Callable[[dict], None], stop: threading.Event) -> dict:
        """Hand the worker its job and pass on what it says; returns its last word, {} if it died without one."""
        told = json.dumps({"command": job.command, "parameters": job.all_parameters, "profile": job.profile})
        watched = os.path.join(self.scratch.name, f"{job.name}.json")
        latest: dict = {}
        with contextlib.suppress(OSError):  # it died at once; its last word says so
            self.pipe.send((job, {progress.ENVIRONMENT: watched, notebook.ENVIRONMENT: told}))
        while not stop.is_set():
            try:
                said = self.pipe.recv() if self.pipe.poll(0.2) else latest
            except (EOFError, OSError):
                return {}
            if said and "cell" not in said:
                return said
            latest = said
            if latest:
                on_progress(latest | (progress.read_report(watched) or {}))
        raise KeyboardInterrupt


def _prepare(job: Job) -> None:
    if job.output.is_dir():
        raise BookError(f"'{job.output}' is a folder; name the notebook file to write.")
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        job.partial.touch()
    except OSError as error:
        raise BookError(f"Cannot write '{job.output}' ({error.strerror}). Choose another output.") from None


def _judge(job: Job, result: dict, returncode: int, complaints: str) -> None:
    """Return if the worker finished; else raise what went wrong, and keep or drop the partial notebook."""
    if result.get("finished"):
        job.failed.unlink(missing_ok=True)
        return
    kind = getattr(errors, result.get("ename", ""), None)
    refusal = kind if isinstance(kind, type) and issubclass(kind, PhantomError) else None
    kept = ""
    if refusal and not result["shown"]:
        pass  # refused before it showed anything: nothing worth keeping
    elif job.partial.exists() and job.partial.stat().st_size:
        os.replace(job.partial, job.failed)
        kept = f" What it did until then is in '{job.failed}'."
    job.partial.unlink(missing_ok=True)
    if refusal:
        raise refusal(result["evalue"] + kept)
    if "ename" in result:
        reason = f"cell {result['cell_index']} raised {result['ename']}: {result['evalue']}".rstrip(": ")
    else:
        last = complaints.strip().splitlines()[-1:] or ["no message"]
        reason = f"its worker ended with status {returncode} ({last[0]})"
    raise BookError(f"Notebook {job.name} failed: {reason}.{kept} Mend the cause and run it again: {job.command}")
