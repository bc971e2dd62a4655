r"""The order parameter: how far a predicted distribution has committed to one token over its near-synonym.

With :math:`\hat e_i` the normalised rows of the readout, :math:`g_{ij} = \hat e_i \cdot \hat e_j` and
:math:`p` the next-token distribution,

.. math::

    \rho = \sum_i p_i\, \hat e_i \hat e_i^\top, \qquad
    \Phi = \mathrm{Tr}\,[\rho\,(\Pi_c - \Pi_k)] = \sum_i p_i\,(g_{ci}^2 - g_{ki}^2) = S + D,

    S = (p_c - p_k)(1 - g_{ck}^2), \qquad D = \sum_{i \ne c,k} p_i\,(g_{ci}^2 - g_{ki}^2).

One vector added to all rows changes no prediction, and every overlap. What it does not change is how far the expected
readout :math:`\bar e = \sum_i p_i E_i` lies along the axis from k to c:

.. math::

    M = \frac{2\,(E_c - E_k) \cdot (\bar e - (E_c + E_k)/2)}{|E_c - E_k|^2} = (p_c - p_k) + \sum_{i \ne c,k} p_i\, m_i,

with :math:`m_i` the same expression of :math:`E_i` in place of :math:`\bar e`: 1 for c, -1 for k. M is linear in p.

All functions stay on the device of what they are given, and compute in its dtype, but at least in single precision.
Source: the abstract of arXiv 2606.07559 for Φ; its exact form is our reconstruction, M is ours (see the book's definitions).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from phantomlib.errors import ParameterError, shown

BLOCK = 8192  # rows of a readout scaled, converted or normalised at a time


@dataclass(frozen=True)
class Decomposition:
    """Φ and its parts at one moment; plain floats, dimensionless."""

    phi: float  #: the order parameter, ``signal + drag``
    signal: float  #: commitment to the correct token over the competitor
    drag: float  #: leakage from all other tokens (the bulk)
    overlap: float  #: ``g_ck``, the cosine of the two readout rows
    bulk_mass: float  #: ``1 - p_c - p_k``
    bulk_contrast: float  #: ``drag / bulk_mass``, the mean of ``g_ci**2 - g_ki**2`` over the bulk (nan without bulk)
    m: float  #: the order parameter that no shift changes, ``p_c - p_k + m_drag`` (nan if both rows are equal)
    m_drag: float  #: leakage from all other tokens onto the axis from the competitor to the correct token


def _converted(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """``x`` in ``dtype``, by default its own, but float32 if it is shorter: eight bits have not even a comparison."""
    return x.to(dtype or (x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32))


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has no double precision, such as Apple's."""
    try:
        return torch.zeros((), dtype=torch.float64, device=device).dtype
    except (TypeError, RuntimeError):
        return torch.float32


def normalise(E: Tensor) -> Tensor:
    """Rows of a readout ``E`` (..., V, d) scaled to length one; a zero row has no direction and stays zero."""
    E = _converted(E)
    E = E / _powers_of_two(E)
    return E / E.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(E.dtype).tiny)


def _powers_of_two(E: Tensor) -> Tensor:
    """The power of two (..., V, 1) below each row's largest number, 1 for a zero row; dividing by it is exact."""
    largest = E.abs().amax(-1, keepdim=True)
    mantissa, _ = torch.frexp(largest)  # in [0.5, 1)
    return torch.where(largest > 0, largest / (2 * mantissa), 1.0)


def row_norms(E: Tensor) -> Tensor:
    """Lengths (..., V) of the rows of ``E`` (..., V, d), those too whose squares would vanish or overflow."""
    E = _converted(E)
    norms = E.norm(dim=-1)
    usual = (norms > torch.finfo(E.dtype).tiny ** 0.25) & (norms < torch.finfo(E.dtype).max ** 0.25)
    if E.device.type == "cpu" and usual.all():  # elsewhere, to ask would be to wait
        return norms
    scale = _powers_of_two(E)
    return torch.where(usual, norms, (E / scale).norm(dim=-1) * scale[..., 0])


