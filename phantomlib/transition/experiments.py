"""The experiments of tests (ii) to (v) against symmetry breaking, and what each of them measures.

A replica is put "just before the jump" by a schedule that repeats the run up to there and then changes the learning rate,
so the optimiser keeps its state. ``run`` is :meth:`phantomlib.runs.store.Store.run` of one model, ``critical_rates`` are
those of the C contexts, and ``first`` holds the first jump of each (:func:`phantomlib.transition.jumps.first_jumps`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.critical.search import crossing_step
from phantomlib.engine.recipe import Recipe
from phantomlib.transition.jumps import bound, step_sizes

Run = Callable[[list[Resolved], np.ndarray, Recipe], xr.Dataset]
FLAT = 1e-3  # nats; what rises and falls by less counts as flat
NEAR = 1.5  # learning rates up to here, in units of the critical one, tell how the crossing time approaches criticality
CROSSINGS = (0.25, 1.02, 1.06, 1.2, 1.5, 3.0, 10.0)  # learning rates of test (iii), in units of the critical one
FRACTIONS = np.round(np.linspace(0.1, 1.5, 15), 4)  # of a jump's own update: equidistant, one distance above 0
REFINEMENTS = 3  # the last so many tell the slope


def follow_branches(
    run: Run, contexts: list[Resolved], first: pd.DataFrame, recipe: Recipe, *, brake: float = 0.1
) -> xr.Dataset:
    """Test (ii): go on from just before and from just after a jump, at ``brake`` times the run's learning rate.

    At the run's own rate the state before the jump would jump again; at a smaller one a second branch would hold it back.

    Returns:
        The run (2T steps), its dimension ``rate`` named ``start`` with values ``before`` and ``after``, with
        ``same_branch`` (context) and ``difference`` (context): ``|Φ_before - Φ_after|`` at the end over the bound.
    """
    longer, jumps = replace(recipe, steps=2 * recipe.steps), first.loc[[c.id for c in contexts]]
    braked_from = jumps["step"].to_numpy()[:, None, None] - np.array([1, 0])[:, None]  # (C, 2, 1): before, after
    rate = jumps["learning_rate"].to_numpy()[:, None, None]
    schedules = np.where(np.arange(longer.steps) < braked_from, rate, brake * rate)  # (C, 2, 2T)
    found = run(contexts, schedules, longer).isel(seed=0).rename(rate="start")
    found = found.assign_coords(start=["before", "after"], jump_step=("context", jumps["step"]))
    end, largest = found.isel(step=-1), bound(found).isel(step=0, start=0, drop=True)
    found["same_branch"] = abs(np.sign(end.logit_gap).sum("start")) == 2  # all gaps have one sign
    found["difference"] = abs(end.phi.diff("start").isel(start=0, drop=True)) / largest
    return found


def run_ramps(
    run: Run, contexts: list[Resolved], critical_rates: np.ndarray, recipe: Recipe, *, low: float = 0.3, high: float
) -> xr.Dataset:
    """Test (ii): the learning rates from ``low`` to ``high`` times critical, once in rising and once in falling order.

    Training on a fixed loss has no way back, so what can be asked is whether the state depends on the order of the rates
    or only on their sum ``s = Σ η``: with hysteresis the two paths Φ(s) enclose an area.

    Returns:
        The run, its dimension ``rate`` named ``order`` with values ``up`` and ``down``, with ``consumed`` (order, step),
        the sum of the rates so far in units of the critical rate, ``area`` (context), the mean of
        ``|Φ_up(s) - Φ_down(s)|`` over s as a share of the bound, and ``same_branch`` (context).
    """
    factors = np.geomspace(low, high, recipe.steps)
    ramps = np.stack([factors, factors[::-1]])  # (2, T)
    schedules = np.asarray(critical_rates)[:, None, None] * ramps
    found = run(contexts, schedules, recipe).isel(seed=0).rename(rate="order").assign_coords(order=["up", "down"])
    consumed = np.pad(ramps.cumsum(axis=1), ((0, 0), (1, 0)))  # (2, T + 1), from 0
    found["consumed"] = (("order", "step"), consumed)
    grid = np.linspace(0, consumed[0, -1], 2001)
    paths = found.phi.transpose("order", "context", "step").values
    up, down = (np.stack([np.interp(grid, s, phi) for phi in path]) for s, path in zip(consumed, paths, strict=True))
    found["area"] = ("context", np.abs(up - down).mean(1) / bound(found).isel(step=0, order=0).values)
    found["same_branch"] = abs(np.sign(found.logit_gap.isel(step=-1)).sum("order")) == 2
    return found


def crossing_times(
    run: Run, contexts: list[Resolved], critical_rates: np.ndarray, recipe: Recipe, recorded: Mapping[float, xr.Dataset]
) -> xr.Dataset:
    """Test (iii): when the token overtakes, at the learning rates ``CROSSINGS`` around the critical one.

    The budget is ``recipe.steps`` = T; a multiple m below 1 gets a tenth more than T / m steps, so that a finite time can
    show. ``recorded`` are runs (context, seed, step) of T steps by multiple, which then need not run again.

    Returns:
        Dataset over (context, multiple): ``step`` (fractional t*, nan if it never crosses), ``consumed`` (η t* /
        (η_c T), dimensionless). Attribute ``run_ids``.
    """
    missing = [m for m in CROSSINGS if m not in recorded]
    budgets = {m: max(recipe.steps, math.ceil(1.1 * recipe.steps / m) + 1 if m < 1 else 0) for m in missing}
    for steps in sorted(set(budgets.values())):
        factors = [m for m in missing if budgets[m] == steps]
        found = run(contexts, np.asarray(critical_rates)[:, None] * factors, replace(recipe, steps=steps))
        recorded = {**recorded, **{factor: found.isel(rate=i) for i, factor in enumerate(factors)}}
    crossings = [[crossing_step(gap) for gap in recorded[m].logit_gap.isel(seed=0).values] for m in CROSSINGS]
    step = np.array([[when if crossed else np.nan for crossed, when in column] for column in crossings]).T
    ids = " ".join(dict.fromkeys(recorded[m].attrs["run_id"] for m in CROSSINGS))
    columns = {"step": step, "consumed": step * np.asarray(CROSSINGS) / recipe.steps}
    over = {name: (("context", "multiple"), values) for name, values in columns.items()}
    return xr.Dataset(over, {"context": [c.id for c in contexts], "multiple": list(CROSSINGS)}, {"run_ids": ids})


def slowing_down(times: xr.Dataset) -> pd.DataFrame:
    """How the times of :func:`crossing_times` behave, one row per context; nan if it fails to cross somewhere.

    ``slope`` of log t* against log η over all rates, -1 if only the consumed ``η t*`` counts; ``exponent`` ν of
    ``t* ~ (η/η_c - 1)^-ν`` fitted up to ``η/η_c = 1.5``, 1/2 or 1 at ordinary critical points, towards 0 if nothing
    diverges; ``spread``, largest over smallest ``η t*``.
    """
    multiple, step, consumed = times.multiple.values, times.step.values, times.consumed.values
    near = (multiple > 1) & (multiple <= NEAR)
    columns = {
        "slope": _slopes(np.log(multiple), np.log(step)),
        "exponent": -_slopes(np.log(multiple[near] - 1), np.log(step[:, near])),
        "spread": consumed.max(1) / consumed.min(1),
    }
    return pd.DataFrame(columns)


def _slopes(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row (n,) against x (n,); nan where a row is not finite."""
    centred = x - x.mean()
    return rows @ centred / (centred @ centred)


