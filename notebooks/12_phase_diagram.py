# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   phantom:
#     minutes: 1
# ---

# %% [markdown]
# # 12 · A phase diagram
#
# **Question.** We vary how interchangeable two words are, and how hard we train. Where does the correct word win?
#
# ```{glue:md} answer_12
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # models from which the boundary is predicted
charted: list[str] = ["zoo:gpt2-s-mix1", "zoo:gpt2-s-mix2"]  # models whose runs are charted
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
steps: int = 20  # optimiser steps of each run
numbers: list[float] = [0.1, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0]  # kinematic numbers

# %% tags=["hide-cell"]
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import gmean

from phantombook import notebook
from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import WIDTH, log_ticks
from phantomlib.critical import search
from phantomlib.critical.scaling import kinematic_number
from phantomlib.critical.step_zero import velocity
from phantomlib.engine.recipe import Recipe
from phantomlib.models import zoo_models
from phantomlib.models.language_model import short_name

nb = notebook.start("12_phase_diagram")
recipe = Recipe(steps=steps)

# %% [markdown]
# ## The boundary, before any point
#
# The [kinematic number](../definitions.md#kinematic-number) $N = \eta T v_0 / |\Delta_0|$ compares the distance that
# the [logit gap](../definitions.md#context) would travel at its initial velocity with the distance to go. [Chapter
# 08](08_dimensionless_numbers.ipynb) measured the value $N_c$ at which the correct token just overtakes. Here that
# value comes from models that are not charted. This chapter asks more than the paper's abstract claims.


# %%
def find_critical(ref):
    model = nb.load(ref)
    return search.critical_rates(nb.store, model, nb.fitting_contexts(model), recipe)


def critical_number(ds):
    """Of one model: the geometric mean over its contexts."""
    number = kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap)
    return float(np.exp(np.nanmean(np.log(number))))


# %%
fitted = [find_critical(ref) for ref in nb.models]
per_model = [critical_number(ds) for ds in fitted]
boundary = float(gmean(per_model))
band = (min(per_model), max(per_model))

# %% tags=["hide-input"]
nb.say(
    "From {models} models: $N_c$ = {boundary:.3f}, between {low:.3f} and {high:.3f} over the models "
    "(geometric means over the contexts).",
    models=len(per_model),
    boundary=boundary,
    low=band[0],
    high=band[1],
)

# %% [markdown]
# ## The points
#
# Two GPT-2 style models of the smallest size were made to be charted. They learnt languages in which the
# *interchangeability* of the ten pairs was reassigned, evenly between 0.05 and 0.98. Interchangeability is the
# probability that a sentence about a pair uses a frame in which either word may stand. Varying it spreads the
# [overlaps](../definitions.md#geometry) of the pairs. Each context of a charted model is fine-tuned with Adam at
# learning rates that correspond to given kinematic numbers.


# %%
def chart(ref):
    """The runs of one model at the given kinematic numbers."""
    model = nb.load(ref)
    fitting = nb.fitting_contexts(model)
    first = velocity(model, fitting, recipe)
    usable = (first.velocity > 0).numpy()  # elsewhere the number is undefined
    v_0, gap = first.velocity.numpy()[usable], first.gap.numpy()[usable]
    one = kinematic_number(1.0, steps, v_0, gap)  # at learning rate 1
    chosen = [context for context, use in zip(fitting, usable) if use]
    uncharted[model.name] = len(fitting) - len(chosen)
    return nb.store.run(model, chosen, np.outer(1 / one, numbers), recipe)


uncharted = {}  # contexts that have no kinematic number, by model
runs = {ref: chart(ref) for ref in charted}

# %% tags=["hide-input"]
nb.say(
    "Charted here: {charted}. The boundary comes from {others}.",
    charted=", ".join(short_name(ref) for ref in charted),
    others=", ".join(short_name(ref) for ref in models),
)
for name, count in uncharted.items():
    if count:
        nb.say(
            "{name}: {count} contexts start by moving away from the correct token. Their kinematic number is "
            "undefined, and they are not charted.",
            name=name,
            count=count,
        )


# %%
def outcomes(ref, ds):
    """A row for every run: where it lies, and how it ended."""
    name = ref.removeprefix("zoo:")
    of_zoo = ref.startswith("zoo:")
    planted = zoo_models.report(name)["interchangeability"] if of_zoo else {}
    start, end = (ds.isel(step=step, seed=0, drop=True) for step in (0, -1))
    table = (
        ds[[]]
        .assign(
            overlap=start.overlap,
            order=end.phi / np.sqrt(1 - end.overlap**2),  # Φ over its bound
            rank=end.rank_correct,
            overtakes=(ds.logit_gap > 0).any("step").isel(seed=0, drop=True),
        )
        .to_dataframe()
        .reset_index()
    )
    number = np.array(numbers)[table.groupby("context", sort=False).cumcount()]
    planted_here = table.context.map(planted)
    columns = {"model": name, "number": number, "interchangeability": planted_here}
    return table.assign(**columns)


