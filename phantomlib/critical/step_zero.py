r"""Step-0 quantities of a fine-tuning problem: how fast the logit gap starts to close, how the logits and the loss curve.

With :math:`u` the direction of an optimiser's first update per unit learning rate,

.. math::

    u = -\nabla L \;(\text{SGD}), \qquad u = -\nabla L / (|\nabla L| + \epsilon) \;(\text{Adam}), \qquad
    v_0 = \left.\frac{d\Delta}{d\eta}\right|_0 = \nabla\Delta \cdot u .

Adam's first update has this form exactly, because the bias corrections of both moments cancel at step 1. The loss of one
context depends on three numbers only: :math:`z_c`, :math:`z_k`, and the rest of the vocabulary lumped into
:math:`z_r = \log \sum_{i \ne c,k} e^{z_i}`, whose gradient is the probability-weighted mean of the others' gradients.

A vector of parameter space is a list of tensors, one for each trainable tensor, never one array: at a hundred million
parameters only what is asked for should exist, and what one vector gives back should fit the next.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh
from torch import Tensor

from phantomlib.contexts import Resolved, check_resolved
from phantomlib.engine import memory
from phantomlib.engine.finetune import trainable
from phantomlib.engine.loss import training_loss
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel, share_tensors

Vector = list[Tensor]  # shaped like the trainable tensors of a problem, in their order
PLAIN = Recipe()
BLOCK = 65_536  # coordinates converted to float64 at a time
KRYLOV = 4  # vectors of ARPACK's Lanczos basis
LANCZOS = KRYLOV + 10  # vectors of parameter space that a sharpness takes: ARPACK's own, gradient, scale, a product


@dataclass(frozen=True)
class Velocity:
    """The first movement of the logit gap; one entry per context, float64 tensors (C,)."""

    velocity: Tensor  #: ``v_0 = dΔ/dη`` along the first update, in nats per unit learning rate
    gap: Tensor  #: ``Δ_0 = z_c - z_k`` in nats, negative before training
    gradient_norm: Tensor  #: Euclidean norm of the loss gradient, in nats
    readout_share: Tensor  #: part of ``velocity`` through the readout matrix (if tied, the shared one; 0 if frozen)
    cross_entropy: Tensor  #: ``-log p_c`` in nats


class Problem:
    """One context of one model, which is not changed, as a function of its trainable tensors.

    The recipe's ``method``, ``rank`` and ``alpha`` decide what is trainable, its ``loss`` what is minimised; ``seed`` is
    that of the LoRA initialisation.
    """

    def __init__(self, model: LanguageModel, context: Resolved, recipe: Recipe = PLAIN, seed: int = 0):
        module, values = trainable(model, recipe, seed)
        self.module = share_tensors(module)
        # the readout sees the last position only
        self.module.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
        self.context, self.recipe = context, recipe
        self.values = {name: value.detach() for name, value in values.items()}
        self.ids = torch.tensor([context.prompt_ids], device=model.device)
        self.pair = torch.tensor([context.correct_id, context.competitor_id], device=model.device)
        readout = module.get_output_embeddings().weight
        self.readout = next((name for name, p in values.items() if p is readout), None)

    def leaves(self, offset: Vector | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        """The trainable tensors, recording gradients: the model's own memory, or moved by ``scale * offset``."""
        values: Iterable[Tensor] = self.values.values()
        if offset is not None:
            values = (value.add(piece, alpha=scale) for value, piece in zip(values, offset, strict=True))
        return {name: value.detach().requires_grad_() for name, value in zip(self.values, values, strict=True)}

    def logits(self, values: dict[str, Tensor]) -> Tensor:
        """Next-token logits (V,) with the trainable tensors set to ``values``."""
        return torch.func.functional_call(self.module, values, (self.ids,), {"use_cache": False}).logits[0, 0]

    def three(self, logits: Tensor) -> Tensor:
        """``(z_c, z_k, z_r)`` (3,) from logits (V,)."""
        rest = logits.index_fill(0, self.pair, -torch.inf)
        return torch.cat([logits[self.pair], rest.logsumexp(0, keepdim=True)])

    def gap(self, logits: Tensor) -> Tensor:
        return logits[self.context.correct_id] - logits[self.context.competitor_id]

    def loss(self, logits: Tensor) -> Tensor:
        """What is minimised, from logits (V,)."""
        c, k = self.pair[:, None]
        return training_loss(logits[None], c, k, self.recipe.loss, self.recipe.weight)[0]

    def gradient(self, values, leaves: dict[str, Tensor], **options) -> Vector:
        """Gradient of a scalar (or of several, see ``grad_outputs``); zeros for tensors it does not depend on."""
        found = torch.autograd.grad(values, list(leaves.values()), allow_unused=True, **options)
        vector, taken = [], {g.data_ptr() for g in options.get("grad_outputs", ())}
        for g, v in zip(found, leaves.values(), strict=True):
            g = torch.zeros_like(v) if g is None else g
            vector.append(g.clone() if g.data_ptr() in taken else g)  # autograd may hand out one tensor twice
            taken.add(g.data_ptr())
        return vector


