"""The store: what is reused, what is computed again, and what is left behind when something goes wrong."""

import dataclasses
import errno
import json
import multiprocessing
import random
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
import xarray as xr

from phantomlib.contexts import Context
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, StoreError
from phantomlib.runs import store as store_module
from phantomlib.runs.run_file import checksum, run_id
from phantomlib.runs.store import Store, specification

RATES, RECIPE = [0.01, 0.03], Recipe(steps=3, snapshots=(0, 3))


def compute(folder, rates=RATES, recipe=RECIPE, *, model=None, **options):
    model = model or tiny.model("GPT2", "float32")
    return Store(folder).run(model, tiny.contexts(model), rates, recipe, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with one finished run, and that run; copy before use."""
    folder = tmp_path_factory.mktemp("store")
    return folder, compute(folder)


@pytest.fixture
def stored(finished, tmp_path):
    """(path, run) of a finished run in a store of one's own."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    [path] = tmp_path.glob("*.nc")
    return path, finished[1]


@pytest.fixture
def no_training(monkeypatch):
    monkeypatch.setattr(store_module, "finetune", lambda *_, **__: pytest.fail("computed again"))


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir() if path.suffix not in (".lock", ".index"))


def numbers(run):
    return run.drop_attrs(deep=False)


def test_a_run_comes_back_as_it_was(stored, no_training):
    path, run = stored
    assert compute(path.parent).identical(run)
    assert Store(path.parent).open(run.attrs["run_id"]).identical(run)
    assert Store(path.parent).has(run.attrs["run_id"]) and not Store(path.parent).has("0" * 12)
    assert files(path.parent) == [path.name]


def test_a_run_file_is_an_ordinary_dataset(stored):
    path, run = stored
    with xr.open_dataset(path) as opened:
        xr.testing.assert_identical(opened.load(), run)
    assert run.attrs["model"] == "tiny-GPT2" and run.attrs["n_parameters"] == 8272 and run.attrs["tied_readout"] == 1
    assert run.attrs["seconds"] > 0 and run.attrs["peak_memory_bytes"] > 1e6 and run.attrs["recipe_steps"] == 3
    assert {"commit", "versions", "device", "specification", "model_ref", "model_revision"} <= run.attrs.keys()


def changed_weights():
    model = tiny.model("GPT2", "float32")
    return dataclasses.replace(model, fingerprint="0" * 16)


BASE = {"model": tiny.model("GPT2", "float32"), "rates": np.array([[0.01, 0.03]] * 2), "recipe": RECIPE, "seeds": (0,)}
CHANGES = {
    "weights": {"model": changed_weights()},
    "dtype": {"model": tiny.model("GPT2", "float64")},
    "rates": {"rates": np.array([[0.01, 0.03], [0.01, 0.031]])},
    "order of the rates": {"rates": np.array([[0.03, 0.01]] * 2)},
    "seeds": {"seeds": (1,)},
    "number of seeds": {"seeds": (0, 1)},
} | {
    f"recipe's {name}": {"recipe": dataclasses.replace(Recipe(optimizer="adamw", steps=3), **{name: value})}
    for name, value in {
        "optimizer": "adam",
        "method": "lora",
        "steps": 4,
        "weight_decay": 0.1,
        "beta1": 0.8,
        "beta2": 0.9,
        "epsilon": 1e-6,
        "rank": 4,
        "alpha": 8.0,
        "exponent": 1,
        "geometry": "input",
        "snapshots": (1,),
        "loss": "margin",
    }.items()
}
CHANGES["recipe's weight"] = {"recipe": Recipe(optimizer="adamw", steps=3, loss="margin", weight=2.0)}
WORDS = {"id": "other", "prompt": "another prompt", "correct": "good", "competitor": "bad"}
TOKENS = {"prompt_ids": (0, 5), "correct_id": 1, "competitor_id": 2}


def identifier(contexts=None, **changes):
    parts = BASE | changes
    contexts = contexts or tiny.contexts(BASE["model"])
    return run_id(specification(parts["model"], contexts, parts["rates"], parts["recipe"], parts["seeds"]))


def test_every_ingredient_changes_the_key():
    plain = Recipe(optimizer="adamw", steps=3)
    first, second = tiny.contexts(BASE["model"])
    keys = [identifier(), identifier(recipe=plain), *(identifier(**change) for change in CHANGES.values())]
    keys += [identifier([second, first]), identifier([first])]
    for name, value in WORDS.items():
        words = Context(**(dataclasses.asdict(first.context) | {name: value}))
        keys.append(identifier([dataclasses.replace(first, context=words), second]))
    for name, value in TOKENS.items():
        keys.append(identifier([dataclasses.replace(first, **{name: value}), second]))
    assert len(set(keys)) == len(keys)
    assert {f.name for f in dataclasses.fields(Recipe)} == {key[9:] for key in CHANGES if key.startswith("recipe's ")}


