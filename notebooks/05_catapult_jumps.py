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
#     minutes: 3
# ---

# %% [markdown]
# # 05 · Catapult-like jumps
#
# **Question.** As the learning rate grows past its critical value, does the model change its mind gradually, or at
# once?
#
# ```{glue:md} answer_05
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
steps: int = 20  # optimiser steps of each run
multiples: list[float] = [0.3, 0.7, 1.5, 3.0, 10.0, 30.0]  # learning rates in units of the critical one
counted: list[float] = [10.0, 30.0]  # multiples at which a jump counts for the claim
sharpness_contexts: int = 3  # contexts of each model whose sharpness is computed
size_factor: float = 0.1  # smallest jump, in units of sqrt(1 - g_ck^2)
median_factor: float = 10.0  # smallest jump, in units of the median step of its run

# %% tags=["hide-cell"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from scipy.stats import gmean

from phantombook import notebook
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import sharpness
from phantombook.figures.charts import count_map, jump_panels
from phantombook.figures.palette import REFERENCE, model_colours
from phantombook.figures.style import WIDTH, early_steps, legend_above, log_ticks, small_multiples
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.study import Study
from phantomlib.transition.jumps import clearest_jump, find_jumps, step_sizes, with_critical_rate

nb = notebook.start("05_catapult_jumps")
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
titles = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## What was done
#
# For each model, [context](../definitions.md#context) and optimiser we first find the [critical learning
# rate](../definitions.md#critical-learning-rate) $\eta_c$ to within 0.5 %. It is the smallest rate at which the
# correct token overtakes within the budget of steps. Then we fine-tune all parameters at fixed multiples of it, below
# and above.
#
# A step of the [order parameter](../definitions.md#order-parameter-signal-and-drag) $\Phi$ is a [catapult-like
# jump](../definitions.md#jumps) if it is large in two ways. It exceeds a tenth of the greatest value that $|\Phi|$
# can take, $\sqrt{1 - g_{ck}^2}$. It also exceeds ten times the median step of its own run, so a run that moves fast
# all the time has no jump.


# %%
recipes = {o: Recipe(optimizer=o, steps=steps) for o in titles}


def search(model, optimizer):
    contexts = nb.fitting_contexts(model)
    return critical_rates(nb.store, model, contexts, recipes[optimizer])


def fine_tune(model, optimizer):
    found = critical[optimizer, model.name]
    fitting, rates = with_critical_rate(nb.fitting_contexts(model), found)
    return nb.store.run(model, fitting, rates[:, None] * multiples, recipes[optimizer])


def jumps_of(run):
    return find_jumps(run, size_factor=size_factor, median_factor=median_factor)


critical = Study.of(search, loaded)
runs = Study.of(fine_tune, loaded)
jumps = runs.map(jumps_of)
adam, adam_jumps = runs.sel("adam"), jumps.sel("adam")

# %% tags=["hide-input"]
means = critical.table(lambda ds: {"mean": f"{gmean(ds.critical_rate, nan_policy='omit'):.2e}"})
means = means.pivot(index="model", columns="optimizer", values="mean").loc[[m.name for m in loaded]]
nb.table(
    means.rename(columns=lambda o: rf"$\eta_c$, {titles[o]} (geometric mean over contexts)").reset_index(),
    runs=critical,
)

# %% [markdown]
# ## One context, six learning rates
#
# The panels show the same runs three times: the loss, the [logit gap](../definitions.md#context) and the order
# parameter.
# Below the critical rate the gap never reaches zero. Just above it the curves look the same, only faster. At large
# multiples $\Phi$ leaps within the first steps, which have most of the room on the axis. The rings mark the steps that
# meet the definition of a jump.

# %% tags=["remove-cell"]
nb.caption(
    "fig-jumps",
    f"""Fine-tuning one context at {len(multiples)} learning rates, under Adam, (a) to (c), and SGD, (d) to (f):
        cross-entropy, logit gap and order parameter against the step, on an axis of log(1 + step). Colour: learning
        rate in units of the critical one. Rings: jumps, which are steps above {size_factor:g} of the bound on the order
        parameter and above {median_factor:g} times the run's median step. First model; the context with the largest
        jump under Adam; all parameters trained; one deterministic run per curve.""",
    alt="""Cross-entropy falls in every run, faster the larger the learning rate. The logit gap and the order parameter
        climb slowly at small rates and leap within a step or two at the largest, where rings mark jumps.""",
)

# %%
first = loaded[0].name
context = clearest_jump(adam_jumps[first]) or nb.contexts[0].id
examples = {o: runs[o, first].sel(context=context).isel(seed=0) for o in titles}
marks = {o: jumps[o, first].query("context == @context") for o in titles}


