r"""Predict a critical learning rate from a rehearsal of a few steps.

The kinematic number :math:`N = \eta T v_0 / |\Delta_0|` takes it that the logit gap closes at its initial velocity. The
path bends, so critical values of N scatter. A *rehearsal* follows the bend: the same fine-tune in at most four steps,
with the learning rate scaled by :math:`T/4` and Adam's memory shortened alike (:math:`\beta \to \beta^{T/4}`), and the
critical learning rate of that, which a search finds in about a dozen forward and backward passes, whatever T is.

How far both were off on the zoo is kept in ``constants.json`` (``phantom zoo constants`` measures it). A prediction is
corrected by the mean of those errors, and its interval is the largest error made when each model was predicted from the
others; for models with more parameters than any of the zoo, at least the largest on the real models whose runs are published.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from phantomlib import files
from phantomlib.contexts import Resolved
from phantomlib.critical.search import critical_rates
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import PhantomError
from phantomlib.models.language_model import LanguageModel
from phantomlib.progress import track

CONSTANTS = Path(__file__).with_name("constants.json")
REHEARSAL_STEPS = 4  # of a rehearsal
TOLERANCE = 0.01  # relative width to which a rehearsal's critical learning rate is found
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

    With T of four at most the rehearsal is the fine-tune itself. A :class:`phantomlib.runs.store.Store` keeps the
    rehearsals; None keeps nothing.
    """
    few, known = rehearsal(recipe), expected_errors("rehearsal", recipe)
    found = critical_rates(store or _Memory(), model, contexts, few, tolerance=TOLERANCE).critical_rate.values
    middle = found * few.steps / recipe.steps * math.exp(known.centre)
    factor = math.exp(max(known.largest, _beyond_the_zoo(model, recipe), TOLERANCE))
    return [Estimate(rate, rate / factor, rate * factor) for rate in middle.tolist()]


def rehearsal(recipe: Recipe) -> Recipe:
    """The same fine-tune in at most four steps, each standing for T/4."""
    steps = min(REHEARSAL_STEPS, recipe.steps)
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
    """How a predictor did on the zoo."""

    centre: float  #: mean over models of the mean over contexts of log(measured / predicted critical learning rate)
    largest: float  #: largest absolute deviation from the centre of the *other* models, over all models and contexts
    range: tuple[float, float]  #: least and largest measured / predicted; for ``kinematic`` the critical values of N


@cache
def load_constants() -> dict:
    """What was measured on the zoo; PhantomError if the file is missing or damaged."""
    try:
        return files.read_json(CONSTANTS)
    except (OSError, ValueError) as error:
        raise PhantomError(
            f"'{CONSTANTS.name}' cannot be read ({error}). Restore it, or measure again: phantom zoo constants"
        ) from None


def expected_errors(predictor: str, recipe: Recipe) -> Errors:
    """Errors of ``rehearsal`` or ``kinematic`` for a recipe: the centre interpolated in log T, the widest interval."""
    if predictor == "rehearsal" and recipe.steps <= REHEARSAL_STEPS:
        return Errors(0.0, 0.0, (1.0, 1.0))
    measured = load_constants()["errors"][_kind(recipe)]
    table = {int(steps): summarise_errors(found[predictor]) for steps, found in measured.items()}
    steps = sorted(table)
    centre = float(np.interp(math.log(recipe.steps), np.log(steps), [table[t].centre for t in steps]))
    nearest = min(steps, key=lambda t: abs(math.log(t / recipe.steps)))
    return Errors(centre, max(errors.largest for errors in table.values()), table[nearest].range)


def summarise_errors(by_model: dict[str, list[float]]) -> Errors:
    """Centre and leave-one-model-out deviations of log ratios, by model."""
    values = [np.array(errors) for errors in by_model.values()]
    means = np.array([errors.mean() for errors in values])
    others = [np.mean(np.delete(means, i) if len(means) > 1 else means) for i in range(len(means))]  # their centre
    largest = max(np.abs(errors - centre).max() for errors, centre in zip(values, others, strict=True))
    ratios = np.exp(np.concatenate(values))
    return Errors(float(means.mean()), float(largest), (float(ratios.min()), float(ratios.max())))


def _beyond_the_zoo(model: LanguageModel, recipe: Recipe) -> float:
    """The error to be expected of a model larger than the zoo's; the largest of all for a recipe not seen there."""
    known = load_constants()["beyond"]
    if model.n_parameters <= known["parameters"] or recipe.steps <= REHEARSAL_STEPS:
        return 0.0
    return known["largest"].get(_kind(recipe), max(known["largest"].values()))


def _kind(recipe: Recipe) -> str:
    """Under which name the constants know a fine-tune, such as ``adam-full``; AdamW counts as Adam."""
    return f"{'sgd' if recipe.optimizer == 'sgd' else 'adam'}-{recipe.method}"