def blocks(*vectors: Vector) -> Iterator[Tensor]:
    """The coordinates of n vectors side by side, as matrices (n, B) with B up to twice ``BLOCK``."""
    held, size = [], 0
    for pieces in zip(*vectors, strict=True):
        for block in zip(*(piece.detach().reshape(-1).split(BLOCK) for piece in pieces), strict=True):
            held.append(torch.stack(block))
            size += held[-1].shape[1]
            if size >= BLOCK:
                yield torch.cat(held, 1)
                held, size = [], 0
    if held:
        yield torch.cat(held, 1)


def dot(a: Vector, b: Vector) -> float:
    """Inner product, summed in float64."""
    return float(sum((x.double() * y.double()).sum() for x, y in blocks(a, b)))


def first_update(gradient: Tensor, recipe: Recipe) -> Tensor:
    """Direction ``u`` of the first update per unit learning rate; weight decay is not part of it."""
    return -gradient if recipe.optimizer == "sgd" else -gradient / first_scale(gradient, recipe)


def first_scale(gradient: Tensor, recipe: Recipe) -> Tensor:
    """What Adam divides its first gradient by, ``|∇L| + ε``."""
    return gradient.detach().abs().add_(recipe.epsilon)


def velocity(model: LanguageModel, contexts: list[Resolved], recipe: Recipe = PLAIN, *, seed: int = 0) -> Velocity:
    """``v_0`` and what belongs to it for C contexts, by two backward passes each; ``seed`` is that of LoRA's initialisation.

    The recipe's optimiser, method, ε and loss decide which update is followed.
    """
    check_resolved(contexts)
    needed = memory.of_vectors(2, trainable(model, recipe, seed)[1].values())
    memory.refuse_if_too_large(f"The velocity of '{model.name}'", needed, model.device)
    rows = []
    for context in contexts:
        problem = Problem(model, context, recipe, seed)
        leaves = problem.leaves()
        logits = problem.logits(leaves)
        gap, cross_entropy = problem.gap(logits), -logits.detach().log_softmax(0)[context.correct_id]
        of_loss = problem.gradient(problem.loss(logits), leaves, retain_graph=True)
        of_gap = problem.gradient(gap, leaves)
        along = {  # by tensor
            name: float(sum((x.double() * first_update(y, recipe).double()).sum() for x, y in blocks([a], [b])))
            for name, a, b in zip(leaves, of_gap, of_loss, strict=True)
        }
        total = sum(along.values())
        readout = along[problem.readout] / total if problem.readout else 0.0
        rows.append([total, gap.item(), math.sqrt(dot(of_loss, of_loss)), readout, cross_entropy.item()])
    return Velocity(*torch.tensor(rows, dtype=torch.float64).T)  # of (C, 5)


