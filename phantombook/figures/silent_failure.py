"""Figures of silent failures: losses, ranks, gaps, their two kinds, the phase diagram."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phantombook.figures.palette import COMPETITOR, CORRECT, REFERENCE
from phantombook.figures.style import WIDTH, log_ticks, small_multiples


def count_map(counts, title: str, unit: str, largest: int, across: str) -> Axes:
    """Heat map of counts with the numbers written in; rows are models, columns learning rates.

    Args:
        counts: pandas table of whole numbers.
        title: of the panel.
        unit: what is counted, for the colour bar.
        largest: upper end of the colour scale, so that panels compare.
        across: label of the columns.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(counts) + 1.2), layout="constrained")
    sns.heatmap(
        counts,
        annot=True,
        fmt="d",
        cmap="cividis",
        vmin=0,
        vmax=largest,
        cbar_kws={"label": unit},
        ax=axes,
        linewidths=0.5,
    )
    axes.set_title(title)
    axes.tick_params(axis="y", rotation=0)
    axes.set(xlabel=across, ylabel="")
    return axes


MODES = {
    "kinematic": "#0072B2",
    "structural": "#D55E00",
    "overtakes": "#BBBBBB",
    "other": "#E6C200",
    "diverged": "#000000",
}


def failure_modes(table, threshold: float) -> Figure:
    """Every run as a point: final signal against the fall of the drag, coloured by failure mode, one panel per model.

    Args:
        table: pandas table with columns model, mode, signal (final) and drag_fall.
        threshold: fall of the drag that separates the modes.
    """
    names = list(dict.fromkeys(table.model))
    figure, panels = small_multiples(len(names), height=2.3)
    for axes, name in zip(panels, names, strict=True):
        rows = table[table.model == name]
        axes.axvline(threshold, color=REFERENCE, linewidth=1)
        for mode, colour in MODES.items():
            chosen = rows[rows["mode"] == mode]
            axes.plot(chosen.drag_fall, chosen.signal, "o", markersize=3, color=colour, alpha=0.8, label=mode)
        axes.set_title(name)
        axes.set_xscale("symlog", linthresh=1e-3)
        axes.set_xticks([-1e-1, -1e-3, 1e-3, 1e-1], ["−0.1", "−.001", ".001", "0.1"])
    present = [m for m in MODES if (table["mode"] == m).any()]
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=MODES[m], label=m) for m in present]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(present), fontsize="small")
    figure.supxlabel("fall of the drag, $D_0 - D_T$", fontsize="medium")
    figure.supylabel("final signal $S_T$", fontsize="medium")
    return figure


def phase_diagram(table, boundary: float, band: tuple[float, float]) -> Figure:
    """Outcome of every run over overlap and kinematic number, on the boundary that was predicted before.

    Args:
        table: pandas table with columns overlap, number (kinematic number), order (final Φ over its bound) and rank.
        boundary: predicted critical kinematic number.
        band: its interval.
    """
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharex=True, sharey=True, layout="constrained")
    for axes in panels:
        axes.axhspan(*band, color="#DDDDDD", zorder=0)
        axes.axhline(boundary, color=REFERENCE, zorder=1)
        axes.set(yscale="log", xlabel="overlap $g_{ck}$ at step 0")
    style = {"s": 16, "linewidths": 0, "zorder": 2}
    near_zero = mpl.colors.SymLogNorm(0.05, vmin=-1, vmax=1)  # most runs end there, and their sign matters
    dots = panels[0].scatter(table.overlap, table.number, c=table.order, cmap="coolwarm", norm=near_zero, **style)
    scale = figure.colorbar(dots, ax=panels[0], label=r"final $\Phi\,/\sqrt{1-g_{ck}^2}$", location="top", shrink=0.9)
    scale.set_ticks([-1, -0.2, 0, 0.2, 1], labels=["−1", "−0.2", "0", "0.2", "1"])
    scale.ax.minorticks_off()
    ranks = panels[1].scatter(
        table.overlap,
        table.number,
        c=table["rank"],
        cmap="viridis_r",
        norm=mpl.colors.LogNorm(1, 10, clip=True),
        **style,
    )
    bar = figure.colorbar(ranks, ax=panels[1], label="final rank of the correct token", location="top", shrink=0.9)
    bar.set_ticks([1, 2, 5, 10], labels=["1", "2", "5", "10+"])
    bar.ax.minorticks_off()
    log_ticks(panels[0].yaxis)  # shared
    panels[0].set_ylabel("kinematic number $N$ of the run")
    return figure


def watched_trainings(runs: dict) -> Figure:
    """Loss and logit gap of trainings watched by :class:`phantomlib.trainer.PhantomCallback`.

    Args:
        runs: by label, the Trainer's log (columns step, loss) and the callback's frame (columns step, gap).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    right.axhline(0, color=REFERENCE, linewidth=1)
    for (label, (log, seen)), colour in zip(runs.items(), (COMPETITOR, CORRECT), strict=False):
        losses = log.dropna(subset=["loss"])
        left.plot(losses.step, losses.loss, "o-", markersize=3, color=colour, label=label)
        right.plot(seen.step, seen.gap, "o-", markersize=3, color=colour)
    left.set(xlabel="step", ylabel="loss (nat)")
    left.set_title("What the Trainer logs")
    left.legend(title="learning rate", fontsize="small", title_fontsize="small")
    right.set(xlabel="step", ylabel="logit gap $\\Delta$ (nat)")
    right.set_title("What the callback adds")
    return figure
