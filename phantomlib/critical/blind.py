"""The blind protocol: a prediction is on disk before the model it is about is fine-tuned, or it is not blind.

1. :func:`predict_held_out` reads the results of other architectures and step-0 quantities of the held-out one, and
   writes a file. It refuses if the store already holds a run or a search of that model.
2. :func:`sweep_held_out` measures. It refuses until that file exists and is about this model, these contexts and this
   recipe. Its runs carry the file's checksum.

When a book is built again, both take up what is there. Checked then, each time: the prediction is what follows from its
evidence, computed anew; the runs name this very file; no run or search of the model is older than it. A model is known by
the values of its weights, whatever its precision, its name or its configuration.

What nobody can check is a convention. The store does not know what was seen in another store, or was deleted from this
one. Times, and a file together with its checksum, can be written by hand. The list of predictors was drawn up by people.
Whoever wants to be believed commits the prediction before the sweep: the commit that holds it is named on the page.
"""

import json
import math
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from filelock import FileLock
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from scipy import stats

from phantomlib import files
from phantomlib.contexts import Resolved
from phantomlib.critical.predictors import LADDER, STEP_0, predict_critical_rates
from phantomlib.critical.scaling import CALIBRATIONS, apply_calibration, fit_calibration, leave_one_out, ranking
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import PhantomError
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import Store, commit, commit_of, file_stem, specification

FEWEST_FITTED = 3  # architectures: with fewer there is no telling how well one is predicted from the others


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Prediction:
    """What was predicted of a held-out architecture, as it stands in its file."""

    model: str  #: name of the held-out model
    optimizer: str  #: ``sgd`` or ``adam``
    value: float  #: predicted critical learning rate, geometric mean over the contexts
    interval: tuple[float, float]  #: 95 % prediction interval of ``value``
    rates: dict[str, float]  #: predicted critical rate of each context, by id
    predictor: str  #: chosen, as the next two, by leave-one-out among the fitted architectures
    calibration: str  #: its kind
    coefficients: tuple[float, float]  #: of the calibration
    tried: dict[str, float]  #: what every other predictor and calibration says instead of ``value``, by their names
    fitted_on: tuple[str, ...]  #: names of these architectures
    evidence: str  #: hash of the table that was fitted
    subject: str  #: hash of the held-out model's weights, the contexts and the recipe
    commit: str  #: of the program
    time: str  #: of writing, UTC
    path: Path  #: the file
    checksum: str  #: of its content; runs of the sweep carry it

    @property
    def held_by(self) -> str:
        """Hash and day of the commit that holds the file; empty if none does."""
        return commit_of(self.path)


def check_enough(models) -> None:
    """Refuse fewer than three architectures to fit on: PhantomError, best before any is measured."""
    if len(models) < FEWEST_FITTED:
        raise PhantomError(
            f"A prediction is fitted on at least {FEWEST_FITTED} other architectures, not on {len(models)}; name more in models."
        )


