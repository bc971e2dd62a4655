"""All experiments on the jumps of one model, and the quantities of the tests (i) to (v).

Spontaneous symmetry breaking would show a geometry that rearranges at the jump, two branches at one learning rate, a
time that diverges at the critical rate, a double well, and a discontinuity that stays when steps are made smaller.
Each has a file of this folder that measures it. The thresholds are in ``claims.yaml`` under C5, and
:func:`phantombook.ledger.scoreboard.passed_tests` compares.

All experiments are fine-tuning runs from a :class:`phantomlib.runs.store.CanRun`. A replica is put "just
before the jump" by a schedule that repeats the run up to there and then changes the learning rate, so the optimiser
keeps its state.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError, shown
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import CanRun
from phantomlib.transition.branches import follow_branches, run_ramps
from phantomlib.transition.jumps import find_jumps, first_jumps, geometry_at_jumps, step_sizes
from phantomlib.transition.potential import force, potential_profile
from phantomlib.transition.refinement import largest_steps, refine_jumps, refinement_slopes
from phantomlib.transition.slowing import crossing_times, slowing_down


def ids_of_examination(*datasets: xr.Dataset | None) -> list[str]:
    """Ids of all runs behind results of this module, each once; None is skipped."""
    found = [d.attrs.get("run_ids") or d.attrs["run_id"] for d in datasets if d is not None]
    return list(dict.fromkeys(" ".join(found).split()))


@dataclass(frozen=True)
class Examination:
    """The five tests on one model under one optimiser.

    Attributes:
        name: of the model.
        runs: (context, rate, seed, step) at the ``multiples`` of the critical rate.
        jumps: all jumps at the multiples that count, from :func:`phantomlib.transition.jumps.find_jumps`.
        first: the first jump of each context at the last multiple that counts.
        branches, ramps, times, profile, refined: results of the functions of these names; None (refined: empty)
            without jumps.
    """

    name: str
    runs: xr.Dataset
    jumps: pd.DataFrame
    first: pd.DataFrame
    branches: xr.Dataset | None
    ramps: xr.Dataset
    times: xr.Dataset
    profile: xr.Dataset | None
    refined: dict[int, xr.Dataset]

    @property
    def run_ids(self) -> list[str]:
        """Ids of all runs behind this, each once."""
        return ids_of_examination(
            self.runs, self.ramps, self.times, self.branches, self.profile, *self.refined.values()
        )


def examine(
    store: CanRun,
    model: LanguageModel | None,
    contexts: list[Resolved],
    critical_rates: np.ndarray,
    recipe: Recipe,
    *,
    multiples: tuple[float, ...] = (0.3, 0.7, 1.5, 3.0, 10.0, 30.0),
    counted: tuple[float, ...] = (10.0, 30.0),
) -> Examination:
    """Run the experiments of tests (i) to (v).

    Args:
        store: where the runs come from.
        critical_rates: (C,).
        recipe: optimiser, and the number of steps T that the critical rates belong to.
        multiples: learning rates of ``runs``, in units of the critical ones.
        counted: those of ``multiples`` whose jumps are examined; the experiments start from the last.

    Raises:
        ParameterError: ``counted`` is empty or holds what is not among ``multiples``.
    """
    if not counted or not set(counted) <= set(multiples):
        raise ParameterError(f"counted is {shown(counted)}; give one or more of the multiples {shown(multiples)}.")
    critical_rates = np.asarray(critical_rates)
    runs = store.run(model, contexts, critical_rates[:, None] * multiples, recipe)
    indices = [list(multiples).index(m) for m in counted]
    table = find_jumps(runs)
    table = table[table["rate"].isin(indices)].reset_index(drop=True)
    first = first_jumps(table, indices[-1])
    recorded = {m: runs.isel(rate=i) for i, m in enumerate(multiples) if m >= 1}
    return Examination(
        name=getattr(model, "name", "control"),
        runs=runs,
        jumps=table,
        first=first,
        branches=follow_branches(store, model, contexts, first, recipe),
        ramps=run_ramps(store, model, contexts, critical_rates, recipe, high=counted[-1]),
        times=crossing_times(store, model, contexts, critical_rates, recipe, recorded=recorded),
        profile=potential_profile(store, model, contexts, first, recipe),
        refined=_refine_first(store, model, contexts, runs.isel(rate=indices[-1:]), first, recipe),
    )


def _refine_first(store, model, contexts, runs, first, recipe) -> dict[int, xr.Dataset]:
    """Refine the jumping contexts of ``runs`` (context, one rate, seed, step), each up to its largest step."""
    chosen = [c for c in contexts if c.id in first.index]
    if not chosen:
        return {}
    coarse = runs.sel(context=[c.id for c in chosen])
    largest = step_sizes(coarse).isel(rate=0, seed=0).fillna(0).argmax("step").values + 1
    rates = first.loc[[c.id for c in chosen], "learning_rate"].to_numpy()
    parts = []
    for steps in sorted(set(largest.tolist())):
        group = [c for c, s in zip(chosen, largest, strict=True) if s == steps]
        parts.append(refine_jumps(store, model, group, rates[largest == steps], replace(recipe, steps=steps)))
    ids = {n: " ".join(part[n].attrs["run_id"] for part in parts) for n in parts[0]}
    options: dict[str, Any] = {
        "join": "outer",
        "data_vars": "all",
        "coords": "minimal",
        "compat": "override",
        "combine_attrs": "drop",
    }
    refined = {n: xr.concat([part[n] for part in parts], "context", **options) for n in parts[0]}
    return {1: coarse} | {n: d.assign_attrs(run_ids=ids[n]) for n, d in refined.items()}


def summarise_tests(examinations: list[Examination]) -> dict[str, dict[str, float]]:
    """The quantities of the tests (i) to (v), by test and criterion as in the ledger, over all models together.

    A quantity of jumps is nan where there is no jump.
    """
    pooled = geometry_at_jumps(pd.concat([e.jumps for e in examinations], ignore_index=True))
    found = [e for e in examinations if len(e.first)]

    def values(pick) -> np.ndarray:
        parts = [np.ravel(pick(e)) for e in found]
        return np.concatenate(parts).astype(float) if parts else np.array([np.nan])

    ramp_sides = np.concatenate([e.ramps.same_branch.values for e in examinations]).astype(float)
    areas = np.concatenate([e.ramps.area.values for e in examinations])
    slow = [slowing_down(e.times) for e in examinations]
    slopes = values(lambda e: refinement_slopes(largest_steps(e.refined)))
    spreads = np.concatenate([s.spread for s in slow])
    numbers = {
        "geometry": {
            "median_geometry_share": pooled.median_share,
            "high_overlap_change": pooled.high_overlap_change,
            "high_drift": pooled.high_drift,
        },
        "bistability": {
            "same_branch_share": values(lambda e: e.branches.same_branch).mean(),
            "branch_difference": np.median(values(lambda e: e.branches.difference)),
            "ramp_same_branch_share": ramp_sides.mean(),
            "loop_area": np.median(areas),
        },
        "slowing": {
            "crossing_share": np.isfinite(spreads).mean(),
            "exponent": _median(np.concatenate([s.exponent for s in slow])),
            "spread": _median(spreads),
        },
        "potential": {
            "single_well_share": values(lambda e: e.profile.wells == 1).mean(),
            "convex_share": np.median(values(lambda e: e.profile.convex)),
            "weakest_force": np.median(values(lambda e: force(e.refined[max(e.refined)]).weakest)),
            "smooth_crossing_share": values(lambda e: force(e.refined[max(e.refined)]).crossed).mean(),
        },
        "refinement": {
            "median_slope": np.median(slopes),
            "shrinking_share": (slopes < -0.5).mean() if found else np.nan,
        },
    }
    return {test: {name: float(value) for name, value in entries.items()} for test, entries in numbers.items()}


def _median(values: np.ndarray) -> float:
    """Median of the finite values; nan without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan
