"""The store: what is reused, what is computed again, and what is left behind when something goes wrong."""

import dataclasses
import json
import multiprocessing
import random
import resource
import subprocess
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tiny
import xarray as xr
from refused import flipped

from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import velocity
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, StoreError
from phantomlib.runs import store as store_module
from phantomlib.runs.run_file import checksum, run_id
from phantomlib.runs.store import Store, specification

RATES, RECIPE = [0.01, 0.03], Recipe(steps=3, snapshots=(0, 3))  # of the finished run, see conftest.py
MODEL = tiny.model("GPT2", "float32")
CONTEXTS = tiny.contexts(MODEL)


def compute(folder, rates=RATES, *, model=MODEL, contexts=CONTEXTS, **options):
    return Store(folder).run(model, contexts, rates, RECIPE, **options)


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
    assert files(path.parent) == [path.name]
    assert xr.load_dataset(path).identical(run)  # an ordinary netCDF file
    assert run.attrs["model"] == "tiny-GPT2" and run.attrs["n_parameters"] == 8272 and run.attrs["tied_readout"] == 1
    assert run.attrs["seconds"] > 0 and run.attrs["peak_memory_bytes"] > 1e6 and run.attrs["recipe_steps"] == 3
    assert {"commit", "versions", "device", "specification", "model_ref", "model_revision"} <= run.attrs.keys()


CHANGES = [
    {"model": dataclasses.replace(MODEL, fingerprint="0" * 16)},
    {"model": tiny.model("GPT2", "float64")},
    {"rates": [[0.01, 0.03], [0.01, 0.031]]},
    {"rates": [[0.03, 0.01]] * 2},
    {"seeds": (1,)},
    {"seeds": (0, 1)},
    {"contexts": CONTEXTS[::-1]},
    {"contexts": CONTEXTS[:1]},
]
RECIPES = {"optimizer": "adam", "method": "lora", "steps": 4, "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.9}
RECIPES |= {
    "epsilon": 1e-6,
    "rank": 4,
    "alpha": 8.0,
    "exponent": 1,
    "geometry": "input",
    "snapshots": (1,),
    "loss": "margin",
}
WORDS = {"id": "other", "prompt": "another prompt", "correct": "good", "competitor": "bad"}
TOKENS = {"prompt_ids": (0, 5), "correct_id": 1, "competitor_id": 2}


def identifier(model=MODEL, contexts=CONTEXTS, rates=(RATES, RATES), recipe=RECIPE, seeds=(0,)):
    return run_id(specification(model, contexts, np.array(rates), recipe, seeds))


def test_every_ingredient_changes_the_key(monkeypatch):
    plain, (first, second) = Recipe(optimizer="adamw", steps=3), CONTEXTS
    recipes = [plain, *(dataclasses.replace(plain, **{name: value}) for name, value in RECIPES.items())]
    recipes.append(dataclasses.replace(recipes[-1], weight=2.0))
    words = [dataclasses.replace(first.context, **{name: value}) for name, value in WORDS.items()]
    others = [dataclasses.replace(first, context=context) for context in words]
    others += [dataclasses.replace(first, **{name: value}) for name, value in TOKENS.items()]
    keys = [identifier(), *(identifier(**change) for change in CHANGES), *(identifier(recipe=one) for one in recipes)]
    keys += [identifier(contexts=[other, second]) for other in others]
    monkeypatch.setattr(store_module, "ENGINE_VERSION", store_module.ENGINE_VERSION + 1)
    keys.append(identifier())
    assert len(set(keys)) == len(keys)
    assert {field.name for field in dataclasses.fields(Recipe)} == {*RECIPES, "weight"}


def test_a_run_of_the_cross_entropy_keeps_the_name_it_had_before_there_was_a_choice_of_loss():
    spec = specification(MODEL, CONTEXTS, np.array([RATES] * 2), RECIPE, (0,))
    assert set(spec["recipe"]) == RECIPES.keys() - {"loss"}
    assert identifier() == identifier(recipe=Recipe(steps=3, snapshots=[0, 3]))


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
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


def test_interrupted_writing_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self, data):
        self.open("wb").write(data[:1000])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compute(tmp_path)
    assert files(tmp_path) == []


