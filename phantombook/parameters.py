"""Parameters of notebooks: read as text from YAML, then fitted to the types that a notebook declares.

YAML gives the structure only. What a scalar means, the declared type says: ``08`` is eight where a whole number is
wanted, ``on`` and ``2026-01-01`` are text where text is. So nothing depends on the version of YAML.
"""

import ast
import json
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml

from phantomlib.errors import BookError, ParameterError, did_you_mean, shown
from phantomlib.plain_yaml import parse_yaml, read_yaml


@dataclass(frozen=True)
class Declared:
    """One parameter as a notebook declares it in its ``parameters`` cell: ``name: type = default  # help``."""

    type: str
    default: object


def parse_value(text: str):
    """A value typed on the command line: ``3``, ``1e-4``, ``true``, plain or quoted text, ``'["zoo:gpt2-s"]'``."""
    try:
        return parse_yaml(text, as_text=True) if text.startswith(("[", "{", '"', "'")) else text
    except yaml.YAMLError as error:
        raise ParameterError(f"The value {shown(text)} is not valid YAML ({_reason(error)}). Mend it.") from None


def load_mapping(path: Path) -> dict:
    """A YAML file of parameters; every scalar is text. ParameterError if it is none."""
    try:
        mapping = read_yaml(path, as_text=True) or {}
    except OSError as error:
        raise ParameterError(f"Cannot read '{path}' ({error.strerror}). Give a YAML file of parameters.") from None
    except yaml.YAMLError as error:
        raise ParameterError(f"'{path}' is not valid YAML ({_reason(error)}). Mend it and run again.") from None
    if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping):
        raise ParameterError(f"'{path}' must be a YAML mapping of names to values, such as 'steps: 30'.")
    return mapping


def declared(notebook) -> dict[str, Declared]:
    """The parameters of a notebook (``nbformat``), by name; BookError if their cell holds anything else."""
    cells = [cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    known: dict[str, Declared] = {}
    try:
        for line in ast.parse("\n".join(cells[:1])).body:
            match line:
                case ast.AnnAssign(ast.Name(name), annotation, ast.expr() as value):
                    kind = ast.unparse(annotation)
                case ast.Assign([ast.Name(name)], value):
                    kind = type(ast.literal_eval(value)).__name__
                case _:
                    raise ValueError
            known[name] = Declared(kind, ast.literal_eval(value))
    except (SyntaxError, ValueError):
        place = f"after '{list(known)[-1]}'" if known else "at its start"
        hint = "Write 'name: type = value  # help', with plain values."
        raise BookError(f"The cell of parameters holds something else {place}. {hint}") from None
    return known


def check_parameters(values: dict, known: dict[str, Declared], notebook: str) -> dict:
    """Values in the declared types: text that says a number becomes it, whole numbers are accepted as floats.

    Raises:
        ParameterError: a name the notebook does not have, or a value that does not fit its type; numbers must be finite.
    """
    checked = {}
    for name, value in values.items():
        if name not in known:
            near, there = did_you_mean(name, known), ", ".join(known) or "none"
            raise ParameterError(f"{notebook} has no parameter {shown(name)}{near}. Its parameters: {there}.")
        kind = known[name].type
        try:
            checked[name] = _fit(value, kind)
        except ValueError:
            listed = kind.startswith("list") and not isinstance(value, list | dict)
            hint = f" Write a list, such as -p {name} {shown(f'[{value}]')}." if listed else ""
            wanted = f"{notebook} needs {kind} there (its default is {json.dumps(known[name].default)})"
            raise ParameterError(f"{name} is {shown(value)}, but {wanted}.{hint}") from None
    return checked


def _fit(value, kind: str):
    """``value`` as pydantic reads it for the annotation ``kind``; ValueError if it does not fit."""
    from pydantic import ConfigDict, Field, TypeAdapter

    if isinstance(value, bool) and kind in ("int", "float"):
        raise ValueError("true and false are no numbers")
    try:
        annotation = eval(kind, vars(typing) | {"int": typing.Annotated[int, Field(ge=-(2**63), lt=2**63)]})
    except (NameError, TypeError, SyntaxError):
        raise BookError(f"The type '{kind}' of a parameter is unknown; write one such as list[float].") from None
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value)


def _reason(error: yaml.YAMLError) -> str:
    placed = isinstance(error, yaml.MarkedYAMLError) and error.problem_mark
    text = f"line {error.problem_mark.line + 1}: {error.problem}" if placed else " ".join(str(error).split())
    return text[:200]
