"""What a refusal on the command line is like: one paragraph, soon, no traceback, nothing left behind."""

import time
from pathlib import Path

from typer.testing import CliRunner

from phantombook.cli import app

ROOT = Path(__file__).parents[1]
SECONDS = 20  # of the processor, within which each must come
LONGEST = 4000  # characters of a message; ten problems at once are the longest


def tree(folder):
    """Every file and link of a folder; without the mark of a notebook that has begun, which stays when it is refused."""
    files = (path for path in folder.rglob("*") if "measurements" not in path.parts and not path.is_dir())
    return {path: path.read_bytes() if path.is_file() else path.is_symlink() for path in files}


def refuse(arguments, words, folder):
    """Run a command that must be refused with one of ``words`` (between bars) and leave ``folder`` as it is."""
    before, started = tree(folder), time.process_time()
    result = CliRunner().invoke(app, arguments)
    seconds = time.process_time() - started
    assert result.exit_code in (1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output and not result.stdout.strip()
    said = result.stderr.strip()
    if result.exit_code == 1:
        *progress, last = said.splitlines()
        assert last.startswith("error: ") and said.count("error: ") == 1 and len(said) < LONGEST
        assert not progress or arguments[0] == "run"  # which says that it begins
        # a message names what was given, not the inside of the package
        assert not any(f"{ROOT}/{inside}" in said for inside in ("phantom", ".venv/lib"))
    plain = " ".join(said.replace("│", " ").split())
    assert any(" ".join(word.split()) in plain for word in words.split("|")), said[:2000]
    assert tree(folder) == before
    assert seconds < SECONDS
