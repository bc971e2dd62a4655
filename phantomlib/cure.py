"""What would make the correct word overtake, and what each way costs.

Three ways: a larger learning rate, more steps, or a loss that looks at the competitor. The first two spend the same
``η T`` and change the model alike. What each changes elsewhere is measured in the rehearsal of four coarse steps, on
prompts that are not trained on. The loss for a Hugging Face ``Trainer``::

    from phantomlib import load_contexts
    from phantomlib.cure import CompetitorLoss

    loss = CompetitorLoss(load_contexts("my_contexts.yaml"), tokenizer)
    trainer = Trainer(..., compute_loss_func=loss)

Or let the callback do both, watch and change the loss: ``PhantomCallback("my_contexts.yaml", loss="margin").attach(trainer)``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from phantomlib.contexts import Context, Resolved, load_contexts, resolve
from phantomlib.critical.collateral import Probe, train_until_overtaking
from phantomlib.critical.rehearsal import Estimate, estimate_critical_rate, expected_errors, rehearsal
from phantomlib.critical.step_zero import Problem
from phantomlib.engine.loss import training_loss
from phantomlib.engine.recipe import MOST_STEPS, Recipe
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import LanguageModel

SAFETY = 1.1  # what is advised lies this far beyond the interval
IGNORED = -100  # label of tokens that are not to be predicted, in transformers and torch
NONE = -1  # no competitor
BARELY = 1.05  # rehearsed critical learning rates at which collateral is measured; they are known to a percent


@dataclass(frozen=True)
class Remedy:
    """One way to make the correct word overtake: what to train with, and what it costs."""

    way: str  #: ``learning rate``, ``steps`` or ``margin``
    learning_rate: float
    steps: int
    loss: str
    training: float  #: steps in units of those asked for
    collateral: float  #: rehearsed KL divergence elsewhere when the word overtakes, nats; nan if not known


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
    """The three ways, as far as they are known, where ``critical`` is predicted; none if no learning rate was found."""
    if not math.isfinite(critical.rate):
        return ()
    cost = _rehearsed_collateral(model, context, recipe, critical)
    found = [Remedy("learning rate", enough(critical), recipe.steps, recipe.loss, 1.0, cost)]
    if learning_rate and (steps := longer(critical, recipe.steps, learning_rate)):
        found.append(Remedy("steps", learning_rate, steps, recipe.loss, steps / recipe.steps, cost))
    if recipe.loss == "cross-entropy":
        margin = replace(recipe, loss="margin")
        [estimate] = estimate_critical_rate(model, [context], margin)
        if math.isfinite(estimate.rate):
            cost = _rehearsed_collateral(model, context, margin, estimate)
            rate = max(enough(estimate), learning_rate or 0.0)
            found.append(Remedy("margin", rate, recipe.steps, margin.loss, 1.0, cost))
    return tuple(found)


def _rehearsed_collateral(model: LanguageModel, context: Resolved, recipe: Recipe, critical: Estimate) -> float:
    """Mean KL divergence over all places of the book's prompts, when a rehearsal barely overtakes."""
    if model.tokenizer is None:
        return math.nan
    prompts = [c.prompt for c in load_contexts() if c.prompt != context.context.prompt]
    probe = Probe(model, recipe, [tuple(ids) for ids in model.tokenizer(prompts)["input_ids"]], last=False)
    coarse = rehearsal(recipe)
    rate = critical.rate / math.exp(expected_errors("rehearsal", recipe).centre) * recipe.steps / coarse.steps
    step, values = train_until_overtaking(Problem(model, context, coarse), BARELY * rate, coarse)
    return math.nan if step is None else float(probe.divergence(values).mean())


class CompetitorLoss:
    """Cross-entropy over all labels, and at those that are the correct word of a context, a loss that looks at its competitor.

    It knows the labels only, not the prompts: the term counts wherever the correct word is what comes next.

    Args:
        contexts: of which the two words alone are used; those that are not resolved need the ``tokenizer``.
        loss: ``margin``, ``unlikelihood`` or ``gap`` (:mod:`phantomlib.engine.loss`); ``weight`` is the λ of its term.

    Raises:
        ParameterError: no context, or a loss that does not look at the competitor.
        ContextError: a context does not fit the tokenizer.
    """

    def __init__(
        self, contexts: Sequence[Context | Resolved], tokenizer=None, *, loss: str = "margin", weight: float = 1.0
    ):
        self.recipe = Recipe(loss=loss, weight=weight)  # which checks both
        if loss == "cross-entropy" or not contexts:
            raise ParameterError("CompetitorLoss needs at least one context, and margin, unlikelihood or gap as loss.")
        resolved = [c if isinstance(c, Resolved) else resolve(c, tokenizer) for c in contexts]
        self.competitors: dict[int, list[int]] = {}  # by the id of the correct word
        for correct, competitor in sorted({(c.correct_id, c.competitor_id) for c in resolved}):
            self.competitors.setdefault(correct, []).append(competitor)
        # (R, ids): the r-th competitor of each token id, NONE of most; ids beyond the last correct word share an entry
        self.table = torch.full((max(map(len, self.competitors.values())), max(self.competitors) + 2), NONE)
        for correct, found in self.competitors.items():
            self.table[: len(found), correct] = torch.tensor(found)

    def __call__(self, outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean over the labels of a batch, or over ``num_items_in_batch`` labels when gradients are accumulated.

        ``outputs["logits"]`` are (B, L, V), with those of virtual tokens in front of the text, and ``labels`` (B, L).
        """
        logits = outputs["logits"][:, -labels.shape[1] :].flatten(0, 1).float()  # (N, V)
        labels = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()  # (N,); t is predicted by the logits of t - 1
        self.table = self.table.to(labels.device)  # copied in the first step only
        c, loss, weight = labels.clamp(min=0), self.recipe.loss, self.recipe.weight
        total = losses = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        # Every row, and then a mask: to pick rows would have the host wait for the device in every step.
        for found in self.table[:, c.clamp(max=self.table.shape[1] - 1)]:
            k = found.clamp(min=0)
            if loss == "unlikelihood":
                term = training_loss(logits, c, k, loss, weight) - losses
            else:  # margin is cross-entropy and gap together; the gap needs two logits of a row, not another pass over V
                term = training_loss(logits, c, k, "gap", weight) - (losses if loss == "gap" else 0.0)
            total = total + torch.where((found != NONE) & (labels != IGNORED), term, 0.0)
        return total.sum() / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)
