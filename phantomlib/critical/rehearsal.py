r"""Predict a critical learning rate from a few coarse steps.

The kinematic number :math:`N = \eta T v_0 / |\Delta_0|` takes it that the logit gap closes at its initial velocity. The
path bends, so critical values of N scatter. A *rehearsal* follows the bend: the same fine-tune in at most four steps,
with the learning rate scaled by :math:`T/4` and Adam's memory shortened alike (:math:`\beta \to \beta^{T/4}`), and the
critical learning rate of that, which a search finds in about a dozen forward and backward passes, whatever T is.

How far both predictors were off on the zoo, where critical learning rates are known, is kept in ``constants.json``,
written by :func:`measure_errors`. A prediction is corrected by the mean of those errors, and its interval is the largest error
made when each model was predicted from the others. Models with more parameters than any of the zoo have an interval at least
as wide as the largest error on the real models whose runs are published (:func:`errors_beyond`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from phantomlib import files, readout_geometry
from phantomlib.contexts import Resolved
from phantomlib.critical.scaling import two_classes
from phantomlib.critical.search import critical_rates
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import PhantomError
from phantomlib.models.language_model import LanguageModel
from phantomlib.progress import track
from phantomlib.runs.store import commit

CONSTANTS = Path(__file__).with_name("constants.json")
COARSE = 4  # steps of a rehearsal
TOLERANCE = 0.01  # relative width to which a rehearsal's critical learning rate is found
BUDGETS = (8, 20, 80)  # numbers of steps at which the errors were measured
SILENT, OVERTAKES, CLOSE, UNKNOWN = "silent failure", "overtakes", "too close to call", "cannot be told"


@dataclass(frozen=True)
class Estimate:
    """A predicted critical learning rate with its interval; nan if no learning rate was found to suffice."""

    rate: float
    low: float
    high: float

    def outcome(self, learning_rate: float) -> str:
        """``silent failure`` below the interval, ``overtakes`` above it, else ``too close to call``."""
        if not (math.isfinite(self.rate) and math.isfinite(learning_rate)):
            return UNKNOWN
        return SILENT if learning_rate < self.low else OVERTAKES if learning_rate > self.high else CLOSE


def estimate_critical_rate(
    model: LanguageModel, contexts: list[Resolved], recipe: Recipe, store=None
) -> list[Estimate]:
    """The critical learning rate of each context for T steps, without a run of T steps.

    Args:
        model: the checkpoint; it is not changed.
        contexts: resolved contexts, each outranked by its competitor.
        recipe: optimiser, method and T. With T of four at most the rehearsal is the fine-tune itself.
        store: a :class:`phantomlib.runs.store.Store` that keeps the rehearsals; None keeps nothing.
    """
    coarse, known = rehearsal(recipe), expected_errors("rehearsal", recipe)
    found = critical_rates(store or _Memory(), model, contexts, coarse, tolerance=TOLERANCE)
    half = max(known.largest, _beyond_the_zoo(model, recipe), TOLERANCE)
    estimates = []
    for rate in found.critical_rate.values.tolist():
        middle = rate * coarse.steps / recipe.steps * math.exp(known.centre)
        estimates.append(Estimate(middle, middle * math.exp(-half), middle * math.exp(half)))
    return estimates


def rehearsal(recipe: Recipe) -> Recipe:
    """The same fine-tune in at most four coarse steps, each standing for T/4."""
    steps = min(COARSE, recipe.steps)
    ratio = recipe.steps / steps
    return replace(recipe, steps=steps, beta1=recipe.beta1**ratio, beta2=recipe.beta2**ratio, snapshots=())


class _Memory:
    """What a search needs of a store, keeping nothing: one replica at a time, for the sake of large models."""

    def run(self, model, contexts, learning_rates, recipe, *, seeds=(0,)):
        with track(f"{model.name}, rehearsal", np.size(learning_rates) * recipe.steps) as advance:
            dataset = finetune(model, contexts, learning_rates, recipe, seeds=seeds, chunk=1, progress=advance)
        return dataset.assign_attrs(run_id="")

    def remember(self, kind, key, model, contexts, recipe, compute, **options):
        return compute()


@dataclass(frozen=True)
class Errors:
    """How a predictor did on the zoo.

    Attributes:
        centre: mean over models of the mean over contexts of log(measured / predicted critical learning rate).
        largest: largest absolute deviation from the centre of the *other* models, over all models and contexts.
        range: smallest and largest ratio measured / predicted; for ``kinematic`` the critical values of N.
    """

    centre: float
    largest: float
    range: tuple[float, float]


@cache
def load_constants() -> dict:
    """What :func:`measure_errors` found on the zoo.

    Raises:
        PhantomError: the file is missing or damaged.
    """
    try:
        return files.read_json(CONSTANTS)
    except (OSError, ValueError) as error:
        raise PhantomError(
            f"'{CONSTANTS.name}' cannot be read ({error}). Restore it, or measure again: phantom zoo constants"
        ) from None


def expected_errors(predictor: str, recipe: Recipe) -> Errors:
    """Errors of ``rehearsal`` or ``kinematic`` for a recipe: the centre interpolated in log T, the widest interval."""
    if predictor == "rehearsal" and recipe.steps <= COARSE:
        return Errors(0.0, 0.0, (1.0, 1.0))
    measured = load_constants()["errors"][_kind(recipe)]
    table = {int(steps): summarise_errors(found[predictor]) for steps, found in measured.items()}
    steps = sorted(table)
    centre = float(np.interp(math.log(recipe.steps), np.log(steps), [table[t].centre for t in steps]))
    nearest = min(steps, key=lambda t: abs(math.log(t / recipe.steps)))
    return Errors(centre, max(table[t].largest for t in steps), table[nearest].range)


def errors_beyond(published: Path, models: list[LanguageModel]) -> dict:
    """Largest errors of rehearsals on real models, and from which size on they count.

    Args:
        published: folder of published runs; its table ``rehearsals`` has predicted and measured critical learning rates.
        models: the zoo's.

    Returns:
        ``parameters``, of the largest of the zoo; ``largest``, by optimiser and method the largest absolute log ratio.
    """
    table = pd.DataFrame(files.read_json(published / "tables" / "rehearsals.json")["columns"])
    error = np.log(table.measured / table.rate).abs()
    largest = np.ceil(1e4 * error.groupby(table.optimizer + "-" + table.method).max()) / 1e4
    return {"parameters": max(model.n_parameters for model in models), "largest": largest.to_dict()}


def _beyond_the_zoo(model: LanguageModel, recipe: Recipe) -> float:
    """The error to be expected of a model larger than the zoo's; the largest of all for a recipe not seen there."""
    known = load_constants()["beyond"]
    if model.n_parameters <= known["parameters"] or recipe.steps <= COARSE:
        return 0.0
    return known["largest"].get(_kind(recipe), max(known["largest"].values()))


