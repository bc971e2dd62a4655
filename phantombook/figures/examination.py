"""Figures of the tests against spontaneous symmetry breaking, one per test."""

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phantombook.figures.palette import COMPETITOR, CONTROL, CORRECT, PHI, REFERENCE
from phantombook.figures.style import WIDTH, label_line, log_ticks

DOT = {"marker": "o", "markersize": 5}
RING = {"marker": "o", "markersize": 9, "markerfacecolor": "none"}  # is seen around a dot of the same value
CROSS = {"marker": "x", "markersize": 6}


def branch_panels(example: xr.Dataset, ends: dict, control: xr.Dataset, colours: dict) -> Figure:
    """Left: one replica continued from just before and just after its jump. Right: all final Φ, before against after.

    Args:
        example: (start, step) with phi and overlap, of one context; coordinate jump_step.
        ends: by model, final Φ over its bound (context, start).
        control: the same experiment in a double well (context, start, step).
        colours: by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.0), layout="constrained")
    left.axhline(0, color=REFERENCE, linewidth=0.8)
    left.axvline(float(example.jump_step), color=REFERENCE, linewidth=0.8, linestyle=":")
    left.plot(example.step, example.phi.sel(start="after"), color=PHI, label="just after the jump")
    left.plot(
        example.step,
        example.phi.sel(start="before"),
        color=COMPETITOR,
        linestyle="--",
        label="just before it",
    )
    left.set(xlabel="step", ylabel=r"order parameter $\Phi$")
    left.legend(title="slowed down", fontsize="small", title_fontsize="small", loc="center right")
    right.plot([-1, 1], [-1, 1], color=REFERENCE, linewidth=0.8)
    for name, end in ends.items():
        right.plot(end.sel(start="after"), end.sel(start="before"), "o", markersize=4, color=colours[name], label=name)
    end = (control.phi / np.sqrt(1 - control.overlap**2)).isel(step=-1)
    right.plot(end.sel(start="after"), end.sel(start="before"), "x", color=CONTROL, label="double well")
    right.set(
        xlabel="final $\\Phi$ / bound, from after the jump",
        ylabel="the same, from before it",
        xlim=(-1, 1),
        ylim=(-1, 1),
    )
    right.legend(fontsize="small", loc="upper left")
    return figure


def ramp_panels(example: xr.Dataset, areas: dict, control: float, threshold: float, colours: dict) -> Figure:
    """Left: Φ of one context along a rising and a falling ramp, against the summed learning rate. Right: loop areas.

    Args:
        example: (order, step) with phi and consumed.
        areas: loop areas (context,) by model.
        control: median area of the double well.
        threshold: largest median area.
        colours: by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.0), layout="constrained")
    left.axhline(0, color=REFERENCE, linewidth=0.8)
    for order, colour, label in (("up", CORRECT, "rates rising"), ("down", COMPETITOR, "rates falling")):
        one = example.sel(order=order)
        left.plot(one.consumed, one.phi, "o-", markersize=3, color=colour, label=label)
    left.set(xlabel=r"summed learning rate, $\Sigma\eta/\eta_c$", ylabel=r"order parameter $\Phi$")
    left.legend(fontsize="small", loc="lower right")
    right.axvline(threshold, color=REFERENCE)
    right.plot(control, len(areas), "x", color=CONTROL)
    for row, (name, values) in enumerate(areas.items()):
        right.plot(values, np.full(len(values), row), "o", markersize=4, alpha=0.7, color=colours[name])
    right.set(xscale="log", xlabel="loop area / bound")
    log_ticks(right.xaxis)
    right.set_yticks(range(len(areas) + 1), [*areas, "double well"])
    right.set_ylim(len(areas) + 0.6, -0.6)
    return figure


