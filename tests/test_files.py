"""Files are whole or absent, and JSON with a flipped bit is not read."""

import json
import os
import random
from pathlib import Path

import pytest
from refused import flipped

from phantomlib import files

CONTENT = {"value": 0.1234567890123, "n": {"contexts": 10, "architectures": 5}, "runs": ["0a1b2c3d4e5f"], "none": None}


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, CONTENT)
    assert files.read_json(path) == CONTENT and [p.name for p in tmp_path.iterdir()] == ["a.json"]
    files.write_json(path, {10: (1, 2), 9: float("inf")})
    assert files.read_json(path) == {"10": [1, 2], "9": float("inf")}  # what JSON has


def test_digest_is_the_content_not_the_order():
    assert files.digest({"a": 1, "b": [2.5]}) == files.digest({"b": [2.5], "a": 1})
    assert len({files.digest(x) for x in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": [1]}, ["a", 1])}) == 5


def test_no_damage_changes_what_is_read(tmp_path):
    path, choose = tmp_path / "a.json", random.Random(0)
    files.write_json(path, CONTENT)
    whole = path.read_bytes()
    refused, flips = 0, choose.sample(range(8 * len(whole)), 500)
    for bit in flips:
        path.write_bytes(flipped(whole, bit))
        try:
            assert files.read_json(path) == CONTENT  # a blank more or less
        except ValueError:
            refused += 1
    assert refused > 0.9 * len(flips)
    for length in choose.sample(range(len(whole.rstrip())), 50):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            files.read_json(path)


DIGEST = files.digest(CONTENT)
OTHERS = (
    *(CONTENT, {"content": CONTENT}, {"checksum": files.digest([1]), "content": [1]}),
    *({"checksum": None, "content": CONTENT}, {"checksum": DIGEST, "content": CONTENT, "more": 1}),
)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "3", '"text"', "[" * 100_000, *map(json.dumps, OTHERS)], ids=len
)
def test_other_shapes_are_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="a.json"):
        files.read_json(path)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_or_a_file_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError):
        files.write_json(tmp_path / "none" / "a.json", CONTENT)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("kind", ["pipe", "device", "/proc", "link", "folder"])
def test_what_may_never_end_is_not_read(tmp_path, kind):
    path = tmp_path / "a.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path = {"device": Path("/dev/zero"), "/proc": Path("/proc/self/maps"), "folder": tmp_path}[kind]
    for read in (files.read_json, files.file_digest, files.check_regular):
        with pytest.raises(OSError, match="not a regular file"):
            read(path)
