"""What ``phantom doctor`` looks at: versions, devices, the store, the shipped and the fetched weights."""

import os
import sys
from collections.abc import Iterator
from importlib import metadata

from phantombook.project import cores, find_root, notebooks
from phantomlib.errors import BookError, PhantomError
from phantomlib.models import pretrained, zoo_models

NO_BOOK = "none here; 'phantom diagnose' and the library need none, 'phantom book' works in a clone"


def findings() -> Iterator[tuple[str, bool, str]]:
    """One after the other: what was looked at, whether it is as it must be, and what was found."""
    for name, check in {
        "Python": _python,
        "Packages": _packages,
        "Book": _root,
        "Devices": _devices,
        "Threads": _threads,
        "Store": _store,
        "Zoo": _zoo,
        "Pretrained": _pretrained,
    }.items():
        try:
            yield name, True, check()
        except PhantomError as error:
            yield name, False, str(error)


def _python() -> str:
    return sys.version.split()[0]


def pins(text: str) -> dict[str, str]:
    """Package -> version of a requirements file with exact pins."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.split("[")[0].strip(): version.strip() for name, version in pairs}


def _packages() -> str:
    try:
        wanted = pins((find_root() / "requirements.txt").read_text(encoding="utf-8"))
    except (PhantomError, OSError):
        return "not compared (no requirements.txt here)"
    missing, other = [], []
    for name, version in wanted.items():
        try:
            found = metadata.version(name).split("+")[0]  # torch appends its build, as in 2.13.0+cpu
        except metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if found != version:
            other.append(f"{name} {found} instead of {version}")
    if missing:
        raise PhantomError(f"missing: {', '.join(missing)}. Run: pip install -r requirements.txt")
    if other:
        return f"{len(wanted)} installed; other versions than the book was made with: {', '.join(other)}"
    return f"{len(wanted)} installed, all at the pinned versions"


def _root() -> str:
    try:
        root = find_root()
    except BookError:
        return NO_BOOK
    return f"{root} with {len(notebooks(root))} notebooks"


def _devices() -> str:
    import torch  # seconds: only here

    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return f"{', '.join(found)}; torch {torch.__version__}"


def _threads() -> str:
    return f"{cores()} cores; notebooks use one thread each, so --jobs {cores() + 1} at most is worth it"


def _store() -> str:
    try:
        folder = find_root() / "runs"
    except BookError:
        return NO_BOOK
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise PhantomError(f"'{folder}' cannot be written. Mend its permissions, or give another folder with -p store.")
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.exists() else []
    return f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB"


def _zoo() -> str:
    problems = zoo_models.verify()
    if problems:
        raise PhantomError(" ".join(problems))
    return f"weights of {', '.join(zoo_models.ALL)} verified"


def _pretrained() -> str:
    fetched = [name for name in pretrained.CATALOGUE if pretrained.is_fetched(name)]
    for name in fetched:
        pretrained.check_fetched(name)
    if not fetched:
        return "none fetched ('phantom models list' names what can be)"
    return f"{', '.join(fetched)} verified, in {pretrained.cache_folder()}"