def crossing_panels(times: dict[str, xr.Dataset], exponents: dict, threshold: float, colours: dict) -> Figure:
    """Left: crossing step against learning rate, with what a critical point would do. Right: fitted exponents.

    Args:
        times: (context, multiple) by model, from :func:`phantomlib.transition.experiments.crossing_times`; attribute steps.
        exponents: (context,) by model.
        threshold: largest median exponent.
        colours: by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), layout="constrained", width_ratios=(1.35, 1))
    first = next(iter(times.values()))
    budget, multiples = first.attrs["steps"], first.multiple.values
    grid = np.geomspace(multiples.min(), multiples.max(), 200)
    above = 1 + np.geomspace(1e-3, multiples.max() - 1, 200)
    left.plot(grid, budget / grid, color=REFERENCE)
    label_line(left, grid[20], budget / grid[20], r"$\eta\,t^*$ constant", REFERENCE, xytext=(4, -16))
    left.plot(above, budget * (1.5 - 1) ** 0.5 / 1.5 * (above - 1) ** -0.5, color=REFERENCE, linestyle=":")
    label_line(left, 1.0035, budget * 4.0, r"critical point, $\nu = 1/2$", REFERENCE, xytext=(6, 6))
    for name, data in times.items():
        left.plot(data.multiple, data.step.values.T, "o", markersize=3, alpha=0.7, color=colours[name])
    left.set(
        xscale="log",
        yscale="log",
        xlabel=r"learning rate $\eta/\eta_c$",
        ylabel="step at which the token overtakes, $t^*$",
    )
    left.set_ylim(1, budget * 9)
    left.set_xlim(multiples.min() / 2.2, multiples.max() * 1.3)
    left.set_xticks([0.25, 0.5, 1, 2, 5, 10], ["0.25", "0.5", "1", "2", "5", "10"])
    left.minorticks_off()
    right.axvline(0.5, color=REFERENCE, linestyle=":")
    right.axvline(threshold, color=REFERENCE)
    for row, (name, values) in enumerate(exponents.items()):
        right.plot(values, np.full(len(values), row), "o", markersize=4, alpha=0.7, color=colours[name])
    right.set(xlabel=r"exponent $\nu$ just above $\eta_c$", xlim=(0, 0.6))
    right.set_yticks(range(len(exponents)), list(exponents))
    right.invert_yaxis()
    return figure


def potential_panels(
    profiles: dict[str, xr.Dataset], control: xr.Dataset, forces: dict[str, xr.Dataset], colours: dict
) -> Figure:
    """Left: loss along the update of each jump, from its start to its minimum. Right: force on the gap until the crossing.

    Args:
        profiles: (context, fraction) by model, from :func:`phantomlib.transition.experiments.potential_profile`.
        control: the same of the double well.
        forces: (context, rate, seed, step) by model, from :func:`phantomlib.transition.experiments.force`.
        colours: by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.1), layout="constrained")
    for name, data in {**profiles, "double well": control}.items():
        loss = data.cross_entropy
        scaled = (loss - loss.min("fraction")) / (loss.isel(fraction=0) - loss.min("fraction"))
        style = (
            {"color": CONTROL, "linestyle": "--", "linewidth": 0.6}
            if data is control
            else {"color": colours[name], "linewidth": 0.8}
        )
        left.plot(data.fraction, scaled.values.T, alpha=0.8, **style)
    label_line(left, 1.36, 1.3, "double well", CONTROL, ha="right", xytext=(-6, 0))
    left.axvline(1, color=REFERENCE, linewidth=0.8, linestyle=":")
    left.set(xlabel="fraction of the jump's own update", ylabel="cross-entropy, scaled to its range", ylim=(-0.05, 1.6))
    right.axhline(0, color=REFERENCE)
    for name, data in forces.items():
        data = data.isel(rate=0, seed=0)
        first = data.force.isel(step=0)
        for context in range(data.sizes["context"]):
            before = data.gap.isel(context=context) <= 0
            gap = data.gap.isel(context=context)
            right.plot(
                (1 - gap / gap.isel(step=0)).where(before),
                (data.force.isel(context=context) / first.isel(context=context)).where(before),
                color=colours[name],
                linewidth=0.8,
                alpha=0.8,
            )
    right.set(
        xlabel="way to the crossing, from start (0) to $\\Delta = 0$ (1)",
        ylabel="force, relative to the first",
        ylim=(-0.2, None),
    )
    return figure


