"""Figures of the order parameter: its parts, the spectrum of the density matrix, the overlaps of the bulk."""

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from phantombook.figures.palette import COMPETITOR, DRAG, PHI, REFERENCE, SIGNAL
from phantombook.figures.style import WIDTH, small_multiples


def overlap_histograms(samples: dict[str, np.ndarray], pairs: dict[str, np.ndarray], colours: dict) -> Figure:
    """Distribution of the bulk overlaps of each model, with the overlaps of its context pairs as ticks.

    Args:
        samples: overlaps g_ij (n,) of distinct readout rows, by model.
        pairs: overlaps g_ck (C,) of the contexts' two tokens, by model.
        colours: by model.
    """
    figure, panels = small_multiples(len(samples))
    for axes, (name, values) in zip(panels, samples.items(), strict=True):
        axes.hist(values, bins=np.linspace(-0.6, 1, 81).tolist(), density=True, color=colours[name], alpha=0.85)
        axes.axvline(values.mean(), color=REFERENCE, linewidth=1)
        axes.plot(pairs[name], np.zeros_like(pairs[name]), "|", color=COMPETITOR, markersize=12, markeredgewidth=1.4)
        axes.set_title(name)
        axes.text(
            values.mean() + 0.03,
            0.96,
            f"mean {values.mean():.2f}",
            transform=axes.get_xaxis_transform(),
            va="top",
            color=REFERENCE,
            fontsize="small",
        )
    figure.supxlabel("overlap $g_{ij}$ of two readout rows (cosine)", fontsize="medium")
    figure.supylabel("density", fontsize="medium")
    return figure


def decomposition_panels(runs: xr.Dataset, titles: list[str]) -> Figure:
    """Φ, signal and drag over the steps, one panel per rate of one context.

    Args:
        runs: dataset with dimensions (rate, step).
        titles: of the panels, one per rate.
    """
    figure, panels = small_multiples(runs.sizes["rate"], height=2.3)
    for axes, index, title in zip(panels, range(runs.sizes["rate"]), titles, strict=True):
        one = runs.isel(rate=index)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        bound = float(np.sqrt(1 - one.overlap[0] ** 2))
        for sign in (-1, 1):
            axes.axhline(sign * bound, color=REFERENCE, linewidth=0.8, linestyle=":")
        for name, colour, label in (
            ("signal", SIGNAL, "signal $S$"),
            ("drag", DRAG, "drag $D$"),
            ("phi", PHI, "$\\Phi = S + D$"),
        ):
            axes.plot(one.step, one[name], color=colour, label=label, linestyle="--" if name == "phi" else "-")
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(loc="best", fontsize="small")
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("order parameter and its parts", fontsize="medium")
    return figure


def spectra(spectrum: xr.DataArray, colours: dict) -> Figure:
    """Thirty largest eigenvalues of ρ before and after training, one panel per model.

    Args:
        spectrum: (model, snapshot, component), largest first.
        colours: by model.
    """
    names = [str(name) for name in spectrum.model.values]
    figure, panels = small_multiples(len(names))
    for axes, name in zip(panels, names, strict=True):
        for snapshot, style in zip(spectrum.snapshot.values[[0, -1]], ("-", "--"), strict=True):
            values = spectrum.sel(model=name, snapshot=snapshot).values[:30]
            axes.plot(np.arange(1, len(values) + 1), values, style, color=colours[name], label=f"step {snapshot}")
        axes.set(yscale="log", title=name, ylim=(1e-4, 1.2))
    panels[0].legend(fontsize="small")
    figure.supxlabel("eigenvalue number, largest first", fontsize="medium")
    figure.supylabel("eigenvalue of $\\rho$", fontsize="medium")
    return figure


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
