"""Charts: jumps are marked on the run in which they happen."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

from phantombook.figures.charts import jump_panels
from phantombook.figures.figure_data import drawn


def test_a_ring_lies_on_the_run_of_its_own_seed_and_rate():
    phi = np.arange(24.0).reshape(2, 2, 2, 3) / 100  # (context, rate, seed, step)
    dims = ("context", "rate", "seed", "step")
    run = xr.Dataset(
        {"phi": (dims, phi), "overlap": (dims, np.full_like(phi, 0.6))},
        {"context": ["a", "b"], "seed": [3, 5], "step": [0, 1, 2]},
        {"recipe_method": "lora"},
    )
    jumps = pd.DataFrame({"context": ["b", "a"], "rate": [1, 0], "seed": [5, 3], "step": [2, 1]})
    figure = jump_panels({"m": run}, {"m": jumps}, {"m": "#0072b2"}, rate=1, behind=0)
    lines = [points[["x", "y"]].to_numpy() for _, points in drawn(figure).groupby("number")]
    plt.close(figure)
    np.testing.assert_allclose(lines.pop(), [[2, phi[1, 1, 1, 2] / 0.8]])  # the jump at the other rate is not marked
    assert len(lines) == 1 + 4 + 4  # zero, four runs in grey, four in colour
    np.testing.assert_allclose(lines[5][:, 1], phi[0, 1, 0] / 0.8)