def potential_profile(run: Run, contexts: list[Resolved], first: pd.DataFrame, recipe: Recipe) -> xr.Dataset:
    """Test (iv): the loss along the line of a jump's own update, from the state before it (0) to that after it (1) and beyond.

    An update is linear in its learning rate: a point of the line is a run whose last rate is multiplied by a fraction.

    Returns:
        Dataset over (context, fraction), fraction 0 first: ``cross_entropy`` and ``logit_gap`` (nats), ``phi``; and
        over context ``wells`` (local minima of the cross-entropy), ``barrier`` (largest rise above the running
        minimum between fractions 0 and 1, nats) and ``convex`` (share of the line without negative curvature).
    """
    jumps = first.loc[[c.id for c in contexts]]
    schedules = np.tile(jumps["learning_rate"].to_numpy()[:, None, None], (1, len(FRACTIONS), jumps["step"].max()))
    for schedule, step in zip(schedules, jumps["step"], strict=True):
        schedule[:, step - 1] *= FRACTIONS  # what follows the jump's own update is not looked at
    found = run(contexts, schedules, replace(recipe, steps=schedules.shape[2])).isel(seed=0, drop=True)
    fields, step = found[["cross_entropy", "logit_gap", "phi"]], xr.DataArray(jumps["step"].to_numpy(), dims="context")
    ends = [fields.isel(rate=[0], step=step - 1), fields.isel(step=step)]
    line = xr.concat(ends, "rate", coords="minimal", compat="override").reset_coords(drop=True)
    line = line.rename(rate="fraction").assign_coords(fraction=np.append(0.0, FRACTIONS))
    line = line.transpose("context", "fraction")
    shapes = [_shape(line.fraction.values, loss) for loss in line.cross_entropy.values]
    line["wells"], line["barrier"], line["convex"] = (("context", list(s)) for s in zip(*shapes, strict=True))
    return line


