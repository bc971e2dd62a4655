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

Two more leave step 0, for comparison:

``quadrature``
    Gradients at step 0 and with the weights moved by half and all of the predicted displacement (Simpson's points). The
    weights are moved by hand; no step of training is made.
``first_steps``
    The velocity over three real steps, continued in a straight line.

Nothing in them is fitted. A calibration can be fitted on other architectures: a common factor, or one that depends on
Δ_0.
"""

import math

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import Problem, derivatives, differentials, first_update, gradients
from phantomlib.errors import ParameterError
from phantomlib.measure.contexts import Resolved
from phantomlib.measure.models import LanguageModel
from phantomlib.measure.recipe import Recipe
from phantomlib.measure.store import Store

STEP_0 = ("velocity", "straight_line", "three_gradients", "second_order", "third_order")
LADDER = (*STEP_0, "quadrature")
PREDICTORS = (*LADDER, "first_steps")
FIRST_STEPS = 3
VERSION = 5  # raised whenever a prediction could change
SAMPLE = 65_536  # coordinates on which Adam is followed; more are sampled, see _sample


def predict_critical_rates(store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe) -> xr.Dataset:
    """Critical learning rates predicted without a step of training, kept in the store.

    Args:
        store: where predictions are kept, in ``predictors``; no run is read or made.
        model: the checkpoint.
        contexts: C resolved contexts.
        recipe: optimiser (``sgd`` or ``adam``), full fine-tuning, number of steps T.

    Returns:
        Dataset over ``context``: one variable per rung of the ladder (``LADDER``; nan where it has no solution), and
        ``gap`` (Δ_0, nats).

    Raises:
        ParameterError: the recipe is not one that the ladder can follow.
    """
    if recipe.optimizer == "adamw" or recipe.method != "full":
        raise ParameterError(
            f"Predictions follow full fine-tuning with sgd or adam, not {recipe.method} with {recipe.optimizer}; "
            "measure this one with critical_rates."
        )

    def compute() -> dict:
        columns = [_ladder(Problem(model, context, recipe), recipe) for context in contexts]
        return {name: [column[name] for column in columns] for name in columns[0]}

    table = store.remember("predictors", [VERSION, SAMPLE], model, contexts, recipe, compute)
    values = {name: ("context", np.array(column, dtype=float)) for name, column in table.items()}
    return xr.Dataset(values, {"context": [c.id for c in contexts]}, {"model": model.name})


def first_steps(store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe) -> xr.DataArray:
    """Critical rates (C,) from the velocity over a few real steps. This runs the model, so it is not blind."""
    start = predict_critical_rates(store, model, contexts, recipe).velocity.values[:, None]
    few = Recipe(**{**recipe.__dict__, "steps": min(FIRST_STEPS, recipe.steps), "snapshots": ()})
    gap = store.run(model, contexts, start, few).logit_gap[:, 0, 0].values
    with np.errstate(divide="ignore", invalid="ignore"):
        rate = start[:, 0] * -gap[:, 0] / (gap[:, -1] - gap[:, 0]) * few.steps / recipe.steps
    return xr.DataArray(np.where(rate > 0, rate, np.nan), {"context": [c.id for c in contexts]}, "context")


def _ladder(problem: Problem, recipe: Recipe) -> dict[str, float]:
    with torch.no_grad():
        z = problem.three(problem.logits(problem.values))
    residual = z.softmax(0)
    residual[0] -= 1  # the gradient of the loss with respect to the three logits
    G, along = differentials(problem)
    u = first_update(residual @ G, recipe)
    D = derivatives(problem, u, 2, start=(G, along))
    gap = float(z[0] - z[1])
    change = D[:, 0] - D[:, 1]  # (2, P): gradient of the gap and its derivative along u
    v, curvature = (float(row.double() @ u.double()) for row in change)
    velocity = -gap / (recipe.steps * v) if v > 0 else math.nan
    found = {"velocity": velocity, "straight_line": _quadratic(gap, v, curvature) / recipe.steps, "gap": gap}
    start = velocity if v > 0 else abs(gap) / (recipe.steps * float(change[0].norm() * u.norm()))

    second = _Path(z, D, u, u, recipe)
    found["three_gradients"] = second.critical_rate(start, order=1)
    found["second_order"] = rate = second.critical_rate(start)
    found |= {"third_order": math.nan, "quadrature": math.nan}
    if math.isfinite(rate):
        displacement = second.displacement(rate, D)
        reach = float(displacement.norm())
        direction = displacement / reach
        D = derivatives(problem, direction, 3, reach=reach, start=(G, along))
        found["third_order"] = _Path(z, D, direction, displacement, recipe).critical_rate(rate)
        middle, end = (gradients(problem, share * displacement) for share in (0.5, 1.0))
        torch.sub(4 * middle - end, G, alpha=3, out=D[1]).div_(reach)
        torch.add(end - 2 * middle, G, out=D[2]).mul_(4 / reach**2)
        found["quadrature"] = _Path(z, D, direction, displacement, recipe).critical_rate(rate)
    return found


def _quadratic(gap: float, v: float, curvature: float) -> float:
    """Smallest positive x with ``gap + v x + curvature x²/2 = 0``, or nan."""
    roots = np.roots([curvature / 2, v, gap]) if curvature else np.array([-gap / v if v else np.nan])
    positive = [r.real for r in roots if abs(r.imag) < 1e-12 * max(abs(r), 1e-300) and r.real > 0]
    return min(positive, default=math.nan)


class _Path:
    """T steps of an optimiser on logits that are polynomials along one direction.

    Args:
        z: the three logits at step 0 (3,).
        D: derivatives (order, 3, P) of their gradients along ``direction``.
        direction: d (P,).
        expected: a displacement (P,) near those to come, up to scale; it tells which coordinates matter.
        recipe: optimiser and number of steps.
    """

    def __init__(self, z: Tensor, D: Tensor, direction: Tensor, expected: Tensor, recipe: Recipe):
        self.z, self.order, self.recipe, self.factors = z.double().cpu(), len(D), recipe, []
        rows = torch.cat([D.flatten(0, 1), direction[None] / direction.dot(direction)])  # (3n + 1, P)
        if recipe.optimizer == "sgd":  # all gradients lie in the span of the rows, and SGD does not mind a rotation
            gram = sum(block.double() @ block.double().T for block in rows.split(SAMPLE, dim=1)).cpu()
            size, axes = torch.linalg.eigh(gram)
            self.rows = axes * size.clamp_min(0).sqrt()
            self.weights = torch.ones(len(rows), dtype=torch.float64)
        else:  # Adam acts on every coordinate by itself
            chosen, self.weights = _sample(rows, expected, SAMPLE)
            self.rows = rows[:, chosen]
        self.weighted = self.rows * self.weights

    def critical_rate(self, start: float, order: int | None = None) -> float:
        """The learning rate near ``start`` at which the gap is zero after T steps, by secants in log η; or nan.

        A smaller ``order`` than that of ``D`` leaves out its higher derivatives.
        """
        order = order or self.order
        x, y = math.log(start), self._final_gap(start, order)
        following = x + (0.05 if y < 0 else -0.05)
        for _ in range(12):
            value = self._final_gap(math.exp(following), order)
            slope = (value - y) / (following - x)
            x, y = following, value
            if not (math.isfinite(value) and slope > 0):
                return math.nan
            following = x - min(max(y / slope, -0.7), 0.7)
            if abs(following - x) < 3e-4:
                return math.exp(following)
        return math.nan

    def displacement(self, rate: float, D: Tensor) -> Tensor:
        """Where the path at ``rate`` ends, in all coordinates (P,); ``D`` as given to the path."""
        self._final_gap(rate, self.order)
        steps = [factors.to(D) for factors in self.factors]
        blocks = []
        for block in D.flatten(0, 1).split(SAMPLE, dim=1):
            optimizer = _Optimizer(block[0], rate, self.recipe)
            for factors in steps:
                optimizer.step(factors @ block)
            blocks.append(optimizer.position)
        return torch.cat(blocks)

    def _final_gap(self, rate: float, order: int) -> float:
        inverse = [1 / math.factorial(o) for o in range(order + 1)]
        rows, weighted = self.rows[: 3 * order], torch.cat([self.weighted[: 3 * order], self.weighted[-1:]])
        optimizer, z, along = _Optimizer(self.rows[0], rate, self.recipe), self.z, 0.0
        self.factors = []
        for _ in range(self.recipe.steps):
            residual = z.softmax(0)
            residual[0] -= 1
            self.factors.append(torch.cat([residual * along**o * inverse[o] for o in range(order)]))
            optimizer.step(self.factors[-1].to(rows) @ rows)
            moved = (weighted @ optimizer.position).double().cpu()
            along = float(moved[-1])
            change = moved[:-1].view(order, 3)
            z = self.z + sum(change[o] * along**o * inverse[o + 1] for o in range(order))
        return float(z[0] - z[1])


class _Optimizer:
    """SGD or Adam on one vector, from zero."""

    def __init__(self, like: Tensor, rate: float, recipe: Recipe):
        self.position, self.rate, self.recipe, self.steps = torch.zeros_like(like), rate, recipe, 0
        if recipe.optimizer != "sgd":
            self.m, self.v = torch.zeros_like(like), torch.zeros_like(like)

    def step(self, gradient: Tensor) -> None:
        self.steps += 1
        recipe = self.recipe
        if recipe.optimizer == "sgd":
            self.position.sub_(gradient, alpha=self.rate)
            return
        self.m.lerp_(gradient, 1 - recipe.beta1)
        self.v.mul_(recipe.beta2).addcmul_(gradient, gradient, value=1 - recipe.beta2)
        scale = self.v.sqrt().div_(math.sqrt(1 - recipe.beta2**self.steps)).add_(recipe.epsilon)
        self.position.addcdiv_(self.m, scale, value=-self.rate / (1 - recipe.beta1**self.steps))


def _sample(rows: Tensor, expected: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Coordinates and weights with which ``rows @ displacement`` (n,) can be estimated for displacements near
    ``expected``.

    Coordinates are drawn in proportion to what they contribute, in one systematic pass; the weights are then corrected
    so that the expected displacement itself gives exact sums (a regression estimator).
    """
    first = rows[:3].abs().sum(0)  # (P,)
    active = first > 0
    if active.sum() <= count:
        chosen = active.nonzero()[:, 0]
        return chosen, torch.ones(len(chosen), dtype=rows.dtype, device=rows.device)
    share = (first * expected.abs()).double()
    share = (share + 0.05 * share.sum() / active.sum()) * active
    chance = (share * (count / share.sum())).clamp_(max=1.0)
    passed = (chance.cumsum(0) + 0.5).floor_()
    chosen = (torch.diff(passed, prepend=passed.new_zeros(1)) > 0).nonzero()[:, 0]
    weights = 1 / chance[chosen]
    target, squares = torch.zeros((2, len(rows)), dtype=torch.float64, device=rows.device)
    for block, displaced in zip(rows.split(SAMPLE, dim=1), expected.split(SAMPLE), strict=True):
        parts = (block * displaced).double()
        target += parts.sum(1)
        squares += parts.square().sum(1)
    scale = squares.sqrt().clamp_min(1e-300)
    seen = (rows[:, chosen] * expected[chosen]).double() / scale[:, None]
    missing = target / scale - (seen * weights).sum(1)
    correction = torch.linalg.lstsq((seen * weights) @ seen.T, missing[:, None], driver="gelsd").solution[:, 0]
    weights = weights * (1 + correction @ seen)
    return chosen, weights.to(rows.dtype)


def results(store: Store, model: LanguageModel, contexts: list[Resolved], recipe: Recipe, **options) -> pd.DataFrame:
    """Measured critical rates of one model beside everything predicted: one row per context, learning rates as they
    are.

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
