r"""What is common to architectures: the kinematic number, calibrations of predicted rates, LoRA's law, classes of readouts.

LoRA's law. At step 0 only B has a gradient. Adam does not mind how small a gradient is, so from the second step on A moves
at full speed too, along :math:`u_A`. With :math:`B \approx \eta t\, u_B` and :math:`A \approx A_0 + \eta (t-1)\, u_A` the
logit gap has closed after T steps if

.. math::  N(\eta)\,\bigl(1 + \eta (T - 1)\, \kappa\bigr) = N_c, \qquad N(\eta) = \eta T v_0 / |\Delta_0| .

:math:`\kappa` is the relative growth of the velocity per unit learning rate as A moves
(:func:`phantomlib.critical.step_zero.velocity_growth`), and :math:`N_c` the critical number of *full* fine-tuning. Under SGD
the gradient of A is as small as B, so A stays where it is: :math:`\kappa = 0`.
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

    Args:
        rate: learning rate η; this and the next are numbers or arrays that broadcast.
        steps: budget T.
        velocity: ``v_0``, nats per unit learning rate (:func:`phantomlib.critical.step_zero.velocity`).
        gap: ``Δ_0``, nats.
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
    """Geometric mean of a positive quantity over the contexts of each model, with its scatter and interval.

    Args:
        table: one row per model and context, columns ``model`` and ``column``.
        column: the quantity; not defined where it is nan or not positive (the kinematic number where v_0 ≤ 0).
        seed: of the bootstrap.

    Returns:
        One row per model: ``mean`` (geometric), ``log_sd`` over contexts, ``low`` and ``high`` (95 % bootstrap interval
        of the mean over contexts), ``n``, and ``undefined``, the contexts left out because the quantity is not defined
        there.
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


