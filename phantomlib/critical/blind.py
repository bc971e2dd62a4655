"""The blind protocol: a prediction is on disk before the model it is about is fine-tuned, or it is not blind.

1. :func:`predict_held_out` reads the results of other architectures and step-0 quantities of the held-out one, and
   writes a file. It refuses if the store already holds a run of that model.
2. :func:`sweep_held_out` measures. It refuses until that file exists and is about this model, these contexts and this
   recipe.

When a book is built again, the file is older than every run of the held-out model, and both take up what is there.
"""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import netCDF4
import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from phantomlib import files
from phantomlib.critical.calibration import CALIBRATIONS, apply_calibration, fit_calibration, leave_one_out, ranking
from phantomlib.critical.predictors import LADDER, STEP_0, predict_critical_rates
from phantomlib.critical.search import critical_rates
from phantomlib.errors import PhantomError
from phantomlib.measure.contexts import Resolved
from phantomlib.measure.models import LanguageModel
from phantomlib.measure.recipe import Recipe
from phantomlib.measure.store import Store, commit, specification


@dataclass(frozen=True)
class Prediction:
    """What was predicted of a held-out architecture, as it stands in its file.

    Attributes:
        model: name of the held-out model.
        optimizer: ``sgd`` or ``adam``.
        value: predicted critical learning rate, geometric mean over the contexts.
        interval: 95 % prediction interval of ``value``.
        rates: predicted critical rate of each context, by id.
        predictor, calibration, coefficients: how; chosen by leave-one-out among the fitted architectures.
        tried: what every other predictor and calibration says instead of ``value``, by their names.
        fitted_on: names of these architectures.
        evidence: hash of the table that was fitted.
        subject: hash of the held-out model's weights, the contexts and the recipe.
        commit, time: of the program, and UTC time of writing.
        path: the file.
    """

    model: str
    optimizer: str
    value: float
    interval: tuple[float, float]
    rates: dict[str, float]
    predictor: str
    calibration: str
    coefficients: tuple[float, float]
    tried: dict[str, float]
    fitted_on: tuple[str, ...]
    evidence: str
    subject: str
    commit: str
    time: str
    path: Path


def predict_held_out(
    store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe, table: pd.DataFrame
) -> Prediction:
    """Predict the critical rates of a model that was never fine-tuned, and write them to ``<store>/predictions``.

    The predictor and its calibration are those with the smallest leave-one-out error among the architectures in
    ``table``; only predictors that use nothing but step 0 take part. The interval comes from the same errors. What the
    other predictors say is written down too, so that they can be judged by the same measurement.

    Args:
        store: the store.
        model: the held-out model.
        contexts: its resolved contexts.
        recipe: optimiser and number of steps.
        table: results of the other architectures (:func:`phantomlib.critical.predictors.results`, joined), at least three.

    Raises:
        PhantomError: the prediction would not be blind, or a file is there that says something else.
    """
    if model.name in set(table.model):
        raise PhantomError(f"The results given for fitting hold the held-out model '{model.name}'; leave it out.")
    if table.model.nunique() < 3:
        raise PhantomError(f"A prediction is fitted on at least 3 other architectures, not on {table.model.nunique()}.")
    path = _path(store, model, recipe)
    evidence, subject = _evidence(table), _subject(model, contexts, recipe)
    if path.is_file():
        found = read_prediction(path)
        if (found.evidence, found.subject) == (evidence, subject):
            _refuse_older_runs(store, model, found)
            return found
    runs = runs_of(store, model)
    if runs:
        raise PhantomError(
            f"A prediction for '{model.name}' would not be blind: the store '{store.root}' holds {len(runs)} of its runs "
            f"already (such as {runs[0].name}) and no matching prediction. Delete them, or use an empty store."
        )
    errors = leave_one_out(table, STEP_0)
    best = ranking(errors).iloc[0]
    predictor, calibration = str(best.predictor), str(best.calibration)
    coefficients = fit_calibration(table, predictor, calibration)
    step_0 = predict_critical_rates(store, model, contexts, recipe).to_dataframe().reset_index()
    rates = apply_calibration(step_0, predictor, coefficients)
    tried = {
        f"{name}, {kind}": float(
            np.exp(np.log(apply_calibration(step_0, name, fit_calibration(table, name, kind))).mean())
        )
        for name in LADDER
        for kind in CALIBRATIONS
    }
    if rates.isna().any():
        missing = ", ".join(step_0.context[rates.isna()])
        raise PhantomError(f"'{predictor}' predicts nothing for {missing} of '{model.name}'; leave these contexts out.")
    value = float(np.exp(np.log(rates).mean()))
    chosen = errors[(errors.predictor == predictor) & (errors.calibration == calibration)]
    spread = math.sqrt((chosen.groupby("model").error.mean() ** 2).mean())
    half = stats.t.ppf(0.975, table.model.nunique() - 1) * spread
    files.write_json(
        path,
        {
            "model": model.name,
            "optimizer": recipe.optimizer,
            "value": value,
            "interval": [value * math.exp(-half), value * math.exp(half)],
            "rates": dict(zip(step_0.context, map(float, rates), strict=True)),
            "predictor": predictor,
            "calibration": calibration,
            "coefficients": coefficients,
            "tried": tried,
            "fitted_on": list(dict.fromkeys(table.model)),
            "evidence": evidence,
            "subject": subject,
            "commit": commit(),
            "time": datetime.now(UTC).isoformat(),
        },
    )
    return read_prediction(path)


