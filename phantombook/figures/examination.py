"""The figure of the tests against spontaneous symmetry breaking: one row for each criterion."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phantombook.figures.palette import CONTROL, CORRECT, REFERENCE
from phantombook.figures.style import WIDTH

# a ring is seen around a dot of the same value
MARKERS = (
    {"color": CORRECT, "marker": "o", "markersize": 5},
    {"color": CORRECT, "marker": "o", "markersize": 9, "markerfacecolor": "none"},
)


def criteria_board(criteria: list, measured: dict[str, dict], controls: dict[str, dict]) -> Figure:
    """One row per criterion: threshold, the side on which it is met (shaded), and what was measured.

    Args:
        criteria: tuples (test, criterion, label), in order; criteria as in ``claims.Criterion``.
        measured: test -> criterion -> value, by optimiser's label; at most two of them.
        controls: the same of at most three controls, by name.
    """
    figure, rows = plt.subplots(
        len(criteria), 1, figsize=(WIDTH, 0.55 * len(criteria) + 0.6), squeeze=False, layout="constrained"
    )
    markers = dict(zip(measured, MARKERS, strict=False))
    named = {f"{name} (control)": numbers for name, numbers in controls.items()}
    markers |= {name: {"color": CONTROL, "marker": m, "markersize": 6} for name, m in zip(named, "x+2", strict=False)}
    columns = measured | named
    for axes, (test, criterion, label) in zip(rows[:, 0], criteria, strict=True):
        values = {name: numbers[test][criterion.name] for name, numbers in columns.items()}
        finite = [value for value in [*values.values(), criterion.threshold] if np.isfinite(value)]
        low, high = min(0.0, *finite), max(finite)
        margin = 0.06 * (high - low)
        left, right = low - margin, high + margin
        met = (criterion.threshold, right) if criterion.direction == "at least" else (left, criterion.threshold)
        axes.axvspan(*met, color="#D9EFE6", zorder=0)
        axes.axvline(criterion.threshold, color=REFERENCE, linewidth=1.2)
        for name, value in values.items():
            axes.plot(value, 0, linestyle="", clip_on=False, zorder=3, label=name, **markers[name])
        axes.set(xlim=(left, right), ylim=(-1, 1), yticks=[])
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", labelsize="small", pad=1, length=2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(f"{test}: {label}", loc="left", fontsize="small", fontweight="normal", pad=2)
    names = rows[0, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside upper center", ncols=len(columns), fontsize="small")
    return figure
