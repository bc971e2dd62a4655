"""All experiments on the jumps of one model, and the quantities of the tests (i) to (v).

Spontaneous symmetry breaking would show a geometry that rearranges at the jump (i), two branches at one learning rate
(ii), a time that diverges at the critical rate (iii), a double well (iv), and a discontinuity that stays when steps are
made smaller (v). The thresholds are in ``claims.yaml`` under C5.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError, shown
from phantomlib.transition import experiments
from phantomlib.transition.jumps import find_jumps, first_jumps

MULTIPLES = (0.3, 0.7, 1.5, 3.0, 10.0, 30.0)  # learning rates of the runs, in units of the critical ones
COUNTED = (10.0, 30.0)  # those of them whose jumps are examined; the experiments start from the last


def ids_of_examination(*datasets: xr.Dataset | None) -> list[str]:
    """Ids of all runs behind results of this module, each once; None is skipped."""
    found = [d.attrs.get("run_ids") or d.attrs["run_id"] for d in datasets if d is not None]
    return list(dict.fromkeys(" ".join(found).split()))


@dataclass(frozen=True)
class Examination:
    """The five tests on one model under one optimiser; the experiments are those of :mod:`phantomlib.transition.experiments`."""

    runs: xr.Dataset  #: (context, rate, seed, step) at the ``multiples`` of the critical rate
    jumps: pd.DataFrame  #: all at the multiples that count, from :func:`phantomlib.transition.jumps.find_jumps`
    first: pd.DataFrame  #: the first of each context at the last multiple that counts
    branches: xr.Dataset | None  #: None without jumps
    ramps: xr.Dataset
    times: xr.Dataset
    profile: xr.Dataset | None  #: None without jumps
    refined: dict[int, xr.Dataset]  #: empty without jumps

    @property
    def run_ids(self) -> list[str]:
        """Ids of all runs behind this, each once."""
        datasets = self.runs, self.ramps, self.times, self.branches, self.profile, *self.refined.values()
        return ids_of_examination(*datasets)


def examine(
    store, model, contexts, critical_rates, recipe: Recipe, *, multiples=MULTIPLES, counted=COUNTED
) -> Examination:
    """Run the experiments of tests (i) to (v), with the optimiser and the steps T that the critical rates (C,) belong to.

    ``store`` is a :class:`phantomlib.runs.store.Store`, or a control with its ``run``; ``contexts`` are resolved (C).
    """
    if not counted or not set(counted) <= set(multiples):
        raise ParameterError(f"counted is {shown(counted)}; give one or more of the multiples {shown(multiples)}.")
    run = partial(store.run, model)
    runs = run(contexts, np.asarray(critical_rates)[:, None] * multiples, recipe)
    indices = [multiples.index(m) for m in counted]
    table = find_jumps(runs).query("rate in @indices").reset_index(drop=True)
    first = first_jumps(table, indices[-1], int(runs.seed[0]))
    jumping = [c for c in contexts if c.id in first.index]
    recorded = {m: runs.isel(rate=i) for i, m in enumerate(multiples) if m >= 1}
    return Examination(
        runs=runs,
        jumps=table,
        first=first,
        branches=experiments.follow_branches(run, jumping, first, recipe) if jumping else None,
        ramps=experiments.run_ramps(run, contexts, critical_rates, recipe, high=counted[-1]),
        times=experiments.crossing_times(run, contexts, critical_rates, recipe, recorded),
        profile=experiments.potential_profile(run, jumping, first, recipe) if jumping else None,
        refined=experiments.refine_jumps(run, jumping, runs.isel(rate=indices[-1:]), recipe) if jumping else {},
    )


def summarise_tests(examinations: list[Examination]) -> dict[str, dict[str, float]]:
    """The quantities of the tests (i) to (v) over all models, by test and criterion as in the ledger; nan without jumps."""
    jumps = pd.concat([e.jumps for e in examinations], ignore_index=True)
    found = [e for e in examinations if len(e.first)]
    branches = [e.branches for e in found if e.branches is not None]
    profiles = [e.profile for e in found if e.profile is not None]

    def joined(parts) -> np.ndarray:
        return np.concatenate([*map(np.ravel, parts)] or [np.array([np.nan])]).astype(float)

    ramps = pd.concat([e.ramps[["same_branch", "area"]].to_dataframe() for e in examinations])
    slow = pd.concat([experiments.slowing_down(e.times) for e in examinations])
    slopes = joined(experiments.refinement_slopes(experiments.largest_steps(e.refined)) for e in found)
    forces = [experiments.force(e.refined[max(e.refined)]) for e in found]
    numbers = {
        "geometry": {
            "median_geometry_share": (jumps["geometry_part"] / jumps["size"]).abs().median(),
            "high_overlap_change": jumps["overlap_change"].abs().quantile(0.9),
            "high_drift": jumps["drift"].abs().quantile(0.9),
        },
        "bistability": {
            "same_branch_share": joined(b.same_branch for b in branches).mean(),
            "branch_difference": np.median(joined(b.difference for b in branches)),
            "ramp_same_branch_share": ramps.same_branch.mean(),
            "loop_area": ramps.area.median(),
        },
        "slowing": {
            "crossing_share": slow.spread.notna().mean(),
            "exponent": slow.exponent.median(),
            "spread": slow.spread.median(),
        },
        "potential": {
            "single_well_share": joined(p.wells == 1 for p in profiles).mean(),
            "convex_share": np.median(joined(p.convex for p in profiles)),
            "weakest_force": np.median(joined(f.weakest for f in forces)),
            "smooth_crossing_share": joined(f.crossed for f in forces).mean(),
        },
        "refinement": {
            "median_slope": np.median(slopes),
            "shrinking_share": (slopes < -0.5).mean() if found else np.nan,
        },
    }
    return {test: {name: float(value) for name, value in entries.items()} for test, entries in numbers.items()}
