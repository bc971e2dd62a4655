"""Test (vi), jumps under LoRA while the embedding matrix stays bit for bit the same."""

from dataclasses import dataclass

import pandas as pd
import xarray as xr

from phantomlib.transition.refinement import changed_steps


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
    """Test (vi) from LoRA runs and their jumps (:func:`phantomlib.transition.jumps.find_jumps`), one of each per model.

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
    """How many contexts jump under each seed, from :func:`phantomlib.transition.jumps.find_jumps`."""
    return [int(table[table["seed"] == seed]["context"].nunique()) for seed in seeds]
