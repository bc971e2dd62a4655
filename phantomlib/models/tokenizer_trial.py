"""Try a stranger's tokenizer in a process of its own: its library can abort, or never come back, and takes all with it."""

import contextlib
import subprocess
import sys
from pathlib import Path

SECONDS = 20  # of the processor, for what takes less than one
MEMORY = 2**30  # bytes of address space; a vocabulary of 262,144 takes a quarter of it
TEXTS = (
    "After the lie, Anna felt a deep sense of shame, not guilt: 12 men (and 3 dogs) didn't.",
    "".join(map(chr, range(32, 127))),
    *(letter * 60 + "!" for letter in "ax1 .\n雪é"),  # runs, on which an expression with two ways to match is slow
)
_fine: set[str] = set()  # SHA-256 of the files that came through


def try_tokenizer(path: Path, ref: str) -> None:
    """Let a child process read and use a ``tokenizer.json``, once for each content; nothing is done if there is none.

    Raises:
        ModelError: it fails there, or takes more than 20 seconds or 1 GiB.
    """
    from phantomlib.errors import ModelError, shown
    from phantomlib.files import file_digest

    if not path.exists() or (digest := file_digest(path)) in _fine:
        return
    command, reason = [sys.executable, "-P", __file__, str(path), str(SECONDS)], ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10 * SECONDS)
        if done.returncode > 0 and (said := done.stderr.strip().splitlines()):
            reason = said[-1][:200]
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        reason = reason or f"more than {SECONDS} seconds or {MEMORY >> 30} GiB, or an abort"
        raise ModelError(
            f"{shown(ref, 300)} could not be loaded: its {path.name} fails in a trial ({reason}). Save the tokenizer again "
            "with save_pretrained, or take it from its publisher."
        )
    _fine.add(digest)


def _use(path: str, seconds: int) -> None:
    """What the child does."""
    from tokenizers import Tokenizer

    with contextlib.suppress(ImportError):  # Windows: only the parent's clock limits it
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    tokenizer = Tokenizer.from_file(path)
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text).ids)


if __name__ == "__main__":
    _use(sys.argv[1], int(sys.argv[2]))