points = pd.concat([outcomes(ref, ds) for ref, ds in runs.items()], ignore_index=True)
pairs = points.drop_duplicates(["model", "context"])

# %% tags=["remove-cell"]
span = f"{band[0]:.3f} to {band[1]:.3f}"
thin = np.log(band[1] / band[0]) < 0.01 * np.log(max(numbers) / min(numbers))  # of the height of the panel
nb.caption(
    "fig-phase",
    f"""Phase diagram of {len(points)} runs: {len(charted)} models and {len(pairs)} pairs, each at
        {len(numbers)} kinematic numbers from {min(numbers):g} to {max(numbers):g}. Full fine-tuning with Adam,
        {steps} steps, deterministic: one run per dot, no seeds. Across: the overlap of the pair before training. Up:
        the kinematic number, on a logarithmic axis. (a) The final order parameter in units of its bound, from
        commitment to the competitor (blue) over none (grey) to the correct token (red), on a scale that is stretched
        near zero. (b) The final rank of the correct token, from first (yellow) to tenth or worse (dark). Grey line:
        the critical kinematic number predicted from other models; its range over them, {span}, is
        {"thinner than the line" if thin else "the grey band"}.""",
    alt="""At all overlaps the dots above the predicted horizontal line are red and of first rank. Those below it are
        blue or grey and of lower rank.""",
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharex=True, sharey=True, layout="constrained")
for axes in panels:  # the boundary, predicted before; then the points
    axes.axhspan(*band, color="#DDDDDD", zorder=0)
    axes.axhline(boundary, color=REFERENCE, zorder=1)
    axes.set(yscale="log", xlabel="overlap $g_{ck}$ at step 0")
above = {"location": "top", "shrink": 0.9}
place = {"x": points.overlap, "y": points.number, "s": 16, "linewidths": 0, "zorder": 2}
near_zero = mpl.colors.SymLogNorm(0.05, vmin=-1, vmax=1)  # most runs end there, and their sign matters
dots = panels[0].scatter(c=points.order, cmap="coolwarm", norm=near_zero, **place)
scale = figure.colorbar(dots, ax=panels[0], label=r"final $\Phi\,/\sqrt{1-g_{ck}^2}$", **above)
scale.set_ticks([-1, -0.2, 0, 0.2, 1], labels=["−1", "−0.2", "0", "0.2", "1"])
ranked = mpl.colors.LogNorm(1, 10, clip=True)
dots = panels[1].scatter(c=points["rank"], cmap="viridis_r", norm=ranked, **place)
ranks = figure.colorbar(dots, ax=panels[1], label="final rank of the correct token", **above)
ranks.set_ticks([1, 2, 5, 10], labels=["1", "2", "5", "10+"])
for bar in (scale, ranks):
    bar.ax.minorticks_off()
log_ticks(panels[0].yaxis)  # shared
panels[0].set_ylabel("kinematic number $N$ of the run")
nb.figure(figure, "fig-phase", runs=[runs, fitted], data=points)

# %% [markdown]
# ## How sharp is the boundary?
#
# If the kinematic number of a run exceeds the boundary, we predict that the word overtakes at some step. Otherwise we
# predict that it never overtakes.

# %%
points["right"] = (points.number > boundary) == points.overtakes
edges = [0, 0.1, 0.25, 0.5, np.inf]  # of the distance in logarithms
factors = [f"{np.exp(edge):.2f}" for edge in edges[1:-1]]
between = [f"{low} to {high}" for low, high in zip(factors, factors[1:])]
labels = [f"below {factors[0]}", *between, f"above {factors[-1]}"]
distance = np.log(points.number / boundary).abs()
points["distance"] = pd.cut(distance, edges, labels=labels)
right = points.groupby("distance", observed=True).right.agg(["sum", "count", "mean"])
planted = pairs[["interchangeability", "overlap"]]
correlation = planted.corr(method="spearman").iloc[0, 1]

