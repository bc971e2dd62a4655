r"""Step-0 quantities of a fine-tuning problem: how fast the logit gap starts to close, and how curved the loss is.

With :math:`u` the direction of an optimiser's first update per unit learning rate,

.. math::

    u = -\nabla L \;(\text{SGD}), \qquad u = -\nabla L / (|\nabla L| + \epsilon) \;(\text{Adam}), \qquad
    v_0 = \left.\frac{d\Delta}{d\eta}\right|_0 = \nabla\Delta \cdot u .

Adam's first update has this form exactly, because the bias corrections of both moments cancel at step 1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phantomlib.contexts import Resolved
from phantomlib.finetune import Recipe, trainable
from phantomlib.models import LanguageModel


@dataclass(frozen=True)
class Velocity:
    """The first movement of the logit gap, one entry per context; float64 tensors (C,).

    Attributes:
        velocity: ``v_0 = dΔ/dη`` along the first update, in nats per unit learning rate.
        gap: ``Δ_0 = z_c - z_k`` in nats, negative before training.
        gradient_norm: Euclidean norm of the loss gradient, in nats.
        readout_share: part of ``velocity`` that flows through the readout matrix (for a tied model the shared matrix; 0 if frozen).
        cross_entropy: ``-log p_c`` in nats.
    """

    velocity: Tensor
    gap: Tensor
    gradient_norm: Tensor
    readout_share: Tensor
    cross_entropy: Tensor


class Problem:
    """One context of one model as a function of its trainable tensors.

    Args:
        model: the checkpoint; it is not changed.
        context: one resolved context.
        recipe: its ``method``, ``rank`` and ``alpha`` decide what is trainable.
        seed: of the LoRA initialisation.
    """

    def __init__(self, model: LanguageModel, context: Resolved, recipe: Recipe = Recipe(), seed: int = 0):
        self.module, values = trainable(model, recipe, seed)
        self.context = context
        self.values = {name: value.detach() for name, value in values.items()}
        self.ids = torch.tensor([context.prompt_ids], device=model.device)
        readout = self.module.get_output_embeddings().weight
        self.readout = next((name for name, p in values.items() if p is readout), None)

    def leaves(self) -> dict[str, Tensor]:
        """Fresh copies of the trainable tensors that record gradients."""
        return {name: value.clone().requires_grad_() for name, value in self.values.items()}

    def logits(self, values: dict[str, Tensor]) -> Tensor:
        """Next-token logits (V,) with the trainable tensors set to ``values``."""
        return torch.func.functional_call(self.module, values, (self.ids,), {"use_cache": False}).logits[0, -1]

    def gap(self, logits: Tensor) -> Tensor:
        return logits[..., self.context.correct_id] - logits[..., self.context.competitor_id]

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.tensor(self.context.correct_id, device=logits.device))


def first_update(gradients: list[Tensor], recipe: Recipe) -> list[Tensor]:
    """Direction ``u`` of the first update per unit learning rate; weight decay is not part of it."""
    if recipe.optimizer == "sgd":
        return [-g for g in gradients]
    return [-g / (g.abs() + recipe.epsilon) for g in gradients]


def velocity(model: LanguageModel, contexts: list[Resolved], recipe: Recipe = Recipe(), *, seed: int = 0) -> Velocity:
    """``v_0`` and what belongs to it, by two backward passes per context.

    Args:
        model: the checkpoint.
        contexts: C resolved contexts.
        recipe: optimiser, method, ε.
        seed: of the LoRA initialisation.
    """
    rows = []
    for context in contexts:
        problem = Problem(model, context, recipe, seed)
        leaves = problem.leaves()
        logits = problem.logits(leaves)
        loss, gap = problem.loss(logits), problem.gap(logits)
        of_loss = _gradients(loss, leaves, retain=True)
        of_gap = _gradients(gap, leaves)
        along = [_dot(a, b) for a, b in zip(of_gap, first_update(of_loss, recipe))]
        total = torch.stack(along).sum()
        readout = along[list(leaves).index(problem.readout)] if problem.readout else torch.zeros_like(total)
        norm = torch.stack([_dot(g, g) for g in of_loss]).sum().sqrt()
        rows.append([total, gap.detach(), norm, readout / total, loss.detach()])
    table = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)  # (C, 5)
    return Velocity(*table.T)


def _gradients(value: Tensor, leaves: dict[str, Tensor], retain: bool = False) -> list[Tensor]:
    """Gradients of a scalar; zeros for tensors it does not depend on."""
    found = torch.autograd.grad(value, list(leaves.values()), retain_graph=retain, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, leaves.values())]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a.double() * b.double()).sum()
