r"""What else a fine-tune changes: how far the model's other predictions have moved when the correct word overtakes.

The collateral of a run is :math:`\mathrm{KL}(p^{(0)} \,\|\, p^{(t)}) = \sum_i p_i^{(0)} \log (p_i^{(0)} / p_i^{(t)})`, in
nats, between the predictions of the untouched model and those at the first step t with Δ > 0, averaged over prompts and
sentences that the run was not trained on. Runs are compared at the same event, not at the same learning rate.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from phantomlib.critical.step_zero import Problem
from phantomlib.engine import memory
from phantomlib.engine.finetune import trainable
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel

BLOCK = 2**24  # probabilities that are looked at together: 128 MB, a few times over


class Probe:
    """Texts that are not trained on, and what the untouched model predicts in them.

    Args:
        model, recipe, seed: what is fine-tuned, and how.
        texts: token ids, n sequences.
        last: whether to look at the prediction after each text; else at those of its second to last token.

    Raises:
        ParameterError: memory does not suffice.
    """

    def __init__(
        self, model: LanguageModel, recipe: Recipe, texts: list[tuple[int, ...]], *, last: bool, seed: int = 0
    ):
        self.module, values = trainable(model, recipe, seed)
        longest = max(map(len, texts))
        rows = [[*ids, *[ids[-1]] * (longest - len(ids))] for ids in texts]  # causal attention makes padding harmless
        place, length = np.arange(longest), np.array([[len(ids)] for ids in texts])
        places = place == length - 1 if last else place < length - 1
        vocabulary = len(model.readout)
        needed = 8 * (places.sum() * vocabulary + 4 * max(BLOCK, longest * vocabulary))
        memory.refuse_if_too_large("Keeping what the untouched model predicts elsewhere", int(needed), model.device)
        at_once = max(1, BLOCK // (longest * vocabulary))
        self.ids = torch.tensor(rows, device=model.device).split(at_once)  # (n, L), in blocks
        self.places = torch.tensor(places, device=model.device).split(at_once)  # (n, L)
        self.before = list(self._log_p(values))

    @torch.no_grad()
    def _log_p(self, values: dict[str, Tensor]) -> Iterator[Tensor]:
        """Log probabilities (places, V) with the trainable tensors set to ``values``, block by block.

        Normalised in float64: then the divergence is quadratic in small changes, and so is the part that rounding has in it.
        """
        for ids, places in zip(self.ids, self.places, strict=True):
            logits = torch.func.functional_call(self.module, values, (ids,), {"use_cache": False}).logits
            yield logits[places].double().log_softmax(-1)

    def divergence(self, values: dict[str, Tensor]) -> Tensor:
        """KL divergence at every place, in the order of the texts, in nats; float64 (places,)."""
        blocks = zip(self.before, self._log_p(values), strict=True)
        return torch.cat([(before.exp() * (before - after)).sum(-1) for before, after in blocks]).cpu()


def train_until_overtaking(problem: Problem, rate: float, recipe: Recipe) -> tuple[int | None, dict[str, Tensor]]:
    """Fine-tune one replica with ``torch.optim`` until Δ > 0, for at most T steps.

    Returns:
        the first step with Δ > 0, or None; and the trainable tensors there, or after T steps.

    Raises:
        ParameterError: memory does not suffice.
    """
    needed = memory.of_vectors(4, problem.values.values())  # weights, gradient, two moments
    memory.refuse_if_too_large("Measuring what else a fine-tune changes", needed, problem.ids.device)
    values = {name: value.clone().requires_grad_() for name, value in problem.values.items()}
    trained: list[Tensor] = list(values.values())
    options: dict[str, Any] = {
        "betas": (recipe.beta1, recipe.beta2),
        "eps": recipe.epsilon,
        "weight_decay": recipe.weight_decay,
    }
    optimizer = (
        torch.optim.SGD(trained, lr=rate, fused=True)
        if recipe.optimizer == "sgd"
        else torch.optim.AdamW(trained, lr=rate, fused=True, **options)  # without decay it is Adam
    )
    for step in range(recipe.steps + 1):
        logits = problem.logits(values)
        if problem.gap(logits) > 0:
            return step, values
        if step < recipe.steps:
            optimizer.zero_grad()
            problem.loss(logits).backward()
            optimizer.step()
    return None, values