# %% tags=["hide-input"]
def jump_trajectories(runs, marks):
    """Loss, logit gap and Φ of one context at several learning rates, a row per optimiser; jumps are ringed."""
    panels = {
        "cross_entropy": "cross-entropy (nat)",
        "logit_gap": r"logit gap $\Delta$ (nat)",
        "phi": r"order parameter $\Phi$",
    }
    shared = {"sharex": True, "sharey": "col", "squeeze": False, "layout": "constrained"}
    figure, rows = plt.subplots(len(runs), 3, figsize=(WIDTH, 2.3 * len(runs) + 0.5), **shared)
    for axes_row, (optimizer, run) in zip(rows, runs.items()):
        axes_row[0].set_ylabel(titles[optimizer])
        for axes, name in zip(axes_row, panels):
            if name != "cross_entropy":
                axes.axhline(0, color=REFERENCE, linewidth=0.8)
            for rate, colour in enumerate(sns.color_palette("flare", len(multiples))):
                one = run[name].isel(rate=rate)
                axes.plot(run.step, one, color=colour, label=f"{multiples[rate]:g}")
                if name == "phi":
                    at = marks[optimizer].query("rate == @rate").step.to_list()
                    axes.plot(at, one.sel(step=at), "o", markersize=6, markerfacecolor="none", color=colour)
            early_steps(axes, steps)
    for above, below, title in zip(rows[0], rows[-1], panels.values()):
        above.set_title(title)
        below.set(xlabel="step", title=title)
    figure.legend(
        *rows[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(multiples),
        fontsize="small",
        title=r"learning rate in units of the critical one, $\eta/\eta_c$",
    )
    return figure


nb.figure(jump_trajectories(examples, marks), "fig-jumps", runs=examples)
if len(marks["adam"]):
    largest = marks["adam"].loc[marks["adam"].share_of_bound.idxmax()]
    nb.say(
        "The context shown is “{correct}” against “{competitor}” in {model}. Its largest jump under Adam comes "
        "at {multiple:g} times the critical rate, in step {step}: $\\Phi$ changes by {size:+.3f}, which is "
        "{share_of_bound:.0%} of the bound, while the logit gap goes from {gap_before:+.2f} to {gap_after:+.2f} nats.",
        largest,
        correct=examples["adam"].correct.item(),
        competitor=examples["adam"].competitor.item(),
        model=first,
        multiple=multiples[int(largest["rate"])],
    )
else:
    nb.say(f"No run of {first} under Adam has a jump; the context shown is “{context}”.")

# %% [markdown]
# ## All architectures
#
# The figure shows every context of every model at the largest multiple (coloured). Grey curves are the multiple
# nearest to one and a half times the critical rate.

# %% tags=["remove-cell"]
nb.caption(
    "fig-jump-architectures",
    f"""Order parameter over its bound for every context under Adam, one panel per model. Coloured: at
        {multiples[-1]:g} times the critical rate; rings mark jumps. Grey: near 1.5 times the critical rate. The axis is
        one of log(1 + step). Full fine-tuning; one curve per context, one deterministic run per curve.""",
    alt="""In every panel most coloured curves leap within the first steps and are ringed there; the grey curves climb
        smoothly.""",
)

# %% tags=["hide-input"]
slow = int(np.abs(np.log(np.array(multiples) / 1.5)).argmin())
nb.figure(
    jump_panels(adam, adam_jumps, colours, rate=len(multiples) - 1, behind=slow),
    "fig-jump-architectures",
    runs=adam,
)

# %% [markdown]
# ## How many contexts jump

# %% tags=["remove-cell"]
nb.caption(
    "fig-jump-counts",
    f"""Number of contexts of {len(nb.contexts)} with at least one jump under Adam. Rows: models. Columns: learning rate
        in units of each context's critical rate. The brighter a cell, the larger its number. All parameters trained,
        one deterministic run per cell and context.""",
    alt="Up to three times the critical rate hardly any context jumps; at ten times some do, at thirty times most.",
)
nb.caption(
    "fig-jump-counts-sgd",
    f"""Number of contexts of {len(nb.contexts)} with at least one jump under SGD, at the same multiples of SGD's own
        critical rates. Rows: models; columns: learning rates; the brighter a cell, the larger its number. All
        parameters trained, one deterministic run per cell and context.""",
    alt="Up to three times the critical rate hardly any context jumps; at ten times some do, at thirty times most.",
)

# %%
def counts(optimizer):
    """Contexts with a jump: a row for each model, a column for each multiple."""
    table = pd.DataFrame(
        {
            model: found.groupby("rate").context.nunique()
            for model, found in jumps.sel(optimizer).items()
        },
        index=range(len(multiples)),
    )
    return table.fillna(0).astype(int).set_axis([f"{x:g}" for x in multiples]).T


at = [multiples.index(x) for x in counted]
jumping = jumps.map(lambda table: int(table.query("rate in @at").context.nunique()))

# %% tags=["hide-input"]
for optimizer, name in {"adam": "fig-jump-counts", "sgd": "fig-jump-counts-sgd"}.items():
    across = r"learning rate, $\eta/\eta_c$"
    heat = count_map(counts(optimizer), titles[optimizer], across, len(nb.contexts))
    nb.figure(heat, name, runs=runs.sel(optimizer))

# %% tags=["hide-input"]
for optimizer in titles:
    nb.record(
        "C4",
        min(jumping.sel(optimizer).values()),
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": runs.fewest_contexts(optimizer)},
        runs=[runs.sel(optimizer), critical.sel(optimizer)],
        detail={"contexts with a jump": jumping.sel(optimizer), "by multiple": counts(optimizer).to_dict("index")},
    )

# %% tags=["hide-input"]
every_jump = jumps.table()
for optimizer in titles:
    pooled = every_jump[every_jump.optimizer == optimizer]
    nb.say(
        "**{label}**: contexts (of {contexts}) with a jump at {rates} times the critical rate, by model: {counts}. The "
        "{jumps} jumps at all rates have a median size of {median:.0%} of the bound and a largest of {largest:.0%}. "
        "The loss rises in {rising} of them."
        if len(pooled)
        else "**{label}**: no jump at any rate.",
        label=titles[optimizer],
        rates=" or ".join(f"{x:g}" for x in counted),
        counts=", ".join(f"{name} {count}" for name, count in jumping.sel(optimizer).items()),
        contexts=len(nb.contexts),
        jumps=len(pooled),
        median=pooled.share_of_bound.median(),
        largest=pooled.share_of_bound.max(),
        rising=int((pooled.loss_change > 0).sum()),
    )

# %% [markdown]
# ## The edge of stability
#
# In the literature a *catapult* {cite}`lewkowycz2020catapult` happens when the learning rate exceeds
# $2/\lambda_{\max}$. Here $\lambda_{\max}$ is the sharpness, the largest eigenvalue of the Hessian of the loss.
# Beyond this edge of stability the quadratic approximation of the loss says that steps overshoot. For Adam the
# Hessian is first rescaled by the size of Adam's first update. So $\eta\lambda_{\max}/2 = 1$ marks the edge for both
# optimisers.
#
# Are our jumps such catapults? If so, they start at the grey vertical line, and the loss rises as they begin.

# %% tags=["remove-cell"]
nb.caption(
    "fig-edge",
    f"""Largest single step of the order parameter in each run, over its bound, against the learning rate in units of
        the edge of stability of the untrained model (grey vertical line). One colour per model. Filled: runs with a
        jump; open: runs without. Dotted: the smallest size of a jump, fixed beforehand. The first contexts of each
        model (at most {sharpness_contexts}) at all learning rates; one deterministic run per point. The sharpness is
        computed by Lanczos iteration at step 0; for Adam, of the Hessian rescaled by the first update.""",
    alt="The largest step grows with the learning rate; runs with a jump are those at the largest rates.",
)

# %%
def edge_of_stability(model, optimizer):
    """A row for every run of a few contexts: rate over the edge, and largest step."""
    key = optimizer, model.name
    fitting, _ = with_critical_rate(nb.fitting_contexts(model), critical[key])
    fitting = fitting[:sharpness_contexts]
    eigenvalues = sharpness(model, fitting, Recipe(optimizer=optimizer)).numpy()
    chosen = runs[key].sel(context=[c.id for c in fitting]).isel(seed=0)
    edge = chosen.learning_rate * xr.DataArray(eigenvalues, dims="context") / 2
    columns = {
        "edge": edge,  # 1 at the edge of stability
        "critical_edge": edge / np.asarray(multiples),  # at the critical rate
        "largest": step_sizes(chosen).max("step").astype(float),
    }
    found = xr.Dataset(columns, {"multiple": ("rate", multiples)})
    table = found.to_dataframe().reset_index()
    jumped = set(zip(jumps[key].context, jumps[key].rate))
    table["jumped"] = [run in jumped for run in zip(table.context, table.rate)]
    return table[["context", "multiple", *columns, "jumped"]]


edges = Study.of(edge_of_stability, loaded).table()
each = ["optimizer", "model", "context"]
onsets = edges[edges.jumped].sort_values("multiple").drop_duplicates(each)


# %% tags=["hide-input"]
def onset_against_sharpness(table):
    """Largest step of Φ in every run against its learning rate over the edge of stability, a panel per optimiser."""
    figure, panels = small_multiples(len(titles), height=2.7, sharex=False)
    for axes, (optimizer, title) in zip(panels, titles.items()):
        rows = table[table.optimizer == optimizer]
        colour = rows.model.map(colours)
        axes.axhline(size_factor, color=REFERENCE, linewidth=1, linestyle=":")
        axes.axvline(1, color=REFERENCE, linewidth=1)
        place = {"ha": "center", "va": "bottom", "transform": axes.get_xaxis_transform()}
        axes.text(1, 1, "edge of stability", color=REFERENCE, fontsize="small", **place)
        face = colour.where(rows.jumped, "none")
        axes.scatter(rows.edge, rows.largest, s=16, facecolors=list(face), edgecolors=list(colour))
        axes.set(xscale="log", yscale="log", xlabel=rf"$\eta\,\lambda_{{\max}}/2$ at step 0, {title}")
        log_ticks(axes.xaxis, axes.yaxis)
    panels[0].set_ylabel(r"largest $|\Delta\Phi|\,/\sqrt{1-g_{ck}^2}$")
    legend_above(figure, {name: colours[name] for name in dict.fromkeys(table.model)})
    return figure


nb.figure(
    onset_against_sharpness(edges),
    "fig-edge",
    runs=runs,
    data=edges,
)

# %% tags=["hide-input"]
for optimizer in titles:
    start = onsets[onsets.optimizer == optimizer].edge
    at_critical = edges[edges.optimizer == optimizer].drop_duplicates(["model", "context"]).critical_edge
    nb.say(
        "**{label}**: at the critical rate the median of $\\eta_c\\lambda_{{\\max}}/2$ is {median:.3g} "
        "(from {min:.3g} to {max:.3g}, {count:.0f} contexts). "
        + (
            "At the smallest tried rate with a jump its median is {start[median]:.3g} (from {start[min]:.3g} to "
            "{start[max]:.3g}, {start[count]:.0f} contexts). In {below} of them the jump comes below the edge of "
            "stability."
            if len(start)
            else "None of these runs has a jump."
        ),
        at_critical.agg(["median", "min", "max", "count"]),
        label=titles[optimizer],
        start=start.agg(["median", "min", "max", "count"]),
        below=int((start < 1).sum()),
    )
near = [index for index, multiple in enumerate(multiples) if multiple < min(counted)]
pooled = every_jump[every_jump.optimizer == "adam"]
rising = int((every_jump.loss_change > 0).sum())
nb.answer(
    "Both happen, and the learning rate decides which. Under Adam, {near} of {contexts} contexts jump at up to "
    "{largest:g} times the critical rate: the order parameter climbs smoothly. At {rates} times, {far} of them jump, "
    "by a median of {median:.0%} of the largest possible value in a single step. Where the sharpness was measured, "
    "the first jumps begin below the edge of stability in {below}. The loss rises in {rising} of all {all} jumps "
    "under both optimisers: {verdict}",
    largest=multiples[near[-1]] if near else np.nan,
    near=sum(table.query("rate in @near").context.nunique() for table in adam_jumps.values()),
    contexts=sum(ds.sizes["context"] for ds in adam.values()),
    rates=" or ".join(f"{x:g}" for x in counted),
    far=sum(jumping.sel("adam").values()),
    median=pooled.share_of_bound.median(),
    below=" and ".join(
        f"{int((rows.edge < 1).sum())} of {len(rows)} under {titles[o]}"
        for o, rows in onsets.groupby("optimizer", sort=False)
    ),
    rising=rising,
    all=len(every_jump),
    verdict="some may be catapults." if rising else "none of these jumps is a catapult.",
)

# %% [markdown]
# ## What it means
#
# Overtaking needs no jump: at the critical rate the path is smooth. A jump is what the same path looks like in few,
# large steps. The ledger's claim C4 asks for jumps only. A catapult got its name from a loss that rises before it
# falls, and C4 does not ask for that; the answer above says how often it was seen. [Chapter 06](06_phantoms.ipynb)
# asks whether the jumps are more than large steps, a phase transition for instance.
#
# ## What could be wrong
#
# The two factors in the definition of a jump, a tenth and ten, are our reconstruction; [chapter
# 11](11_scope_and_sensitivity.ipynb) varies them. A jump that takes two steps counts as two. Learning rates are
# multiples of a critical rate that belongs to a budget of steps, so “30 times critical” is not a universal number.
# The sharpness is that of the untrained model, on a few contexts; it changes during training. For Adam, we divide by
# the size of the first update, which makes directions with tiny gradients look very sharp. So Adam's edge at step 0
# is a weak guide.
#
# ## Exercise
#
# Open this chapter with `phantom edit 05`. What does the second condition on a jump do? In `jumps_of`, write
# `median_factor=1` in place of `median_factor=median_factor`, and run that cell and the maps of counts again. At
# which rates do more contexts jump?
#
# :::{dropdown} Answer
# At ten times the critical rate. There the gap still takes several large steps, so no single step stood out from its
# run. At thirty times nothing changes: one step makes most of the change, and it stood out before.
# :::
