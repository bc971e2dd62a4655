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
FAMILIES = {
    "gpt2": "#0072B2",
    "gpt_neox": "#D55E00",
    "llama": "#009E73",
    "opt": "#CC79A7",
}  # by transformers' model type
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
            style = (
                {"color": colours[name], "alpha": 0.8, "zorder": 3} if failed else {"color": "#BBBBBB", "alpha": 0.6}
            )
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
    sns.heatmap(
        counts,
        annot=True,
        fmt="d",
        cmap="cividis",
        vmin=0,
        vmax=largest,
        cbar_kws={"label": unit},
        ax=axes,
        linewidths=0.5,
    )
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


MODES = {
    "kinematic": "#0072B2",
    "structural": "#D55E00",
    "overtakes": "#BBBBBB",
    "other": "#E6C200",
    "diverged": "#000000",
}


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
        table.overlap,
        table.number,
        c=table["rank"],
        cmap="viridis_r",
        norm=mpl.colors.LogNorm(1, 10, clip=True),
        **style,
    )
    bar = figure.colorbar(ranks, ax=panels[1], label="final rank of the correct token", location="top", shrink=0.9)
    bar.set_ticks([1, 2, 5, 10], labels=["1", "2", "5", "10+"])
    bar.ax.minorticks_off()
    panels[0].set_ylabel("kinematic number $N$ of the run")
    return figure


def multiple_colours(multiples) -> list[tuple]:
    """A colour for each learning rate, given in units of the critical one: the larger, the darker."""
    return sns.color_palette("flare", n_colors=len(multiples))


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


def lora_jumps(runs: dict[str, xr.Dataset], tables: dict, colours: dict) -> Figure:
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


def onset_against_sharpness(tables: dict, colours: dict, size: float, titles: dict[str, str]) -> Figure:
    """Largest single step of Φ of every run against its learning rate in units of the edge of stability, one panel per optimiser.

    Args:
        tables: pandas tables by optimiser, with columns model, edge (η λ_max / 2), largest (step over bound) and jumped.
        colours: by model.
        size: smallest step of a jump over the bound.
        titles: by optimiser.
    """
    figure, panels = plt.subplots(
        1, len(tables), figsize=(WIDTH, 3.1), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (optimizer, table) in zip(panels[0], tables.items(), strict=True):
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
        for name, rows in table.groupby("model", sort=False):
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
        axes.set(xscale="log", yscale="log", xlabel=rf"$\eta\,\lambda_{{\max}}/2$ at step 0, {titles[optimizer]}")
        axes.set_yticks([0.01, 0.03, 0.1, 0.3, 1], ["0.01", "0.03", "0.1", "0.3", "1"])
        axes.minorticks_off()
    panels[0][0].set_ylabel(r"largest $|\Delta\Phi|\,/\sqrt{1-g_{ck}^2}$")
    names = list(dict.fromkeys(name for table in tables.values() for name in table.model))
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=colours[n], label=n) for n in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(names), fontsize="small")
    return figure