def _shape(x: np.ndarray, loss: np.ndarray) -> tuple[int, float, float]:
    """Local minima, barrier (nats) and convex share of a loss (n,) on a line x (n,); below ``FLAT`` is flat."""
    wells, low, high = 1, loss[0], loss[0]  # of the well we are in: its minimum, and the top of the rise that followed
    for value in loss[1:]:
        high = max(high, value)
        if high - low > FLAT and high - value > FLAT:  # over a ridge and down again: another well
            wells, low, high = wells + 1, value, value
        elif value < low:
            low = high = value
    inside = loss[x <= 1]
    barrier = (inside - np.minimum.accumulate(inside)).max()
    bends = np.diff(loss, 2)  # second differences; x is equidistant
    return wells, float(barrier), float((bends > -FLAT).mean())


def force(dataset: xr.Dataset) -> xr.Dataset:
    """The force on the logit gap, ``dΔ/ds`` with ``s = Σ η``, along runs (..., step) whose differences are derivatives.

    Returns:
        Dataset with ``gap`` and ``force`` (..., step) at the middles of the steps (nats, nats per unit rate),
        ``weakest`` (...): the smallest force before the crossing relative to the first one (near 0 or negative at a
        well's edge), and ``crossed``.
    """
    gap = dataset.logit_gap
    force = gap.diff("step") / dataset.learning_rate
    on_the_way = (gap.shift(step=1) <= 0).isel(step=slice(1, None))
    weakest = force.where(on_the_way).min("step") / force.isel(step=0, drop=True)
    middle = gap.rolling(step=2).mean().isel(step=slice(1, None))
    return xr.Dataset({"gap": middle, "force": force, "weakest": weakest, "crossed": (gap > 0).any("step")})


def refine_jumps(
    run: Run, contexts: list[Resolved], coarse: xr.Dataset, recipe: Recipe, factors=(8, 16, 32)
) -> dict[int, xr.Dataset]:
    """Test (v): runs up to their largest step, again in n times as many steps of 1/n the learning rate, for each n of
    ``factors``; and under 1 those of ``coarse`` (context, one rate, seed, step)."""
    coarse = coarse.sel(context=[c.id for c in contexts])
    largest = step_sizes(coarse).isel(rate=0, seed=0).fillna(0).argmax("step").values + 1  # (C,)
    refined = {1: coarse}
    for n in factors:
        parts = []
        for steps in sorted(set(largest.tolist())):  # contexts that end at the same step run together
            group = [c for c, last in zip(contexts, largest, strict=True) if last == steps]
            rates = coarse.learning_rate.values[largest == steps] / n
            parts.append(run(group, rates, replace(recipe, steps=n * steps)))
        together = xr.concat(parts, "context", join="outer", coords="minimal", compat="override")
        refined[n] = together.assign_attrs(run_ids=" ".join(part.attrs["run_id"] for part in parts))
    return refined


def largest_steps(refined: Mapping[int, xr.Dataset]) -> xr.DataArray:
    """Largest single-step ``|ΔΦ|`` as a share of the bound, (context, refinement), from :func:`refine_jumps`."""
    largest = [step_sizes(found).max("step").isel(rate=0, seed=0, drop=True) for found in refined.values()]
    plain = [x.drop_vars("learning_rate", errors="ignore") for x in largest]
    return xr.concat(plain, pd.Index(refined, name="refinement"), join="outer").T  # contexts refined apart


def refinement_slopes(largest: xr.DataArray) -> xr.DataArray:
    """Slope of log largest step against log n over the last three refinements (context): 0 for a discontinuity, -1 if smooth."""
    tail = largest.isel(refinement=slice(-REFINEMENTS, None))
    slopes = _slopes(np.log(tail.refinement.values), np.log(tail.values))
    return xr.DataArray(slopes, {"context": tail.context}, ["context"])
