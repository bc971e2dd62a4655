"""What every measurement is given: models, contexts, device, precision, store, seed; refused here before anything runs."""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from phantomlib.contexts import Context, load_contexts
from phantomlib.errors import ParameterError, shown
from phantomlib.models.zoo_models import HELD_OUT

FITTING = "fitting:"  # before the name of a contexts file: leave out what does not fit a model


def check_multiples(multiples: list[float]) -> None:
    """Raise ParameterError unless learning rates in units of critical ones are a non-empty list of positive, finite numbers."""
    real = isinstance(multiples, list) and all(
        isinstance(x, int | float) and not isinstance(x, bool) for x in multiples
    )
    if not real or not multiples or not all(0 < x < math.inf for x in multiples):
        raise ParameterError(
            f"multiples is {shown(multiples)}; it must be a non-empty list of positive, finite numbers, such as [0.5, 1.5]: "
            "learning rates in units of each context's critical one."
        )


def check_inputs(
    models: list[str], contexts: str, device: str, dtype: str, store: str = "runs", seed: int = 0
) -> list[Context]:
    """The loaded contexts, once everything is known to be usable.

    Args:
        models: references (see :func:`phantomlib.models.language_model.load`), at least one, no two of the same short name.
        contexts: ``default`` or the path of a contexts file; after ``fitting:``, only those that fit each model are used.
        device: a torch device, e.g. ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``float64``.
        store: folder of runs; not opened here.
        seed: 0 or more, below 2**32.

    Raises:
        ParameterError: a wrong type or an impossible value.
        ContextError, ModelError: the contexts or a model cannot be used.
    """
    if not isinstance(models, list) or not models or not all(isinstance(ref, str) and ref.strip() for ref in models):
        raise ParameterError(
            f"models is {shown(models)}; it must be a list with at least one model: zoo:NAME such as "
            "'zoo:gpt2-s', pretrained:NAME, a folder, a GGUF file or a hub id."
        )
    for ref in models:
        if models.count(ref) > 1:
            raise ParameterError(f"models names {shown(ref)} {models.count(ref)} times; name every model once.")
    for name, value in {"contexts": contexts, "device": device, "dtype": dtype, "store": store}.items():
        if not isinstance(value, str) or not value.strip():
            raise ParameterError(f"{name} is {shown(value)}; it must be non-empty text.")
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ParameterError(f"seed is {shown(seed)}; it must be a whole number from 0 to {2**32 - 1}.")

    from phantomlib.models.language_model import DTYPES, check_device, find, short_name  # torch

    if dtype not in DTYPES:
        raise ParameterError(f"dtype {shown(dtype)} is not known; choose one of {', '.join(DTYPES)}.")
    check_device(device)
    for ref in models:
        find(ref)  # a misspelt zoo name or folder
    named: dict[str, str] = {}
    for ref in models:
        other = named.setdefault(short_name(ref), ref)
        if other != ref:  # results, files and figures go by the name
            raise ParameterError(
                f"The models {shown(other, 200)} and {shown(ref, 200)} would both be called {shown(short_name(ref))}. Rename "
                "the folder or file of one; one from the hub, save in a folder of another name."
            )
    return load_contexts(contexts.removeprefix(FITTING))


def chosen_held_out(models: list[str], held_out: str) -> str:
    """The model that is predicted blindly: ``held_out``, or, if that is empty and all ``models`` are of the zoo, the zoo's own.

    Raises:
        ParameterError: it is empty, and a model is not of the zoo; it is one of ``models``.
        ModelError: there is no such model.
    """
    others = [ref for ref in models if not ref.startswith("zoo:")]
    if others and not held_out.strip():
        raise ParameterError(
            f"models names {shown(others[0], 300)}, which is not of the zoo; then held_out must name the model that is to be "
            "predicted and only then measured. Give one that is not among models: -p held_out path/to/another; or, to "
            f"predict a model of the zoo from yours, -p held_out zoo:{HELD_OUT}."
        )
    chosen = held_out.strip() or f"zoo:{HELD_OUT}"
    if chosen in models:
        raise ParameterError(f"{shown(chosen, 300)} is held out, so it cannot be among models; take it out there.")
    from phantomlib.models.language_model import find

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


def named_files(value, root: Path) -> dict[str, Path]:
    """Files and folders that the texts in some parameters name, by that text; paths lead from ``root``."""
    found = {}
    for text in _texts(value):
        named = text.removeprefix(FITTING)
        path = root / named
        if named and (os.path.isfile(path) or os.path.isdir(path)):  # False, too, for text that cannot be a path
            found[text] = path
    return found


def _texts(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)
