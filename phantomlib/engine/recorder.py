"""What is recorded at every step of a run, and the labelled dataset that holds it."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor

from phantomlib import order_parameter
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError

# numbers of a readout that are measured at a time: as many as fit the cache of a CPU; elsewhere enough to keep it busy
READ_AT_ONCE, READ_AT_ONCE_ON_DEVICE = 2**18, 2**24
# what is recorded at every step: name -> (unit, meaning)
RECORDED = {
    "cross_entropy": ("nat", "-log p_c"),
    "logit_gap": ("nat", "z_c - z_k"),
    "p_correct": ("1", "probability of the correct token"),
    "p_competitor": ("1", "probability of the competitor"),
    "rank_correct": ("1", "1 + number of tokens with a larger logit than the correct one; 0 after divergence"),
    "phi": ("1", "order parameter, signal + drag"),
    "signal": ("1", "(p_c - p_k)(1 - g_ck^2)"),
    "drag": ("1", "sum over other tokens of p_i (g_ci^2 - g_ki^2)"),
    "overlap": ("1", "g_ck, cosine of the readout rows of the two tokens"),
    "m": ("1", "order parameter that no shift of the readout changes, p_c - p_k + m_drag"),
    "m_drag": ("1", "sum over other tokens of p_i m_i, m_i their place on the axis from k (-1) to c (1)"),
    "readout_drift": ("1", "Frobenius norm of E_t - E_0 relative to that of E_0"),
    "readout_unchanged": ("1", "1 if E_t equals E_0 bit for bit, else 0"),
    "gradient_norm": ("nat", "Euclidean norm of the loss gradient over the trainable parameters; nan at the last step"),
    "phi_readout_part": ("1", "part of phi_t - phi_(t-1) carried by the change of p"),
    "phi_geometry_part": ("1", "part of phi_t - phi_(t-1) carried by the change of the overlaps"),
}
# recorded as well if it is not the cross-entropy
TRAINED_LOSS = {"loss": ("nat", "what is minimised")}


def check_extra(extra: Mapping[str, Callable] | None) -> dict[str, Callable]:
    """Further quantities by name; ParameterError unless the names are new and the values are functions."""
    for name, function in (extra or {}).items():
        free = isinstance(name, str) and name.isidentifier() and name not in RECORDED | TRAINED_LOSS
        if not free or not callable(function):
            said = "give functions of (p, E, c, k) under names that are not recorded already, such as {'entropy': entropy}."
            raise ParameterError(f"extra holds {name!r}: {function!r}; {said}")
    return dict(extra or {})


def recorded(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """What every run of this recipe records: name -> (unit, meaning)."""
    return RECORDED if recipe.loss == "cross-entropy" else RECORDED | TRAINED_LOSS


class Recorder:
    """Writes each step's measurements into tensors (R, T + 1) on the device; nothing is read back before the end."""

    def __init__(self, E_0: Tensor, E: Tensor, c: Tensor, k: Tensor, recipe: Recipe, extra: dict):
        self.E_0, self.E, self.c, self.k, self.recipe, self.extra = E_0, E, c, k, recipe, extra
        self.pair = torch.stack([c, k], -1)  # (R, 2)
        self.trained = E.dim() == 3
        self.norm_0 = order_parameter.row_norms(E_0.reshape(1, -1))  # (1,)
        self.wide = order_parameter.widest(E.device)
        self.norms = E.new_empty(E.shape[:-1])
        self.products = E.new_empty((len(c), len(E_0), 2))  # of the rows of E with those of c and k
        names, n = [*recorded(recipe), *extra], len(recipe.snapshots)
        self.fields = {name: E_0.new_full((len(c), recipe.steps + 1), math.nan) for name in names}
        if n:
            self.fields["spectrum"] = E_0.new_zeros((len(c), n, E_0.shape[1]))
            self.fields["phi_trace"] = E_0.new_zeros((len(c), n))
        self.h: Any = None  # contrast (R, V), once it was measured, with ``g_ck`` (R,) and ``x`` = E (E_c - E_k) (R, V)
        self.previous: tuple[Tensor, Tensor] | None = None  # p and h of the step before

    def record(self, step: int, logits: Tensor, loss: Tensor) -> None:
        """``logits`` (R, V) and the loss that is minimised (R,), of the state before update ``step``."""
        p = logits.softmax(-1)
        z_pair, p_pair = logits.gather(1, self.pair), p.gather(1, self.pair)
        drift, unchanged = self._read_readout()
        signal, drag = order_parameter.split(p, self.h, self.c, self.k, self.g_ck, self.recipe.exponent)
        m, m_drag = order_parameter.along_axis(p, self.x, self.c, self.k)
        values = {
            "cross_entropy": F.cross_entropy(logits, self.c, reduction="none") if "loss" in self.fields else loss,
            "logit_gap": z_pair[:, 0] - z_pair[:, 1],
            "p_correct": p_pair[:, 0],
            "p_competitor": p_pair[:, 1],
            "rank_correct": 1 + (logits > z_pair[:, :1]).sum(1),
            "phi": signal + drag,
            "signal": signal,
            "drag": drag,
            "overlap": self.g_ck,
            "m": m,
            "m_drag": m_drag,
            "readout_drift": drift / self.norm_0,
            "readout_unchanged": unchanged,
        }
        if "loss" in self.fields:
            values["loss"] = loss
        if self.previous is not None:  # Φ is bilinear in p and h, so its change splits exactly
            p_0, h_0 = self.previous
            values["phi_readout_part"] = ((p - p_0) * (self.h + h_0)).sum(1) / 2
            values["phi_geometry_part"] = ((self.h - h_0) * (p + p_0)).sum(1) / 2
        self.previous = p, self.h
        for name, function in self.extra.items():
            values[name] = value = function(p, self._rows(), self.c, self.k)
            if (shape := getattr(value, "shape", None)) != self.c.shape:
                given = type(value).__name__ if shape is None else tuple(shape)
                said = f"gives {given} where one number for each of {len(self.c)} replicas is needed, such as .sum(-1)"
                raise ParameterError(f"extra {name!r} {said}.")
        for name, value in values.items():
            self.fields[name][:, step] = value
        if step in self.recipe.snapshots:
            self._snapshot(self.recipe.snapshots.index(step), p)

    def _read_readout(self) -> tuple[Tensor, Tensor]:
        """Overlaps, where they can have changed; |E - E_0| and whether E equals E_0 bit for bit, (R,) or (1,) for all."""
        E = self.E.view(-1, *self.E_0.shape)  # (R, V, d), or (1, V, d) for all
        on_cpu, geometry = E.device.type == "cpu", self.h is None or self.trained
        if geometry:
            directions = order_parameter.normalise(torch.take_along_dim(self._rows(), self.pair[..., None], -2)).mT
            norms = self.norms.view(len(E), -1)  # (R or 1, V)
        squared = torch.zeros(len(E), dtype=self.wide, device=E.device)
        unchanged = torch.ones(len(E), dtype=torch.bool, device=E.device)
        # a block of rows at a time: a large readout is read once into the cache, and no array of its size is needed
        block = max(1, (READ_AT_ONCE if on_cpu else READ_AT_ONCE_ON_DEVICE) // E[:, 0].numel())
        for start in range(0, len(self.E_0), block):
            here = slice(start, start + block)
            e, e_0 = E[:, here], self.E_0[here]
            if geometry:
                norms[:, here] = order_parameter.row_norms(e)
                self.products[:, here] = e @ directions  # (R, block, 2): E_i·ê_c and E_i·ê_k
            squared += torch.linalg.vector_norm(e - e_0, dim=(1, 2)).to(self.wide).square()
            if not on_cpu or unchanged.any():  # to ask a device would mean to wait for it
                unchanged &= (e == e_0).flatten(1).all(1)
        if geometry:
            g = self.products / self.norms.clamp_min(torch.finfo(E.dtype).tiny)[..., None]  # (R, V, 2)
            self.h = order_parameter.contrast(g, self.recipe.exponent)
            self.g_ck = g[torch.arange(len(g), device=g.device), self.k, 0]
            # E_i·(E_c - E_k) from the same products, in units of the longer of the two rows
            lengths = torch.take_along_dim(norms.expand(len(self.c), -1), self.pair, -1)  # (R, 2)
            lengths = lengths / lengths.amax(-1, keepdim=True)
            self.x = self.products[..., 0] * lengths[:, :1] - self.products[..., 1] * lengths[:, 1:]  # (R, V)
        return squared.sqrt().to(E.dtype), unchanged

    def _rows(self) -> Tensor:
        """E (R, V, d); a frozen readout is the same memory for all."""
        return self.E if self.trained else self.E.expand(len(self.c), -1, -1)

    def _snapshot(self, index: int, p: Tensor) -> None:
        """Eigenvalues of ρ, and Φ from ρ itself: a path that shares nothing with signal and drag."""
        E = self._rows()
        rho = order_parameter.density_matrix(p, E)
        finite = torch.isfinite(rho).flatten(1).all(1)
        gone = torch.where(finite, 0.0, math.nan).to(p.dtype)
        rho = torch.where(finite[:, None, None], rho, 0.0)  # eigenvalue routines refuse nan
        e = order_parameter.normalise(torch.take_along_dim(E, self.pair[..., None], 1)).nan_to_num(0.0)
        self.fields["spectrum"][:, index] = order_parameter.spectrum(rho) + gone[:, None]
        self.fields["phi_trace"][:, index] = order_parameter.order_parameter_by_trace(rho, e[:, 0], e[:, 1]) + gone


def label_runs(joined, shape, contexts, rates, seeds, recipe, extra) -> xr.Dataset:
    """The dataset of recordings ``joined`` by name: (N, T + 1) each, N replicas in the order of ``shape``."""
    meanings = {name: (function.__doc__ or "").strip().partition("\n")[0] for name, function in extra.items()}
    quantities = recorded(recipe) | {name: ("1", meaning) for name, meaning in meanings.items()}
    fields = {name: values.reshape(*shape, *values.shape[1:]) for name, values in joined.items()}
    finite = np.isfinite([fields[name] for name in ("cross_entropy", "logit_gap", "phi")]).all(0)
    alive = np.logical_and.accumulate(finite, axis=-1)  # once diverged, always diverged
    diverged = np.where(alive.all(-1), -1, alive.argmin(-1))
    dims = ("context", "rate", "seed", "step")
    data: dict[str, tuple] = {}
    for name, (unit, meaning) in quantities.items():
        values = np.where(alive, fields[name], np.nan)
        if kind := {"rank_correct": "int32", "readout_unchanged": "int8"}.get(name):
            values = np.nan_to_num(values).astype(kind)
        data[name] = (dims, values, {"units": unit, "long_name": meaning})
    first = {"units": "1", "long_name": "first non-finite step, or -1"}
    data["diverged_step"] = (dims[:3], diverged.astype("int32"), first)
    largest, of_rates = rates if rates.ndim == 2 else rates.max(-1), f"learning rate of {recipe.optimizer}"
    coords = {
        "context": [c.id for c in contexts],
        "seed": list(seeds),
        "step": np.arange(recipe.steps + 1),
        "learning_rate": (("context", "rate"), largest, {"units": "1", "long_name": of_rates}),
        "correct": ("context", [c.context.correct for c in contexts]),
        "competitor": ("context", [c.context.competitor for c in contexts]),
    }
    if rates.ndim == 3:  # the last state has no update
        data["schedule"] = (dims[:2] + dims[3:], np.pad(rates, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan))
    if recipe.snapshots:
        coords["snapshot"] = list(recipe.snapshots)
        data["spectrum"] = ((*dims[:3], "snapshot", "component"), fields["spectrum"], {"units": "1"})
        data["phi_trace"] = ((*dims[:3], "snapshot"), fields["phi_trace"], {"units": "1"})
    attrs = {f"recipe_{key}": value for key, value in recipe.settings().items() if key != "snapshots"}
    return xr.Dataset(data, coords, attrs)
