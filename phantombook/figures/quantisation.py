"""Figures of quantised copies, each quantity over that of the original."""

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import log_ticks, small_multiples

ROUNDED = "#E69F00"  # of the set of Okabe and Ito, without another meaning; the darker, the later in the list


def rates_by_context(table, kinds: list[str]) -> Figure:
    """Critical rates of quantised copies over those of the original; measured filled, predicted open.

    Args:
        table: tidy, with columns model, optimizer, context, kind, measured and predicted (ratios); one panel per model and
            optimiser.
        kinds: of quantisation, in the order in which they are drawn.
    """
    contexts = list(dict.fromkeys(table.context))
    figure, panels, cases = _panels(table, 2.7)
    for axes, rows in zip(panels, cases, strict=True):
        axes.axhline(1, color=REFERENCE, linewidth=0.8)
        for x, colour, one in _side_by_side(rows, kinds):
            place = one.context.map(contexts.index) + x
            axes.plot(place, one.measured, "o", markersize=4, color=colour)
            axes.plot(
                place, one.predicted, "o", markersize=7, markerfacecolor="none", color=colour, markeredgewidth=0.8
            )
        axes.set(yscale="log", xlim=(-0.6, len(contexts) - 0.4))
        axes.set_xticks(range(len(contexts)), contexts, rotation=45, ha="right", rotation_mode="anchor")
    log_ticks(panels[0].yaxis)  # shared
    figure.supylabel("critical rate over the original's", fontsize="medium")
    _name_kinds(figure, kinds)
    return figure


def changes_by_quantity(table, kinds: list[str], accuracy: float) -> Figure:
    """Size of the relative change of every quantity; dots are contexts, bars their median.

    Args:
        table: tidy, with columns model, optimizer, context, kind, quantity and change (per cent, nan where undefined).
        kinds: of quantisation, in the order in which they are drawn.
        accuracy: of a measured critical rate, in per cent.
    """
    quantities = list(dict.fromkeys(table.quantity))
    figure, panels, cases = _panels(table, 2.7)
    for axes, rows in zip(panels, cases, strict=True):
        axes.axhline(accuracy, color=REFERENCE, linewidth=0.9, linestyle=":")
        for x, colour, one in _side_by_side(rows, kinds):
            place = one.quantity.map(quantities.index) + x
            axes.plot(place, one.change.clip(lower=1e-3), "o", markersize=2.8, color=colour, alpha=0.7)
            for number, quantity in enumerate(quantities):
                middle = one.change[one.quantity == quantity].median()
                axes.plot([number + x - 0.1, number + x + 0.1], [middle] * 2, color="black", linewidth=1.6)
        axes.set(yscale="log", xlim=(-0.6, len(quantities) - 0.4))
        axes.set_xticks(range(len(quantities)), quantities, rotation=25, ha="right", rotation_mode="anchor")
    log_ticks(panels[0].yaxis)
    figure.supylabel("change, in per cent of the original", fontsize="medium")
    _name_kinds(figure, kinds)
    return figure


def _panels(table, height: float) -> tuple[Figure, list[Axes], list]:
    """A row of panels per model, a column per optimiser, and the rows of the table for each panel."""
    models, optimizers = (list(dict.fromkeys(table[name])) for name in ("model", "optimizer"))
    places = [(model, optimizer) for model in models for optimizer in optimizers]
    figure, panels = small_multiples(len(places), columns=len(optimizers), height=height)
    for axes, place in zip(panels, places, strict=True):
        axes.set_title(", ".join(place))
    return figure, panels, [table[(table.model == model) & (table.optimizer == o)] for model, o in places]


def _side_by_side(rows, kinds: list[str]):
    """Of every kind: how far beside the middle of its place it stands, its colour, its rows."""
    for x, colour, kind in zip(np.linspace(-0.25, 0.25, len(kinds)), _colours(kinds), kinds, strict=True):
        yield x, colour, rows[rows.kind == kind]


def _colours(kinds: list[str]) -> list[tuple]:
    return sns.dark_palette(ROUNDED, n_colors=len(kinds) + 1, reverse=True)[:-1]


def _name_kinds(figure: Figure, kinds: list[str]) -> None:
    handles = [
        mpl.lines.Line2D([], [], marker="o", linestyle="", color=colour, label=kind)
        for colour, kind in zip(_colours(kinds), kinds, strict=True)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