def variation_interval(table: pd.DataFrame, *, column: str = "number", seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the variation over models, contexts resampled (the same ones for all models)."""
    by_model = table.pivot(index="context", columns="model", values=column)
    values = by_model.where(by_model > 0).dropna().to_numpy()  # (contexts, models)

    def statistic(chosen, axis=-1):
        return stats.variation(stats.gmean(values[chosen.astype(int)], axis=-2), axis=-1, ddof=1)

    return interval(np.arange(len(values)), statistic, seed=seed)


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


def in_per_cent(ranked: pd.DataFrame) -> pd.DataFrame:
    """A :func:`ranking` as a reader wants it: errors in per cent, words for names."""
    shares = ("rms", "context_median", "architecture_median", "architecture_worst")
    table = ranked.assign(**{c: 100 * ranked[c] for c in shares}, predictor=ranked.predictor.str.replace("_", " "))
    return table.rename(columns=lambda c: c.replace("_", " ") + (" (%)" if c in shares else ""))


@dataclass(frozen=True)
class Classes:
    """Two groups of architectures, split at the largest gap of a quantity.

    Attributes:
        low, high: names in either group, in ascending order.
        boundary: the value in the middle of the gap (geometric).
        gap: width of the gap in the quantity's logarithm.
        separation: ``gap`` over the largest range of the logarithm within a group; ``inf`` if both ranges are zero.
    """

    low: tuple[str, ...]
    high: tuple[str, ...]
    boundary: float
    gap: float
    separation: float

    def of(self, value: float) -> str:
        """``high`` or ``low``."""
        return "high" if value > self.boundary else "low"


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


def lora_outcomes(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    full_rates,
    recipe: Recipe,
    *,
    multiple: float = 10.0,
    seeds: tuple[int, ...] = (0,),
) -> xr.Dataset:
    """Whether LoRA suffices, at a learning rate told by full fine-tuning.

    Args:
        store: a :class:`phantomlib.runs.store.Store`.
        model, contexts: the checkpoint, and C resolved contexts.
        full_rates: critical learning rates of full fine-tuning (C,).
        recipe: the LoRA recipe.
        multiple: LoRA's learning rate in units of ``full_rates``.
        seeds: of the LoRA initialisation.

    Returns:
        Dataset over (context, seed): ``success`` (the correct token overtakes at some step, and Φ > 0 at step T); over
        seed: ``sufficient`` (success in at least 8 of 10 contexts). Attribute ``run_id``.
    """
    rates = multiple * np.asarray(full_rates)[:, None]
    runs = store.run(model, contexts, rates, recipe, seeds=tuple(seeds)).isel(rate=0)
    success = (runs.logit_gap > 0).any("step") & (runs.phi.isel(step=-1) > 0)
    data = {"success": success, "sufficient": success.mean("context") >= SUFFICIENT}
    return xr.Dataset(data, attrs={"run_id": runs.attrs["run_id"]}).drop_vars("step", errors="ignore")


def predict_from_class(classes: pd.Series, outcome: pd.Series) -> pd.Series:
    """Outcome (True or False, by architecture) predicted for each from the others, given their classes.

    It is what most of its class had; of a class without others, what most of all had.
    """
    predicted = {}
    for name, label in classes.items():
        others = outcome.drop(name)
        peers = others[classes.drop(name) == label]
        predicted[name] = bool((peers if len(peers) else others).mean() > 0.5)
    return pd.Series(predicted)


def balanced_accuracy(outcome: pd.Series, predicted: pd.Series) -> float:
    """Mean, over the outcomes True and False, of the share predicted rightly; 0.5 if only one outcome occurs."""
    return 0.5 if outcome.nunique() < 2 else float((outcome == predicted).groupby(outcome).mean().mean())


def rival_classes(quantities: pd.DataFrame, outcome: pd.Series) -> pd.DataFrame:
    """Split the architectures by each of several positive quantities, and score every split as a predictor of an outcome.

    Args:
        quantities: one row per architecture, one column per quantity; a quantity that is not positive is left undefined.
        outcome: True or False by architecture.

    Returns:
        Columns ``quantity``, ``low`` and ``high`` (names), ``separation`` (see :class:`Classes`) and ``accuracy`` (balanced, each
        architecture predicted from the others).
    """
    rows = []
    for name, values in quantities.items():
        row = {"quantity": name, "low": "", "high": "", "separation": np.nan, "accuracy": np.nan}
        if (values > 0).all():
            found = two_classes(values)
            accuracy = balanced_accuracy(outcome, predict_from_class(values.map(found.of), outcome))
            names = {"low": ", ".join(found.low), "high": ", ".join(found.high)}
            row |= names | {"separation": found.separation, "accuracy": accuracy}
        rows.append(row)
    return pd.DataFrame(rows)


def explain(table: pd.DataFrame, response: str, explanations: list[str]) -> pd.DataFrame:
    """How well single quantities explain a response on logarithmic axes, best first.

    Args:
        table: one row per architecture and context; column ``model``, the response and the explanations, all positive.

    Returns:
        Columns ``explanation``, ``exponent`` (slope), ``r_squared``, and ``left_out_error``: median absolute error of
        the logarithm when each architecture is predicted from a line through the others (nan if that line does not
        exist).
    """
    logs, rows = np.log(table[[response, *explanations]].astype(float)), []
    for name in explanations:
        x, y, errors = logs[name], logs[response], []
        for _, left in logs.groupby(table.model):
            others = logs.drop(left.index)
            if others[name].nunique() > 1:
                line = stats.linregress(others[name], others[response])
                errors.extend(np.abs(line.intercept + line.slope * left[name] - left[response]))
        row = {"explanation": name, "exponent": np.nan, "r_squared": np.nan}
        row["left_out_error"] = float(np.median(errors)) if errors else np.nan
        if x.nunique() > 1:
            whole = stats.linregress(x, y)
            row |= {"exponent": whole.slope, "r_squared": whole.rvalue**2}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("r_squared", ascending=False, ignore_index=True)
