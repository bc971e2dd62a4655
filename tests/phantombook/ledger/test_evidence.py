"""Every way to a false "reproduced" that we know of, and that it is withheld."""

import json
import random
import shutil

import pytest
import tiny
import xarray as xr

from phantombook.ledger import claims, measurements
from phantombook.ledger.measurements import Experiment
from phantomlib import files
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store

C8 = next(c for c in claims.load_claims() if c.id == "C8")
NOTEBOOK = """
from phantombook import notebook
from phantomlib.transition import jumps

nb = notebook.start("08_toy")
nb.record("C8", 0.01, optimizer="adam", n={"architectures": 5, "contexts": 10}, runs=["0123456789ab"])
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with three runs, two of them behind the measurement, and all ids."""
    store, model = Store(tmp_path_factory.mktemp("filled")), tiny.model("GPT2")
    made = [store.run(model, tiny.contexts(model), [rate], Recipe(steps=1)) for rate in (1e-3, 1e-2, 1e-1)]
    return store.root, [run.attrs["run_id"] for run in made]


class Case:
    """A store with a sound measurement, and a notebook that made it."""

    def __init__(self, folder, runs):
        self.store, self.runs, self.notebook = Store(folder / "store"), runs, folder / "notebooks/08_toy.py"
        self.notebook.parent.mkdir()
        self.notebook.write_text(NOTEBOOK)
        self.record(0.01)

    def source(self, **parameters):
        return Experiment(self.notebook, {"models": ["zoo:gpt2-s"], "size_factor": 0.1} | parameters)

    def record(self, value, optimizer="adam", identifier="C8", through=True, **parameters):
        """What a notebook does that records this alone; ``through``: whether it comes to its end."""
        n = {"architectures": 5, "contexts": 10}
        _, made = claims.measured(identifier, value, optimizer=optimizer, n=n, runs=self.runs[:2])
        source = self.source(**parameters)
        record = measurements.begin(self.store, source)
        record.measurements[f"{identifier}-{optimizer}"] = made
        measurements.wait_with(record, source.file(self.store), self.notebook.parent)
        if through:
            measurements.complete(self.notebook.parent)
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

    def verdict(self):
        return claims.judge(C8, self.store, self.source())


@pytest.fixture
def case(filled, tmp_path):
    shutil.copytree(filled[0], tmp_path / "store")
    return Case(tmp_path, filled[1])


def edit_value(case):
    case.path.write_text(case.path.read_text().replace("0.01", "0.02"))


def drop_the_checksum(case):
    case.path.write_text(json.dumps(files.read_json(case.path)))


def old_format(case):
    case.path.write_text(
        json.dumps({"values": {"x": 0.01}, "interval": None, "n": {}, "runs": case.runs, "detail": {}})
    )


def empty_run(case):
    case.run().write_bytes(b"")


def run_is_a_folder(case):
    path = case.run()
    path.unlink()
    path.mkdir()


def flipped_run(case):
    whole = bytearray(case.run().read_bytes())
    place = whole.find(xr.load_dataset(case.run()).logit_gap.values[0, 0, 0].tobytes())
    assert place > 0
    whole[place] ^= 1
    case.run().write_bytes(whole)


def another_run_under_its_name(case):
    shutil.copy(case.run(2), case.run(0))


def removed_run(case):
    case.run().unlink()


def copied_from_a_private_experiment(case):
    private = case.record(0.001, size_factor=5.0)
    case.record(0.9)
    shutil.copy(private, case.path)


def recorded_under_the_other_optimiser(case):
    case.record(0.001, "sgd")


def recorded_for_another_claim(case):
    case.record(0.001, identifier="C10")


def started_again_but_failed(case):
    measurements.begin(case.store, case.source())  # what notebook.start does; then a cell raised


def recorded_but_failed_later(case):
    case.record(0.001, through=False)


def started_again_while_it_ran(case):
    case.record(0.001, through=False)
    measurements.begin(case.store, case.source())  # another process, which fails
    measurements.complete(case.notebook.parent)  # and the first comes to its end


def no_longer_recorded(case):
    case.notebook.write_text("".join(line for line in NOTEBOOK.splitlines(True) if "record" not in line))


