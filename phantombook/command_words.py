"""How the command line reads its words, and how it says what went wrong."""

import typer
from typer.core import TyperCommand, TyperGroup

from phantomlib.errors import PhantomError


class Group(TyperGroup):
    """Errors a user can act on become one message and exit code 1; ``--debug`` shows where they came from."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("Stopped. What is finished stays; the same command goes on from there.", err=True)
            raise typer.Exit(130) from None
        except (PhantomError, OSError) as error:
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):  # typer ends quietly on a closed pipe
                raise
            typer.echo(f"error: {error if isinstance(error, PhantomError) else what_the_system_said(error)}", err=True)
            raise typer.Exit(1) from None


def what_the_system_said(error: OSError) -> str:
    """An error of the system in one sentence, with what to do about it."""
    place = f" '{error.filename}'" if error.filename else ""
    return f"{error.strerror or error}{place}. Mend that, or work in a folder that can be written to and has room."


class ManyModels(TyperCommand):
    """Lets ``--models`` take several words: ``--models A B`` is read as ``--models A --models B``."""

    def parse_args(self, ctx, args):
        spread: list[str] = []
        inside = False
        for word in args:
            if inside and not word.startswith("-"):
                spread += ([] if spread[-1] == "--models" else ["--models"]) + [word]
            else:
                spread.append(word)
                inside = word == "--models"
        return super().parse_args(ctx, spread)


class WithParameters(TyperCommand):
    """Lets ``-p`` take two words, as papermill's does: ``-p steps 30`` is read as ``-p steps=30``."""

    def parse_args(self, ctx, args):
        joined, words = [], iter(args)
        for word in words:
            joined.append(word)
            if word in ("-p", "--parameter"):
                name = next(words, None)
                if name is None:
                    continue
                value = None if "=" in name else next(words, None)
                joined.append(name if value is None else f"{name}={value}")
        return super().parse_args(ctx, joined)
