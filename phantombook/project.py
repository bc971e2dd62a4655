"""A project on disk: its root, notebooks, profiles of parameters, and the pages of its book."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import phantomlib
from phantombook.parameters import load_mapping
from phantomlib.errors import BookError, ParameterError, did_you_mean, shown

GENERATED = Path("book/generated")  # executed notebooks and what the builder writes for the pages


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_root(start: Path | None = None) -> Path:
    """The project's root: the nearest folder at or above ``start`` with ``_toc.yml`` and ``notebooks/``.

    Falls back on the checkout this package was installed from (``pip install -e``); BookError if there is none.
    """
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(phantomlib.__file__).resolve().parents[1]):
        if (folder / "_toc.yml").is_file() and (folder / "notebooks").is_dir():
            return folder
    sought = f"book at or above '{start}' (a folder with _toc.yml and notebooks/)"
    raise BookError(f"There is no {sought}. Run this command inside a clone of the companion's repository.")


def notebooks(root: Path) -> dict[str, Path]:
    """The notebooks by number, e.g. ``{"02": root/notebooks/02_silent_failure.py}``, in order."""
    return {path.name[:2]: path for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.py"))}


def find_notebook(root: Path, number: str | int) -> Path:
    """The notebook called ``2``, ``02``, ``silent_failure``, ``02_silent_failure`` or by its path; ParameterError if none is."""
    available = notebooks(root)
    name = Path(str(number)).stem
    wanted = name.lstrip("0").zfill(2) if name.isdecimal() else name
    for key, path in available.items():
        if wanted in (key, path.stem, path.stem[3:]):
            return path
    names = [path.stem for path in available.values()]
    raise ParameterError(_none("notebook", str(number), names, root / "notebooks"))


def _none(kind: str, name: str, known: list[str], folder: Path) -> str:
    near = did_you_mean(name, known)
    return f"There is no {kind} {shown(name)}{near}. Those in {folder}: {', '.join(known) or 'none'}."


def read_notebook(source: Path):
    """A py:percent notebook as an ``nbformat`` notebook."""
    import jupytext

    return jupytext.read(source, fmt="py:percent")


def pages_to_generate(root: Path) -> list[str]:
    """Names of the notebooks in ``_toc.yml``, in its order."""
    contents = (root / "_toc.yml").read_text(encoding="utf-8")
    return re.findall(rf"^[-\s]*(?:file|root):\s*[\"']?{GENERATED.as_posix()}/([\w-]+)", contents, re.MULTILINE)


@dataclass(frozen=True)
class Profile:
    """A set of parameters for all notebooks: ``common`` for each, ``own[number]`` for one."""

    name: str
    common: dict
    own: dict[str, dict]

    def values(self, number: str) -> dict:
        return self.common | self.own.get(number, {})


def load_profile(root: Path, name: str) -> Profile:
    """Read ``notebooks/profiles/NAME.yaml``.

    Raises:
        ParameterError: no such profile, not YAML, or a key that is neither ``common`` nor the number of a notebook.
    """
    folder, numbers = root / "notebooks" / "profiles", notebooks(root)
    known = [path.stem for path in sorted(folder.glob("*.yaml"))]
    if name not in known:
        raise ParameterError(_none("profile", name, known, folder))
    content = load_mapping(folder / f"{name}.yaml")
    for key, values in content.items():
        if key != "common" and key not in numbers:
            sections = f"'common' and the notebooks {', '.join(numbers)}"
            raise ParameterError(f"Profile '{name}' has a section {shown(key)}; sections are {sections}.")
        if values and not isinstance(values, dict):
            raise ParameterError(f"Section '{key}' of profile '{name}' is {shown(values)}; give parameters and values.")
    common = content.pop("common", None) or {}
    return Profile(name, common, {key: values or {} for key, values in content.items()})
