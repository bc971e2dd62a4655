"""Overlap statistics against brute force over all pairs."""

import pytest
import torch
from scipy import stats

from phantomlib import readout_geometry


def readout(v=60, d=12, common=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(v, d, generator=generator, dtype=torch.float64) + common


@pytest.mark.parametrize("common", [0.0, 0.5, 3.0])
def test_overlap_statistics_equal_brute_force_over_all_pairs(common):
    E = readout(common=common)
    e = E / E.norm(dim=1, keepdim=True)
    off = (e @ e.T)[~torch.eye(len(e), dtype=torch.bool)].numpy()
    found = readout_geometry.readout_statistics(E, pairs=400_000)
    mean = e.mean(0) / e.mean(0).norm()
    assert found["coherence"] == readout_geometry.coherence(E) == pytest.approx(12 * (off**2).mean(), rel=1e-12)
    assert found["mean_overlap"] == pytest.approx(off.mean(), rel=1e-9)
    assert found["common_share"] == pytest.approx(float(((e @ mean) ** 2).mean()), rel=1e-12)
    assert found["top_share"] == pytest.approx(float(torch.linalg.eigvalsh(e.T @ e / len(e))[-1]), rel=1e-12)
    assert found["skew"] == pytest.approx(stats.skew(off), abs=0.03)
    assert found["kurtosis"] == pytest.approx(stats.kurtosis(off), abs=0.1)


def test_coherence_is_one_for_isotropic_rows_and_d_for_parallel_ones():
    assert readout_geometry.coherence(readout(v=4000, d=16, common=0.0)) == pytest.approx(1.0, abs=0.02)
    assert readout_geometry.coherence(torch.outer(torch.rand(30) + 0.1, torch.rand(8))) == pytest.approx(8.0, rel=1e-6)
