r"""Predict critical learning rates without fine-tuning a model.

The ladder. All rungs ask for which η the logit gap is zero after T steps, and use only what is known at step 0.

``velocity``
    The gap closes at its first speed: :math:`\eta = |\Delta_0| / (T v_0)`, so the kinematic number is 1.
``straight_line``
    With the second derivative of the gap along the first update.
``three_gradients``
    The three logits (z_c, z_k, rest) move with their gradients at step 0, the optimiser is followed for T steps, and
    the probabilities change as they go. For SGD this is a recursion with the 3×3 tangent kernel.
``second_order``
    The same, with gradients that change linearly along the first update (three Hessian-vector products).
``third_order``
    The same with two derivatives, taken along the displacement that ``second_order`` predicts.

Two more leave step 0. ``quadrature`` takes gradients at step 0 and with the weights moved by half and all of the predicted
displacement (Simpson's points), by hand: no step of training is made. ``first_steps`` continues the velocity over three real
steps in a straight line.

Nothing in them is fitted. A calibration can be fitted on other architectures: a common factor, or one that depends on Δ_0.
"""

import math
from dataclasses import replace
from itertools import chain, compress
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from phantomlib.contexts import Resolved
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import Problem, Vector, blocks, derivatives, dot, first_update, gradients
from phantomlib.engine import memory
from phantomlib.engine.recipe import Recipe, check_contexts
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import Store

STEP_0 = ("velocity", "straight_line", "three_gradients", "second_order", "third_order")
LADDER = (*STEP_0, "quadrature")
PREDICTORS = (*LADDER, "first_steps")
FIRST_STEPS = 3
VECTORS = 11  # of parameter space that exist at a time
VERSION = 6  # raised whenever a prediction could change
SAMPLE = 65_536  # coordinates on which Adam is followed; more are sampled, see _sample


def predict_critical_rates(store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe) -> xr.Dataset:
    """Critical learning rates for C contexts, predicted without a step of training; kept in the store's ``predictors``.

    Returns:
        Dataset over ``context``: one variable per rung of the ladder (``LADDER``; nan where it has no solution), and
        ``gap`` (Δ_0, nats).

    Raises:
        ContextError: a context does not fit the model, or there is nothing to overtake in it.
        ParameterError: the recipe is not one that the ladder can follow, or memory does not suffice.
    """
    _check_recipe(recipe)

    def compute() -> dict:
        check_contexts(model, contexts)
        needed = memory.of_vectors(VECTORS, model.module.parameters())
        columns = []
        for context in contexts:  # each gives back what the one before has left
            memory.refuse_if_too_large(f"Predicting critical rates of '{model.name}'", needed, model.device)
            columns.append(_ladder(Problem(model, context, recipe), recipe))
        return {name: [column[name] for column in columns] for name in columns[0]}

    table = store.remember("predictors", [VERSION, SAMPLE], model, contexts, recipe, compute)
    values = {name: ("context", np.array(column, dtype=float)) for name, column in table.items()}
    return xr.Dataset(values, {"context": [c.id for c in contexts]}, {"model": model.name})


def predicted_gaps(model: LanguageModel, context: Resolved, recipe: Recipe, rates) -> xr.DataArray:
    """The logit gap along T steps at each of R learning rates, as the rung ``third_order`` follows it from step 0.

    Returns:
        Gap in nats over ``rate`` and ``step`` (R, T + 1); nan if that rung has no solution.

    Raises:
        ParameterError: as :func:`predict_critical_rates`.
    """
    _check_recipe(recipe)
    _, path = _climb(Problem(model, context, recipe), recipe)
    rates, steps = np.asarray(rates, dtype=float), np.arange(recipe.steps + 1)
    gaps = [path.gaps(rate) if path else np.full(len(steps), np.nan) for rate in rates]
    return xr.DataArray(gaps, {"rate": rates, "step": steps}, ("rate", "step"), "predicted_gap")


def contexts_with_rates(
    store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe
) -> tuple[list[Resolved], np.ndarray]:
    """The contexts whose critical rate can be predicted, and these rates (C,): the unit of a chapter's learning rates.

    A context's rate is that of the highest rung of ``STEP_0`` that has a value. One without any is left out.

    Raises:
        ParameterError: nothing can be predicted for any context; and as :func:`predict_critical_rates`.
    """
    ladder = predict_critical_rates(store, model, contexts, recipe).to_dataframe()[list(STEP_0)]
    rates = ladder.ffill(axis=1).iloc[:, -1].to_numpy()
    known = np.isfinite(rates)
    if not known.any():
        raise ParameterError(
            f"No critical rate of '{model.name}' under {recipe.optimizer} can be predicted for any of its "
            f"{len(contexts)} contexts, so there is no unit for the learning rates. Give others, or measure theirs with "
            "critical_rates."
        )
    return list(compress(contexts, known)), rates[known]


