"""Files that are whole or absent, and JSON that notices when it was damaged."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def check_regular(path: Path) -> None:
    """Raise OSError for a pipe, a device, or a file of /proc or /sys: to read one may never end."""
    if os.path.realpath(path).startswith(("/proc/", "/sys/")) or not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, whose name it takes when the block ends; if that raises, all stays as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) that is complete once it has its name."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is complete once it has its name."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def digest(content) -> str:
    """SHA-256 of plain JSON types, whatever the order of keys: 64 hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits; OSError if it cannot be read."""
    check_regular(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: dict) -> None:
    """Write plain JSON types with their checksum, to be read by :func:`read_json`."""
    content = json.loads(json.dumps(content))  # what will be read: keys are text, tuples are lists
    write_text(path, json.dumps({"checksum": digest(content), "content": content}, indent=1) + "\n")


def read_json(path: Path) -> dict:
    """The content of a file of :func:`write_json`; OSError if it cannot be read, ValueError if it is damaged."""
    check_regular(path)
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        content = found["content"]
        if found == {"checksum": digest(content), "content": content} and isinstance(content, dict):
            return content
    raise ValueError(f"{path.name} is not what was written: its checksum does not fit")
