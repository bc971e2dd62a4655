r"""Phantoms: jumps of the order parameter, and six measurements that tell them from spontaneous symmetry breaking.

A jump is one step with

.. math::

    |\Delta\Phi| > 0.1 \sqrt{1 - g_{ck}^2} \quad\text{and}\quad |\Delta\Phi| > 10\,\mathrm{median}_t |\Delta\Phi_t| .

Spontaneous symmetry breaking would show a geometry that rearranges at the jump, two branches at one learning rate, a
time that diverges at the critical rate, a double well, and a discontinuity that stays when steps are made smaller.
Each function here measures one of these and returns numbers; the thresholds are in ``claims.yaml`` under C5, and
:func:`passed` compares.

All experiments are fine-tuning runs through :meth:`phantomlib.trajectories.Store.run`. A replica is put "just before
the jump" by a schedule that repeats the run up to there and then changes the learning rate, so the optimiser keeps
its state.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy.stats
import xarray as xr

from phantomlib.claims import Claim, Criterion
from phantomlib.contexts import Context, Resolved
from phantomlib.critical import crossing_step
from phantomlib.errors import ParameterError
from phantomlib.finetune import Recipe, check_learning_rates
from phantomlib.models import LanguageModel

JUMP_COLUMNS = [
    "context", "rate", "seed", "learning_rate", "step", "size", "share_of_bound", "readout_part",
    "geometry_part", "readout_share", "overlap_change", "drift", "gap_before", "gap_after", "loss_change",
]  # fmt: skip
NEAR = 1.5  # learning rates up to here, in units of the critical one, tell how the crossing time approaches criticality


# ---------------------------------------------------------------------------------------------------------------- jumps


def bound(dataset: xr.Dataset) -> xr.DataArray:
    """``sqrt(1 - g_ck^2)``, the largest possible ``|Φ|``, at every step."""
    return np.sqrt((1 - dataset.overlap**2).clip(min=0))


def step_sizes(dataset: xr.Dataset) -> xr.DataArray:
    """``|Φ_t - Φ_(t-1)|`` in units of the bound before the step (..., step), step = 1..T; nan from a divergence on."""
    return abs(dataset.phi.diff("step")) / bound(dataset).shift(step=1).isel(step=slice(1, None))


def jumps(dataset: xr.Dataset, *, size_factor: float = 0.1, median_factor: float = 10.0) -> pd.DataFrame:
    """Every jump of every run.

    Args:
        dataset: recorded runs with dimensions (context, rate, seed, step).
        size_factor: smallest ``|ΔΦ|`` in units of the bound ``sqrt(1 - g_ck^2)`` before the step.
        median_factor: smallest ``|ΔΦ|`` in units of the run's median ``|ΔΦ|``.

    Returns:
        One row per jump, in the order context, rate, seed, step: ``context``, ``rate`` (its index), ``seed``,
        ``learning_rate``, ``step`` (the jump is from ``step - 1`` to ``step``), ``size`` (ΔΦ, signed),
        ``share_of_bound``, ``readout_part`` and ``geometry_part`` (they add to ``size``), ``readout_share``,
        ``overlap_change`` (of g_ck), ``drift`` (change of E relative to ``|E_0|`` since the start, after the step
        minus before), ``gap_before``, ``gap_after`` and ``loss_change`` (nats).
    """
    change = dataset.phi.diff("step")
    shares = step_sizes(dataset)
    is_jump = (shares > size_factor) & (abs(change) > median_factor * abs(change).median("step"))
    dims, rows = ("context", "rate", "seed", "step"), []
    names = ["phi", "phi_readout_part", "phi_geometry_part", "overlap", "readout_drift", "logit_gap", "cross_entropy"]
    fields = {name: dataset[name].transpose(*dims).values for name in names}
    sizes, learning_rate = shares.transpose(*dims).values, dataset.learning_rate.transpose(*dims[:2]).values
    for c, r, s, before in np.argwhere(is_jump.transpose(*dims).values).tolist():
        t = before + 1
        at = {name: float(values[c, r, s, t]) for name, values in fields.items()}
        change = {name: float(values[c, r, s, t] - values[c, r, s, before]) for name, values in fields.items()}
        rows.append(
            {
                "context": str(dataset.context.values[c]),
                "rate": r,
                "seed": int(dataset.seed.values[s]),
                "learning_rate": float(learning_rate[c, r]),
                "step": t,
                "size": change["phi"],
                "share_of_bound": float(sizes[c, r, s, before]),
                "readout_part": at["phi_readout_part"],
                "geometry_part": at["phi_geometry_part"],
                "readout_share": at["phi_readout_part"] / change["phi"],
                "overlap_change": change["overlap"],
                "drift": change["readout_drift"],
                "gap_before": float(fields["logit_gap"][c, r, s, before]),
                "gap_after": at["logit_gap"],
                "loss_change": change["cross_entropy"],
            }
        )
    return pd.DataFrame(rows, columns=JUMP_COLUMNS)


def first_jumps(table: pd.DataFrame, rate: int) -> pd.DataFrame:
    """The first jump of every context at one rate index (first seed), from :func:`jumps`; indexed by context."""
    here = table[(table["rate"] == rate) & (table["seed"] == table["seed"].min())]
    return here.sort_values("step").drop_duplicates("context").set_index("context").sort_index()


def jumping_contexts(table: pd.DataFrame, rates: int) -> list[int]:
    """How many contexts have a jump at each of ``rates`` rate indices, from :func:`jumps`."""
    return [int(table[table["rate"] == r]["context"].nunique()) for r in range(rates)]


def onset(table: pd.DataFrame, runs: xr.Dataset, multiples, sharpness: pd.Series) -> pd.DataFrame:
    """Every run beside the edge of stability of the untrained model.

    Args:
        table: jumps of ``runs``, from :func:`jumps`.
        runs: (context, rate, seed, step), first seed used.
        multiples: the rates in units of the critical one.
        sharpness: λ_max of the contexts to include, by context id.

    Returns:
        One row per context and rate: ``context``, ``multiple``, ``edge`` (η λ_max / 2, 1 at the edge of stability),
        ``critical_edge`` (the same at the critical rate),
        ``largest`` (largest step of Φ over its bound) and ``jumped``.
    """
    largest = step_sizes(runs).max("step").isel(seed=0)
    jumped = set(zip(table["context"], table["rate"], strict=True))
    return pd.DataFrame(
        [
            {
                "context": context,
                "multiple": multiple,
                "edge": float(runs.learning_rate.sel(context=context)[rate]) * curvature / 2,
                "critical_edge": float(runs.learning_rate.sel(context=context)[rate]) / multiple * curvature / 2,
                "largest": float(largest.sel(context=context)[rate]),
                "jumped": (context, rate) in jumped,
            }
            for context, curvature in sharpness.items()
            for rate, multiple in enumerate(multiples)
        ]
    )


def with_critical_rate(contexts: list[Resolved], found: xr.Dataset) -> tuple[list[Resolved], np.ndarray]:
    """The contexts that have a critical rate in ``found`` (from ``critical_rates``), and these rates (C,)."""
    rates = found.critical_rate.values
    return [c for c, rate in zip(contexts, rates, strict=True) if np.isfinite(rate)], rates[np.isfinite(rates)]


def nearest(multiples, wanted: float) -> int:
    """Index of the multiple closest to ``wanted`` on a logarithmic scale."""
    return int(np.abs(np.log(np.asarray(multiples) / wanted)).argmin())


def geometric_mean(rates) -> float:
    """Of the critical rates of one model's contexts; contexts without one (nan) do not count."""
    return float(np.exp(np.nanmean(np.log(np.asarray(rates, dtype=float)))))


