"""What names a function in a run's key: its source text, and what it uses from outside."""

import ast
import dis
import hashlib
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from itertools import pairwise
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch

from phantomlib.errors import ParameterError, shown

INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
NAMED = ModuleType | type | FunctionType | BuiltinFunctionType | np.ufunc  # told by module and name, or by their text


def function_key(function: Callable, above: tuple = ()) -> str | dict:
    """The source text; and, if the function uses anything from outside but imported packages, what that is, by name.

    Used from outside are global names and what is taken from modules among them, names of enclosing functions, attributes
    of the function, the object that a method belongs to, and defaults that are not literal. Functions among them are
    described in the same way (``above``: those in whose description it stands); numbers, texts, collections and arrays by
    their values. ParameterError if there is no text, or something used cannot be described.
    """
    try:
        text = textwrap.dedent(inspect.getsource(function.__code__))
        used = {**_names(function), **_defaults(function, text), **vars(function)}
        used |= {"self": function.__self__} if inspect.ismethod(function) else {}
    except (AttributeError, OSError, TypeError):
        said = "has no source text to name the run by; define it with def, in a file or a cell."
        raise ParameterError(f"{shown(function)} {said}") from None
    outside = {name: _describe(name, value, (*above, function)) for name, value in used.items()}
    outside = {name: told for name, told in outside.items() if told != name}  # "import torch" says it all
    return {"text": text, "outside": outside} if outside else text


def _names(function) -> dict[str, object]:
    """What a function, or one inside it, reads by global and enclosing names, and takes from modules of one's own there."""
    enclosing = inspect.getclosurevars(function).nonlocals
    read = {"LOAD_GLOBAL": function.__globals__, "LOAD_NAME": function.__globals__, "LOAD_DEREF": enclosing}
    found: dict[str, object] = {}

    def look(code: CodeType) -> None:
        for one, after in pairwise(dis.get_instructions(code)):
            if one.argval in read.get(one.opname, ()):  # builtins are not
                found[one.argval] = value = read[one.opname][one.argval]
                own = isinstance(value, ModuleType) and not (_installed(value.__name__) or _ours(value.__name__))
                if own and after.opname in ("LOAD_ATTR", "LOAD_METHOD") and hasattr(value, after.argval):
                    found[f"{one.argval}.{after.argval}"] = getattr(value, after.argval)
        for inner in code.co_consts:
            if isinstance(inner, CodeType):
                look(inner)

    look(function.__code__)
    return found


def _defaults(function: Callable, text: str) -> dict[str, object]:
    """Defaults of arguments, unless the text itself says them; that of a lambda inside a line is not looked into."""
    try:
        definition: Any = ast.parse(text).body[0]
        for default in [*definition.args.defaults, *filter(None, definition.args.kw_defaults)]:
            ast.literal_eval(default)
        return {}
    except (SyntaxError, ValueError, AttributeError):
        return {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty}


def _describe(name: str, value, above: tuple):
    """Plain JSON types that change with a value."""
    if isinstance(value, NAMED) and isinstance(getattr(value, "__self__", None), NoneType | type | ModuleType):
        home = value.__name__ if isinstance(value, ModuleType) else value.__module__ or "builtins"
        if _installed(home):
            return home if isinstance(value, ModuleType) else f"{home}.{value.__name__}"
        if isinstance(value, FunctionType):
            return "itself" if value in above else function_key(value, above)
        if isinstance(value, ModuleType) or _ours(home):
            return inspect.getsource(value)
    if isinstance(value, NoneType | bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return [repr(value)]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor) and value.dtype != object:
        array = np.ascontiguousarray(value.detach().cpu().double() if isinstance(value, torch.Tensor) else value)
        return [str(value.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, list | tuple | dict):
        parts = value.items() if isinstance(value, dict) else value
        return [type(value).__name__, *(_describe(name, part, above) for part in parts)]
    said = f"'{above[-1].__name__}' uses {name!r} from outside, {shown(value)}, which cannot name its runs"
    raise ParameterError(f"{said}. Put it into the function, or use numbers, texts, arrays, or functions with def.")


def _installed(module: str) -> bool:
    """Whether a module is Python's own or of an installed package; not this one, which changes with its commits."""
    top = module.partition(".")[0]
    place = getattr(sys.modules.get(top), "__file__", None) or ""
    return top in sys.stdlib_module_names or not _ours(module) and place.startswith(INSTALLED)


def _ours(module: str) -> bool:
    """Whether a module is of this package: its text says it all, for nobody assigns to its names."""
    return module.partition(".")[0] == "phantomlib"
