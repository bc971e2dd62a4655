"""Errors a user can act on: one paragraph that names the value, the reason and a way out."""

import difflib
from collections.abc import Iterable


class PhantomError(Exception):
    """Base of every error raised on purpose by this package. The command line prints its message without a traceback."""


class ContextError(PhantomError):
    """A context does not fit the tokenizer or the model."""


class ModelError(PhantomError):
    """A checkpoint cannot be found, read or used."""


class ParameterError(PhantomError):
    """A parameter has an unknown name, a wrong type or an impossible value."""


class StoreError(PhantomError):
    """The folder of runs cannot be used."""


class BookError(PhantomError):
    """A notebook or the book could not be built."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (nearest: 'steps')`` or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: '{near[0]}')" if near else ""
