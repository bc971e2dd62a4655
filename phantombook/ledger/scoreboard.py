"""The single tests behind a counted claim: their thresholds, what was measured, which pass."""

from collections.abc import Mapping

import pandas as pd

from phantombook.ledger.claims import Claim, Criterion
from phantomlib.errors import ParameterError

Measured = Mapping[str, Mapping[str, float]]  # test -> criterion -> value, as from examine.summarise_tests


def criteria_of(claim: Claim) -> list[tuple[str, Criterion, str]]:
    """The criteria behind a claim's tests in order: test, criterion, and the criterion's name as words."""
    return [
        (test, bound, name.replace("_", " ")) for test, bounds in claim.tests.items() for name, bound in bounds.items()
    ]


def scoreboard(claim: Claim, columns: Mapping[str, Measured]) -> pd.DataFrame:
    """All criteria as a table: test, quantity, threshold, and one column of values per entry of ``columns``."""
    signs = {"at least": "≥", "at most": "≤"}
    return pd.DataFrame(
        {"test": test, "quantity": c.quantity, "threshold": f"{signs[c.direction]} {c.threshold:g}"}
        | {name: f"{measured[test][c.name]:.3g}" for name, measured in columns.items()}
        for test, c, _ in criteria_of(claim)
    )


def passed_tests(claim: Claim, measured: Measured) -> dict[str, bool]:
    """Which tests of a claim its measurements pass, by the thresholds of the ledger; a value that is nan fails.

    Raises:
        ParameterError: a criterion was not measured.
    """
    for test, bounds in claim.tests.items():
        if missing := bounds.keys() - measured.get(test, {}).keys():
            raise ParameterError(f"Test '{test}' of claim {claim.id} needs {', '.join(missing)}: measure it.")
    return {
        test: all(bound.holds(measured[test][name]) for name, bound in bounds.items())
        for test, bounds in claim.tests.items()
    }
