"""Run files and their index: what damages, strangers' files, locks and numbers do to whoever reads."""

import fcntl
import multiprocessing
import os
import random
import resource
import shutil
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import tiny
from refused import flipped

from phantomlib.engine.recipe import Recipe
from phantomlib.errors import StoreError
from phantomlib.runs import run_file
from phantomlib.runs.run_file import INDEX, Index
from phantomlib.runs.store import Store

PUBLISHED = Path(__file__).parents[2] / "results"
LOOPING = "smollm2-135m-lora-adam-24c94c989469.nc", 8 * 4594 + 5  # file, bit


def damages(whole, flips, truncations, zeroed):
    draw = random.Random(0)
    yield from (b"", b"not a netCDF file " * 999)
    for _ in range(flips):
        yield flipped(whole, 8 * draw.randrange(len(whole)) + draw.randrange(8))
    for _ in range(truncations):
        yield whole[: draw.randrange(len(whole))]
    for _ in range(zeroed):
        start = draw.choice([n for n in range(0, len(whole), 512) if any(whole[n : n + 512])])
        yield whole[:start] + bytes(512) + whole[start + 512 :]


def tell(folder, identifier, told):
    store = Store(folder)
    if not store.holds(identifier):
        with (
            pytest.raises(StoreError, match="No run"),
            pytest.warns(UserWarning, match="damaged.* and has to be computed again"),
        ):
            store.open(identifier)
        told.set()


@pytest.mark.parametrize(
    "counts", [(20, 6, 6), pytest.param((500, 200, 200), marks=pytest.mark.long)], ids=["sample", "all"]
)
def test_every_damage_is_told_by_a_fresh_process_in_time(stored, counts):
    path, run = stored
    fork = multiprocessing.get_context("fork")
    for damaged in damages(path.read_bytes(), *counts):
        path.write_bytes(damaged)
        told = fork.Event()
        process = fork.Process(target=tell, args=(path.parent, run.attrs["run_id"], told))
        process.start()
        process.join(5)
        process.kill()
        assert told.is_set() and not path.exists()


def test_a_file_that_makes_the_reader_loop_is_damaged_although_nothing_is_known_of_it(tmp_path, monkeypatch):
    """This bit of this published run makes HDF5 loop for ever when the file is opened."""
    monkeypatch.setattr(run_file, "CPU_LIMIT", 2)
    name, bit = LOOPING
    (tmp_path / name).write_bytes(flipped((PUBLISHED / name).read_bytes(), bit))
    whole = tmp_path / next(p.name for p in sorted(PUBLISHED.glob("*.nc")) if p.name != name)
    shutil.copy(PUBLISHED / whole.name, whole)
    store = Store(tmp_path)
    assert list(store.runs()) == [whole]
    assert not store.holds(name[-15:-3]) and store.holds(whole.stem[-12:])


def test_one_flipped_bit_in_any_variable_of_an_unknown_file_is_noticed(stored):
    path, run = stored
    data = path.read_bytes()
    for n, name in enumerate(names := ["phi", "rank_correct", "learning_rate", "step", "diverged_step"]):
        values = np.ascontiguousarray(run[name].values).tobytes()  # as they stand in the file, which is not compressed
        (folder := path.parent / str(n)).mkdir()
        (folder / path.name).write_bytes(flipped(data, 8 * data.index(values)))
    paths = [path.parent / str(n) / path.name for n in range(len(names))]
    assert run_file.look_into([*paths, path]) == dict.fromkeys(paths) | {path: Store(path.parent).runs()[path]}


def test_a_run_of_an_earlier_store_is_known_from_the_first_look_on(stored, monkeypatch):
    path, run = stored
    known = Store(path.parent).runs()
    (path.parent / INDEX).unlink()
    assert Store(path.parent).runs() == known
    monkeypatch.setattr(run_file, "look_into", None)
    assert Store(path.parent).open(run.attrs["run_id"]).identical(run)


