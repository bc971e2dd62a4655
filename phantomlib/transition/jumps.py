r"""Catapult-like jumps of the order parameter, and how much of them is geometry.

A jump is one step with

.. math::

    |\Delta\Phi| > 0.1 \sqrt{1 - g_{ck}^2} \quad\text{and}\quad |\Delta\Phi| > 10\,\mathrm{median}_t |\Delta\Phi_t| .

Test (i) against spontaneous symmetry breaking is here too, since it needs nothing but the jumps: a geometry that
rearranges would show in the geometry part of the step, in g_ck and in the drift of E.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.critical.scaling import interval

JUMP_COLUMNS = [
    "context", "rate", "seed", "learning_rate", "step", "size", "share_of_bound", "readout_part",
    "geometry_part", "readout_share", "overlap_change", "drift", "gap_before", "gap_after", "loss_change",
]  # fmt: skip


def bound(dataset: xr.Dataset) -> xr.DataArray:
    """``sqrt(1 - g_ck^2)``, the largest possible ``|Φ|``, at every step."""
    return np.sqrt((1 - dataset.overlap**2).clip(min=0))


def step_sizes(dataset: xr.Dataset) -> xr.DataArray:
    """``|Φ_t - Φ_(t-1)|`` in units of the bound before the step (..., step), step = 1..T; nan from a divergence on."""
    return abs(dataset.phi.diff("step")) / bound(dataset).shift(step=1).isel(step=slice(1, None))


def find_jumps(dataset: xr.Dataset, *, size_factor: float = 0.1, median_factor: float = 10.0) -> pd.DataFrame:
    """Every jump of every run.

    Args:
        dataset: recorded runs with dimensions (context, rate, seed, step).
        size_factor: smallest ``|ΔΦ|`` in units of the bound ``sqrt(1 - g_ck^2)`` before the step.
        median_factor: smallest ``|ΔΦ|`` in units of the run's median ``|ΔΦ|``.

    Returns:
        One row per jump, in the order context, rate, seed, step: ``context``, ``rate`` (its index), ``seed``,
        ``learning_rate``, ``step`` (the jump is from ``step - 1`` to ``step``), ``size`` (ΔΦ, signed),
        ``share_of_bound``, ``readout_part`` and ``geometry_part`` (they add to ``size``), ``readout_share``,
        ``overlap_change`` (of g_ck), ``drift`` (change of E relative to ``|E_0|`` since the start, after the step
        minus before), ``gap_before``, ``gap_after`` and ``loss_change`` (nats).
    """
    change = dataset.phi.diff("step")
    shares = step_sizes(dataset)
    is_jump = (shares > size_factor) & (abs(change) > median_factor * abs(change).median("step"))
    dims, rows = ("context", "rate", "seed", "step"), []
    names = ["phi", "phi_readout_part", "phi_geometry_part", "overlap", "readout_drift", "logit_gap", "cross_entropy"]
    fields = {name: dataset[name].transpose(*dims).values for name in names}
    sizes, learning_rate = shares.transpose(*dims).values, dataset.learning_rate.transpose(*dims[:2]).values
    for c, r, s, before in np.argwhere(is_jump.transpose(*dims).values).tolist():
        t = before + 1
        at = {name: float(values[c, r, s, t]) for name, values in fields.items()}
        change = {name: float(values[c, r, s, t] - values[c, r, s, before]) for name, values in fields.items()}
        rows.append(
            {
                "context": str(dataset.context.values[c]),
                "rate": r,
                "seed": int(dataset.seed.values[s]),
                "learning_rate": float(learning_rate[c, r]),
                "step": t,
                "size": change["phi"],
                "share_of_bound": float(sizes[c, r, s, before]),
                "readout_part": at["phi_readout_part"],
                "geometry_part": at["phi_geometry_part"],
                "readout_share": at["phi_readout_part"] / change["phi"],
                "overlap_change": change["overlap"],
                "drift": change["readout_drift"],
                "gap_before": float(fields["logit_gap"][c, r, s, before]),
                "gap_after": at["logit_gap"],
                "loss_change": change["cross_entropy"],
            }
        )
    return pd.DataFrame(rows, columns=JUMP_COLUMNS)


def first_jumps(table: pd.DataFrame, rate: int) -> pd.DataFrame:
    """The first jump of every context at one rate index (first seed), from :func:`find_jumps`; indexed by context."""
    here = table[(table["rate"] == rate) & (table["seed"] == table["seed"].min())]
    return here.sort_values("step").drop_duplicates("context").set_index("context").sort_index()


def jumping_contexts(table: pd.DataFrame, rates: int) -> list[int]:
    """How many contexts have a jump at each of ``rates`` rate indices, from :func:`find_jumps`."""
    return [int(table[table["rate"] == r]["context"].nunique()) for r in range(rates)]


def onset(table: pd.DataFrame, runs: xr.Dataset, multiples, sharpness: pd.Series) -> pd.DataFrame:
    """Every run beside the edge of stability of the untrained model.

    Args:
        table: jumps of ``runs``, from :func:`find_jumps`.
        runs: (context, rate, seed, step), first seed used.
        multiples: the rates in units of the critical one.
        sharpness: λ_max of the contexts to include, by context id.

    Returns:
        One row per context and rate: ``context``, ``multiple``, ``edge`` (η λ_max / 2, 1 at the edge of stability),
        ``critical_edge`` (the same at the critical rate),
        ``largest`` (largest step of Φ over its bound) and ``jumped``.
    """
    largest = step_sizes(runs).max("step").isel(seed=0)
    jumped = set(zip(table["context"], table["rate"], strict=True))
    return pd.DataFrame(
        [
            {
                "context": context,
                "multiple": multiple,
                "edge": float(runs.learning_rate.sel(context=context)[rate]) * curvature / 2,
                "critical_edge": float(runs.learning_rate.sel(context=context)[rate]) / multiple * curvature / 2,
                "largest": float(largest.sel(context=context)[rate]),
                "jumped": (context, rate) in jumped,
            }
            for context, curvature in sharpness.items()
            for rate, multiple in enumerate(multiples)
        ]
    )


def with_critical_rate(contexts: list[Resolved], found: xr.Dataset) -> tuple[list[Resolved], np.ndarray]:
    """The contexts that have a critical rate in ``found`` (from ``critical_rates``), and these rates (C,)."""
    rates = found.critical_rate.values
    return [c for c, rate in zip(contexts, rates, strict=True) if np.isfinite(rate)], rates[np.isfinite(rates)]


def nearest_multiple(multiples, wanted: float) -> int:
    """Index of the multiple closest to ``wanted`` on a logarithmic scale."""
    return int(np.abs(np.log(np.asarray(multiples) / wanted)).argmin())


def geometric_mean(rates) -> float:
    """Of the critical rates of one model's contexts; contexts without one (nan) do not count."""
    return float(np.exp(np.nanmean(np.log(np.asarray(rates, dtype=float)))))