def readout_shares(tables: dict, colours: dict, threshold: float, titles: dict[str, str]) -> Figure:
    """Size of every jump against the part of it that the readout carries, one panel per optimiser.

    Args:
        tables: jumps by optimiser, with columns model, share_of_bound and readout_share.
        colours: by model.
        threshold: smallest median readout share.
        titles: by optimiser.
    """
    figure, panels = plt.subplots(
        1, len(tables), figsize=(WIDTH, 2.9), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (optimizer, table) in zip(panels[0], tables.items(), strict=True):
        axes.axhline(threshold, color=REFERENCE, linewidth=1)
        axes.axhline(1, color=REFERENCE, linewidth=0.8, linestyle=":")
        for name, rows in table.groupby("model", sort=False):
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
        axes.set_title(titles[optimizer])
    handles, labels = max((axes.get_legend_handles_labels() for axes in panels[0]), key=lambda pair: len(pair[0]))
    figure.legend(handles, labels, loc="outside upper center", ncols=max(len(labels), 1), fontsize="small")
    figure.supxlabel(r"size of the jump, $|\Delta\Phi|\,/\sqrt{1-g_{ck}^2}$", fontsize="medium")
    panels[0][0].set_ylabel("readout part / jump")
    return figure


CONTROL = "#000000"  # the double well, which does have two branches


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
    left.plot(example.step, example.phi.sel(start="after"), color=PHI, label="slowed down just after the jump")
    left.plot(
        example.step,
        example.phi.sel(start="before"),
        color=COMPETITOR,
        linestyle="--",
        label="slowed down just before it",
    )
    left.set(xlabel="step", ylabel=r"order parameter $\Phi$")
    left.legend(fontsize="small", loc="center right")
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
    right.set_yticks(range(len(areas) + 1), [*areas, "double well"])
    right.set_ylim(len(areas) + 0.6, -0.6)
    return figure


def crossing_panels(times: dict[str, xr.Dataset], exponents: dict, threshold: float, colours: dict) -> Figure:
    """Left: crossing step against learning rate, with what a critical point would do. Right: fitted exponents.

    Args:
        times: (context, multiple) by model, from ``phantom.crossing_times``; attribute steps.
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
    label_line(left, grid[20], budget / grid[20], r"$\eta\,t^*$ constant", REFERENCE, xytext=(0, -14), ha="right")
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
        profiles: (context, fraction) by model, from ``phantom.profile``.
        control: the same of the double well.
        forces: (context, rate, seed, step) by model, from ``phantom.force``.
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
    markers = {
        label: style
        for label, style in zip(measured, ({"marker": "o"}, {"marker": "o", "markerfacecolor": "white"}), strict=False)
    }
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
            style = {"marker": "x"} if name == "double well" else markers[name]
            axes.plot(
                value,
                0,
                color=CONTROL if name == "double well" else CORRECT,
                linestyle="",
                markersize=6,
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


def controls(table, colours: dict) -> Figure:
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
        axes.set(yscale="log", title=label, xticks=range(len(kinds)), xticklabels=kinds)
        axes.tick_params(axis="x", rotation=15)
    panels[0].set_ylabel("critical kinematic number $N_c$")
    handles = [mpl.lines.Line2D([], [], marker="o", linestyle="", color=colours[n], label=n) for n in names]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(names), fontsize="small")
    return figure


def watched_trainings(runs: dict) -> Figure:
    """Loss and logit gap of trainings watched by :class:`phantomlib.callback.PhantomCallback`.

    Args:
        runs: by label, the Trainer's log (columns step, loss) and the callback's frame (columns step, gap).
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    right.axhline(0, color=REFERENCE, linewidth=1)
    for (label, (log, seen)), colour in zip(runs.items(), (COMPETITOR, CORRECT), strict=False):
        losses = log.dropna(subset=["loss"])
        left.plot(losses.step, losses.loss, "o-", markersize=3, color=colour, label=label)
        right.plot(seen.step, seen.gap, "o-", markersize=3, color=colour)
    left.set(xlabel="step", ylabel="loss (nat)")
    left.set_title("What the Trainer logs")
    left.legend(title="learning rate", fontsize="small", title_fontsize="small")
    right.set(xlabel="step", ylabel="logit gap $\\Delta$ (nat)")
    right.set_title("What the callback adds")
    return figure


def numbers_by_model(numbers, summaries: dict, colours: dict, titles: dict[str, str]) -> Figure:
    """Critical kinematic numbers, one panel per optimiser; dots are contexts, bars the geometric mean with its interval.

    Args:
        numbers: pandas table with columns optimizer, model and number.
        summaries: for each optimiser the table of :func:`phantomlib.critical.architecture_numbers`.
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
        axes.tick_params(axis="x", rotation=30)
    panels[0].set_ylabel("critical kinematic number $N_c$")
    return figure


def predicted_rates(results: dict, predictors: list[str], colours: dict, titles: dict[str, str]) -> Figure:
    """Predicted against measured critical rates; the first predictor open, the last filled.

    Args:
        results: for each optimiser the rows of :func:`phantomlib.prediction.results`.
        predictors: names of columns.
        colours: by model.
        titles: of the panels, by optimiser.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.5), layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        for name, rows in results[optimizer].groupby("model", sort=False):
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
        low, high = results[optimizer].measured.min() / 1.3, results[optimizer].measured.max() * 1.3
        axes.plot([low, high], [low, high], color=REFERENCE, linewidth=0.8, zorder=0)
        axes.set(title=title, xscale="log", yscale="log", xlabel="measured critical learning rate")
        for axis in (axes.xaxis, axes.yaxis):  # few enough labels that they do not meet
            axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 3)))
            axis.set_minor_locator(mpl.ticker.NullLocator())
    panels[0].set_ylabel("predicted")
    dot = {"marker": "o", "linestyle": "", "color": OTHER_FAMILY}
    handles = [
        mpl.lines.Line2D(
            [], [], label=p.replace("_", " "), **dot, **({} if p == predictors[-1] else {"markerfacecolor": "none"})
        )
        for p in predictors
    ]
    handles += [
        mpl.lines.Line2D([], [], marker="o", linestyle="", color=c, label=n)
        for n, c in colours.items()
        if n in set(results[optimizer].model)
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize="small")
    return figure


