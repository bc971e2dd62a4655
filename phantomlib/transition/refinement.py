"""Test (v), refinement: whether a jump shrinks when its steps are made smaller."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import CanRun
from phantomlib.transition.jumps import step_sizes
from phantomlib.transition.slowing import log_slopes


def refine_jumps(
    store: CanRun,
    model: LanguageModel | None,
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
    """Largest single-step ``|ΔΦ|`` as a share of the bound, (context, refinement), from :func:`refine_jumps`."""
    largest = [step_sizes(run).max("step").isel(rate=0, seed=0, drop=True) for run in refined.values()]
    dropped = [x.drop_vars("learning_rate", errors="ignore") for x in largest]
    return xr.concat(dropped, pd.Index(refined, name="refinement"), join="outer").T  # contexts refined apart


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
        log_slopes(np.log(tail.refinement.values), np.log(tail.values)), {"context": tail.context}, ["context"]
    )


def changed_steps(dataset: xr.Dataset) -> int:
    """Steps, over all runs, at which any bit of the readout differs from its initial value; none after a divergence."""
    return int(((dataset.readout_unchanged == 0) & dataset.phi.notnull()).sum())
