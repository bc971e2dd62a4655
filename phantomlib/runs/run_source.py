"""What hands out runs: the store, or anything else that can be asked for one, such as a control without a model."""

from typing import Any, Protocol

import xarray as xr

from phantomlib.contexts import Resolved
from phantomlib.engine.recipe import Recipe


class RunSource(Protocol):
    """Something with the ``run`` of :class:`phantomlib.runs.store.Store`."""

    def run(self, model: Any, contexts: list[Resolved], learning_rates: Any, recipe: Recipe) -> xr.Dataset:
        """Runs with dimensions (context, rate, seed, step) and at least the variables that the caller reads.

        Args:
            model: a :class:`phantomlib.models.language_model.LanguageModel`, or whatever the source trains.
            contexts: C resolved contexts.
            learning_rates: (rates,), (C, rates), or schedules (C, rates, T).
            recipe: optimiser, method and number of steps T.
        """
        ...
