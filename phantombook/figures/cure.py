"""Figures of the losses that look at the competitor: each beside cross-entropy."""

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import small_multiples

METHODS = {"full": "full fine-tuning", "lora": "LoRA"}


def ratios_by_loss(table, thresholds: dict[str, float], colours: dict) -> Figure:
    """Quantities under each loss over the same under cross-entropy; dots are contexts, bars a model's geometric mean.

    Args:
        table: tidy, with columns method, loss, model, and a column of ratios (positive or nan) for each quantity.
        thresholds: of the ledger, by quantity; each quantity gets a row with one panel per method.
        colours: by model.
    """
    methods = [method for method in METHODS if method in set(table.method)]
    places = [(quantity, method) for quantity in thresholds for method in methods]
    figure, panels = small_multiples(len(places), columns=len(methods), height=2.4, sharey="row")
    for axes, (quantity, method) in zip(panels, places, strict=True):
        axes.axhline(1, color=REFERENCE, linewidth=0.8)
        axes.axhline(thresholds[quantity], color=REFERENCE, linewidth=0.9, linestyle=":")
        _dots_and_means(axes, table[table.method == method], quantity, colours)
        axes.set(yscale="log", title=METHODS[method])
        axes.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_locator(mpl.ticker.NullLocator())
        if method == methods[0]:
            axes.set_ylabel(f"{quantity},\nin units of cross-entropy's")
    _name_models(figure, colours)
    return figure


def numbers_by_loss(table, colours: dict) -> Figure:
    """Critical kinematic number under each loss, with that loss's own first velocity; one panel per method.

    Args:
        table: tidy, with columns method, loss, model and number (positive or nan).
        colours: by model.
    """
    methods = [m for m in METHODS if m in set(table.method)]
    figure, panels = small_multiples(len(methods), columns=len(methods), height=2.8)
    for axes, method in zip(panels, methods, strict=True):
        axes.axhline(1, color=REFERENCE, linewidth=0.8)
        _dots_and_means(axes, table[table.method == method], "number", colours)
        axes.set(title=METHODS[method])
    panels[0].set_ylabel("critical kinematic number $N_c$")
    _name_models(figure, colours)
    return figure


def _dots_and_means(axes, table, column: str, colours: dict) -> None:
    """One place per loss on the axis, the models side by side within it."""
    losses, names = list(dict.fromkeys(table.loss)), [n for n in colours if n in set(table.model)]
    for place, loss in enumerate(losses):
        for shift, name in zip(np.linspace(-0.32, 0.32, len(names)), names, strict=True):
            chosen = table[(table.loss == loss) & (table.model == name)][column].dropna()
            chosen = chosen[chosen > 0]
            x = place + shift
            axes.plot(np.full(len(chosen), x), chosen, "o", markersize=2.5, color=colours[name], alpha=0.7)
            if len(chosen):
                mean = np.exp(np.log(chosen).mean())
                axes.plot([x - 0.06, x + 0.06], [mean, mean], color="black", linewidth=1.6)
    axes.set_xticks(range(len(losses)), [loss.replace("-", "-\n") for loss in losses])
    axes.set_xlim(-0.5, len(losses) - 0.5)


def _name_models(figure: Figure, colours: dict) -> None:
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=c, label=n) for n, c in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