def test_a_run_of_the_cross_entropy_keeps_the_name_it_had_before_there_was_a_choice_of_loss():
    spec = specification(BASE["model"], tiny.contexts(BASE["model"]), BASE["rates"], RECIPE, (0,))
    assert set(spec["recipe"]) == {
        "optimizer", "method", "steps", "weight_decay", "beta1", "beta2", "epsilon", "rank", "alpha", "exponent",
        "geometry", "snapshots",
    }  # fmt: skip


def test_equal_ingredients_give_equal_keys(monkeypatch):
    assert identifier() == identifier(rates=np.array(BASE["rates"].tolist()), recipe=Recipe(steps=3, snapshots=[0, 3]))
    before = identifier()
    monkeypatch.setattr(store_module, "ENGINE_VERSION", store_module.ENGINE_VERSION + 1)
    assert identifier() != before


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError, MemoryError, SystemExit])
def test_an_interrupted_run_leaves_nothing_and_the_next_one_is_whole(interruption, tmp_path, finished, monkeypatch):
    steps = []

    def interrupt(model, *arguments, progress, **options):
        def advance(n):
            steps.append(n)
            if len(steps) == 2:
                raise interruption

        return original(model, *arguments, progress=advance, **options)

    original = store_module.finetune
    with monkeypatch.context() as patch, pytest.raises(interruption):
        patch.setattr(store_module, "finetune", interrupt)
        compute(tmp_path)
    assert len(steps) == 2 and files(tmp_path) == []
    assert numbers(compute(tmp_path)).identical(numbers(finished[1]))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_interrupted_writing_leaves_nothing(interruption, tmp_path, monkeypatch):
    def interrupt(self, data):
        self.open("wb").write(data[:1000])
        raise interruption

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(interruption):
        compute(tmp_path)
    assert files(tmp_path) == []


DAMAGES = {
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "truncated in the middle": lambda data: data[: len(data) // 2],
    "last byte missing": lambda data: data[:-1],
    "garbage": lambda data: b"not a netCDF file " * 999,
    "zeros": lambda data: bytes(len(data)),
    "first byte": lambda data: bytes([data[0] ^ 0x10]) + data[1:],
}  # flipped bits: tests/runs/test_run_file.py


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_set_aside_and_computed_again(damage, stored, monkeypatch):
    path, run = stored
    damaged, identifier = damage(path.read_bytes()), run.attrs["run_id"]
    path.write_bytes(damaged)
    assert Store(path.parent).has(identifier) and not Store(path.parent).holds(identifier)
    monkeypatch.setattr(store_module, "finetune", lambda *_, **__: numbers(run).copy(deep=True))
    with pytest.warns(UserWarning, match="damaged"):
        again = compute(path.parent)
    [aside] = [p for p in path.parent.iterdir() if ".damaged-" in p.name]
    assert aside.read_bytes() == damaged and len(files(path.parent)) == 2
    xr.testing.assert_identical(numbers(again), numbers(run))
    assert again.attrs["run_id"] == identifier and checksum(again) == again.attrs["checksum"]
    assert Store(path.parent).holds(identifier)


def test_a_damaged_file_gives_the_same_numbers_again(stored):
    path, run = stored
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged; it was set aside as .* computed again"):
        again = compute(path.parent)
    assert numbers(again).identical(numbers(run))


def test_a_file_under_another_runs_name_is_not_taken_for_it(stored):
    path, run = stored
    model = tiny.model("GPT2", "float32")
    other = run_id(specification(model, tiny.contexts(model), np.array([[0.02]] * 2), RECIPE, (0,)))
    path.rename(path.with_name(path.name.replace(run.attrs["run_id"], other)))
    with pytest.warns(UserWarning, match="damaged"):
        assert compute(path.parent, [0.02]).sizes["rate"] == 1


def test_what_is_remembered(tmp_path, monkeypatch):
    store, model, computed = Store(tmp_path), tiny.model("GPT2", "float32"), []

    def remember(key=1, **options):
        compute = lambda: computed.append(1) or {"answer": len(computed)}  # noqa: E731
        return store.remember("kind", [key], model, tiny.contexts(model), RECIPE, compute, **options)["answer"]

    assert [remember(), remember()] == [1, 1]
    assert remember(key=2) == 2
    assert remember(holds=lambda found: False) == 3 and remember() == 3
    for path in (tmp_path / "kind").glob("*.json"):
        path.write_text(path.read_text()[:-5])
    with pytest.warns(UserWarning, match="damaged; it was set aside"):
        assert remember() == 4
    assert remember() == 4

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "replace", full)
    with pytest.raises(StoreError, match="could not be saved .*Free some space"):
        remember(key=3)
    assert not list((tmp_path / "kind").glob("*.tmp"))

    (tmp_path / "other").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="could not be saved"):
        store.remember("other", [], model, tiny.contexts(model), RECIPE, dict)