def gradients(problem: Problem, offset: Vector | None = None, scale: float = 1.0) -> list[Vector]:
    """Gradients of the three logits, with the weights moved by ``scale * offset``; three backward passes."""
    leaves = problem.leaves(offset, scale)
    return [problem.gradient(z, leaves, retain_graph=True) for z in problem.three(problem.logits(leaves))]


def derivatives(problem: Problem, direction: Vector, order: int, *, reach: float = 1.0) -> list[list[Vector]]:
    r"""Derivatives of the three logits at step 0: gradients, and how they change along a direction d.

    The first two orders are exact. The third is a central difference of the second over a fifth of ``reach``, the distance
    along d over which it matters, because the third derivative of a layer norm is wrong in torch 2.13.

    Returns:
        D, with ``D[o][j]`` the o-th derivative along d of the gradient of logit j (o below ``order``, 2 or 3): so up to an
        error of the next order :math:`\nabla z_j(\alpha d) = \sum_o \alpha^o D_{oj} / o!`.
    """

    def changes(z: Tensor, leaves: dict[str, Tensor]) -> tuple[Vector, Vector]:
        """Gradient of one logit, and its derivative along d; the graph of the gradient is gone after it."""
        slopes = problem.gradient(z, leaves, retain_graph=True, create_graph=True)
        return [s.detach() for s in slopes], _along(problem, slopes, leaves, direction)

    D: list[list[Vector]] = [[] for _ in range(order)]
    if order == 3:  # first, while the lower orders take no memory
        h = 0.1 * reach
        moved = [problem.leaves(direction, sign * h) for sign in (-1, 1)]
        for pair in zip(*(problem.three(problem.logits(leaves)) for leaves in moved), strict=True):
            before, after = (changes(z, leaves)[1] for z, leaves in zip(pair, moved, strict=True))
            D[2].append([b.sub_(a).div_(2 * h) for a, b in zip(before, after, strict=True)])
            del before, after
        del moved, pair
    leaves = problem.leaves()
    for z in problem.three(problem.logits(leaves)):
        for of_order, found in zip(D, changes(z, leaves), strict=False):
            of_order.append(found)
    return D


def velocity_growth(model: LanguageModel, contexts: list[Resolved], recipe: Recipe, *, seed: int = 0) -> Tensor:
    r"""κ, by how much LoRA's velocity grows per unit learning rate as Adam moves A; relative, float64 (C,).

    Before training B is zero, so A has no gradient. After one small step of B along its first update :math:`u_B` it has
    one, small as the step; but Adam does not mind the size, and moves A at full speed along
    :math:`u_A = -\operatorname{sign}(\nabla_A L)`. With the velocity :math:`v(A) = \nabla_B \Delta \cdot u_B`,

    .. math::

        \kappa = \lim_{\varepsilon \to 0} \frac{v(A + \varepsilon u_A) - v(A)}{\varepsilon\, v(A)}
        = \frac{u_A \cdot \nabla_A (\nabla_B \Delta \cdot u_B)}{\nabla_B \Delta \cdot u_B} .

    Under SGD a small gradient is a small step, and full fine-tuning has no A: κ is 0 there. What follows from κ is told by
    :func:`phantomlib.critical.scaling.lora_critical_rate`.

    The model needs eager attention, which can be differentiated twice; ``seed`` is that of the LoRA initialisation.
    """
    if recipe.optimizer == "sgd" or recipe.method == "full":
        return torch.zeros(len(contexts), dtype=torch.float64)
    found = []
    for context in contexts:
        problem = Problem(model, context, recipe, seed)
        leaves = problem.leaves()
        logits = problem.logits(leaves)
        of_loss = problem.gradient(problem.loss(logits), leaves, create_graph=True)
        of_gap = problem.gradient(problem.gap(logits), leaves, create_graph=True)
        u_B = [first_update(g.detach(), recipe) * ("lora_B" in n) for n, g in zip(leaves, of_loss, strict=True)]
        # the gradient of A after a step of B: a mixed derivative, since it is zero before
        pushed = _along(problem, of_loss, leaves, u_B)
        u_A = [-g.sign() * ("lora_A" in n) for n, g in zip(leaves, pushed, strict=True)]
        found.append(dot(u_A, _along(problem, of_gap, leaves, u_B)) / dot(of_gap, u_B))
    return torch.tensor(found, dtype=torch.float64)


