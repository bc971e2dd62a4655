"""The charts that more than one chapter draws: silent failures, jumps, critical rates, the tests against a broken symmetry."""

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phantombook.figures.palette import CONTROL, CORRECT, REFERENCE
from phantombook.figures.style import LINE, WIDTH, early_steps, legend_above, small_multiples
from phantomlib.transition.silent_failure import DRAG_FALLS, DRAG_WORSENS

MODES = {
    "kinematic": "#0072B2",
    "structural": "#D55E00",
    "overtakes": "#BBBBBB",
    "other": "#E6C200",
    "diverged": "#000000",
}
MARKERS = (  # of the criteria: a ring is seen around a dot of the same value
    {"color": CORRECT, "marker": "o", "markersize": 5},
    {"color": CORRECT, "marker": "o", "markersize": 9, "markerfacecolor": "none"},
)


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


def jump_panels(
    runs: dict[str, xr.Dataset], tables: dict, colours: dict, *, rate: int = 0, behind: int | None = None
) -> Figure:
    """Φ over its bound for every context and seed at one learning rate, jumps ringed; a panel per model.

    Args:
        runs: (context, rate, seed, step) by model.
        tables: jumps by model, with columns context, rate, seed and step.
        colours: by model.
        rate, behind: indices of the rate, and of another that is drawn in grey.
    """
    figure, panels = small_multiples(len(runs), height=2.2)
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        share = run.phi / np.sqrt(1 - run.overlap**2)
        lines = share.stack(run=("context", "seed")).transpose("rate", "step", "run")
        style = {"color": colours[name], "linewidth": 0.9}
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        if behind is not None:
            axes.plot(run.step, lines[behind], color="#BBBBBB", linewidth=0.9)
        axes.plot(run.step, lines[rate], LINE[run.attrs["recipe_method"]], **style)
        jumps = tables[name][tables[name]["rate"] == rate]
        ends = [share.isel(rate=rate).sel(context=j.context, seed=j.seed, step=j.step) for j in jumps.itertuples()]
        axes.plot(jumps.step, ends, "o", markersize=4, markerfacecolor="none", **style | {"markeredgewidth": 0.9})
        axes.set_title(name)
        early_steps(axes, int(run.step[-1]))
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(r"order parameter $\Phi\,/\sqrt{1-g_{ck}^2}$", fontsize="medium")
    return figure


def readout_shares(table, colours: dict, threshold: float, titles: dict[str, str]) -> Figure:
    """Size of every jump against the part of it that the readout carries, one panel per optimiser, as ``titles`` names them.

    ``table``: jumps, with columns optimizer, model, share_of_bound and readout_share; ``threshold``: smallest median share.
    """
    figure, panels = small_multiples(len(titles), height=2.5)
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        rows = table[table.optimizer == optimizer]
        axes.axhline(threshold, color=REFERENCE, linewidth=1)
        axes.axhline(1, color=REFERENCE, linewidth=0.8, linestyle=":")
        axes.scatter(rows.share_of_bound, rows.readout_share, c=list(rows.model.map(colours)), s=16, lw=0, alpha=0.8)
        axes.set_title(title)
    legend_above(figure, {name: colours[name] for name in dict.fromkeys(table.model)})
    figure.supxlabel(r"size of the jump, $|\Delta\Phi|\,/\sqrt{1-g_{ck}^2}$", fontsize="medium")
    panels[0].set_ylabel("readout part / jump")
    return figure


def contexts_and_means(
    table, y: str, means, colours: dict, titles: dict[str, str], label: str, *, line: float, band: float = 0.0
) -> Figure:
    """Contexts as dots in rising order, beside them a model's mean as a square; one panel per optimiser.

    Args:
        table: columns optimizer, model and ``y``; a row for every context.
        means: columns optimizer, model, mean and, for bars of error, low and high.
        colours: by model.
        titles, label: of the panels, by optimiser; of the axis.
        line, band: a level drawn in grey, and half the width of a shaded band around it.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.2), sharey=True, layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        if band:
            axes.axhspan(line - band, line + band, color="#E6E6E6", zorder=0)
        axes.axhline(line, color=REFERENCE, linewidth=0.8)
        here, of_models = table[table.optimizer == optimizer], means[means.optimizer == optimizer]
        for place, row in enumerate(of_models.itertuples()):
            colour, values = colours[row.model], here[here.model == row.model][y].sort_values()
            spread = place + np.linspace(-0.28, -0.08, len(values))
            axes.plot(spread, values, "o", markersize=3, color=colour, alpha=0.7)
            errors = [[row.mean - row.low], [row.high - row.mean]] if "low" in means else None
            axes.errorbar(place + 0.15, row.mean, yerr=errors, fmt="s", color=colour, markersize=5, capsize=3)
        axes.set(title=title, xticks=range(len(of_models)), xticklabels=of_models.model)
        plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    panels[0].set_ylabel(label)
    return figure


def criteria_board(claim, measured: dict[str, dict], controls: dict[str, dict]) -> Figure:
    """One row per criterion: threshold, the side on which it is met (shaded), and what was measured.

    Args:
        claim: of the ledger; the criteria are those of its tests.
        measured: test -> criterion -> value, by optimiser's label; at most two of them.
        controls: the same of at most three controls, by name.
    """
    criteria = [(test, criterion) for test, bounds in claim.tests.items() for criterion in bounds.values()]
    figure, rows = plt.subplots(
        len(criteria), 1, figsize=(WIDTH, 0.55 * len(criteria) + 0.6), squeeze=False, layout="constrained"
    )
    markers = dict(zip(measured, MARKERS, strict=False))
    named = {f"{name} (control)": numbers for name, numbers in controls.items()}
    markers |= {name: {"color": CONTROL, "marker": m, "markersize": 6} for name, m in zip(named, "x+2", strict=False)}
    columns = measured | named
    for axes, (test, criterion) in zip(rows[:, 0], criteria, strict=True):
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
        label = criterion.name.replace("_", " ")
        axes.set_title(f"{test}: {label}", loc="left", fontsize="small", fontweight="normal", pad=2)
    names = rows[0, 0].get_legend_handles_labels()
    figure.legend(*names, loc="outside upper center", ncols=len(columns), fontsize="small")
    return figure