def first_steps(store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe) -> xr.DataArray:
    """Critical rates (C,) from the velocity over a few real steps. This runs the model, so it is not blind.

    A context whose gap does not close at first has no ``velocity``, the rate of these steps; it gets nan.
    """
    start = predict_critical_rates(store, model, contexts, recipe).velocity.values
    rates, known = np.full(len(contexts), np.nan), np.isfinite(start)
    if known.any():
        few = replace(recipe, steps=min(FIRST_STEPS, recipe.steps), snapshots=())
        chosen, start = list(compress(contexts, known)), start[known]
        gap = store.run(model, chosen, start[:, None], few).logit_gap[:, 0, 0].values
        with np.errstate(divide="ignore", invalid="ignore"):
            rates[known] = start * -gap[:, 0] / (gap[:, -1] - gap[:, 0]) * few.steps / recipe.steps
    return xr.DataArray(np.where(rates > 0, rates, np.nan), {"context": [c.id for c in contexts]}, "context")


def _check_recipe(recipe: Recipe) -> None:
    if recipe.optimizer == "adamw" or recipe.method != "full" or recipe.loss != "cross-entropy":
        raise ParameterError(
            f"Predictions follow full fine-tuning of the cross-entropy with sgd or adam, not {recipe.method} of the "
            f"loss '{recipe.loss}' with {recipe.optimizer}; measure this one with critical_rates."
        )


def _ladder(problem: Problem, recipe: Recipe) -> dict[str, float]:
    return _climb(problem, recipe)[0]


def _climb(problem: Problem, recipe: Recipe) -> tuple[dict[str, float], "_Path | None"]:
    """The rate of every rung, and the path of ``third_order`` if there is one."""
    leaves = problem.leaves()
    logits = problem.logits(leaves)  # (V,)
    z = problem.three(logits).detach()  # (3,)
    u = [first_update(g, recipe) for g in problem.gradient(problem.loss(logits), leaves)]
    D = derivatives(problem, u, 2)  # of the three gradients along u: [order][logit], each a vector
    gap = float(z[0] - z[1])
    # of the gap along u: Δ(η t) ≈ gap + v ηt + curvature (ηt)²/2
    v, curvature = (dot(c, u) - dot(k, u) for c, k, _ in D)
    velocity = -gap / (recipe.steps * v) if v > 0 else math.nan
    found = {"velocity": velocity, "straight_line": _quadratic(gap, v, curvature) / recipe.steps, "gap": gap}
    start = velocity
    if not v > 0:  # as if u were the steepest way up for the gap: smaller than any solution
        steepest = sum((c.double() - k.double()).square().sum() for c, k in blocks(*D[0][:2]))
        start = abs(gap) / (recipe.steps * math.sqrt(steepest * dot(u, u)))

    path = _Path(z, D, u, recipe)
    found["three_gradients"] = path.critical_rate(start, order=1)
    found["second_order"] = rate = path.critical_rate(start)
    found |= {"third_order": math.nan, "quadrature": math.nan}
    third = None
    if math.isfinite(rate):
        # from now on along the displacement that the second order predicts, at length one; its length is the reach
        direction = path.displacement(rate, D)
        del u, D, leaves, logits  # room for the next
        reach = math.sqrt(dot(direction, direction))
        for piece in direction:
            piece.div_(reach)
        D = derivatives(problem, direction, 3, reach=reach)
        third = _Path(z, D, direction, recipe)
        found["third_order"] = third.critical_rate(rate)
        del D
        # gradients at the beginning, the middle and the end of the way, as derivatives at its beginning
        D = [gradients(problem), *(gradients(problem, direction, share * reach) for share in (0.5, 1.0))]
        for of_one in zip(*D, strict=True):
            for g, m, e in zip(*of_one, strict=True):  # in place: the parabola through the three
                first = (4 * m - e).sub_(g, alpha=3).div_(reach)
                e.sub_(m, alpha=2).add_(g).mul_(4 / reach**2)
                m.copy_(first)
        found["quadrature"] = _Path(z, D, direction, recipe).critical_rate(rate)
    return found, third


def _quadratic(gap: float, v: float, curvature: float) -> float:
    """Smallest positive x with ``gap + v x + curvature x²/2 = 0``, for a negative gap; or nan."""
    square = v**2 - 2 * curvature * gap
    divisor = v + math.sqrt(square) if square >= 0 else 0.0
    return -2 * gap / divisor if divisor > 0 else math.nan


