"""Measured critical rates that follow a known law."""

import numpy as np
import pandas as pd

from phantomlib.critical.predictors import LADDER


def planted(intercept=0.1, slope=0.2, seed=0):
    """Five models whose measured rates exceed ``velocity`` by a known law; ``third_order`` is exact up to noise."""
    rng = np.random.default_rng(seed)
    gap = -rng.uniform(0.3, 2.5, 50)
    guess = rng.uniform(1, 2, 50)
    measured = guess * np.exp(intercept + slope * np.abs(gap))
    exact = measured * np.exp(rng.normal(scale=1e-4, size=50))
    names = np.repeat(list("abcde"), 10)
    columns = {name: guess for name in LADDER} | {"third_order": exact, "first_steps": np.full(50, np.nan)}
    return pd.DataFrame({"model": names, "context": np.tile(range(10), 5), "gap": gap, "measured": measured} | columns)
