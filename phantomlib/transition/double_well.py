"""A control on which the tests must fail: gradient descent in a double well."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from phantomlib.contexts import Context, Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.transition.examine import Examination, examine

OVERLAP = 0.6  # g_ck of the two tokens


@dataclass(frozen=True)
class DoubleWell:
    """Something that does have two branches: gradient descent on ``U(Δ) = (Δ² - 1)² / 4``, minima at ±1.

    A replica starts at ``Δ_0 < -1``. Small steps roll into the left well and stay; from the learning rate
    ``1 / (Δ_0² - 1)`` on, the first step throws it over the barrier. Probabilities are a softmax over the two tokens.
    """

    starts: Mapping[str, float]  #: Δ_0 of each context, by id

    @classmethod
    def examined(cls, steps: int) -> Examination:
        """Tests (i) to (v) on ten replicas started evenly between -2.4 and -1.6, jumping at 1.5 critical rates."""
        toy = cls({f"well-{i}": float(x) for i, x in enumerate(np.linspace(-2.4, -1.6, 10))})
        recipe, rates = Recipe(optimizer="sgd", steps=steps), toy.critical_rates()
        return examine(toy, None, toy.contexts(), rates, recipe, multiples=(0.3, 0.7, 1.5), counted=(1.5,))

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

    def run(self, model, contexts: list[Resolved], learning_rates: np.ndarray, recipe: Recipe) -> xr.Dataset:
        """As :meth:`phantomlib.runs.store.Store.run`: rates (C, n), or schedules (C, n, T); always with plain SGD."""
        rates = learning_rates if learning_rates.ndim == 3 else learning_rates[..., None]
        gaps = [np.broadcast_to([[self.starts[c.id]] for c in contexts], rates.shape[:2])]
        for rate in np.broadcast_to(rates, (*rates.shape[:2], recipe.steps)).transpose(2, 0, 1):
            x = np.clip(gaps[-1], -1e6, 1e6)
            gaps.append(x - rate * self.slope(x))
        gap = np.stack(gaps, -1)  # (C, n, T + 1)
        phi = np.tanh(gap / 2) * (1 - OVERLAP**2)
        fields = {
            "logit_gap": gap,
            "cross_entropy": self.energy(gap),
            "phi": phi,
            "phi_readout_part": np.diff(phi, prepend=np.nan),
            "phi_geometry_part": np.diff(0 * phi, prepend=np.nan),
            "overlap": np.full_like(phi, OVERLAP),
            "readout_drift": np.zeros_like(phi),
        }
        found = xr.Dataset({name: (("context", "rate", "step"), values) for name, values in fields.items()})
        found = found.expand_dims(seed=[0], axis=2).assign_attrs(run_id="double-well")
        found = found.assign_coords(context=[c.id for c in contexts], step=np.arange(recipe.steps + 1))
        return found.assign_coords(learning_rate=(("context", "rate"), rates.max(-1)))
