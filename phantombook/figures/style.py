"""What all figures of the book share beside their colours: style, width, panels, and labels of lines and of log axes.

Full fine-tuning is drawn solid, LoRA dashed.
"""

import math
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from scipy.stats import gmean

LINE = {"full": "-", "lora": "--"}
WIDTH = 7.2  # inches: the width of the text column
LABELLED = {
    2.5: (1,),
    1.2: (1, 3),
    0.5: (1, 2, 5),
    -math.inf: (1, 1.5, 2, 3, 4, 6),
}  # by the decades that an axis spans


def use_style() -> None:
    """Set the style; SVG is the same in every run."""
    sns.set_theme(context="paper", style="ticks", font_scale=1.1)
    mpl.rcParams |= {
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "savefig.bbox": "tight",
        "svg.hashsalt": "phantom",
        "svg.fonttype": "path",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.6,
        "axes.titlesize": "medium",
        "axes.titleweight": "bold",
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }


def small_multiples(n: int, *, columns: int = 3, height: float = 2.1, **options) -> tuple[Figure, list[Axes]]:
    """A grid of ``n`` panels across the text column, with shared axes; returns the figure and its axes in reading order."""
    columns = min(columns, n)
    rows = -(-n // columns)
    chosen: dict[str, Any] = {"sharex": True, "sharey": True, "layout": "constrained"} | options
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows + 0.4), squeeze=False, **chosen)
    flat = list(axes.flat)
    for spare in flat[n:]:
        spare.remove()
    for column in range(columns):  # a panel above a gap carries its own tick labels
        lowest = flat[[i for i in range(n) if i % columns == column][-1]]
        lowest.xaxis.set_tick_params(labelbottom=True)
    return figure, flat[:n]


def label_line(axes: Axes, x, y, text: str, colour, **options) -> None:
    """Write ``text`` at the end of a line, in its colour, instead of a legend."""
    options = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": "small"} | options
    axes.annotate(text, (x, y), color=colour, **options)


def log_ticks(*axes) -> None:
    """Few labels on logarithmic axes (``axes.xaxis``), as plain numbers; call it once the limits are final.

    matplotlib labels every minor tick of an axis that spans less than a decade, and the labels run into each other.
    """
    for axis in axes:
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        axis.set_major_locator(LogLocator(subs=next(subs for least, subs in LABELLED.items() if decades > least)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_plain))


def early_steps(axes: Axes, last: int) -> None:
    """An axis of steps in the logarithm of one plus the step: the first steps, where runs jump, have most room."""
    axes.set_xscale("function", functions=(np.log1p, np.expm1))
    ticks = [step for step in (0, 1, 2, 5, 10, 20, 50, 100) if step <= last]
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()


def _plain(value: float, _) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10**exponent:g}"
    return f"$10^{{{exponent}}}$" if factor == "1" else rf"${factor}\!\cdot\!10^{{{exponent}}}$"


def dots_and_means(axes: Axes, table, y: str, *, x: str, hue: str, colours: dict, mean=gmean) -> None:
    """A dot for every row of a table, and a black bar at the mean of every group.

    Args:
        table: tidy; rows whose ``y`` is undefined (nan) are left out.
        y: column of what is drawn.
        x: column that gives each dot its place on the axis, in the order of the table (or of its categories).
        hue: column whose values stand side by side within a place; the same as ``x`` if there is one at each.
        colours: by ``hue``, in the order in which they stand.
        mean: of a group: the geometric mean, which needs positive values, or for example ``np.median``.
    """
    shown = table.dropna(subset=[y])
    means = shown.groupby([x] if x == hue else [x, hue], sort=False, observed=True, as_index=False)[y].agg(mean)
    place = {
        "x": x, "y": y, "hue": hue, "hue_order": [name for name in colours if name in set(shown[hue])],
        "dodge": x != hue, "jitter": False, "legend": False, "ax": axes,
    }  # fmt: skip
    sns.stripplot(shown, **place, palette=colours, size=3, alpha=0.8)
    sns.stripplot(means, **place, palette=dict.fromkeys(colours, "black"), size=9, marker="_", linewidth=1.6)
    axes.set(xlabel="", ylabel="")


def legend_above(figure: Figure, colours: dict) -> None:
    """A legend above all panels: a dot in its colour for every name."""
    dots = [Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in colours.items()]
    figure.legend(handles=dots, loc="outside upper center", ncols=len(dots), fontsize="small")