def refinement_panels(largest: dict[str, dict[str, xr.DataArray]], colours: dict, titles: dict[str, str]) -> Figure:
    """Largest single-step change of Φ against the refinement, one panel per optimiser.

    Args:
        largest: (context, refinement) by model, by optimiser.
        colours: by model.
        titles: by optimiser.
    """
    figure, panels = plt.subplots(
        1, len(largest), figsize=(WIDTH, 3.0), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (optimizer, models) in zip(panels[0], largest.items(), strict=True):
        finest = max((int(data.refinement.max()) for data in models.values()), default=32)
        axes.plot([1, finest], [2.5, 2.5 / finest], color=REFERENCE)  # guides, above the data
        label_line(axes, finest / 4, 10 / finest, "smooth", REFERENCE, xytext=(6, 8))
        axes.plot([1, finest], [3, 3], color=REFERENCE, linestyle=":")
        label_line(axes, finest, 3, "discontinuous", REFERENCE, xytext=(-2, -7), ha="right")
        for name, data in models.items():
            axes.plot(
                data.refinement, data.values.T, "o-", markersize=2.5, linewidth=0.8, alpha=0.8, color=colours[name]
            )
        axes.set(xscale="log", yscale="log", title=titles[optimizer])
        axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        axes.minorticks_off()
    figure.supxlabel("refinement: times as many steps, each that much smaller", fontsize="medium")
    panels[0][0].set_ylabel(r"largest $|\Delta\Phi|\,/\sqrt{1-g_{ck}^2}$")
    return figure


def criteria_board(criteria: list, measured: dict[str, dict], control: dict) -> Figure:
    """One row per criterion: threshold, the side on which it is met (shaded), and what was measured.

    Args:
        criteria: tuples (test, criterion, label), in order; criteria as in ``claims.Criterion``.
        measured: test -> criterion -> value, by optimiser's label.
        control: the same of the double well.
    """
    figure, rows = plt.subplots(len(criteria), 1, figsize=(WIDTH, 0.36 * len(criteria) + 0.6), squeeze=False)
    figure.subplots_adjust(left=0.5, right=0.98, top=0.93, bottom=0.02, hspace=0.75)
    markers: dict[str, dict[str, Any]] = dict(zip(measured, (DOT, RING), strict=False))
    previous = None
    for axes, (test, criterion, label) in zip(rows[:, 0], criteria, strict=True):
        values = {name: numbers[test][criterion.name] for name, numbers in measured.items()} | {
            "double well": control[test][criterion.name]
        }
        finite = [v for v in [*values.values(), criterion.threshold] if np.isfinite(v)]
        low, high = min([0.0, *finite]), max(finite)
        margin = 0.06 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        good = (
            (criterion.threshold, high + margin)
            if criterion.direction == "at least"
            else (low - margin, criterion.threshold)
        )
        axes.axvspan(*good, color="#D9EFE6", zorder=0)
        axes.axvline(criterion.threshold, color=REFERENCE, linewidth=1.2)
        for name, value in values.items():
            style = CROSS if name == "double well" else markers[name]
            axes.plot(
                value,
                0,
                color=CONTROL if name == "double well" else CORRECT,
                linestyle="",
                clip_on=False,
                zorder=3,
                **style,
            )
        axes.set_yticks([])
        axes.set_ylim(-1, 1)
        axes.grid(False)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="x", labelsize="x-small", pad=1, length=2)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.text(-0.02, 0.5, label, transform=axes.transAxes, ha="right", va="center", fontsize="small")
        if test != previous:
            axes.text(
                -1.0, 0.5, test, transform=axes.transAxes, ha="left", va="center", fontsize="small", fontweight="bold"
            )
        previous = test
    handles = [
        mpl.lines.Line2D([], [], linestyle="", color=CORRECT, label=label, **style) for label, style in markers.items()
    ]
    handles.append(mpl.lines.Line2D([], [], linestyle="", color=CONTROL, marker="x", label="double well (control)"))
    figure.legend(handles=handles, loc="upper center", ncols=len(handles), fontsize="small")
    return figure
