"""The loop of an edit: a notebook opened in JupyterLab with small parameters, written back to its ``.py``; a new chapter."""

import difflib
import importlib.util
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from phantombook.plan import make_job
from phantombook.project import GENERATED, find_notebook, load_profile, notebooks, read_notebook
from phantomlib.errors import BookError, ParameterError
from phantomlib.files import write_text

TEMPLATE = Path(__file__).with_name("chapter.txt")
INJECTED = "injected-parameters"  # papermill's tag
QUIET = ["--log-level=40"]  # ipykernel warns of what every local kernel does
SMALL_STEPS = 4  # of a new chapter in the smoke profile
# jupytext's header, which it would write in its own order
HEADER = re.compile(r"\A# ---\n.*?^# ---\n\n?", re.DOTALL | re.MULTILINE)
LAB = [sys.executable, "-m", "jupyterlab", "--ServerApp.answer_yes=True"]  # Ctrl-C ends it without a question


def open_in_lab(root: Path, number: str, profile: str = "smoke", command: list[str] = LAB) -> Path:
    """Open a notebook in JupyterLab and write what is saved there back to its ``.py``, until JupyterLab is closed.

    Args:
        root: the project's root; the kernel runs there, so paths are those of the book.
        number: which notebook.
        profile: its parameters in JupyterLab. They stand in a cell of their own that is not written back.
        command: what is run, with the notebook's path and the root as further arguments.

    Returns:
        the ``.py`` file.

    Raises:
        BookError: JupyterLab is not installed, or did not start; an earlier edit was left; the ``.py`` was changed by someone else
            meanwhile, and then the edited ``.ipynb`` is kept; at the end that is renamed or damaged.
    """
    source = find_notebook(root, number)
    if command is LAB and importlib.util.find_spec("jupyterlab") is None:
        raise BookError("JupyterLab is not installed. Install it beside the rest: pip install -e '.[edit]'")
    edited = root / f"{source.stem}.edit.ipynb"
    if edited.exists():
        raise BookError(
            f"'{edited}' is left from an earlier edit. Delete it, or write it back first: "
            f"jupytext --to py:percent -o notebooks/{source.name} {edited.name}"
        )
    before = source.read_text(encoding="utf-8")
    write_text(edited, _as_ipynb(root, source, profile))
    seen, handler = edited.stat().st_mtime_ns, signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for JupyterLab
    try:
        with subprocess.Popen([*command, str(edited), f"--ServerApp.root_dir={root}"], cwd=root) as running:
            try:
                theirs, lost = _follow(running, source, edited, seen)
            except BaseException:
                running.terminate()
                raise
    finally:
        signal.signal(signal.SIGINT, handler)
    if theirs:
        raise BookError(
            f"'{source}' was changed by another program meanwhile, so nothing was written over it. Your edit is in "
            f"'{edited}'."
        )
    if lost:
        raise BookError(
            f"'{edited}' was renamed or damaged, so what was saved there last is not in '{source}'. Write it back from where "
            f"it is now: jupytext --to py:percent -o notebooks/{source.name} FILE"
        )
    edited.unlink()
    if running.returncode > 0 and source.read_text(encoding="utf-8") == before:
        raise BookError(
            f"JupyterLab ended with an error (code {running.returncode}); what it said stands above. Nothing was changed. It "
            "does not run as root: use another account, or edit the .py itself."
        )
    return source


def _follow(running: subprocess.Popen, source: Path, edited: Path, seen: int) -> tuple[bool, bool]:
    """Write back what is saved until JupyterLab ends.

    Args:
        running: JupyterLab.
        source, edited: the ``.py`` and the ``.ipynb``.
        seen: when ``edited`` was written, in ns.

    Returns:
        whether someone else changed ``source``, and whether ``edited`` is missing or damaged at the end.
    """
    known = source.read_text(encoding="utf-8")
    ended, theirs, lost = False, False, False
    while not ended:
        ended, text = running.poll() is not None, None
        try:
            saved = edited.stat().st_mtime_ns
            if saved != seen and not theirs:
                text = _as_py(source, edited.read_text(encoding="utf-8"))
            lost = False
        except (OSError, ValueError):  # renamed, or half written: not saved yet
            lost = True
        if text is not None:
            seen, theirs = saved, source.read_text(encoding="utf-8") != known
            if not theirs:
                write_text(source, text)
                known = text
        time.sleep(0 if ended else 0.5)
    return theirs, lost


