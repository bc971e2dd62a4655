"""The ledger: claims, their thresholds, the measurements that notebooks record, and the verdicts that follow.

A notebook can only record what it measured. The verdict is computed here, from ``claims.yaml`` and the measurement, and
only while that is bound to its evidence: the measurement is whole and was made with the parameters that are asked for,
the notebook and the modules it reaches are those that recorded it, and every run behind it is in the store and intact.

Checksums find damage and carelessness, not intent: who writes a file together with its checksum can write what they like.
That the published runs are what the code gives is found out by running it again, which is one command.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import yaml
from pydantic import ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from phantombook.ledger.measurements import Experiment, Measurement, read_record
from phantombook.plan import make_job
from phantombook.project import Profile, notebooks
from phantomlib.errors import ParameterError, shown
from phantomlib.plain_yaml import read_yaml
from phantomlib.runs.store import Store

REPRODUCED, NOT_REPRODUCED, NOT_TESTED, STALE = "reproduced", "not reproduced", "not tested", "stale"
STATUSES = (REPRODUCED, NOT_REPRODUCED, NOT_TESTED, STALE)
OPTIMIZERS = ("adam", "sgd")
LEDGER = Path(__file__).with_name("claims.yaml")
ONLY_THESE = ConfigDict(extra="forbid")  # no field with a misspelt name
Measured = Mapping[str, Mapping[str, float]]  # test -> criterion -> value, as from examine.summarise_tests


@checked(frozen=True, config=ONLY_THESE)
class Criterion:
    """A quantity and the bound it must keep.

    ``sample``: the kind of sample that the quantity counts, such as ``contexts``; such a count cannot exceed it.
    """

    name: str
    quantity: str
    direction: Literal["at least", "at most"]
    threshold: FiniteFloat
    unit: str
    sample: str = ""

    def holds(self, value: float) -> bool:
        return value >= self.threshold if self.direction == "at least" else value <= self.threshold


@checked(frozen=True, config=ONLY_THESE)
class Change:
    """What was changed in a claim after data were seen."""

    what: str
    day: str
    before: str
    now: str
    reason: str


@checked(frozen=True, config=ONLY_THESE)
class Claim:
    """One assertion: C1 to C11 of the abstract, R1 and on the same of real models, O1 and on ours."""

    id: str
    statement: str  #: in our words
    notebook: str  #: where it is measured
    figure: str  #: where it is shown
    decides: Literal["adam", "sgd"]  #: the optimiser whose measurement decides
    needs: dict[str, int]  #: smallest sample per kind, e.g. ``{"architectures": 5, "contexts": 10}``
    criteria: Annotated[tuple[Criterion, ...], Field(min_length=1)]  #: all must hold
    changes: tuple[Change, ...]  #: after data were seen
    tests: dict[str, dict[str, Criterion]] = Field(default_factory=dict)  #: those behind a counted criterion, by name
    ours: bool = False
    repeats: str = ""  #: the claim that this one asks again, of real pretrained models
    to_fail: str = ""  #: what it would have taken to miss the thresholds, in words

    @property
    def group(self) -> str:
        """``paper``, ``ours``, or ``real`` for the paper's claims on real models."""
        return "ours" if self.ours else "real" if self.repeats else "paper"

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether every criterion's value keeps its bound; an undefined value does not."""
        return all(criterion.holds(values[criterion.name]) for criterion in self.criteria)

    def passed_tests(self, measured: Measured) -> dict[str, bool]:
        """Which of the tests behind a counted criterion are passed; a value that is nan fails.

        Raises:
            ParameterError: a criterion was not measured.
        """
        for test, bounds in self.tests.items():
            if missing := bounds.keys() - measured.get(test, {}).keys():
                raise ParameterError(f"Test '{test}' of claim {self.id} needs {', '.join(missing)}: measure it.")
        return {
            test: all(bound.holds(measured[test][name]) for name, bound in bounds.items())
            for test, bounds in self.tests.items()
        }

    def scoreboard(self, columns: Mapping[str, Measured]) -> pd.DataFrame:
        """The criteria of all tests as a table: test, quantity, threshold, and a column of values per entry of ``columns``."""
        signs = {"at least": "≥", "at most": "≤"}
        return pd.DataFrame(
            {"test": test, "quantity": bound.quantity, "threshold": f"{signs[bound.direction]} {bound.threshold:g}"}
            | {name: f"{measured[test][bound.name]:.3g}" for name, measured in columns.items()}
            for test, bounds in self.tests.items()
            for bound in bounds.values()
        )


