"""The geometry of a readout ``E`` (V, d): how the overlaps g_ij of all token pairs are distributed (the bulk)."""

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from phantomlib.contexts import Resolved
from phantomlib.order_parameter import BLOCK, normalise, spectrum, widest


def sample_overlaps(E: Tensor, pairs: int, seed: int = 0) -> np.ndarray:
    """Overlaps (n,), float64, of random pairs of distinct rows; n is at most ``pairs``."""
    generator = torch.Generator().manual_seed(seed)
    i, j = torch.randint(len(E), (2, pairs), generator=generator).to(E.device)
    i, j = i[i != j], j[i != j]
    return torch.cat([_overlap(E, *some) for some in zip(i.split(BLOCK), j.split(BLOCK), strict=True)]).double().numpy()


def pair_overlaps(E: Tensor, contexts: list[Resolved]) -> np.ndarray:
    """Overlap g_ck (C,) of the two tokens of each context."""
    c, k = torch.tensor([(c.correct_id, c.competitor_id) for c in contexts], device=E.device).reshape(-1, 2).T
    return _overlap(E, c, k).double().numpy()


def _overlap(E: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Overlaps (n,) of the rows ``i`` and ``j`` (n,), computed as exactly as E's device can; on the CPU."""
    e_i, e_j = (normalise(E.detach()[rows].to(widest(E.device))) for rows in (i, j))
    return (e_i * e_j).sum(-1).cpu()


def coherence(E: Tensor) -> float:
    """``B = d ⟨g_ij²⟩`` over all pairs i ≠ j of rows: 1 for isotropic directions."""
    (v, d), (_, gram, fourth) = E.shape, _sums(E)
    return float(d * (gram.square().sum() - fourth) / (v * (v - 1)))


def readout_statistics(E: Tensor, *, pairs: int = 200_000, seed: int = 0) -> dict[str, float]:
    """The overlap distribution in six numbers, all dimensionless.

    ``coherence``: see :func:`coherence`. ``mean_overlap``: over all pairs i ≠ j, exact. ``common_share``: share of the
    rows' squared length along their mean direction, exact. ``top_share``: largest eigenvalue of ρ at uniform p. ``skew``
    and ``kurtosis`` (excess) of the overlaps, from ``pairs`` random pairs drawn by ``seed``.
    """
    v, (total, gram, _) = len(E), _sums(E)
    sampled = sample_overlaps(E, pairs, seed)
    return {
        "coherence": coherence(E),
        "mean_overlap": float((total @ total - gram.trace()) / (v * (v - 1))),
        "common_share": float(total @ gram @ total / (total @ total) / v),
        "top_share": float(spectrum(gram / v)[0]),
        "skew": float(stats.skew(sampled)),
        "kurtosis": float(stats.kurtosis(sampled)),
    }


def _sums(E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of the unit rows: their sum (d,), whose square is the sum of g_ij; their Gram matrix (d, d), whose square is the
    sum of g_ij²; and the sum of g_ii², which counts the rows that are not zero."""
    d = E.shape[1]
    total, gram, fourth = (torch.zeros(n, dtype=widest(E.device), device=E.device) for n in ((d,), (d, d), ()))
    for block in E.detach().split(BLOCK):
        e = normalise(block.to(total.dtype))
        total += e.sum(0)
        gram.addmm_(e.mT, e)
        fourth += e.square().sum(1).square().sum()
    return total, gram, fourth
