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

A vector of parameter space is a list of tensors, one for each trainable tensor, never one array: at a hundred million
parameters only what is asked for should exist, and what one vector gives back should fit the next.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from phantomlib.contexts import Resolved
from phantomlib.engine import memory
from phantomlib.engine.finetune import trainable
from phantomlib.engine.loss import training_loss
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import LanguageModel, share_tensors

Vector = list[Tensor]  # shaped like the trainable tensors of a problem, in their order
PLAIN = Recipe()
BLOCK = 65_536  # coordinates converted to float64 at a time
KRYLOV = 5  # vectors of the Lanczos basis
KEPT = 2  # of them after a restart


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
    """One context of one model as a function of its trainable tensors.

    Args:
        model: the checkpoint; it is not changed.
        context: one resolved context.
        recipe: its ``method``, ``rank`` and ``alpha`` decide what is trainable, its ``loss`` what is minimised.
        seed: of the LoRA initialisation.
    """

    def __init__(self, model: LanguageModel, context: Resolved, recipe: Recipe = PLAIN, seed: int = 0):
        module, values = trainable(model, recipe, seed)
        self.module = share_tensors(module)
        # the readout sees the last position only
        self.module.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
        self.context, self.recipe = context, recipe
        self.values = {name: value.detach() for name, value in values.items()}
        self.ids = torch.tensor([context.prompt_ids], device=model.device)
        readout = module.get_output_embeddings().weight
        self.readout = next((name for name, p in values.items() if p is readout), None)

    def leaves(self, offset: Vector | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        """The trainable tensors, recording gradients: the model's own memory, or moved by ``scale * offset``."""
        pieces: Iterable[Tensor | None] = offset or [None] * len(self.values)
        pairs = zip(self.values.items(), pieces, strict=True)
        return {
            name: (value.detach() if piece is None else value.add(piece, alpha=scale).detach()).requires_grad_()
            for (name, value), piece in pairs
        }

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
        """What is minimised, from logits (V,)."""
        c, k = torch.tensor([[self.context.correct_id], [self.context.competitor_id]], device=logits.device)
        return training_loss(logits[None], c, k, self.recipe.loss, self.recipe.weight)[0]

    def cross_entropy(self, logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.tensor(self.context.correct_id, device=logits.device))

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
    return -gradient if recipe.optimizer == "sgd" else -gradient / (gradient.abs() + recipe.epsilon)


def velocity(model: LanguageModel, contexts: list[Resolved], recipe: Recipe = PLAIN, *, seed: int = 0) -> Velocity:
    """``v_0`` and what belongs to it, by two backward passes per context.

    Args:
        model: the checkpoint.
        contexts: C resolved contexts.
        recipe: optimiser, method, ε, and the loss whose gradient is followed.
        seed: of the LoRA initialisation.
    """
    _refuse_if_too_large("The velocity", 2, model, recipe, seed)
    rows = []
    for context in contexts:
        problem = Problem(model, context, recipe, seed)
        leaves = problem.leaves()
        logits = problem.logits(leaves)
        loss, gap = problem.loss(logits), problem.gap(logits)
        cross_entropy = problem.cross_entropy(logits).detach()
        of_loss = problem.gradient(loss, leaves, retain_graph=True)
        of_gap = problem.gradient(gap, leaves)
        along = {  # by tensor
            name: float(sum((x.double() * first_update(y, recipe).double()).sum() for x, y in blocks([a], [b])))
            for name, a, b in zip(leaves, of_gap, of_loss, strict=True)
        }
        total = sum(along.values())
        readout = along[problem.readout] / total if problem.readout else 0.0
        rows.append([total, gap.detach(), math.sqrt(dot(of_loss, of_loss)), readout, cross_entropy])
    table = torch.tensor([[float(value) for value in row] for row in rows], dtype=torch.float64)  # (C, 5)
    return Velocity(*table.T)


def gradients(problem: Problem, offset: Vector | None = None, scale: float = 1.0) -> list[Vector]:
    """Gradients of the three logits, with the weights moved by ``scale * offset``; three backward passes."""
    leaves = problem.leaves(offset, scale)
    return [problem.gradient(z, leaves, retain_graph=True) for z in problem.three(problem.logits(leaves))]


def differential(problem: Problem, z: Tensor, leaves: dict[str, Tensor], direction: Vector) -> tuple[Vector, Vector]:
    """Gradient of one logit, and its derivative along a direction, exact; the graph of the gradient is gone after it."""
    slopes = problem.gradient(z, leaves, retain_graph=True, create_graph=True)
    return _detached(slopes), _along(problem, slopes, leaves, direction)


def derivatives(problem: Problem, direction: Vector, order: int, *, reach: float = 1.0) -> list[list[Vector]]:
    r"""Derivatives of the three logits at step 0: gradients, and how they change along a direction.

    The first two orders are exact; the third is a central difference of the second, because the third derivative of a
    layer norm is wrong in torch 2.13.

    Args:
        problem: the context.
        direction: d.
        order: 2 or 3.
        reach: distance along d over which the third derivative matters; its difference spans a fifth of it.

    Returns:
        D, with ``D[o][j]`` the o-th derivative along d of the gradient of logit j: so up to an error of the next order
        :math:`\nabla z_j(\alpha d) = \sum_o \alpha^o D_{oj} / o!`.
    """
    D: list[list[Vector]] = [[] for _ in range(order)]
    if order == 3:  # first, while the lower orders take no memory
        h = 0.1 * reach
        moved = [problem.leaves(direction, sign * h) for sign in (-1, 1)]
        for pair in zip(*(problem.three(problem.logits(leaves)) for leaves in moved), strict=True):
            before, after = (differential(problem, z, of, direction)[1] for z, of in zip(pair, moved, strict=True))
            D[2].append([b.sub_(a).div_(2 * h) for a, b in zip(before, after, strict=True)])
            del before, after
        del moved, pair
    leaves = problem.leaves()
    for z in problem.three(problem.logits(leaves)):
        gradient, change = differential(problem, z, leaves, direction)
        D[0].append(gradient)
        D[1].append(change)
    return D


def tangent_kernel(problem: Problem, recipe: Recipe = PLAIN) -> Tensor:
    """K (3, 3), float64: how ``(z_c, z_k, z_r)`` move per unit learning rate when one of them is pushed.

    For SGD the Gram matrix of their gradients (the neural tangent kernel); for Adam weighted with 1/(\\|∇L\\| + ε).
    """
    leaves = problem.leaves()
    of_loss = problem.gradient(problem.loss(problem.logits(leaves)), leaves)
    kernel = torch.zeros((3, 3), dtype=torch.float64, device=problem.ids.device)
    for block in blocks(*gradients(problem), of_loss):
        G, slope = block[:3].double(), block[3].double()
        kernel += (G if recipe.optimizer == "sgd" else G / (slope.abs() + recipe.epsilon)) @ G.T
    return kernel


def sharpness(
    model: LanguageModel,
    contexts: list[Resolved],
    recipe: Recipe = PLAIN,
    *,
    seed: int = 0,
    tolerance: float = 1e-2,
    iterations: int = 50,
) -> Sharpness:
    """Largest eigenvalue of the Hessian of each context's loss at step 0, by Lanczos iteration.

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
    _refuse_if_too_large("The sharpness", KRYLOV + 6, model, recipe, seed)  # basis, gradient, scale, product, scaled
    found = [_largest(Hessian(Problem(model, c, recipe, seed), recipe), tolerance, iterations) for c in contexts]
    value, residual, converged, products = zip(*found, strict=True)
    values, residuals = (torch.tensor(column, dtype=torch.float64) for column in (value, residual))
    return Sharpness(values, residuals, torch.tensor(converged), torch.tensor(products))


def _refuse_if_too_large(what: str, vectors: int, model: LanguageModel, recipe: Recipe, seed: int) -> None:
    needed = memory.of_vectors(vectors, trainable(model, recipe, seed)[1].values())
    memory.refuse_if_too_large(f"{what} of '{model.name}'", needed, model.device)


class Hessian:
    """The Hessian of the loss, rescaled as in :func:`sharpness`, as a map of vectors.

    Attributes:
        gradient: of the loss, not rescaled.
        update: the first update, rescaled too: it has a large part along the sharpest direction.
        products: how many were asked for.
    """

    def __init__(self, problem: Problem, recipe: Recipe):
        self.problem, self.leaves, self.products = problem, problem.leaves(), 0
        loss = problem.loss(problem.logits(self.leaves))
        self._slopes = problem.gradient(loss, self.leaves, create_graph=True)
        self.gradient = _detached(self._slopes)
        self._scale = None
        if recipe.optimizer != "sgd":
            self._scale = [g.abs().add_(recipe.epsilon).rsqrt_() for g in self.gradient]
        self.update = [first_update(g, recipe) for g in self.gradient]

    def __call__(self, vector: Vector) -> Vector:
        self.products += 1
        if self._scale is None:
            return _along(self.problem, self._slopes, self.leaves, vector)
        scaled = [v * s for v, s in zip(vector, self._scale, strict=True)]
        product = _along(self.problem, self._slopes, self.leaves, scaled)
        return [p.mul_(s) for p, s in zip(product, self._scale, strict=True)]


def _largest(hessian: Hessian, tolerance: float, iterations: int) -> tuple[float, float, bool, int]:
    """Largest eigenvalue, relative residual, whether converged, products: Lanczos with full reorthogonalisation.

    A restart keeps the ``KEPT`` best vectors of ``KRYLOV`` (Wu and Simon, SIAM J. Matrix Anal. Appl. 22, 602 (2000)),
    so that a handful of vectors is enough. Vectors have the model's precision, their inner products float64.
    """
    most = min(KRYLOV, sum(g.numel() for g in hessian.gradient))
    basis = [_normalised(hessian.update)]  # a fixed start makes repeated calls equal
    projected = torch.zeros((most, most), dtype=torch.float64)
    del hessian.update
    for _ in range(iterations):
        rest = 1.0
        while len(basis) <= most and rest > 0:
            n = len(basis)
            following = hessian(basis[-1])
            size = math.sqrt(dot(following, following))
            for _again in range(2):
                for i, vector in enumerate(basis):
                    part = dot(vector, following)
                    projected[i, n - 1] += part
                    _add(following, vector, -part)
            projected[n - 1, : n - 1] = projected[: n - 1, n - 1]
            rest = math.sqrt(dot(following, following))
            rest = rest if rest > 1e-12 * size else 0.0  # the basis spans an invariant space
            basis.append(_normalised(following) if rest else following)
        n = len(basis) - 1
        values, vectors = torch.linalg.eigh(projected[:n, :n])
        if not math.isfinite(float(values[-1])):
            return math.nan, math.nan, False, hessian.products
        converged = rest * abs(float(vectors[-1, -1])) <= tolerance * abs(float(values[-1]))
        last = basis.pop()
        _rotate(basis, vectors[:, -KEPT:].flip(1))
        del basis[KEPT:]
        if converged or not rest:
            break
        basis.append(last)
        projected.zero_()
        projected[range(KEPT), range(KEPT)] = values[-KEPT:].flip(0)
    del last
    value, off = float(values[-1]), hessian(basis[0])
    _add(off, basis[0], -value)
    return value, math.sqrt(dot(off, off)) / abs(value), bool(converged), hessian.products


def _rotate(basis: list[Vector], columns: Tensor) -> None:
    """Replace the first k vectors by combinations of all n, with coefficients ``columns`` (n, k), block by block."""
    for pieces in zip(*basis, strict=True):
        for block in zip(*(piece.view(-1).split(BLOCK) for piece in pieces), strict=True):
            combined = columns.T.to(block[0]) @ torch.stack(block)
            for piece, value in zip(block, combined, strict=False):
                piece.copy_(value)


def _add(vector: Vector, other: Vector, factor: float) -> None:
    for v, o in zip(vector, other, strict=True):
        v.add_(o, alpha=factor)


def _normalised(vector: Vector) -> Vector:
    """The vector at length one, in memory that can be viewed as one row; a zero vector stays zero."""
    length = math.sqrt(dot(vector, vector)) or 1.0
    return [v.div_(length).contiguous() for v in vector]


def _along(problem: Problem, slopes: Vector, leaves: dict[str, Tensor], direction: Vector) -> Vector:
    """Derivative along a direction of a gradient that has a graph."""
    moving = [(s, d) for s, d in zip(slopes, direction, strict=True) if s.requires_grad]
    values, along = zip(*moving, strict=True)
    return problem.gradient(values, leaves, grad_outputs=along, retain_graph=True)


def _detached(vector: Vector) -> Vector:
    return [v.detach() for v in vector]