def clearest(table: pd.DataFrame) -> str | None:
    """The context of the largest jump, from :func:`jumps`; None without jumps."""
    return None if table.empty else str(table.loc[table["share_of_bound"].idxmax(), "context"])


# ------------------------------------------------------------------------------------------- (i) geometry at the jump


@dataclass(frozen=True)
class Geometry:
    """How much of the jumps is geometry; shares and changes are dimensionless.

    Attributes:
        n: jumps.
        median_share, high_share: median and nine-tenths quantile of ``|geometry part| / |ΔΦ|``.
        high_overlap_change: nine-tenths quantile of ``|Δg_ck|`` at the jump.
        high_drift: nine-tenths quantile of the change of E during the jump, relative to ``|E_0|``.
    """

    n: int
    median_share: float
    high_share: float
    high_overlap_change: float
    high_drift: float


def geometry(table: pd.DataFrame) -> Geometry:
    """Test (i) from the rows of :func:`jumps`; nan without jumps."""
    share = (table["geometry_part"] / table["size"]).abs()
    return Geometry(
        n=len(table),
        median_share=share.median(),
        high_share=share.quantile(0.9),
        high_overlap_change=table["overlap_change"].abs().quantile(0.9),
        high_drift=table["drift"].abs().quantile(0.9),
    )


