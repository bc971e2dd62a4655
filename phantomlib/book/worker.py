"""Run one notebook with papermill, in a process of its own, and keep only what is complete.

Notebooks are executed by a worker (``python -m phantomlib.book.worker``) that talks to its caller in JSON lines. The worker
ends when its caller does, and takes its kernel with it, so nothing is left running after Ctrl-C or a crash.
"""

import ast
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from phantomlib import errors, progress
from phantomlib.book import notebook, parameters
from phantomlib.book.jobs import LABEL_LENGTH, Job, command_of, find_notebook, find_root, read_notebook
from phantomlib.errors import BookError, PhantomError

PARAMETER_CELLS = {"parameters": "Parameters and their defaults", "injected-parameters": "Parameters of this run"}


def run_notebook(
    number: str | int,
    values: dict | None = None,
    output: Path | str | None = None,
    *,
    root: Path | None = None,
    command: str = "",
    profile: str = "",
    on_progress: Callable[[dict], None] | None = None,
) -> Path:
    """Run one notebook and write it executed.

    Args:
        number: which one, see :func:`phantomlib.book.jobs.find_notebook`.
        values: parameters by name; the others keep the notebook's defaults.
        output: the executed notebook; ``NN_name.ipynb`` in the working folder if None.
        root: the project's root.
        command, profile: for the line "How this was made".
        on_progress: called with ``cell``, ``of``, ``heading`` and, inside tracked work, ``label``, ``done``, ``total``.

    Returns:
        the path of the executed notebook.

    Raises:
        ParameterError: unknown notebook or parameter, or a value of a wrong type: before anything runs.
        PhantomError: raised on purpose in the notebook; only its message is passed on.
        BookError: the notebook failed otherwise; what it did until then is kept beside ``output``.
    """
    root = root or find_root()
    source = find_notebook(root, number)
    checked = parameters.check_parameters(values or {}, parameters.declared(read_notebook(source)), source.stem)
    output = Path(output or f"{source.stem}.ipynb").resolve()
    command = command or command_of(source.stem, checked)
    execute(Job(source, output, root, checked, command, profile), on_progress)
    return output


def execute(job: Job, on_progress: Callable[[dict], None] | None = None, stop: threading.Event | None = None) -> float:
    """Run one job in a worker of its own; see :meth:`Worker.execute`."""
    with contextlib.closing(Worker(job.root)) as worker:
        return worker.execute(job, on_progress, stop)


