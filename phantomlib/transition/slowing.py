"""Test (iii), critical slowing down: when the token overtakes as the learning rate approaches the critical one."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.critical.search import crossing_step
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import CanRun

NEAR = 1.5  # learning rates up to here, in units of the critical one, tell how the crossing time approaches criticality


def crossing_times(
    store: CanRun,
    model: LanguageModel | None,
    contexts: list[Resolved],
    critical_rates: np.ndarray,
    recipe: Recipe,
    multiples: tuple[float, ...] = (0.25, 1.02, 1.06, 1.2, 1.5, 3.0, 10.0),
    recorded: Mapping[float, xr.Dataset] | None = None,
) -> xr.Dataset:
    """When the token overtakes, at learning rates around the critical one.

    The critical rate belongs to the budget of ``recipe.steps`` = T. A multiple m below 1 gets a tenth more than T / m
    steps, so that a finite time can show; from 1 on the budget is T.

    Args:
        recorded: runs (context, seed, step) of T steps at some of the multiples, which then need not run again.

    Returns:
        Dataset over (context, multiple): ``step`` (fractional t*, nan if it never crosses), ``consumed`` (η t* /
        (η_c T), dimensionless). Attribute ``run_ids``.
    """
    critical_rates, recorded = np.asarray(critical_rates), dict(recorded or {})
    missing = [m for m in multiples if m not in recorded]
    budgets = {m: max(recipe.steps, math.ceil(1.1 * recipe.steps / m) + 1 if m < 1 else 0) for m in missing}
    for steps in sorted(set(budgets.values())):
        factors = [m for m in missing if budgets[m] == steps]
        run = store.run(model, contexts, critical_rates[:, None] * factors, replace(recipe, steps=steps))
        recorded |= {factor: run.isel(rate=i) for i, factor in enumerate(factors)}
    step = np.full((len(contexts), len(multiples)), np.nan)
    for column, multiple in enumerate(multiples):
        for row, gap in enumerate(recorded[multiple].logit_gap.isel(seed=0).values):
            crossed, when = crossing_step(gap)
            step[row, column] = when if crossed else np.nan
    ids = dict.fromkeys(recorded[m].attrs["run_id"] for m in multiples)
    return xr.Dataset(
        {
            "step": (("context", "multiple"), step, {"units": "steps"}),
            "consumed": (("context", "multiple"), step * np.asarray(multiples) / recipe.steps, {"units": "1"}),
        },
        {"context": [c.id for c in contexts], "multiple": list(multiples)},
        {"run_ids": " ".join(ids), "steps": recipe.steps},
    )


@dataclass(frozen=True)
class Slowing:
    """How the crossing time behaves; arrays (C,), dimensionless.

    Attributes:
        slope: of log t* against log η over all rates; -1 if only the consumed ``η t*`` counts.
        exponent: ν of ``t* ~ (η/η_c - 1)^-ν`` fitted up to ``η/η_c = 1.5``; 1/2 or 1 at ordinary critical points,
            towards 0 if nothing diverges.
        spread: largest over smallest ``η t*``.
    """

    slope: np.ndarray
    exponent: np.ndarray
    spread: np.ndarray


def slowing_down(times: xr.Dataset) -> Slowing:
    """Test (iii) from :func:`crossing_times`; nan for a context that fails to cross somewhere."""
    multiple, step = times.multiple.values, times.step.values
    near = (multiple > 1) & (multiple <= NEAR)
    return Slowing(
        slope=log_slopes(np.log(multiple), np.log(step)),
        exponent=-log_slopes(np.log(multiple[near] - 1), np.log(step[:, near])),
        spread=times.consumed.max("multiple", skipna=False).values
        / times.consumed.min("multiple", skipna=False).values,
    )


def regular_exponent(multiple: np.ndarray) -> float:
    """The exponent of :func:`slowing_down` if ``η t*`` is exactly constant: not 0, since t* falls over the fitted range."""
    near = multiple[(multiple > 1) & (multiple <= NEAR)]
    return float(-log_slopes(np.log(near - 1), -np.log(near)[None])[0])


def log_slopes(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row (n,) against x (n,); nan where a row is not finite."""
    centred = x - x.mean()
    return rows @ centred / (centred @ centred)
