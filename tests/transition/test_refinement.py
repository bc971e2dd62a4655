"""Refinement against power laws, and against gradient flow."""

import numpy as np
import pytest
import xarray as xr
from toys import Direct

from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.transition import refinement


@pytest.mark.parametrize("slope", [-1.0, 0.0, -0.5])
def test_refinement_slope_of_a_power_law(slope):
    n = np.array([1, 8, 16, 32])
    largest = xr.DataArray([0.3 * n**slope], {"context": ["a"], "refinement": n}, ["context", "refinement"])
    assert refinement.refinement_slopes(largest).values == pytest.approx([slope])


def test_refinement_slope_needs_enough_refinements():
    largest = xr.DataArray([[1.0, 2.0]], {"context": ["a"], "refinement": [1, 2]}, ["context", "refinement"])
    with pytest.raises(ParameterError, match="at least as many"):
        refinement.refinement_slopes(largest)


def test_refinement_of_sgd_approaches_gradient_flow(jumping):
    model, contexts, *_ = jumping
    refined = refinement.refine_jumps(
        Direct(), model, contexts, [0.05, 0.05], Recipe(optimizer="sgd", steps=3), (1, 8, 16, 32)
    )
    slopes = refinement.refinement_slopes(refinement.largest_steps(refined))
    assert slopes.values == pytest.approx([-1, -1], abs=0.1)
