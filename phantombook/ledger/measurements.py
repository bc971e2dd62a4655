"""What notebooks measured for the claims, on disk, each bound to the notebook, parameters, code and runs it came from.

A measurement counts only for the same notebook with the same parameters, so an experiment of one's own never touches that
of another profile. It holds the key of the code that made it (:mod:`phantombook.stale`), the ids of the runs
behind it and a checksum. A notebook that starts again first drops what it recorded before: what fails or no longer
records leaves nothing behind.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock

from phantombook import stale
from phantomlib import files
from phantomlib.contexts import Context
from phantomlib.errors import StoreError
from phantomlib.runs.store import Store


@dataclass
class Source:
    """A notebook with all its parameters: what a measurement is made by.

    Attributes:
        notebook: the py:percent file.
        parameters: every parameter by name, in plain JSON types; ``store`` does not count.
        contexts: those that the parameter of this name stands for.
        key: hash of the notebook's code and of what it reaches, when this was made; empty if they cannot be read.
    """

    notebook: Path
    parameters: Mapping
    contexts: Sequence[Context] = ()
    key: str = field(init=False)

    def __post_init__(self):
        try:
            self.key = stale.key(self.notebook)
        except (OSError, SyntaxError, ValueError):
            self.key = ""

    @property
    def description(self) -> dict:
        """Everything that distinguishes this source from others but the code, in plain JSON types."""
        kept = {name: value for name, value in self.parameters.items() if name != "store"}
        whole = {"notebook": self.notebook.stem, "parameters": kept, "contexts": [asdict(c) for c in self.contexts]}
        return json.loads(json.dumps(whole))

    def folder(self, store: Store) -> Path:
        """Where measurements of this source are."""
        return store.root / "measurements" / f"{self.notebook.stem}-{files.digest(self.description)[:12]}"


@dataclass(frozen=True)
class Measurement:
    """One recorded measurement.

    Attributes:
        values: by criterion.
        interval: uncertainty of the first criterion, or None.
        n: sample sizes by kind.
        runs: ids of all runs behind it.
        detail: anything else worth keeping.
        key: of the code that recorded it.
    """

    values: dict[str, float]
    interval: tuple[float, ...] | None
    n: dict[str, int]
    runs: tuple[str, ...]
    detail: dict
    key: str


def write_measurement(store: Store, source: Source, claim: str, optimizer: str, measurement: Measurement) -> None:
    """Keep a measurement; a later one of the same source, claim and optimiser replaces it.

    Raises:
        StoreError: it cannot be saved.
    """
    about = {"claim": claim, "optimizer": optimizer, "source": source.description}
    content = json.loads(json.dumps(about | asdict(measurement), default=float))
    path = _path(store, source, claim, optimizer)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            files.write_json(path, content)
    except OSError as error:
        raise StoreError(
            f"The measurement of {claim} could not be saved ({error}). Free some space or choose another folder with "
            "the parameter 'store', and start again: finished runs are kept."
        ) from error


def read_measurement(store: Store, source: Source, claim: str, optimizer: str) -> Measurement | None:
    """What was recorded, or None if nothing was.

    Raises:
        ValueError: the file is damaged, or was made of something else than its name says.
    """
    path = _path(store, source, claim, optimizer)
    try:
        content = files.read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"its measurement cannot be read ({error.strerror})") from None
    except ValueError:
        raise ValueError("its measurement is damaged") from None
    about = {"claim": claim, "optimizer": optimizer, "source": source.description}
    if files.digest(about) != files.digest({name: content.get(name) for name in about}):
        raise ValueError("its measurement was made of something else")
    try:
        interval = content["interval"]
        return Measurement(
            values={_text(name): float(value) for name, value in content["values"].items()},
            interval=None if interval is None else tuple(map(float, interval)),
            n={_text(kind): _count(number) for kind, number in content["n"].items()},
            runs=tuple(map(_text, content["runs"])),
            detail=dict(content["detail"]),
            key=_text(content["key"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError("its measurement has another shape than this version writes") from None


def forget_measurements(store: Store, source: Source) -> None:
    """Drop what this source recorded before.

    Raises:
        StoreError: it cannot be dropped.
    """
    try:
        for path in source.folder(store).glob("*.json"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"Earlier measurements in '{store.root}' cannot be dropped ({error.strerror}).") from error


def _path(store: Store, source: Source, claim: str, optimizer: str) -> Path:
    return source.folder(store) / f"{claim}-{optimizer}.json"


def _text(value) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _count(value) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value
