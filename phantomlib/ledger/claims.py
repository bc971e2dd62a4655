"""The ledger: claims, their thresholds, the measurements that notebooks record, and the verdicts that follow.

A notebook can only record what it measured. The verdict is computed here, from ``claims.yaml`` and the measurement, and
only while every run behind the measurement is still in the store.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
import yaml

from phantomlib.errors import ParameterError
from phantomlib.measure.store import Store

REPRODUCED, NOT_REPRODUCED, NOT_TESTED = "reproduced", "not reproduced", "not tested"
OPTIMIZERS = ("adam", "sgd")
LEDGER = Path(__file__).with_name("claims.yaml")


@dataclass(frozen=True)
class Criterion:
    """A quantity and the bound it must keep: ``direction`` is ``at least`` or ``at most``."""

    name: str
    quantity: str
    direction: str
    threshold: float
    unit: str

    def holds(self, value: float) -> bool:
        return value >= self.threshold if self.direction == "at least" else value <= self.threshold


@dataclass(frozen=True)
class Claim:
    """One assertion of the abstract.

    Attributes:
        id, statement: C1 to C11, and the assertion in our words.
        notebook, figure: where it is measured and shown.
        decides: the optimiser whose measurement decides.
        needs: smallest sample per kind, e.g. ``{"architectures": 5, "contexts": 10}``.
        criteria: all must hold.
        tests: thresholds of the single tests behind a counted criterion.
        changes: thresholds changed after data were seen: old and new value, day, reason.
    """

    id: str
    statement: str
    notebook: str
    figure: str
    decides: str
    needs: dict[str, int]
    criteria: tuple[Criterion, ...]
    tests: dict
    changes: list

    def holds(self, values: Mapping[str, float]) -> bool:
        """Whether every criterion's value keeps its bound; an undefined value does not."""
        return all(criterion.holds(values[criterion.name]) for criterion in self.criteria)


@dataclass(frozen=True)
class Verdict:
    """What the data say of one claim under one optimiser.

    Attributes:
        status: ``reproduced``, ``not reproduced`` or ``not tested``.
        reason: one sentence.
        measurement: the recorded mapping (values, interval, n, runs, detail), or None.
    """

    claim: Claim
    optimizer: str
    status: str
    reason: str
    measurement: dict | None


def load_claims(path: Path = LEDGER) -> list[Claim]:
    """Read the ledger.

    Raises:
        ParameterError: an entry lacks a field or has an unknown direction or optimiser.
    """
    claims = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        try:
            criteria = tuple(Criterion(name, **fields) for name, fields in entry["criteria"].items())
            claim = Claim(**{"tests": {}} | entry | {"criteria": criteria})
        except (TypeError, KeyError, AttributeError) as error:
            raise ParameterError(f"Claim {entry.get('id', '?')} in {path.name} is incomplete: {error}.") from None
        known = all(c.direction in ("at least", "at most") for c in criteria) and claim.decides in OPTIMIZERS
        if not criteria or not known:
            raise ParameterError(
                f"Claim {claim.id} in {path.name} needs criteria 'at least' or 'at most', and decides adam or sgd."
            )
        claims.append(claim)
    return claims


def record_measurement(
    store: Store,
    id: str,
    value: float | Mapping[str, float],
    *,
    scope: str,
    optimizer: str,
    n: Mapping[str, int],
    runs: list[str],
    interval: tuple[float, float] | None = None,
    detail: Mapping | None = None,
    ledger: Path = LEDGER,
) -> None:
    """Write a measurement; notebooks call it through ``Notebook.record``, which knows the scope.

    Args:
        store: the store whose runs were measured.
        id: the claim.
        value: one number per criterion, by name; a bare number if the claim has a single criterion.
        scope: what the measurement is of (models, contexts, dtype); measurements of different scopes do not mix.
        optimizer: ``adam`` or ``sgd``.
        n: sample sizes by kind; it must name every kind of the claim's ``needs``.
        runs: ids of all runs behind the measurement.
        interval: uncertainty of the first criterion, with its kind and level given in ``detail``.
        detail: anything else worth keeping, in JSON types.
        ledger: the file that holds the claim.

    Raises:
        ParameterError: unknown claim, optimiser, or criteria and sample kinds that are not the claim's.
    """
    claim = {c.id: c for c in load_claims(ledger)}.get(id)
    if claim is None or optimizer not in OPTIMIZERS:
        raise ParameterError(f"There is no claim '{id}' with optimiser '{optimizer}' in the ledger.")
    names = [c.name for c in claim.criteria]
    values = dict(value) if isinstance(value, Mapping) else {names[0]: value}
    if set(values) != set(names) or not set(claim.needs) <= set(n):
        raise ParameterError(
            f"Claim {id} needs values for {names} and n for {list(claim.needs)}; got {list(values)} and {list(n)}."
        )
    measurement = {
        "values": {name: float(v) for name, v in values.items()},
        "interval": None if interval is None else [float(bound) for bound in interval],
        "n": {kind: int(count) for kind, count in n.items()},
        "runs": sorted(set(runs)),
        "detail": dict(detail or {}),
    }
    path = _path(store, scope, id, optimizer)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(measurement, indent=1, default=float), encoding="utf-8")
    os.replace(temporary, path)