def ladder(results: dict, predictors: list[str], colours: dict, titles: dict[str, str], floor: float) -> Figure:
    """Absolute error of every predictor and context on a logarithmic axis, with medians.

    Args:
        results: for each optimiser the rows of :func:`phantomlib.prediction.results`.
        predictors: names of columns, in order.
        colours: by model.
        titles: of the panels, by optimiser.
        floor: accuracy of the measurement, in per cent.
    """
    figure, panels = plt.subplots(1, len(titles), figsize=(WIDTH, 3.6), sharey=True, layout="constrained")
    for axes, (optimizer, title) in zip(panels, titles.items(), strict=True):
        table = results[optimizer]
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
    present = {name for table in results.values() for name in table.model}
    handles = [
        mpl.lines.Line2D([], [], marker="o", linestyle="", color=c, label=n) for n, c in colours.items() if n in present
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small")
    return figure


def lora_law(table, means, colours: dict) -> Figure:
    """Ratio of LoRA's critical rate to that of full fine-tuning, against width over α and against first velocities.

    Args:
        table: pandas table with columns model, ratio, "width over alpha" and "ratio of first velocities".
        means: table of :func:`phantomlib.critical.architecture_numbers` of the ratio.
        colours: by model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True, layout="constrained")
    width = np.array([table["width over alpha"].min() / 1.2, table["width over alpha"].max() * 1.2])
    left.plot(width, np.sqrt(3) * width, color=REFERENCE, linewidth=1)
    label_line(left, width[0], np.sqrt(3) * width[0], r"$\sqrt{3}\,d/\alpha$", REFERENCE, xytext=(6, 10))
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
    for axis in (left.xaxis, left.yaxis, right.xaxis):
        axis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        axis.set_minor_locator(mpl.ticker.NullLocator())
    figure.legend(loc="outside upper center", ncols=len(means), fontsize="small")
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


def blind_errors(comparison: dict, band: float, titles: dict[str, str]) -> Figure:
    """Error of a blind prediction by context, one panel per optimiser.

    Args:
        comparison: for each optimiser a table with columns gap, predicted and measured.
        band: in per cent, shaded around zero.
        titles: of the panels, by optimiser.
    """
    figure, panels = plt.subplots(1, len(comparison), figsize=(WIDTH, 3.0), sharey=True, layout="constrained")
    for axes, (optimizer, table) in zip(panels, comparison.items(), strict=True):
        axes.axhspan(-band, band, color="#E6E6E6", zorder=0)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        error = 100 * (table.predicted / table.measured - 1)
        axes.plot(table.gap.abs(), error, "o", color=FAMILIES["llama"], markersize=5)
        for x, y, name in zip(table.gap.abs(), error, table.context, strict=True):
            label_line(axes, x, y, name, "#4D4D4D", fontsize="x-small")
        mean = 100 * np.expm1(np.log(table.predicted / table.measured).mean())
        axes.axhline(mean, color=FAMILIES["llama"], linestyle="--", linewidth=1)
        axes.set(title=titles[optimizer], xlabel=r"initial logit gap $|\Delta_0|$ (nat)")
        axes.margins(x=0.15)
    panels[0].set_ylabel("predicted over measured, error (%)")
    return figure


def left_out_errors(errors: dict, band: float, colours: dict, titles: dict[str, str]) -> Figure:
    """Leave-one-out errors by architecture: contexts as dots, geometric means as squares.

    Args:
        errors: for each optimiser rows of :func:`phantomlib.prediction.leave_one_out` of one predictor and calibration.
        band: in per cent, shaded around zero.
        colours: by model.
        titles: of the panels, by optimiser.
    """
    figure, panels = plt.subplots(1, len(errors), figsize=(WIDTH, 3.1), sharey=True, layout="constrained")
    for axes, (optimizer, table) in zip(panels, errors.items(), strict=True):
        axes.axhspan(-band, band, color="#E6E6E6", zorder=0)
        axes.axhline(0, color=REFERENCE, linewidth=0.8)
        names = list(dict.fromkeys(table.model))
        for place, name in enumerate(names):
            error = table[table.model == name].error
            axes.plot(
                place + np.linspace(-0.28, -0.08, len(error)),
                100 * np.expm1(error.sort_values()),
                "o",
                markersize=3,
                color=colours[name],
                alpha=0.7,
            )
            axes.plot(place + 0.15, 100 * np.expm1(error.mean()), "s", markersize=5, color=colours[name])
        axes.set(title=titles[optimizer], xticks=range(len(names)), xticklabels=names)
        axes.tick_params(axis="x", rotation=30)
    panels[0].set_ylabel("predicted over measured, error (%)")
    return figure


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
    left.set(xscale="log", xlabel="replicas", ylabel="times faster than a plain loop", title="Speed")
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
    return figure
