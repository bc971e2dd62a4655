r"""Step-0 quantities of a fine-tuning problem: how fast the logit gap starts to close, and how the logits and the loss
curve.

With :math:`u` the direction of an optimiser's first update per unit learning rate,

.. math::

    u = -\nabla L \;(\text{SGD}), \qquad u = -\nabla L / (|\nabla L| + \epsilon) \;(\text{Adam}), \qquad
    v_0 = \left.\frac{d\Delta}{d\eta}\right|_0 = \nabla\Delta \cdot u .

Adam's first update has this form exactly, because the bias corrections of both moments cancel at step 1.

The loss of one context depends on three numbers only: :math:`z_c`, :math:`z_k`, and the rest of the vocabulary lumped
into :math:`z_r = \log \sum_{i \ne c,k} e^{z_i}`, whose gradient is the probability-weighted mean of the others'
gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from phantomlib.errors import ParameterError
from phantomlib.measure.contexts import Resolved
from phantomlib.measure.finetune import trainable
from phantomlib.measure.models import LanguageModel, share_tensors
from phantomlib.measure.recipe import Recipe

PLAIN = Recipe()


@dataclass(frozen=True)
class Velocity:
    """The first movement of the logit gap; one entry per context, float64 tensors (C,).

    Attributes:
        velocity: ``v_0 = dΔ/dη`` along the first update, in nats per unit learning rate.
        gap: ``Δ_0 = z_c - z_k`` in nats, negative before training.
        gradient_norm: Euclidean norm of the loss gradient, in nats.
        readout_share: part of ``velocity`` through the readout matrix (if tied, the shared matrix; 0 if frozen).
        cross_entropy: ``-log p_c`` in nats.
    """

    velocity: Tensor
    gap: Tensor
    gradient_norm: Tensor
    readout_share: Tensor
    cross_entropy: Tensor


@dataclass(frozen=True)
class Sharpness:
    """Largest Hessian eigenvalue of each context's loss; float64 tensors (C,).

    Attributes:
        value: λ_max, in nats per squared unit of the (rescaled) parameters; SGD is stable below η = 2/λ_max.
        residual: ``|H v - λ v| / |λ|`` of the eigenvector found.
        converged: whether the iteration reached its tolerance.
        products: Hessian-vector products spent.
    """

    value: Tensor
    residual: Tensor
    converged: Tensor
    products: Tensor


class Problem:
    """One context of one model as a function of its trainable tensors, also as one flat vector (P,).

    Args:
        model: the checkpoint; it is not changed.
        context: one resolved context.
        recipe: its ``method``, ``rank`` and ``alpha`` decide what is trainable.
        seed: of the LoRA initialisation.
    """

    def __init__(self, model: LanguageModel, context: Resolved, recipe: Recipe = PLAIN, seed: int = 0):
        module, values = trainable(model, recipe, seed)
        self.module = share_tensors(module)
        # the readout sees the last position only
        self.module.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
        self.context = context
        self.values = {name: value.detach() for name, value in values.items()}
        self.ids = torch.tensor([context.prompt_ids], device=model.device)
        readout = module.get_output_embeddings().weight
        self.readout = next((name for name, p in values.items() if p is readout), None)

    def leaves(self, offset: Tensor | None = None) -> dict[str, Tensor]:
        """The trainable tensors, moved by a vector ``offset`` (P,) if given, recording gradients."""
        pieces = self.split(offset) if offset is not None else [0.0] * len(self.values)
        pairs = zip(self.values.items(), pieces, strict=True)
        return {name: (value + piece).detach().requires_grad_() for (name, value), piece in pairs}

    def logits(self, values: dict[str, Tensor]) -> Tensor:
        """Next-token logits (V,) with the trainable tensors set to ``values``."""
        return torch.func.functional_call(self.module, values, (self.ids,), {"use_cache": False}).logits[0, 0]

    def three(self, logits: Tensor) -> Tensor:
        """``(z_c, z_k, z_r)`` (3,) from logits (V,)."""
        pair = torch.tensor([self.context.correct_id, self.context.competitor_id], device=logits.device)
        rest = logits.index_fill(0, pair, -torch.inf)
        return torch.cat([logits[pair], rest.logsumexp(0, keepdim=True)])

    def gap(self, logits: Tensor) -> Tensor:
        return logits[self.context.correct_id] - logits[self.context.competitor_id]

    def loss(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.tensor(self.context.correct_id, device=logits.device))

    def flat(self, tensors, out: Tensor | None = None) -> Tensor:
        """One vector (P,) from tensors in the order of ``values``, written to ``out`` if given; None counts as zeros."""
        pairs = zip(tensors, self.values.values(), strict=True)
        return torch.cat([(torch.zeros_like(v) if t is None else t.detach()).reshape(-1) for t, v in pairs], out=out)

    def split(self, vector: Tensor) -> list[Tensor]:
        """The inverse of :meth:`flat`."""
        pieces = vector.split([v.numel() for v in self.values.values()])
        return [piece.view_as(v) for piece, v in zip(pieces, self.values.values(), strict=True)]


def first_update(gradient: Tensor, recipe: Recipe) -> Tensor:
    """Direction ``u`` of the first update per unit learning rate; weight decay is not part of it."""
    return -gradient if recipe.optimizer == "sgd" else -gradient / (gradient.abs() + recipe.epsilon)


def velocity(model: LanguageModel, contexts: list[Resolved], recipe: Recipe = PLAIN, *, seed: int = 0) -> Velocity:
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
        of_loss = problem.flat(_gradients(loss, leaves, retain_graph=True))
        of_gap = problem.flat(_gradients(gap, leaves))
        along = of_gap.double() * first_update(of_loss, recipe).double()
        parts = dict(zip(leaves, problem.split(along), strict=True))
        total = along.sum()
        readout = parts[problem.readout].sum() / total if problem.readout else 0.0
        rows.append([total, gap.detach(), of_loss.double().norm(), readout, loss.detach()])
    table = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)  # (C, 5)
    return Velocity(*table.T)


def gradients(problem: Problem, offset: Tensor | None = None) -> Tensor:
    """Gradients of the three logits (3, P), with the weights moved by ``offset`` (P,); three backward passes."""
    leaves = problem.leaves(offset)
    rows = [problem.flat(_gradients(z, leaves, retain_graph=True)) for z in problem.three(problem.logits(leaves))]
    return torch.stack(rows)


def differentials(problem: Problem, offset: Tensor | None = None) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Gradients of the three logits (3, P), with the weights moved by ``offset`` (P,), and how they change.

    Returns:
        the gradients, and a function from a direction (P,) to their derivatives along it (3, P); exact.
    """
    leaves = problem.leaves(offset)
    slopes = [
        _gradients(z, leaves, retain_graph=True, create_graph=True) for z in problem.three(problem.logits(leaves))
    ]

    def along(direction: Tensor) -> Tensor:
        pieces = problem.split(direction)
        changes = torch.empty((3, len(direction)), dtype=direction.dtype, device=direction.device)
        for of_one, out in zip(slopes, changes, strict=True):
            slope = sum((g * d).sum() for g, d in zip(of_one, pieces, strict=True) if g is not None)
            problem.flat(_gradients(slope, leaves, retain_graph=True), out)
        return changes

    return torch.stack([problem.flat(of_one) for of_one in slopes]), along


