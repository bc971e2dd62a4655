"""What notebooks measured for the claims, on disk, each bound to the notebook, parameters, code and runs it came from.

A measurement counts only for the same notebook with the same parameters, so an experiment of one's own never touches that
of another profile. All that one run of a notebook recorded is one file. It is emptied as the notebook starts, and filled
once its last cell has run: what fails, is killed or no longer records leaves nothing behind.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter

import phantomlib
from phantombook import stale
from phantombook.parameters import named_files
from phantomlib import files
from phantomlib.errors import StoreError

WAITING = "measurements.json"  # in the folder of a run: what is recorded once the notebook has run through


@dataclass
class Experiment:
    """A notebook with all its parameters: what a measurement is made by."""

    notebook: Path  # the py:percent file, in the folder ``notebooks`` of its project
    parameters: Mapping  # by name, in plain JSON types; ``store`` does not count

    @cached_property
    def key(self) -> str:
        """Hash of the notebook's code and of what it reaches, as it first was; empty if they cannot be read."""
        try:
            return stale.key(self.notebook)
        except (OSError, SyntaxError, ValueError):
            return ""

    @property
    def description(self) -> dict:
        """Everything that distinguishes this from others but the code, in plain JSON types; files count by content."""
        kept = {name: value for name, value in self.parameters.items() if name != "store"}
        found = named_files(kept, self.notebook.parent.parent)
        content = {text: files.file_digest(path) for text, path in found.items() if path.is_file()}
        return json.loads(json.dumps({"notebook": self.notebook.stem, "parameters": kept, "files": content}))

    def file(self, store: "phantomlib.Store") -> Path:
        """Where its measurements are."""
        name = f"{self.notebook.stem}-{files.digest(self.description)[:12]}.json"
        return store.root.resolve() / "measurements" / name


@dataclass(frozen=True)
class Measurement:
    """What was measured for a claim."""

    values: dict[str, float]  #: by criterion
    interval: tuple[float, ...] | None  #: uncertainty of the first
    n: dict[str, int]  #: sample sizes by kind
    runs: tuple[str, ...]  #: ids
    detail: dict


@dataclass
class Record:
    """What one run of a notebook measured."""

    run: str  #: a mark of this run; that of the last one that was started counts
    complete: bool  #: whether the notebook ran through
    experiment: dict  #: see :attr:`Experiment.description`
    key: str  #: of the code that recorded it
    measurements: dict[str, Measurement]  #: by CLAIM-OPTIMISER


class Recording:
    """What a running notebook measures, kept aside until :func:`complete` lets it count."""

    def __init__(self, store: "phantomlib.Store", experiment: Experiment, scratch: Path):
        """Drop what an experiment recorded before: from now on nothing counts until the new record is complete.

        Raises:
            StoreError: the file cannot be written.
        """
        self.record = Record(secrets.token_hex(8), False, experiment.description, experiment.key, {})
        self.file, self.waiting = experiment.file(store), scratch / WAITING
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.file.with_suffix(".lock")):
                files.write_json(self.file, asdict(self.record))
        except OSError as error:
            problem = f"Measurements cannot be kept in '{self.file.parent}' ({error.strerror or error})"
            raise StoreError(f"{problem}. Free some space, or give another folder as the parameter 'store'.") from error
        self._write()  # a notebook that measures nothing runs through as well

    def add(self, claim: str, optimizer: str, measurement: Measurement) -> None:
        self.record.measurements[f"{claim}-{optimizer}"] = measurement
        self._write()

    def _write(self) -> None:
        content = json.loads(json.dumps(asdict(self.record), default=float))
        files.write_json(self.waiting, {"file": str(self.file), "record": content})


def complete(scratch: Path) -> None:
    """Let the measurements of a notebook count that ran through, unless it was started again since; or OSError."""
    if not (scratch / WAITING).exists():
        return
    waiting = files.read_json(scratch / WAITING)
    path, record = Path(waiting["file"]), waiting["record"]
    with FileLock(path.with_suffix(".lock")):
        if files.read_json(path)["run"] == record["run"]:
            files.write_json(path, record | {"complete": True})


def read_record(store: "phantomlib.Store", experiment: Experiment) -> Record | None:
    """What the last run of an experiment measured, or None if there was none.

    Raises:
        ValueError: the run did not come to its end, or the file is damaged or made of something else than its name says.
    """
    try:
        record = TypeAdapter(Record).validate_json(json.dumps(files.read_json(experiment.file(store))), strict=True)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"its measurement cannot be read ({error.strerror})") from None
    except ValueError:
        raise ValueError("its measurement is damaged, or of another version") from None
    if record.experiment != experiment.description:
        raise ValueError("its measurement was made of something else")
    if not record.complete:
        raise ValueError("its notebook was started and has not run through")
    return record