class Worker:
    """A process that runs notebooks, one after the other.

    Args:
        root: the project's root, its working folder.
        preload: whether their kernels are forked from a process with the heavy imports done
            (:mod:`phantomlib.book.preloaded_kernel`); pays from the second notebook on.
        jobs: how many workers share the machine's memory.
    """

    def __init__(self, root: Path, preload: bool = False, jobs: int = 1):
        environment = (
            os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "MKL_NUM_THREADS": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # whatever the user has set: figures belong on the page
                # glibc: keep memory that tensors gave back, instead of fetching it anew each step; but that of really
                # large ones must not lie in pieces between what is still used
                "MALLOC_MMAP_THRESHOLD_": str(2**25),
                "MALLOC_TRIM_THRESHOLD_": str(2**33),
                progress.JOBS: str(jobs),
                # ipywidgets is left out on purpose (see requirements.txt), and tqdm would complain in every notebook
                "PYTHONWARNINGS": ",".join(
                    filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"])
                ),
            }
        )
        if preload:
            from phantomlib.book import preloaded_kernel

            environment |= preloaded_kernel.ENVIRONMENT
        self.scratch = tempfile.TemporaryDirectory(prefix="phantom-")
        self.complaints = open(f"{self.scratch.name}/stderr", "a+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "phantomlib.book.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            cwd=root,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches only this process, which ends the worker in its own time
        )
        self.lines = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def execute(
        self, job: Job, on_progress: Callable[[dict], None] | None = None, stop: threading.Event | None = None
    ) -> float:
        """Run a job; the output file appears only when all of it is done. If anything is raised, the worker is closed.

        Args:
            job: what to run.
            on_progress: see :func:`run_notebook`.
            stop: when set, the worker and its kernel are ended and KeyboardInterrupt is raised.

        Returns:
            seconds it took.
        """
        stop, started = stop or threading.Event(), time.monotonic()
        try:
            _prepare(job)
            result = self._follow(job, on_progress or (lambda report: None), stop)
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
        """Close the worker's input, upon which it shuts its kernel down; kill it if that takes too long."""
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.complaints.close()
        self.scratch.cleanup()

    def _listen(self) -> None:
        with self.process.stdout, contextlib.suppress(ValueError):  # killed in the middle of a line
            for line in self.process.stdout:
                self.lines.put(json.loads(line))
        self.lines.put({})

    def _follow(self, job: Job, on_progress: Callable[[dict], None], stop: threading.Event) -> dict:
        """Hand the worker its job and pass on what it says; returns its last word, {} if it died without one."""
        task = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(job).items()}
        told = json.dumps({"command": job.command, "parameters": _all_values(job), "profile": job.profile})
        watched = os.path.join(self.scratch.name, f"{job.name}.json")
        environment = {progress.ENVIRONMENT: watched, notebook.ENVIRONMENT: told}
        with contextlib.suppress(BrokenPipeError):  # it died at once; its last word says so
            self.process.stdin.write(json.dumps({"job": task, "environment": environment}) + "\n")
            self.process.stdin.flush()
        latest = {}
        while True:
            if stop.is_set():
                raise KeyboardInterrupt
            with contextlib.suppress(queue.Empty):
                said = self.lines.get(timeout=0.2)
                if "cell" not in said:
                    return said
                latest = said
            if latest:
                on_progress(latest | (progress.read_report(watched) or {}))


def _prepare(job: Job) -> None:
    if job.output.is_dir():
        raise BookError(f"'{job.output}' is a folder; name the notebook file to write.")
    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        job.partial.touch()
    except OSError as error:
        raise BookError(f"Cannot write '{job.output}' ({error.strerror}). Choose another output.") from None


def _all_values(job: Job) -> dict:
    """Defaults and given values together: what the line "How this was made" names."""
    values = {}
    for name, parameter in parameters.declared(read_notebook(job.source)).items():
        try:
            values[name] = ast.literal_eval(parameter.default)
        except (ValueError, SyntaxError):
            values[name] = parameter.default
    return values | job.parameters


def _judge(job: Job, result: dict, returncode: int, complaints: str) -> None:
    """Return if the worker finished; else raise what went wrong, and keep or drop the partial notebook."""
    if result.get("finished"):
        job.failed.unlink(missing_ok=True)
        return
    kind = getattr(errors, result.get("ename", ""), None)
    purposely = isinstance(kind, type) and issubclass(kind, PhantomError)
    if purposely and not result.get("shown"):
        job.partial.unlink(missing_ok=True)  # refused before it showed anything: nothing worth keeping
        raise kind(result["evalue"])
    kept = ""
    if job.partial.exists() and job.partial.stat().st_size:
        os.replace(job.partial, job.failed)
        kept = f" What it did until then is in '{job.failed}'."
    job.partial.unlink(missing_ok=True)
    if purposely:
        raise kind(result["evalue"] + kept)
    if "ename" in result:
        reason = f"cell {result['cell_index']} raised {result['ename']}: {result['evalue']}".rstrip(": ")
    else:
        last = complaints.strip().splitlines()[-1:] or ["no message"]
        reason = f"its worker ended with status {returncode} ({last[0]})"
    raise BookError(f"Notebook {job.name} failed: {reason}.{kept} Mend the cause and run it again: {job.command}")


