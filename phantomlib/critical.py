"""Critical learning rates: the smallest learning rate at which the correct token overtakes within T steps.

The search runs all contexts of a model together. A run tells not only whether the token overtakes but when: with ``t*`` the
(fractional) step at which the logit gap passes zero, ``η t*`` is nearly constant, so ``η t*/T`` is a far better guess than
halving. Two guesses fix the local slope; two probes 0.44 % apart then close the bracket.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.curvature import velocity
from phantomlib.errors import ParameterError
from phantomlib.finetune import Recipe
from phantomlib.models import LanguageModel

DEFAULT_START = {"sgd": 1e-2, "adam": 1e-4, "adamw": 1e-4}  # only where the velocity gives none
ROUNDS = 40  # a search that needs more has no clean boundary; it is returned as not converged


def crossing_step(gap: np.ndarray) -> tuple[bool, float]:
    """When a logit gap passes zero.

    Args:
        gap: Δ at steps 0..T (T + 1,), nan from a divergence on.

    Returns:
        Whether some step has Δ > 0, and the fractional step of the first passage by linear interpolation; without a passage,
        the last two finite values are extrapolated, and the step is ``inf`` if the gap does not close.
    """
    finite = gap[np.isfinite(gap)]  # a diverged run is nan to its end
    above = np.flatnonzero(finite > 0)
    if len(above):
        t = above[0]
        return True, (t - finite[t] / (finite[t] - finite[t - 1])) if t else 0.0
    if len(finite) < 2 or finite[-1] <= finite[-2]:
        return False, math.inf
    return False, len(finite) - 1 - finite[-1] / (finite[-1] - finite[-2])


@dataclass
class _Search:
    """The bracket of one context and where to look next; all learning rates as natural logarithms."""

    start: float
    steps: int
    tolerance: float
    lower: float = -math.inf  # largest rate below ``upper`` that does not cross
    upper: float = math.inf  # smallest rate that crosses
    ceiling: float = math.inf  # smallest rate that diverged without crossing: look below it
    seen: list = field(default_factory=list)  # (log rate, crossed, log(t*/T), gap at T, diverged)

    def add(self, rate: float, gap: np.ndarray) -> None:
        crossed, step = crossing_step(gap)
        diverged = not np.isfinite(gap).all()
        x = math.log(rate)
        self.seen.append((x, crossed, math.log(max(step, 1e-3) / self.steps), float(gap[-1]), diverged))
        if crossed:
            self.upper = min(self.upper, x)
        elif diverged:
            self.ceiling = min(self.ceiling, x)
        self.lower = max(
            (s[0] for s in self.seen if not s[1] and not s[4] and s[0] < min(self.upper, self.ceiling)),
            default=-math.inf,
        )

    @property
    def width(self) -> float:
        """Relative width of the bracket."""
        return math.expm1(self.upper - self.lower)

    @property
    def done(self) -> bool:
        return self.width <= self.tolerance or len(self.seen) >= 2 * ROUNDS

    @property
    def reentries(self) -> int:
        """How often a larger rate fails to cross although the next smaller one seen does."""
        crossed = [s[1] for s in sorted(self.seen)]
        return sum(a and not b for a, b in zip(crossed, crossed[1:]))

    def guess(self) -> float:
        """Best estimate of the boundary from what was seen, kept inside the bracket."""
        if not self.seen:
            return self.start
        x = self._extrapolate()
        top = min(self.upper, self.ceiling)
        if self.lower < x < top:
            return x
        if math.isinf(self.lower):
            return min(x, top - math.log(4)) if math.isfinite(top) else x
        return (self.lower + top) / 2 if math.isfinite(top) else self.lower + math.log(4)

    def _extrapolate(self) -> float:
        usable = sorted((s for s in self.seen if math.isfinite(s[2])), key=lambda s: abs(s[2]))
        if not usable:  # the gap never closed: go up, unless that diverged
            return max(s[0] for s in self.seen) + math.log(4)
        (x, _, y, gap, _), *others = usable
        y = min(max(y, -math.log(30)), math.log(30))
        near = [s for s in others if abs(s[2]) < 0.3 and s[0] != x]
        if abs(y) < 0.3 and near and all(math.isfinite(s[3]) for s in (usable[0], near[0])):
            slope = (near[0][3] - gap) / (near[0][0] - x)  # the gap at step T is smooth in log η near its zero
            if slope > 0:
                return x - gap / slope
        return x + y  # η t* is nearly constant


def critical_rates(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    recipe: Recipe,
    *,
    tolerance: float = 0.005,
    seeds: tuple[int, ...] = (0,),
) -> xr.Dataset:
    """The smallest learning rate for which Δ > 0 at some step ≤ T, for every context.

    Args:
        store: a :class:`phantomlib.trajectories.Store`; every run of the search is kept there.
        model: the checkpoint.
        contexts: resolved contexts (C of them).
        recipe: optimiser, method and number of steps T.
        tolerance: relative width of the bracket, ``upper / lower - 1``.
        seeds: of the LoRA initialisation; each has a search of its own.

    Returns:
        Dataset over ``context`` (and ``seed`` if several): ``critical_rate`` (geometric middle of the bracket), ``lower`` (does not
        cross), ``upper`` (crosses), ``crossed`` (some run crossed), ``converged`` (bracket within tolerance), ``velocity`` (v_0, nats per
        unit rate), ``gap`` (Δ_0, nats), ``predicted_start`` (False where v_0 gave no start), ``n_runs``, ``diverged`` (runs),
        ``reentries`` and ``replica_steps``. Without a crossing, ``critical_rate`` is nan. Attribute ``run_ids``: the runs, joined by spaces.
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 1e-5 <= tolerance < 1:
        raise ParameterError(f"tolerance is {tolerance!r}; give a relative width between 1e-5 and 1, such as 0.005.")
    if not seeds:
        raise ParameterError("critical_rates needs at least one seed.")
    if recipe.method == "full":
        seeds = seeds[:1]  # full fine-tuning has no randomness
    searches = [_search(store, model, contexts, recipe, tolerance, seed) for seed in seeds]
    joined = xr.concat(searches, "seed", data_vars="all", combine_attrs="drop")
    joined = joined.assign_coords(seed=list(seeds))
    joined.attrs = {
        "model": model.name,
        "optimizer": recipe.optimizer,
        "method": recipe.method,
        "steps": recipe.steps,
        "tolerance": tolerance,
        "run_ids": " ".join(s.attrs["run_ids"] for s in searches),
    }
    return joined.squeeze("seed") if len(seeds) == 1 else joined


