"""A finished run of a tiny model, computed once for all tests of the store."""

import shutil

import pytest
import tiny

from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A store with one finished run, and that run; copy before use."""
    folder, model = tmp_path_factory.mktemp("store"), tiny.model("GPT2", "float32")
    return folder, Store(folder).run(model, tiny.contexts(model), [0.01, 0.03], Recipe(steps=3, snapshots=(0, 3)))


@pytest.fixture
def stored(finished, tmp_path):
    """The file of a finished run in a store of one's own, and the run."""
    shutil.copytree(finished[0], tmp_path, dirs_exist_ok=True)
    [path] = tmp_path.glob("*.nc")
    return path, finished[1]
