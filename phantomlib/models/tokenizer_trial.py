"""Try a stranger's tokenizer in a process of its own: its library can abort, or never come back, and takes all with it."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Hashable
from pathlib import Path

SECONDS = 20  # of the processor, for what takes less than one; a GGUF file has six times as many
MEMORY = 2**31  # bytes; transformers and a vocabulary of 262,144 take a quarter of it
TEXTS = (
    "After the lie, Anna felt a deep sense of shame, not guilt: 12 men (and 3 dogs) didn't.",
    "".join(map(chr, range(32, 127))),
    *(letter * 60 + "!" for letter in "ax1 .\n雪é"),  # runs, on which an expression with two ways to match is slow
)
_fine: set[Hashable] = set()  # contents that came through


def try_tokenizer(content: Hashable, folder: Path, gguf: Path | None = None) -> None:
    """Let a child process use the tokenizer of a folder, or of a GGUF file; once for each ``content``. Unfit if it fails."""
    from phantomlib.errors import Unfit

    if content in _fine:
        return
    seconds = SECONDS * (6 if gguf else 1)
    command = [sys.executable, "-P", __file__, str(folder), str(gguf or ""), str(seconds)]
    reason = f"more than {seconds} seconds or {MEMORY >> 30} GiB, or an abort"
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=10 * seconds)
        if done.returncode == 0:
            _fine.add(content)
            return
        if done.returncode > 0 and (told := done.stderr.strip().splitlines()):
            reason = told[-1][:200]
    said = f"could not be loaded: its tokenizer fails in a trial ({reason})"
    raise Unfit(f"{said}. Save it again with save_pretrained, or take it from its publisher.")


def _use(folder: str, gguf: str, seconds: int) -> None:
    """What the child does."""
    from transformers import AutoTokenizer

    with contextlib.suppress(ImportError):  # Windows: only the parent's clock limits it
        import resource

        end = int(time.process_time()) + 1 + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (end, end))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    options = {"gguf_file": gguf} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
    for text in TEXTS:
        with contextlib.suppress(Exception):  # no piece for what is unknown; an abort is no Exception
            tokenizer.decode(tokenizer(text)["input_ids"])


if __name__ == "__main__":
    _use(sys.argv[1], sys.argv[2], int(sys.argv[3]))
