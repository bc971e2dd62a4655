"""Figures of silent failures: how many there are, and of which kind."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import WIDTH, legend_above, small_multiples

MODES = {
    "kinematic": "#0072B2",
    "structural": "#D55E00",
    "overtakes": "#BBBBBB",
    "other": "#E6C200",
    "diverged": "#000000",
}


def count_map(counts, title: str, across: str, contexts: int) -> Figure:
    """Heat map of how many of the ``contexts`` did something, with the numbers written in.

    ``counts``: pandas table of whole numbers; rows are models, columns learning rates, labelled ``across``.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(counts) + 1.2), layout="constrained")
    style = {"cmap": "cividis", "vmin": 0, "vmax": contexts, "linewidths": 0.5, "cbar_kws": {"label": "contexts"}}
    sns.heatmap(counts, ax=axes, annot=True, fmt="d", **style)
    axes.tick_params(axis="y", rotation=0)
    axes.set(title=title, xlabel=across, ylabel="")
    return figure


def failure_modes(table, threshold: float) -> Figure:
    """Every run as a point: final signal against the fall of the drag, coloured by failure mode, one panel per model.

    ``table``: columns model, mode, signal (final) and drag_fall; ``threshold``: the fall that separates the modes.
    """
    names = list(dict.fromkeys(table.model))
    figure, panels = small_multiples(len(names), height=2.3)
    for axes, name in zip(panels, names, strict=True):
        rows = table[table.model == name]
        axes.axvline(threshold, color=REFERENCE, linewidth=1)
        axes.scatter(rows.drag_fall, rows.signal, c=list(rows["mode"].map(MODES)), s=9, linewidths=0, alpha=0.8)
        axes.set_title(name)
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_xticks([-1e-1, -1e-3, 1e-3, 1e-1], ["−0.1", "−.001", ".001", "0.1"])
    legend_above(figure, {mode: colour for mode, colour in MODES.items() if mode in set(table["mode"])})
    figure.supxlabel("fall of the drag, $D_0 - D_T$", fontsize="medium")
    figure.supylabel("final signal $S_T$", fontsize="medium")
    return figure