def derivatives(problem: Problem, direction: Tensor, order: int, *, reach: float = 1.0, start=None) -> Tensor:
    r"""Derivatives of the three logits at step 0: gradients, and how they change along a direction.

    The first two orders are exact; the third is a central difference of the second, because the third derivative of a
    layer norm is wrong in torch 2.13.

    Args:
        problem: the context.
        direction: d (P,).
        order: 2 or 3.
        reach: distance along d over which the third derivative matters; its difference spans a fifth of it.
        start: what :func:`differentials` returned for step 0, if it is known already.

    Returns:
        D (order, 3, P), with ``D[o, j]`` the o-th derivative along d of the gradient of logit j: so up to an error of
        the next order :math:`\nabla z_j(\alpha d) = \sum_o \alpha^o D_{oj} / o!`.
    """
    G, along = start or differentials(problem)
    orders = [G, along(direction)]
    if order == 3:
        h = 0.1 * reach
        before, after = (differentials(problem, sign * h * direction)[1](direction) for sign in (-1, 1))
        orders.append(after.sub_(before).div_(2 * h))
    return torch.stack(orders)


def tangent_kernel(problem: Problem, recipe: Recipe = PLAIN) -> Tensor:
    """K (3, 3), float64: how ``(z_c, z_k, z_r)`` move per unit learning rate when one of them is pushed.

    For SGD the Gram matrix of their gradients (the neural tangent kernel); for Adam weighted with 1/(\\|∇L\\| + ε).
    """
    G = gradients(problem).double()
    if recipe.optimizer == "sgd":
        return G @ G.T
    with torch.no_grad():
        residual = problem.three(problem.logits(problem.values)).softmax(0).double()
    residual[0] -= 1
    return (G / ((residual @ G).abs() + recipe.epsilon)) @ G.T