def check(root: Path, number: str, profile: str = "smoke") -> None:
    """Do what an edit does, without a browser: convert, run with the parameters of a profile, save, convert back.

    Raises:
        BookError: a cell failed, or the ``.py`` would not come back as it is.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    source = find_notebook(root, number)
    content = nbformat.reads(_as_ipynb(root, source, profile), as_version=4)
    where = {"metadata": {"path": str(root)}}
    try:
        NotebookClient(content, kernel_name="python3", resources=where, extra_arguments=QUIET).execute()
    except CellExecutionError as error:
        raise BookError(f"{source.name} fails in JupyterLab: {error.ename}: {error.evalue}") from None
    before, after = source.read_text(encoding="utf-8"), _as_py(source, nbformat.writes(content))
    if before != after:
        changes = difflib.unified_diff(before.splitlines(), after.splitlines(), "as it is", "saved", lineterm="", n=0)
        raise BookError(f"{source.name} does not come back from JupyterLab as it is:\n" + "\n".join(changes))


def _as_ipynb(root: Path, source: Path, profile: str) -> str:
    """The notebook for JupyterLab, the profile's parameters in a cell below its own."""
    import nbformat
    from papermill.translators import PythonTranslator

    content = read_notebook(source)
    content.metadata.pop("jupytext", None)  # it says ".py only", and JupyterLab with jupytext would not open an .ipynb
    values = make_job(root, source.stem, {}, profile=load_profile(root, profile)).parameters
    text = PythonTranslator.codify(values, comment=f"Profile {profile}, for this session only: not written back")
    injected = nbformat.v4.new_code_cell(text, metadata={"tags": [INJECTED]})
    places = [n for n, cell in enumerate(content.cells) if "parameters" in cell.metadata.get("tags", [])]
    content.cells.insert(places[0] + 1 if places else 0, injected)
    return nbformat.writes(content)


def _as_py(source: Path, saved: str) -> str:
    """What JupyterLab saved, as py:percent with the header of ``source`` and without the injected parameters."""
    import jupytext
    import nbformat

    content = nbformat.reads(saved, as_version=4)
    content.cells = [cell for cell in content.cells if INJECTED not in cell.metadata.get("tags", [])]
    header = HEADER.match(source.read_text(encoding="utf-8"))
    return (header.group() if header else "") + HEADER.sub("", jupytext.writes(content, fmt="py:percent")).lstrip("\n")


def new_chapter(root: Path, name: str) -> Path:
    """Make a chapter that runs as it is: a notebook from the template, listed in ``_toc.yml`` and the smoke profile.

    Args:
        root: the project's root.
        name: lower-case words joined by ``_``; the next free number is put before it.

    Returns:
        the new ``.py`` file.

    Raises:
        ParameterError: the name is none for a notebook, or is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ParameterError(
            f"'{name}' cannot name a chapter; write lower-case words joined by _, such as my_question."
        )
    there = notebooks(root)
    taken = [path.name for path in there.values() if path.stem[3:] == name]
    if taken:
        raise ParameterError(f"There is a chapter notebooks/{taken[0]} already; choose another name.")
    number = f"{max(map(int, there), default=-1) + 1:02d}"
    source = root / "notebooks" / f"{number}_{name}.py"
    words = name.replace("_", " ")
    values = {"number": number, "name": source.stem, "title": words.capitalize(), "label": name.replace("_", "-")}
    contents, smoke = root / "_toc.yml", root / "notebooks" / "profiles" / "smoke.yaml"
    listed = _listed(contents.read_text(encoding="utf-8"), source.stem)
    write_text(source, TEMPLATE.read_text(encoding="utf-8").format(**values))
    write_text(contents, listed)
    if smoke.is_file():
        write_text(smoke, smoke.read_text(encoding="utf-8").rstrip() + f'\n"{number}":\n  steps: {SMALL_STEPS}\n')
    return source


def _listed(contents: str, name: str) -> str:
    """The table of contents with one more notebook, after the last."""
    lines = contents.splitlines()
    end = max((at for at, line in enumerate(lines, 1) if f"- file: {GENERATED.as_posix()}/" in line), default=0)
    if not end:
        raise BookError(
            f"_toc.yml lists no notebook yet; add '- file: {GENERATED.as_posix()}/{name}' where it belongs."
        )
    indent = lines[end - 1].partition("-")[0]
    lines.insert(end, f"{indent}- file: {GENERATED.as_posix()}/{name}")
    return "\n".join(lines) + "\n"
