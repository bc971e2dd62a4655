"""What ``phantom doctor`` looks at: versions, devices, the store, the shipped and the fetched weights."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata

from phantombook.project import cores, find_root, notebooks
from phantomlib.errors import BookError, PhantomError
from phantomlib.models import pretrained, zoo_models


def findings() -> Iterator[tuple[str, bool, str]]:
    """One after the other: what was looked at, whether it is as it must be, and what was found."""
    for name, check in {
        "Python": lambda: sys.version.split()[0],
        "Packages": _packages,
        "Book": lambda: f"{find_root()} with {len(notebooks(find_root()))} notebooks",
        "Devices": _devices,
        "Threads": lambda: f"{cores()} cores; notebooks use one each, so --jobs {cores() + 1} at most is worth it",
        "Store": _store,
        "Zoo": _zoo,
        "Pretrained": _pretrained,
    }.items():
        try:
            yield name, True, check()
        except BookError:
            yield name, True, "none here; 'phantom diagnose' and the library need none, 'phantom book' works in a clone"
        except PhantomError as error:
            yield name, False, str(error)


def pins(text: str) -> dict[str, str]:
    """Package -> version of a requirements file with exact pins."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.split("[")[0].strip(): version.strip() for name, version in pairs}


def _packages() -> str:
    file = find_root() / "requirements.txt"
    if not file.is_file():
        return "not compared (no requirements.txt here)"
    wanted = pins(file.read_text(encoding="utf-8"))
    found = {}
    for name in wanted:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name).split("+")[0]  # torch appends its build, as in 2.13.0+cpu
    if missing := ", ".join(wanted.keys() - found.keys()):
        raise PhantomError(f"missing: {missing}. Run: pip install -r requirements.txt")
    other = ", ".join(f"{name} {found[name]} instead of {want}" for name, want in wanted.items() if found[name] != want)
    told = f"other versions than the book was made with: {other}" if other else "all at the pinned versions"
    return f"{len(wanted)} installed; {told}"


def _store() -> str:
    folder = find_root() / "runs"
    if not os.access(folder if folder.exists() else folder.parent, os.W_OK):
        raise PhantomError(f"'{folder}' cannot be written. Mend its permissions, or give another folder with -p store.")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return f"{folder}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"


def _devices() -> str:
    import torch  # seconds: only here

    found = ["cpu"]
    if torch.cuda.is_available():
        found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return f"{', '.join(found)}; torch {torch.__version__}"


def _zoo() -> str:
    if problems := zoo_models.verify():
        raise PhantomError(" ".join(problems))
    return f"weights of {', '.join(zoo_models.ALL)} verified"


def _pretrained() -> str:
    fetched = [name for name in pretrained.CATALOGUE if pretrained.is_fetched(name)]
    for name in fetched:
        pretrained.check_fetched(name)
    if not fetched:
        return "none fetched ('phantom models list' names what can be)"
    return f"{', '.join(fetched)} verified, in {pretrained.cache_folder()}"