def sharpness(
    model: LanguageModel,
    contexts: list[Resolved],
    recipe: Recipe = PLAIN,
    *,
    tolerance: float = 1e-2,
    iterations: int = 50,
) -> Tensor:
    """λ_max, the largest eigenvalue of the Hessian of each context's loss at step 0; float64 (C,).

    For Adam the Hessian is rescaled by the first update: ``D^(-1/2) H D^(-1/2)`` with ``D = |∇L| + ε``, so that
    ``η λ_max / 2 = 1`` marks the edge of stability of either optimiser on the quadratic approximation. The model needs eager
    attention, which can be differentiated twice.

    Returns:
        in nats per squared unit of the (rescaled) parameters, to the relative ``tolerance``; nan where the iteration did
        not reach it in so many ``iterations`` (restarts).
    """
    needed = memory.of_vectors(LANCZOS, trainable(model, recipe, 0)[1].values())
    memory.refuse_if_too_large(f"The sharpness of '{model.name}'", needed, model.device)
    found = []
    for context in contexts:
        operator, start = hessian(Problem(model, context, recipe))
        options: dict[str, Any] = {"ncv": KRYLOV, "tol": tolerance, "maxiter": iterations, "return_eigenvectors": False}
        try:  # a fixed start makes repeated calls equal
            found.extend(eigsh(operator, k=1, which="LA", v0=start, **options))
        except ArpackError:  # not converged, or nothing finite to start from
            found.append(math.nan)
        del operator, start  # room for the next
    return torch.tensor(found, dtype=torch.float64)


def hessian(problem: Problem) -> tuple[LinearOperator, np.ndarray]:
    """The Hessian of the loss (P, P), rescaled as in :func:`sharpness`, for scipy: vectors (P,) on the host.

    Also the first update (P,), which has a large part along the sharpest direction.
    """
    leaves, recipe = problem.leaves(), problem.recipe
    slopes = problem.gradient(problem.loss(problem.logits(leaves)), leaves, create_graph=True)
    scale = [g.new_ones(()) if recipe.optimizer == "sgd" else first_scale(g, recipe).rsqrt_() for g in slopes]
    sizes = [g.numel() for g in slopes]

    def product(x: np.ndarray) -> np.ndarray:
        parts = zip(torch.from_numpy(x.reshape(-1)).split(sizes), slopes, scale, strict=True)
        vector = [part.view_as(g).to(g.device) * s for part, g, s in parts]
        changes = _along(problem, slopes, leaves, vector)
        del vector  # room for the joined one
        return joined([c.mul_(s) for c, s in zip(changes, scale, strict=True)])

    def joined(vector: Vector) -> np.ndarray:
        return torch.cat([piece.reshape(-1) for piece in vector]).cpu().numpy()

    start = joined([first_update(g.detach(), recipe) for g in slopes])
    return LinearOperator((len(start), len(start)), product, dtype=start.dtype), start


def _along(problem: Problem, slopes: Vector, leaves: dict[str, Tensor], direction: Vector) -> Vector:
    """Derivative along a direction of a gradient that has a graph."""
    moving = [(s, d) for s, d in zip(slopes, direction, strict=True) if s.requires_grad]
    values, along = zip(*moving, strict=True)
    return problem.gradient(values, leaves, grad_outputs=along, retain_graph=True)
