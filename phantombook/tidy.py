"""An executed notebook as the book shows it: nothing that differs from run to run, and its code folded."""

import re

from phantombook.plan import Job

LABEL_LENGTH = 40  # characters of a heading shown while its cells run
FOLDED = {  # tag -> what the fold says
    "parameters": "Parameters and their defaults",
    "injected-parameters": "Parameters of this run",
    "answer": "Where the answer at the head comes from",  # such a cell shows nothing here
}
EXPERIMENT = "Show the experiment"  # what the fold of other code says, unless the notebook's header has `code: shown`


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