@dataclass(frozen=True)
class Verdict:
    """What the data say of one claim under one optimiser.

    Where nothing but the size of the sample withholds it, the outlook is what the numbers say all the same, such as ``meets
    the threshold; 1 of 5 architectures``.
    """

    claim: Claim
    optimizer: str
    status: str  #: one of ``STATUSES``; stale if code that recorded it has changed
    reason: str  #: one sentence
    measurement: Measurement | None
    outlook: str = ""

    @property
    def shown(self) -> str:
        """What a reader is told: the outlook if there is one, else the status."""
        return self.outlook or self.status


def load_claims(path: Path = LEDGER) -> list[Claim]:
    """Read the ledger; ParameterError if it is not YAML, or an entry is not a claim or has the name of another."""
    try:
        entries = read_yaml(path)
        named = [_with_names(entry, entries) for entry in entries]
        claims = TypeAdapter(list[Claim]).validate_json(json.dumps(named), strict=True)
    except (OSError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())[:300]
        raise ParameterError(f"The ledger '{path}' cannot be read, or is not valid YAML: {told}. Mend it.") from None
    except ValidationError as error:
        first = error.errors()[0]
        number, *place = first["loc"]
        told = f"{entries[number].get('id', number)} in {path.name}: {'.'.join(map(str, place))}: {first['msg']}"
        raise ParameterError(f"Claim {told}. Mend the entry.") from None
    except (TypeError, AttributeError, KeyError, ValueError):
        raise ParameterError(f"{path.name} must be a list of claims, each with criteria by name. Mend it.") from None
    names = [claim.id for claim in claims]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ParameterError(f"{path.name} has more than one claim {', '.join(sorted(twice))}; rename one.")
    return claims


def _with_names(entry: dict, entries: list[dict]) -> dict:
    """An entry of the ledger; its criteria hold their names. ``tests: C5`` stands for those of that claim."""
    listed = entry.get("tests", {})
    if isinstance(listed, str):
        [listed] = [other["tests"] for other in entries if other["id"] == listed]
    tests = {test: {name: bound | {"name": name} for name, bound in bounds.items()} for test, bounds in listed.items()}
    return entry | {"criteria": [bound | {"name": name} for name, bound in entry["criteria"].items()], "tests": tests}


@cache
def threshold(id: str, name: str) -> float:
    """The threshold of a criterion, or of one of the tests behind it, as the ledger states it; ParameterError if it has none."""
    for claim in (claim for claim in load_claims() if claim.id == id):
        for bounds in ({bound.name: bound for bound in claim.criteria}, *claim.tests.values()):
            if name in bounds:
                return bounds[name].threshold
    raise ParameterError(f"The ledger has no criterion '{name}' of a claim '{id}'.")


def measured(
    id: str,
    value: float | Mapping[str, float],
    *,
    optimizer: str,
    n: Mapping[str, int],
    runs: list[str],
    interval: tuple[float, float] | None = None,
    detail: Mapping | None = None,
    ledger: Path = LEDGER,
) -> Measurement:
    """What was measured for a claim; notebooks record it through ``Notebook.record``.

    Args:
        id: the claim.
        value: one number per criterion, by name; a bare number if the claim has a single criterion.
        optimizer: ``adam`` or ``sgd``.
        n: sample sizes by kind; it must name every kind of the claim's ``needs``.
        runs: ids of all runs behind the measurement; a claim without any stays untested.
        interval: uncertainty of the first criterion, with its kind and level given in ``detail``.
        detail: anything else worth keeping, in JSON types.
        ledger: the file that declares the claim.

    Raises:
        ParameterError: unknown claim, optimiser, or criteria and sample kinds that are not the claim's.
    """
    claim = {c.id: c for c in load_claims(ledger)}.get(id)
    if claim is None or optimizer not in OPTIMIZERS:
        raise ParameterError(f"There is no claim {shown(id)} with optimiser {shown(optimizer)} in the ledger.")
    names = [c.name for c in claim.criteria]
    values = dict(value) if isinstance(value, Mapping) else {names[0]: value}
    if set(values) != set(names) or not set(claim.needs) <= set(n):
        wanted, got = f"values for {names} and n for {list(claim.needs)}", f"{shown(list(values))} and {shown(list(n))}"
        raise ParameterError(f"Claim {id} needs {wanted}; got {got}.")
    return Measurement(
        values={name: float(v) for name, v in values.items()},
        interval=None if interval is None else tuple(float(bound) for bound in interval),
        n={kind: int(count) for kind, count in n.items()},
        runs=tuple(sorted(set(runs))),
        detail=dict(detail or {}),
    )


