"""The single tests behind a counted claim: their thresholds, what was measured, which pass."""

from collections.abc import Mapping

import pandas as pd

from phantombook.ledger.claims import Claim, Criterion
from phantomlib.errors import ParameterError


def criteria_of(claim: Claim) -> list[tuple[str, Criterion, str]]:
    """The criteria behind a claim's tests in order: test, criterion, and the criterion's name as words."""
    return [
        (test, criterion, name.replace("_", " "))
        for test, criteria in claim.tests.items()
        for name, criterion in criteria.items()
    ]


def scoreboard(claim: Claim, columns: Mapping[str, Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """All criteria as a table: test, quantity, threshold, and one column of values per entry of ``columns``."""
    signs = {"at least": "≥", "at most": "≤"}
    return pd.DataFrame(
        [
            {"test": test, "quantity": c.quantity, "threshold": f"{signs[c.direction]} {c.threshold:g}"}
            | {name: f"{measured[test][c.name]:.3g}" for name, measured in columns.items()}
            for test, c, _ in criteria_of(claim)
        ]
    )


def passed_tests(claim: Claim, measured: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
    """Which tests of a claim its measurements pass, by the thresholds of the ledger.

    Args:
        claim: with ``tests``: test name -> criterion name -> quantity, direction, threshold, unit.
        measured: test name -> criterion name -> value, as from :func:`phantomlib.transition.examine.summarise_tests`.

    Raises:
        ParameterError: a criterion was not measured. A value that is nan fails.
    """
    verdicts = dict.fromkeys(claim.tests, True)
    for test, criterion, _ in criteria_of(claim):
        if criterion.name not in measured.get(test, {}):
            raise ParameterError(f"Test '{test}' of claim {claim.id} needs {criterion.name}, which was not measured.")
        verdicts[test] &= criterion.holds(measured[test][criterion.name])
    return verdicts
