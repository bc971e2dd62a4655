r"""Catapult-like jumps of the order parameter, and how much of them is geometry.

A jump is one step with

.. math::

    |\Delta\Phi| > 0.1 \sqrt{1 - g_{ck}^2} \quad\text{and}\quad |\Delta\Phi| > 10\,\mathrm{median}_t |\Delta\Phi_t| .

Tests (i) and (vi) against spontaneous symmetry breaking need nothing but the jumps. A geometry that rearranges (i) would
show in the geometry part of the step, in g_ck and in the drift of E; under LoRA (vi) the readout cannot move at all.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.critical.scaling import interval


def bound(dataset: xr.Dataset) -> xr.DataArray:
    """``sqrt(1 - g_ck^2)``, the largest possible ``|Φ|``, at every step."""
    return np.sqrt((1 - dataset.overlap**2).clip(min=0))


def step_sizes(dataset: xr.Dataset) -> xr.DataArray:
    """``|Φ_t - Φ_(t-1)|`` in units of the bound before the step (..., step), step = 1..T; nan from a divergence on."""
    return abs(dataset.phi.diff("step")) / bound(dataset).shift(step=1).isel(step=slice(1, None))


def find_jumps(dataset: xr.Dataset, *, size_factor: float = 0.1, median_factor: float = 10.0) -> pd.DataFrame:
    """Every jump of recorded runs (context, rate, seed, step).

    The factors are the smallest ``|ΔΦ|`` in units of the bound before the step and of the run's median.

    Returns:
        One row per jump, in the order context, rate (index), seed, step: besides these ``learning_rate``, ``size`` (ΔΦ from
        ``step - 1`` to ``step``, signed), ``share_of_bound``, ``readout_part`` and ``geometry_part`` (they add to
        ``size``), ``readout_share``, ``overlap_change`` (of g_ck), ``drift`` (of E relative to ``|E_0|``, after the step
        minus before), ``gap_before``, ``gap_after`` and ``loss_change`` (nats).
    """
    change, after = dataset.diff("step"), dataset.isel(step=slice(1, None))
    shares = step_sizes(dataset)
    large = (shares > size_factor) & (abs(change.phi) > median_factor * abs(change.phi).median("step"))
    columns = {
        "size": change.phi,
        "share_of_bound": shares,
        "readout_part": after.phi_readout_part,
        "geometry_part": after.phi_geometry_part,
        "readout_share": after.phi_readout_part.astype(float) / change.phi.astype(float),
        "overlap_change": change.overlap,
        "drift": change.readout_drift,
        "gap_before": dataset.logit_gap.shift(step=1).isel(step=slice(1, None)),
        "gap_after": after.logit_gap,
        "loss_change": change.cross_entropy,
    }
    steps = xr.Dataset(columns | {"large": large}).to_dataframe(dim_order=["context", "rate", "seed", "step"])
    table = steps[steps["large"]].reset_index().astype(dict.fromkeys(columns, float))
    return table[["context", "rate", "seed", "learning_rate", "step", *columns]]


def first_jumps(table: pd.DataFrame, rate: int, seed: int) -> pd.DataFrame:
    """The first jump of every context in the runs of one rate index and seed, from :func:`find_jumps`; indexed by context."""
    here = table[(table["rate"] == rate) & (table["seed"] == seed)]
    return here.sort_values("step").drop_duplicates("context").set_index("context").sort_index()


def with_critical_rate(contexts: list[Resolved], found: xr.Dataset) -> tuple[list[Resolved], np.ndarray]:
    """The contexts that have a critical rate in ``found`` (from ``critical_rates``), and these rates (C,)."""
    rates = found.critical_rate.values
    return [c for c, rate in zip(contexts, rates, strict=True) if np.isfinite(rate)], rates[np.isfinite(rates)]


def clearest_jump(table: pd.DataFrame) -> str | None:
    """The context of the largest jump, from :func:`find_jumps`; None without jumps."""
    return None if table.empty else str(table.loc[table["share_of_bound"].idxmax(), "context"])


def median_interval(values) -> tuple[float, float]:
    """95 % bootstrap interval of the median of ``values`` (n,); degenerate for a single value, nan without any."""
    values = np.asarray(values, dtype=float)
    return (float(values[0]), float(values[0])) if len(values) == 1 else interval(values, np.median)


@dataclass(frozen=True)
class FrozenJumps:
    """Jumps with a readout that does not change."""

    sentences: list[str]  #: ids of the contexts with such a jump in at least one model and seed
    changed_steps: int  #: steps, over all runs, at which the readout differs from its initial value
    runs: int  #: their number


def frozen_jumps(runs: list[xr.Dataset], tables: list[pd.DataFrame]) -> FrozenJumps:
    """Test (vi) from LoRA runs and their jumps, one of each per model: those in runs whose readout never changes a bit."""
    sentences, changed_steps = set(), 0
    for dataset, table in zip(runs, tables, strict=True):
        changed = (dataset.readout_unchanged == 0) & dataset.phi.notnull()  # nothing is recorded after a divergence
        changed_steps += int(changed.sum())
        still = ~changed.any("step")
        sentences |= {j.context for j in table.itertuples() if still.sel(context=j.context, seed=j.seed)[j.rate]}
    return FrozenJumps(sorted(sentences), changed_steps, sum(d.diverged_step.size for d in runs))
