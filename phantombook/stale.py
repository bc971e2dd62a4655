"""What a notebook reaches by import, and a key of that code: results are stale once the key is another.

Nothing is run. Imports are read from the syntax tree, wherever they stand, through the companion's own modules and those
of the notebook's own project. Text cells, comments, docstrings and layout are not part of a key. A file beside a module
that the module names, such as ``contexts.yaml``, is.
"""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import phantomlib
from phantomlib.files import digest, file_digest

HOME = Path(__file__).parents[1]  # the folder that holds the packages
PACKAGES = ("phantomlib", "phantombook", "zoo")
NOTEBOOK = "phantombook.notebook"
ROOMS = ("figures", "ledger")
SHOWN = ("notebook", "inputs", "markup", "evidence", "published", "published_runs")
ON_THE_PAGE = tuple(f"phantombook.{name}" for name in SHOWN)
# What prepares a kernel and executes cells in it counts for every notebook; all else in the package only starts that
MACHINERY = tuple(
    f"phantombook.{name}" for name in ("execution", "preloaded_kernel", "tidy", "plan", "project", "parameters")
)


def reached(notebook: Path | str) -> tuple[str, ...]:
    """Names of the modules that a notebook's code cells import, directly or through others, in alphabetical order.

    Left out are other people's packages and what runs notebooks; from ``phantombook.notebook`` the walk does not go on
    into the ledger, which takes down what a notebook measured and has no part in it.

    Args:
        notebook: path of a py:percent notebook, or its text.

    Raises:
        SyntaxError: it is not Python.
    """
    return tuple(sorted(_modules(notebook)))


def key(notebook: Path | str, without: str = "") -> str:
    """Hash of a notebook's code cells, of all that they reach and of the runner: 64 hex digits.

    Args:
        notebook: as in :func:`reached`, with the same errors.
        without: leave out modules, such as those of ``phantombook.figures``, which decides what is drawn but not
            what is recorded.
    """
    text, _ = _opened(notebook)
    found = {n: p for n, p in sorted(_modules(notebook).items()) if not (without and f"{n}.".startswith(f"{without}."))}
    found |= {name: path for dotted in MACHINERY for name, path in _files(dotted, ())}
    return digest([_code(text), {name: module_key(path) for name, path in found.items()}])


def module_key(path: Path) -> str:
    """Hash of a module's code and of the data beside it that it names."""
    return digest([_code(_read(path)), {data.name: _content(data) for data in _data(path)}])


def _modules(notebook: Path | str) -> dict[str, Path]:
    text, folders = _opened(notebook)
    found, waiting = {}, list(_imported(text, "", folders))
    while waiting:
        name, path = waiting.pop()
        if name not in found:
            found[name] = path
            # what says where the public names are at home imports all of them, one at a time
            inner = _imported(_read(path), name, folders) if name != "phantomlib" else ()
            waiting += [one for one in inner if name != NOTEBOOK or not one[0].startswith("phantombook.ledger.")]
    return found


def _opened(notebook: Path | str) -> tuple[str, tuple[Path, ...]]:
    """The text of a notebook and the folders its own modules may be in: beside it, and the project's root."""
    if isinstance(notebook, Path):
        return _read(notebook), (notebook.parent, notebook.parent.parent)
    return notebook, ()