class _Path:
    """T steps of an optimiser on logits that are polynomials along one direction.

    Args:
        z: the three logits at step 0 (3,).
        D: derivatives of their gradients along ``direction``, see :func:`phantomlib.critical.step_zero.derivatives`.
        direction: a displacement near those to come, up to scale.
        recipe: optimiser and number of steps.
    """

    def __init__(self, z: Tensor, D: list[list[Vector]], direction: Vector, recipe: Recipe):
        self.order, self.recipe = len(D), recipe
        self.factors: list = []  # of the last path that was followed; step by step, as are the logits passed (3,)
        self.passed: list[Tensor] = []
        rows = [*chain(*D), direction]  # 3n + 1 vectors
        if recipe.optimizer == "sgd":  # all gradients lie in the span of the rows, and SGD does not mind a rotation
            gram: Any = sum(block.double() @ block.double().T for block in blocks(*rows))
            size, axes = torch.linalg.eigh(gram.cpu())
            self.rows = axes * size.clamp_min(0).sqrt()  # (3n + 1, 3n + 1) with the same Gram matrix
            weights = torch.ones(len(rows), dtype=torch.float64)
        else:  # Adam acts on every coordinate by itself
            self.rows, weights = _sample(rows, SAMPLE)  # (3n + 1, m) and (m,)
        self.z = z.double().to(self.rows.device)  # (3,)
        self.rows[-1] /= dot(direction, direction)  # times a displacement: how far along
        self.weighted = self.rows * weights

    def critical_rate(self, start: float, order: int | None = None) -> float:
        """The learning rate near ``start`` at which the gap is zero after T steps, by secants in log η; or nan.

        A smaller ``order`` than that of ``D`` leaves out its higher derivatives.
        """
        x, y = math.log(start), self.final_gap(start, order)
        following = x + (0.05 if y < 0 else -0.05)
        for _ in range(12):
            value = self.final_gap(math.exp(following), order)
            slope = (value - y) / (following - x)
            x, y = following, value
            if not (math.isfinite(value) and slope > 0):
                return math.nan
            following = x - min(max(y / slope, -0.7), 0.7)
            if abs(following - x) < 3e-4:
                return math.exp(following)
        return math.nan

    def displacement(self, rate: float, D: list[list[Vector]]) -> Vector:
        """Where the path at ``rate`` ends, in all coordinates; ``D`` as given to the path."""
        self.follow(rate)
        like = D[0][0]
        sizes = [piece.numel() for piece in like]
        whole = like[0].new_empty(sum(sizes))
        steps, done = [factors.to(whole) for factors in self.factors], 0
        for block in blocks(*chain(*D)):  # (3n, B): the same T steps again, B coordinates at a time
            optimizer = _Optimizer(block[0], rate, self.recipe)
            for factors in steps:
                optimizer.step(factors @ block)
            whole[done : done + block.shape[1]] = optimizer.position
            done += block.shape[1]
        return [part.view_as(piece) for part, piece in zip(whole.split(sizes), like, strict=True)]

    def gaps(self, rate: float) -> np.ndarray:
        """The logit gap at every step (T + 1,)."""
        self.follow(rate)
        z = torch.stack(self.passed).cpu()  # (T + 1, 3)
        return (z[:, 0] - z[:, 1]).numpy()

    def final_gap(self, rate: float, order: int | None = None) -> float:
        z = self.follow(rate, order)
        return float(z[0] - z[1])

    def follow(self, rate: float, order: int | None = None) -> Tensor:
        """The three logits after T steps (3,); nothing on the way waits for the device."""
        n = order or self.order
        inverse = [1 / math.factorial(o) for o in range(n + 1)]
        rows, weighted = self.rows[: 3 * n], torch.cat([self.weighted[: 3 * n], self.weighted[-1:]])
        optimizer, z, along = _Optimizer(self.rows[0], rate, self.recipe), self.z, self.z.new_zeros(())
        self.factors, self.passed = [], [z]
        for _ in range(self.recipe.steps):
            residual = z.softmax(0)  # (3,): dL/dz = p - y
            residual[0] -= 1
            # gradient of the loss, so far along the direction: Σ_o along^o / o! (p - y)·D_o
            self.factors.append(torch.cat([residual * along**o * inverse[o] for o in range(n)]))  # (3n,)
            optimizer.step(self.factors[-1].to(rows) @ rows)  # (m,)
            moved = (weighted @ optimizer.position).double()  # (3n + 1,): D_o·θ for each logit, and how far along
            along = moved[-1]
            # the integral of that gradient along the way: z_0 + Σ_o along^o / (o + 1)! D_o·θ
            z = self.z + sum(moved[3 * o : 3 * o + 3] * along**o * inverse[o + 1] for o in range(n))
            self.passed.append(z)
        return z


