"""One measurement for every optimiser and every model: what a chapter compares."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import xarray as xr


class Study(dict[tuple[str, str], Any]):
    """Results by ``(optimizer, model name)``, in order: datasets of the store, or whatever was made of them.

    Example:
        >>> import phantomlib as ph
        >>> loaded = [ph.load("zoo:gpt2-s"), ph.load("zoo:neox-s")]
        >>> study = ph.Study.of(lambda model, optimizer: len(model.readout), loaded)  # or runs of the store
        >>> study.sel("adam")
        {'gpt2-s': 1157, 'neox-s': 1157}
        >>> study.map(lambda tokens: tokens > 1000)["sgd", "neox-s"]
        True
    """

    @classmethod
    def of(cls, measure: Callable, models: Sequence, optimizers: Sequence[str] = ("adam", "sgd")) -> "Study":
        """Call ``measure(model, optimizer)`` for all of them, one optimiser after the other."""
        return cls({(o, m.name): measure(m, o) for o in optimizers for m in models})

    def sel(self, optimizer: str) -> dict[str, Any]:
        """The results of one optimiser, by model."""
        return {model: result for (o, model), result in self.items() if o == optimizer}

    def map(self, function: Callable, *arguments) -> "Study":
        """Apply ``function(result, *arguments)`` to every result."""
        return Study({key: function(result, *arguments) for key, result in self.items()})

    def table(self, describe: Callable = lambda result: result, *arguments) -> pd.DataFrame:
        """One tidy table: ``optimizer``, ``model``, and the columns of the table or mapping that ``describe`` gives."""
        parts = []
        for (optimizer, model), result in self.items():
            found = describe(result, *arguments)
            frame = found if isinstance(found, pd.DataFrame) else pd.DataFrame([dict(found)])
            named = pd.DataFrame({"optimizer": optimizer, "model": model}, frame.index)
            parts.append(named.join(frame.drop(columns=named.columns, errors="ignore")))
        return pd.concat(parts, ignore_index=True)

    def fewest_contexts(self, optimizer: str) -> int:
        """The smallest number of contexts of any model's dataset: the sample that a verdict rests on."""
        results = self.sel(optimizer).values()
        return min(result.sizes["context"] for result in results if isinstance(result, xr.Dataset))
