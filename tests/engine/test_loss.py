"""The losses against their definitions in numpy, float64, also where a probability is nearly one."""

import numpy as np
import pytest
import torch

from phantomlib.engine.loss import LOSSES, training_loss


def by_definition(z, c, k, weight) -> dict[str, float]:
    z = z.astype(np.longdouble)
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    others = sum(p[i] for i in range(len(z)) if i != k)
    pair, ce = np.log1p(np.exp(z[k] - z[c])), -np.log(p[c])
    return {
        "cross-entropy": ce,
        "margin": ce + weight * pair,
        "unlikelihood": ce - weight * np.log(others),
        "gap": weight * pair,
    }


@pytest.mark.parametrize("lead", [0.0, 3.0, 40.0])  # nats by which the competitor leads; at 40, 1 - p_k is 0 in float64
def test_losses_are_what_they_are_said_to_be(lead):
    z = np.random.default_rng(3).normal(size=(6, 11))
    c, k = np.arange(6), np.arange(6) + 4
    z[np.arange(6), k] += lead
    expected = [by_definition(*row, 0.7) for row in zip(z, c, k, strict=True)]
    for name in LOSSES:
        found = training_loss(torch.tensor(z), torch.tensor(c), torch.tensor(k), name, 0.7)
        np.testing.assert_allclose(found, [float(row[name]) for row in expected], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite_differences(name):
    z = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    c, k = torch.tensor([0, 2, 5]), torch.tensor([1, 6, 3])
    assert torch.autograd.gradcheck(lambda z: training_loss(z, c, k, name, 1.3), z)
    assert torch.autograd.gradgradcheck(lambda z: training_loss(z, c, k, name, 1.3), z)  # sharpness needs it
