"""Errors a user can act on: one paragraph that names the value, the reason and a way out."""

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NAMED = 10  # problems that one message holds


class PhantomError(Exception):
    """Base of every error raised on purpose by this package. The command line prints its message without a traceback."""


class ContextError(PhantomError):
    """A context does not fit the tokenizer or the model."""


class ModelError(PhantomError):
    """A checkpoint cannot be found, read or used."""


class Unfit(ModelError):
    """What is wrong with a checkpoint, in words that follow its name: see :func:`naming`."""


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


def shown(value, longest: int = 80) -> str:
    """A value as a message quotes it: in one line, and short however large it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxtuple, short.maxset, short.maxdict = 2, 8, 8, 8, 8
    short.maxstring = short.maxother = short.maxlong = longest
    text = short.repr(value)
    return text if len(text) <= 4 * longest else f"{text[: 4 * longest]}..."


@contextmanager
def naming(ref: str) -> Iterator[None]:
    """Put the name by which the user called a checkpoint before what is wrong with it."""
    try:
        yield
    except Unfit as error:
        raise ModelError(f"{shown(ref, 300)} {error}") from error.__cause__
    except OSError as error:
        which = f": {shown(Path(error.filename).name)}" if error.filename else ""
        said = f"{shown(ref, 300)} cannot be read ({error.strerror}{which})"
        raise ModelError(f"{said}. Mend its permissions, or copy it.") from None


def all_at_once(problems: Sequence[PhantomError], among: str = "") -> None:
    """Raise what was found wrong ``among`` something, if anything: all messages in one error of the kind of the first."""
    if not problems:
        return
    if len(problems) == 1:
        raise problems[0]
    more = f" (and {len(problems) - NAMED} more)" if len(problems) > NAMED else ""
    listed = " ".join(f"({number}) {problem}" for number, problem in enumerate(problems[:NAMED], 1))
    raise type(problems[0])(f"{len(problems)} problems{f' {among}' if among else ''}: {listed}{more}")
