"""Which runs failed silently, and how.

Source: definitions of silent, kinematic and structural failure as the book reconstructs them from arXiv 2606.07559.
"""

import pandas as pd
import xarray as xr

ROUNDING = 1e-5  # nats; a rise of cross-entropy below this is float32 noise
DRAG_WORSENS = 1e-3  # fall of the drag above which a failure is structural; noise lies below it


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


def failure_mode(runs: xr.Dataset, drag_worsens: float = DRAG_WORSENS) -> xr.DataArray:
    """``kinematic``, ``structural``, ``overtakes``, ``diverged`` or ``other`` for each run; strings (context, rate, seed).

    Kinematic: silent, and the drag does not fall by more than ``drag_worsens``. Structural: silent, and it does.
    """
    structural = runs.drag.isel(step=0) - runs.drag.isel(step=-1) > drag_worsens
    silently = xr.where(structural, "structural", "kinematic")
    rest = xr.where(overtakes(runs), "overtakes", "other")
    return xr.where(runs.diverged_step >= 0, "diverged", xr.where(silent(runs), silently, rest))


def failure_table(runs: xr.Dataset, drag_worsens: float = DRAG_WORSENS) -> pd.DataFrame:
    """One row per run: context, learning_rate, mode, final signal, fall of the drag, and the drag's two factors at start and
    end, the bulk mass ``1 - p_c - p_k`` and the mean bulk contrast ``drag / bulk mass``."""
    bulk = 1 - runs.p_correct - runs.p_competitor
    contrast = runs.drag / bulk.where(bulk > 0)
    columns = {
        "mode": failure_mode(runs, drag_worsens),
        "signal": runs.signal.isel(step=-1, drop=True),
        "drag_fall": runs.drag.isel(step=0) - runs.drag.isel(step=-1),
        "overlap": runs.overlap.isel(step=0, drop=True),
        "bulk_mass_start": bulk.isel(step=0, drop=True),
        "bulk_mass_end": bulk.isel(step=-1, drop=True),
        "contrast_start": contrast.isel(step=0, drop=True),
        "contrast_end": contrast.isel(step=-1, drop=True),
    }
    frame = xr.Dataset(columns).to_dataframe().reset_index()
    return frame[["context", "learning_rate", "seed", *columns]]
