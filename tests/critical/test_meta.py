"""A simulated step never waits for the device: it runs on one that holds no numbers, where ``item`` and ``cpu`` raise."""

import pytest
import torch

from phantomlib.critical.predictors import _Path
from phantomlib.engine.recipe import Recipe


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("order", [1, 2, 3], ids=["three gradients", "second order", "third order and quadrature"])
def test_a_path_never_asks_the_device_for_a_number(optimizer, order):
    D = torch.randn(order, 3, 1, 20)
    path = _Path(
        torch.zeros(3), [[list(g) for g in of] for of in D], [D[0, 0, 0]], [D[0, 0, 0]], Recipe(optimizer, steps=2)
    )
    assert path.follow(0.1).isfinite().all()
    path.z, path.rows, path.weighted = (tensor.to("meta") for tensor in (path.z, path.rows, path.weighted))
    z = path.follow(0.1)
    assert z.device.type == "meta" and z.shape == (3,) and len(path.factors) == 2
    with pytest.raises(RuntimeError, match="meta"):  # which is how it would fail
        path.final_gap(0.1)
