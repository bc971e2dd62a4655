"""How the measured values, and so the verdicts, move when a definition or a setting is changed.

Each variant changes one thing. Only the claims it can touch are measured again; their values are then compared with the same
thresholds of ``claims.yaml``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import xarray as xr

from phantombook.ledger.claims import Claim
from phantomlib.contexts import Resolved
from phantomlib.critical import search
from phantomlib.critical.predictors import contexts_with_rates
from phantomlib.critical.scaling import coefficient_of_variation, kinematic_number, lora_outcomes
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError, did_you_mean, shown
from phantomlib.models.language_model import LanguageModel
from phantomlib.transition import silent_failure
from phantomlib.transition.jumps import find_jumps, with_critical_rate


@dataclass(frozen=True)
class Setting:
    """What the claims are measured with.

    Attributes:
        recipe: optimiser, steps, exponent, geometry, LoRA rank.
        multiples: learning rates at which silent failures are counted, in units of each context's predicted critical one.
        least_fall: of cross-entropy for a silent failure to count, nats.
        drag_worsens: fall of the drag that makes a failure structural.
        size_factor, median_factor: of the definition of a jump.
        jump_multiples: learning rates of the jumps, in units of the critical one.
        lora_multiple: learning rate of LoRA, in units of the critical one of full fine-tuning.
    """

    recipe: Recipe
    multiples: tuple[float, ...]
    least_fall: float = 0.1
    drag_worsens: float = silent_failure.DRAG_WORSENS
    size_factor: float = 0.1
    median_factor: float = 10.0
    jump_multiples: tuple[float, ...] = (10.0, 30.0)
    lora_multiple: float = 10.0


@dataclass(frozen=True)
class Variant:
    """One change: ``recipe`` and ``setting`` hold the changed fields; ``claims`` are those it can touch."""

    name: str
    claims: tuple[str, ...]
    recipe: dict = field(default_factory=dict)
    setting: dict = field(default_factory=dict)
    dtype: str | None = None


def variants(base: Setting, only: Sequence[str] = ()) -> list[Variant]:
    """The variants of the book, or those with the names ``only``: definitions first, then settings, then thresholds.

    Raises:
        ParameterError: no variant has such a name.
    """
    steps = base.recipe.steps
    known = [
        Variant("as defined", ("C1", "C3", "C4", "C7", "C8", "C9")),
        Variant("overlap to the power 1", ("C4", "C7"), recipe={"exponent": 1}),
        Variant("overlaps of the input embedding", ("C4", "C7"), recipe={"geometry": "input"}),
        Variant(f"T = {steps // 2} steps", ("C1", "C3", "C8"), recipe={"steps": steps // 2}),
        Variant(f"T = {2 * steps} steps", ("C8",), recipe={"steps": 2 * steps}),
        Variant("Adam's epsilon 1e-6", ("C8",), recipe={"epsilon": 1e-6}),
        Variant("double precision", ("C4", "C7"), dtype="float64"),
        Variant("LoRA rank 2", ("C9",), recipe={"rank": 2}),
        Variant("LoRA rank 32", ("C9",), recipe={"rank": 32}),
        Variant("silent: fall of 0.05 nat", ("C1",), setting={"least_fall": 0.05}),
        Variant("silent: fall of 0.5 nat", ("C1",), setting={"least_fall": 0.5}),
        Variant("structural: 5e-4", ("C3",), setting={"drag_worsens": 5e-4}),
        Variant("structural: 2e-3", ("C3",), setting={"drag_worsens": 2e-3}),
        Variant("jump: twice the size", ("C4", "C7"), setting={"size_factor": 0.2}),
        Variant("jump: half the size", ("C4", "C7"), setting={"size_factor": 0.05}),
        Variant("jump: 5 times the median", ("C4", "C7"), setting={"median_factor": 5.0}),
        Variant("jump: 20 times the median", ("C4", "C7"), setting={"median_factor": 20.0}),
    ]
    names = [variant.name for variant in known]
    for name in only:
        if name not in names:
            raise ParameterError(
                f"There is no variant {shown(name)}{did_you_mean(name, names)}; known: {', '.join(names)}."
            )
    return [variant for variant in known if not only or variant.name in only]


def measure_setting(
    store,
    load: Callable[[str | None], list[tuple[LanguageModel, list[Resolved]]]],
    base: Setting,
    variant: Variant,
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Values of the claims that a variant touches; contexts without a critical rate are left out.

    Args:
        store: the store of runs.
        load: gives the models with their contexts, in a dtype or (None) in the notebook's own.
        base: the setting of the book.
        variant: what to change.

    Returns:
        For each claim its criteria's values by name, and the ids of the runs used.
    """
    setting = replace(base, recipe=replace(base.recipe, **variant.recipe), **variant.setting)
    pairs = load(variant.dtype)
    values: dict[str, dict] = {}
    used: list[str] = []
    if {"C1", "C3"} & set(variant.claims):
        grid = []
        for m, contexts in pairs:
            known, critical = contexts_with_rates(store, m, contexts, _dynamics(setting.recipe))
            grid.append(store.run(m, known, np.outer(critical, setting.multiples), setting.recipe))
        used += [ds.attrs["run_id"] for ds in grid]
        if "C1" in variant.claims:
            failed = [silent_failure.silent(ds, setting.least_fall).any(["rate", "seed"]) for ds in grid]
            values["C1"] = {"fewest_silent_contexts": float(min(int(contexts.sum()) for contexts in failed))}
        if "C3" in variant.claims:
            counts = pd.concat([silent_failure.failure_table(ds, setting.drag_worsens) for ds in grid])[
                "mode"
            ].value_counts()
            values["C3"] = {f"{mode}_failures": float(counts.get(mode, 0)) for mode in ("kinematic", "structural")}
    if {"C4", "C7", "C8", "C9"} & set(variant.claims):
        # critical rates in the notebook's own dtype: the bracket is wider than what precision could move
        dynamics = _dynamics(setting.recipe)
        rates = [search.critical_rates(store, m, contexts, dynamics) for m, contexts in load(None)]
        used += [run for ds in rates for run in ds.attrs["run_ids"].split()]
    if {"C4", "C7"} & set(variant.claims):
        jumps = []
        for (m, contexts), ds in zip(pairs, rates, strict=True):
            # a tied model has one matrix, so the same runs serve
            recipe = replace(setting.recipe, geometry="readout") if m.tied else setting.recipe
            known, critical = with_critical_rate(contexts, ds)
            runs = store.run(m, known, np.outer(critical, setting.jump_multiples), recipe)
            used.append(runs.attrs["run_id"])
            options = {"size_factor": setting.size_factor, "median_factor": setting.median_factor}
            jumps.append(find_jumps(runs, **options))
        values["C4"] = {"fewest_jumping_contexts": float(min(table["context"].nunique() for table in jumps))}
        values["C7"] = {"median_readout_share": float(pd.concat(jumps)["readout_share"].median())}
    if "C8" in variant.claims:
        values["C8"] = {"coefficient_of_variation": variation_of(rates, setting.recipe.steps)}
    if "C9" in variant.claims:
        outcomes = []
        for (m, contexts), ds in zip(pairs, rates, strict=True):
            recipe = replace(setting.recipe, method="lora")
            found = lora_outcomes(store, m, *with_critical_rate(contexts, ds), recipe, multiple=setting.lora_multiple)
            used.append(found.attrs["run_id"])
            outcomes.append(int(found.success.sum()))
        values["C9"] = {"lora_successes": outcomes}
    return {claim: found for claim, found in values.items() if claim in variant.claims}, used