def overlaps(E: Tensor, ids: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Cosines ``g`` (V, n) between all rows of a readout ``E`` (V, d) and its rows ``ids`` (n,).

    Zero where a row is zero; computed in ``dtype``, by default that of ``E``.
    """
    # one product of E with a few columns is much faster than the transposed one, or one per column
    columns = normalise(_converted(E[ids], dtype)).T  # (d, n)
    found = []
    for rows in E.split(BLOCK):  # no copy of E at a time
        rows = _converted(rows, dtype)
        found.append(rows @ columns / row_norms(rows).clamp_min(torch.finfo(rows.dtype).tiny)[:, None])
    return torch.cat(found)


def contrast(g: Tensor, exponent: int = 2) -> Tensor:
    """Contrast ``h_i = g_ci**exponent - g_ki**exponent`` (..., V) from overlaps ``g`` (..., V, 2) with (c, k)."""
    return g[..., 0] ** exponent - g[..., 1] ** exponent


def split(p: Tensor, h: Tensor, c: Tensor, k: Tensor, g_ck: Tensor, exponent: int = 2) -> tuple[Tensor, Tensor]:
    """Signal and drag, two tensors (...), from ``p`` and ``h`` (..., V), ids and ``g_ck`` (...)."""
    pair = torch.stack([c, k], -1)
    p_pair, h_pair = torch.take_along_dim(p, pair, -1), torch.take_along_dim(h, pair, -1)
    # A token whose row is zero has no direction, so no projector. Told by its contrast: exactly 0 instead of 1 or -1.
    gone = p_pair * ((h_pair == 0) & (g_ck == 0)[..., None])
    signal = (p_pair[..., 0] - p_pair[..., 1]) * (1 - g_ck**exponent) - (gone[..., 0] - gone[..., 1])
    drag = (p * h).scatter(-1, pair, 0.0).sum(-1)
    return signal, drag


def along_axis(p: Tensor, x: Tensor, c: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """M and its drag, two tensors (...), from ``p`` (..., V) and the products ``x`` (..., V) of all rows with E_c - E_k.

    One number added to, or multiplied with, all products of a distribution changes nothing. nan if rows c and k are equal.
    """
    pair = torch.stack([c, k], -1)
    p_pair, x_pair = torch.take_along_dim(p, pair, -1), torch.take_along_dim(x, pair, -1)
    bulk, x_c, x_k = p.scatter(-1, pair, 0.0), x_pair[..., 0], x_pair[..., 1]
    # m_i = 2 (x_i - x_k) / (x_c - x_k) - 1, summed over the bulk
    drag = 2 * (bulk * (x - x_k[..., None])).sum(-1) / (x_c - x_k) - bulk.sum(-1)
    return p_pair[..., 0] - p_pair[..., 1] + drag, drag


def invariant(p: Tensor, E: Tensor, c, k) -> tuple[Tensor, Tensor]:
    """The order parameter M that no shift of the readout changes, and its drag: M = (p_c - p_k) + drag.

    From ``p`` (V,), a readout ``E`` (V, d) and the ids ``c`` and ``k``; dimensionless, nan if rows c and k are equal.
    """
    p, ids = _converted(p), torch.tensor([int(c), int(k)], device=p.device)
    dtype = torch.promote_types(p.dtype, _converted(E[:1]).dtype)
    pair = _converted(E[ids], dtype)  # (2, d)
    centre = pair.mean(0)  # taken from all rows: a large common part costs no digits
    scale = _powers_of_two((pair - centre).flatten())
    axis = (pair[0] - pair[1]) / scale  # (d,)
    x = torch.cat([(_converted(rows, dtype) - centre) / scale @ axis for rows in E.split(BLOCK)])  # (V,)
    return along_axis(p, x, *ids)


def decompose(p, E, c: int, k: int, exponent: int = 2) -> Decomposition:
    """Φ = S + D for one distribution.

    Args:
        p: next-token probabilities (V,), array or tensor.
        E: readout (unembedding) matrix (V, d), array or tensor; rows need not be normalised.
        c, k: ids of the correct token and of the competitor.
        exponent: power of the overlap; 2 is the definition, 1 a sensitivity check.

    Raises:
        ParameterError: wrong shapes, ids out of range, ``c == k``, ``p`` not a distribution, or ``E`` not finite.

    Example:
        >>> import phantomlib as ph
        >>> E = [[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]  # three tokens in two dimensions; g_ck = 0.6
        >>> parts = ph.decompose([0.2, 0.5, 0.3], E, c=0, k=1)
        >>> round(parts.signal, 4), round(parts.drag, 4), round(parts.phi, 4)
        (-0.192, -0.192, -0.384)
    """
    p, E = torch.as_tensor(p), torch.as_tensor(E)
    if E.ndim != 2 or p.shape != E.shape[:1]:
        said = f"not {tuple(p.shape)} and {tuple(E.shape)}."
        raise ParameterError(f"decompose needs p of shape (V,) and E of shape (V, d), {said}")
    if c not in range(len(p)) or k not in range(len(p)) or c == k:
        raise ParameterError(f"c={shown(c)} and k={shown(k)} must be two different token ids below V={len(p)}.")
    rounding = torch.finfo(p.dtype).eps if p.is_floating_point() else 0.0
    p = _converted(p) if p.is_floating_point() else p.double()  # a one-hot state written with whole numbers
    if not bool(torch.isfinite(p).all()) or bool((p < 0).any()) or abs(float(p.sum()) - 1) > max(1e-3, rounding):
        raise ParameterError("p must be non-negative and sum to one; apply a softmax to logits first.")
    if not all(bool(torch.isfinite(torch.stack(torch.aminmax(_converted(rows)))).all()) for rows in E.split(BLOCK)):
        raise ParameterError("E holds nan or infinite values; the overlaps are not defined.")
    if isinstance(exponent, bool) or not isinstance(exponent, int) or exponent < 1:
        raise ParameterError(f"exponent is {shown(exponent)}; give 2 (the definition) or 1 (a sensitivity check).")
    ids = torch.tensor([int(c), int(k)], device=p.device)
    g = overlaps(E, ids, p.dtype)  # (V, 2)
    g_ck = g[ids[1], 0]
    signal, drag = split(p, contrast(g, exponent), ids[0], ids[1], g_ck, exponent)
    m, m_drag = invariant(p, E, c, k)
    bulk = float(1 - p[ids[0]] - p[ids[1]])
    mean = float(drag) / bulk if bulk > 0 else torch.nan
    return Decomposition(*(float(value) for value in (signal + drag, signal, drag, g_ck, bulk, mean, m, m_drag)))


def density_matrix(p: Tensor, E: Tensor) -> Tensor:
    """ρ (..., d, d) of probabilities ``p`` (..., V) and readout ``E`` (..., V, d): symmetric, positive, trace one."""
    p = _converted(p)
    dtype = torch.promote_types(p.dtype, _converted(E[..., :1, :]).dtype)
    rho = p.new_zeros((*E.shape[:-2], E.shape[-1], E.shape[-1]), dtype=dtype)
    for some, rows in zip(p.split(BLOCK, -1), E.split(BLOCK, -2), strict=True):  # no copy of E at a time
        e = normalise(rows.to(dtype))
        rho = rho + (e * some[..., None]).mT @ e
    return rho


def order_parameter_by_trace(rho: Tensor, e_c: Tensor, e_k: Tensor) -> Tensor:
    """Φ as the trace ``Tr[ρ(Π_c - Π_k)]`` from ρ (..., d, d) and two unit vectors (..., d): the definition itself."""
    return torch.einsum("...i,...ij,...j->...", e_c, rho, e_c) - torch.einsum("...i,...ij,...j->...", e_k, rho, e_k)


def trace_residual(p: Tensor, E: Tensor, c: int, k: int) -> float:
    """Absolute difference between ``signal + drag`` and the trace formula, for ``p`` (V,) and ``E`` (V, d)."""
    rho = density_matrix(p, E)
    by_trace = order_parameter_by_trace(rho, *normalise(E[[c, k]].to(rho.dtype)))
    return abs(decompose(p, E, c, k).phi - float(by_trace))


def largest_residual(runs) -> float:
    """Largest difference between Φ from ρ and ``signal + drag`` at the snapshots of recorded runs."""
    return float(abs(runs.phi_trace.values - runs.phi.sel(step=runs.snapshot.values).values).max())


def spectrum(rho: Tensor) -> Tensor:
    """Eigenvalues of ρ (..., d), largest first; they are non-negative and sum to one."""
    return torch.linalg.eigvalsh(rho).flip(-1).clamp_min(0.0)
