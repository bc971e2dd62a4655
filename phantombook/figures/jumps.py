"""Figures of jumps: where they happen, under which method, and how much of them is readout."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phantombook.figures.palette import REFERENCE, multiple_colours
from phantombook.figures.style import LINE, WIDTH, log_ticks, small_multiples


def jump_trajectories(runs: dict[str, xr.Dataset], marks: dict, multiples, titles: dict[str, str]) -> Figure:
    """Loss, logit gap and Φ of one context at several learning rates, one row per optimiser; jumps are ringed.

    Args:
        runs: (rate, step) of one context, by optimiser.
        marks: table of jumps of that context, by optimiser, with columns rate and step.
        multiples: the rates in units of the critical one.
        titles: label of each row, by optimiser.
    """
    figure, rows = plt.subplots(
        len(runs),
        3,
        figsize=(WIDTH, 2.3 * len(runs) + 0.5),
        squeeze=False,
        sharex=True,
        sharey="col",
        layout="constrained",
    )
    panels = {
        "cross_entropy": "cross-entropy (nat)",
        "logit_gap": r"logit gap $\Delta$ (nat)",
        "phi": r"order parameter $\Phi$",
    }
    for number, (axes_row, (optimizer, run)) in enumerate(zip(rows, runs.items(), strict=True)):
        for axes, (name, label) in zip(axes_row, panels.items(), strict=True):
            if name != "cross_entropy":
                axes.axhline(0, color=REFERENCE, linewidth=0.8)
            for index, colour in enumerate(multiple_colours(multiples)):
                one = run[name].isel(rate=index)
                axes.plot(run.step, one, color=colour, label=f"{multiples[index]:g}")
                steps = marks[optimizer].loc[marks[optimizer]["rate"] == index, "step"]
                if name == "phi":
                    axes.plot(
                        steps, one.sel(step=steps.to_list()), "o", markersize=6, markerfacecolor="none", color=colour
                    )
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
            if number == 0:
                axes.set_title(label)
            if number == len(rows) - 1:
                axes.set_xlabel("step")
        axes_row[0].set_ylabel(titles[optimizer])
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=len(labels),
        fontsize="small",
        title=r"learning rate in units of the critical one, $\eta/\eta_c$",
    )
    return figure


def jumps_by_model(runs: dict[str, xr.Dataset], tables: dict, colours: dict, rate: int, slow: int) -> Figure:
    """Φ over its bound for every context at a large learning rate, jumps ringed, and at a small one in grey; a panel per model.

    Args:
        runs: (context, rate, seed, step) by model.
        tables: jumps by model, with columns context, rate and step.
        colours: by model.
        rate, slow: indices of the two rates.
    """
    figure, panels = small_multiples(len(runs), height=2.2)
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        share = (run.phi / np.sqrt(1 - run.overlap**2)).isel(seed=0)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        axes.plot(run.step, share.isel(rate=slow).values.T, color="#BBBBBB", linewidth=0.9)
        axes.plot(run.step, share.isel(rate=rate).values.T, color=colours[name], linewidth=0.9)
        for _, jump in tables[name][tables[name]["rate"] == rate].iterrows():
            value = float(share.isel(rate=rate).sel(context=jump.context, step=jump.step))
            axes.plot(
                jump.step, value, "o", markersize=4, markerfacecolor="none", color=colours[name], markeredgewidth=0.9
            )
        axes.set_title(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(r"order parameter $\Phi\,/\sqrt{1-g_{ck}^2}$", fontsize="medium")
    return figure


def lora_jump_panels(runs: dict[str, xr.Dataset], tables: dict, colours: dict) -> Figure:
    """Φ over its bound for every context and seed at one learning rate of LoRA, jumps ringed; a panel per model.

    Args:
        runs: (context, rate, seed, step) by model; the first rate is drawn.
        tables: jumps by model, with columns context, rate, seed and step.
        colours: by model.
    """
    figure, panels = small_multiples(len(runs), height=2.2)
    for axes, (name, run) in zip(panels, runs.items(), strict=True):
        share = (run.phi / np.sqrt(1 - run.overlap**2)).isel(rate=0)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        axes.plot(
            run.step,
            share.stack(run=("context", "seed")).transpose("step", "run").values,
            LINE["lora"],
            color=colours[name],
            linewidth=0.8,
        )
        for _, jump in tables[name][tables[name]["rate"] == 0].iterrows():
            value = float(share.sel(context=jump.context, seed=jump.seed, step=jump.step))
            axes.plot(
                jump.step, value, "o", markersize=4, markerfacecolor="none", color=colours[name], markeredgewidth=0.9
            )
        axes.set_title(name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(r"order parameter $\Phi\,/\sqrt{1-g_{ck}^2}$", fontsize="medium")
    return figure


def onset_against_sharpness(table, colours: dict, size: float, titles: dict[str, str]) -> Figure:
    """Largest single step of Φ of every run against its learning rate in units of the edge of stability, one panel per optimiser.

    Args:
        table: pandas table with columns optimizer, model, edge (η λ_max / 2), largest (step over bound) and jumped.
        colours: by model.
        size: smallest step of a jump over the bound.
        titles: by optimiser.
    """
    figure, panels = plt.subplots(
        1, len(titles), figsize=(WIDTH, 3.1), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (optimizer, title) in zip(panels[0], titles.items(), strict=True):
        axes.axhline(size, color=REFERENCE, linewidth=1, linestyle=":")
        axes.axvline(1, color=REFERENCE, linewidth=1)
        axes.annotate(
            "edge of stability",
            (1, 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize="small",
            color=REFERENCE,
        )
        for name, rows in table[table.optimizer == optimizer].groupby("model", sort=False):
            for jumped, face in ((False, "none"), (True, colours[name])):
                chosen = rows[rows.jumped == jumped]
                axes.plot(
                    chosen.edge,
                    chosen.largest,
                    "o",
                    markersize=4,
                    markerfacecolor=face,
                    color=colours[name],
                    label=name if jumped else None,
                )
        axes.set(xscale="log", yscale="log", xlabel=rf"$\eta\,\lambda_{{\max}}/2$ at step 0, {title}")
        log_ticks(axes.xaxis, axes.yaxis)
    panels[0][0].set_ylabel(r"largest $|\Delta\Phi|\,/\sqrt{1-g_{ck}^2}$")
    names = list(dict.fromkeys(table.model))
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=colours[n], label=n) for n in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(names), fontsize="small")
    return figure


def readout_shares(table, colours: dict, threshold: float, titles: dict[str, str]) -> Figure:
    """Size of every jump against the part of it that the readout carries, one panel per optimiser.

    Args:
        table: jumps, with columns optimizer, model, share_of_bound and readout_share.
        colours: by model.
        threshold: smallest median readout share.
        titles: by optimiser.
    """
    figure, panels = plt.subplots(
        1, len(titles), figsize=(WIDTH, 2.9), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (optimizer, title) in zip(panels[0], titles.items(), strict=True):
        axes.axhline(threshold, color=REFERENCE, linewidth=1)
        axes.axhline(1, color=REFERENCE, linewidth=0.8, linestyle=":")
        for name, rows in table[table.optimizer == optimizer].groupby("model", sort=False):
            axes.plot(
                rows.share_of_bound,
                rows.readout_share,
                "o",
                markersize=4,
                alpha=0.8,
                markeredgewidth=0,
                color=colours[name],
                label=name,
            )
        axes.set_title(title)
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels[0]), key=lambda pair: len(pair[0]))
    figure.legend(handles, labels, loc="outside upper center", ncols=max(len(labels), 1), fontsize="small")
    figure.supxlabel(r"size of the jump, $|\Delta\Phi|\,/\sqrt{1-g_{ck}^2}$", fontsize="medium")
    panels[0][0].set_ylabel("readout part / jump")
    return figure