def test_a_damaged_file_is_set_aside_and_computed_again(stored):
    path, run = stored
    damaged, identifier = path.read_bytes()[:1000], run.attrs["run_id"]
    path.write_bytes(damaged)
    assert not Store(path.parent).holds(identifier)
    with pytest.warns(UserWarning, match=f"{path.name} is damaged; it was set aside as .* computed again"):
        again = compute(path.parent)
    [aside] = [p for p in path.parent.iterdir() if ".damaged-" in p.name]
    assert aside.read_bytes() == damaged and len(files(path.parent)) == 2
    xr.testing.assert_identical(numbers(again), numbers(run))
    assert again.attrs["run_id"] == identifier and checksum(again) == again.attrs["checksum"]
    assert Store(path.parent).holds(identifier)


def test_a_file_under_another_runs_name_is_not_taken_for_it(stored):
    path, run = stored
    path.rename(path.with_name(path.name.replace(run.attrs["run_id"], identifier(rates=[[0.02]] * 2))))
    with pytest.warns(UserWarning, match="damaged"):
        assert compute(path.parent, [0.02]).sizes["rate"] == 1


KEPT = {"answer": 0.1234567, "runs": "0123456789ab", "list": [1, 2.5, float("nan")]}


def keep(store, key=1, found=KEPT, *, model=MODEL, **options):
    """What the store remembers under a key: what was found then, or if it has to be computed, is found now."""
    return store.remember("kind", [key], model, CONTEXTS, RECIPE, lambda: found, **options)


@pytest.fixture
def kept(tmp_path):
    """A store that remembers one thing, and its file."""
    keep(Store(tmp_path))
    [path] = (tmp_path / "kind").glob("*.json")
    return Store(tmp_path), path


