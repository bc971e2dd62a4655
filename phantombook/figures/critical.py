"""What several chapters draw of critical rates: every context of every model, and the models' means."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import WIDTH


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
