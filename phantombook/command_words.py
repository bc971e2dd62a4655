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


class ManyWords(TyperCommand):
    """Options of several words: ``-p steps 30`` is read as ``-p steps=30``, and ``--models A B`` as ``--models A --models B``."""

    def parse_args(self, ctx, args):
        read, words = list[str](), list(args)
        while words:
            word = words.pop(0)
            read.append(word)
            if word in ("-p", "--parameter") and len(words) > 1 and "=" not in words[0]:
                read.append(f"{words.pop(0)}={words.pop(0)}")
            elif word == "--models" and words:
                read.append(words.pop(0))
                while words and not words[0].startswith("-"):
                    read += ["--models", words.pop(0)]
        return super().parse_args(ctx, read)
