"""Run files: ordinary netCDF, and beside them an index that knows the SHA-256 of each.

HDF5 may loop for ever on a file with one flipped bit. So a file's bytes are compared with the index before they are read.
A file that the index does not know is read once in a process of its own, within a limit of CPU time, and known from then
on. The index holds nothing that could not be found out again: a damaged line is passed over.
"""

import hashlib
import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from errno import EINVAL, ENOLCK, ENOSYS, ENOTSUP
from pathlib import Path
from typing import Any

import xarray as xr

from phantomlib import files
from phantomlib.errors import StoreError

try:
    import fcntl
    import resource
except ImportError:  # Windows has neither
    fcntl = resource = None  # type: ignore[assignment]

INDEX = "runs.index"  # one line for each run that was written or looked into
PATIENCE = 2.0  # seconds to wait for a file that cannot be read
CPU_LIMIT = 10  # seconds to read one unknown file; they are read in some 10 ms
SETTLED = 10**9  # ns after which a folder's time tells every change: file systems round it
WITHOUT_LOCKS = (ENOLCK, ENOTSUP, ENOSYS, EINVAL)  # a file system that has none
FATAL = {-getattr(signal, name, 0) for name in ("SIGXCPU", "SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE")}


class Index:
    """What is known of the run files of a folder."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / INDEX
        self._known: dict[str, dict] = {}  # by name; of a file written twice, the last entry
        self._sums: set[tuple[str, str]] = set()  # names with every SHA-256 that they were given
        self._whole: dict[tuple, bool] = {}  # whether files that were looked into, at a time and size, are whole
        self._taken = 0  # bytes of the index that were read
        self._listing: dict[str, list[Path]] = {}
        self._listed = 0  # the folder's time then, ns

    def listing(self) -> dict[str, list[Path]]:
        """The run files that are there, by run id."""
        changed = self.folder.stat().st_mtime_ns
        if changed != self._listed or time.time_ns() - changed < SETTLED:
            self._listing, self._listed = {}, changed
            for path in sorted(self.folder.glob("*.nc")):
                self._listing.setdefault(path.stem.rpartition("-")[2], []).append(path)
        return self._listing

    def entries(self) -> dict[Path, dict]:
        """What is known of every run that is there, as :func:`describe_run` gives it; damaged files are left out."""
        self._take_in()
        paths = [path for same_id in self.listing().values() for path in same_id]
        states = {path: _state(path) for path in paths if path.name not in self._known and path.is_file()}
        if unknown := [path for path, state in states.items() if state not in self._whole]:
            found = look_into(unknown)
            self._whole |= {states[path]: found[path] is not None for path in unknown}
            self._know(whole := [entry for entry in found.values() if entry is not None])
            with suppress(OSError):  # the next process looks again
                self.append(whole)
        return {path: self._known[path.name] for path in paths if path.name in self._known}

    def read(self, path: Path) -> bytes | None:
        """A run file's bytes, or None if they are not what was written; errors as of :func:`read_patiently`."""
        content = read_patiently(path)
        self._take_in()
        if path.name not in self._known:
            self.entries()  # one process looks into all that are unknown
        return content if (path.name, hashlib.sha256(content).hexdigest()) in self._sums else None

    def holds(self, path: Path) -> bool:
        """Whether a file is what was written; it is read once for as long as it stays."""
        state = _state(path)
        self._whole[state] = self._whole.get(state) or self.read(path) is not None
        return self._whole[state]

    def append(self, entries: list[dict]) -> None:
        """Note runs, those to be written before they are; OSError if that fails."""
        lines = [f"{json.dumps([files.digest(entry), entry])}\n" for entry in entries]
        with open(self.path, "ab") as file:
            file.write("\n".join(["", *lines]).encode())  # an empty line first: it ends what was cut short

    def _take_in(self) -> None:
        """Read what was appended since, up to the last whole line."""
        with suppress(FileNotFoundError), open(self.path, "rb") as file:
            if file.seek(0, 2) < self._taken:  # another index took its place
                self._known, self._sums, self._taken = {}, set(), 0
            file.seek(self._taken)
            *lines, rest = file.read().split(b"\n")
            self._taken = file.tell() - len(rest)
            for line in filter(None, lines):
                with suppress(ValueError, TypeError):
                    digest, entry = json.loads(line)
                    if digest == files.digest(entry):
                        self._know([entry])

    def _know(self, entries: list[dict]) -> None:
        self._known |= {entry["file"]: entry for entry in entries}
        self._sums |= {(entry["file"], entry["sha256"]) for entry in entries}


