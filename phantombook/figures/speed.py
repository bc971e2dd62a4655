"""Figures of the page on speed."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from phantombook.figures.palette import CORRECT, REFERENCE
from phantombook.figures.style import WIDTH, log_ticks, small_multiples


def speed_panels(throughput, chunks, colours: dict) -> Figure:
    """Left: how many times more replica-steps than a plain loop, against replicas; right: cost against the chunk.

    Args:
        throughput: table of the benchmark ``throughput``, full fine-tuning, with the columns ``times``, ``low``, ``high``.
        chunks: table of the benchmark ``chunks``, with the column ``relative`` (cost per replica-step, 1 at its least).
        colours: by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.0), layout="constrained")
    for (model, optimizer), rows in throughput.groupby(["model", "optimizer"], sort=False):
        dash = "-" if optimizer == "adam" else ":"
        label = model if optimizer == "adam" else None
        left.plot(rows["replicas"], rows["times"], dash, color=colours[model], marker="o", markersize=3, label=label)
        left.fill_between(rows["replicas"], rows["low"], rows["high"], color=colours[model], alpha=0.12, linewidth=0)
    for (model, optimizer), rows in chunks.groupby(["model", "optimizer"], sort=False):
        dash = "-" if optimizer == "adam" else ":"
        label = model if optimizer == "adam" and model not in set(throughput["model"]) else None
        right.plot(rows["chunk"], rows["relative"], dash, color=colours[model], marker="o", markersize=3, label=label)
    left.axhline(1, color=REFERENCE, linewidth=1)
    left.set(xscale="log", xlabel="replicas", ylabel="speed (plain loop = 1)", title="Speed")
    right.set(
        xscale="log", xlabel="replicas advanced together", ylabel="time per replica-step (least = 1)", title="Chunks"
    )
    for axes in (left, right):
        axes.set_xticks([1, 8, 32, 128] if axes is left else [1, 4, 16, 64])
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.minorticks_off()
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    return figure


def growth_panels(growth, exponents: dict[str, float]) -> Figure:
    """Time per replica-step against each size, one panel per kind of size (table of the benchmark ``growth``)."""
    figure, panels = small_multiples(len(exponents), columns=2, height=2.2, sharex=False, sharey=False)
    for axes, (of, slope) in zip(panels, exponents.items(), strict=True):
        rows = growth[growth["of"] == of]
        axes.plot(rows["value"], rows["time"], color=CORRECT, marker="o", markersize=3)
        axes.fill_between(rows["value"], rows["low"], rows["high"], color=CORRECT, alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel=of, ylabel="time (s)", title=f"exponent {slope:.2f}")
        log_ticks(axes.xaxis, axes.yaxis)
    return figure
