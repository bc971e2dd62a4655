"""What all figures share: dots with their means."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import gmean

from phantombook.figures.figure_data import drawn
from phantombook.figures.style import dots_and_means

COLOURS = {"a": "#0072b2", "b": "#d55e00"}


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("mean, of_two", [(gmean, 2.0), (np.median, 2.5)])
def test_every_value_is_a_dot_and_every_mean_a_bar(scale, mean, of_two):
    table = pd.DataFrame({"kind": [*"uuuvv"], "model": [*"aabba"], "N": [1.0, 4.0, 9.0, 2.0, np.nan]})
    figure, axes = plt.subplots()
    axes.set_yscale(scale)
    dots_and_means(axes, table, "N", x="kind", hue="model", colours=COLOURS, mean=mean)
    points = drawn(figure).round(6)
    plt.close(figure)
    dots, bars = points[points.series != "#000000"], points[points.series == "#000000"]
    blue, orange = COLOURS.values()
    assert dots[["series", "x", "y"]].to_numpy().tolist() == [
        [blue, -0.2, 1], [blue, -0.2, 4], [orange, 0.2, 9], [orange, 1.2, 2],
    ]  # fmt: skip
    assert bars[["x", "y"]].to_numpy().tolist() == [[-0.2, of_two], [0.2, 9], [1.2, 2]]


def test_models_at_places_of_their_own_stand_in_the_middle():
    figure, axes = plt.subplots()
    table = pd.DataFrame({"model": [*"aab"], "N": [1.0, 4.0, 3.0]})
    dots_and_means(axes, table, "N", x="model", hue="model", colours=COLOURS)
    assert set(drawn(figure).x) == {0, 1} and [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]
    plt.close(figure)
