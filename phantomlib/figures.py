"""One visual language for the whole book: colours, style, and one function per kind of figure.

Tokens and parts of the order parameter keep their colours throughout (Okabe and Ito's colour-blind-safe set). A family is a
hue, a model's size its lightness. Full fine-tuning is drawn solid, LoRA dashed; thresholds and predictions in grey.
"""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

CORRECT, COMPETITOR = "#0072B2", "#D55E00"
SIGNAL, DRAG, PHI = "#009E73", "#CC79A7", "#000000"
LOSS, REFERENCE = "#56B4E9", "#7F7F7F"
FAMILIES = {"gpt2": "#0072B2", "gpt_neox": "#D55E00", "llama": "#009E73", "opt": "#CC79A7"}  # by transformers' model type
OTHER_FAMILY = "#4D4D4D"
LINE = {"full": "-", "lora": "--"}
WIDTH = 7.2  # inches: the width of the text column


def use_style() -> None:
    """Set the style, and SVG output that is the same in every run."""
    sns.set_theme(context="paper", style="ticks", font_scale=1.1)
    mpl.rcParams |= {
        "figure.dpi": 110,
        "figure.facecolor": "white",
        "savefig.bbox": "tight",
        "svg.hashsalt": "phantom",
        "svg.fonttype": "path",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.6,
        "axes.titlesize": "medium",
        "axes.titleweight": "bold",
        "legend.frameon": False,
        "lines.linewidth": 1.6,
    }
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})
    except (ImportError, AttributeError):  # outside a notebook there is no inline backend to tell
        pass


def model_colours(models) -> dict[str, tuple]:
    """A colour for each loaded model by name: its family's hue, darker the larger it is within the family."""
    colours = {}
    for family in dict.fromkeys(m.model_type for m in models):
        members = sorted((m for m in models if m.model_type == family), key=lambda m: m.n_parameters)
        hue = FAMILIES.get(family, OTHER_FAMILY)
        shades = sns.light_palette(hue, n_colors=len(members) + 2)[2:] if len(members) > 1 else [mpl.colors.to_rgb(hue)]
        colours |= {m.name: shade for m, shade in zip(members, shades, strict=True)}
    return colours


def small_multiples(n: int, *, columns: int = 3, height: float = 2.1, **options) -> tuple[Figure, list[Axes]]:
    """A grid of ``n`` panels across the text column, with shared axes; returns the figure and its axes in reading order."""
    columns = min(columns, n)
    rows = -(-n // columns)
    options = {"sharex": True, "sharey": True, "layout": "constrained"} | options
    figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows + 0.4), squeeze=False, **options)
    flat = list(axes.flat)
    for spare in flat[n:]:
        spare.remove()
    for column in range(columns):  # a panel above a gap carries its own tick labels
        lowest = flat[[i for i in range(n) if i % columns == column][-1]]
        lowest.xaxis.set_tick_params(labelbottom=True)
    return figure, flat[:n]


def label_line(axes: Axes, x, y, text: str, colour, **options) -> None:
    """Write ``text`` at the end of a line, in its colour, instead of a legend."""
    options = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": "small"} | options
    axes.annotate(text, (x, y), color=colour, **options)


def overlap_histograms(samples: dict[str, np.ndarray], pairs: dict[str, np.ndarray], colours: dict) -> Figure:
    """Distribution of the bulk overlaps of each model, with the overlaps of its context pairs as ticks.

    Args:
        samples: overlaps g_ij (n,) of distinct readout rows, by model.
        pairs: overlaps g_ck (C,) of the contexts' two tokens, by model.
        colours: by model.
    """
    figure, panels = small_multiples(len(samples))
    for axes, (name, values) in zip(panels, samples.items(), strict=True):
        axes.hist(values, bins=np.linspace(-0.6, 1, 81), density=True, color=colours[name], alpha=0.85)
        axes.axvline(values.mean(), color=REFERENCE, linewidth=1)
        axes.plot(pairs[name], np.zeros_like(pairs[name]), "|", color=COMPETITOR, markersize=12, markeredgewidth=1.4)
        axes.set_title(name)
        axes.text(values.mean() + 0.03, 0.96, f"mean {values.mean():.2f}", transform=axes.get_xaxis_transform(), va="top", color=REFERENCE, fontsize="small")
    figure.supxlabel("overlap $g_{ij}$ of two readout rows (cosine)", fontsize="medium")
    figure.supylabel("density", fontsize="medium")
    return figure


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
    label_line(right, float(last.step), float(last.p_competitor), f"“{competitor}”", COMPETITOR)
    label_line(right, float(last.step), float(last.p_correct), f"“{correct}”", CORRECT)
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
            style = {"color": colours[name], "alpha": 0.8, "zorder": 3} if failed else {"color": "#BBBBBB", "alpha": 0.6}
            axes.plot(one.cross_entropy, one.logit_gap, linewidth=0.9, **style)
        axes.set_title(name)
        axes.set_ylim(-5, 5)
    panels[0].invert_xaxis()
    figure.supxlabel("cross-entropy (nat), falling to the right", fontsize="medium")
    figure.supylabel("logit gap $\\Delta = z_c - z_k$ (nat)", fontsize="medium")
    return figure


