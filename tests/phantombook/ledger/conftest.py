"""A store with runs, a notebook, and the measurement that it made of them."""

import shutil

import pytest
import tiny

from phantombook.ledger import claims
from phantombook.ledger.measurements import Experiment, Recording, complete
from phantomlib import files
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store

NOTEBOOK = """
from phantombook import notebook
from phantomlib.transition import jumps

nb = notebook.start("08_toy")
nb.record("C8", 0.01, optimizer="adam", n={"architectures": 5, "contexts": 10}, runs=["0123456789ab"])
"""
CLAIMS = {claim.id: claim for claim in claims.load_claims()}


class Case:
    """A store with a sound measurement, and a notebook that made it."""

    def __init__(self, folder, runs):
        self.store, self.runs, self.notebook = Store(folder / "store"), runs, folder / "notebooks/08_toy.py"
        self.notebook.parent.mkdir()
        self.notebook.write_text(NOTEBOOK)
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.record(0.01)

    def source(self, **parameters):
        return Experiment(self.notebook, {"models": ["zoo:gpt2-s"], "size_factor": 0.1, "store": "runs"} | parameters)

    def record(self, value, optimizer="adam", claim="C8", through=True, n=None, runs=None, **parameters):
        """What a notebook does that records this alone; ``through``: whether it comes to its end."""
        runs, source = self.runs[:2] if runs is None else runs, self.source(**parameters)
        made = claims.measured(claim, value, optimizer=optimizer, n=n or CLAIMS[claim].needs, runs=runs)
        Recording(self.store, source, self.scratch).add(claim, optimizer, made)
        if through:
            complete(self.scratch)
        return source.file(self.store)

    @property
    def path(self):
        return self.source().file(self.store)

    def forge(self, **changes):
        """Change the measurement and write it with a fitting checksum."""
        content = files.read_json(self.path)
        ours = content["measurements"]["C8-adam"]
        for name, value in changes.items():
            (ours if name in ours else content)[name] = value
        files.write_json(self.path, content)

    def run(self, number=0):
        return next(self.store.root.glob(f"*-{self.runs[number]}.nc"))

    def verdict(self, claim=CLAIMS["C8"], optimizer=None, **parameters):
        return claims.judge(claim, self.store, self.source(**parameters), optimizer)


@pytest.fixture(scope="session")
def filled(tmp_path_factory):
    """A store with three runs, two of them behind the measurement, and all ids."""
    store, model = Store(tmp_path_factory.mktemp("filled")), tiny.model("GPT2")
    made = [store.run(model, tiny.contexts(model), [rate], Recipe(steps=1)) for rate in (1e-3, 1e-2, 1e-1)]
    return store.root, [run.attrs["run_id"] for run in made]


@pytest.fixture
def case(filled, tmp_path):
    shutil.copytree(filled[0], tmp_path / "store")
    return Case(tmp_path, filled[1])