def _imported(text: str, importer: str, folders: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Name and file of every module that some code imports, less what runs notebooks."""
    for dotted in _names(text, importer):
        for name, path in _files(dotted, folders):
            room = name.removeprefix("phantombook.").split(".")[0]
            if not name.startswith("phantombook.") or room in ROOMS or name in ON_THE_PAGE:
                yield name, path


def _files(dotted: str, folders: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """The module a dotted name is in or is, and the packages around it; ``phantomlib.load`` is where it is at home."""
    parts = dotted.split(".")
    if parts[0] in PACKAGES:
        folders = (HOME,)
    if parts[0] == "phantomlib":
        if len(parts) > 1 and parts[1] in phantomlib._HOMES:
            parts[1:2] = phantomlib._HOMES[parts[1]].split(".")
        elif parts[1:2] == ["*"]:
            for name in phantomlib._HOMES:
                yield from _files(f"phantomlib.{name}", folders)
    for folder in folders:
        for end in range(1, len(parts) + 1):
            place = folder.joinpath(*parts[:end])
            for path in (place.with_suffix(".py"), place / "__init__.py"):
                if path.is_file():
                    yield ".".join(parts[:end]), path
            if not place.is_dir():
                break


@cache
def _parse(text: str) -> ast.Module:
    """The syntax tree of some code; IPython's commands in it, ``%magic`` and ``!shell``, as texts."""
    try:
        return ast.parse(text)
    except SyntaxError:
        commands = re.compile(r"^([ \t]*)([%!].*)$", re.MULTILINE)
        return ast.parse(commands.sub(lambda found: f"{found[1]}_ = {found[2]!r}", text))


@cache
def _names(text: str, importer: str) -> tuple[str, ...]:
    """Dotted names that some code imports, and those that it uses of a package it imported under a name."""
    found, packages = set(), {}
    nodes = list(ast.walk(_parse(text)))
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.add(alias.name)
                packages[alias.asname or alias.name.split(".")[0]] = alias.name if alias.asname else None
        elif isinstance(node, ast.ImportFrom):
            around = importer.split(".")[: -node.level] if node.level else []
            module = ".".join([*around, *filter(None, [node.module])])
            for alias in node.names:
                found.add(f"{module}.{alias.name}")
                packages[alias.asname or alias.name] = f"{module}.{alias.name}"
    for node in nodes:
        if isinstance(node, ast.Attribute) and _is_chain(node):
            first, *rest = ast.unparse(node).split(".")
            if first in packages:
                found.add(".".join([packages[first] or first, *rest]))
    found |= {name for name in _strings(text) if name.split(".")[0] in PACKAGES}  # import_module("phantomlib.models")
    return tuple(sorted(found))


@cache
def _strings(text: str) -> frozenset[str]:
    """The texts in some code, each as a whole."""
    constants = (node.value for node in ast.walk(_parse(text)) if isinstance(node, ast.Constant))
    return frozenset(value for value in constants if isinstance(value, str))


def _is_chain(node: ast.expr) -> bool:
    """Whether an expression is a name with attributes: ``ph.measure.store``."""
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _is_chain(node.value))


@cache
def _code(text: str) -> str:
    """Hash of what Python makes of a text, the same for every version of Python."""
    return digest(_shape(_parse(text)))


def _shape(node):
    match node:
        case list():  # without statements that are text alone: docstrings, and text cells in quotes
            return [_shape(one) for one in node if not _is_text(one)]
        case ast.AST():
            fields = [
                [name, _shape(value)] for name, value in ast.iter_fields(node) if value is not None and value != []
            ]
            return [type(node).__name__, *fields]  # newer versions of Python have further fields, which are empty
    return repr(node)


def _is_text(node) -> bool:
    match node:
        case ast.Expr(ast.Constant(str())):
            return True
    return False


def _data(path: Path) -> list[Path]:
    """Files beside a module that its code names; folders, such as the zoo's weights, only within the packages."""
    named, ours = _strings(_read(path)), any(path.is_relative_to(HOME / name) for name in PACKAGES)
    beside = [one for one in sorted(path.parent.iterdir()) if one.name in named and one.suffix != ".py"]
    return [one for one in beside if one.is_file() or (ours and not (one / "__init__.py").exists())]


def _content(path: Path) -> str | dict:
    """Hash of a file, or of every file in a folder."""
    if path.is_dir():
        return {str(one.relative_to(path)): _content(one) for one in sorted(path.rglob("*")) if one.is_file()}
    return _once(path, file_digest)


def _read(path: Path) -> str:
    return _once(path, _text)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _once(path: Path, read: Callable[[Path], str]) -> str:
    """What ``read`` makes of a file, once for each of its states."""
    status = path.stat()
    return _kept(path, read, status.st_mtime_ns, status.st_size)


@cache
def _kept(path: Path, read: Callable[[Path], str], changed: int, size: int) -> str:
    return read(path)