def count_map(counts, title: str, unit: str, largest: int) -> Axes:
    """Heat map of counts with the numbers written in; rows are models, columns learning rates.

    Args:
        counts: pandas table of whole numbers.
        title: of the panel.
        unit: what is counted, for the colour bar.
        largest: upper end of the colour scale, so that panels compare.
    """
    figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(counts) + 1.2), layout="constrained")
    sns.heatmap(counts, annot=True, fmt="d", cmap="cividis", vmin=0, vmax=largest, cbar_kws={"label": unit}, ax=axes, linewidths=0.5)
    axes.set_title(title)
    axes.tick_params(axis="y", rotation=0)
    axes.set_ylabel("")
    return axes


def decomposition(runs: xr.Dataset, titles: list[str]) -> Figure:
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
        for name, colour, label in (("signal", SIGNAL, "signal $S$"), ("drag", DRAG, "drag $D$"), ("phi", PHI, "$\\Phi = S + D$")):
            axes.plot(one.step, one[name], color=colour, label=label, linestyle="--" if name == "phi" else "-")
        axes.set_title(title)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(loc="best", fontsize="small")
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("order parameter and its parts", fontsize="medium")
    return figure


def spectra(spectrum: xr.DataArray, colours: dict, shown: int = 30) -> Figure:
    """Largest eigenvalues of ρ before and after training, one panel per model.

    Args:
        spectrum: (model, snapshot, component), largest first.
        colours: by model.
        shown: number of eigenvalues drawn.
    """
    names = [str(name) for name in spectrum.model.values]
    figure, panels = small_multiples(len(names))
    for axes, name in zip(panels, names, strict=True):
        for snapshot, style in zip(spectrum.snapshot.values[[0, -1]], ("-", "--"), strict=True):
            values = spectrum.sel(model=name, snapshot=snapshot).values[:shown]
            axes.plot(np.arange(1, len(values) + 1), values, style, color=colours[name], label=f"step {snapshot}")
        axes.set(yscale="log", title=name, ylim=(1e-4, 1.2))
    panels[0].legend(fontsize="small")
    figure.supxlabel("eigenvalue number, largest first", fontsize="medium")
    figure.supylabel("eigenvalue of $\\rho$", fontsize="medium")
    return figure


MODES = {"kinematic": "#0072B2", "structural": "#D55E00", "overtakes": "#BBBBBB", "other": "#E6C200", "diverged": "#000000"}


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
    dots = panels[0].scatter(table.overlap, table.number, c=table.order, cmap="coolwarm", vmin=-1, vmax=1, **style)
    figure.colorbar(dots, ax=panels[0], label=r"final $\Phi\,/\sqrt{1-g_{ck}^2}$", location="top", shrink=0.9)
    ranks = panels[1].scatter(
        table.overlap, table.number, c=table["rank"], cmap="viridis_r", norm=mpl.colors.LogNorm(1, 10, clip=True), **style
    )
    bar = figure.colorbar(ranks, ax=panels[1], label="final rank of the correct token", location="top", shrink=0.9)
    bar.set_ticks([1, 2, 5, 10], labels=["1", "2", "5", "10+"])
    bar.ax.minorticks_off()
    panels[0].set_ylabel("kinematic number $N$ of the run")
    return figure
