"""The ledger: a verdict follows from thresholds, measurements and runs, and from nothing else."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from phantombook.cli import app
from phantombook.ledger import claims
from phantombook.ledger.claims import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, STALE
from phantomlib.errors import ParameterError

CLAIMS = {claim.id: claim for claim in claims.load_claims()}
C8 = CLAIMS["C8"]


def test_all_claims_are_declared_with_bounds_and_samples():
    declared = claims.load_claims()
    assert [c.id for c in declared if c.group == "paper"] == [f"C{i}" for i in range(1, 12)]
    assert [(c.id, c.repeats) for c in declared if c.group == "real"] == [(f"R{i}", f"C{i}") for i in range(1, 11)]
    assert [c.id for c in declared if c.ours] == [f"O{i}" for i in range(1, 19)]
    for c in declared:
        assert c.statement and c.needs and c.decides in claims.OPTIMIZERS
        assert all(math.isfinite(criterion.threshold) for criterion in c.criteria)


@pytest.mark.parametrize("value, status", [(0.049, REPRODUCED), (0.05, REPRODUCED), (0.051, NOT_REPRODUCED)])
def test_verdict_is_the_comparison_with_the_threshold(case, value, status):
    case.record(value)
    assert case.verdict().status == status


@pytest.mark.parametrize("change", [{"threshold": 0.005}, {"direction": "at least"}])
def test_a_changed_bound_changes_the_verdict(case, change):
    other = replace(C8, criteria=(replace(C8.criteria[0], **change),))
    assert (case.verdict().status, case.verdict(other).status) == (REPRODUCED, NOT_REPRODUCED)


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
def test_a_small_sample_withholds_the_verdict_and_says_what_its_numbers_say(case, identifier, value, n, shown):
    chosen = CLAIMS[identifier]
    values = dict(zip([c.name for c in chosen.criteria], value if isinstance(value, tuple) else [value], strict=True))
    case.record(values, claim=identifier, n=dict(zip(("architectures", "contexts"), n, strict=True)))
    verdict = case.verdict(chosen)
    assert (verdict.status, verdict.shown) == (NOT_TESTED, shown)
    assert "the sample is too small" in verdict.reason
    assert json.loads(json.dumps(claims.verdict_as_dict(verdict)))["shown"] == shown


def test_only_the_size_of_the_sample_leaves_an_outlook(case):
    small = {"architectures": 4, "contexts": 10}
    for value, shown in ((0.04, REPRODUCED), (0.06, NOT_REPRODUCED), (math.nan, NOT_TESTED)):
        case.record(value)
        assert case.verdict().shown == shown
    case.record(0.04, n=small, runs=[])
    assert case.verdict().shown == NOT_TESTED
    case.record(0.04, n=small)
    elsewhere = case.source()
    elsewhere.key = "another"
    assert claims.judge(C8, case.store, elsewhere).shown == STALE
    case.run(1).unlink()
    assert case.verdict().shown == NOT_TESTED and case.runs[1] in case.verdict().reason


@pytest.mark.parametrize("values, status", [((3, 0), REPRODUCED), ((2, 0), NOT_REPRODUCED), ((3, 1), NOT_REPRODUCED)])
def test_every_criterion_must_hold(case, values, status):
    names = [c.name for c in CLAIMS["C6"].criteria]
    case.record(dict(zip(names, values, strict=True)), claim="C6")
    assert case.verdict(CLAIMS["C6"]).status == status


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


BOUND = {"quantity": "q", "direction": "at least", "threshold": 1, "unit": "1"}


def entry(**changes):
    return {"id": "X", "statement": "s", "notebook": "01", "figure": "f", "decides": "adam",
            "needs": {"contexts": 2}, "criteria": {"a": dict(BOUND)}, "changes": []} | changes  # fmt: skip


@pytest.mark.parametrize(
    "text, words",
    [
        ([entry(decides="lion")], "Claim X .*decides"),
        ([entry(criteria={})], "Claim X .*criteria"),
        ([entry(statment="s")], "Claim X .*statment"),
        ([entry(criteria={"a": BOUND | {"direction": "about"}})], "criteria.0.direction"),
        ([entry(criteria={"a": {"quantity": "q", "direction": "at least", "unit": "1"}})], "criteria.0.threshold"),
        ([entry(criteria={"a": BOUND | {"threshold": "1"}})], "threshold"),
        ([entry(criteria={"a": BOUND | {"threshold": math.nan}})], "threshold"),
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
    path.write_text(yaml.safe_dump([entry()]), encoding="utf-8")
    assert claims.load_claims(path)[0].criteria[0].name == "a"


def test_an_experiment_is_every_parameter_but_the_place_of_the_store(case, tmp_path):
    (tmp_path / "mine.yaml").write_text("one")
    (tmp_path / "folder").mkdir()

    def file(**parameters):
        return case.source(**parameters).file(case.store)

    changes = [
        {},
        {"models": ["n"]},
        {"real_contexts": "mine.yaml"},
        {"real_contexts": "fitting:mine.yaml"},
        {"dtype": "float64"},
        {"size_factor": 5.0},
        {"steps": 21},
    ]
    ours = [file(**change) for change in changes]
    assert len(set(ours)) == len(changes) and file(store="folder") == ours[0]
    (tmp_path / "mine.yaml").write_text("two")  # whatever parameter names a file: its words count
    assert file(real_contexts="fitting:mine.yaml") not in ours
    case.notebook = case.notebook.rename(case.notebook.with_name("10_toy.py"))
    assert file() not in ours


FROZEN = Path(__file__).with_name("thresholds.json")


def test_no_threshold_changes_without_a_word():
    """Against a copy; whoever changes one changes that, too, and says in ``changes`` what it was and why."""
    frozen = json.loads(FROZEN.read_text(encoding="utf-8"))
    stated, changes, decides = {}, {}, {}
    for found in claims.load_claims():
        tests = {f"{test}.{name}": bound for test, bounds in found.tests.items() for name, bound in bounds.items()}
        for name, bound in {**{c.name: c for c in found.criteria}, **tests}.items():
            stated[f"{found.id}.{name}"] = [bound.direction, bound.threshold]
        stated[f"{found.id} needs"] = found.needs
        changes[found.id], decides[found.id] = len(found.changes), found.decides
    assert (stated, changes, decides) == (frozen["thresholds"], frozen["changes"], frozen["decides"])


@pytest.mark.parametrize("id, name, value", [("C8", "coefficient_of_variation", 0.05), ("C5", "loop_area", 0.1)])
def test_a_threshold_by_its_name(id, name, value):
    assert claims.threshold(id, name) == value
    with pytest.raises(ParameterError, match="no criterion"):
        claims.threshold(id, "another")


def test_the_ledger_in_json_has_everything_and_ours_apart_from_the_papers(case):
    case.record(0.04)
    pairs = claims.verdicts(case.store, {"08": case.source()})
    entries = json.loads(json.dumps([claims.verdict_as_dict(v) for pair in pairs for v in pair]))
    assert [entry["id"] for entry in entries if entry["decides"]] == [f"C{i}" for i in range(1, 12)]
    assert len(entries) == 22
    found = next(e for e in entries if e["id"] == "C8" and e["decides"])
    assert found["criteria"][0]["measured"] == 0.04 and found["criteria"][0]["threshold"] == 0.05
    assert found["verdict"] == "reproduced" and found["runs"] == sorted(case.runs[:2]) and found["n"]["contexts"] == 10
    assert [pair[0].claim.id[0] for pair in claims.verdicts(case.store, {}, group="ours")] == ["O"] * 18


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_the_command_says_what_a_small_sample_says(monkeypatch, words):
    small, other = "meets the threshold; 1 of 5 architectures", "misses the threshold; 1 of 5 architectures"
    pair = [
        claims.Verdict(C8, name, NOT_TESTED, "a reason", claims.Measurement({}, None, {}, ("run",), {}), told)
        for name, told in (("adam", small), ("sgd", other))
    ]
    monkeypatch.setattr(claims, "verdicts", lambda *_, group="paper": [tuple(pair)] if group == "paper" else [])
    told = CliRunner().invoke(app, ["claims", *words])
    assert told.exit_code == 0, told.output
    said = [f'"shown": "{small}"'] if words else [f"C8   {small} ", f"sgd: {other} (a reason)"]
    assert all(line in told.stdout for line in said)
