"""Trainings on a data set as runs of the store: computed once for each learning rate and each order of the rows."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from phantomlib import files
from phantomlib.dataset.rows import Row
from phantomlib.dataset.scan import Scan
from phantomlib.dataset.train import train_and_measure
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel
from phantomlib.runs.store import Store

KIND = "data set, 1"  # the number is raised if the same training would give other numbers


def train_once(
    store: Store,
    model: LanguageModel,
    rows: Sequence[Row],
    scan: Scan,
    learning_rates,
    recipe: Recipe = Recipe(),
    *,
    seeds: tuple[int, ...] = (0,),
    epochs: int = 3,
    schedule: str = "constant",
    warmup: int = 0,
    batch_size: int = 8,
    clip: float | None = None,
) -> xr.Dataset:
    """What :func:`phantomlib.dataset.train.train_and_measure` gives at several learning rates, from the store if it is there.

    Args:
        store: where the run is kept, in one file.
        learning_rates: (M,).
        seeds: of the order of the rows (S,).

    Returns:
        ``gap`` and ``cross_entropy`` (nats) over (seed, rate, epoch, target), with the coordinates ``learning_rate``,
        ``row`` and ``position``; targets in the order of the scan. Attributes as of any run (:meth:`phantomlib.runs.store.Store.run`).
    """
    rates = [float(rate) for rate in learning_rates]
    training: dict[str, Any] = {"epochs": epochs, "schedule": schedule, "warmup": warmup}
    training |= {"batch_size": batch_size, "clip": clip}
    asked = scan.targets[["row", "position", "competitor_id"]].to_numpy().tolist()
    spec = {
        "kind": KIND,
        "model": model.fingerprint,
        "name": model.name,
        "dtype": str(model.readout.dtype).removeprefix("torch."),
        "device": model.device.type,
        "rows": files.digest([[[row.number, row.ids, row.targets] for row in rows], asked]),
        "learning_rates": rates,
        "recipe": json.loads(json.dumps(recipe.settings())),
        "seeds": list(seeds),
        "training": training,
    }

    def compute() -> xr.Dataset:
        found = [
            [train_and_measure(model, rows, scan, rate, recipe, seed=seed, **training) for rate in rates]
            for seed in seeds
        ]
        dims, shape = ("seed", "rate", "epoch", "target"), (len(seeds), len(rates), epochs + 1, len(asked))
        values = {
            name: (dims, np.reshape([[one[name] for one in line] for line in found], shape), {"units": "nat"})
            for name in ("gap", "cross_entropy")
        }
        coordinates: dict[str, Any] = {"seed": list(seeds), "learning_rate": ("rate", rates)}
        coordinates |= {name: ("target", scan.targets[name].to_numpy()) for name in ("row", "position")}
        return xr.Dataset(values, coordinates)

    return store.keep(spec, model, recipe, compute)
