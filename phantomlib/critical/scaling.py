r"""What is common to architectures: the kinematic number, calibrations of predicted rates, LoRA's law, two classes.

LoRA's law. At step 0 only B has a gradient. Adam does not mind how small a gradient is, so from the second step on A moves
at full speed too, along :math:`u_A`. With :math:`B \approx \eta t\, u_B` and :math:`A \approx A_0 + \eta (t-1)\, u_A` the
logit gap has closed after T steps if

.. math::  N(\eta)\,\bigl(1 + \eta (T - 1)\, \kappa\bigr) = N_c, \qquad N(\eta) = \eta T v_0 / |\Delta_0| .

:math:`\kappa` is the relative growth of the velocity per unit learning rate as A moves
(:func:`phantomlib.critical.step_zero.velocity_growth`), and :math:`N_c` the critical number of *full* fine-tuning. Under SGD
the gradient of A is as small as B, so to first order A stays where it is and :math:`\kappa = 0`; at the critical rate it does
move, and the law does not hold (chapter 09).
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from phantomlib.contexts import Resolved
from phantomlib.critical.predictors import PREDICTORS
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel

CALIBRATIONS = ("none", "constant", "gap")
SUFFICIENT = 0.8  # share of contexts in which LoRA must succeed: 8 of 10


def kinematic_number(rate, steps: int, velocity, gap):
    """``N = η T v_0 / |Δ_0|``: the way the gap would travel at its first velocity, over the way to go; dimensionless.

    ``rate`` η, ``velocity`` v_0 (nats per unit η) and ``gap`` Δ_0 (nats) are numbers or arrays that broadcast; ``steps`` is T.
    """
    return rate * steps * velocity / abs(gap)


def lora_critical_rate(critical_number, steps: int, velocity, gap, growth):
    """The learning rate η of LoRA at which ``N(η) (1 + η (T - 1) κ) = N_c``.

    Args:
        critical_number: ``N_c`` of full fine-tuning; this and all but ``steps`` are numbers or arrays that broadcast.
        steps: budget T.
        velocity, gap: ``v_0`` and ``Δ_0`` as for :func:`kinematic_number`, of LoRA.
        growth: ``κ``, per unit learning rate; 0 for SGD, and where A is frozen.

    Returns:
        the smallest positive root; nan where there is none (the gap does not close at first, or A turns it back too soon).
    """
    alone = critical_number / kinematic_number(1.0, steps, np.where(velocity > 0, velocity, np.nan), gap)  # if κ = 0
    with np.errstate(invalid="ignore"):
        return 2 * alone / (1 + np.sqrt(1 + 4 * (steps - 1) * growth * alone))  # of η (1 + η (T - 1) κ) = alone


def architecture_numbers(table: pd.DataFrame, *, column: str = "number", seed: int = 0) -> pd.DataFrame:
    """Geometric mean of a quantity over the contexts of each model in ``table``, with its scatter and interval.

    Returns:
        One row per model: ``mean`` (geometric), ``log_sd`` over contexts, ``low`` and ``high`` (95 % bootstrap interval
        of the mean, drawn by ``seed``), ``n``, and ``undefined``, the contexts left out because the quantity is nan or
        not positive there (the kinematic number where v_0 ≤ 0).
    """
    rows = []
    for name, group in table.groupby("model", sort=False):
        values = group[column].astype(float)
        logs = np.log(values[values.between(0, np.inf, inclusive="neither")])
        low, high = np.exp(interval(logs.to_numpy(), np.mean, seed=seed))
        row = {"model": name, "mean": np.exp(logs.mean()), "log_sd": logs.std(), "low": low, "high": high}
        rows.append(row | {"n": len(logs), "undefined": len(values) - len(logs)})
    return pd.DataFrame(rows)


def interval(values: np.ndarray, statistic, *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentile) of a statistic of independent values; nan for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    found = stats.bootstrap((values,), statistic, method="percentile", rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def coefficient_of_variation(numbers) -> float:
    """Sample standard deviation over mean."""
    return float(stats.variation(np.asarray(numbers, dtype=float), ddof=1))


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
        table: rows of several models, from :func:`phantomlib.critical.predictors.measured_and_predicted`.

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
    ``architecture_median`` and ``architecture_worst``: absolute error of the geometric mean over a model's contexts.
    ``missing``: contexts without a prediction; a candidate with any ranks behind all that have none.
    """
    kinds = ["predictor", "calibration"]
    error = errors.groupby(kinds, sort=False).error
    by_model = errors.groupby([*kinds, "model"], sort=False).error.mean().abs().groupby(kinds, sort=False)
    table = pd.DataFrame(
        {
            "rms": error.agg(lambda e: math.sqrt((e**2).mean())),
            "context_median": error.agg(lambda e: e.abs().median()),
            "architecture_median": by_model.median(),
            "architecture_worst": by_model.max(),
            "missing": error.agg(lambda e: int(e.isna().sum())),
        }
    )
    order = table.assign(partial=table.missing > 0).sort_values(["partial", "rms"]).index
    return table.loc[order].reset_index()


@dataclass(frozen=True)
class Classes:
    """Two groups of architectures, split at the largest gap of a quantity."""

    low: tuple[str, ...]  #: names, in ascending order
    high: tuple[str, ...]  #: names of the others
    boundary: float  #: the value in the middle of the gap (geometric)
    gap: float  #: width of the gap in the quantity's logarithm
    separation: float  #: ``gap`` over the largest range of the logarithm within a group; ``inf`` if both are zero


def two_classes(values: pd.Series) -> Classes:
    """Split positive values (by name) at the largest gap of their logarithms; a single value is a class of its own."""
    if len(values) < 2:
        return Classes(tuple(values.index), (), np.inf, np.nan, np.nan)
    logs = np.log(values.astype(float).sort_values())
    cut = int(np.diff(logs).argmax()) + 1
    low, high = logs.iloc[:cut], logs.iloc[cut:]
    gap, widest = float(high.min() - low.max()), float(max(np.ptp(low), np.ptp(high)))
    boundary = float(np.exp((low.max() + high.min()) / 2))
    return Classes(tuple(low.index), tuple(high.index), boundary, gap, gap / widest if widest else math.inf)


def balanced_accuracy(outcome: pd.Series, foretold: pd.Series) -> float:
    """Mean, over the outcomes True and False, of the share foretold rightly; 0.5 if only one of them occurs."""
    return 0.5 if outcome.nunique() < 2 else float((outcome == foretold).groupby(outcome).mean().mean())


def lora_outcomes(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    full_rates,
    recipe: Recipe,
    *,
    multiple=10.0,
    seeds: tuple[int, ...] = (0,),
) -> xr.Dataset:
    """Whether LoRA suffices, at ``multiple`` times the critical learning rates ``full_rates`` (C,) of full fine-tuning.

    Returns:
        Dataset over (context, seed), and over rate if there are several multiples: ``success`` (the correct token overtakes
        at some step, and Φ > 0 at step T); over the others: ``sufficient`` (success in at least 8 of 10 contexts).
        Attribute ``run_id``.
    """
    runs = store.run(model, contexts, np.outer(full_rates, multiple), recipe, seeds=tuple(seeds))
    runs = runs if np.ndim(multiple) else runs.isel(rate=0)
    success = (runs.logit_gap > 0).any("step") & (runs.phi.isel(step=-1) > 0)
    data = {"success": success, "sufficient": success.mean("context") >= SUFFICIENT}
    return xr.Dataset(data, attrs={"run_id": runs.attrs["run_id"]}).drop_vars("step", errors="ignore")
