"""Figures of critical rates: the kinematic number, the ladder of predictors, the law of LoRA, the controls."""

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from phantombook.figures.palette import OTHER_FAMILY, REFERENCE
from phantombook.figures.style import WIDTH, label_line, log_ticks


def control_panels(table, colours: dict) -> Figure:
    """Critical kinematic number by kind of pair, one panel per optimiser; dots are contexts, bars a model's geometric mean.

    Args:
        table: pandas table with columns optimizer, model, kind and N (positive).
        colours: by model.
    """
    kinds, names = list(dict.fromkeys(table.kind)), list(dict.fromkeys(table.model))
    figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.0), sharey=True, layout="constrained")
    for axes, (optimizer, label) in zip(panels, (("adam", "Adam"), ("sgd", "SGD")), strict=True):
        axes.axhline(1, color=REFERENCE, linewidth=0.8)
        for i, kind in enumerate(kinds):
            for j, name in enumerate(names):
                chosen = table[(table.optimizer == optimizer) & (table.kind == kind) & (table.model == name)].N
                x = i + (j - (len(names) - 1) / 2) * 0.8 / len(names)
                axes.plot(np.full(len(chosen), x), chosen, "o", markersize=3, color=colours[name], alpha=0.8)
                if len(chosen):
                    mean = np.exp(np.log(chosen).mean())
                    axes.plot([x - 0.06, x + 0.06], [mean, mean], color="black", linewidth=1.6)
        axes.set(yscale="log", title=label, xticks=range(len(kinds)), xticklabels=kinds, xlim=(-0.6, len(kinds) - 0.4))
        axes.tick_params(axis="x", rotation=15)
    log_ticks(panels[0].yaxis)  # shared
    panels[0].set_ylabel("critical kinematic number $N_c$")
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=colours[n], label=n) for n in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(names), fontsize="small")
    return figure


def numbers_by_model(numbers, summaries: dict, colours: dict, titles: dict[str, str]) -> Figure:
    """Critical kinematic numbers, one panel per optimiser; dots are contexts, bars the geometric mean with its interval.

    Args:
        numbers: pandas table with columns optimizer, model and number.
        summaries: for each optimiser the table of :func:`phantomlib.critical.scaling.architecture_numbers`.
        colours: by model.
        titles: of the panels, by optimiser.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.2), sharey=True, layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        summary = summaries[optimizer]
        axes.axhline(1, color=REFERENCE, linewidth=0.8)
        for i, row in enumerate(summary.itertuples()):
            chosen = numbers[(numbers.optimizer == optimizer) & (numbers.model == row.model)].number
            offsets = np.linspace(-0.28, -0.08, len(chosen))
            axes.plot(i + offsets, chosen.sort_values(), "o", markersize=3, color=colours[row.model], alpha=0.7)
            errors = [[row.mean - row.low], [row.high - row.mean]]
            axes.errorbar(i + 0.15, row.mean, yerr=errors, fmt="s", color=colours[row.model], markersize=5, capsize=3)
        axes.set(title=title, xticks=range(len(summary)), xticklabels=summary.model)
        plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
    panels[0].set_ylabel("critical kinematic number $N_c$")
    return figure


def predicted_rates(results, predictors: list[str], colours: dict, titles: dict[str, str]) -> Figure:
    """Predicted against measured critical rates; the first predictor open, the last filled.

    Args:
        results: pandas table with columns optimizer, model, measured and the predictors
            (:func:`phantomlib.critical.predictors.measured_and_predicted`).
        predictors: names of columns.
        colours: by model.
        titles: of the panels, by optimiser.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.5), layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        chosen = results[results.optimizer == optimizer]
        for name, rows in chosen.groupby("model", sort=False):
            for predictor in predictors:
                face = colours[name] if predictor == predictors[-1] else "none"
                axes.plot(
                    rows.measured,
                    rows[predictor],
                    "o",
                    markersize=4,
                    color=colours[name],
                    markerfacecolor=face,
                    alpha=0.8,
                )
        low, high = chosen.measured.min() / 1.3, chosen.measured.max() * 1.3
        axes.plot([low, high], [low, high], color=REFERENCE, linewidth=0.8, zorder=0)
        axes.set(title=title, xscale="log", yscale="log", xlabel="measured critical learning rate")
        log_ticks(axes.xaxis, axes.yaxis)
    panels[0].set_ylabel("predicted")
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "color": OTHER_FAMILY}
    handles = [
        mpl.lines.Line2D(
            [], [], label=p.replace("_", " "), **(dot if p == predictors[-1] else dot | {"markerfacecolor": "none"})
        )
        for p in predictors
    ]
    handles += [
        mpl.lines.Line2D([], [], marker="o", linestyle="", color=c, label=n)
        for n, c in colours.items()
        if n in set(results.model)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize="small")
    return figure