def predict_held_out(
    store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe, table: pd.DataFrame
) -> Prediction:
    """Predict the critical rates of a model that was never fine-tuned, and write them to ``<store>/predictions``.

    The predictor and its calibration are those with the smallest leave-one-out error among the architectures in
    ``table``; only predictors that use nothing but step 0 take part. The interval comes from the same errors. What the
    other predictors say is written down too, so that they can be judged by the same measurement.

    Args:
        store, model, contexts, recipe: as for :func:`phantomlib.critical.predictors.predict_critical_rates`.
        table: of at least three other architectures (:func:`phantomlib.critical.predictors.measured_and_predicted`, joined).

    Raises:
        PhantomError: the prediction would not be blind, or a file is there that says something else.
    """
    if model.name in set(table.model):
        raise PhantomError(f"The results given for fitting hold the held-out model '{model.name}'; leave it out.")
    check_enough(table.model.unique())
    path, evidence, subject = _path(store, model, recipe), _evidence(table), _subject(model, contexts, recipe)
    with FileLock(path.with_suffix(".lock")):
        found = read_prediction(path) if path.is_file() else None
        if found is None or (found.evidence, found.subject) != (evidence, subject):
            if seen := sorted(seen_of(store, model)):
                raise PhantomError(
                    f"A prediction for '{model.name}' would not be blind: the store '{store.root}' holds {len(seen)} of "
                    f"its runs and searches already (such as {seen[0].name}) and no matching prediction. Delete them, or "
                    "use an empty store."
                )
            about = {
                "evidence": evidence,
                "subject": subject,
                "commit": commit(),
                "time": datetime.now(UTC).isoformat(),
            }
            files.write_json(path, _predict(store, model, contexts, recipe, table) | about)
            return read_prediction(path)
        for name, computed in _predict(store, model, contexts, recipe, table).items():
            if not _agree(getattr(found, name), computed):
                raise PhantomError(
                    f"The prediction '{path}' is not what follows from its evidence: {name} is {getattr(found, name)}, "
                    f"computed anew {computed}. Delete it and the runs and searches of '{model.name}'."
                )
        _refuse_if_seen(store, model, recipe, found)
        return found


def _predict(store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe, table: pd.DataFrame) -> dict:
    """What the other architectures say of this one; all that is in the file but by whom, when and of what."""
    errors = leave_one_out(table, STEP_0)
    predictor, calibration = map(str, ranking(errors).loc[0, ["predictor", "calibration"]])
    step_0 = predict_critical_rates(store, model, contexts, recipe).to_dataframe().reset_index()

    def calibrated(name: str, kind: str) -> pd.Series:
        return apply_calibration(step_0, name, fit_calibration(table, name, kind))

    def mean(rates: pd.Series) -> float:
        """Geometric, of those that there are."""
        return float(np.exp(np.log(rates).mean()))

    rates = calibrated(predictor, calibration)
    if rates.isna().any():
        missing = ", ".join(step_0.context[rates.isna()])
        raise PhantomError(f"'{predictor}' predicts nothing for {missing} of '{model.name}'; leave these contexts out.")
    value = mean(rates)
    # the errors of whole architectures, as many as were left out: a t distribution with one less degree of freedom
    chosen = errors[(errors.predictor == predictor) & (errors.calibration == calibration)]
    spread = math.sqrt((chosen.groupby("model").error.mean() ** 2).mean())
    half = stats.t.ppf(0.975, table.model.nunique() - 1) * spread
    return {
        "model": model.name,
        "optimizer": recipe.optimizer,
        "value": value,
        "interval": (value * math.exp(-half), value * math.exp(half)),
        "rates": dict(zip(step_0.context, map(float, rates), strict=True)),
        "predictor": predictor,
        "calibration": calibration,
        "coefficients": fit_calibration(table, predictor, calibration),
        "tried": {f"{n}, {kind}": mean(calibrated(n, kind)) for n in LADDER for kind in CALIBRATIONS},
        "fitted_on": tuple(dict.fromkeys(table.model)),
    }


def _agree(one, other) -> bool:
    """Whether both are the same; numbers may differ by one in ten thousand."""
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(_agree(one[key], other[key]) for key in other)
    if isinstance(other, tuple):
        return len(one) == len(other) and all(map(_agree, one, other))
    if isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4) or (math.isnan(one) and math.isnan(other))
    return one == other


def sweep_held_out(
    store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe, **options
) -> xr.Dataset:
    """Measure the critical rates of the held-out model, once they were predicted.

    Arguments and result as in :func:`phantomlib.critical.search.critical_rates`.

    Raises:
        PhantomError: no prediction is on disk, or it is about other weights, contexts or another recipe.
    """
    found = prediction_of(store, model, recipe)
    if found.subject != _subject(model, contexts, recipe):
        raise PhantomError(
            f"The prediction {found.path.name} is about other weights, contexts or another recipe than this sweep of "
            f"'{model.name}'. Predict again in an empty store."
        )
    _refuse_if_seen(store, model, recipe, found)
    return critical_rates(store.noting(prediction=found.checksum), model, contexts, recipe, **options)


