"""The ledger: a verdict follows from thresholds, measurements and runs, and from nothing else."""

import dataclasses
import json
import math

import pytest
import yaml

from phantomlib.errors import ParameterError
from phantomlib.ledger import claims
from phantomlib.measure.store import Store

SCOPE = "scope"
RUNS = ["aaaaaaaaaaaa", "bbbbbbbbbbbb"]


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    for run in RUNS:
        (store.root / f"model-full-adam-{run}.nc").touch()
    return store


def claim(identifier="C8"):
    return {c.id: c for c in claims.load_claims()}[identifier]


def measure(store, value, identifier="C8", optimizer="adam", n=None, runs=RUNS):
    n = claim(identifier).needs if n is None else n
    claims.record_measurement(store, identifier, value, scope=SCOPE, optimizer=optimizer, n=n, runs=runs)


def test_all_eleven_claims_are_declared_with_bounds_and_samples():
    declared = claims.load_claims()
    assert [c.id for c in declared] == [f"C{i}" for i in range(1, 12)]
    for c in declared:
        assert c.statement and c.needs and c.decides in claims.OPTIMIZERS
        assert all(math.isfinite(criterion.threshold) for criterion in c.criteria)


def test_thresholds_stated_in_advance():
    assert claim("C8").criteria[0].threshold == 0.05
    assert claim("C10").criteria[0].threshold == 0.021


@pytest.mark.parametrize(
    "value, status", [(0.049, claims.REPRODUCED), (0.05, claims.REPRODUCED), (0.051, claims.NOT_REPRODUCED)]
)
def test_verdict_is_the_comparison_with_the_threshold(store, value, status):
    measure(store, value)
    assert claims.judge(claim(), store, SCOPE).status == status


def test_changed_threshold_changes_the_verdict(store):
    measure(store, 0.04)
    strict = dataclasses.replace(claim(), criteria=(dataclasses.replace(claim().criteria[0], threshold=0.03),))
    assert claims.judge(claim(), store, SCOPE).status == claims.REPRODUCED
    assert claims.judge(strict, store, SCOPE).status == claims.NOT_REPRODUCED


def test_turned_direction_turns_the_verdict(store):
    measure(store, 0.04)
    turned = dataclasses.replace(claim(), criteria=(dataclasses.replace(claim().criteria[0], direction="at least"),))
    assert claims.judge(turned, store, SCOPE).status == claims.NOT_REPRODUCED


def test_removed_run_withholds_the_verdict(store):
    measure(store, 0.04)
    next(store.root.glob(f"*-{RUNS[1]}.nc")).unlink()
    verdict = claims.judge(claim(), store, SCOPE)
    assert verdict.status == claims.NOT_TESTED and RUNS[1] in verdict.reason


def test_small_sample_withholds_the_verdict(store):
    measure(store, 0.04, n={"architectures": 4, "contexts": 10})
    assert claims.judge(claim(), store, SCOPE).status == claims.NOT_TESTED


def test_undefined_value_withholds_the_verdict(store):
    measure(store, math.nan)
    assert claims.judge(claim(), store, SCOPE).status == claims.NOT_TESTED


@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_text("{"), lambda path: path.write_text("")]
)
def test_missing_or_damaged_measurement_withholds_the_verdict(store, damage):
    measure(store, 0.04)
    damage(next((store.root / "measurements" / SCOPE).glob("C8-adam.json")))
    assert claims.judge(claim(), store, SCOPE).status == claims.NOT_TESTED


def test_optimisers_and_scopes_do_not_mix(store):
    measure(store, 0.04, optimizer="sgd")
    assert claims.judge(claim(), store, SCOPE).status == claims.NOT_TESTED
    assert claims.judge(claim(), store, SCOPE, "sgd").status == claims.REPRODUCED
    assert claims.judge(claim(), store, "another", "sgd").status == claims.NOT_TESTED


@pytest.mark.parametrize(
    "values, status", [((3, 0), claims.REPRODUCED), ((2, 0), claims.NOT_REPRODUCED), ((3, 1), claims.NOT_REPRODUCED)]
)
def test_every_criterion_must_hold(store, values, status):
    names = [c.name for c in claim("C6").criteria]
    measure(store, dict(zip(names, values, strict=True)), "C6")
    assert claims.judge(claim("C6"), store, SCOPE).status == status


@pytest.mark.parametrize(
    "identifier, value, optimizer, n",
    [
        ("C99", 1.0, "adam", {"architectures": 5, "contexts": 10}),
        ("C8", 1.0, "lion", {"architectures": 5, "contexts": 10}),
        ("C8", {"another": 1.0}, "adam", {"architectures": 5, "contexts": 10}),
        ("C8", 1.0, "adam", {"architectures": 5}),
    ],
)
def test_measurement_of_something_else_is_refused(store, identifier, value, optimizer, n):
    with pytest.raises(ParameterError):
        claims.record_measurement(store, identifier, value, scope=SCOPE, optimizer=optimizer, n=n, runs=[])


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


def test_scope_depends_on_models_contexts_and_dtype():
    from phantomlib.measure.contexts import Context

    one, other = Context("a", "p", "x", "y"), Context("a", "p", "x", "z")
    scopes = {
        claims.scope_of(["m"], [one], "float32"),
        claims.scope_of(["n"], [one], "float32"),
        claims.scope_of(["m"], [other], "float32"),
        claims.scope_of(["m"], [one], "float64"),
    }
    assert len(scopes) == 4


def test_ledger_in_json_has_everything(store):
    measure(store, 0.04)
    pairs = claims.verdicts(store, SCOPE)
    entries = json.loads(json.dumps([claims.verdict_as_dict(v) for pair in pairs for v in pair]))
    assert len(entries) == 22 and sum(e["decides"] for e in entries) == 11
    found = next(e for e in entries if e["id"] == "C8" and e["decides"])
    assert found["criteria"][0]["measured"] == 0.04 and found["criteria"][0]["threshold"] == 0.05
    assert found["verdict"] == "reproduced" and found["runs"] == RUNS and found["n"]["contexts"] == 10