KEPT = {"answer": 0.1234567, "runs": "0123456789ab", "list": [1, 2.5, float("nan")]}


def keep(store, compute=lambda: KEPT, key=1, model=None):
    model = model or tiny.model("GPT2", "float32")
    return store.remember("kind", [key], model, tiny.contexts(model), RECIPE, compute)


@pytest.mark.filterwarnings("ignore:.*damaged")
def test_two_hundred_flipped_bits_of_what_is_remembered(tmp_path):
    """What is damaged is computed again; 0 of 200 give anything else."""
    store, computed = Store(tmp_path), []

    def compute():
        computed.append(1)
        return KEPT

    keep(store)
    [path] = (tmp_path / "kind").glob("*.json")
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert json.dumps(keep(store, compute)) == json.dumps(KEPT)
        for aside in (tmp_path / "kind").glob("*.damaged-*"):
            aside.unlink()
    assert len(computed) > 150


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", json.dumps(KEPT), '{"checksum": 1, "content": {}}'])
def test_a_file_of_another_shape_is_computed_again(tmp_path, text):
    store = Store(tmp_path)
    keep(store)
    [path] = (tmp_path / "kind").glob("*.json")
    path.write_text(text)
    with pytest.warns(UserWarning, match="damaged; it was set aside"):
        assert keep(store)["answer"] == KEPT["answer"]


def test_what_cannot_be_read_for_now_stays(tmp_path):
    store = Store(tmp_path)
    keep(store)
    [path] = (tmp_path / "kind").glob("*.json")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="not a regular file.*left as it is"):
        keep(store)
    assert path.is_symlink()


def test_a_copy_of_another_file_is_computed_again(tmp_path):
    store = Store(tmp_path)
    keep(store)
    [path] = (tmp_path / "kind").glob("*.json")
    whole = path.read_bytes()
    path.unlink()
    keep(store, lambda: {"answer": 2}, key=2)
    [other] = (tmp_path / "kind").glob("*.json")
    other.write_bytes(whole)
    with pytest.warns(UserWarning, match="damaged; it was set aside"):
        assert keep(store, lambda: {"answer": 2}, key=2) == {"answer": 2}


def test_only_whole_ids_name_runs(finished):
    store, identifier = Store(finished[0]), finished[1].attrs["run_id"]
    assert store.has(identifier) and store.holds(identifier)
    for name in ("*", "?" * 12, "[0-9a-f]" * 12, identifier[:-1], identifier.upper() + "\n", "", None, 3, ["*"]):
        assert not store.has(name) and not store.holds(name)
        with pytest.raises(StoreError, match="No run"):
            store.open(name)


def test_runs_carry_the_notes_of_their_store(tmp_path):
    model = tiny.model("GPT2", "float32")
    noted = Store(tmp_path).noting(prediction="abc")
    run = noted.run(model, tiny.contexts(model), [0.01], RECIPE)
    assert run.attrs["prediction"] == "abc" and "prediction" not in Store(tmp_path).notes
    again = Store(tmp_path).run(model, tiny.contexts(model), [0.01], RECIPE)
    assert again.identical(run)  # the numbers do not depend on it, so neither does the name


def one_of_two(folder, log, barrier):
    original = store_module.finetune

    def counted(*arguments, **options):
        with open(log, "a") as file:
            file.write("computed\n")
        return original(*arguments, **options)

    store_module.finetune = counted
    barrier.wait(600)
    compute(folder)


