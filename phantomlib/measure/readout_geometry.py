"""The geometry of a readout: how the overlaps of all token pairs are distributed (the bulk)."""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from phantomlib.measure.contexts import Resolved
from phantomlib.measure.order_parameter import normalise, spectrum


def sample_overlaps(E: Tensor, pairs: int, seed: int = 0) -> np.ndarray:
    """Overlaps g_ij (n,) of random pairs of distinct rows of a readout ``E`` (V, d); n is at most ``pairs``."""
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.randint(len(E), (2, pairs), generator=generator).to(E.device)
    keep = i != j
    e = normalise(E)
    return (e[i[keep]] * e[j[keep]]).sum(-1).cpu().numpy()


def pair_overlaps(E: Tensor, contexts: list[Resolved]) -> np.ndarray:
    """Overlap g_ck (C,) of the two tokens of each context, from a readout ``E`` (V, d)."""
    e = normalise(E.detach().double())
    return np.array([float(e[c.correct_id] @ e[c.competitor_id]) for c in contexts])


def coherence(E: Tensor) -> float:
    """``B = d ⟨g_ij²⟩`` over all pairs i ≠ j of rows of a readout ``E`` (V, d): 1 for isotropic directions."""
    e = normalise(E.detach().double())
    squares = (e.mT @ e).square().sum()  # sum of g_ij² over all i, j, from the (d, d) Gram matrix
    v, d = e.shape
    return float(d * (squares - (e.square().sum(1) ** 2).sum()) / (v * (v - 1)))


def readout_statistics(E: Tensor, *, pairs: int = 200_000, seed: int = 0) -> dict[str, float]:
    """The overlap distribution of a readout ``E`` (V, d) in six numbers, all dimensionless.

    ``coherence``: see :func:`coherence`. ``mean_overlap``: over all pairs i ≠ j, exact. ``common_share``: share of the
    rows' squared length along their mean direction, exact. ``top_share``: largest eigenvalue of ρ at uniform p.
    ``skew`` and
    ``kurtosis`` (excess) of the overlaps, from ``pairs`` random pairs drawn by ``seed``.
    """
    e = normalise(E.detach().double())
    v = len(e)
    total = e.sum(0)  # |total|² is the sum of g_ij over all i, j
    gram = e.mT @ e
    sampled = sample_overlaps(E.detach().double(), pairs, seed)
    return {
        "coherence": coherence(E),
        "mean_overlap": float((total @ total - e.square().sum()) / (v * (v - 1))),
        "common_share": float(total @ gram @ total / (total @ total) / v),
        "top_share": float(spectrum(gram / v)[0]),
        "skew": float(stats.skew(sampled)),
        "kurtosis": float(stats.kurtosis(sampled)),
    }