# %% tags=["hide-input"]
table = pd.DataFrame(
    {
        "factor between $N$ and the boundary": right.index.astype(str),
        "runs as predicted": [f"{row['sum']:.0f} of {row['count']:.0f}" for _, row in right.iterrows()],
        "share": right["mean"].to_numpy(),
    }
)
nb.table(table, runs=runs)
nb.say(
    "Over the charted pairs the rank correlation of planted interchangeability and overlap is {correlation:.2f} (n = "
    "{n}): the {what}.",
    correlation=correlation,
    n=len(pairs),
    what="language's setting shapes the readout" if correlation > 0.3 else "setting shapes the readout only weakly",
)

# %% [markdown]
# ## What it means
#
# Does the overlap shift the boundary? For every pair we take the smallest charted number at which it overtakes and
# the next smaller one, and form their geometric mean.

# %%
LARGE = 0.95  # overlap from which on two words are almost the same direction


def crossing(rows):
    """Of one pair: where it starts to overtake, as a number and as a learning rate."""
    first = rows.number[rows.overtakes].min()
    number = np.sqrt(first * rows.number[rows.number < first].max())
    rate = number * (rows.learning_rate / rows.number).iloc[0]
    overlap = rows.overlap.iloc[0]
    return pd.Series({"overlap": overlap, "number": number, "rate": rate})


by_pair = points.groupby(["model", "context"], sort=False)
crossed = pd.DataFrame([crossing(rows) for _, rows in by_pair]).dropna()
extreme, others = crossed[crossed.overlap > LARGE], crossed[crossed.overlap <= LARGE]
flat = np.nan  # rank correlation of the number with the overlap
if len(crossed) > 2:
    flat = crossed.overlap.corr(crossed.number, method="spearman")

# %% tags=["hide-input"]
nb.say(
    {
        "falls": "The boundary is not quite flat: the number at which a pair overtakes falls with its overlap (rank "
        "correlation {flat:.2f}, n = {n}).",
        "rises": "The boundary is not quite flat: the number at which a pair overtakes rises with its overlap (rank "
        "correlation {flat:.2f}, n = {n}).",
        "flat": "The boundary is flat: the number at which a pair overtakes hardly depends on its overlap (rank "
        "correlation {flat:.2f}, n = {n}).",
        "unknown": "Too few pairs (n = {n}) overtake within the charted numbers to tell whether the boundary is flat.",
    }["falls" if flat < -0.3 else "rises" if flat > 0.3 else "unknown" if np.isnan(flat) else "flat"],
    flat=flat,
    n=len(crossed),
)
if len(extreme) and len(others) > 2:
    nb.say(
        "Where the overlap exceeds {large} ({n} of the pairs), that number is {mean:.2f} (geometric mean). Elsewhere "
        "it lies between {low:.2f} and {high:.2f}.",
        large=LARGE,
        n=len(extreme),
        mean=gmean(extreme.number),
        low=others.number.min(),
        high=others.number.max(),
    )
if len(others) > 2:
    spread = others.max() / others.min()
    nb.say(
        "Otherwise the overlap acts mainly through the velocity $v_0$, which the kinematic number already contains. "
        "The learning rate at which those pairs overtake varies by a factor of {rates:.1f} (rank correlation with the "
        "overlap {rate:.2f}), the number only by a factor of {numbers:.1f}."
        if spread.rate > spread.number
        else "The learning rate at which those pairs overtake varies by a factor of {rates:.1f} (rank correlation with "
        "the overlap {rate:.2f}), the number by a factor of {numbers:.1f}.",
        rates=spread.rate,
        numbers=spread.number,
        rate=others.overlap.corr(others.rate, method="spearman"),
    )

# %% tags=["hide-input"]
close = points[points.distance == labels[0]]
at_large = gmean(extreme.number) if len(extreme) else np.nan
differs = bool(abs(np.log(at_large / boundary)) > edges[1])  # by more than the runs close to the line
nb.answer(
    "The correct word wins above a kinematic number of about {boundary:.2f}, a value taken from other models. "
    + (
        "The value is wrong for words that almost coincide: above an overlap of {large} it is {at_large:.2f}. "
        * differs
    )
    + "At overlaps from {least:.2f} to {most:.2f}, {right} of {runs} runs do what the line predicts: overtake at some "
    "step, or never. Of the {close} runs within a factor of {factor} of the line, {close_right} do.",
    boundary=boundary,
    large=LARGE,
    at_large=at_large,
    right=int(points.right.sum()),
    runs=len(points),
    least=points.overlap.min(),
    most=points.overlap.max(),
    close=len(close),
    factor=factors[0],
    close_right=int(close.right.sum()),
)

# %% [markdown]
# ## What could be wrong
#
# The two models made for this chapter are of one size and one family. The vertical axis is chosen from step-0
# quantities of the charted model, so the diagram tests the constant $N_c$, not the learning rate itself.