def sharpness(
    model: LanguageModel,
    contexts: list[Resolved],
    recipe: Recipe = PLAIN,
    *,
    seed: int = 0,
    tolerance: float = 1e-2,
    iterations: int = 50,
) -> Sharpness:
    """Largest eigenvalue of the Hessian of each context's loss at step 0, by Lanczos iteration (ARPACK).

    For Adam the Hessian is rescaled by the first update: ``D^(-1/2) H D^(-1/2)`` with ``D = |∇L| + ε``, so that
    ``η λ_max / 2 = 1`` marks the edge of stability of either optimiser on the quadratic approximation.

    Args:
        model: the checkpoint (eager attention, which can be differentiated twice).
        contexts: C resolved contexts.
        recipe: optimiser, method, ε.
        seed: of the LoRA initialisation.
        tolerance: relative accuracy of the eigenvalue.
        iterations: restarts allowed.
    """
    if not 0 < tolerance < 1:
        raise ParameterError(f"tolerance is {tolerance!r}; give a relative accuracy between 0 and 1, such as 0.01.")
    found = [_largest(Problem(model, c, recipe, seed), recipe, tolerance, iterations) for c in contexts]
    value, residual, converged, products = zip(*found, strict=True)
    numbers = (torch.tensor(column, dtype=torch.float64) for column in (value, residual))
    return Sharpness(*numbers, torch.tensor(converged), torch.tensor(products))


def hessian(problem: Problem, recipe: Recipe = PLAIN) -> tuple[LinearOperator, Tensor]:
    """The Hessian (P, P) of the loss as an operator, rescaled as in :func:`sharpness`, and the loss gradient (P,)."""
    leaves = problem.leaves()
    slopes = _gradients(problem.loss(problem.logits(leaves)), leaves, create_graph=True)
    gradient = problem.flat(slopes)
    scale = torch.ones_like(gradient)
    if recipe.optimizer != "sgd":
        scale = (gradient.abs() + recipe.epsilon).rsqrt()

    def product(vector: np.ndarray) -> np.ndarray:
        pieces = problem.split(scale * torch.as_tensor(vector.reshape(-1), dtype=scale.dtype, device=scale.device))
        inner = sum((g * v).sum() for g, v in zip(slopes, pieces, strict=True) if g is not None)
        return (scale * problem.flat(_gradients(inner, leaves, retain_graph=True))).double().cpu().numpy()

    return LinearOperator((len(scale), len(scale)), matvec=product, dtype=np.float64), gradient


def _largest(problem: Problem, recipe: Recipe, tolerance: float, iterations: int) -> tuple:
    operator, gradient = hessian(problem, recipe)
    count = 0

    def counted(vector):
        nonlocal count
        count += 1
        return operator.matvec(vector)

    # a fixed start makes repeated calls equal; the first update has a large part along the sharpest direction
    start = first_update(gradient, recipe).double().cpu().numpy()
    try:
        values, vectors = eigsh(
            LinearOperator(operator.shape, matvec=counted, dtype=np.float64),
            k=1,
            which="LA",  # the default, largest magnitude, may find a negative one
            v0=start,
            ncv=min(8, operator.shape[0]),
            tol=tolerance,
            maxiter=iterations,
        )
        converged = True
    except ArpackNoConvergence as error:
        values, vectors, converged = error.eigenvalues, error.eigenvectors, False
        if not len(values):
            return np.nan, np.nan, False, count
    value, vector = values[0], vectors[:, 0]
    return value, np.linalg.norm(operator.matvec(vector) - value * vector) / abs(value), converged, count


def _gradients(value: Tensor, leaves: dict[str, Tensor], **options) -> tuple[Tensor | None, ...]:
    """Gradients of a scalar; None for tensors it does not depend on."""
    return torch.autograd.grad(value, list(leaves.values()), allow_unused=True, **options)
