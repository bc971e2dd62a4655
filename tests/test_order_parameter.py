"""The order parameter against its definition by brute force in float64, and against states whose answer is known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import Largest
from refused import refused

from phantomlib import order_parameter
from phantomlib.errors import ParameterError


@st.composite
def states(draw):
    """(p, E, c, k): peaked or flat distributions over random readouts with rows of very different lengths."""
    V, d = draw(st.integers(2, 30)), draw(st.integers(1, 12))
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    temperature, common = draw(st.floats(0.01, 30)), draw(st.floats(0, 5))
    p = (torch.randn(V, generator=g, dtype=torch.float64) / temperature).softmax(0)
    E = torch.randn(V, d, generator=g, dtype=torch.float64) + common * torch.randn(d, generator=g, dtype=torch.float64)
    E = E * torch.logspace(-3, 3, V, dtype=torch.float64)[:, None]
    c, k = draw(st.permutations(range(V)))[:2]
    return p, E, c, k


def by_brute_force(p, E, c, k):
    """Tr[rho (Pi_c - Pi_k)] with d x d matrices, one token at a time."""
    e = [row / np.sqrt((row**2).sum()) for row in np.asarray(E)]
    rho = sum(float(p_i) * np.outer(e_i, e_i) for p_i, e_i in zip(p, e, strict=True))
    return float(np.trace(rho @ (np.outer(e[c], e[c]) - np.outer(e[k], e[k]))))


@given(states())
def test_phi_is_the_trace_and_its_parts_are_the_sums_of_the_definition(state):
    p, E, c, k = state
    e = E / E.norm(dim=1, keepdim=True)
    g = (e @ e.T).numpy()
    drag = sum(float(p[i]) * (g[c, i] ** 2 - g[k, i] ** 2) for i in range(len(p)) if i not in (c, k))
    parts = order_parameter.decompose(p, E, c, k)
    assert abs(parts.phi - by_brute_force(p, E, c, k)) < 1e-12
    assert abs(parts.phi - (parts.signal + parts.drag)) < 1e-15
    assert abs(parts.signal - float(p[c] - p[k]) * (1 - g[c, k] ** 2)) < 1e-12
    assert abs(parts.drag - drag) < 1e-12
    assert abs(parts.overlap - g[c, k]) < 1e-12
    assert abs(parts.bulk_mass - float(1 - p[c] - p[k])) < 1e-15
    if parts.bulk_mass > 1e-6:
        assert abs(parts.bulk_contrast * parts.bulk_mass - drag) < 1e-12
    assert abs(parts.phi) <= math.sqrt(max(0.0, 1 - parts.overlap**2)) + 1e-7  # sqrt turns rounding 1e-16 into 1e-8


@given(states())
def test_symmetries_and_the_value_at_certainty(state):
    p, E, c, k = state
    one, other = order_parameter.decompose(p, E, c, k), order_parameter.decompose(p, E, k, c)
    assert (one.signal, one.drag, one.phi) == pytest.approx((-other.signal, -other.drag, -other.phi), abs=1e-13)
    assert one.overlap == pytest.approx(other.overlap, abs=1e-14)
    certain = torch.eye(len(p), dtype=p.dtype)[c]
    parts = order_parameter.decompose(certain, E, c, k)
    assert parts.phi == pytest.approx(1 - parts.overlap**2, abs=1e-12)
    assert parts.drag == 0 and parts.bulk_mass == 0 and math.isnan(parts.bulk_contrast)
    noise = np.random.default_rng(0).normal(size=(E.shape[1], E.shape[1]))
    turned = torch.linspace(0.1, 9, len(E), dtype=E.dtype)[:, None] * E @ torch.from_numpy(np.linalg.qr(noise)[0])
    assert order_parameter.decompose(p, turned, c, k).phi == pytest.approx(one.phi, abs=1e-12)


@given(states())
def test_density_matrix_is_a_state(state):
    p, E, c, k = state
    rho = order_parameter.density_matrix(p, E)
    eigenvalues = order_parameter.spectrum(rho)
    assert (rho - rho.T).abs().max() < 1e-15
    assert abs(float(rho.trace()) - 1) < 1e-12
    assert torch.linalg.eigvalsh(rho).min() > -1e-12
    assert (eigenvalues.diff() <= 0).all() and abs(float(eigenvalues.sum()) - 1) < 1e-11
    assert abs(float((eigenvalues**2).sum()) - float((rho @ rho).trace())) < 1e-12
    e = order_parameter.normalise(E)
    by_trace = float(order_parameter.order_parameter_by_trace(rho, e[c], e[k]))
    assert by_trace == pytest.approx(order_parameter.decompose(p, E, c, k).phi, abs=1e-12)


def test_a_case_done_by_hand():
    # rows at 0, 60 and 90 degrees: g_ck = 1/2, and the bulk row lies at 90 degrees from c and 30 from k
    E = torch.tensor([[2.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 3.0]], dtype=torch.float64)
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    parts, plain = order_parameter.decompose(p, E, 0, 1), order_parameter.decompose(p, E, 0, 1, exponent=1)
    assert (parts.signal, parts.drag, parts.bulk_contrast) == pytest.approx((-0.3 * 0.75, -0.3 * 0.75, -0.75))
    assert (plain.signal, plain.drag) == pytest.approx((-0.3 * 0.5, -0.3 * math.sqrt(0.75)))


@pytest.mark.parametrize("gone", [[], [3], [8], [3, 8]], ids=["neither", "c", "k", "both"])
@pytest.mark.parametrize("exponent", [1, 2])
def test_zero_rows_have_no_direction_and_no_weight(gone, exponent):
    generator = torch.Generator().manual_seed(2)
    p = torch.randn(20, generator=generator, dtype=torch.float64).softmax(0)
    E = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    E[[*gone, 15]] = 0  # and one of the bulk
    e = order_parameter.normalise(E)
    assert torch.isfinite(e).all()
    g, rho = (e @ e.T) ** exponent, order_parameter.density_matrix(p, E)
    assert float(rho.trace()) == pytest.approx(1 - float(p[[*gone, 15]].sum()))
    parts = order_parameter.decompose(p, E, 3, 8, exponent)
    assert parts.phi == pytest.approx(float((p * (g[3] - g[8])).sum()), abs=1e-15)
    if exponent == 2:
        by_trace = float(order_parameter.order_parameter_by_trace(rho, e[3], e[8]))
        assert parts.phi == pytest.approx(by_trace, abs=1e-15)
    if gone:
        expected = float(p[3]) * (gone == [8]) - float(p[8]) * (gone == [3])
        assert parts.signal == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("dtype, scale", [("float32", s) for s in (1e-36, 1e-30, 1e25, 1e30)] + [("float64", 1e-200)])
def test_how_long_the_rows_are_does_not_matter_where_their_squares_vanish_or_overflow(dtype, scale):
    generator = np.random.default_rng(3)
    p, E = generator.dirichlet(np.ones(50)), generator.normal(size=(50, 8))
    lengths = np.where(np.arange(50) % 2, scale, 1.0)[:, None]  # beside rows of ordinary length
    for scaled in (scale * E, lengths * E):
        readout = torch.as_tensor(scaled.astype(dtype))
        parts = order_parameter.decompose(p.astype(dtype), readout, 4, 9)
        assert parts.phi == pytest.approx(by_brute_force(p, E, 4, 9), abs=1e-6)
        e = order_parameter.normalise(readout)
        np.testing.assert_allclose(e.norm(dim=1), 1, atol=1e-6)
        if dtype == "float32":
            cosines = order_parameter.overlaps(readout, torch.tensor([4, 9]))
            np.testing.assert_allclose(cosines, e @ e[[4, 9]].T, atol=1e-5)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 1e-6)])
def test_arrays_and_tensors_of_either_precision(kind, dtype, tolerance):
    generator = np.random.default_rng(3)
    p, E = generator.dirichlet(np.ones(20)), generator.normal(size=(20, 6))
    parts = order_parameter.decompose(kind(p.astype(dtype)), kind(E.astype(dtype)), np.int64(4), 9)
    assert parts.phi == pytest.approx(by_brute_force(p, E, 4, 9), abs=tolerance)
    assert all(type(value) is float for value in vars(parts).values())
    assert order_parameter.decompose(kind([1, 0, 0, 0]), kind(np.eye(4)), 0, 1).phi == 1  # in whole numbers
    readout = torch.as_tensor(E.astype(dtype))  # rows of ordinary length are measured as torch does it
    assert torch.equal(order_parameter.row_norms(readout), readout.norm(dim=-1))
    assert torch.equal(order_parameter.normalise(readout), readout / readout.norm(dim=-1, keepdim=True))


def test_batches_equal_their_elements():
    g = torch.Generator().manual_seed(5)
    p = torch.randn(3, 4, 15, generator=g, dtype=torch.float64).softmax(-1)
    E = torch.randn(3, 4, 15, 6, generator=g, dtype=torch.float64)
    c, k = torch.full((3, 4), 2), torch.arange(12).view(3, 4) + 3
    each = [order_parameter.overlaps(E[i], torch.stack([c[i], k[i]])) for i in np.ndindex(3, 4)]
    g_pair = torch.stack(each).view(3, 4, 15, 2)
    g_ck = torch.take_along_dim(g_pair[..., 0], k[..., None], -1)[..., 0]
    signal, drag = order_parameter.split(p, order_parameter.contrast(g_pair), c, k, g_ck)
    rho = order_parameter.density_matrix(p, E)
    for i, j in np.ndindex(3, 4):
        one = order_parameter.decompose(p[i, j], E[i, j], 2, int(k[i, j]))
        assert (float(signal[i, j]), float(drag[i, j])) == pytest.approx((one.signal, one.drag), abs=1e-14)
        assert torch.allclose(rho[i, j], order_parameter.density_matrix(p[i, j], E[i, j]), atol=1e-15)
        assert torch.allclose(order_parameter.spectrum(rho)[i, j], order_parameter.spectrum(rho[i, j]), atol=1e-14)


@pytest.mark.parametrize("block", [1, 7, 8192])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_block_by_block_it_is_the_dense_formula(block, dtype, monkeypatch):
    monkeypatch.setattr(order_parameter, "BLOCK", block)
    g = torch.Generator().manual_seed(6)
    p = torch.randn(50, generator=g, dtype=torch.float64).softmax(0)
    E = (torch.randn(50, 6, generator=g) * torch.logspace(-3, 3, 50)[:, None]).to(dtype)
    e = E.double() / E.double().norm(dim=1, keepdim=True)
    h = (e @ e[4]) ** 2 - (e @ e[40]) ** 2
    bulk = [i for i in range(50) if i not in (4, 40)]
    parts = order_parameter.decompose(p, E, 4, 40)
    assert parts.phi == pytest.approx(float(p @ h), rel=1e-12)
    assert parts.drag == pytest.approx(float(p[bulk] @ h[bulk]), rel=1e-12)
    assert parts.overlap == pytest.approx(float(e[4] @ e[40]), rel=1e-12)
    rho = order_parameter.density_matrix(p, E)
    torch.testing.assert_close(rho, e.T @ (p[:, None] * e), rtol=1e-12, atol=1e-15)


def test_no_copy_of_the_readout_is_made_in_double_precision(monkeypatch):
    monkeypatch.setattr(order_parameter, "BLOCK", 64)
    g = torch.Generator().manual_seed(7)
    E = torch.randn(2000, 64, generator=g)
    p = torch.randn(2, 2000, generator=g).softmax(-1)
    with Largest(E, p) as made:
        order_parameter.decompose(p[0].double(), E, 3, 1500)
        residual = order_parameter.trace_residual(p[1].double(), E, 9, 4)
    assert residual < 1e-15
    assert max(made.bytes.values()) < E.nbytes / 8


@given(states())
def test_m_is_the_expected_readout_along_the_axis(state):
    p, E, c, k = state
    axis, middle = E[c] - E[k], (E[c] + E[k]) / 2
    along = [float(2 * axis @ (row - middle) / (axis @ axis)) for row in E]
    bulk = [i for i in range(len(p)) if i not in (c, k)]
    size = 1e-12 * (1 + max(map(abs, along)))
    m, drag = map(float, order_parameter.invariant(p, E, c, k))
    assert m == pytest.approx(float(2 * axis @ (p @ E - middle) / (axis @ axis)), abs=size)
    assert drag == pytest.approx(sum(float(p[i]) * along[i] for i in bulk), abs=size)
    assert m == pytest.approx(float(p[c] - p[k]) + drag, abs=1e-15)
    assert float(order_parameter.invariant(p, E, k, c)[0]) == pytest.approx(-m, abs=size)
    one_hots = torch.eye(len(p), dtype=p.dtype)  # linear in p: what it is at each corner says all
    corners = torch.stack([order_parameter.invariant(one_hot, E, c, k)[0] for one_hot in one_hots])
    assert (float(corners[c]), float(corners[k])) == (1, -1)
    assert float(p @ corners) == pytest.approx(m, abs=size)
    parts = order_parameter.decompose(p, E, c, k)
    assert (parts.m, parts.m_drag) == (m, drag)


@pytest.mark.parametrize("block", [7, 8192])
def test_no_shift_of_the_readout_changes_m(block, monkeypatch):
    monkeypatch.setattr(order_parameter, "BLOCK", block)
    g = torch.Generator().manual_seed(8)
    E, a = (torch.randn(n, 6, generator=g, dtype=torch.float64) for n in (50, 1))
    p = torch.randn(4, 50, generator=g, dtype=torch.float64).softmax(1)
    for n in range(4):
        plain = order_parameter.invariant(p[n], E, n, n + 9)
        for readout in (E + 5 * a, 1e30 * (E - a), 2 * E, E + a, E - 9 * a):
            found = order_parameter.invariant(p[n], readout, n, n + 9)
            torch.testing.assert_close(found, plain, rtol=0, atol=1e-13)
    phi = [order_parameter.decompose(p[0], readout, 0, 9).phi for readout in (E, E + 5 * a)]
    assert abs(phi[0] - phi[1]) > 0.01


def test_m_answers_to_the_hidden_state_by_the_fisher_information():
    """grad_h M = 2 F (E_c - E_k) / |E_c - E_k|^2: F is the covariance of the rows under p."""
    g = torch.Generator().manual_seed(9)
    E, h = torch.randn(20, 5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    p, scores = (E @ h).softmax(0), torch.func.jacrev(lambda h: (E @ h).log_softmax(0))(h)
    fisher = scores.T @ (p[:, None] * scores)
    torch.testing.assert_close(fisher, torch.cov(E.T, correction=0, aweights=p))
    found = torch.func.grad(lambda h: order_parameter.invariant((E @ h).softmax(0), E, 3, 11)[0])(h)
    axis = E[3] - E[11]
    torch.testing.assert_close(found, 2 * fisher @ axis / (axis @ axis))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_half_precisions_are_computed_in_single_precision(dtype):
    """As many tokens as large vocabularies have, against the same numbers in double precision."""
    g = torch.Generator().manual_seed(10)
    E = (torch.randn(262_144, 16, generator=g) + 0.5).to(getattr(torch, dtype))
    p = (2 * torch.randn(262_144, generator=g)).softmax(0).to(torch.bfloat16 if "8" in dtype else E.dtype)
    found = order_parameter.decompose(p, E, 5, 7)
    exact = order_parameter.decompose(p.double(), E.double(), 5, 7)
    assert vars(found) == pytest.approx(vars(exact), abs=2e-6)
    rows = E[:100]
    for function in (order_parameter.normalise, order_parameter.row_norms):
        torch.testing.assert_close(function(rows).double(), function(rows.double()), rtol=1e-5, atol=0)
    rho = order_parameter.density_matrix(p[:100], rows)
    torch.testing.assert_close(rho.double(), order_parameter.density_matrix(p[:100].double(), rows.double()))


P, E = np.full(4, 0.25), np.eye(4)
BAD = {
    "p too short": ((P[:3], E, 0, 1), r"\(3,\)"),
    "p two-dimensional": ((np.full((4, 1), 0.25), E, 0, 1), r"\(4, 1\)"),
    "E one-dimensional": ((P, P, 0, 1), r"\(4,\)"),
    "same token twice": ((P, E, 2, 2), "c=2"),
    "id too large": ((P, E, 0, 4), "V=4"),
    "id negative": ((P, E, -1, 1), "c=-1"),
    "id not whole": ((P, E, 0.5, 1), "c=0.5"),
    "id a word": ((P, E, "shame", 1), "shame"),
    "logits instead of p": ((np.array([3.0, 1.0, -1.0, 0.0]), E, 0, 1), "softmax"),
    "p sums to two": ((P * 2, E, 0, 1), "sum to one"),
    "p with nan": ((np.array([np.nan, 0.5, 0.25, 0.25]), E, 0, 1), "sum to one"),
    "p infinite": ((np.array([np.inf, 0, 0, 0]), E, 0, 1), "sum to one"),
    "E with nan": ((P, np.diag([1, np.nan, 1, 1]), 0, 1), "E"),
    "exponent zero": ((P, E, 0, 1, 0), "exponent is 0"),
    "exponent a word": ((P, E, 0, 1, "2"), "exponent is '2'"),
}


@pytest.mark.parametrize("arguments, named", BAD.values(), ids=BAD)
def test_bad_input_is_named(arguments, named):
    with refused(ParameterError, named):
        order_parameter.decompose(*arguments)
