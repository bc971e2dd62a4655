"""Figures of silent failures: losses, ranks, gaps, their two kinds, the phase diagram."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phantombook.figures.escaping import in_figure
from phantombook.figures.palette import COMPETITOR, CORRECT, LOSS, REFERENCE
from phantombook.figures.style import WIDTH, label_line, log_ticks, small_multiples


def loss_and_rank(run: xr.Dataset) -> Figure:
    """The silent failure in one picture: cross-entropy falls while the correct token stays behind its competitor.

    Args:
        run: one replica, variables over step.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.7), layout="constrained")
    left.plot(run.step, run.cross_entropy, color=LOSS)
    left.set(xlabel="step", ylabel="cross-entropy (nat)")
    left.set_title("What training shows")
    correct, competitor = str(run.correct.values), str(run.competitor.values)
    right.plot(run.step, run.p_competitor, color=COMPETITOR)
    right.plot(run.step, run.p_correct, color=CORRECT)
    right.set(xlabel="step", ylabel="probability of the next token", ylim=(0, None))
    last = run.isel(step=-1)
    label_line(right, float(last.step), float(last.p_competitor), f"“{in_figure(competitor)}”", COMPETITOR)
    label_line(right, float(last.step), float(last.p_correct), f"“{in_figure(correct)}”", CORRECT)
    right.set_title("What the model would say")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def gap_trajectories(runs: dict[str, xr.Dataset], colours: dict, is_silent: dict[str, xr.DataArray]) -> Figure:
    """Logit gap of every replica against its cross-entropy, one panel per model; silent failures are coloured."""
    figure, panels = small_multiples(len(runs), height=2.3)
    for axes, (name, ds) in zip(panels, runs.items(), strict=True):
        axes.axhline(0, color=REFERENCE, linewidth=1)
        for index in np.ndindex(ds.diverged_step.shape):
            cell = dict(zip(ds.diverged_step.dims, index, strict=True))
            one, failed = ds.isel(cell), bool(is_silent[name].isel(cell))
            style = (
                {"color": colours[name], "alpha": 0.8, "zorder": 3} if failed else {"color": "#BBBBBB", "alpha": 0.6}
            )
            axes.plot(one.cross_entropy, one.logit_gap, linewidth=0.9, **style)
        axes.set_title(name)
        axes.set_ylim(-5, 5)
    panels[0].invert_xaxis()
    figure.supxlabel("cross-entropy (nat), falling to the right", fontsize="medium")
    figure.supylabel("logit gap $\\Delta = z_c - z_k$ (nat)", fontsize="medium")
    return figure


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


def drag_over_time(table, threshold: float) -> Figure:
    """Change of the drag along every silent failure, one panel per kind.

    Args:
        table: pandas table with columns model, context, rate, mode (kinematic or structural), step and drag_change.
        threshold: fall of the drag that separates the kinds.
    """
    kinds = [mode for mode in ("kinematic", "structural") if (table["mode"] == mode).any()]
    figure, panels = small_multiples(len(kinds), columns=2, height=2.6)
    for axes, mode in zip(panels, kinds, strict=True):
        chosen = table[table["mode"] == mode]
        for _, one in chosen.groupby(["model", "context", "rate"]):
            axes.plot(one.step, one.drag_change, color=MODES[mode], linewidth=0.8, alpha=0.6)
        axes.axhline(-threshold, color=REFERENCE, linewidth=1)
        axes.set_title(f"{mode}: {len(chosen.groupby(['model', 'context', 'rate']))} runs")
        axes.set_yscale("symlog", linthresh=threshold)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("change of the drag, $D_t - D_0$", fontsize="medium")
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


def below_and_above(run: xr.Dataset, predicted: float, *, narrow: bool = False) -> Figure:
    """One sentence on both sides of its critical learning rate: the loss shows no edge, what the model says has one.

    The two runs next to the predicted rate are drawn step by step; all runs by their last step. Orange: the competitor
    leads to the end. Blue: the correct token has overtaken.

    Args:
        run: one context, variables over (rate, step); rates on both sides of ``predicted``.
        predicted: critical learning rate, known before the runs; drawn first.
        narrow: the panels one below the other, for a phone.
    """
    grid, size = ((4, 1), (3.6, 9.2)) if narrow else ((2, 2), (WIDTH, 4.9))
    figure, axes = plt.subplots(*grid, figsize=size, layout="constrained")
    (loss, gap), (losses, gaps) = (axes[:2], axes[2:]) if narrow else axes.T
    multiples, steps = run.learning_rate.values / predicted, int(run.step[-1])
    overtakes = (run.logit_gap > 0).any("step").values
    for panel in (losses, gaps):
        panel.axvline(1, color=REFERENCE, linewidth=1.2)
    for panel in (gap, gaps):
        panel.axhline(0, color=REFERENCE, linewidth=0.8, linestyle=":")
    pair = (int((multiples < 1).nonzero()[0][-1]), int((multiples > 1).nonzero()[0][0]))
    for index, linestyle in zip(pair, ("-", (0, (2.5, 2))), strict=True):
        one, share = run.isel(rate=index), multiples[index] - 1
        style = {"color": CORRECT if overtakes[index] else COMPETITOR, "linestyle": linestyle}
        label = f"{abs(share):.0%} {'below' if share < 0 else 'above'} critical"
        loss.plot(one.step, one.cross_entropy, **style, label=label)
        gap.plot(one.step, one.logit_gap, marker=".", **style)
    for panel, variable in ((losses, run.cross_entropy), (gaps, run.logit_gap)):
        last = variable.isel(step=-1).values
        for chosen, colour in ((~overtakes, COMPETITOR), (overtakes, CORRECT)):
            panel.plot(multiples[chosen], last[chosen], "o", color=colour, markersize=5)
    ends = run.logit_gap.isel(step=-1).values
    for index, place in zip(pair, ("top", "bottom"), strict=True):
        word, colour = (run.correct, CORRECT) if overtakes[index] else (run.competitor, COMPETITOR)
        label_line(gap, steps, float(ends[index]), f"“{word.item()}”", colour, va=place)
    reach = 1.5 * np.nanmax(np.abs(ends))
    gaps.set_ylim(-reach, reach)
    gaps.text(0.95, -0.72 * reach, f"“{run.competitor.item()}”\nstill leads", color=COMPETITOR, ha="right", va="center")
    gaps.text(1.05, 0.8 * reach, f"“{run.correct.item()}”\nleads", color=CORRECT, ha="left", va="center")
    losses.text(
        1.05, 0.96, "predicted\nbefore step 1", color=REFERENCE, va="top", transform=losses.get_xaxis_transform()
    )
    loss.legend(loc="lower left", fontsize="small")
    loss.set(xlim=(0, steps), xlabel="step", ylabel="cross-entropy (nat)", title="Two losses")
    shown = run.logit_gap.values[pair, :][:, -1 - steps // 5 :]
    margin = 0.15 * np.ptp(shown)
    gap.set(xlim=(steps - steps // 5 - 0.2, steps + 0.2), ylim=(shown.min() - margin, shown.max() + margin))
    gap.set(ylabel="logit gap $\\Delta$ (nat)", xlabel="step", title="Their last steps: which word leads?")
    losses.set(title="The loss after the last step")
    gaps.set(title="The gap after the last step", xlabel="learning rate / predicted critical rate")
    for panel in (losses, gaps):
        panel.set_xscale("log")
        panel.set_xticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
        panel.minorticks_off()
    for panel in (loss, gap):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
