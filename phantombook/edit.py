"""The loop of an edit: a notebook opened in JupyterLab with small parameters; a new chapter."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from phantombook.parameters import EDITED
from phantombook.plan import make_job
from phantombook.project import GENERATED, find_notebook, load_profile, notebooks
from phantomlib.errors import BookError, ParameterError
from phantomlib.files import write_text

TEMPLATE = Path(__file__).with_name("chapter.txt")
SETTINGS = Path(__file__).with_name("jupyter")  # of JupyterLab: a .py opens as a notebook
SMALL_STEPS = 4  # of a new chapter in the smoke profile


def open_in_lab(root: Path, number: str, profile: str = "smoke") -> Path:
    """Open a notebook in JupyterLab, through jupytext's contents manager: what is saved there is the ``.py`` itself.

    There, ``notebook.start`` sets the parameters of the profile; they are in no file. Returns the ``.py`` file, once
    JupyterLab is closed.

    Raises:
        ParameterError: there is no such notebook or profile.
        BookError: JupyterLab is not installed, or ended with an error.
    """
    source = find_notebook(root, number)
    make_job(root, source.stem, {}, profile=load_profile(root, profile))  # refused here and not in a cell
    if importlib.util.find_spec("jupyterlab") is None:
        raise BookError("JupyterLab is not installed. Install it beside the rest: pip install -e '.[edit]'")
    where = os.pathsep.join(filter(None, [str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH")]))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for JupyterLab
    try:
        ended = subprocess.run(lab(root, source), env=os.environ | {EDITED: profile, "JUPYTER_CONFIG_PATH": where})
    finally:
        signal.signal(signal.SIGINT, handler)
    if ended.returncode > 0:
        said = f"JupyterLab ended with an error (code {ended.returncode}); what it said stands above."
        raise BookError(f"{said} It does not run as root: use another account, or edit the .py itself.")
    return source


def lab(root: Path, source: Path) -> list[str]:
    """The command that opens a notebook; Ctrl-C ends it without a question."""
    options = {
        "ServerApp.answer_yes": True,
        "ServerApp.root_dir": root,
        "ServerApp.contents_manager_class": "jupytext.TextFileContentsManager",
        "LabApp.default_url": f"/lab/tree/{source.relative_to(root).as_posix()}",
    }
    return [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]


def new_chapter(root: Path, name: str) -> Path:
    """Make a chapter that runs as it is: a notebook from the template, listed in ``_toc.yml`` and the smoke profile.

    The next free number is put before ``name``, lower-case words joined by ``_``; ParameterError if it cannot be, or is
    taken. Returns the new ``.py`` file.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ParameterError(f"'{name}' cannot name a chapter; write lower-case words joined by _: my_question.")
    there = notebooks(root)
    if taken := [path.name for path in there.values() if path.stem[3:] == name]:
        raise ParameterError(f"There is a chapter notebooks/{taken[0]} already; choose another name.")
    number = f"{max(map(int, there), default=-1) + 1:02d}"
    source = root / "notebooks" / f"{number}_{name}.py"
    values = {"number": number, "name": source.stem, "label": name.replace("_", "-")}
    values["title"] = name.replace("_", " ").capitalize()
    contents, smoke = root / "_toc.yml", root / "notebooks" / "profiles" / "smoke.yaml"
    page = f"- file: {GENERATED.as_posix()}/"
    before, last, after = contents.read_text(encoding="utf-8").rpartition(page)
    if not last:
        raise BookError(f"_toc.yml lists no notebook yet; add '{page}{source.stem}' where it belongs.")
    indent, (last, *rest) = before.rpartition("\n")[2], after.split("\n", 1)
    write_text(source, TEMPLATE.read_text(encoding="utf-8").format(**values))
    write_text(contents, "\n".join([f"{before}{page}{last}", f"{indent}{page}{source.stem}", *rest]))
    if smoke.is_file():
        write_text(smoke, smoke.read_text(encoding="utf-8").rstrip() + f'\n"{number}":\n  steps: {SMALL_STEPS}\n')
    return source