def _work() -> int:
    """Read jobs from standard input, run them, say how it goes on standard output."""
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be taken for a report
    tasks = queue.SimpleQueue()
    threading.Thread(target=_read_tasks, args=(tasks,), daemon=True).start()
    try:
        while True:
            task = json.loads(tasks.get())
            os.environ |= task["environment"]
            fields = task["job"].items()
            job = Job(**{key: Path(value) if key in ("source", "output", "root") else value for key, value in fields})
            _run(job, lambda **report: say.write(json.dumps(report) + "\n"))
    except KeyboardInterrupt:
        return 130


def _read_tasks(tasks: queue.SimpleQueue) -> None:
    for line in sys.stdin:
        tasks.put(line)
    os.kill(os.getpid(), signal.SIGINT)  # the caller closed the pipe or died
    time.sleep(8)
    os._exit(130)


def _run(job: Job, report: Callable) -> None:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        _execute(job, report)
    except PapermillExecutionError as error:
        shown = any(_shown(cell) for cell in _read_json(job.partial)["cells"])
        report(ename=error.ename, evalue=error.evalue, cell_index=error.cell_index, shown=shown)
    except DeadKernelError:
        report(ename="DeadKernelError", evalue="the kernel died, perhaps for want of memory", cell_index="", shown=True)
    else:
        report(finished=True)


def _execute(job: Job, report: Callable) -> None:
    import nbformat
    import papermill

    source = read_notebook(job.source)
    for index, cell in enumerate(source.cells):
        cell["id"] = f"cell-{index:03d}"

    def on_cell_start(cell, cell_index):
        # papermill inserts one cell, so headings are looked up by the cell's own id
        position = next((i for i, c in enumerate(source.cells) if c["id"] == cell["id"]), 0)
        report(cell=position + 1, of=len(source.cells), heading=_heading(source.cells[: position + 1]))

    executed = papermill.execute_notebook(
        source,
        job.partial,
        job.parameters,
        kernel_name="python3",
        language="python",
        progress_bar=False,
        start_timeout=300,  # a busy machine may need minutes to start a kernel
        cwd=job.root,
        extra_arguments=["--log-level=40"],
        on_cell_start=on_cell_start,
    )
    _tidy(executed, job)
    nbformat.write(executed, job.partial)
    os.replace(job.partial, job.output)


def _heading(cells) -> str:
    """The last heading at or above a cell, as plain words."""
    for cell in reversed(cells):
        found = re.findall(r"^#+\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        if found:
            return re.sub(r"[*_`$\\{}]", "", found[-1])[:LABEL_LENGTH]
    return ""


def _tidy(executed, job: Job) -> None:
    """Drop what differs from run to run, hide what a reader of the book need not see, and note what made it."""
    executed.metadata.pop("papermill", None)
    executed.metadata.pop("jupytext", None)
    executed.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    executed.metadata["phantom"] = {
        "notebook": job.name,
        "profile": job.profile,
        "parameters": job.parameters,
        "key": job.key,
    }
    for index, cell in enumerate(executed.cells):
        cell["id"] = f"{job.name}-{index:03d}"[-64:]
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = set(cell.metadata.get("tags", ()))
        for tag, title in PARAMETER_CELLS.items():
            if tag in tags:
                tags.add("hide-input")
                cell.metadata["mystnb"] = {"code_prompt_show": title, "code_prompt_hide": title}
        if "hide-input" in tags and "nb.answer(" in cell.source and len(cell.outputs) == 1:
            title = "Where the answer at the head comes from"  # the cell shows nothing here
            cell.metadata["mystnb"] = {"code_prompt_show": title, "code_prompt_hide": title}
        if tags:
            cell.metadata["tags"] = sorted(tags)
        if cell.cell_type == "code":
            # progress bars that found no terminal; warnings stay in the notebook, the book leaves them out
            cell["outputs"] = [o for o in cell.outputs if not (o.get("name") == "stderr" and "\r" in o.get("text", ""))]


def _shown(cell: dict) -> bool:
    return any(output.get("output_type") in ("display_data", "execute_result") for output in cell.get("outputs", ()))


def _read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(_work())