@pytest.mark.parametrize("damage", ["cut short", "one bit", "another line between", "gone"])
def test_a_damaged_index_costs_another_look_and_nothing_else(stored, damage):
    path, run = stored
    index = path.parent / INDEX
    text = index.read_bytes()
    damaged = {
        "cut short": text[: len(text) // 2],
        "one bit": flipped(text, 8 * (text.index(b"sha256") + 12)),
        "another line between": text[:200] + b"\n[1, 2]\n" + text[200:],
        "gone": b"",
    }
    index.write_bytes(damaged[damage])
    assert Store(path.parent).open(run.attrs["run_id"]).identical(run)
    assert Index(path.parent).entries().keys() == {path}


def test_a_second_store_sees_what_the_first_one_adds(tmp_path):
    model = tiny.model("GPT2", "float32")
    one, other = Store(tmp_path), Store(tmp_path)
    assert other.runs() == {}
    for rate in (0.01, 0.02):
        run = one.run(model, tiny.contexts(model), [rate], Recipe(steps=1))
        assert other.holds(run.attrs["run_id"])
    assert len(other.runs()) == 2 and {known["model"] for known in other.runs().values()} == {model.fingerprint}
    next(tmp_path.glob("*.nc")).unlink()
    assert len(other.runs()) == 1


@contextmanager
def written_by_another(path):
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 does while it writes
        yield


@contextmanager
def without_descriptors(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # the kernel itself refuses to open anything
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def without_permission(path):
    with patch.object(run_file, "open", side_effect=PermissionError(13, "Permission denied"), create=True):
        yield  # root may read everything


@contextmanager
def as_a_pipe(path):
    path.rename(whole := path.with_suffix(".aside"))
    os.mkfifo(path)
    yield
    whole.replace(path)


TROUBLES = {
    "temporarily unavailable": written_by_another,
    "Too many open files": without_descriptors,
    "Permission denied": without_permission,
    "not a regular file": as_a_pipe,
}


@pytest.mark.parametrize("reason", TROUBLES)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_read_for_now_is_not_damaged(stored, monkeypatch, reason):
    path, run = stored
    monkeypatch.setattr(run_file, "PATIENCE", 0.2)
    with TROUBLES[reason](path):
        began = time.monotonic()
        with pytest.raises(StoreError, match=f"{reason}.*left as it is"):
            run_file.read_patiently(path)
        assert time.monotonic() - began < 2
    assert Store(path.parent).open(run.attrs["run_id"]).identical(run)


def test_a_lock_that_is_given_back_soon_is_waited_for(stored):
    path, run = stored
    other = written_by_another(path)
    other.__enter__()
    with patch.object(run_file.time, "sleep", side_effect=lambda _: other.__exit__(None, None, None)) as waited:
        assert Store(path.parent).open(run.attrs["run_id"]).identical(run) and waited.call_count == 1


def test_a_file_system_without_locks_is_read_all_the_same(stored):
    with patch.object(run_file.fcntl, "flock", side_effect=OSError(run_file.ENOLCK, "No locks available")):
        assert Index(stored[0].parent).read(stored[0]) == stored[0].read_bytes()


def test_twenty_thousand_runs_are_looked_through_in_seconds(stored):
    path, run = stored
    content, attributes = path.read_bytes(), run.attrs
    (path.parent / INDEX).unlink()
    identifiers = [f"{n:012x}" for n in range(20_000)]
    index = Index(path.parent)
    names = [f"tiny-full-adam-{identifier}.nc" for identifier in identifiers]
    for name in names:
        os.link(path, path.with_name(name))
    index.append([run_file.describe_run(name, content, attributes) for name in names])
    path.unlink()
    began, store = time.process_time(), Store(path.parent)
    assert all(map(store.holds, identifiers[::10]))
    model = tiny.model("GPT2", "float32").fingerprint
    assert sum(known["model"] == model for known in store.runs().values()) == 20_000
    assert time.process_time() - began < 10