class _Optimizer:
    """SGD or Adam on one vector, from zero; ``torch.optim`` would load the compiler first, which takes seconds."""

    def __init__(self, like: Tensor, rate: float, recipe: Recipe):
        self.position, self.m, self.v = (torch.zeros_like(like) for _ in range(3))
        self.rate, self.recipe, self.steps = rate, recipe, 0

    def step(self, gradient: Tensor) -> None:
        recipe = self.recipe
        if recipe.optimizer == "sgd":
            self.position.sub_(gradient, alpha=self.rate)
            return
        self.steps += 1
        self.m.lerp_(gradient, 1 - recipe.beta1)
        self.v.mul_(recipe.beta2).addcmul_(gradient, gradient, value=1 - recipe.beta2)
        scale = self.v.sqrt().div_(math.sqrt(1 - recipe.beta2**self.steps)).add_(recipe.epsilon)
        self.position.addcdiv_(self.m, scale, value=-self.rate / (1 - recipe.beta1**self.steps))


def _sample(rows: list[Vector], count: int) -> tuple[Tensor, Tensor]:
    """Some coordinates of n vectors (n, m), and weights (m,) with which the vectors' inner products with displacements
    near the last of them can be estimated.

    Coordinates are drawn in proportion to what they contribute, in one systematic pass; the weights are then corrected
    so that the last vector itself gives exact sums (a regression estimator).
    """

    def contributions(*vectors: Vector):
        for block in blocks(*vectors):
            first = block[:3].abs().sum(0)
            yield block, first > 0, (first * block[-1].abs()).double()

    active: Any = 0
    total: Any = 0.0
    for _, moving, share in contributions(*rows[:3], rows[-1]):
        active, total = active + moving.sum(), total + share.sum()
    if active <= count:
        chosen = torch.cat([block[:, moving] for block, moving, _ in contributions(*rows)], 1)
        return chosen, chosen.new_ones(chosen.shape[1])
    least = 0.05 * total / active  # no coordinate is left out for sure
    scale = count / (total + least * active)
    # results of their final size: small ones between large temporary ones would leave gaps in the memory
    sampled, chances = rows[0][0].new_empty((len(rows), count)), total.new_empty(count)
    passed, n = total.new_zeros(1), 0
    target, squares = total.new_zeros((2, len(rows)))
    for block, moving, share in contributions(*rows):  # (n, B), (B,), (B,)
        chance = ((share + least) * moving * scale).clamp_(max=1.0)
        reached = torch.cat([passed, chance]).cumsum(0)  # the chances add up; each time they pass a half number,
        picked = torch.diff((reached + 0.5).floor()) > 0  # one coordinate is taken
        passed = reached[-1:]
        more = chance[picked]
        sampled[:, n : n + len(more)], chances[n : n + len(more)] = block[:, picked], more
        n += len(more)
        parts = (block * block[-1]).double()
        target += parts.sum(1)  # (n,): the inner products that the sample has to give
        squares += parts.square().sum(1)
    sampled, weights = sampled[:, :n], 1 / chances[:n]
    # the smallest correction of the weights that makes these exact, each product in units of its own scatter
    size = squares.sqrt().clamp_min(1e-300)
    seen = (sampled * sampled[-1]).double() / size[:, None]
    system, missing = (seen * weights) @ seen.T, target / size - (seen * weights).sum(1)  # (n, n) and (n,)
    solved = torch.linalg.lstsq(system.cpu(), missing.cpu()[:, None], driver="gelsd")  # of any rank: LAPACK only
    weights = weights * (1 + solved.solution[:, 0].to(seen) @ seen)
    return sampled, weights.to(sampled.dtype)


def measured_and_predicted(
    store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe, **options
) -> pd.DataFrame:
    """Measured critical rates of one model beside everything predicted, one row per context.

    Columns: ``model``, ``context``, ``gap``, ``measured``, and those of ``PREDICTORS``. The attribute
    ``run_ids`` lists the runs. ``options`` go to :func:`phantomlib.critical.search.critical_rates`.
    """
    measured = critical_rates(store, model, contexts, recipe, **options)
    table = predict_critical_rates(store, model, contexts, recipe).to_dataframe().reset_index()
    table.insert(0, "model", model.name)
    table["measured"] = measured.critical_rate.values
    table["first_steps"] = first_steps(store, model, contexts, recipe).values
    table.attrs["run_ids"] = measured.attrs["run_ids"].split()
    return table
