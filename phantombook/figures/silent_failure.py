"""Figures of silent failures: how many there are, and of which kind."""

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import WIDTH, legend_above, small_multiples
from phantomlib.transition.silent_failure import DRAG_FALLS, DRAG_WORSENS

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


def failure_modes(table) -> Figure:
    """Every run as a point: the final drag against its fall over ``|Φ_0|``, coloured by failure mode, one panel per model.

    ``table``: of :func:`phantomlib.transition.silent_failure.failure_table`, with the column model. Silent failures whose drag
    falls by more than ``DRAG_FALLS`` are ringed; the corner of structural failures is shaded.
    """
    names = list(dict.fromkeys(table.model))
    figure, panels = small_multiples(len(names), height=2.3)
    for axes, name in zip(panels, names, strict=True):
        rows = table[table.model == name].assign(share=lambda rows: rows.drag_fall / rows.phi_start.abs())
        axes.scatter(rows.share, rows.drag, c=list(rows["mode"].map(MODES)), s=9, linewidths=0, alpha=0.8)
        ringed = rows[rows["mode"].isin(["kinematic", "structural"]) & (rows.drag_fall > DRAG_FALLS)]
        axes.scatter(ringed.share, ringed.drag, s=36, facecolors="none", edgecolors="black", linewidths=0.7)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        axes.axvline(DRAG_WORSENS, color=REFERENCE, linewidth=0.8)
        axes.set_title(name)
        axes.set_xscale("symlog", linthresh=1e-2)
        axes.set_xticks([-1, -1e-2, 1e-2, 1], ["−1", "−.01", ".01", "1"])
    (left, right), (bottom, top) = panels[0].get_xlim(), panels[0].get_ylim()
    right, bottom = max(right, 2.0), min(bottom, -0.1 * top)
    for axes in panels:  # the shared limits are final now
        axes.set(xlim=(left, right), ylim=(bottom, top))
        axes.fill_between(
            [DRAG_WORSENS, right], bottom, 0, color=MODES["structural"], alpha=0.15, linewidth=0, zorder=0
        )
    legend_above(figure, {mode: colour for mode, colour in MODES.items() if mode in set(table["mode"])})
    figure.supxlabel(r"fall of the drag over $|\Phi_0|$, $(D_0 - D_T)/|\Phi_0|$", fontsize="medium")
    figure.supylabel("drag at the end, $D_T$", fontsize="medium")
    return figure
