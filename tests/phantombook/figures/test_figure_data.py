"""What a page offers to download is what its figures draw."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from phantombook.figures.figure_data import drawn


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_lines_and_points(axes):
    axes.set_title("gpt2-s")
    axes.plot([1, 2], [3.0, np.nan], label="signal")
    axes.plot([1, 2], [5, 6], color="#D55E00")
    axes.axhline(0.5)
    axes.scatter([7, 8], [9, 10], c=[0.1, 0.2])
    found = drawn(axes.figure)
    assert set(found.panel) == {"gpt2-s"} and found.number.tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert found[found.series == "signal"].y.tolist() == pytest.approx([3, np.nan], nan_ok=True)
    assert found[found.series == "#d55e00"].y.tolist() == [5, 6]
    assert found[found.number == 3].y.tolist() == [0.5, 0.5]
    assert found[found.kind == "points"][["x", "y", "value"]].to_numpy().tolist() == [[7, 9, 0.1], [8, 10, 0.2]]


def test_bars_histograms_and_cells():
    figure, (bars, lying, histogram, cells) = plt.subplots(1, 4)
    bars.bar([0, 1], [2, 3], label="mass")
    lying.barh([0, 1], [4, 5])
    histogram.hist([0.1, 0.2, 0.8], bins=[0, 0.5, 1])
    cells.pcolormesh([[1, 2, 3], [4, 5, 6]])
    cells.set_xticks([0.5, 1.5, 2.5], ["a", "b", "c"])
    cells.set_yticks([0.5, 1.5], ["u", "v"])
    found = {panel: rows for panel, rows in drawn(figure).groupby("panel")}
    plt.close(figure)
    assert found["panel 1"][["series", "x", "y"]].to_numpy().tolist() == [["mass", 0, 2], ["mass", 1, 3]]
    assert found["panel 2"][["x", "y"]].to_numpy().tolist() == [[4, 0], [5, 1]]
    assert found["panel 3"][["x", "y"]].to_numpy().tolist() == [[0.25, 2], [0.75, 1]]
    assert found["panel 4"][["x", "y", "value"]].to_numpy()[[0, 5]].tolist() == [["a", "u", 1], ["c", "v", 6]]
