"""Figures of the order parameter: its parts, the spectrum of the density matrix, the overlaps of the bulk."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import WIDTH


def coherence_histories(histories: dict, final, boundary: float, colours: dict) -> Figure:
    """Bulk coherence along pretraining, one line per model, with the boundary between the classes.

    Args:
        histories: for each model pairs of (step, B).
        final: B by model (pandas series), for models without a history too.
        boundary: between the two classes.
        colours: by model.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
    axes.axhline(boundary, color=REFERENCE, linewidth=1)
    axes.axhline(1, color=REFERENCE, linewidth=0.8, linestyle=":")
    for name, value in final.items():
        steps, values = np.array(histories.get(name, [(0, value)]), dtype=float).T
        axes.plot(
            steps, values, "-" if len(steps) > 1 else "o", marker="o", markersize=3, color=colours[name], label=name
        )
    axes.set(yscale="log", xlabel="pretraining step", ylabel="bulk coherence $B$")
    axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axes.minorticks_off()
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return figure