def test_two_processes_compute_a_shared_run_once(tmp_path, finished):
    folder, log = tmp_path / "store", tmp_path / "log"
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    processes = [spawn.Process(target=one_of_two, args=(folder, log, barrier)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(900)
    assert [process.exitcode for process in processes] == [0, 0]
    assert log.read_text() == "computed\n"
    assert len(files(folder)) == 1 and numbers(compute(folder)).identical(numbers(finished[1]))


@pytest.mark.parametrize("place", ["file/store", "file", "/proc/store", "with\0null"])
def test_a_folder_that_cannot_be_written_is_refused(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(StoreError, match="'store'") as error:
        Store(place)
    assert place.replace("\0", "\\x00") in str(error.value) and str(error.value).isprintable()
    assert files(tmp_path) == ["file"]


def test_a_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(xr.Dataset, "to_netcdf", full)
        with pytest.raises(StoreError, match="No space left.*finished runs are kept"):
            compute(tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_a_disk_that_fills_while_writing_leaves_nothing(limit, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(store_module, "finetune", lambda *_, **__: numbers(finished[1]).copy(deep=True))
    store, (soft, hard) = Store(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    model = tiny.model("GPT2", "float32")
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the kernel itself refuses to write further
    try:
        with pytest.raises(StoreError, match="could not be saved"):
            store.run(model, tiny.contexts(model), RATES, RECIPE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(tmp_path) == []
    compute(tmp_path)
    assert len(files(tmp_path)) == 1


def test_a_quantity_that_is_recorded_from_now_on_is_added_to_runs_of_one_s_own(stored, monkeypatch):
    path, run = stored
    older = run.drop_vars("signal").assign_attrs(prediction="abc")
    older.attrs["checksum"] = checksum(older)
    path.write_bytes(older.to_netcdf(engine="netcdf4"))
    (path.parent / "runs.index").unlink()
    again = compute(path.parent)
    assert numbers(again).identical(numbers(run)) and again.attrs["prediction"] == "abc"
    assert again.attrs["run_id"] == run.attrs["run_id"] and files(path.parent) == [path.name]
    monkeypatch.setattr(store_module, "finetune", None)
    assert compute(path.parent).identical(again)


@pytest.mark.parametrize("word", ["id", "correct", "competitor"])
def test_words_that_end_in_a_file_are_refused_before_anything_is_computed(word, tmp_path, no_training):
    model = tiny.model("GPT2", "float32")
    [first, _] = tiny.contexts(model)
    context = dataclasses.replace(first.context, **{word: "a\0b"})
    with pytest.raises(ContextError, match="has a NUL character in 'a.x00b'"):
        Store(tmp_path).run(model, [dataclasses.replace(first, context=context)], RATES, RECIPE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("letter", ["n", "ü", "語"])
def test_a_name_of_250_characters_is_shortened_in_names_of_files(tmp_path, letter):
    models = [dataclasses.replace(tiny.model("GPT2", "float32"), name=250 * letter + end) for end in "ab"]
    runs = [compute(tmp_path, model=model) for model in models]
    assert [compute(tmp_path, model=model).attrs["model"] for model in models] == [model.name for model in models]
    stems = {Path(name).name.split("-full")[0] for name in files(tmp_path)}
    assert len(stems) == 2 and all(Store(tmp_path).holds(run.attrs["run_id"]) for run in runs)
    keep(Store(tmp_path), model=models[0])


def refused(folder, **changes):
    model = tiny.model("GPT2", "float32")
    first, second = tiny.contexts(model)
    arguments = {"contexts": [first, second], "learning_rates": RATES, "seeds": (0,)} | changes
    Store(folder).run(model, recipe=RECIPE, **arguments)


@pytest.mark.parametrize(
    "changes, kind",
    [
        ({"learning_rates": [-1.0]}, ParameterError),
        ({"learning_rates": []}, ParameterError),
        ({"seeds": (0.5,)}, ParameterError),
        ({"seeds": None}, ParameterError),
        ({"contexts": []}, ContextError),
        ({"contexts": tiny.contexts(tiny.model("GPT2", "float32"), place=1)}, ContextError),
    ],
    ids=str,
)
def test_refused_runs_leave_no_file(changes, kind, tmp_path):
    with pytest.raises(kind):
        refused(tmp_path, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_commit_says_whether_the_source_is_as_it_was(tmp_path, monkeypatch):
    package = tmp_path / "package"
    (package / "runs").mkdir(parents=True)
    (package / "runs" / "store.py").write_text("")

    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(store_module, "__file__", str(package / "runs" / "store.py"))
    commit = store_module.commit.__wrapped__
    clean = commit()
    assert len(clean) == 10
    (tmp_path / "notes.txt").write_text("beside the package")
    assert commit() == clean
    (package / "new.py").write_text("")
    assert commit() == clean + "+"
    (package / "new.py").unlink()
    (package / "runs" / "store.py").write_text("x = 1")
    assert commit() == clean + "+"
