"""A loss for a Hugging Face ``Trainer`` that looks at the competitor.

::

    from phantomlib import load_contexts
    from phantomlib.competitor_loss import CompetitorLoss

    loss = CompetitorLoss(load_contexts("my_contexts.yaml"), tokenizer)
    trainer = Trainer(..., compute_loss_func=loss)

Or let the callback do both, watch and change the loss: ``PhantomCallback("my_contexts.yaml", loss="margin").attach(trainer)``.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from phantomlib.contexts import Context, Resolved, resolve
from phantomlib.engine.loss import training_loss
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError

IGNORED = -100  # label of tokens that are not to be predicted, in transformers and torch


class CompetitorLoss:
    """Cross-entropy over all labels, and at those that are the correct word of a context, a loss that looks at its competitor.

    It knows the labels only, not the prompts: the term counts wherever the correct word is what comes next. Labels are
    token ids as for any causal language model (position t is predicted by the logits of t - 1).

    Args:
        contexts: contexts, or resolved ones; the words that they want exchanged are all that is used.
        tokenizer: needed for contexts that are not resolved.
        loss: ``margin``, ``unlikelihood`` or ``gap`` (:mod:`phantomlib.engine.loss`).
        weight: λ of its term.

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
        self.pairs = sorted({(c.correct_id, c.competitor_id) for c in resolved})

    def __call__(self, outputs, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Mean over the labels of a batch, or over ``num_items_in_batch`` labels when gradients are accumulated.

        Args:
            outputs: of the model, with ``logits`` (B, L, V).
            labels: (B, L).
            num_items_in_batch: as the Trainer counts them.
        """
        labels = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()
        kept = labels != IGNORED
        labels, logits = labels[kept], outputs["logits"].flatten(0, 1)[kept].float()  # (N,), (N, V)
        losses = F.cross_entropy(logits, labels, reduction="none")
        for correct, competitor in self.pairs:
            at = (labels == correct).nonzero()[:, 0]
            c, k = labels[at], labels[at].new_full((len(at),), competitor)
            with_term = training_loss(logits[at], c, k, self.recipe.loss, self.recipe.weight)
            losses = losses.index_add(0, at, with_term - F.cross_entropy(logits[at], c, reduction="none"))
        return losses.sum() / (len(labels) if num_items_in_batch is None else num_items_in_batch)