def _state(path: Path) -> tuple[Path, int, int]:
    status = path.stat()
    return path, status.st_mtime_ns, status.st_size


def read_patiently(path: Path) -> bytes:
    """A file's bytes, once they can be read and nobody is writing them; StoreError if that takes more than two seconds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            files.check_regular(path)
            with open(path, "rb") as file:
                _share(file)
                return file.read()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno == EINVAL or time.monotonic() > until:  # no regular file will become one
                said = "It is left as it is; try again once no other process uses it and you may read it."
                raise StoreError(f"'{path}' cannot be read at present ({error.strerror or error}). {said}") from None
            time.sleep(0.05)


def _share(file) -> None:
    """Raise OSError if another process writes the file: HDF5 locks what it writes, where there are locks."""
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise


def run_id(specification: dict) -> str:
    """Twelve hex digits of the SHA-256 of a specification."""
    return files.digest(specification)[:12]


def decode(content: bytes) -> xr.Dataset:
    """The run in a file's bytes, which are known to be whole."""
    return xr.load_dataset(content, engine="netcdf4")


def describe_run(name: str, content: bytes, attributes: dict) -> dict:
    """The entry of a run in the index."""
    made = json.loads(attributes["specification"])
    return {
        "file": name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "model": made["model"],  # fingerprint
        "weights_key": attributes.get("weights_key", ""),  # SHA-256 of the weights' values
        "recipe": made["recipe"],
        "prediction": attributes.get("prediction", ""),  # checksum of the one that it was made after
        "seconds": float(attributes["seconds"]),
        "peak_memory_bytes": float(attributes["peak_memory_bytes"]),
    }


def look_into(paths: list[Path]) -> dict[Path, dict | None]:
    """The entries of files that nothing is known of, and None for damaged ones; one process reads them all."""
    found: dict[Path, dict | None] = {}
    command, root = [sys.executable, "-m", __name__], Path(__file__).parents[2]
    while rest := [path for path in paths if path not in found]:
        named = json.dumps([str(path.absolute()) for path in rest])
        child = subprocess.run(command, input=named, cwd=root, capture_output=True, text=True)
        told = [json.loads(line) for line in child.stdout.splitlines()]
        found |= dict(zip(rest, told, strict=False))
        if child.returncode in FATAL and len(told) < len(rest):  # the reader looped or crashed on the next one
            found[rest[len(told)]] = None
        elif child.returncode:
            reason = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise StoreError(f"{len(rest)} run files in '{rest[0].parent}' could not be looked into ({reason[:300]}).")
    return found


def checksum(dataset: xr.Dataset) -> str:
    """SHA-256 of all names, values and attributes but ``checksum``; the same for a dataset and for its file."""
    digest = hashlib.sha256()
    parts: list[tuple[Any, Any]] = [("", dataset), *sorted(dataset.variables.items())]
    for name, variable in parts:
        attributes = {key: value for key, value in variable.attrs.items() if key != "checksum"}
        label = [name, *map(str, variable.dims), attributes]
        digest.update(json.dumps(label, sort_keys=True, default=lambda number: number.item()).encode())
        if name:
            text = variable.dtype.kind not in "biuf"
            digest.update(json.dumps(variable.values.tolist()).encode() if text else variable.values.tobytes())
    return digest.hexdigest()


def _entry(path: Path) -> dict | None:
    content = read_patiently(path)
    try:
        dataset = decode(content)
        named = path.stem.rpartition("-")[2] == dataset.run_id == run_id(json.loads(dataset.specification))
        whole = dataset.attrs["checksum"] == checksum(dataset)
        return describe_run(path.name, content, dataset.attrs) if named and whole else None
    except MemoryError:
        raise
    except Exception:  # the reader raises many kinds for a damaged file
        return None


if __name__ == "__main__":  # the process of look_into: paths as JSON come in, the entry of each goes out in a line
    for name in json.load(sys.stdin):
        with suppress(AttributeError, ValueError):  # no such limit here, or a lower one already
            limits = (int(time.process_time()) + CPU_LIMIT, resource.getrlimit(resource.RLIMIT_CPU)[1])
            resource.setrlimit(resource.RLIMIT_CPU, limits)
        print(json.dumps(_entry(Path(name))), flush=True)
