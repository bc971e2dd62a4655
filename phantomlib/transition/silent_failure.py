"""Which runs failed silently, and how.

Source: definitions of silent, kinematic and structural failure as the book reconstructs them from arXiv 2606.07559.
"""

import pandas as pd
import xarray as xr

ROUNDING = 1e-5  # nats; a rise of cross-entropy below this is float32 noise
DRAG_WORSENS = 0.1  # fall of the drag, over |Φ_0|, above which a failure can be structural
DRAG_FALLS = 1e-3  # the fall that made one structural until 2026-12-01 (changes of C3); R3 was declared by it


def overtakes(runs: xr.Dataset) -> xr.DataArray:
    """Whether the correct token outranks its competitor (logit gap > 0) at some step; (context, rate, seed)."""
    return (runs.logit_gap > 0).any("step")


def silent(runs: xr.Dataset, least_fall: float = 0.0) -> xr.DataArray:
    """Silent failure: cross-entropy never rises and ends lower, by ``least_fall`` nats, yet the correct token never overtakes.

    Boolean (context, rate, seed); a diverged run is not silent.
    """
    loss = runs.cross_entropy
    never_rises = (loss.diff("step") <= ROUNDING).all("step")
    falls = loss.isel(step=0) - loss.isel(step=-1) > least_fall
    return never_rises & falls & ~overtakes(runs) & (runs.diverged_step < 0)


def drag_worsens(runs: xr.Dataset, share: float = DRAG_WORSENS) -> xr.DataArray:
    """Whether the drag ends below zero, so that it pulls towards the competitor, and has fallen by more than ``share`` of ``|Φ_0|``;
    (context, rate, seed)."""
    start, end = runs.isel(step=0, drop=True), runs.isel(step=-1, drop=True)
    return (end.drag < 0) & (start.drag - end.drag > share * abs(start.phi))


def drag_falls(runs: xr.Dataset, by: float = DRAG_FALLS) -> xr.DataArray:
    """Whether the drag has fallen by more than ``by``, whatever its sign; (context, rate, seed)."""
    return runs.drag.isel(step=0, drop=True) - runs.drag.isel(step=-1, drop=True) > by


def failure_mode(runs: xr.Dataset, structural=drag_worsens) -> xr.DataArray:
    """``kinematic``, ``structural``, ``overtakes``, ``diverged`` or ``other`` for each run; strings (context, rate, seed).

    Structural: silent, and ``structural(runs)`` says so. Kinematic: silent, and it does not.
    """
    silently = xr.where(structural(runs), "structural", "kinematic")
    rest = xr.where(overtakes(runs), "overtakes", "other")
    return xr.where(runs.diverged_step >= 0, "diverged", xr.where(silent(runs), silently, rest))


def failure_table(runs: xr.Dataset, structural=drag_worsens) -> pd.DataFrame:
    """One row per run: context, learning_rate, mode, Φ_0, final signal and drag, how far both fell, and the drag's two factors at
    start and end, the bulk mass ``1 - p_c - p_k`` and the mean bulk contrast ``drag / bulk mass``."""
    bulk = 1 - runs.p_correct - runs.p_competitor
    runs = runs.assign(bulk_mass=bulk, contrast=runs.drag / bulk.where(bulk > 0))
    start, end = runs.isel(step=0, drop=True), runs.isel(step=-1, drop=True)
    columns = {
        "mode": failure_mode(runs, structural),
        "phi_start": start.phi,
        "signal": end.signal,
        "signal_fall": start.signal - end.signal,
        "drag": end.drag,
        "drag_fall": start.drag - end.drag,
        "overlap": start.overlap,
        "bulk_mass_start": start.bulk_mass,
        "bulk_mass_end": end.bulk_mass,
        "contrast_start": start.contrast,
        "contrast_end": end.contrast,
    }
    frame = xr.Dataset(columns).to_dataframe().reset_index()
    return frame[["context", "learning_rate", "seed", *columns]]
