"""Controls on which tests must fail: gradient descent in a double well, and a first-order transition between its wells."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from phantomlib.contexts import Context, Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.transition.examine import Examination, examine

OVERLAP = 0.6  # g_ck of the two tokens at first


def as_runs(fields: Mapping[str, np.ndarray], contexts: list[Resolved], rates: np.ndarray, run_id: str) -> xr.Dataset:
    """What a control recorded, (C, n, T + 1) each, labelled like runs of the store."""
    found = xr.Dataset({name: (("context", "rate", "step"), values) for name, values in fields.items()})
    found = found.expand_dims(seed=[0], axis=2).assign_attrs(run_id=run_id)
    found = found.assign_coords(context=[c.id for c in contexts], step=np.arange(found.sizes["step"]))
    return found.assign_coords(learning_rate=(("context", "rate"), rates.max(-1)))


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
        recipe, rates = Recipe(optimizer="sgd", steps=steps), toy.critical_rates(steps)
        return examine(toy, None, toy.contexts(), rates, recipe, multiples=(0.3, 0.7, 1.5), counted=(1.5,))

    def critical_rates(self, steps: int) -> np.ndarray:
        """The exact critical learning rates (C,) for a number of steps."""
        return 1 / (np.array(list(self.starts.values())) ** 2 - 1)

    @staticmethod
    def energy(gap: np.ndarray) -> np.ndarray:
        return (gap**2 - 1) ** 2 / 4

    @staticmethod
    def slope(gap: np.ndarray) -> np.ndarray:
        return gap**3 - gap

    def overlap(self, gap: np.ndarray) -> np.ndarray:
        """g_ck of the two tokens."""
        return np.full_like(gap, OVERLAP)

    def gaps(self, start: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Δ (C, n, T + 1) from the starts (C, 1) under learning rates (C, n, T)."""
        found = [np.broadcast_to(start, rates.shape[:2])]
        for rate in rates.transpose(2, 0, 1):
            x = np.clip(found[-1], -1e6, 1e6)
            found.append(x - rate * self.slope(x))
        return np.stack(found, -1)

    def contexts(self) -> list[Resolved]:
        return [Resolved(Context(name, "a double well", "right", "left"), (0,), 0, 1) for name in self.starts]

    def run(self, model, contexts: list[Resolved], learning_rates: np.ndarray, recipe: Recipe) -> xr.Dataset:
        """As :meth:`phantomlib.runs.store.Store.run`: rates (C, n), or schedules (C, n, T); always with plain SGD."""
        rates = learning_rates if learning_rates.ndim == 3 else learning_rates[..., None]
        start = np.array([[self.starts[c.id]] for c in contexts])  # (C, 1)
        gap = self.gaps(start, np.broadcast_to(rates, (*rates.shape[:2], recipe.steps)))  # (C, n, T + 1)
        overlap, lead = self.overlap(gap), np.tanh(gap / 2)  # p_c - p_k
        contrast = 1 - overlap**2  # Φ is their product, and its change splits exactly
        before = np.pad(np.stack([lead, contrast])[..., :-1], ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=np.nan)
        fields = {
            "logit_gap": gap,
            "cross_entropy": self.energy(gap),
            "phi": lead * contrast,
            "phi_readout_part": (lead - before[0]) * (contrast + before[1]) / 2,
            "phi_geometry_part": (contrast - before[1]) * (lead + before[0]) / 2,
            "overlap": overlap,
            "readout_drift": np.zeros_like(gap),
        }
        return as_runs(fields, contexts, rates, "double-well")


class FirstOrder(DoubleWell):
    """A discontinuity that small steps do not remove: a field F tilts the wells, and Δ sits in the deeper one.

    F begins where Δ_0 is a minimum of ``U(Δ) - F Δ`` and grows by the learning rate at each step. As it changes sign, Δ
    goes from one well to the other at once, and the rows of the two tokens turn apart.
    """

    def overlap(self, gap: np.ndarray) -> np.ndarray:
        return np.where(gap < 0, OVERLAP, OVERLAP / 2)

    def critical_rates(self, steps: int) -> np.ndarray:
        return -self.slope(np.array(list(self.starts.values()))) / steps

    def gaps(self, start: np.ndarray, rates: np.ndarray) -> np.ndarray:
        field = self.slope(start)[..., None] + np.pad(rates.cumsum(-1), ((0, 0), (0, 0), (1, 0)))  # (C, n, T + 1)
        angle = np.arccos(1.5 * np.sqrt(3) * np.abs(field).astype(complex))  # imaginary once there is one well
        return np.where(field < 0, -1, 1) * 2 / np.sqrt(3) * np.cos(angle / 3).real  # Δ^3 - Δ = F