def judge(claim: Claim, store: Store, experiment: Experiment | None, optimizer: str | None = None) -> Verdict:
    """The verdict on a claim; withheld (``not tested``, ``stale``) unless it is bound to all of its evidence.

    Args:
        claim: the claim.
        store: where the measurement and its runs are.
        experiment: the claim's notebook with the parameters asked for; None if there is no such notebook.
        optimizer: whose measurement; that of the one that decides if None.
    """
    optimizer, notebook = optimizer or claim.decides, f"notebook {claim.notebook}"
    try:
        record = read_record(store, experiment) if experiment else None
    except ValueError as error:
        return Verdict(claim, optimizer, NOT_TESTED, f"{error}; run {notebook} again", None)
    measurement = record.measurements.get(f"{claim.id}-{optimizer}") if record else None
    if not experiment or not record or not measurement:
        missing = (
            f"no measurement with these parameters; run {notebook}" if experiment else f"there is no {notebook} here"
        )
        return Verdict(claim, optimizer, NOT_TESTED, missing, None)
    if not record.key or record.key != experiment.key:
        reason = f"{notebook}, or a module that it reaches, is no longer what recorded it; run {notebook} again"
        return Verdict(claim, optimizer, STALE, reason, measurement)
    return judge_measurement(claim, store, optimizer, measurement)


def judge_measurement(claim: Claim, store: Store, optimizer: str, measurement: Measurement) -> Verdict:
    """The verdict on a claim by a measurement that nothing else speaks against."""

    def verdict(status: str, reason: str, outlook: str = "") -> Verdict:
        return Verdict(claim, optimizer, status, reason, measurement, outlook)

    if not measurement.runs:
        return verdict(NOT_TESTED, "its measurement names no run")
    for problem, fine in (("no longer in the store", store.has), ("damaged", store.holds)):
        if bad := [run for run in measurement.runs if not fine(run)]:
            return verdict(
                NOT_TESTED, f"{len(bad)} of its {len(measurement.runs)} runs are {problem}, such as {bad[0]}"
            )
    values = {c.name: measurement.values.get(c.name, math.nan) for c in claim.criteria}
    have = {kind: measurement.n.get(kind, 0) for kind in claim.needs}
    small = ", ".join(f"{have[kind]} of {count} {kind}" for kind, count in claim.needs.items() if have[kind] < count)
    unknown = [name for name, value in values.items() if not math.isfinite(value)]
    failed = [c for c in claim.criteria if c.name not in unknown and not c.holds(values[c.name])]
    told = [f"{c.name} is {values[c.name]:.4g}, needs {c.direction} {c.threshold:g}" for c in failed or claim.criteria]
    outlook = "misses the threshold" if failed else "meets the threshold"
    if any(c.direction == "at least" and c.threshold > have.get(c.sample, math.inf) for c in failed):
        outlook = "too small to meet the threshold"  # a count of 5 of 10 contexts cannot be reached with 4
    said = "; ".join(told)
    if unknown:
        said = outlook = f"{unknown[0]} could not be measured"
    if small:
        return verdict(NOT_TESTED, f"the sample is too small; {said}", f"{outlook}; {small}")
    return verdict(NOT_TESTED if unknown else NOT_REPRODUCED if failed else REPRODUCED, said)


def expected_experiments(root: Path, profile: Profile) -> dict[str, Experiment]:
    """The experiments whose measurements count for a profile, by the number of the notebook; those not in the project left out.

    Raises:
        ParameterError: a value of the profile does not fit its notebook.
    """
    numbers = sorted({claim.notebook for claim in load_claims()} & notebooks(root).keys())
    jobs = {number: make_job(root, number, {}, profile=profile) for number in numbers}
    return {number: Experiment(job.source, job.all_parameters) for number, job in jobs.items()}


def verdicts(
    store: Store, experiments: Mapping[str, Experiment], *, group: str = "paper"
) -> list[tuple[Verdict, Verdict]]:
    """For every claim of a group the verdict under the optimiser that decides, and under the other.

    ``experiments``: the notebooks, by number, with the parameters asked for.
    """
    pairs = []
    for claim in (c for c in load_claims() if c.group == group):
        [other] = {*OPTIMIZERS} - {claim.decides}
        experiment = experiments.get(claim.notebook)
        pairs.append((judge(claim, store, experiment), judge(claim, store, experiment, other)))
    return pairs


def verdict_as_dict(verdict: Verdict) -> dict:
    """A verdict in JSON types: statement, each criterion's measured value and threshold, verdict, reason, n, run ids."""
    claim, found = asdict(verdict.claim), verdict.measurement or Measurement({}, None, {}, (), {})
    return {
        **{name: claim[name] for name in ("id", "statement", "notebook", "figure", "changes", "to_fail")},
        "optimizer": verdict.optimizer,
        "decides": verdict.optimizer == verdict.claim.decides,
        "verdict": verdict.status,
        "shown": verdict.shown,
        "reason": verdict.reason,
        "criteria": [bound | {"measured": found.values.get(bound["name"])} for bound in claim["criteria"]],
        **{name: getattr(found, name) for name in ("interval", "n", "runs", "detail")},
    }
