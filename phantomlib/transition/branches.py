"""Test (ii), bistability and hysteresis: replicas from both sides of a jump, and learning rates up and down."""

from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import CanRun
from phantomlib.transition.jumps import bound


def follow_branches(
    store: CanRun,
    model: LanguageModel | None,
    contexts: list[Resolved],
    first: pd.DataFrame,
    recipe: Recipe,
    *,
    brake: float = 0.1,
) -> xr.Dataset | None:
    """Go on from just before and from just after a jump, at the same reduced learning rate.

    At the rate of the run itself the state before the jump would only jump again. At a rate too small to jump, a second
    branch would hold it back for ever.

    Args:
        first: the first jump of each context to follow, as from :func:`phantomlib.transition.jumps.first_jumps`.
        brake: the reduced learning rate, in units of the run's.

    Returns:
        The run (2T steps), its dimension ``rate`` named ``start`` with values ``before`` and ``after``, and with
        ``same_branch`` (context) and ``difference`` (context): ``|Φ_before - Φ_after|`` at the end as a share of the
        bound. None without jumps.
    """
    chosen = [c for c in contexts if c.id in first.index]
    if not chosen:
        return None
    longer = replace(recipe, steps=2 * recipe.steps)
    schedules = np.empty((len(chosen), 2, longer.steps))
    for i, context in enumerate(chosen):
        rate, step = first.loc[context.id, "learning_rate"], int(first.loc[context.id, "step"])
        schedules[i, 0] = np.where(np.arange(longer.steps) < step - 1, rate, brake * rate)
        schedules[i, 1] = np.where(np.arange(longer.steps) < step, rate, brake * rate)
    run = store.run(model, chosen, schedules, longer).isel(seed=0).rename(rate="start")
    run = run.assign_coords(start=["before", "after"], jump_step=("context", first.loc[[c.id for c in chosen], "step"]))
    end = run.isel(step=-1)
    run["same_branch"] = (end.logit_gap > 0).all("start") | (end.logit_gap < 0).all("start")
    run["difference"] = abs(end.phi.diff("start").isel(start=0, drop=True)) / bound(run).isel(
        step=0, start=0, drop=True
    )
    return run


def run_ramps(
    store: CanRun,
    model: LanguageModel | None,
    contexts: list[Resolved],
    critical_rates: np.ndarray,
    recipe: Recipe,
    *,
    low: float = 0.3,
    high: float = 30.0,
) -> xr.Dataset:
    """The same learning rates once in rising and once in falling order.

    Training on a fixed loss has no way back, so Φ against the learning rate proves nothing. What can be asked is
    whether the state depends on the order of the rates or only on their sum ``s = Σ η``: with hysteresis the two
    paths Φ(s) enclose an area.

    Args:
        critical_rates: (C,) learning rates that ``low`` and ``high`` multiply.

    Returns:
        The run, its dimension ``rate`` named ``order`` with values ``up`` and ``down``, and with ``consumed``
        (context, order, step), the sum of the rates so far in units of the critical rate, ``area`` (context), the
        mean of ``|Φ_up(s) - Φ_down(s)|`` over s as a share of the bound, and ``same_branch`` (context).
    """
    factors = np.geomspace(low, high, recipe.steps)
    schedules = np.asarray(critical_rates)[:, None, None] * np.stack([factors, factors[::-1]])
    run = store.run(model, contexts, schedules, recipe).isel(seed=0).rename(rate="order")
    run = run.assign_coords(order=["up", "down"])
    consumed = np.concatenate([[[0.0], [0.0]], np.cumsum([factors, factors[::-1]], axis=1)], axis=1)  # (2, T + 1)
    run["consumed"] = (("order", "step"), consumed)
    grid = np.linspace(0, consumed[0, -1], 2001)
    up, down = (
        np.stack([np.interp(grid, s, phi) for phi in run.phi.sel(order=order).values])
        for s, order in zip(consumed, ("up", "down"), strict=True)
    )
    top = bound(run).isel(step=0, order=0, drop=True)
    run["area"] = ("context", np.abs(up - down).mean(1) / top.values)
    gap = run.logit_gap.isel(step=-1)
    run["same_branch"] = (gap > 0).all("order") | (gap < 0).all("order")
    return run
