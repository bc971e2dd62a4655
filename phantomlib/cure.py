"""What would make the correct word overtake, and what each way costs.

Three ways: a larger learning rate, more steps, or a loss that looks at the competitor. The first two spend the same
``η T`` and change the model alike; more steps take longer. The third needs to be told the competitor. What each changes
elsewhere is measured in the rehearsal of four coarse steps, on prompts that are not trained on.
"""

import math
from dataclasses import dataclass, replace

from phantomlib.contexts import Resolved, load_contexts
from phantomlib.critical.collateral import Probe, train_until_overtaking
from phantomlib.critical.rehearsal import Estimate, estimate_critical_rate, expected_errors, rehearsal
from phantomlib.critical.step_zero import Problem
from phantomlib.engine.recipe import MOST_STEPS, Recipe
from phantomlib.models.language_model import LanguageModel

SAFETY = 1.1  # what is advised lies this far beyond the interval
BARELY = 1.05  # rehearsed critical learning rates at which collateral is measured; they are known to a percent


@dataclass(frozen=True)
class Remedy:
    """One way to make the correct word overtake.

    Attributes:
        way: ``learning rate``, ``steps`` or ``margin``.
        learning_rate, steps, loss: what to train with.
        training: steps in units of those asked for.
        collateral: rehearsed KL divergence of the predictions on the book's prompts from the untouched model's when the
            word overtakes, in nats; nan if it cannot be rehearsed.
    """

    way: str
    learning_rate: float
    steps: int
    loss: str
    training: float
    collateral: float


def enough(critical: Estimate) -> float:
    """A learning rate safely beyond the predicted interval, with two digits."""
    value = SAFETY * critical.high
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / unit - 1e-9) * unit


def longer(critical: Estimate, steps: int, learning_rate: float) -> int | None:
    """A number of steps safely beyond what ``learning_rate`` needs; None if nobody could run so many."""
    needed = SAFETY * steps * critical.high / learning_rate
    return math.ceil(needed) if needed <= MOST_STEPS else None


def remedies(
    model: LanguageModel, context: Resolved, recipe: Recipe, critical: Estimate, learning_rate: float | None
) -> tuple[Remedy, ...]:
    """The three ways, as far as they are known; none if no learning rate was found to suffice.

    Args:
        model: the checkpoint; it is not changed.
        context: one resolved context.
        recipe: the fine-tune asked about.
        critical: its predicted critical learning rate.
        learning_rate: the one asked about, or None.
    """
    if not math.isfinite(critical.rate):
        return ()
    cost = _rehearsed_collateral(model, context, recipe, critical)
    found = [Remedy("learning rate", enough(critical), recipe.steps, recipe.loss, 1.0, cost)]
    steps = learning_rate and longer(critical, recipe.steps, learning_rate)
    if learning_rate and steps:
        found.append(Remedy("steps", learning_rate, steps, recipe.loss, steps / recipe.steps, cost))
    if recipe.loss == "cross-entropy":
        margin = replace(recipe, loss="margin")
        [estimate] = estimate_critical_rate(model, [context], margin)
        if math.isfinite(estimate.rate):
            rate = max(enough(estimate), learning_rate or 0.0)
            cost = _rehearsed_collateral(model, context, margin, estimate)
            found.append(Remedy("margin", rate, recipe.steps, margin.loss, 1.0, cost))
    return tuple(found)


def _rehearsed_collateral(model: LanguageModel, context: Resolved, recipe: Recipe, critical: Estimate) -> float:
    """Mean KL divergence over all places of the book's prompts, when a rehearsal barely overtakes."""
    prompts = [c.prompt for c in load_contexts() if c.prompt != context.context.prompt]
    if model.tokenizer is None:
        return math.nan
    coarse = rehearsal(recipe)
    rate = critical.rate / math.exp(expected_errors("rehearsal", recipe).centre) * recipe.steps / coarse.steps
    probe = Probe(model, recipe, [tuple(ids) for ids in model.tokenizer(prompts)["input_ids"]], last=False)
    step, values = train_until_overtaking(Problem(model, context, coarse), BARELY * rate, coarse)
    return math.nan if step is None else float(probe.divergence(values).mean())


def remedies_as_text(found: tuple[Remedy, ...]) -> list[str]:
    """Lines for a terminal; none if there is no remedy."""
    if not found:
        return []
    names = {"learning rate": "learning rate", "steps": "more steps", "margin": "margin loss"}
    lines = ["What would do, and how far it moves the model's predictions elsewhere (rehearsed):"]
    for r in found:
        moved = "not measured" if math.isnan(r.collateral) else f"{r.collateral:.2g} nat"
        what = f"{r.steps} steps at {r.learning_rate:.2g}"
        takes = f"; {r.training:.2g} times the training" if r.training > 1 else ""
        takes += "; the loss is told the competitor" if r.way == "margin" else ""
        lines.append(f"  {names[r.way]:<14} {what:<24} {moved}{takes}")
    return lines
