"""What a worker process does: execute notebooks with papermill, one after the other, and tidy what comes out.

Started by :class:`phantombook.worker.Worker`, at the other end of a pipe. It ends when its caller does, and takes its
kernel with it.
"""

import json
import multiprocessing.connection
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Callable

from phantombook.plan import Job
from phantombook.project import read_notebook

LABEL_LENGTH = 40  # characters of a heading shown while its cells run
PARAMETER_CELLS = {"parameters": "Parameters and their defaults", "injected-parameters": "Parameters of this run"}


def serve(descriptor: int) -> int:
    """Execute what comes through the pipe, a job and its environment at a time; say through it how that goes."""
    caller: multiprocessing.connection.Connection = multiprocessing.connection.Connection(descriptor)
    tasks: queue.SimpleQueue[tuple[Job, dict]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(caller, tasks), daemon=True).start()
    try:
        while True:
            job, environment = tasks.get()
            os.environ |= environment
            caller.send(_attempt(job, caller.send))
    except (KeyboardInterrupt, BrokenPipeError):
        return 130


def _listen(caller, tasks) -> None:
    try:
        while True:
            tasks.put(caller.recv())
    except (EOFError, OSError):  # the caller closed the pipe or died
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(8)
        os._exit(130)


def _attempt(job: Job, report: Callable[[dict], None]) -> dict:
    """Execute a job; ``finished``, or what was raised and whether the notebook had shown anything by then."""
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    try:
        _execute(job, report)
    except PapermillExecutionError as error:
        cells = json.loads(job.partial.read_text(encoding="utf-8"))["cells"]
        kinds = {output.get("output_type") for cell in cells for output in cell.get("outputs", ())}
        shown = bool(kinds & {"display_data", "execute_result"})
        return {"ename": error.ename, "evalue": error.evalue, "cell_index": error.cell_index, "shown": shown}
    except DeadKernelError:
        reason = "the kernel died, perhaps for want of memory"
        return {"ename": "DeadKernelError", "evalue": reason, "cell_index": "", "shown": True}
    return {"finished": True}


def _execute(job: Job, report: Callable[[dict], None]) -> None:
    import nbformat
    import papermill

    source = read_notebook(job.source)
    for index, cell in enumerate(source.cells):
        cell["id"] = f"cell-{index:03d}"

    def on_cell_start(cell, cell_index):
        # papermill inserts one cell, so headings are looked up by the cell's own id
        position = next((i for i, c in enumerate(source.cells) if c["id"] == cell["id"]), 0)
        report({"cell": position + 1, "of": len(source.cells), "heading": _heading(source.cells[: position + 1])})

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


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))
