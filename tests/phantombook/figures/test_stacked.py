"""The narrow form of a figure: every panel keeps the labels that a reader had beside or below it."""

import matplotlib.pyplot as plt
import pytest

from phantombook.figures.stacked import NARROW, in_one_column, letter_panels


@pytest.mark.parametrize("shared", [False, True])
def test_panels_side_by_side_stand_below_each_other_with_their_labels(shared):
    figure, (left, right) = plt.subplots(1, 2, sharey=shared, layout="constrained")
    left.set(xlabel="rate", ylabel="loss")
    right.set(xlabel="step", ylabel="" if shared else "gap")
    in_one_column(figure)
    figure.canvas.draw()
    assert figure.get_figwidth() == NARROW
    assert left.get_position().y0 > right.get_position().y1
    assert [axes.get_xlabel() for axes in (left, right)] == ["rate", "step"]
    assert [axes.get_ylabel() for axes in (left, right)] == ["loss", "loss" if shared else "gap"]
    plt.close(figure)


def test_a_legend_gets_as_many_columns_as_fit():
    figure, axes = plt.subplots(1, 2, layout="constrained")
    for name in ("a long name of a model", "another long name of one"):
        axes[0].plot([0, 1], label=name)
    figure.legend(loc="outside upper center", ncols=2)
    in_one_column(figure)
    [legend] = figure.legends
    assert legend._ncols == 1 and [t.get_text() for t in legend.get_texts()][0] == "a long name of a model"
    plt.close(figure)


def test_panels_get_their_letters_once_and_keep_them_below_each_other():
    figure, panels = plt.subplots(2, 2, layout="constrained")
    panels[0, 1].set_title("loss")
    figure.colorbar(panels[0, 0].imshow([[0, 1]]), ax=panels[0, 0])
    letter_panels(figure)
    letter_panels(figure)
    in_one_column(figure)
    figure.canvas.draw()
    from_the_top = sorted(panels.flat, key=lambda axes: -axes.get_position().y0)
    assert [axes.get_title() for axes in from_the_top] == ["(a)", "(b) loss", "(c)", "(d)"]
    plt.close(figure)
