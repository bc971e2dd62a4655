"""Exponents against power laws."""

import numpy as np
import pytest
import xarray as xr

from phantomlib.transition import slowing


@pytest.mark.parametrize(("nu", "slope"), [(0.5, None), (1.0, None), (0.0, -1.0)])
def test_slowing_finds_the_exponent_of_a_power_law(nu, slope):
    multiple = np.array([1.02, 1.06, 1.2, 1.5, 3.0, 10.0])
    step = 20 / multiple if slope else 20 * (multiple - 1) ** -nu
    times = xr.Dataset(
        {"step": (("context", "multiple"), step[None]), "consumed": (("context", "multiple"), (step * multiple)[None])},
        {"multiple": multiple},
    )
    found = slowing.slowing_down(times)
    if slope:
        assert found.slope[0] == pytest.approx(-1) and found.spread[0] == pytest.approx(1)
        assert 0 < found.exponent[0] < 0.15  # regular: what is left is the range fitted
    else:
        assert found.exponent[0] == pytest.approx(nu)


def test_slowing_is_nan_without_a_crossing():
    times = xr.Dataset(
        {name: (("context", "multiple"), [[np.nan, 20, 15, 10]]) for name in ("step", "consumed")},
        {"multiple": [0.25, 1.02, 1.2, 1.5]},
    )
    found = slowing.slowing_down(times)
    assert np.isnan(found.spread[0]) and np.isnan(found.slope[0]) and np.isfinite(found.exponent[0])


def test_regular_exponent_is_that_of_a_constant_product():
    multiple = np.array([0.25, 1.02, 1.06, 1.2, 1.5, 3.0])
    times = xr.Dataset({n: (("context", "multiple"), (20 / multiple)[None]) for n in ("step", "consumed")})
    found = slowing.slowing_down(times.assign_coords(multiple=multiple))
    assert slowing.regular_exponent(multiple) == pytest.approx(found.exponent[0])
