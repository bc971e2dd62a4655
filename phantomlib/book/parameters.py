"""Parameters of notebooks: read them from text and files, and check names and types before anything runs."""

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from phantomlib.errors import BookError, ParameterError, did_you_mean


@dataclass(frozen=True)
class Declared:
    """One parameter as a notebook declares it in its ``parameters`` cell: ``name: type = default  # help``."""

    name: str
    type: str
    default: str
    help: str


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of YAML 1.2: ``1e-3`` is a number, ``on`` and ``2026-01-01`` are text, keys are unique."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", mark)
        return super().construct_mapping(node, deep)

    def construct_whole_number(self, node):
        return int(node.value)  # YAML 1.1 reads 010 as octal and stumbles over 08


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+0123456789."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), [*_first, ""])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole_number)


def parse_value(text: str):
    """A value typed on the command line, read as YAML: ``3``, ``1e-4``, ``true``, ``'["zoo:gpt2-s"]'``, plain text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ParameterError(f"The value {text!r} is not valid YAML ({_reason(error)}). Quote or mend it.") from None


def load_mapping(path: Path) -> dict:
    """A YAML file of parameters.

    Raises:
        ParameterError: missing, not YAML, a name given twice, or not a mapping.
    """
    try:
        mapping = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ParameterError(f"Cannot read '{path}' ({error.strerror}). Give a YAML file of parameters.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"'{path}' is not valid YAML ({_reason(error)}). Mend it and run again.") from None
    if mapping is None:
        return {}
    if not isinstance(mapping, dict) or not all(isinstance(key, str) for key in mapping):
        raise ParameterError(f"'{path}' must be a YAML mapping of names to values, such as 'steps: 30'.")
    return mapping


def declared(notebook) -> dict[str, Declared]:
    """The parameters of a notebook, as papermill finds them.

    Args:
        notebook: an ``nbformat`` notebook with one code cell tagged ``parameters``.

    Raises:
        BookError: papermill overlooks a line of that cell, so that it could not be set.
    """
    from papermill.translators import papermill_translators

    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if not cells:
        return {}
    found = papermill_translators.find_translator("python3", "python").inspect(cells[0])
    known = {p.name: Declared(p.name, p.inferred_type_name, p.default, p.help) for p in found}
    for statement in ast.parse(cells[0].source).body:
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else getattr(statement, "targets", [])
        for target in targets:
            if isinstance(target, ast.Name) and target.id not in known:
                raise BookError(
                    f"papermill cannot read the parameter '{target.id}'. Write it on "
                    "one line `name: type = value  # help`, with a plain type and no '=' in the help."
                )
    return known


def check_parameters(values: dict, known: dict[str, Declared], notebook: str) -> dict:
    """Values in the declared types; whole numbers are accepted where a float is declared.

    Raises:
        ParameterError: a name the notebook does not have, or a value of another type.
    """
    for name in values:
        if name not in known:
            raise ParameterError(
                f"{notebook} has no parameter '{name}'{did_you_mean(name, known)}. "
                f"Its parameters: {', '.join(known) or 'none'}."
            )
    checked = {}
    for name, value in values.items():
        kind = _annotation(known[name])
        try:
            checked[name] = _fit(value, kind)
        except TypeError:
            raise ParameterError(
                f"{name} is {value!r}, but {notebook} needs {ast.unparse(kind) if kind else 'another type'} there "
                f"(its default is {known[name].default}).{_hint(name, value, kind)}"
            ) from None
    return checked


def from_text(name: str, text: str, known: dict[str, Declared]):
    """A value typed on the command line; parameters that are text take it as it stands."""
    if name in known and _is_text(_annotation(known[name])) and text[:1] not in "\"'":
        return text
    return parse_value(text)


def _annotation(parameter: Declared) -> ast.expr | None:
    """The declared type; if none is written, that of the default."""
    if parameter.type not in ("", "None"):
        return ast.parse(parameter.type, mode="eval").body
    try:
        default = ast.literal_eval(parameter.default)
    except (ValueError, SyntaxError):
        return None
    return None if default is None else ast.parse(type(default).__name__, mode="eval").body


def _is_text(kind: ast.expr | None) -> bool:
    return isinstance(kind, ast.Name) and kind.id == "str"


_PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}


def _fit(value, kind: ast.expr | None):
    """``value`` if it has type ``kind``; TypeError if not. Types the notebooks do not use are let through."""
    if isinstance(kind, ast.Subscript) and isinstance(kind.value, ast.Name):
        container, inner = kind.value.id, kind.slice
        if container in ("list", "List"):
            if not isinstance(value, list):
                raise TypeError
            return [_fit(item, inner) for item in value]
        if container == "Optional":
            return None if value is None else _fit(value, inner)
        kind = ast.Name(container.lower())
    wanted = _PLAIN.get(kind.id) if isinstance(kind, ast.Name) else None
    if wanted is None:
        return value
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        raise TypeError
    return value


def _hint(name: str, value, kind: ast.expr | None) -> str:
    if isinstance(kind, ast.Subscript) and not isinstance(value, list | dict):
        return f" Write a list, such as -p {name} '{json.dumps([value])}'."
    return ""


def _reason(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"line {mark.line + 1}: {error.problem}" if mark else " ".join(str(error).split())