def _kind(recipe: Recipe) -> str:
    """Under which name the constants know a fine-tune, such as ``adam-full``; AdamW counts as Adam."""
    return f"{'sgd' if recipe.optimizer == 'sgd' else 'adam'}-{recipe.method}"


def summarise_errors(by_model: dict[str, list[float]]) -> Errors:
    """Centre and leave-one-model-out deviations of log ratios, by model."""
    means = {name: float(np.mean(values)) for name, values in by_model.items()}
    largest = 0.0
    for name, values in by_model.items():
        others = [mean for other, mean in means.items() if other != name] or [means[name]]
        largest = max(largest, float(np.abs(np.array(values) - np.mean(others)).max()))
    everything = np.exp(np.concatenate(list(by_model.values())))
    return Errors(float(np.mean(list(means.values()))), largest, (float(everything.min()), float(everything.max())))


def measure_errors(
    models: list[LanguageModel],
    contexts: Callable[[LanguageModel], list[Resolved]],
    store,
    published: Path,
    *,
    budgets: tuple[int, ...] = BUDGETS,
) -> dict:
    """Measure critical learning rates, and how far each predictor is from them.

    Args:
        models: the zoo's five; never the held-out one.
        contexts: gives a model's resolved contexts.
        store: a :class:`phantomlib.runs.store.Store`; the runs of the notebooks are reused.
        published: folder of the published runs of real models.
        budgets: numbers of steps T.

    Returns:
        the content of ``constants.json``: log ratios per optimiser, method, T, predictor, model and context, the
        two classes of the bulk, and :func:`errors_beyond`.
    """
    found: dict[str, dict] = {}
    for optimizer in ("adam", "sgd"):
        for method in ("full", "lora"):
            by_steps = found[f"{optimizer}-{method}"] = {}
            for steps in budgets:
                recipe = Recipe(optimizer=optimizer, method=method, steps=steps)
                rows = {model.name: _measure_one(model, contexts(model), recipe, store) for model in models}
                by_steps[str(steps)] = {
                    predictor: {name: row[predictor] for name, row in rows.items()}
                    for predictor in ("rehearsal", "kinematic")
                }
    coherence = {model.name: round(readout_geometry.coherence(model.readout), 4) for model in models}
    classes = two_classes(pd.Series(coherence))
    fingerprints = {model.name: model.fingerprint for model in models}
    return {
        "made_by": {"command": "phantom zoo constants", "commit": commit(), "models": fingerprints},
        "bulk": {
            "coherence": coherence,
            "boundary": round(classes.boundary, 4),
            "coherent": list(classes.high),
            "dispersed": list(classes.low),
        },
        "errors": found,
        "beyond": errors_beyond(published, models),
    }


def _measure_one(model: LanguageModel, contexts: list[Resolved], recipe: Recipe, store) -> dict[str, list[float]]:
    coarse = rehearsal(recipe)
    real = critical_rates(store, model, contexts, recipe)
    rehearsed = critical_rates(store, model, contexts, coarse)
    ratio = (real.critical_rate * recipe.steps / (rehearsed.critical_rate * coarse.steps)).values
    number = (real.critical_rate * recipe.steps * real.velocity / abs(real.gap)).values
    return {
        "rehearsal": [round(math.log(x), 4) for x in ratio if x > 0],
        "kinematic": [round(math.log(x), 4) for x in number if x > 0],  # without a positive velocity there is no N
    }


def write_constants(found: dict, path: Path = CONSTANTS) -> Path:
    """Write the table in one move, and forget the one in memory."""
    files.write_json(path, found)
    load_constants.cache_clear()
    return path
