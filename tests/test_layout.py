"""The house keeps its order: folders import only those below them, no file is long, a name has one meaning."""

import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "phantomlib"
FLOORS = [
    {"errors", "files", "progress"},
    {"zoo"},
    {"measure"},
    {"critical"},
    {"transition"},
    {"ledger"},
    {"advise"},
    {"figures"},
    {"book"},
    {"doctor"},
    {"cli"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= inner or {node.module}
    return (found & MODULES) - {"phantomlib"}


def test_every_folder_is_on_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != PACKAGE or p.stem != "__init__"], ids=name_of)
def test_nothing_imports_upwards(path):
    room = name_of(path).split(".")[1]
    above = [m for m in imported(path) if FLOOR[m.split(".")[1]] > FLOOR[room]]
    assert not above


def test_there_is_no_circle():
    arrows = {name_of(path): imported(path) - {name_of(path)} for path in FILES}
    finished = set()

    def visit(module, trail):
        assert module not in trail, " -> ".join([*trail, module])
        if module not in finished:
            for target in sorted(arrows[module]):
                visit(target, [*trail, module])
            finished.add(module)

    for module in sorted(arrows):
        visit(module, [])


def test_the_top_is_small_and_no_file_is_long():
    assert len(list(PACKAGE.glob("*.py"))) <= 6
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_a_public_name_is_defined_once():
    homes = defaultdict(list)
    for path in FILES:
        if path.parent == PACKAGE and path.stem in ("cli", "__init__"):
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
        if alias.asname
        and (alias.name.startswith("phantomlib") or str(getattr(node, "module", "")).startswith("phantomlib"))
    ]
    assert renamed == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_docstrings_refer_to_what_exists(path):
    """Sphinx cannot tell a stale reference from one into another library, so it is told here."""
    for kind, target in re.findall(r":(func|class|meth|data|mod):`~?([\w.]+)`", path.read_text(encoding="utf-8")):
        if kind == "meth" and "." not in target or "." in target and not target.startswith("phantomlib."):
            continue  # a method of the class it stands in; another library
        home, parts = (
            ("phantomlib", target.split(".")[1:]) if target.startswith("phantomlib") else (name_of(path), [target])
        )
        found = importlib.import_module(home)
        for part in parts:
            inside = hasattr(found, part)
            found = getattr(found, part) if inside else importlib.import_module(f"{found.__name__}.{part}")
