"""Figures of jumps: where they happen, and how much of them is readout."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import LINE, early_steps, legend_above, small_multiples


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
