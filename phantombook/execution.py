"""Run one notebook with papermill, in a kernel of its own, and keep only what is complete, as the book shows it.

The output appears, and what the notebook measured counts, once its last cell has run. Until then everything is in a folder
of its own, which the kernel removes if it outlives its caller. Nothing stays in it that differs from run to run.
"""

import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from multiprocessing import util
from pathlib import Path

import nbformat

from phantombook import preloaded_kernel
from phantombook.ledger import measurements
from phantombook.plan import Job
from phantombook.project import read_notebook
from phantomlib import files, progress
from phantomlib.errors import BookError, PhantomError

LABEL_LENGTH = 40  # characters of a heading shown while its cells run
FOLDED = {  # tag -> what the fold says
    "parameters": "Parameters and their defaults",
    "injected-parameters": "Parameters of this run",
    "answer": "Where the answer at the head comes from",  # such a cell shows nothing here
}
EXPERIMENT = "Show the experiment"  # what the fold of other code says, unless the notebook's header has `code: shown`


def execute(
    job: Job,
    on_progress: Callable[[dict], None] = lambda report: None,
    jobs: int = 1,
    stopped: Callable[[], bool] = lambda: False,
) -> float:
    """Run a job; the output file appears only when all of it is done. Returns the seconds it took.

    Args:
        job: what to run.
        on_progress: called as a cell starts, with ``cell``, ``of``, ``heading``, and for ``read_report`` a file ``watch``.
        jobs: how many notebooks share the machine's memory.
        stopped: whether its kernel was ended on purpose; then KeyboardInterrupt is raised.

    Raises:
        PhantomError: raised on purpose in the notebook; only its message is passed on.
        BookError: the notebook failed otherwise; what it did until then is kept beside the output.
    """
    import papermill  # a second
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    began, source = time.monotonic(), read_notebook(job.source)
    scratch, begun = Path(util.get_temp_dir()) / secrets.token_hex(8), list[nbformat.NotebookNode]()
    watch = str(scratch / "progress.json")

    def on_cell_start(cell, cell_index):
        begun.append(cell)
        of = len(source.cells) + bool(job.parameters)  # papermill puts one more in front
        on_progress({"cell": len(begun), "of": of, "heading": last_heading(begun), "watch": watch})

    try:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=job.output.parent).close()
    except OSError as error:
        raise BookError(f"Cannot write '{job.output}' ({error.strerror}). Choose another output.") from None
    try:
        preloaded_kernel.order(job, scratch, {progress.ENVIRONMENT: watch, progress.JOBS: str(jobs)})
        executed = papermill.execute_notebook(
            source,
            None,
            job.parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            start_timeout=300,  # a busy machine may need minutes to start a kernel
            extra_arguments=["--log-level=40"],
            on_cell_start=on_cell_start,
        )
        # sys.exit() is no error to papermill; yet the rest of its cell did not run
        for index, cell in enumerate(executed.cells):
            for output in cell.get("outputs", ()):
                if output.output_type == "error":
                    said = (output.ename, output.evalue, output.traceback)
                    raise PapermillExecutionError(index, cell.execution_count, cell.source, *said)
        tidy(executed, job)
        with files.replacing(job.output) as temporary:
            nbformat.write(executed, temporary)
            measurements.complete(scratch)
    except (PapermillExecutionError, DeadKernelError, RuntimeError) as error:  # the last: died as it started
        if stopped():
            raise KeyboardInterrupt from None
        raise _failure(job, begun, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    job.failed.unlink(missing_ok=True)
    return time.monotonic() - began


def _failure(job: Job, begun: list, error) -> PhantomError:
    """What to raise; unless the notebook refused before it showed anything, what it did is kept."""
    kinds: list[type[PhantomError]] = [PhantomError, *PhantomError.__subclasses__()]
    refused = next((kind for kind in kinds if kind.__name__ == getattr(error, "ename", "")), None)
    shown = {output.output_type for cell in begun for output in cell.get("outputs", ())}
    kept = ""
    if begun and (not refused or shown & {"display_data", "execute_result"}):
        files.write_text(job.failed, nbformat.writes(nbformat.v4.new_notebook(cells=begun)))
        kept = f" What it did until then is in '{job.failed}'."
    if refused:
        return refused(error.evalue + kept)
    raised = hasattr(error, "ename") and f"cell {error.cell_index} raised {error.ename}: {error.evalue}".rstrip(": ")
    reason = raised or "the kernel died, perhaps for want of memory"
    return BookError(f"Notebook {job.name} failed: {reason}.{kept} Mend the cause and run it again: {job.command}")


def tidy(executed, job: Job) -> None:
    """Drop what differs from run to run, fold the code, and note what made it.

    A notebook that teaches its code says so in its header, ``phantom: {code: shown}`` under ``jupyter:``. Of such a one
    only what is tagged is folded.
    """
    code_is_shown = executed.metadata.get("phantom", {}).get("code") == "shown"
    for name in ("papermill", "jupytext"):
        executed.metadata.pop(name, None)
    executed.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made = {"notebook": job.name, "profile": job.profile, "parameters": job.parameters, "key": job.key}
    executed.metadata["phantom"] = made
    for index, cell in enumerate(executed.cells):
        cell["id"] = f"{job.name}-{index:03d}"[-64:]
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            _tidy_code(cell, code_is_shown)


def _tidy_code(cell, code_is_shown: bool) -> None:
    tags = set(cell.metadata.get("tags", ()))
    kinds = tags | ({"answer"} if "nb.answer(" in cell.source and len(cell.outputs) == 1 else set())
    title = next((words for kind, words in FOLDED.items() if kind in kinds), None)
    if tags & FOLDED.keys():
        tags.add("hide-input")
    elif not tags and not code_is_shown:
        tags, title = {"hide-input"}, title or EXPERIMENT
    if title and "hide-input" in tags:
        cell.metadata["mystnb"] = {"code_prompt_show": title, "code_prompt_hide": title}
    if tags:
        cell.metadata["tags"] = sorted(tags)
    # progress bars that found no terminal; warnings stay in the notebook, the book leaves them out
    cell["outputs"] = [o for o in cell.outputs if not (o.get("name") == "stderr" and "\r" in o.get("text", ""))]


def last_heading(cells) -> str:
    """The last heading at or above the last of some cells, as plain words."""
    for cell in reversed(cells):
        found = re.findall(r"^#+\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        if found:
            return re.sub(r"[*_`$\\{}]", "", found[-1])[:LABEL_LENGTH]
    return ""