def prediction_of(store: Store, model: LanguageModel, recipe: Recipe) -> Prediction:
    """What was predicted of a held-out model: PhantomError if nothing was yet."""
    path = _path(store, model, recipe)
    if not path.is_file():
        raise PhantomError(
            f"'{model.name}' is held out and has no prediction yet for {recipe.optimizer} and {recipe.steps} steps. "
            "Call predict_held_out first; afterwards it would not be blind."
        )
    return read_prediction(path)


def read_prediction(path: Path) -> Prediction:
    """A prediction from its file; PhantomError if it is damaged or of another shape."""
    try:
        content = files.read_json(path)
        datetime.fromisoformat(content["time"])
        return Prediction(**content, path=path, checksum=files.digest(content))
    except (OSError, ValueError, TypeError, KeyError) as error:
        said = str(error).replace("\n", " ")
        raise PhantomError(
            f"The prediction '{path}' cannot be read ({said}). Delete it and the runs of its model."
        ) from None


def seen_of(store: Store, model: LanguageModel) -> dict[Path, dict]:
    """What the store holds of this model: who reads a run or a search of it has seen its critical rates.

    Its weights' values tell; its fingerprint does of files that are older than their name.

    Returns:
        by file, what it says of itself: a run its ``recipe`` (settings) and ``prediction`` (checksum of the one it was
        made after).
    """
    found = dict(store.runs())
    for path in store.root.glob("searches/*.json"):
        with suppress(OSError, ValueError, KeyError):  # a damaged one is set aside by the store when it is asked for
            kept = files.read_json(path)
            found[path] = {"model": kept["model"], "weights_key": kept.get("weights", "")}

    def is_of_it(said: dict) -> bool:
        keys = said["weights_key"], model.weights_key
        return keys[0] == keys[1] if all(keys) else said["model"] == model.fingerprint

    return {path: said for path, said in found.items() if is_of_it(said)}


def _refuse_if_seen(store: Store, model: LanguageModel, recipe: Recipe, prediction: Prediction) -> None:
    """Refuse a prediction that is younger than a run or search of its model, or is not the one its runs were made after."""
    written = datetime.fromisoformat(prediction.time).timestamp()
    seen = seen_of(store, model)
    if older := sorted(path for path in seen if path.stat().st_mtime < written):
        raise PhantomError(
            f"The prediction for '{model.name}' is not blind: {len(older)} of its runs and searches in '{store.root}' "
            f"(such as {older[0].name}) are older than the prediction. Delete both, or use an empty store."
        )
    same = json.loads(json.dumps(recipe.settings()))
    for path, said in seen.items():
        if said.get("recipe") == same and said["prediction"] not in ("", prediction.checksum):
            raise PhantomError(
                f"The prediction '{prediction.path}' is not the one after which {path.name} was run: it was changed since. "
                f"Delete it and the runs and searches of '{model.name}', or use an empty store."
            )


def _path(store: Store, model: LanguageModel, recipe: Recipe) -> Path:
    folder = store.root / "predictions"
    folder.mkdir(exist_ok=True)
    return folder / f"{file_stem(model.name)}-{recipe.optimizer}-{recipe.steps}-steps.json"


def _evidence(table: pd.DataFrame) -> str:
    numbers = table.drop(columns=["model", "context"]).map(lambda x: f"{x:.6g}")
    return files.digest([list(table.model), list(table.context), numbers.to_dict("list")])[:12]


def _subject(model: LanguageModel, contexts: list[Resolved], recipe: Recipe) -> str:
    return files.digest(specification(model, contexts, np.zeros((len(contexts), 0)), recipe, ()))[:12]