def test_what_is_remembered(kept, tmp_path, monkeypatch):
    (store, _), one, two = kept, {"answer": 1}, {"answer": 2}
    assert json.dumps(keep(store, found=one)) == json.dumps(KEPT)
    assert keep(store, 2, one) == keep(store, 2, two) == one
    assert keep(store, 2, two, holds=lambda found: found == two) == keep(store, 2, one) == two

    monkeypatch.setattr(store_module.os, "replace", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(StoreError, match="could not be saved .*Free some space"):
        keep(store, 3)
    assert not list((tmp_path / "kind").glob("*.tmp"))
    (tmp_path / "other").write_text("a file where the folder should be")
    with pytest.raises(StoreError, match="could not be saved"):
        store.remember("other", [], MODEL, CONTEXTS, RECIPE, dict)


@pytest.mark.filterwarnings("ignore:.*damaged")
def test_two_hundred_flipped_bits_of_what_is_remembered(kept):
    """What is damaged is computed again; 0 of 200 give anything else."""
    (store, path), new, found = kept, {"answer": 2}, []
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        path.write_bytes(flipped(whole, bit))
        found.append(keep(store, found=new))
    assert found.count(new) > 150 and {json.dumps(one) for one in found} <= {json.dumps(KEPT), json.dumps(new)}


def test_a_file_of_another_shape_or_key_is_computed_again(kept):
    store, path = kept
    texts = ["", "[]", "null", "3", "{}", json.dumps(KEPT), '{"checksum": 1, "content": {}}']
    path.replace(aside := path.with_suffix(".aside"))
    keep(store, 2, {"answer": 2})
    [other] = path.parent.glob("*.json")
    for text in [*texts, aside.read_text()]:
        other.write_text(text)
        with pytest.warns(UserWarning, match="damaged; it was set aside"):
            assert keep(store, 2, {"answer": 2}) == {"answer": 2}


def test_what_cannot_be_read_for_now_stays(kept):
    store, path = kept
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(StoreError, match="not a regular file.*left as it is"):
        keep(store)
    assert path.is_symlink()


def test_only_whole_ids_name_runs(finished):
    store, identifier = Store(finished[0]), finished[1].attrs["run_id"]
    assert store.holds(identifier)
    for name in ("*", "?" * 12, "[0-9a-f]" * 12, identifier[:-1], identifier.upper() + "\n", "", None, 3, ["*"]):
        assert not store.has(name) and not store.holds(name)
        with pytest.raises(StoreError, match="No run"):
            store.open(name)


def test_runs_carry_the_notes_of_their_store(tmp_path):
    run = Store(tmp_path).noting(prediction="abc").run(MODEL, CONTEXTS, RATES, RECIPE)
    assert run.attrs["prediction"] == "abc"
    assert compute(tmp_path).identical(run)  # the numbers do not depend on it, so neither does the name


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
    assert [process.join(900) or process.exitcode for process in processes] == [0, 0]
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


@pytest.mark.parametrize("limit", [0, 1000, 20_000])
def test_a_disk_that_fills_while_writing_leaves_nothing(limit, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(store_module, "finetune", lambda *_, **__: numbers(finished[1]).copy(deep=True))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # the kernel itself refuses to write further
    try:
        with pytest.raises(StoreError, match="could not be saved.*finished runs are kept"):
            compute(tmp_path)
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
    context = dataclasses.replace(CONTEXTS[0].context, **{word: "a\0b"})
    with pytest.raises(ContextError, match="'a.x00b' has a NUL character"):
        compute(tmp_path, contexts=[dataclasses.replace(CONTEXTS[0], context=context)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("letter", ["n", "ü", "語"])
def test_a_name_of_250_characters_is_shortened_in_names_of_files(tmp_path, letter):
    models = [dataclasses.replace(MODEL, name=250 * letter + end) for end in "ab"]
    runs = [compute(tmp_path, model=model) for model in models]
    assert [compute(tmp_path, model=model).attrs["model"] for model in models] == [model.name for model in models]
    stems = {Path(name).name.split("-full")[0] for name in files(tmp_path)}
    assert len(stems) == 2 and all(Store(tmp_path).holds(run.attrs["run_id"]) for run in runs)
    keep(Store(tmp_path), model=models[0])


REFUSED = [{"rates": [-1.0]}, {"rates": []}, {"seeds": (0.5,)}, {"seeds": None}, {"contexts": []}]


@pytest.mark.parametrize(
    "wrong", [CONTEXTS[0], [CONTEXTS[0].context], [dataclasses.asdict(CONTEXTS[0].context)]], ids=type
)
def test_what_is_no_context_in_ids_is_refused_wherever_it_is_given(wrong, tmp_path):
    store, recipe = Store(tmp_path), Recipe(steps=1)
    for use in (
        lambda: compute(tmp_path, contexts=wrong),
        lambda: critical_rates(store, MODEL, wrong, recipe),
        lambda: predict_critical_rates(store, MODEL, wrong, recipe),
        lambda: velocity(MODEL, wrong, recipe),
    ):
        with pytest.raises(ContextError, match="is no context in a model's ids; give a list of what ph.resolve"):
            use()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [*REFUSED, {"contexts": tiny.contexts(MODEL, place=1)}], ids=str)
def test_refused_runs_leave_no_file(changes, tmp_path):
    with pytest.raises(ContextError if "contexts" in changes else ParameterError):
        compute(tmp_path, **changes)
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
    (tmp_path / "notes.txt").write_text("beside the package")
    assert len(clean) == 10 and commit() == clean
    (package / "new.py").write_text("")
    assert commit() == clean + "+"
    (package / "new.py").unlink()
    (package / "runs" / "store.py").write_text("x = 1")
    assert commit() == clean + "+"
