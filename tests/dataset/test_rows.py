"""Rows of a data set: every form and kind of file, what the loss sees of them, and bad rows named."""

import csv
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phantomlib.dataset.rows import read_records, tokenise
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import load

PAIRS = [
    {"prompt": "After the lie, Anna felt a deep sense of", "completion": " shame"},
    {"prompt": "The house had a very", "completion": " large garden"},
]
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} . {% endfor %}{% if add_generation_prompt %}assistant {% endif %}"


@pytest.fixture(scope="module")
def tokenizer():
    return load("zoo:gpt2-s").tokenizer


def saved(folder, kind, records):
    """The records in a file of this kind."""
    path = folder / f"data.{kind}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif kind == "csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:  # as datasets.save_to_disk lays it out
        path.mkdir()
        (path / "state.json").write_text("{}")
        table = pa.Table.from_pylist(records)
        with pa.ipc.new_stream(str(path / "data-00000-of-00001.arrow"), table.schema) as stream:
            stream.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, tokenizer, kind):
    rows, problems = tokenise(read_records(saved(tmp_path, kind, PAIRS)), tokenizer)
    assert problems == [] and [row.number for row in rows] == [1, 2]
    for row, pair in zip(rows, PAIRS, strict=True):
        assert tokenizer.decode(row.ids) == pair["prompt"] + pair["completion"]
        assert tokenizer.decode([row.ids[t] for t in row.targets]) == pair["completion"]


def test_of_a_conversation_only_the_assistant_is_learnt(tokenizer):
    chat = load("zoo:gpt2-s").tokenizer
    chat.chat_template = TEMPLATE
    messages = [
        {"role": "user", "content": "Anna felt shame"},
        {"role": "assistant", "content": "Anna felt guilt"},
        {"role": "user", "content": "the house"},
        {"role": "assistant", "content": "a large garden"},
    ]
    [row], _ = tokenise([(1, {"messages": messages})], chat)
    learnt = chat.decode([row.ids[t] for t in row.targets])
    assert "guilt" in learnt and "garden" in learnt and "shame" not in learnt and "house" not in learnt
    with pytest.raises(ParameterError, match="no chat template"):
        tokenise([(1, {"messages": messages})], tokenizer)


def test_text_is_learnt_from_its_second_token_on_and_fields_have_other_names(tokenizer):
    [row], _ = tokenise([(1, {"text": "Anna felt a deep sense of shame"})], tokenizer)
    assert row.targets == tuple(range(1, len(row.ids)))
    records = [(1, {"q": "Anna felt", "a": " shame"}), (2, {"q": "Anna felt", "a": " guilt"})]
    [row], _ = tokenise(records, tokenizer, fields=("q", "a"), limit=1)
    assert tokenizer.decode([row.ids[t] for t in row.targets]) == " shame"


def test_a_bad_row_is_named_and_the_others_stay(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    good = json.dumps(PAIRS[0]).encode()
    bad = b"""{\n"text"\n{"text": NaN}\n{"text": 3}\n{"prompt": "a"}\n{"text": ""}\n\xff\xfe\n{"text": "Anna"}""".split(
        b"\n"
    )
    path.write_bytes(b"\n".join([good, *bad, good]))
    rows, problems = tokenise(read_records(path), tokenizer)
    assert [row.number for row in rows] == [1, len(bad) + 2]
    assert [int(problem.split()[1]) for problem in problems] == list(range(2, len(bad) + 2))
    [problem] = tokenise([(1, PAIRS[0]), (2, {"text": "Anna felt " * 50})], tokenizer, positions=64)[1]
    assert "no more than 64" in problem


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("none.jsonl", None, "no data set"),
        ("data.txt", b"Anna", "no data set"),
        ("empty.jsonl", b"", "It is empty"),
        ("only-bad.jsonl", b"[1]\n", "not a JSON object"),
        ("broken.parquet", b"PAR1 and no more", "cannot be read"),
        ("huge.jsonl", b'{"' + b"x" * 200_000 + b'": 1}', "not prompt and completion"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path, tokenizer, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ParameterError, match=words) as caught:
        tokenise(read_records(tmp_path / name), tokenizer)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("special", ["pipe", "proc"])
def test_a_file_that_never_ends_is_not_read(tmp_path, special):
    (tmp_path / "state.json").write_text("{}")
    if special == "pipe":
        os.mkfifo(tmp_path / "data.arrow")
    else:
        (tmp_path / "data.arrow").symlink_to("/proc/self/maps")
    (tmp_path / "rows.csv").symlink_to("/proc/self/maps")
    for source in (tmp_path, tmp_path / "rows.csv"):
        with pytest.raises(ParameterError, match="cannot be read.*not a regular file"):
            list(read_records(source))
