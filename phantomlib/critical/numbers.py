"""Dimensionless numbers: the kinematic number, its mean over contexts and its variation over architectures."""

import math

import numpy as np
import pandas as pd
from scipy import stats


def kinematic_number(rate, steps: int, velocity, gap):
    """``N = η T v_0 / |Δ_0|``: the way the gap would travel at its first velocity, over the way to go; dimensionless.

    Args:
        rate: learning rate η; this and the next are numbers or arrays that broadcast.
        steps: budget T.
        velocity: ``v_0``, nats per unit learning rate (:func:`phantomlib.critical.step_zero.velocity`).
        gap: ``Δ_0``, nats.
    """
    return rate * steps * velocity / abs(gap)


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
        logs = np.log(group[column].where(group[column] > 0).to_numpy(dtype=float))
        defined = logs[np.isfinite(logs)]
        low, high = interval(defined, np.mean, seed=seed)
        row = {"mean": np.exp(defined.mean()), "log_sd": defined.std(ddof=1) if len(defined) > 1 else np.nan}
        row |= {"low": np.exp(low), "high": np.exp(high), "n": len(defined), "undefined": len(logs) - len(defined)}
        rows.append({"model": name} | row)
    return pd.DataFrame(rows)


def interval(values: np.ndarray, statistic, *, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval (percentile) of a statistic of independent values; nan for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    found = stats.bootstrap((values,), statistic, method="percentile", rng=np.random.default_rng(seed))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def coefficient_of_variation(numbers) -> float:
    """Coefficient of variation: sample standard deviation over mean."""
    numbers = np.asarray(numbers, dtype=float)
    return float(numbers.std(ddof=1) / numbers.mean())


def variation_interval(table: pd.DataFrame, *, column: str = "number", seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the variation over models, contexts resampled (the same ones for all models)."""
    positive = table.assign(**{column: table[column].where(table[column] > 0)})
    logs = np.log(positive.pivot(index="context", columns="model", values=column).dropna())  # (contexts, models)

    def statistic(chosen, axis=-1):
        means = np.exp(logs.to_numpy()[chosen.astype(int)].mean(axis=-2))  # (..., models)
        return means.std(-1, ddof=1) / means.mean(-1)

    return interval(np.arange(len(logs)), statistic, seed=seed)