def ladder(results, predictors: list[str], colours: dict, titles: dict[str, str], floor: float) -> Figure:
    """Absolute error of every predictor and context on a logarithmic axis, with medians.

    Args:
        results: pandas table with columns optimizer, model, measured and the predictors
            (:func:`phantomlib.critical.predictors.measured_and_predicted`).
        predictors: names of columns, in order.
        colours: by model.
        titles: of the panels, by optimiser.
        floor: accuracy of the measurement, in per cent.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.6), sharey=True, layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        table = results[results.optimizer == optimizer]
        axes.axhline(floor, color=REFERENCE, linewidth=0.9, linestyle=":")
        for place, predictor in enumerate(predictors):
            error = (100 * (table[predictor] / table.measured - 1).abs()).clip(lower=0.01)
            for offset, (name, rows) in zip(
                np.linspace(-0.26, 0.26, table.model.nunique()), error.groupby(table.model, sort=False), strict=True
            ):
                axes.plot(
                    np.full(len(rows), place + offset), rows, "o", markersize=2.5, color=colours[name], alpha=0.75
                )
            axes.plot([place - 0.34, place + 0.34], [error.median()] * 2, color="black", linewidth=1.6)
        axes.set(title=title, yscale="log", ylim=(0.009, None))
        axes.set_xticks(
            range(len(predictors)),
            [p.replace("_", " ") for p in predictors],
            rotation=40,
            ha="right",
            rotation_mode="anchor",
        )
        axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    panels[0].set_ylabel("absolute error (%)")
    present = set(results.model)
    handles = [
        mpl.lines.Line2D([], [], marker="o", linestyle="", color=c, label=n) for n, c in colours.items() if n in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
    return figure


def lora_law(table, means, colours: dict) -> Figure:
    """Ratio of LoRA's critical rate to that of full fine-tuning, against width over α and against first velocities.

    Args:
        table: pandas table with columns model, ratio, "width over alpha" and "ratio of first velocities".
        means: table of :func:`phantomlib.critical.scaling.architecture_numbers` of the ratio.
        colours: by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True, layout="constrained")
    width = np.array([table["width over alpha"].min() / 1.2, table["width over alpha"].max() * 1.2])
    left.plot(width, np.sqrt(3) * width, color=REFERENCE, linewidth=1)
    label_line(left, width[1], np.sqrt(3) * width[1], r"$\sqrt{3}\,d/\alpha$", REFERENCE, xytext=(-8, 0), ha="right")
    ends = np.array([table["ratio of first velocities"].min() / 1.1, table["ratio of first velocities"].max() * 1.1])
    right.plot(ends, ends, color=REFERENCE, linewidth=1)
    # models of one width stand side by side
    for place, row in enumerate(means.itertuples()):
        rows, shift = table[table.model == row.model], 1 + 0.02 * (place - len(means) / 2)
        axis = rows["width over alpha"].iloc[0] * shift
        left.plot(np.full(len(rows), axis), rows.ratio, "o", markersize=3, color=colours[row.model], alpha=0.6)
        left.errorbar(
            axis * 1.02,
            row.mean,
            yerr=[[row.mean - row.low], [row.high - row.mean]],
            fmt="s",
            color=colours[row.model],
            capsize=3,
            markersize=5,
        )
        right.plot(
            rows["ratio of first velocities"],
            rows.ratio,
            "o",
            markersize=4,
            color=colours[row.model],
            alpha=0.8,
            label=row.model,
        )
    left.set(
        xscale="log", yscale="log", xlabel=r"width over alpha, $d/\alpha$", ylabel=r"$\eta_c$(LoRA) / $\eta_c$(full)"
    )
    right.set(xscale="log", xlabel="first velocity, full over LoRA")
    log_ticks(left.xaxis, left.yaxis, right.xaxis)
    figure.legend(loc="outside upper center", ncols=len(means), fontsize="small")
    return figure