def scope_of(models: list[str], contexts: list, dtype: str) -> str:
    """Name of a measurement's scope: eight hex digits from the model references, the contexts and the dtype."""
    text = json.dumps([models, [asdict(context) for context in contexts], dtype])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def judge(claim: Claim, store: Store, scope: str, optimizer: str | None = None) -> Verdict:
    """The verdict on a claim; withheld (``not tested``) without measurement, sample or runs."""
    optimizer = optimizer or claim.decides
    path = _path(store, scope, claim.id, optimizer)
    try:
        measurement = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or damaged and therefore worth nothing
        measurement = None
    if measurement is None:
        reason = f"no measurement; run notebook {claim.notebook}"
        return Verdict(claim, optimizer, NOT_TESTED, reason, None)

    def verdict(status, reason):
        return Verdict(claim, optimizer, status, reason, measurement)

    missing = [run for run in measurement["runs"] if not store.has(run)]
    if missing:
        return verdict(NOT_TESTED, f"{len(missing)} of its runs are no longer in the store, such as {missing[0]}")
    small = [f"{measurement['n'].get(kind, 0)} of {count} {kind}" for kind, count in claim.needs.items()]
    if any(measurement["n"].get(kind, 0) < count for kind, count in claim.needs.items()):
        return verdict(NOT_TESTED, f"the sample is too small: {', '.join(small)}")
    values = measurement["values"]
    unknown = [c.name for c in claim.criteria if not math.isfinite(values.get(c.name, math.nan))]
    if unknown:
        return verdict(NOT_TESTED, f"{unknown[0]} could not be measured")
    failed = [c for c in claim.criteria if not c.holds(values[c.name])]
    parts = "; ".join(
        f"{c.name} is {values[c.name]:.4g}, needs {c.direction} {c.threshold:g}" for c in failed or claim.criteria
    )
    return verdict(NOT_REPRODUCED if failed else REPRODUCED, parts)


def _path(store: Store, scope: str, id: str, optimizer: str) -> Path:
    return store.root / "measurements" / scope / f"{id}-{optimizer}.json"


def verdicts(store: Store, scope: str) -> list[tuple[Verdict, Verdict]]:
    """For every claim the verdict under the optimiser that decides, and under the other."""
    pairs = []
    for claim in load_claims():
        other = next(name for name in OPTIMIZERS if name != claim.decides)
        pairs.append((judge(claim, store, scope), judge(claim, store, scope, other)))
    return pairs


def verdict_as_dict(verdict: Verdict) -> dict:
    """A verdict in JSON types: statement, each criterion's measured value and threshold, verdict, reason, n, run ids."""
    measurement = verdict.measurement or {}
    return {
        "id": verdict.claim.id,
        "statement": verdict.claim.statement,
        "optimizer": verdict.optimizer,
        "decides": verdict.optimizer == verdict.claim.decides,
        "verdict": verdict.status,
        "reason": verdict.reason,
        "criteria": [
            {
                "name": c.name,
                "quantity": c.quantity,
                "measured": measurement.get("values", {}).get(c.name),
                "direction": c.direction,
                "threshold": c.threshold,
                "unit": c.unit,
            }
            for c in verdict.claim.criteria
        ],
        "interval": measurement.get("interval"),
        "n": measurement.get("n", {}),
        "runs": measurement.get("runs", []),
        "detail": measurement.get("detail", {}),
        "notebook": verdict.claim.notebook,
        "figure": verdict.claim.figure,
        "changes": verdict.claim.changes,
    }


def ledger_table(pairs: list[tuple[Verdict, Verdict]]) -> pd.DataFrame:
    """The ledger as a table: one row per claim and criterion; the claim, what was measured, the threshold, the verdicts."""
    rows = []
    for decisive, other in pairs:
        measured, shown = (v.measurement["values"] if v.measurement else {} for v in (decisive, other))
        for i, criterion in enumerate(decisive.claim.criteria):
            sign = "≥" if criterion.direction == "at least" else "≤"
            rows.append(
                {
                    "claim": decisive.claim.id if i == 0 else "",
                    "measured quantity": criterion.name.replace("_", " "),
                    f"measured ({decisive.optimizer})": _number(measured.get(criterion.name)),
                    "needed": f"{sign} {criterion.threshold:g}",
                    "unit": criterion.unit,
                    "verdict": decisive.status if i == 0 else "",
                    f"measured ({other.optimizer})": _number(shown.get(criterion.name)),
                    f"verdict ({other.optimizer})": other.status if i == 0 else "",
                }
            )
    return pd.DataFrame(rows)


def ledger_summary(pairs: list[tuple[Verdict, Verdict]]) -> pd.DataFrame:
    """The ledger in miniature: one row per claim with its statement and both verdicts."""
    return pd.DataFrame(
        {
            "claim": decisive.claim.id,
            "statement": decisive.claim.statement,
            f"verdict ({decisive.optimizer} decides)": decisive.status,
            f"under {other.optimizer}": other.status,
        }
        for decisive, other in pairs
    )


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
