"""The ledger: a verdict follows from thresholds, measurements and runs, and from nothing else."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import tiny
import yaml

from phantombook.ledger import claims, measurements
from phantombook.ledger.measurements import Experiment
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


def make_source(folder, number="08", models=("m",), **parameters):
    """An experiment as it is now on the disk; the notebook is written if it is not there."""
    path = folder / "notebooks" / f"{number}_toy.py"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(NOTEBOOK)
    return Experiment(path, {"models": list(models), "steps": 20, "store": "runs"} | parameters)


def claim(identifier="C8"):
    return {c.id: c for c in claims.load_claims()}[identifier]


@pytest.fixture
def measure(store, source, runs, tmp_path):
    """Record as the only measurement of a notebook that ran through."""

    def record(value, identifier="C8", optimizer="adam", n=None, runs=runs, source=source):
        n = claim(identifier).needs if n is None else n
        found, made = claims.measured(identifier, value, optimizer=optimizer, n=n, runs=runs)
        record = measurements.begin(store, source)
        record.measurements[f"{found.id}-{optimizer}"] = made
        measurements.wait_with(record, source.file(store), tmp_path)
        measurements.complete(tmp_path)

    return record


def test_all_claims_are_declared_with_bounds_and_samples():
    declared = claims.load_claims()
    assert [c.id for c in declared if c.group == "paper"] == [f"C{i}" for i in range(1, 12)]
    assert [(c.id, c.repeats) for c in declared if c.group == "real"] == [(f"R{i}", f"C{i}") for i in range(1, 11)]
    assert [c.id for c in declared if c.ours] == [f"O{i}" for i in (*range(1, 5), *range(10, 15))]
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
    stale = Experiment(source.notebook, source.parameters)
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
    damage(source.file(store))
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
def test_measurement_of_something_else_is_refused(identifier, value, optimizer, n):
    with pytest.raises(ParameterError):
        claims.measured(identifier, value, optimizer=optimizer, n=n, runs=[])


def entry(**changes):
    return {"id": "X", "statement": "s", "notebook": "01", "figure": "f", "decides": "adam",
            "needs": {"contexts": 2},
            "criteria": {"a": {"quantity": "q", "direction": "at least", "threshold": 1, "unit": "1"}},
            "changes": []} | changes  # fmt: skip


@pytest.mark.parametrize(
    "text, words",
    [
        ([entry(decides="lion")], "Claim X .*decides"),
        ([entry(criteria={})], "Claim X .*criteria"),
        ([entry(statment="s")], "Claim X .*statment"),
        (
            [entry(criteria={"a": {"quantity": "q", "direction": "about", "threshold": 1, "unit": "1"}})],
            "criteria.0.direction",
        ),
        ([entry(criteria={"a": {"quantity": "q", "direction": "at least", "unit": "1"}})], "criteria.0.threshold"),
        (
            [entry(criteria={"a": {"quantity": "q", "direction": "at least", "threshold": "1", "unit": "1"}})],
            "threshold",
        ),
        (
            [entry(criteria={"a": {"quantity": "q", "direction": "at least", "threshold": math.nan, "unit": "1"}})],
            "threshold",
        ),
        ([entry(changes=[{"what": "x"}])], "Claim X .*changes.0"),
        ([entry(), entry()], "more than one claim X"),
        ([{"id": "X"}], "list of claims"),
        ([3], "list of claims"),
        (3, "list of claims"),
        ("- id: X\n  id: Y\n", "'id' is given twice"),
        ("- id: [", "not valid YAML"),
        (None, "cannot be read"),
    ],
)
def test_a_ledger_that_is_broken_says_where(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
    with pytest.raises(ParameterError, match=words):
        claims.load_claims(path)


def test_one_that_is_sound_is_read(tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump([entry()]), encoding="utf-8")
    assert claims.load_claims(tmp_path / "mine.yaml")[0].criteria[0].name == "a"


def test_an_experiment_is_every_parameter_but_the_place_of_the_store(store, tmp_path):
    (tmp_path / "mine.yaml").write_text("one")
    (tmp_path / "folder").mkdir()
    ours = make_source(tmp_path, real_contexts="fitting:mine.yaml").file(store)
    sources = [
        make_source(tmp_path),
        make_source(tmp_path, "10"),
        make_source(tmp_path, models=["n"]),
        make_source(tmp_path, real_contexts="mine.yaml"),
        make_source(tmp_path, dtype="float64"),
        make_source(tmp_path, size_factor=5.0),
        make_source(tmp_path, steps=21),
    ]
    assert len({ours, *(source.file(store) for source in sources)}) == 1 + len(sources)
    assert make_source(tmp_path, store="folder").file(store) == sources[0].file(store)
    (tmp_path / "mine.yaml").write_text("two")  # whatever parameter names a file: its words count
    assert make_source(tmp_path, real_contexts="fitting:mine.yaml").file(store) != ours


FROZEN = Path(__file__).with_name("thresholds.json")


def test_no_threshold_changes_without_a_word():
    """Against a copy; whoever changes one changes that, too, and says in ``changes`` what it was and why."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    stated, changes = {}, {}
    for found in claims.load_claims():
        tests = {f"{test}.{name}": bound for test, bounds in found.tests.items() for name, bound in bounds.items()}
        for name, bound in {**{c.name: c for c in found.criteria}, **tests}.items():
            stated[f"{found.id}.{name}"] = [bound.direction, bound.threshold]
        stated[f"{found.id} needs"] = found.needs
        changes[found.id] = len(found.changes)
    assert stated == frozen["thresholds"] and changes == frozen["changes"]


@pytest.mark.parametrize("id, name, value", [("C8", "coefficient_of_variation", 0.05), ("C5", "loop_area", 0.1)])
def test_a_threshold_by_its_name(id, name, value):
    assert claims.threshold(id, name) == value
    with pytest.raises(ParameterError, match="no criterion"):
        claims.threshold(id, "another")


def test_ours_are_kept_apart_from_the_papers(store):
    papers, ours = claims.verdicts(store, {}), claims.verdicts(store, {}, group="ours")
    assert [pair[0].claim.id[0] for pair in papers] == ["C"] * 11 and {p[0].claim.id[0] for p in ours} == {"O"}


def test_ledger_in_json_has_everything(store, source, measure, runs):
    measure(0.04)
    pairs = claims.verdicts(store, {"08": source})
    entries = json.loads(json.dumps([claims.verdict_as_dict(v) for pair in pairs for v in pair]))
    assert len(entries) == 22 and sum(e["decides"] for e in entries) == 11
    found = next(e for e in entries if e["id"] == "C8" and e["decides"])
    assert found["criteria"][0]["measured"] == 0.04 and found["criteria"][0]["threshold"] == 0.05
    assert found["verdict"] == "reproduced" and found["runs"] == runs and found["n"]["contexts"] == 10
