"""Figures of blind predictions and their errors."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from phantombook.figures.escaping import in_figure
from phantombook.figures.palette import FAMILIES, REFERENCE
from phantombook.figures.style import WIDTH, label_line


def blind_errors(comparison, band: float, titles: dict[str, str]) -> Figure:
    """Error of a blind prediction by context, one panel per optimiser.

    Args:
        comparison: pandas table with columns optimizer, context, gap, predicted and measured.
        band: in per cent, shaded around zero.
        titles: of the panels, by optimiser.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.0), sharey=True, layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        table = comparison[comparison.optimizer == optimizer]
        axes.axhspan(-band, band, color="#E6E6E6", zorder=0)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        error = 100 * (table.predicted / table.measured - 1)
        axes.plot(table.gap.abs(), error, "o", color=FAMILIES["llama"], markersize=5)
        mean = 100 * np.expm1(np.log(table.predicted / table.measured).mean())
        axes.axhline(mean, color=FAMILIES["llama"], linestyle="--", linewidth=1)
        axes.set(title=title, xlabel=r"initial logit gap $|\Delta_0|$ (nat)")
        axes.margins(x=0.15)
    panels[0].set_ylabel("predicted over measured, error (%)")
    for axes, optimizer in zip(panels, titles, strict=True):  # the shared limits are final now
        table = comparison[comparison.optimizer == optimizer]
        _name_points(axes, table.gap.abs(), 100 * (table.predicted / table.measured - 1), table.context)
    return figure


def _name_points(axes, x, y, names) -> None:
    """Name the points from the largest error down, where there is room beside other points and their names."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    named: list[str] = []
    for index in y.abs().sort_values(ascending=False).index:
        taken = [j for j in y.index if j != index and (j in named or x[j] > x[index])]  # a name stands to the right
        if all(
            abs(x[index] - x[j]) > 0.2 * (right - left) or abs(y[index] - y[j]) > 0.06 * (top - bottom) for j in taken
        ):
            label_line(axes, x[index], y[index], in_figure(names[index]), "#4D4D4D", fontsize="x-small")
            named.append(index)


def left_out_errors(errors, band: float, colours: dict, titles: dict[str, str]) -> Figure:
    """Leave-one-out errors by architecture: contexts as dots, geometric means as squares.

    Args:
        errors: rows of :func:`phantomlib.critical.scaling.leave_one_out` of one predictor and calibration, with a
            column optimizer.
        band: in per cent, shaded around zero.
        colours: by model.
        titles: of the panels, by optimiser.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.1), sharey=True, layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        table = errors[errors.optimizer == optimizer]
        axes.axhspan(-band, band, color="#E6E6E6", zorder=0)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        names = list(dict.fromkeys(table.model))
        for place, name in enumerate(names):
            error = table[table.model == name].error
            axes.plot(
                place + np.linspace(-0.28, -0.08, len(error)),
                100 * np.expm1(error.sort_values()),
                "o",
                markersize=3,
                color=colours[name],
                alpha=0.7,
            )
            axes.plot(place + 0.15, 100 * np.expm1(error.mean()), "s", markersize=5, color=colours[name])
        axes.set(title=title, xticks=range(len(names)), xticklabels=names)
        axes.tick_params(axis="x", rotation=30)
    panels[0].set_ylabel("predicted over measured, error (%)")
    return figure
