"""A control whose geometry moves: the readout of a model trained alone, by SGD."""

import numpy as np
import torch
import xarray as xr
from scipy.optimize import brentq
from scipy.special import log_softmax

from phantomlib.contexts import Resolved
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel
from phantomlib.order_parameter import contrast
from phantomlib.transition.double_well import as_runs
from phantomlib.transition.examine import Examination, examine


class ReadoutAlone:
    """Fine-tuning of the readout E of a model on C contexts, all else frozen.

    The final hidden state h of a context stays, and the gradient of the cross-entropy by E is ``(p - y) h``. So
    ``E = E_0 - a h`` with one number a_i for each token, and all overlaps follow from E_0.
    """

    def __init__(self, model: LanguageModel, contexts: list[Resolved]):
        self.E = model.readout.detach().cpu().double().numpy()  # (V, d)
        self.hidden = {}
        for context in contexts:
            ids = torch.tensor([context.prompt_ids], device=model.device)
            with torch.no_grad():
                last = model.module(ids, output_hidden_states=True).hidden_states[-1][0, -1]
            self.hidden[context.id] = last.cpu().double().numpy()  # (d,)

    @classmethod
    def examined(cls, model: LanguageModel, contexts: list[Resolved], steps: int) -> Examination:
        """Tests (i) to (v) at the multiples of the critical rates at which models are examined."""
        control, recipe = cls(model, contexts), Recipe(optimizer="sgd", steps=steps)
        return examine(control, None, contexts, control.critical_rates(contexts, recipe), recipe)

    def critical_rates(self, contexts: list[Resolved], recipe: Recipe) -> np.ndarray:
        """The learning rates (C,) at which the gap is zero after T steps."""

        def final_gap(log_rate: float, context: Resolved) -> float:
            return self._path(context, np.full(recipe.steps, np.exp(log_rate)))["logit_gap"][-1]

        return np.exp([brentq(final_gap, -20, 5, (context,)) for context in contexts])

    def run(self, model, contexts: list[Resolved], learning_rates: np.ndarray, recipe: Recipe) -> xr.Dataset:
        """As :meth:`phantomlib.runs.store.Store.run`: rates (C, n), or schedules (C, n, T)."""
        rates = learning_rates if learning_rates.ndim == 3 else learning_rates[..., None]
        each = [
            [self._path(context, np.broadcast_to(rate, recipe.steps)) for rate in of_context]
            for context, of_context in zip(contexts, rates, strict=True)
        ]
        fields = {name: np.array([[path[name] for path in row] for row in each]) for name in each[0][0]}
        return as_runs(fields, contexts, rates, "readout-alone")

    def _path(self, context: Resolved, rates: np.ndarray) -> dict[str, np.ndarray]:
        """What is recorded of one replica (T + 1,) under rates (T,)."""
        E, h, c, k = self.E, self.hidden[context.id], context.correct_id, context.competitor_id
        z_0, square = E @ h, h @ h  # (V,)
        norms, pair = (E**2).sum(1), E @ E[[c, k]].T  # (V,) and (V, 2) at step 0
        a, rows, previous = np.zeros(len(E)), [], None
        for rate in [*rates, 0.0]:
            log_p = log_softmax(z_0 - a * square)
            p = np.exp(log_p)
            lengths = np.sqrt(norms - 2 * a * z_0 + a**2 * square)
            moved = pair - np.outer(a, z_0[[c, k]]) - np.outer(z_0, a[[c, k]]) + square * np.outer(a, a[[c, k]])
            g = moved / lengths[:, None] / lengths[[c, k]]  # (V, 2)
            overlap_part = contrast(torch.tensor(g)).numpy()
            p_0, part_0 = previous or (np.nan * p, np.nan * p)
            previous = p, overlap_part
            rows.append(
                {
                    "logit_gap": (z_0 - a * square)[c] - (z_0 - a * square)[k],
                    "cross_entropy": -log_p[c],
                    "phi": p @ overlap_part,
                    "phi_readout_part": (p - p_0) @ (overlap_part + part_0) / 2,
                    "phi_geometry_part": (overlap_part - part_0) @ (p + p_0) / 2,
                    "overlap": g[k, 0],
                    "readout_drift": np.sqrt(a @ a * square / norms.sum()),
                }
            )
            a = a + rate * (p - (np.arange(len(p)) == c))
        return {name: np.array([row[name] for row in rows]) for name in rows[0]}