def sweep_held_out(
    store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe, **options
) -> xr.Dataset:
    """Measure the critical rates of the held-out model, once they were predicted.

    Arguments and result as in :func:`phantomlib.critical.search.critical_rates`.

    Raises:
        PhantomError: no prediction is on disk, or it is about other weights, contexts or another recipe.
    """
    path = _path(store, model, recipe)
    if not path.is_file():
        raise PhantomError(
            f"'{model.name}' is held out and has no prediction yet for {recipe.optimizer} and {recipe.steps} steps. "
            "Call predict_held_out first; afterwards it would not be blind."
        )
    found = read_prediction(path)
    if found.subject != _subject(model, contexts, recipe):
        raise PhantomError(
            f"The prediction {path.name} is about other weights, contexts or another recipe than this sweep of "
            f"'{model.name}'. Predict again in an empty store."
        )
    _refuse_older_runs(store, model, found)
    return critical_rates(store, model, contexts, recipe, **options)


def read_prediction(path: Path) -> Prediction:
    """A prediction from its file."""
    try:
        content = files.read_json(path)
        for name in ("interval", "coefficients", "fitted_on"):
            content[name] = tuple(content[name])
        return Prediction(**content, path=path)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = f"The prediction '{path}' cannot be read ({error}). Delete it and the runs of its model."
        raise PhantomError(reason) from None


def runs_of(store: Store, model: LanguageModel) -> list[Path]:
    """Files of finished runs of exactly this model in the store."""
    found = []
    for path in sorted(store.root.glob("*.nc")):
        try:
            with netCDF4.Dataset(path) as file:
                if json.loads(file.specification)["model"] == model.fingerprint:
                    found.append(path)
        except Exception:  # a damaged file is nobody's run; the store sets it aside when it is asked for
            continue
    return found


def _refuse_older_runs(store: Store, model: LanguageModel, prediction: Prediction) -> None:
    written = datetime.fromisoformat(prediction.time).timestamp()
    older = [path for path in runs_of(store, model) if path.stat().st_mtime < written]
    if older:
        raise PhantomError(
            f"The prediction for '{model.name}' is not blind: {len(older)} of its runs in '{store.root}' (such as "
            f"{older[0].name}) are older than the prediction. Delete both, or use an empty store."
        )


def _path(store: Store, model: LanguageModel, recipe: Recipe) -> Path:
    folder = store.root / "predictions"
    folder.mkdir(exist_ok=True)
    return folder / f"{model.name}-{recipe.optimizer}-{recipe.steps}-steps.json"


def _evidence(table: pd.DataFrame) -> str:
    numbers = table.drop(columns=["model", "context"]).map(lambda x: f"{x:.6g}")
    return files.digest([list(table.model), list(table.context), numbers.to_dict("list")])[:12]


def _subject(model: LanguageModel, contexts: list[Resolved], recipe: Recipe) -> str:
    return files.digest(specification(model, contexts, np.zeros((len(contexts), 0)), recipe, ()))[:12]
