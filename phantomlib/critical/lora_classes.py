"""The bulk of the readout: how the overlaps of all token pairs are distributed, and if that says how LoRA fares."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from phantomlib.contexts import Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel

SUFFICIENT = 0.8  # share of contexts in which LoRA must succeed: 8 of 10


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
    ordered = np.log(values.astype(float).sort_values())
    gaps = np.diff(ordered)
    cut = int(gaps.argmax()) + 1
    groups = ordered.iloc[:cut], ordered.iloc[cut:]
    widest = max(float(group.max() - group.min()) for group in groups)
    gap = float(gaps[cut - 1])
    return Classes(
        tuple(groups[0].index),
        tuple(groups[1].index),
        float(np.exp((groups[0].max() + groups[1].min()) / 2)),
        gap,
        gap / widest if widest else float("inf"),
    )


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
        model: the checkpoint.
        contexts: C resolved contexts.
        full_rates: critical learning rates of full fine-tuning (C,).
        recipe: the LoRA recipe.
        multiple: LoRA's learning rate in units of ``full_rates``.
        seeds: of the LoRA initialisation.

    Returns:
        Dataset over (context, seed): ``success`` (the correct token overtakes at some step, and Φ > 0 at step T); over
        seed:
        ``sufficient`` (success in at least 8 of 10 contexts). Attribute ``run_id``.
    """
    rates = multiple * np.asarray(full_rates)[:, None]
    runs = store.run(model, contexts, rates, recipe, seeds=tuple(seeds)).isel(rate=0)
    success = (runs.logit_gap > 0).any("step") & (runs.phi.isel(step=-1) > 0)
    data = {"success": success, "sufficient": success.mean("context") >= SUFFICIENT}
    return xr.Dataset(data, attrs={"run_id": runs.attrs["run_id"]}).drop_vars("step", errors="ignore")


def predict_from_class(classes: pd.Series, outcome: pd.Series) -> pd.Series:
    """Outcome of each architecture predicted from the others: what most of its class had; of an empty class, what most
    of all had.

    Args:
        classes: label by architecture.
        outcome: True or False by architecture.
    """
    predicted = {}
    for name, label in classes.items():
        others = outcome.drop(name)
        peers = others[classes.drop(name) == label]
        predicted[name] = bool((peers if len(peers) else others).mean() > 0.5)
    return pd.Series(predicted)


def balanced_accuracy(outcome: pd.Series, predicted: pd.Series) -> float:
    """Mean, over the outcomes True and False, of the share predicted rightly; 0.5 if only one outcome occurs."""
    if outcome.nunique() < 2:
        return 0.5
    return float((outcome == predicted).groupby(outcome).mean().mean())


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
        if not (values > 0).all():
            rows.append({"quantity": name, "low": "", "high": "", "separation": np.nan, "accuracy": np.nan})
            continue
        found = two_classes(values)
        labels = values.map(found.of)
        accuracy = balanced_accuracy(outcome, predict_from_class(labels, outcome))
        names = {"low": ", ".join(found.low), "high": ", ".join(found.high)}
        rows.append({"quantity": name} | names | {"separation": found.separation, "accuracy": accuracy})
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
    rows = []
    for name in explanations:
        x, y = np.log(table[name].astype(float)), np.log(table[response].astype(float))
        errors = []
        for model in table.model.unique():
            left = table.model == model
            if x[~left].nunique() < 2:
                continue
            line = stats.linregress(x[~left], y[~left])
            errors.extend(np.abs(line.intercept + line.slope * x[left] - y[left]))
        whole = stats.linregress(x, y) if x.nunique() > 1 else None
        rows.append(
            {
                "explanation": name,
                "exponent": whole.slope if whole else np.nan,
                "r_squared": whole.rvalue**2 if whole else np.nan,
                "left_out_error": float(np.median(errors)) if errors else np.nan,
            }
        )
    return pd.DataFrame(rows).sort_values("r_squared", ascending=False, ignore_index=True)
