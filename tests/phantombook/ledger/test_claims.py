"""The ledger: a verdict follows from thresholds, measurements and runs, and from nothing else."""

import dataclasses
import json
import math
import shutil

import pytest
import tiny
import yaml

from phantombook.ledger import claims
from phantombook.ledger.measurements import Source
from phantomlib.contexts import Context
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.runs.store import Store

NOTEBOOK = """
# %% tags=["parameters"]
steps: int = 20  # how many

# %%
from phantomlib.transition import jumps
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with two runs, and their ids."""
    store, model = Store(tmp_path_factory.mktemp("filled")), tiny.model("GPT2")
    runs = [store.run(model, tiny.contexts(model), [rate], Recipe(steps=1)) for rate in (1e-3, 1e-2)]
    return store.root, sorted(run.attrs["run_id"] for run in runs)


@pytest.fixture
def runs(filled):
    return filled[1]


@pytest.fixture
def store(filled, tmp_path):
    shutil.copytree(filled[0], tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def source(tmp_path):
    return make_source(tmp_path)


def make_source(folder, number="08", models=("m",), contexts=(), **parameters):
    """A source as it is now on the disk; the notebook is written if it is not there."""
    path = folder / "notebooks" / f"{number}_toy.py"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(NOTEBOOK)
    return Source(path, {"models": list(models), "steps": 20, "store": "runs"} | parameters, contexts)


def claim(identifier="C8"):
    return {c.id: c for c in claims.load_claims()}[identifier]


@pytest.fixture
def measure(store, source, runs):
    def record(value, identifier="C8", optimizer="adam", n=None, runs=runs, source=source, **more):
        n = claim(identifier).needs if n is None else n
        options = {"source": source, "optimizer": optimizer, "n": n, "runs": runs} | more
        claims.record_measurement(store, identifier, value, **options)

    return record


def test_all_claims_are_declared_with_bounds_and_samples():
    declared = claims.load_claims()
    assert [c.id for c in declared if c.group == "paper"] == [f"C{i}" for i in range(1, 12)]
    assert [(c.id, c.repeats) for c in declared if c.group == "real"] == [(f"R{i}", f"C{i}") for i in range(1, 11)]
    assert [c.id for c in declared if c.ours] == [f"O{i}" for i in range(1, 5)]
    for c in declared:
        assert c.statement and c.needs and c.decides in claims.OPTIMIZERS
        assert all(math.isfinite(criterion.threshold) for criterion in c.criteria)


def test_thresholds_stated_in_advance():
    assert claim("C8").criteria[0].threshold == 0.05
    assert claim("C10").criteria[0].threshold == 0.021


@pytest.mark.parametrize(
    "value, status", [(0.049, claims.REPRODUCED), (0.05, claims.REPRODUCED), (0.051, claims.NOT_REPRODUCED)]
)
def test_verdict_is_the_comparison_with_the_threshold(store, source, measure, value, status):
    measure(value)
    assert claims.judge(claim(), store, source).status == status


def test_changed_threshold_changes_the_verdict(store, source, measure):
    measure(0.04)
    strict = dataclasses.replace(claim(), criteria=(dataclasses.replace(claim().criteria[0], threshold=0.03),))
    assert claims.judge(claim(), store, source).status == claims.REPRODUCED
    assert claims.judge(strict, store, source).status == claims.NOT_REPRODUCED


def test_turned_direction_turns_the_verdict(store, source, measure):
    measure(0.04)
    turned = dataclasses.replace(claim(), criteria=(dataclasses.replace(claim().criteria[0], direction="at least"),))
    assert claims.judge(turned, store, source).status == claims.NOT_REPRODUCED


def test_removed_run_withholds_the_verdict(store, source, measure, runs):
    measure(0.04)
    next(store.root.glob(f"*-{runs[1]}.nc")).unlink()
    verdict = claims.judge(claim(), store, source)
    assert verdict.status == claims.NOT_TESTED and runs[1] in verdict.reason


@pytest.mark.parametrize(
    "identifier, value, n, shown",
    [
        ("C8", 0.04, (4, 10), "meets the threshold; 4 of 5 architectures"),
        ("C8", 0.06, (4, 10), "misses the threshold; 4 of 5 architectures"),
        ("C8", 0.04, (5, 9), "meets the threshold; 9 of 10 contexts"),
        ("C8", 0.04, (1, 0), "meets the threshold; 1 of 5 architectures, 0 of 10 contexts"),
        ("C8", math.nan, (1, 10), "coefficient_of_variation could not be measured; 1 of 5 architectures"),
        ("C6", (3, 0), (2, 10), "meets the threshold; 2 of 5 architectures"),
        ("C6", (3, 1), (2, 10), "misses the threshold; 2 of 5 architectures"),  # one of two criteria
        ("C6", (4, math.nan), (2, 10), "steps_with_changed_readout could not be measured; 2 of 5 architectures"),
        ("C1", 5, (5, 5), "meets the threshold; 5 of 10 contexts"),
        ("C1", 4, (5, 5), "misses the threshold; 5 of 10 contexts"),
        ("C1", 4, (5, 4), "too small to meet the threshold; 4 of 10 contexts"),  # all 4 of them, and 5 are asked for
        ("O1", 2, (2, 10), "too small to meet the threshold; 2 of 5 architectures"),
        ("C5", 4, (1, 10), "misses the threshold; 1 of 5 architectures"),  # 4 of 5 tests: they are no sample
    ],
)
def test_a_small_sample_withholds_the_verdict_and_says_what_its_numbers_say(
    store, tmp_path, measure, identifier, value, n, shown
):
    chosen = claim(identifier)
    values = dict(zip([c.name for c in chosen.criteria], value if isinstance(value, tuple) else [value], strict=True))
    source = make_source(tmp_path, chosen.notebook)
    measure(values, identifier, n=dict(zip(("architectures", "contexts"), n, strict=True)), source=source)
    verdict = claims.judge(chosen, store, source)
    assert (verdict.status, verdict.shown) == (claims.NOT_TESTED, shown)
    assert "the sample is too small" in verdict.reason
    assert json.loads(json.dumps(claims.verdict_as_dict(verdict)))["shown"] == shown


def test_only_the_size_of_the_sample_leaves_an_outlook(store, source, measure, runs):
    small = {"architectures": 4, "contexts": 10}
    measure(0.04)
    assert claims.judge(claim(), store, source).shown == claims.REPRODUCED
    measure(0.06)
    assert claims.judge(claim(), store, source).shown == claims.NOT_REPRODUCED
    measure(math.nan)
    assert claims.judge(claim(), store, source).shown == claims.NOT_TESTED
    measure(0.04, n=small, runs=[])
    assert claims.judge(claim(), store, source).shown == claims.NOT_TESTED
    measure(0.04, n=small)
    stale = Source(source.notebook, source.parameters)
    stale.key = "another"
    assert claims.judge(claim(), store, stale).shown == claims.STALE
    next(store.root.glob(f"*-{runs[1]}.nc")).unlink()
    assert claims.judge(claim(), store, source).shown == claims.NOT_TESTED


def test_undefined_value_withholds_the_verdict(store, source, measure):
    measure(math.nan)
    assert claims.judge(claim(), store, source).status == claims.NOT_TESTED


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_text("{"), lambda path: path.write_text("")]
)
def test_missing_or_damaged_measurement_withholds_the_verdict(store, source, measure, damage):
    measure(0.04)
    damage(source.folder(store) / "C8-adam.json")
    assert claims.judge(claim(), store, source).status == claims.NOT_TESTED


