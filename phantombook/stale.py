"""What a notebook reaches by import, and a key of that code: results are stale once the key is another.

Nothing is run. Imports are read from the syntax tree, wherever they stand, through the companion's own modules and those
of the notebook's own project. Text cells, comments, docstrings and layout are not part of a key. A file beside a module
that the module names, such as ``contexts.yaml``, is.
"""

import ast
import os
import re
from functools import cache
from pathlib import Path

import phantomlib
from phantomlib.files import digest, file_digest

HOME = Path(__file__).parents[1]  # the folder that holds the packages
PACKAGES = ("phantomlib", "phantombook", "zoo")
NOTEBOOK = "phantombook.notebook"
ROOMS = ("figures", "ledger")
SHOWN = ("notebook", "parameters", "markup", "published", "published_runs")
ON_THE_PAGE = tuple(f"phantombook.{name}" for name in SHOWN)
# What prepares a kernel and executes cells in it counts for every notebook; all else in the package only starts that
MACHINERY = tuple(f"phantombook.{name}" for name in ("execution", "preloaded_kernel", "plan", "project", "parameters"))


def reached(notebook: Path | str) -> dict[str, Path]:
    """The modules that a notebook's code cells import, directly or through others: their files, by name in alphabetical order.

    Left out are other people's packages and what runs notebooks; from ``phantombook.notebook`` the walk does not go on
    into the ledger, which takes down what a notebook measured and has no part in it.

    Args:
        notebook: path of a py:percent notebook, or its text.

    Raises:
        SyntaxError: it is not Python.
    """
    text, folders = _opened(notebook)
    found: dict[str, Path] = {}
    waiting = [("", text)]
    while waiting:
        importer, text = waiting.pop()
        for dotted in _imports(text, importer):
            for name, path in _files(dotted, (HOME,) if dotted.split(".")[0] in PACKAGES else folders):
                if name not in found and _has_a_part(name, importer):
                    found[name] = path
                    if name != "phantomlib":  # it says where the public names are at home, all of them
                        waiting.append((name, path.read_text(encoding="utf-8")))
    return dict(sorted(found.items()))


def key(notebook: Path | str, without: str = "") -> str:
    """Hash of a notebook's code cells, of all that they reach and of the runner: 64 hex digits.

    Args:
        notebook: as in :func:`reached`, with the same errors.
        without: leave out modules, such as those of ``phantombook.figures``, which decides what is drawn but not
            what is recorded.
    """
    counted = {name: path for name, path in reached(notebook).items() if not f"{name}.".startswith(f"{without}.")}
    counted |= dict(file for dotted in MACHINERY for file in _files(dotted, (HOME,)))
    hashes = {}
    for name, path in counted.items():
        hashes[name] = [_code(path.read_text(encoding="utf-8")), {data.name: _content(data) for data in data_of(path)}]
    return digest([_code(_opened(notebook)[0]), hashes])


def data_of(path: Path) -> list[Path]:
    """Files beside a module that its code names; folders, such as the zoo's weights, only within the packages."""
    named, ours = _texts(path.read_text(encoding="utf-8")), any(path.is_relative_to(HOME / name) for name in PACKAGES)
    beside = [path.parent / name for name in sorted(os.listdir(path.parent)) if name in named]
    packages = [one for one in beside if one.suffix == ".py" or (one / "__init__.py").exists()]
    return [one for one in beside if one not in packages and (ours or one.is_file())]


def _opened(notebook: Path | str) -> tuple[str, tuple[Path, ...]]:
    """The text of a notebook and the folders its own modules may be in: beside it, and the project's root."""
    if isinstance(notebook, Path):
        return notebook.read_text(encoding="utf-8"), (notebook.parent, notebook.parent.parent)
    return notebook, ()


def _has_a_part(name: str, importer: str) -> bool:
    """Whether a module that is imported can change what a notebook shows or records."""
    if not name.startswith("phantombook.") or name in ON_THE_PAGE:
        return True
    room = name.split(".")[1]
    return room in ROOMS and (room, importer) != ("ledger", NOTEBOOK)


