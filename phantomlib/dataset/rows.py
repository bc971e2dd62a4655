"""Rows of a data set as token ids, with the positions that the training loss sees.

A row is a mapping with ``prompt`` and ``completion`` (the loss sees the completion), with ``text`` (it sees every token but
the first), or with ``messages`` (through the tokenizer's chat template; it sees what the assistant says).
"""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from phantomlib.errors import ParameterError, PhantomError, shown
from phantomlib.files import check_regular

FORMS = (("prompt", "completion"), ("text",), ("messages",))
STATE = "state.json"  # lies in a folder that datasets.save_to_disk wrote


@dataclass(frozen=True)
class Row:
    """One text as a model reads it in training.

    Attributes:
        number: where it stands in the data, from 1; the line in a JSONL file.
        ids: its tokens (L,).
        targets: the positions, from 1 to L - 1, whose token the loss asks for; each is predicted from those before it.
    """

    number: int
    ids: tuple[int, ...]
    targets: tuple[int, ...]


class RowError(PhantomError):
    """One row of a data set cannot be used."""


Records = Iterator[Mapping | RowError]


def read_records(source: str | Path) -> Iterator[tuple[int, Mapping | RowError]]:
    """The records of a data file with their numbers, one by one, so that a large file is never whole in memory.

    Args:
        source: a ``.jsonl``, ``.csv`` or ``.parquet`` file, or a folder saved by ``datasets``.

    Yields:
        number and record; or number and what is wrong with it.

    Raises:
        ParameterError: there is no such file, or it is of another kind; later, if it cannot be read to its end.
    """
    path = Path(source)
    readers = {".jsonl": _jsonl, ".json": _jsonl, ".csv": _csv, ".parquet": _parquet}
    read = readers.get(path.suffix) if path.is_file() else _arrow if (path / STATE).is_file() else None
    if read is None:
        raise ParameterError(
            f"{shown(str(source), 300)} is no data set; give a .jsonl, .csv or .parquet file, or a folder that "
            "datasets.save_to_disk wrote."
        )
    return _numbered(path, read(path))


def _numbered(path: Path, records: Records) -> Iterator[tuple[int, Mapping | RowError]]:
    """The records of a file with their numbers; what its reader raises, in many kinds, is an error that names the file."""
    number = 0
    try:
        for file in path.glob("*.arrow") if path.is_dir() else [path]:
            check_regular(file)
        for number, record in enumerate(records, 1):
            yield number, record
    except Exception as error:
        after = f" after row {number}" if number else ""
        raise ParameterError(
            f"{shown(str(path), 300)} cannot be read{after} ({shown(str(error), 200)}). Mend it."
        ) from None


def _jsonl(path: Path) -> Records:
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line.decode("utf-8"))
                yield record if isinstance(record, dict) else RowError(f"it is {shown(record)}, not a JSON object")
            except UnicodeDecodeError as error:
                yield RowError(f"byte {error.start} is not UTF-8")
            except ValueError as error:
                yield RowError(f"it is not JSON ({error})")


def _csv(path: Path) -> Records:
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        yield from csv.DictReader(file)


def _parquet(path: Path) -> Records:
    import pyarrow.parquet as pq

    for batch in pq.ParquetFile(path).iter_batches():
        yield from batch.to_pylist()


def _arrow(folder: Path) -> Records:
    import pyarrow as pa

    for path in sorted(folder.glob("*.arrow")):
        with pa.memory_map(str(path)) as file:
            for batch in pa.ipc.open_stream(file):
                yield from batch.to_pylist()


def tokenise(
    records: Iterable[tuple[int, Mapping | RowError]],
    tokenizer,
    *,
    fields: tuple[str, ...] = (),
    positions: float = float("inf"),
    limit: int | None = None,
) -> tuple[list[Row], list[str]]:
    """Rows as token ids; and for each record left out a sentence that says why. ParameterError if none can be used.

    Args:
        records: numbers and records, as from :func:`read_records`.
        tokenizer: the model's.
        fields: names of the fields in place of ``prompt`` and ``completion``, or of ``text``, or of ``messages``.
        positions: longest row that the model reads, in tokens.
        limit: take this many records at most.
    """
    rows, problems = [], []
    for number, record in itertools.islice(records, limit):
        try:
            if isinstance(record, RowError):
                raise record
            ids, targets = _encode(record, tokenizer, fields)
            if len(ids) > positions:
                raise RowError(f"it has {len(ids)} tokens, and the model reads no more than {positions:g}; shorten it")
            if not targets:
                raise RowError("it has no token that the loss would see")
            rows.append(Row(number, tuple(ids), tuple(targets)))
        except RowError as error:
            problems.append(f"Row {number} is left out: {error}.")
    if not rows:
        said = " ".join(problems[:3]) or "It is empty."
        raise ParameterError(f"The data set has no row to train on. {said}")
    return rows, problems


def _encode(record: Mapping, tokenizer, fields: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Ids and target positions of one record."""
    form = fields or next((form for form in FORMS if set(form) <= set(record)), ())
    if not form or not set(form) <= set(record):
        wanted = " and ".join(fields) or "prompt and completion, text, or messages"
        raise RowError(f"it has the fields {shown(sorted(map(str, record)))}, not {wanted}")
    if len(form) == 1 and isinstance(record[form[0]], list):
        return _chat(record[form[0]], tokenizer)
    for name in form:
        text = record[name]
        if not isinstance(text, str) or not text or any("\ud800" <= letter <= "\udfff" for letter in text):
            raise RowError(f"{name} is {shown(text)}, not text in UTF-8")
    ids = list(tokenizer("".join(record[name] for name in form))["input_ids"])
    # the completion begins where the ids of the prompt alone end, or part from those of both
    start = len(os.path.commonprefix([ids, list(tokenizer(record[form[0]])["input_ids"])])) if len(form) > 1 else 1
    return ids, list(range(max(start, 1), len(ids)))


def _chat(messages: list, tokenizer) -> tuple[list[int], list[int]]:
    """Ids of a conversation through the chat template; targets are the tokens of the assistant's turns."""
    write = partial(tokenizer.apply_chat_template, tokenize=False)
    if not getattr(tokenizer, "chat_template", None):
        raise RowError("it holds messages, and the tokenizer has no chat template")
    try:
        text = write(messages)
        spans = []  # of characters
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                before, through = write(messages[:turn], add_generation_prompt=True), write(messages[: turn + 1])
                if not text.startswith(through) or not through.startswith(before):
                    raise RowError("the chat template writes a turn otherwise once another follows; give text instead")
                spans.append((len(before), len(through)))
    except RowError:
        raise
    except Exception as error:  # a template raises whatever its author chose
        raise RowError(f"the chat template refuses it ({shown(str(error), 200)})") from None
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    targets = [
        position
        for position, (start, end) in enumerate(encoded["offset_mapping"])
        if position and any(low <= start and end <= high and start < end for low, high in spans)
    ]
    return list(encoded["input_ids"]), targets