def test_optimisers_and_sources_do_not_mix(store, source, measure, tmp_path):
    measure(0.04, optimizer="sgd")
    assert claims.judge(claim(), store, source).status == claims.NOT_TESTED
    assert claims.judge(claim(), store, source, "sgd").status == claims.REPRODUCED
    assert claims.judge(claim(), store, make_source(tmp_path, steps=21), "sgd").status == claims.NOT_TESTED


@pytest.mark.parametrize(
    "values, status", [((3, 0), claims.REPRODUCED), ((2, 0), claims.NOT_REPRODUCED), ((3, 1), claims.NOT_REPRODUCED)]
)
def test_every_criterion_must_hold(store, source, measure, values, status):
    names = [c.name for c in claim("C6").criteria]
    measure(dict(zip(names, values, strict=True)), "C6")
    assert claims.judge(claim("C6"), store, source).status == status


@pytest.mark.parametrize(
    "identifier, value, optimizer, n",
    [
        ("C99", 1.0, "adam", {"architectures": 5, "contexts": 10}),
        ("C8", 1.0, "lion", {"architectures": 5, "contexts": 10}),
        ("C8", {"another": 1.0}, "adam", {"architectures": 5, "contexts": 10}),
        ("C8", 1.0, "adam", {"architectures": 5}),
    ],
)
def test_measurement_of_something_else_is_refused(store, source, identifier, value, optimizer, n):
    with pytest.raises(ParameterError):
        claims.record_measurement(store, identifier, value, source=source, optimizer=optimizer, n=n, runs=[])


@pytest.mark.parametrize("change", [{"direction": "about"}, {"threshold": None}])
def test_incomplete_ledger_is_refused(tmp_path, change):
    entries = yaml.safe_load(claims.LEDGER.read_text(encoding="utf-8"))
    criterion = entries[0]["criteria"]["fewest_silent_contexts"]
    criterion.update({k: v for k, v in change.items() if v is not None})
    for key in [k for k, v in change.items() if v is None]:
        del criterion[key]
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(entries), encoding="utf-8")
    with pytest.raises(ParameterError, match="C1"):
        claims.load_claims(path)


def test_a_source_is_every_parameter_but_the_place_of_the_store(store, tmp_path):
    one, other = Context("a", "p", "x", "y"), Context("a", "p", "x", "z")
    sources = [
        make_source(tmp_path),
        make_source(tmp_path, "10"),
        make_source(tmp_path, models=["n"]),
        make_source(tmp_path, contexts=[one]),
        make_source(tmp_path, contexts=[other]),
        make_source(tmp_path, dtype="float64"),
        make_source(tmp_path, size_factor=5.0),
        make_source(tmp_path, steps=21),
    ]
    assert len({source.folder(store) for source in sources}) == len(sources)
    assert make_source(tmp_path, store="elsewhere").folder(store) == sources[0].folder(store)


def test_ours_are_kept_apart_from_the_papers(store):
    papers, ours = claims.verdicts(store, {}), claims.verdicts(store, {}, group="ours")
    assert [pair[0].claim.id[0] for pair in papers] == ["C"] * 11 and [p[0].claim.id[0] for p in ours] == ["O"] * 4


def test_ledger_in_json_has_everything(store, source, measure, runs):
    measure(0.04)
    pairs = claims.verdicts(store, {"08": source})
    entries = json.loads(json.dumps([claims.verdict_as_dict(v) for pair in pairs for v in pair]))
    assert len(entries) == 22 and sum(e["decides"] for e in entries) == 11
    found = next(e for e in entries if e["id"] == "C8" and e["decides"])
    assert found["criteria"][0]["measured"] == 0.04 and found["criteria"][0]["threshold"] == 0.05
    assert found["verdict"] == "reproduced" and found["runs"] == runs and found["n"]["contexts"] == 10