@cache
def _files(dotted: str, folders: tuple[Path, ...]) -> list[tuple[str, Path]]:
    """The module a dotted name is in or is, and the packages around it; ``phantomlib.load`` is where it is at home."""
    if dotted == "phantomlib.*":
        return [file for name in phantomlib._HOMES for file in _files(f"phantomlib.{name}", folders)]
    parts = dotted.split(".")
    if parts[0] == "phantomlib" and len(parts) > 1:
        parts[1:2] = phantomlib._HOMES.get(parts[1], parts[1]).split(".")
    names = [parts[:end] for end in range(1, len(parts) + 1)]
    places = [(".".join(name), folder.joinpath(*name)) for folder in folders for name in names]
    files = [(name, path) for name, place in places for path in (place.with_suffix(".py"), place / "__init__.py")]
    return [(name, path) for name, path in files if path.is_file()]


@cache
def _parse(text: str) -> ast.Module:
    """The syntax tree of some code; IPython's commands in it, ``%magic`` and ``!shell``, as texts."""
    try:
        return ast.parse(text)
    except SyntaxError:
        commands = re.compile(r"^([ \t]*)([%!].*)$", re.MULTILINE)
        return ast.parse(commands.sub(lambda found: f"{found[1]}_ = {found[2]!r}", text))


@cache
def _imports(text: str, importer: str) -> set[str]:
    """Dotted names that some code imports, and those that it uses of a package it imported under a name."""
    found = {name for name in _texts(text) if name.split(".")[0] in PACKAGES}  # import_module("phantomlib.models")
    stands_for, nodes = dict[str, str](), list(ast.walk(_parse(text)))
    for node in nodes:
        match node:
            case ast.Import(aliases):
                found |= {alias.name for alias in aliases}
                stands_for |= {alias.asname: alias.name for alias in aliases if alias.asname}
                stands_for |= {top: top for alias in aliases if not alias.asname for top in alias.name.split(".")[:1]}
            case ast.ImportFrom(module, aliases, level):
                around = importer.split(".")[:-level] if level else []
                inside = ".".join([*around, *filter(None, [module])])
                stands_for |= {alias.asname or alias.name: f"{inside}.{alias.name}" for alias in aliases}
    chains = [ast.unparse(node).split(".") for node in nodes if isinstance(node, ast.Attribute) and _is_chain(node)]
    found |= {".".join([stands_for[first], *rest]) for first, *rest in chains if first in stands_for}
    return found.union(stands_for.values())


@cache
def _texts(text: str) -> set[str]:
    """The texts in some code, each as a whole."""
    constants = (node.value for node in ast.walk(_parse(text)) if isinstance(node, ast.Constant))
    return {value for value in constants if isinstance(value, str)}


def _is_chain(node: ast.expr) -> bool:
    """Whether an expression is a name with attributes: ``ph.measure.store``."""
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _is_chain(node.value))


@cache
def _code(text: str) -> str:
    """Hash of what Python makes of a text, the same for every version of Python."""
    return digest(_shape(_parse(text)))


def _shape(node):
    match node:
        case ast.Expr(ast.Constant(str())):  # docstrings, and text cells in quotes
            return None
        case list():
            return [shape for shape in map(_shape, node) if shape is not None]
        case ast.AST():
            fields = [[name, _shape(value)] for name, value in ast.iter_fields(node) if value not in (None, [])]
            return [type(node).__name__, *fields]  # newer versions of Python have further fields, which are empty
    return repr(node)


def _content(path: Path) -> str | dict:
    """Hash of a file, or of every file in a folder."""
    if path.is_dir():
        return {str(one.relative_to(path)): _content(one) for one in sorted(path.rglob("*")) if one.is_file()}
    return _digest(path, path.stat().st_mtime_ns, path.stat().st_size)


@cache
def _digest(path: Path, *_state: int) -> str:
    """Hash of a file, once for each of its states: weights are large."""
    return file_digest(path)