def median_interval(values, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Bootstrap interval of the median of ``values`` (n,); degenerate for a single value."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return float(values[0]), float(values[0])
    found = scipy.stats.bootstrap(
        (values,), np.median, confidence_level=level, method="percentile", rng=np.random.default_rng(seed)
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


# ------------------------------------------------------------------------------------ (ii) bistability and hysteresis


def branches(
    store, model: LanguageModel, contexts: list[Resolved], first: pd.DataFrame, recipe: Recipe, *, brake: float = 0.1
) -> xr.Dataset | None:
    """Go on from just before and from just after a jump, at the same reduced learning rate.

    At the rate of the run itself the state before the jump would only jump again. At a rate too small to jump, a second
    branch would hold it back for ever.

    Args:
        first: the first jump of each context to follow, as from :func:`first_jumps`.
        brake: the reduced learning rate, in units of the run's.

    Returns:
        The run (2T steps), its dimension ``rate`` named ``start`` with values ``before`` and ``after``, and with
        ``same_branch`` (context) and ``difference`` (context): ``|Φ_before - Φ_after|`` at the end as a share of the
        bound. None without jumps.
    """
    chosen = [c for c in contexts if c.id in first.index]
    if not chosen:
        return None
    longer = replace(recipe, steps=2 * recipe.steps)
    schedules = np.empty((len(chosen), 2, longer.steps))
    for i, context in enumerate(chosen):
        rate, step = first.loc[context.id, "learning_rate"], int(first.loc[context.id, "step"])
        schedules[i, 0] = np.where(np.arange(longer.steps) < step - 1, rate, brake * rate)
        schedules[i, 1] = np.where(np.arange(longer.steps) < step, rate, brake * rate)
    run = store.run(model, chosen, schedules, longer).isel(seed=0).rename(rate="start")
    run = run.assign_coords(start=["before", "after"], jump_step=("context", first.loc[[c.id for c in chosen], "step"]))
    end = run.isel(step=-1)
    run["same_branch"] = (end.logit_gap > 0).all("start") | (end.logit_gap < 0).all("start")
    run["difference"] = abs(end.phi.diff("start").isel(start=0, drop=True)) / bound(run).isel(
        step=0, start=0, drop=True
    )
    return run


def ramps(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    critical_rates: np.ndarray,
    recipe: Recipe,
    *,
    low: float = 0.3,
    high: float = 30.0,
) -> xr.Dataset:
    """The same learning rates once in rising and once in falling order.

    Training on a fixed loss has no way back, so Φ against the learning rate proves nothing. What can be asked is
    whether the state depends on the order of the rates or only on their sum ``s = Σ η``: with hysteresis the two
    paths Φ(s) enclose an area.

    Args:
        critical_rates: (C,) learning rates that ``low`` and ``high`` multiply.

    Returns:
        The run, its dimension ``rate`` named ``order`` with values ``up`` and ``down``, and with ``consumed``
        (context, order, step), the sum of the rates so far in units of the critical rate, ``area`` (context), the
        mean of ``|Φ_up(s) - Φ_down(s)|`` over s as a share of the bound, and ``same_branch`` (context).
    """
    factors = np.geomspace(low, high, recipe.steps)
    schedules = np.asarray(critical_rates)[:, None, None] * np.stack([factors, factors[::-1]])
    run = store.run(model, contexts, schedules, recipe).isel(seed=0).rename(rate="order")
    run = run.assign_coords(order=["up", "down"])
    consumed = np.concatenate([[[0.0], [0.0]], np.cumsum([factors, factors[::-1]], axis=1)], axis=1)  # (2, T + 1)
    run["consumed"] = (("order", "step"), consumed)
    grid = np.linspace(0, consumed[0, -1], 2001)
    up, down = (
        np.stack([np.interp(grid, s, phi) for phi in run.phi.sel(order=order).values])
        for s, order in zip(consumed, ("up", "down"), strict=True)
    )
    top = bound(run).isel(step=0, order=0, drop=True)
    run["area"] = ("context", np.abs(up - down).mean(1) / top.values)
    gap = run.logit_gap.isel(step=-1)
    run["same_branch"] = (gap > 0).all("order") | (gap < 0).all("order")
    return run


# ------------------------------------------------------------------------------------------ (iii) critical slowing down


def crossing_times(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    critical_rates: np.ndarray,
    recipe: Recipe,
    multiples: tuple[float, ...] = (0.25, 1.02, 1.06, 1.2, 1.5, 3.0, 10.0),
    recorded: Mapping[float, xr.Dataset] | None = None,
) -> xr.Dataset:
    """When the token overtakes, at learning rates around the critical one.

    The critical rate belongs to the budget of ``recipe.steps`` = T. A multiple m below 1 gets a tenth more than T / m
    steps, so that a finite time can show; from 1 on the budget is T.

    Args:
        recorded: runs (context, seed, step) of T steps at some of the multiples, which then need not run again.

    Returns:
        Dataset over (context, multiple): ``step`` (fractional t*, nan if it never crosses), ``consumed`` (η t* /
        (η_c T), dimensionless). Attribute ``run_ids``.
    """
    critical_rates, recorded = np.asarray(critical_rates), dict(recorded or {})
    missing = [m for m in multiples if m not in recorded]
    budgets = {m: max(recipe.steps, math.ceil(1.1 * recipe.steps / m) + 1 if m < 1 else 0) for m in missing}
    for steps in sorted(set(budgets.values())):
        factors = [m for m in missing if budgets[m] == steps]
        run = store.run(model, contexts, critical_rates[:, None] * factors, replace(recipe, steps=steps))
        recorded |= {factor: run.isel(rate=i) for i, factor in enumerate(factors)}
    step = np.full((len(contexts), len(multiples)), np.nan)
    for column, multiple in enumerate(multiples):
        for row, gap in enumerate(recorded[multiple].logit_gap.isel(seed=0).values):
            crossed, when = crossing_step(gap)
            step[row, column] = when if crossed else np.nan
    ids = dict.fromkeys(recorded[m].attrs["run_id"] for m in multiples)
    return xr.Dataset(
        {
            "step": (("context", "multiple"), step, {"units": "steps"}),
            "consumed": (("context", "multiple"), step * np.asarray(multiples) / recipe.steps, {"units": "1"}),
        },
        {"context": [c.id for c in contexts], "multiple": list(multiples)},
        {"run_ids": " ".join(ids), "steps": recipe.steps},
    )


@dataclass(frozen=True)
class Slowing:
    """How the crossing time behaves; arrays (C,), dimensionless.

    Attributes:
        slope: of log t* against log η over all rates; -1 if only the consumed ``η t*`` counts.
        exponent: ν of ``t* ~ (η/η_c - 1)^-ν`` fitted up to ``η/η_c = 1.5``; 1/2 or 1 at ordinary critical points,
            towards 0 if nothing diverges.
        spread: largest over smallest ``η t*``.
    """

    slope: np.ndarray
    exponent: np.ndarray
    spread: np.ndarray


def slowing(times: xr.Dataset) -> Slowing:
    """Test (iii) from :func:`crossing_times`; nan for a context that fails to cross somewhere."""
    multiple, step = times.multiple.values, times.step.values
    near = (multiple > 1) & (multiple <= NEAR)
    return Slowing(
        slope=_slopes(np.log(multiple), np.log(step)),
        exponent=-_slopes(np.log(multiple[near] - 1), np.log(step[:, near])),
        spread=times.consumed.max("multiple", skipna=False).values
        / times.consumed.min("multiple", skipna=False).values,
    )


def regular_exponent(multiple: np.ndarray) -> float:
    """The exponent of :func:`slowing` if ``η t*`` is exactly constant: not 0, since t* falls over the fitted range."""
    near = multiple[(multiple > 1) & (multiple <= NEAR)]
    return float(-_slopes(np.log(near - 1), -np.log(near)[None])[0])


def _slopes(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row (n,) against x (n,); nan where a row is not finite."""
    centred = x - x.mean()
    return rows @ centred / (centred @ centred)


# ------------------------------------------------------------------------------------------- (iv) effective potential


def profile(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    first: pd.DataFrame,
    recipe: Recipe,
    fractions: tuple[float, ...] = tuple(np.round(np.linspace(0.1, 1.5, 15), 4).tolist()),
) -> xr.Dataset | None:
    """The loss along the line of a jump's own update, from the state before it (0) to the one after it (1) and beyond.

    An update is linear in its learning rate, so a point of the line is a run whose last rate is multiplied by the
    fraction. Fractions are equidistant and start one distance above 0.

    Returns:
        Dataset over (context, fraction), fraction 0 first: ``cross_entropy`` and ``logit_gap`` (nats), ``phi``; and
        over context ``wells`` (local minima of the cross-entropy), ``barrier`` (largest rise above the running
        minimum between fractions 0 and 1, nats) and ``convex`` (share of the line without negative curvature).
        Attribute ``run_id``. None without jumps.
    """
    chosen = [c for c in contexts if c.id in first.index]
    if not chosen:
        return None
    jump_steps = first.loc[[c.id for c in chosen], "step"].to_numpy()
    rates = first.loc[[c.id for c in chosen], "learning_rate"].to_numpy()
    last = int(jump_steps.max())
    schedules = np.tile(rates[:, None, None], (1, len(fractions), last))
    for schedule, step in zip(schedules, jump_steps, strict=True):
        schedule[:, step - 1] *= fractions  # what follows the jump's own update is not looked at
    run = store.run(model, chosen, schedules, replace(recipe, steps=last)).isel(seed=0)
    x, lines = np.append(0.0, fractions), {}
    for name in ("cross_entropy", "logit_gap", "phi"):
        values = run[name].values  # (C, fractions, last + 1)
        rows = [np.append(v[0, step - 1], v[:, step]) for v, step in zip(values, jump_steps, strict=True)]
        lines[name] = (("context", "fraction"), np.stack(rows))
    shapes = [_shape(x, loss) for loss in lines["cross_entropy"][1]]
    for i, name in enumerate(("wells", "barrier", "convex")):
        lines[name] = ("context", np.array([shape[i] for shape in shapes]))
    return xr.Dataset(lines, {"context": [c.id for c in chosen], "fraction": x}, {"run_id": run.attrs["run_id"]})


def _shape(x: np.ndarray, loss: np.ndarray, noise: float = 1e-3) -> tuple[int, float, float]:
    """Local minima, barrier (nats) and convex share of a loss (n,) on a line x (n,); below ``noise`` nats is flat."""
    wells, low, high = 1, loss[0], loss[0]  # of the well we are in: its minimum, and the top of the rise that followed
    for value in loss[1:]:
        if value < low:
            low = high = value
        high = max(high, value)
        if high - low > noise and high - value > noise:  # over a ridge and down again: another well
            wells, low, high = wells + 1, value, value
    inside = loss[x <= 1]
    barrier = (inside - np.minimum.accumulate(inside)).max()
    bends = np.diff(loss, 2)  # second differences; x is equidistant
    return wells, float(barrier), float((bends > -noise).mean())


def force(dataset: xr.Dataset) -> xr.Dataset:
    """The force on the logit gap along a run, ``dΔ/ds`` with ``s = Σ η``, and what it says of the way to the crossing.

    Args:
        dataset: runs (..., step) at a learning rate so small that differences are derivatives.

    Returns:
        Dataset with ``gap`` and ``force`` (..., step) at the middles of the steps (nats, nats per unit rate),
        ``weakest`` (...): the smallest force before the crossing relative to the first one (near 0 or negative at a
        well's edge), and ``crossed``.
    """
    force = dataset.logit_gap.diff("step") / dataset.learning_rate
    middle = dataset.logit_gap.rolling(step=2).mean().isel(step=slice(1, None))
    on_the_way = (dataset.logit_gap.shift(step=1) <= 0).isel(step=slice(1, None))
    first = force.isel(step=0, drop=True)
    return xr.Dataset(
        {
            "gap": middle,
            "force": force,
            "weakest": force.where(on_the_way).min("step") / first,
            "crossed": (dataset.logit_gap > 0).any("step"),
        }
    )


# ------------------------------------------------------------------------------------------------------ (v) refinement


def refine(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    learning_rates: np.ndarray,
    recipe: Recipe,
    factors: tuple[int, ...] = (8, 16, 32),
) -> dict[int, xr.Dataset]:
    """The same training in n times as many steps of 1/n the learning rate, for each n of ``factors``.

    Args:
        learning_rates: (C,), those of n = 1.
        recipe: its ``steps`` are those of n = 1.
    """
    rates = np.asarray(learning_rates)[:, None]
    return {n: store.run(model, contexts, rates / n, replace(recipe, steps=n * recipe.steps)) for n in factors}


def largest_steps(refined: Mapping[int, xr.Dataset]) -> xr.DataArray:
    """Largest single-step ``|ΔΦ|`` as a share of the bound, (context, refinement), from :func:`refine`."""
    largest = [step_sizes(run).max("step").isel(rate=0, seed=0, drop=True) for run in refined.values()]
    return xr.concat(
        [x.drop_vars("learning_rate", errors="ignore") for x in largest], pd.Index(refined, name="refinement")
    ).T


def refinement_slopes(largest: xr.DataArray, last: int = 3) -> xr.DataArray:
    """Test (v): slope of log largest step against log n over the ``last`` refinements, (context).

    0 for a true discontinuity, -1 for a smooth path.
    """
    if largest.sizes["refinement"] < last or last < 2:
        raise ParameterError(
            f"A slope over {last} refinements needs at least as many, and two; got {largest.sizes['refinement']}."
        )
    tail = largest.isel(refinement=slice(-last, None))
    return xr.DataArray(
        _slopes(np.log(tail.refinement.values), np.log(tail.values)), {"context": tail.context}, ["context"]
    )


# ------------------------------------------------------------------------------------------------------------ (vi) LoRA


def changed_steps(dataset: xr.Dataset) -> int:
    """Steps, over all runs, at which any bit of the readout differs from its initial value; none after a divergence."""
    return int(((dataset.readout_unchanged == 0) & dataset.phi.notnull()).sum())


@dataclass(frozen=True)
class FrozenJumps:
    """Jumps with a readout that does not change.

    Attributes:
        sentences: ids of the contexts with such a jump in at least one model and seed.
        changed_steps: steps, over all runs, at which the readout differs from its initial value.
        runs: their number.
    """

    sentences: list[str]
    changed_steps: int
    runs: int


def frozen_jumps(runs: list[xr.Dataset], tables: list[pd.DataFrame]) -> FrozenJumps:
    """Test (vi) from LoRA runs and their jumps (:func:`jumps`), one of each per model.

    A jump counts if the readout equals its initial value bit for bit at every recorded step of its run.
    """
    sentences = set()
    for dataset, table in zip(runs, tables, strict=True):
        frozen = ((dataset.readout_unchanged == 1) | dataset.phi.isnull()).all("step")
        for row in table.itertuples():
            if bool(frozen.sel(context=row.context, seed=row.seed).isel(rate=row.rate)):
                sentences.add(row.context)
    return FrozenJumps(sorted(sentences), sum(map(changed_steps, runs)), sum(d.diverged_step.size for d in runs))


def contexts_by_seed(table: pd.DataFrame, seeds) -> list[int]:
    """How many contexts jump under each seed, from :func:`jumps`."""
    return [int(table[table["seed"] == seed]["context"].nunique()) for seed in seeds]


# ------------------------------------------------------------------------------------------ all of it, and the verdicts


def run_ids(*datasets: xr.Dataset | None) -> list[str]:
    """Ids of all runs behind results of this module, each once; None is skipped."""
    found = [d.attrs.get("run_ids") or d.attrs["run_id"] for d in datasets if d is not None]
    return list(dict.fromkeys(" ".join(found).split()))


@dataclass(frozen=True)
class Examination:
    """The five tests on one model under one optimiser.

    Attributes:
        name: of the model.
        runs: (context, rate, seed, step) at the ``multiples`` of the critical rate.
        jumps: all jumps at the multiples that count, from :func:`jumps`.
        first: the first jump of each context at the largest multiple.
        branches, ramps, times, profile, refined: results of the functions of these names; None (refined: empty)
            without jumps.
    """

    name: str
    runs: xr.Dataset
    jumps: pd.DataFrame
    first: pd.DataFrame
    branches: xr.Dataset | None
    ramps: xr.Dataset
    times: xr.Dataset
    profile: xr.Dataset | None
    refined: dict[int, xr.Dataset]

    @property
    def run_ids(self) -> list[str]:
        """Ids of all runs behind this, each once."""
        return run_ids(self.runs, self.ramps, self.times, self.branches, self.profile, *self.refined.values())


def examine(
    store,
    model: LanguageModel,
    contexts: list[Resolved],
    critical_rates: np.ndarray,
    recipe: Recipe,
    *,
    multiples: tuple[float, ...] = (0.3, 0.7, 1.5, 3.0, 10.0, 30.0),
    counted: tuple[float, ...] = (10.0, 30.0),
) -> Examination:
    """Run the experiments of tests (i) to (v).

    Args:
        store: a :class:`phantomlib.trajectories.Store`, or something with its ``run``.
        critical_rates: (C,).
        recipe: optimiser, and the number of steps T that the critical rates belong to.
        multiples: learning rates of ``runs``, in units of the critical ones.
        counted: those whose jumps are examined; the experiments start from the largest.
    """
    critical_rates = np.asarray(critical_rates)
    runs = store.run(model, contexts, critical_rates[:, None] * multiples, recipe)
    indices = [list(multiples).index(m) for m in counted]
    table = jumps(runs)
    table = table[table["rate"].isin(indices)].reset_index(drop=True)
    first = first_jumps(table, indices[-1])
    recorded = {m: runs.isel(rate=i) for i, m in enumerate(multiples) if m >= 1}
    return Examination(
        name=getattr(model, "name", "control"),
        runs=runs,
        jumps=table,
        first=first,
        branches=branches(store, model, contexts, first, recipe),
        ramps=ramps(store, model, contexts, critical_rates, recipe, high=counted[-1]),
        times=crossing_times(store, model, contexts, critical_rates, recipe, recorded=recorded),
        profile=profile(store, model, contexts, first, recipe),
        refined=_refine_first(store, model, contexts, runs.isel(rate=indices[-1:]), first, recipe),
    )


def _refine_first(store, model, contexts, runs, first, recipe) -> dict[int, xr.Dataset]:
    """Refine the jumping contexts of ``runs`` (context, one rate, seed, step), each up to its largest step."""
    chosen = [c for c in contexts if c.id in first.index]
    if not chosen:
        return {}
    coarse = runs.sel(context=[c.id for c in chosen])
    largest = step_sizes(coarse).isel(rate=0, seed=0).fillna(0).argmax("step").values + 1
    rates = first.loc[[c.id for c in chosen], "learning_rate"].to_numpy()
    parts = []
    for steps in sorted(set(largest.tolist())):
        group = [c for c, s in zip(chosen, largest, strict=True) if s == steps]
        parts.append(refine(store, model, group, rates[largest == steps], replace(recipe, steps=steps)))
    ids = {n: " ".join(part[n].attrs["run_id"] for part in parts) for n in parts[0]}
    options = {"join": "outer", "data_vars": "all", "coords": "minimal", "compat": "override", "combine_attrs": "drop"}
    refined = {n: xr.concat([part[n] for part in parts], "context", **options) for n in parts[0]}
    return {1: coarse} | {n: d.assign_attrs(run_ids=ids[n]) for n, d in refined.items()}


def summarise(examinations: list[Examination]) -> dict[str, dict[str, float]]:
    """The quantities of the tests (i) to (v), by test and criterion as in the ledger, over all models together.

    A quantity of jumps is nan where there is no jump.
    """
    pooled = geometry(pd.concat([e.jumps for e in examinations], ignore_index=True))
    found = [e for e in examinations if len(e.first)]

    def values(pick) -> np.ndarray:
        parts = [np.ravel(pick(e)) for e in found]
        return np.concatenate(parts).astype(float) if parts else np.array([np.nan])

    ramp_sides = np.concatenate([e.ramps.same_branch.values for e in examinations]).astype(float)
    areas = np.concatenate([e.ramps.area.values for e in examinations])
    slow = [slowing(e.times) for e in examinations]
    slopes = values(lambda e: refinement_slopes(largest_steps(e.refined)))
    spreads = np.concatenate([s.spread for s in slow])
    numbers = {
        "geometry": {
            "median_geometry_share": pooled.median_share,
            "high_overlap_change": pooled.high_overlap_change,
            "high_drift": pooled.high_drift,
        },
        "bistability": {
            "same_branch_share": values(lambda e: e.branches.same_branch).mean(),
            "branch_difference": np.median(values(lambda e: e.branches.difference)),
            "ramp_same_branch_share": ramp_sides.mean(),
            "loop_area": np.median(areas),
        },
        "slowing": {
            "crossing_share": np.isfinite(spreads).mean(),
            "exponent": _median(np.concatenate([s.exponent for s in slow])),
            "spread": _median(spreads),
        },
        "potential": {
            "single_well_share": values(lambda e: e.profile.wells == 1).mean(),
            "convex_share": np.median(values(lambda e: e.profile.convex)),
            "weakest_force": np.median(values(lambda e: force(e.refined[max(e.refined)]).weakest)),
            "smooth_crossing_share": values(lambda e: force(e.refined[max(e.refined)]).crossed).mean(),
        },
        "refinement": {
            "median_slope": np.median(slopes),
            "shrinking_share": (slopes < -0.5).mean() if found else np.nan,
        },
    }
    return {test: {name: float(value) for name, value in entries.items()} for test, entries in numbers.items()}


def _median(values: np.ndarray) -> float:
    """Median of the finite values; nan without any."""
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else math.nan


def join_jumps(examinations: Mapping[str, Examination]) -> pd.DataFrame:
    """The jumps of several models in one table, with a column ``model``."""
    return pd.concat([e.jumps.assign(model=name) for name, e in examinations.items()], ignore_index=True)


def criteria_of(claim: Claim) -> list[tuple[str, Criterion, str]]:
    """The criteria behind a claim's tests in order: test, criterion, and the criterion's name as words."""
    return [
        (test, Criterion(name, **fields), name.replace("_", " "))
        for test, entries in claim.tests.items()
        for name, fields in entries.items()
    ]


def board(claim: Claim, columns: Mapping[str, Mapping[str, Mapping[str, float]]]) -> pd.DataFrame:
    """All criteria as a table: test, quantity, threshold, and one column of values per entry of ``columns``."""
    signs = {"at least": "≥", "at most": "≤"}
    return pd.DataFrame(
        [
            {"test": test, "quantity": c.quantity, "threshold": f"{signs[c.direction]} {c.threshold:g}"}
            | {name: f"{measured[test][c.name]:.3g}" for name, measured in columns.items()}
            for test, c, _ in criteria_of(claim)
        ]
    )


def passed(claim: Claim, measured: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
    """Which tests of a claim its measurements pass, by the thresholds of the ledger.

    Args:
        claim: with ``tests``: test name -> criterion name -> quantity, direction, threshold, unit.
        measured: test name -> criterion name -> value, as from :func:`summarise`.

    Raises:
        ParameterError: a criterion was not measured. A value that is nan fails.
    """
    verdicts = dict.fromkeys(claim.tests, True)
    for test, criterion, _ in criteria_of(claim):
        if criterion.name not in measured.get(test, {}):
            raise ParameterError(f"Test '{test}' of claim {claim.id} needs {criterion.name}, which was not measured.")
        verdicts[test] &= criterion.holds(measured[test][criterion.name])
    return verdicts


# ------------------------------------------------------------------------------------------------- a control that fails


@dataclass(frozen=True)
class DoubleWell:
    """Something that does have two branches, to see that the tests can fail: gradient descent in a double well.

    The "loss" is ``U(Δ) = (Δ² - 1)² / 4``, minima at ±1. A replica starts on the outer slope at ``Δ_0 < -1``. Small
    steps roll into the left well and stay; from the learning rate ``1 / (Δ_0² - 1)`` on, the first step throws it
    over the barrier. Probabilities are a softmax over the two tokens, with a fixed overlap 0.6.

    Attributes:
        starts: Δ_0 of each context, by id.
    """

    starts: Mapping[str, float]

    @classmethod
    def examined(cls, steps: int, starts: int = 10, multiple: float = 1.5) -> Examination:
        """Tests (i) to (v) on replicas started evenly between -2.4 and -1.6, jumping at ``multiple`` critical rates."""
        toy = cls({f"well-{i}": float(x) for i, x in enumerate(np.linspace(-2.4, -1.6, starts))})
        recipe, multiples = Recipe(optimizer="sgd", steps=steps), (0.3, 0.7, multiple)
        return examine(
            toy, None, toy.contexts(), toy.critical_rates(), recipe, multiples=multiples, counted=multiples[-1:]
        )

    def critical_rates(self) -> np.ndarray:
        """The exact critical learning rates (C,)."""
        return 1 / (np.array(list(self.starts.values())) ** 2 - 1)

    @staticmethod
    def energy(gap: np.ndarray) -> np.ndarray:
        return (gap**2 - 1) ** 2 / 4

    @staticmethod
    def slope(gap: np.ndarray) -> np.ndarray:
        return gap**3 - gap

    def contexts(self) -> list[Resolved]:
        return [Resolved(Context(name, "a double well", "right", "left"), (0,), 0, 1) for name in self.starts]

    def run(self, model, contexts: list[Resolved], learning_rates, recipe: Recipe) -> xr.Dataset:
        """As :meth:`phantomlib.trajectories.Store.run`, with SGD whatever the recipe's optimiser."""
        rates = check_learning_rates(learning_rates, len(contexts), recipe.steps)
        each = np.broadcast_to(rates if rates.ndim == 3 else rates[..., None], (*rates.shape[:2], recipe.steps))
        gap = np.empty((*rates.shape[:2], recipe.steps + 1))
        gap[..., 0] = np.array([self.starts[c.id] for c in contexts])[:, None]
        for t in range(recipe.steps):
            x = np.clip(gap[..., t], -1e6, 1e6)
            gap[..., t + 1] = x - each[..., t] * self.slope(x)
        overlap = 0.6
        phi = np.tanh(gap / 2) * (1 - overlap**2)
        dims = ("context", "rate", "seed", "step")
        fields = {
            "logit_gap": gap,
            "cross_entropy": self.energy(gap),
            "phi": phi,
            "phi_readout_part": np.diff(phi, prepend=np.nan),
            "phi_geometry_part": np.diff(np.zeros_like(phi), prepend=np.nan),
            "overlap": np.full_like(phi, overlap),
            "readout_drift": np.zeros_like(phi),
            "readout_unchanged": np.ones_like(phi, dtype=int),
        }
        return xr.Dataset(
            {name: (dims, values[:, :, None]) for name, values in fields.items()},
            {
                "context": [c.id for c in contexts],
                "seed": [0],
                "step": np.arange(recipe.steps + 1),
                "learning_rate": (("context", "rate"), each.max(-1)),
            },
            {"run_id": "double-well"},
        )
