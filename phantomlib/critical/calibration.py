"""Calibration of predicted critical rates: constants fitted on some architectures, errors on the one left out."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from phantomlib.critical.predictors import PREDICTORS

CALIBRATIONS = ("none", "constant", "gap")


def fit_calibration(table: pd.DataFrame, predictor: str, calibration: str) -> tuple[float, float]:
    """Intercept and slope on ``|Δ_0|`` of ``log(measured / predicted)``, from the architectures in ``table``."""
    rows = table[["gap", "measured", predictor]].dropna()
    if calibration == "none":
        return 0.0, 0.0
    if len(rows) < 3:
        return math.nan, math.nan
    residual = np.log(rows.measured / rows[predictor])
    if calibration == "constant":
        return float(residual.mean()), 0.0
    line = stats.linregress(rows.gap.abs(), residual)
    return float(line.intercept), float(line.slope)


def apply_calibration(table: pd.DataFrame, predictor: str, coefficients: tuple[float, float]) -> pd.Series:
    """Calibrated prediction for every row."""
    return table[predictor] * np.exp(coefficients[0] + coefficients[1] * table.gap.abs())


def leave_one_out(table: pd.DataFrame, predictors=PREDICTORS) -> pd.DataFrame:
    """Every predictor and calibration, each architecture predicted from the others.

    Args:
        table: rows of several models, from :func:`phantomlib.critical.predictors.results`.

    Returns:
        One row per predictor, calibration, model and context: ``error`` = log(predicted / measured).
    """
    rows = []
    for predictor in predictors:
        for calibration in CALIBRATIONS:
            for name, left_out in table.groupby("model", sort=False):
                coefficients = fit_calibration(table[table.model != name], predictor, calibration)
                error = np.log(apply_calibration(left_out, predictor, coefficients) / left_out.measured)
                named = {"predictor": predictor, "calibration": calibration, "error": error}
                rows.append(left_out[["model", "context"]].assign(**named))
    return pd.concat(rows, ignore_index=True)


def ranking(errors: pd.DataFrame) -> pd.DataFrame:
    """Predictors and calibrations by their leave-one-out errors (shares, not per cent), best first.

    ``rms`` over contexts decides the order. ``context_median``: median absolute error of a context.
    ``architecture_median`` and
    ``architecture_worst``: absolute error of the geometric mean over a model's contexts. ``missing``: contexts without
    a prediction; a candidate with any ranks behind all that have none.
    """
    rows = []
    for (predictor, calibration), group in errors.groupby(["predictor", "calibration"], sort=False):
        by_model = group.groupby("model").error.mean().abs()
        rows.append(
            {
                "predictor": predictor,
                "calibration": calibration,
                "rms": math.sqrt((group.error**2).mean()),
                "context_median": group.error.abs().median(),
                "architecture_median": by_model.median(),
                "architecture_worst": by_model.max(),
                "missing": int(group.error.isna().sum()),
            }
        )
    table = pd.DataFrame(rows)
    order = table.assign(partial=table.missing > 0).sort_values(["partial", "rms"]).index
    return table.loc[order].reset_index(drop=True)


def in_words(ranked: pd.DataFrame) -> pd.DataFrame:
    """A :func:`ranking` as a reader wants it: errors in per cent, words for names."""
    shares = ("rms", "context_median", "architecture_median", "architecture_worst")
    table = ranked.assign(**{c: 100 * ranked[c] for c in shares}, predictor=ranked.predictor.str.replace("_", " "))
    return table.rename(columns=lambda c: c.replace("_", " ") + (" (%)" if c in shares else ""))