def clearest_jump(table: pd.DataFrame) -> str | None:
    """The context of the largest jump, from :func:`find_jumps`; None without jumps."""
    return None if table.empty else str(table.loc[table["share_of_bound"].idxmax(), "context"])


@dataclass(frozen=True)
class JumpGeometry:
    """How much of the jumps is geometry; shares and changes are dimensionless.

    Attributes:
        n: jumps.
        median_share, high_share: median and nine-tenths quantile of ``|geometry part| / |ΔΦ|``.
        high_overlap_change: nine-tenths quantile of ``|Δg_ck|`` at the jump.
        high_drift: nine-tenths quantile of the change of E during the jump, relative to ``|E_0|``.
    """

    n: int
    median_share: float
    high_share: float
    high_overlap_change: float
    high_drift: float


def geometry_at_jumps(table: pd.DataFrame) -> JumpGeometry:
    """Test (i) from the rows of :func:`find_jumps`; nan without jumps."""
    share = (table["geometry_part"] / table["size"]).abs()
    return JumpGeometry(
        n=len(table),
        median_share=share.median(),
        high_share=share.quantile(0.9),
        high_overlap_change=table["overlap_change"].abs().quantile(0.9),
        high_drift=table["drift"].abs().quantile(0.9),
    )


def median_interval(values) -> tuple[float, float]:
    """95 % bootstrap interval of the median of ``values`` (n,); degenerate for a single value, nan without any."""
    values = np.asarray(values, dtype=float)
    return (float(values[0]), float(values[0])) if len(values) == 1 else interval(values, np.median)