def variation_of(rates: list[xr.Dataset], steps: int) -> float:
    """Coefficient of variation over the architectures of N_c, each the geometric mean over its contexts."""
    numbers = [kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap) for ds in rates]
    means = [float(np.exp(np.log(n.where(n > 0)).mean())) for n in numbers]
    return coefficient_of_variation(means)


def _dynamics(recipe: Recipe) -> Recipe:
    """The recipe without what only changes Φ, so that searches for critical rates and predictions are shared."""
    return replace(recipe, exponent=2, geometry="readout", rank=Recipe.rank)


def sensitivity_table(measured: dict[str, dict[str, dict[str, float]]], claims: list[Claim]) -> pd.DataFrame:
    """One row per variant, one column per claim: values and whether they meet the claim's thresholds.

    Args:
        measured: variant name -> claim id -> criterion -> value.
        claims: the ledger.
    """
    by_id = {claim.id: claim for claim in claims}
    columns = sorted({c for values in measured.values() for c in values}, key=lambda c: int(c[1:]))
    rows = []
    for name, values in measured.items():
        row = {"variant": name}
        for column in columns:
            row[column] = _cell(by_id[column], values[column]) if column in values else ""
        rows.append(row)
    return pd.DataFrame(rows)


def _cell(claim: Claim, values: dict) -> str:
    if "lora_successes" in values:
        return "/".join(str(count) for count in values["lora_successes"])
    numbers = ", ".join(f"{value:.3g}" for value in values.values())
    return f"{numbers} {'✓' if claim.holds(values) else '✗'}"
