"""What is to run: notebooks of a project, a job for each, and the command that repeats it."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import phantomlib
from phantomlib.errors import BookError, ParameterError, did_you_mean

LABEL_LENGTH = 40  # characters of a heading shown while its cells run


@dataclass(frozen=True)
class Job:
    """One notebook to run.

    Attributes:
        source: the ``.py`` notebook.
        output: where the executed ``.ipynb`` goes.
        root: the project's root, the kernel's working folder.
        parameters: the values that differ from the notebook's defaults, checked.
        command: what a reader types to get the same.
        profile: name of the profile, or "".
        key: hash of everything the result depends on, or "".
        after: names of the notebooks that must have run before.
        minutes: about how long it takes in the zoo profile; 0 if short.
    """

    source: Path
    output: Path
    root: Path
    parameters: dict = field(default_factory=dict)
    command: str = ""
    profile: str = ""
    key: str = ""
    after: tuple[str, ...] = ()
    minutes: float = 0

    @property
    def name(self) -> str:
        return self.source.stem

    @property
    def partial(self) -> Path:
        """The notebook while it runs."""
        return self.output.with_suffix(".partial.ipynb")

    @property
    def failed(self) -> Path:
        """What is left of a notebook in which a cell raised."""
        return self.output.with_suffix(".failed.ipynb")


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_root(start: Path | None = None) -> Path:
    """The project's root: the nearest folder at or above ``start`` with ``_toc.yml`` and ``notebooks/``.

    Falls back on the checkout this package was installed from (``pip install -e``).

    Raises:
        BookError: there is no such folder.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(phantomlib.__file__).resolve().parents[1]):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    raise BookError(
        f"There is no book at or above '{start}' (a folder with _toc.yml and notebooks/). "
        "Run this command inside a clone of the companion's repository."
    )


def notebooks(root: Path) -> dict[str, Path]:
    """The notebooks by number, e.g. ``{"01": root/notebooks/01_silent_failure.py}``, in order."""
    return {path.name[:2]: path for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))}


def find_notebook(root: Path, number: str | int) -> Path:
    """The notebook called ``1``, ``01``, ``silent_failure``, ``01_silent_failure`` or by its path.

    Raises:
        ParameterError: none is.
    """
    available = notebooks(root)
    name = Path(str(number)).stem
    wanted = f"{int(name):02d}" if name.isdecimal() else name
    for key, path in available.items():
        if wanted in (key, path.stem, path.stem[3:]):
            return path
    known = ", ".join(path.stem for path in available.values())
    near = did_you_mean(wanted, [path.stem for path in available.values()])
    raise ParameterError(f"There is no notebook '{number}'{near}. Those in {root / 'notebooks'}: {known or 'none'}.")


def read_notebook(source: Path):
    """A py:percent notebook as an ``nbformat`` notebook."""
    import jupytext

    return jupytext.read(source, fmt="py:percent")


def command_of(name: str, values: dict, profile: str = "") -> str:
    """The command that runs this notebook with these values."""
    words = ["phantom run", name.split("_")[0]] + (["--profile", profile] if profile else [])
    for key, value in values.items():
        words.append(f"-p {key} {_quoted(value)}")
    return " ".join(words)


def _quoted(value) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else "'" + text.replace("'", "'\\''") + "'"
