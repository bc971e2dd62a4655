"""What all figures of the book share beside their colours: style, width, panels, and labels of lines and of log axes.

Full fine-tuning is drawn solid, LoRA dashed.
"""

import math
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

LINE = {"full": "-", "lora": "--"}
WIDTH = 7.2  # inches: the width of the text column


def use_style() -> None:
    """Set the style, and SVG output that is the same in every run."""
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
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # outside a notebook there is no inline backend to tell
        pass


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
        subs = (
            (1,) if decades > 2.5 else (1, 3) if decades > 1.2 else (1, 2, 5) if decades > 0.5 else (1, 1.5, 2, 3, 4, 6)
        )
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _) -> str:
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = f"{value / 10**exponent:g}"
    return f"$10^{{{exponent}}}$" if factor == "1" else rf"${factor}\!\cdot\!10^{{{exponent}}}$"
