"""The house keeps its order: folders import only those below them, no file is long, a name has one meaning."""

import ast
import pkgutil
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
# Each line may import those above it, and the modules of a room one another.
FLOORS = [
    {"phantomlib.errors", "phantomlib.files", "phantomlib.progress", "phantomlib.plain_yaml"},
    {"phantomlib.order_parameter"},
    {"phantomlib.contexts"},
    {"phantomlib.models"},
    {"phantomlib.readout_geometry"},
    {"phantomlib.engine"},
    {"phantomlib.runs"},
    {"phantomlib.critical"},
    {"phantomlib.transition"},
    {"phantomlib.dataset"},
    {"phantomlib.cure"},
    {"phantomlib.diagnosis", "phantomlib.trainer"},
    {"zoo"},
    {"phantombook.figures"},
    {f"phantombook.{name}" for name in ("stale", "parameters", "project", "plan")},
    {"phantombook.ledger"},
    {"phantombook"},
    {"phantombook.cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PACKAGES = ("phantomlib", "phantombook", "zoo")
FILES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def floor(module: str) -> int:
    """That of the module, of its room, or of its package."""
    parts = module.split(".")
    return next(FLOOR[name] for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in FLOOR)


def imported(path: Path) -> set[str]:
    """Modules of the packages that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= inner or {node.module}
    return (found & MODULES) - {"phantomlib"}


def test_every_room_is_on_a_floor():
    top = {name for name in MODULES if name.startswith("phantomlib.")}
    assert {".".join(name.split(".")[:2]) for name in top} == {name for name in FLOOR if name.startswith("phantomlib.")}
    assert {name for name in FLOOR if name not in MODULES} == set()


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) != "phantomlib"], ids=name_of)
def test_nothing_imports_upwards(path):
    assert [name for name in imported(path) if floor(name) > floor(name_of(path))] == []


def test_the_library_knows_nothing_of_the_book():
    """phantomlib, then phantombook, then notebooks; what trained the zoo is apart, and only the command line calls it."""
    for path in FILES:
        roots = {name.split(".")[0] for name in imported(path)}
        further = {"zoo"} if name_of(path) == "phantombook.cli" else set()
        assert roots <= {"phantomlib", name_of(path).split(".")[0]} | further, path


def test_there_is_no_circle():
    TopologicalSorter({name_of(path): imported(path) - {name_of(path)} for path in FILES}).prepare()  # or CycleError


def test_no_file_is_long_and_no_room_says_nothing():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 400 or n == 0} == {}


def test_a_public_name_is_defined_once():
    homes = defaultdict(list)
    for path in FILES:
        if name_of(path) in ("phantombook.cli", "phantomlib"):
            continue  # commands and the lazily loaded names share the words they are about
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].append(name_of(path))
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def test_no_module_of_the_package_is_imported_under_another_name():
    renamed = [
        f"{name_of(path)}: {alias.name} as {alias.asname}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
        if alias.asname not in (None, alias.name)  # "A as A" says that A is meant to be had from here
        and (alias.name.startswith(PACKAGES) or str(getattr(node, "module", "")).startswith(PACKAGES))
    ]
    assert renamed == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_refer_to_what_exists(path):
    """Sphinx cannot tell a stale reference from one into another library, so it is told here."""
    for kind, target in re.findall(r":(func|class|meth|data|mod):`~?([\w.]+)`", path.read_text(encoding="utf-8")):
        if kind == "meth" and "." not in target or "." in target and target.split(".")[0] not in PACKAGES:
            continue  # a method of the class it stands in; another library
        dotted = target if target.startswith(PACKAGES) else f"{name_of(path)}.{target}"
        pkgutil.resolve_name(dotted)
