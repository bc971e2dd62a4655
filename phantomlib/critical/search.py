"""Critical learning rates: the smallest learning rate at which the correct token overtakes within T steps.

The search runs all contexts of a model together. A run tells not only whether the token overtakes but when: with ``t*``
the (fractional) step at which the logit gap passes zero, ``η t*`` is nearly constant, so ``η t*/T`` is a far better
guess than halving. Two guesses fix the local slope; two probes 0.44 % apart then close the bracket.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.critical.step_zero import velocity
from phantomlib.engine.recipe import Recipe, check_seeds
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import LanguageModel

DEFAULT_START = {"sgd": 1e-2, "adam": 1e-4, "adamw": 1e-4}  # only where the velocity gives none
SEARCH_VERSION = 1  # raised whenever a search could end elsewhere
ROUNDS = 40  # a search that needs more has no clean boundary; it is returned as not converged


def crossing_step(gap: np.ndarray) -> tuple[bool, float]:
    """When a logit gap (T + 1,), nan from a divergence on, passes zero.

    Returns:
        Whether some step has Δ > 0, and the fractional step of the first passage by linear interpolation; without a
        passage, the last two finite values are extrapolated, and the step is ``inf`` if the gap does not close.
    """
    finite = gap[np.isfinite(gap)]  # a diverged run is nan to its end
    above = np.flatnonzero(finite > 0)
    if len(above):
        t = above[0]
        return True, (t - finite[t] / (finite[t] - finite[t - 1])) if t else 0.0
    if len(finite) < 2 or finite[-1] <= finite[-2]:
        return False, math.inf
    return False, len(finite) - 1 - finite[-1] / (finite[-1] - finite[-2])


@dataclass(frozen=True)
class _Seen:
    """One run: log rate, whether it crossed, ``log(t*/T)``, and the gap at step T (nan after divergence)."""

    rate: float
    crossed: bool
    lateness: float
    gap: float

    @property
    def diverged(self) -> bool:
        return not math.isfinite(self.gap)


@dataclass
class _Search:
    """The bracket of one context and where to look next; all learning rates as natural logarithms."""

    start: float
    steps: int
    tolerance: float
    lower: float = -math.inf  # largest rate below ``top`` that does not cross
    upper: float = math.inf  # smallest rate that crosses
    top: float = math.inf  # the smaller of that and the smallest rate that diverged without crossing: look below it
    seen: list[_Seen] = field(default_factory=list)

    def add(self, rate: float, gap: np.ndarray) -> None:
        """Take in one run: its learning rate and its logit gap at steps 0..T."""
        crossed, step = crossing_step(gap)
        self.seen.append(_Seen(math.log(rate), crossed, math.log(max(step, 1e-3) / self.steps), float(gap[-1])))
        self.upper = min((s.rate for s in self.seen if s.crossed), default=math.inf)
        self.top = min((s.rate for s in self.seen if s.crossed or s.diverged), default=math.inf)
        self.lower = max((s.rate for s in self.seen if s.rate < self.top), default=-math.inf)

    def is_within(self, upper: float) -> bool:
        """Whether the bracket from ``lower`` to there is narrow enough."""
        return math.expm1(min(upper - self.lower, 100.0)) <= self.tolerance

    def reentries(self) -> int:
        """How often a larger rate fails to cross although the next smaller one seen does."""
        crossed = [s.crossed for s in sorted(self.seen, key=lambda s: s.rate)]
        return sum(a and not b for a, b in pairwise(crossed))

    def next(self, number: int) -> list[float]:
        """Log rates of round ``number``: one guess in the first two rounds, then two that enclose it."""
        if number == 0:
            return [self.start]
        guess = self._guess()
        half = 0.44 * math.log1p(self.tolerance) * 3 ** min(max(number - 2, 0), 6)  # misses widen the next attempt
        if number == 1:
            known = any(abs(guess - s.rate) < 1e-6 for s in self.seen)  # the start was right: look just beside it
            return [guess + (half if self.lower == guess else -half) if known else guess]
        low, high = max(self.lower, guess - half), min(self.top, guess + half)
        if low == self.lower and high == self.top:  # the probes would lie outside: thirds of what is left
            return [low + (high - low) / 3, low + 2 * (high - low) / 3]
        if low == self.lower:  # an end that is known is not run again
            return [(low + high) / 2, high]
        if high == self.top:
            return [low, (low + high) / 2]
        return [low, high]

    def _guess(self) -> float:
        """Best estimate of the boundary from what was seen, kept inside the bracket."""
        x = self._extrapolate()
        if self.lower < x < self.top:
            return x
        if math.isfinite(self.lower) and math.isfinite(self.top):
            return (self.lower + self.top) / 2
        edge, outward = (self.top, -1) if math.isinf(self.lower) else (self.lower, 1)
        return edge if abs(x - edge) < 0.1 else edge + outward * math.log(4)

    def _extrapolate(self) -> float:
        usable = sorted((s for s in self.seen if math.isfinite(s.lateness)), key=lambda s: abs(s.lateness))
        if not usable:  # the gap never closed: go up, unless that diverged
            return max(s.rate for s in self.seen) + math.log(4)
        # near its zero the gap at step T is smooth in log η: a secant; of two points too close together rounding remains
        near = [s for s in usable if abs(s.lateness) < 0.3 and s.crossed == (s.gap > 0)]
        near = [s for s in near if s is near[0] or abs(s.rate - near[0].rate) > 1e-4]
        if len(near) > 1:
            slope = (near[1].gap - near[0].gap) / (near[1].rate - near[0].rate)
            if slope > 0:
                return near[0].rate - near[0].gap / slope
        return usable[0].rate + min(max(usable[0].lateness, -math.log(30)), math.log(30))  # η t* is nearly constant


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
        store: a :class:`phantomlib.runs.store.Store`; every run of the search is kept there.
        model, contexts, recipe: the checkpoint, resolved contexts, and how to fine-tune for how many steps T.
        tolerance: relative width of the bracket, ``upper / lower - 1``.
        seeds: of the LoRA initialisation; each has a search of its own.

    Returns:
        Dataset over ``context`` (and ``seed`` if several): ``critical_rate`` (geometric middle of the bracket; nan if
        no run crossed), ``lower`` (does not cross), ``upper`` (crosses), ``converged`` (bracket within tolerance),
        ``crossed`` (some run crossed), ``velocity`` (v_0, nats per unit rate), ``gap`` (Δ_0, nats), ``predicted_start``
        (False where v_0 gave no start), ``n_runs``, ``diverged`` (runs), ``reentries`` (how often a larger rate fails to
        cross although the next smaller one seen does), ``replica_steps``; attribute ``run_ids``, joined by spaces.

    Example:
        >>> import tempfile
        >>> import phantomlib as ph
        >>> model = ph.load("zoo:gpt2-s")
        >>> context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = ph.critical_rates(ph.Store(folder), model, [context], ph.Recipe(optimizer="adam", steps=20))
        >>> bool(found.converged.all()), bool((found.upper / found.lower - 1 <= 0.005).all())
        (True, True)
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 1e-5 <= tolerance < 1:
        raise ParameterError(f"tolerance is {tolerance!r}; give a relative width between 1e-5 and 1, such as 0.005.")
    check_seeds(seeds, recipe)

    def remembered(seed: int) -> xr.Dataset:
        """The search, as long as its runs are there."""

        def holds(found: dict) -> bool:
            return all(map(store.has, found["attrs"]["run_ids"].split()))

        def compute() -> dict:
            return _search(store, model, contexts, recipe, tolerance, seed).to_dict()

        key, options = [SEARCH_VERSION, tolerance], {"seeds": (seed,), "holds": holds}
        return xr.Dataset.from_dict(store.remember("searches", key, model, contexts, recipe, compute, **options))

    searches = [remembered(seed) for seed in seeds]
    joined = xr.concat(searches, "seed", data_vars="all", combine_attrs="drop").assign_coords(seed=list(seeds))
    settings = {name: getattr(recipe, name) for name in ("optimizer", "method", "steps")}
    joined.attrs = {"model": model.name} | settings | {"tolerance": tolerance}
    joined.attrs["run_ids"] = " ".join(s.attrs["run_ids"] for s in searches)
    return joined.squeeze("seed") if len(seeds) == 1 else joined


def _search(store, model, contexts, recipe, tolerance, seed) -> xr.Dataset:
    first = velocity(model, contexts, recipe, seed=seed)
    v, gap = first.velocity.numpy(), first.gap.numpy()  # (C,)
    start = -gap / (recipe.steps * np.where(v > 0, v, np.nan))  # where N = 1
    predicted = np.isfinite(start) & (start > 0)
    start = np.where(predicted, start, DEFAULT_START[recipe.optimizer])
    searches = [_Search(math.log(s), recipe.steps, tolerance) for s in start]
    run_ids = []
    for number in range(ROUNDS):
        active = [c for c, search in enumerate(searches) if not search.is_within(search.top)]
        if not active:
            break
        rates = np.array([[_rounded(x) for x in searches[c].next(number)] for c in active])  # (active, 1 or 2)
        runs = store.run(model, [contexts[c] for c in active], rates, recipe, seeds=(seed,))
        run_ids.append(runs.attrs["run_id"])
        for c, gaps, used in zip(active, runs.logit_gap.values[:, :, 0], rates, strict=True):  # gaps: (1 or 2, T + 1)
            for rate, trajectory in zip(used, gaps, strict=True):
                searches[c].add(float(rate), trajectory)
    lower, upper = np.exp([[s.lower, s.upper] for s in searches]).T
    crossed, n_runs = np.isfinite(upper), np.array([len(s.seen) for s in searches])
    columns = {
        "critical_rate": np.where(crossed & (lower > 0), np.sqrt(lower * np.where(crossed, upper, 1.0)), np.nan),
        "lower": lower,
        "upper": upper,
        "crossed": crossed,
        "converged": [s.is_within(s.upper) for s in searches],
        "velocity": v,
        "gap": gap,
        "predicted_start": predicted,
        "n_runs": n_runs,
        "diverged": [sum(x.diverged for x in s.seen) for s in searches],
        "reentries": [s.reentries() for s in searches],
        "replica_steps": n_runs * recipe.steps,
    }
    over_contexts = {name: ("context", np.asarray(values)) for name, values in columns.items()}
    return xr.Dataset(over_contexts, {"context": [c.id for c in contexts]}, {"run_ids": " ".join(run_ids)})


def _rounded(log_rate: float) -> float:
    """A learning rate with six digits, so that the last bit of a sum does not give every machine its own runs."""
    return float(f"{math.exp(min(max(log_rate, -60.0), 60.0)):.6g}")
