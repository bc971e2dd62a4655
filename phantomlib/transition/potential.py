"""Test (iv), the effective potential along the logit gap: one well or two."""

from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import CanRun

FLAT = 1e-3  # nats; what rises and falls by less counts as flat


def potential_profile(
    store: CanRun,
    model: LanguageModel | None,
    contexts: list[Resolved],
    first: pd.DataFrame,
    recipe: Recipe,
    fractions: tuple[float, ...] = tuple(np.round(np.linspace(0.1, 1.5, 15), 4).tolist()),
) -> xr.Dataset | None:
    """The loss along the line of a jump's own update, from the state before it (0) to the one after it (1) and beyond.

    An update is linear in its learning rate, so a point of the line is a run whose last rate is multiplied by the
    fraction. Fractions are equidistant and start one distance above 0.

    Returns:
        Dataset over (context, fraction), fraction 0 first: ``cross_entropy`` and ``logit_gap`` (nats), ``phi``; and
        over context ``wells`` (local minima of the cross-entropy), ``barrier`` (largest rise above the running
        minimum between fractions 0 and 1, nats) and ``convex`` (share of the line without negative curvature).
        Attribute ``run_id``. None without jumps.
    """
    chosen = [c for c in contexts if c.id in first.index]
    if not chosen:
        return None
    jump_steps = first.loc[[c.id for c in chosen], "step"].to_numpy()
    rates = first.loc[[c.id for c in chosen], "learning_rate"].to_numpy()
    last = int(jump_steps.max())
    schedules = np.tile(rates[:, None, None], (1, len(fractions), last))
    for schedule, step in zip(schedules, jump_steps, strict=True):
        schedule[:, step - 1] *= fractions  # what follows the jump's own update is not looked at
    run = store.run(model, chosen, schedules, replace(recipe, steps=last)).isel(seed=0)
    x = np.append(0.0, fractions)
    lines: dict[str, tuple] = {}
    for name in ("cross_entropy", "logit_gap", "phi"):
        values = run[name].values  # (C, fractions, last + 1)
        rows = [np.append(v[0, step - 1], v[:, step]) for v, step in zip(values, jump_steps, strict=True)]
        lines[name] = (("context", "fraction"), np.stack(rows))
    shapes = [_shape(x, loss) for loss in lines["cross_entropy"][1]]
    for i, name in enumerate(("wells", "barrier", "convex")):
        lines[name] = ("context", np.array([shape[i] for shape in shapes]))
    return xr.Dataset(lines, {"context": [c.id for c in chosen], "fraction": x}, {"run_id": run.attrs["run_id"]})


def _shape(x: np.ndarray, loss: np.ndarray) -> tuple[int, float, float]:
    """Local minima, barrier (nats) and convex share of a loss (n,) on a line x (n,); below ``FLAT`` is flat."""
    wells, low, high = 1, loss[0], loss[0]  # of the well we are in: its minimum, and the top of the rise that followed
    for value in loss[1:]:
        if value < low:
            low = high = value
        high = max(high, value)
        if high - low > FLAT and high - value > FLAT:  # over a ridge and down again: another well
            wells, low, high = wells + 1, value, value
    inside = loss[x <= 1]
    barrier = (inside - np.minimum.accumulate(inside)).max()
    bends = np.diff(loss, 2)  # second differences; x is equidistant
    return wells, float(barrier), float((bends > -FLAT).mean())


def force(dataset: xr.Dataset) -> xr.Dataset:
    """The force on the logit gap along a run, ``dΔ/ds`` with ``s = Σ η``, and what it says of the way to the crossing.

    Args:
        dataset: runs (..., step) at a learning rate so small that differences are derivatives.

    Returns:
        Dataset with ``gap`` and ``force`` (..., step) at the middles of the steps (nats, nats per unit rate),
        ``weakest`` (...): the smallest force before the crossing relative to the first one (near 0 or negative at a
        well's edge), and ``crossed``.
    """
    force = dataset.logit_gap.diff("step") / dataset.learning_rate
    middle = dataset.logit_gap.rolling(step=2).mean().isel(step=slice(1, None))
    on_the_way = (dataset.logit_gap.shift(step=1) <= 0).isel(step=slice(1, None))
    first = force.isel(step=0, drop=True)
    return xr.Dataset(
        {
            "gap": middle,
            "force": force,
            "weakest": force.where(on_the_way).min("step") / first,
            "crossed": (dataset.logit_gap > 0).any("step"),
        }
    )