def notebook_gone(case):
    case.notebook.unlink()


def notebook_unreadable(case):
    case.notebook.write_text("def f(:")


def forged(**changes):
    def damage(case):
        case.forge(**changes)

    damage.__name__ = f"forged {changes}"[:60]
    return damage


WAYS = {
    claims.NOT_TESTED: [
        edit_value,
        drop_the_checksum,
        old_format,
        empty_run,
        run_is_a_folder,
        flipped_run,
        another_run_under_its_name,
        removed_run,
        copied_from_a_private_experiment,
        recorded_under_the_other_optimiser,
        recorded_for_another_claim,
        started_again_but_failed,
        recorded_but_failed_later,
        started_again_while_it_ran,
        forged(complete=False),
        forged(complete="yes"),
        forged(runs=[]),
        forged(runs=["*"]),
        forged(runs=["????????????"]),
        forged(runs=["[0-9a-f]" * 12]),
        forged(runs=["0123456789ab"]),
        forged(runs=[""]),
        forged(runs=[None]),
        forged(runs=None),
        forged(runs="0123456789ab"),
        forged(values={}),
        forged(values=None),
        forged(values={"coefficient_of_variation": None}),
        forged(values=[0.01]),
        forged(n={}),
        forged(n={"architectures": "5", "contexts": 10}),
        forged(interval=3),
        forged(detail=3),
        forged(key=None),
        forged(experiment={}),
        forged(measurements={}),
    ],
    claims.STALE: [
        no_longer_recorded,
        notebook_gone,
        notebook_unreadable,
        forged(key=""),
        forged(key="0" * 64),
    ],
}


@pytest.mark.parametrize(
    "status, way",
    [(status, way) for status, ways in WAYS.items() for way in ways],
    ids=lambda x: getattr(x, "__name__", x),
)
def test_no_way_leads_to_a_false_verdict(case, status, way):
    assert case.verdict().status == claims.REPRODUCED
    way(case)
    verdict = case.verdict()
    assert verdict.status == status and verdict.reason
    assert status != claims.STALE or "run notebook 08 again" in verdict.reason


@pytest.mark.parametrize(
    "module",
    [
        *("transition/jumps.py", "engine/optimizer.py", "models/zoo_models.py", "contexts.yaml"),
        *("progress.py", "engine/cluster.py", "__init__.py"),  # whatever runs in the kernel can change its numbers
        *("../phantombook/execution.py", "../phantombook/preloaded_kernel.py", "../phantombook/plan.py"),
    ],
)
def test_other_code_makes_a_verdict_stale(package, case, module):
    path = package / "phantomlib" / module
    path.write_text(path.read_text() + "\n\nMORE = 1\n")
    assert case.verdict().status == claims.STALE


def test_a_private_experiment_leaves_the_published_verdict_alone(case):
    private = case.record(0.9, size_factor=5.0)
    assert case.verdict().status == claims.REPRODUCED and private != case.path
    assert claims.judge(C8, case.store, case.source(size_factor=5.0)).status == claims.NOT_REPRODUCED


def test_words_do_not_make_a_verdict_stale(case):
    case.notebook.write_text(
        NOTEBOOK.replace("\n", "\n# %% [markdown]\n# More words.\n\n# %%\n", 1) + "# and a comment\n"
    )
    assert case.verdict().status == claims.REPRODUCED


def test_two_hundred_flipped_bits(case):
    """Of a measurement; what is still accepted has the same content."""
    path, source, before, accepted = case.path, case.source(), case.verdict(), 0
    whole = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        verdict = claims.judge(C8, case.store, source)
        if verdict.status != claims.NOT_TESTED:
            assert verdict == before
            accepted += 1
    assert accepted < 50


def test_each_run_is_looked_into_once(case, monkeypatch):
    from phantomlib.runs import run_file

    looked, real = [], run_file.read_patiently
    monkeypatch.setattr(run_file, "read_patiently", lambda path: looked.append(path) or real(path))
    for path in case.store.root.glob("*.nc"):
        path.touch()
    assert [case.verdict().status for _ in range(3)] == [claims.REPRODUCED] * 3
    assert sorted(looked) == sorted(case.run(i) for i in (0, 1))
