"""Parameters: read as text from YAML, fitted to the types that a notebook declares; those that every measurement is given.

YAML gives the structure only. What a scalar means, the declared type says: ``08`` is eight where a whole number is
wanted, ``on`` and ``2026-01-01`` are text where text is. So nothing depends on the version of YAML. What every measurement
is given (models, contexts, device, precision, store, seed) is refused here before anything runs.
"""

import ast
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from phantomlib.contexts import Context, load_contexts
from phantomlib.errors import BookError, ParameterError, did_you_mean, shown
from phantomlib.models.zoo_models import HELD_OUT
from phantomlib.plain_yaml import parse_yaml, read_yaml

EDITED = "PHANTOM_EDIT"  # set by ``phantom edit`` for JupyterLab: the name of a profile
FITTING = "fitting:"  # before the name of a contexts file: leave out what does not fit a model


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
    if isinstance(value, bool) and kind in ("int", "float"):
        raise ValueError("true and false are no numbers")
    try:
        annotation = eval(kind, vars(typing) | {"int": Annotated[int, Field(ge=-(2**63), lt=2**63)]})
    except (NameError, TypeError, SyntaxError):
        raise BookError(f"The type '{kind}' of a parameter is unknown; write one such as list[float].") from None
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False)).validate_python(value)


def _reason(error: yaml.YAMLError) -> str:
    placed = isinstance(error, yaml.MarkedYAMLError) and error.problem_mark
    text = f"line {error.problem_mark.line + 1}: {error.problem}" if placed else " ".join(str(error).split())
    return text[:200]


COMMON: dict[str, Any] = {  # what every measurement is given, with the defaults
    "models": [],
    "contexts": "default",
    "device": "cpu",
    "dtype": "float32",
    "store": "runs",
    "seed": 0,
}

Text = Annotated[str, Field(pattern=r"\S")]
Multiple = Annotated[float, Field(gt=0, allow_inf_nan=False)]
WANTED: dict[str, tuple[Any, str]] = {  # what is more than text: its type, and how a refusal puts it
    "models": (
        Annotated[list[Text], Field(min_length=1)],
        "a list with at least one model: zoo:NAME such as 'zoo:gpt2-s', pretrained:NAME, a folder, a GGUF file or a hub id",
    ),
    "seed": (Annotated[int, Field(ge=0, lt=2**32)], f"a whole number from 0 to {2**32 - 1}"),
    "multiples": (
        Annotated[list[Multiple], Field(min_length=1)],
        "a non-empty list of positive, finite numbers, such as [0.5, 1.5]: learning rates in units of critical ones",
    ),
}


def check_inputs(models: list[str], contexts: str, device: str, dtype: str, **others) -> list[Context]:
    """The loaded contexts, once everything is known to be usable.

    Args:
        models: references (see :func:`phantomlib.models.language_model.load`), at least one, no two of the same short name.
        contexts: ``default`` or the path of a contexts file; after ``fitting:``, only those that fit each model are used.
        device: a torch device, e.g. ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``float64``.
        others: ``store``, the folder of runs; ``seed``; ``multiples``, learning rates in units of critical ones.

    Raises:
        ParameterError: a wrong type or an impossible value.
        ContextError, ModelError: the contexts or a model cannot be used.
    """
    for name, value in {"models": models, "contexts": contexts, "device": device, "dtype": dtype, **others}.items():
        kind, wanted = WANTED.get(name, (Text, "non-empty text"))
        try:
            TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError:
            raise ParameterError(f"{name} is {shown(value)}; it must be {wanted}.") from None
    loaded = load_contexts(contexts.removeprefix(FITTING))

    from phantomlib.models.language_model import DTYPES, check_device, find, short_name  # torch: seconds

    if dtype not in DTYPES:
        raise ParameterError(f"dtype {shown(dtype)} is not known; choose one of {', '.join(DTYPES)}.")
    check_device(device)
    named: dict[str, str] = {}
    for ref in models:
        if models.count(ref) > 1:
            raise ParameterError(f"models names {shown(ref)} {models.count(ref)} times; name every model once.")
        find(ref)  # a misspelt zoo name or folder
        other = named.setdefault(short_name(ref), ref)
        if other != ref:  # results, files and figures go by the name
            both = f"{shown(other, 200)} and {shown(ref, 200)} would both be called {shown(short_name(ref))}"
            raise ParameterError(
                f"The models {both}. Rename the folder or file of one (save it first if it is on the hub)."
            )
    return loaded


def chosen_held_out(models: list[str], held_out: str) -> str:
    """The model that is predicted blindly: ``held_out``, or, if that is empty and all ``models`` are of the zoo, the zoo's own.

    Raises:
        ParameterError: it is empty, and a model is not of the zoo; it is one of ``models``.
        ModelError: there is no such model.
    """
    from phantomlib.models.language_model import find

    others = [ref for ref in models if not ref.startswith("zoo:")]
    if others and not held_out.strip():
        raise ParameterError(
            f"models names {shown(others[0], 300)}, which is not of the zoo; then held_out must name the model to predict, "
            f"none of models: -p held_out path/to/another; or, to predict one of the zoo, -p held_out zoo:{HELD_OUT}."
        )
    chosen = held_out.strip() or f"zoo:{HELD_OUT}"
    if chosen in models:
        raise ParameterError(f"{shown(chosen, 300)} is held out, so it cannot be among models; take it out there.")
    find(chosen)
    return chosen


def typed_paths(given: dict, root: Path | None = None) -> dict[str, Any]:
    """The same parameters, but paths, which users type in their own folder, lead from ``root``; absolute if it is None."""

    def moved(name, value):
        if isinstance(value, list):
            return [moved(name, item) for item in value]
        if not isinstance(value, str) or not value:
            return value
        prefix = FITTING if value.startswith(FITTING) else ""
        text = os.path.expanduser(value.removeprefix(prefix))
        known = text == "default" or text.startswith(("zoo:", "pretrained:"))  # whatever files lie about
        if name != "store" and (known or not os.path.exists(text)):
            return value
        return prefix + (os.path.relpath(text, root) if root else os.path.abspath(text))

    paths = ("models", "contexts", "held_out", "charted", "store")
    return {name: moved(name, value) if name in paths else value for name, value in given.items()}


def named_files(parameters: Mapping, root: Path) -> dict[str, Path]:
    """Files and folders that parameters name, by their text; paths lead from ``root``."""
    values = [one for value in parameters.values() for one in (value if isinstance(value, list) else [value])]
    paths = {text: root / text.removeprefix(FITTING) for text in values if isinstance(text, str)}
    # os.path is False, too, for text that cannot be a path
    return {
        text: path for text, path in paths.items() if path != root and (os.path.isfile(path) or os.path.isdir(path))
    }