def _search(store, model, contexts, recipe, tolerance, seed) -> xr.Dataset:
    first = velocity(model, contexts, recipe, seed=seed)
    v, gap = first.velocity.numpy(), first.gap.numpy()
    start = -gap / (recipe.steps * np.where(v > 0, v, np.nan))
    predicted = np.isfinite(start) & (start > 0)
    start = np.where(predicted, start, DEFAULT_START[recipe.optimizer])
    searches = [_Search(math.log(s), recipe.steps, tolerance) for s in start]
    probe = np.array([-0.44, 0.44]) * math.log1p(tolerance)  # two rates whose distance is 0.88 of the tolerance
    run_ids = []
    for number in range(ROUNDS):
        active = [c for c, search in enumerate(searches) if not search.done]
        if not active:
            break
        around = probe if number >= 2 else np.zeros(1)
        rates = np.array([[_rounded(searches[c].guess() + shift) for shift in around] for c in active])
        runs = store.run(model, [contexts[c] for c in active], rates, recipe, seeds=(seed,))
        run_ids.append(runs.attrs["run_id"])
        for c, gaps, used in zip(active, runs.logit_gap.values[:, :, 0], rates):
            for rate, trajectory in zip(used, gaps):
                searches[c].add(float(rate), trajectory)
    crossed = np.array([math.isfinite(s.upper) for s in searches])
    lower, upper = (np.exp([getattr(s, side) for s in searches]) for side in ("lower", "upper"))
    columns = {
        "critical_rate": np.where(crossed & (lower > 0), np.sqrt(lower * np.where(crossed, upper, 1.0)), np.nan),
        "lower": lower,
        "upper": upper,
        "crossed": crossed,
        "converged": [s.width <= tolerance for s in searches],
        "velocity": v,
        "gap": gap,
        "predicted_start": predicted,
        "n_runs": [len(s.seen) for s in searches],
        "diverged": [sum(x[4] for x in s.seen) for s in searches],
        "reentries": [s.reentries for s in searches],
        "replica_steps": [len(s.seen) * recipe.steps for s in searches],
    }
    return xr.Dataset(
        {name: ("context", np.asarray(values)) for name, values in columns.items()},
        {"context": [c.id for c in contexts]},
        {"run_ids": " ".join(run_ids)},
    )


def _rounded(log_rate: float) -> float:
    """A learning rate with six digits, so that rounding errors of the last bit do not give every machine its own runs."""
    return float(f"{math.exp(min(max(log_rate, -60.0), 60.0)):.6g}")
