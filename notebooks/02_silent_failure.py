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
#     minutes: 1.5
# ---

# %% [markdown]
# # 02 · Silent failure
#
# **Question.** Can fine-tuning look healthy, with a loss that falls at every step, and still fail to teach the model
# the word it is trained on?
#
# ```{glue:md} answer_02
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
multiples: list[float] = [0.1, 0.3, 0.7, 0.9, 1.5]  # learning rates in units of each context's predicted critical rate
steps: int = 20  # optimiser steps of each run
least_fall: float = 0.1  # nats by which cross-entropy must end lower for a failure to count

# %% tags=["hide-cell"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.ticker import MaxNLocator

from phantombook import notebook
from phantombook.markup import in_words
from phantomlib.critical.predictors import contexts_with_rates
from phantombook.figures.escaping import in_figure
from phantombook.figures.charts import count_map
from phantombook.figures.palette import COMPETITOR, CORRECT, LOSS, REFERENCE, model_colours
from phantombook.figures.stacked import letter_panels
from phantombook.figures.style import WIDTH, label_line, legend_above, small_multiples
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.study import Study
from phantomlib.transition import silent_failure

nb = notebook.start("02_silent_failure")
loaded = [nb.load(ref) for ref in nb.models]
labels = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## What was done
#
# Each [context](../definitions.md#context) is fine-tuned on its own. The loss is the cross-entropy of the correct
# token after the prompt. All parameters are trained. Each run starts from the same checkpoint and takes the same
# number of steps. At every step we record the loss, the probabilities and logits of the correct token $c$ and the
# competitor $k$, and the quantities that the other chapters need.
#
# Learning rates are given in units of each context's [predicted critical
# rate](../definitions.md#critical-learning-rate). This is the smallest rate at which the correct token is expected to
# overtake within these steps. It is predicted from the checkpoint alone, before any step of training ([chapter
# 08](08_dimensionless_numbers.ipynb) says how). So the same few multiples serve every model and both optimisers. They
# were chosen beforehand. Most lie below one, where we expect failures; one lies above it.
#
# A run is a [silent failure](../definitions.md#silent-failure) if its cross-entropy never rises and ends lower, yet
# the [logit gap](../definitions.md#context) $\Delta = z_c - z_k$ is never positive: the correct token never
# overtakes. The count also requires that cross-entropy falls by at least 0.1 nat. So a run in which nothing happens
# does not count.
#
# “Never” refers to a budget: the correct token does not overtake within this number of steps at this learning rate. A
# longer run or a larger learning rate may succeed. [Chapter 08](08_dimensionless_numbers.ipynb) computes how much is
# enough.


# %%
def fine_tune(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    contexts = nb.fitting_contexts(model)
    fitting, critical = contexts_with_rates(nb.store, model, contexts, recipe)
    found = nb.store.run(model, fitting, critical[:, None] * multiples, recipe)
    return found.assign_coords(rate=multiples)


# for each optimiser and model a dataset (context, rate, seed, step)
runs = Study.of(fine_tune, loaded)
silent = runs.map(silent_failure.silent, least_fall)
adam = runs.sel("adam")

# %% [markdown]
# ## One run, two stories
#
# Panel (a) is what a training script shows: a loss that falls. Panel (b) is what the model would say.

# %% tags=["remove-cell"]
nb.caption(
    "fig-silent",
    """A silent failure: one context of the first model, full fine-tuning with Adam, one run (no
        randomness, so no seeds). (a) Cross-entropy of the correct token. (b) Probability of the
        correct token (blue) and of its near-synonym (orange). The run shown is the silent failure with
        the largest fall of cross-entropy.""",
    alt="The loss falls at every step, and the near-synonym stays more probable than the correct word.",
)

# %%
first = loaded[0].name
failed = silent["adam", first]
loss = adam[first].cross_entropy
fall = (loss.isel(step=0) - loss.isel(step=-1)).where(adam[first].diverged_step < 0, -1)
largest = (fall.where(failed, -1) if failed.any() else fall).argmax(...)
example = adam[first].isel(largest)
seen = ["cross_entropy", "p_correct", "p_competitor", "logit_gap"]
ends = example[seen].isel(step=[0, -1]).to_dataframe()


# %% tags=["hide-input"]
def loss_and_rank(run):
    """One run: its cross-entropy, and the probabilities of the two words."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.7), layout="constrained")
    left.plot(run.step, run.cross_entropy, color=LOSS)
    left.set(xlabel="step", ylabel="cross-entropy (nat)", title="What training shows")
    for p, word, colour in (
        (run.p_competitor, run.competitor, COMPETITOR),
        (run.p_correct, run.correct, CORRECT),
    ):
        right.plot(run.step, p, color=colour)
        label_line(right, float(run.step[-1]), float(p[-1]), f"“{in_figure(word.item())}”", colour)
    right.set(xlabel="step", ylabel="probability of the next token", ylim=(0, None), title="What the model would say")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


nb.figure(loss_and_rank(example), "fig-silent", runs=adam[first])
start, end = (ends.iloc[row] for row in (0, -1))
nb.say(
    "In this run ({steps} steps at {multiple:g} times the predicted critical learning rate, which is {rate:.3g}) "
    "cross-entropy falls from {cross_entropy:.2f} to {end.cross_entropy:.2f} nats. The probability of “{correct}” "
    "goes from {p_correct:.3f} to {end.p_correct:.3f}, that of “{competitor}” from {p_competitor:.3f} to "
    "{end.p_competitor:.3f}. The logit gap goes from {logit_gap:+.2f} to {end.logit_gap:+.2f} nats: {what}",
    start,
    end=end,
    steps=steps,
    multiple=example.rate.item(),
    rate=float(example.learning_rate / example.rate),
    what="it has closed somewhat and is still negative." if end.logit_gap < 0 else "it has closed.",
)

# %% [markdown]
# ## All runs
#
# Each line below is one run of Adam. Training moves it to the right, as cross-entropy falls. A run succeeds when it
# crosses the grey line at $\Delta = 0$. Coloured lines never cross it, although their loss never rose: these runs
# failed silently. Light grey lines are the other runs. Most of them crossed, or their loss fell by too little to
# count.

# %% tags=["remove-cell"]
nb.caption(
    "fig-silent-trajectories",
    f"""Logit gap against cross-entropy for every run of Adam: every context at every multiple of its predicted
        critical rate, one panel per model (full fine-tuning; deterministic, no seeds). Coloured: silent failures whose
        cross-entropy ends at least {least_fall:g} nat lower. Light grey: all other runs. Grey line: where the correct
        token overtakes. Lines go through every second step. The axis is cut at plus and minus 5 nats.""",
    alt="In every panel coloured lines move to the right and stay below zero; light grey lines rise across it.",
)

# %% tags=["hide-input"]
def gap_trajectories(runs, is_silent, colours):
    """Logit gap of every run against its cross-entropy, a panel per model; silent failures are coloured."""
    figure, panels = small_multiples(len(runs), height=2.3)
    for axes, (name, ds) in zip(panels, runs.items()):
        axes.axhline(0, color=REFERENCE, linewidth=1)
        each = ds.isel(step=slice(None, None, 2)).stack(run=("context", "rate", "seed")).transpose("step", "run")
        failed = is_silent[name].stack(run=("context", "rate", "seed")).values
        for chosen, style in (
            (~failed, {"color": "#BBBBBB", "alpha": 0.6}),
            (failed, {"color": colours[name], "alpha": 0.8, "zorder": 3}),
        ):
            axes.plot(each.cross_entropy[:, chosen], each.logit_gap[:, chosen], linewidth=0.9, **style)
        axes.set(title=name, ylim=(-5, 5))
    panels[0].invert_xaxis()
    figure.supxlabel("cross-entropy (nat), falling to the right", fontsize="medium")
    figure.supylabel("logit gap $\\Delta = z_c - z_k$ (nat)", fontsize="medium")
    return figure


nb.figure(gap_trajectories(adam, silent.sel("adam"), model_colours(loaded)), "fig-silent-trajectories", runs=adam)

# %% [markdown]
# ## How often
#
# The maps count, for each model and multiple of the predicted critical rate, the contexts that failed silently. At
# small multiples the loss may not move by 0.1 nat within the budget; such runs do not count. Above one the correct
# token should overtake; below one it should not. A run that does otherwise shows a prediction that is off by at least
# as much.


# %% tags=["remove-cell"]
nb.caption(
    "fig-silent-counts",
    f"""Number of contexts of {len(nb.contexts)} that failed silently under Adam, with cross-entropy ending at least
        {least_fall:g} nat lower. Rows: models. Columns: learning rate in units of each context's predicted critical
        rate. The brighter a cell, the larger its number. Full fine-tuning; one deterministic run per cell and
        context.""",
    alt="From 0.3 to 0.9 times the predicted rate nearly all contexts fail in every model; at 1.5 times none does.",
)
nb.caption(
    "fig-silent-counts-sgd",
    f"""Number of contexts of {len(nb.contexts)} that failed silently under SGD, at the same multiples of the critical
        rates predicted for SGD. Rows: models; columns: learning rates; the brighter a cell, the larger its number.
        Full fine-tuning; one deterministic run per cell and context.""",
    alt="From 0.3 to 0.9 times the predicted rate nearly all contexts fail in every model; at 1.5 times none does.",
)

# %%
def counts(optimizer):
    """Contexts that failed silently: a row for each model, a column per multiple."""
    table = {
        model: failed.sum(["context", "seed"]).values
        for model, failed in silent.sel(optimizer).items()
    }
    return pd.DataFrame(table, index=[f"{multiple:g}" for multiple in multiples]).T


at_some_rate = silent.map(lambda failed: failed.any(["rate", "seed"]))
failing = at_some_rate.map(lambda failed: int(failed.sum()))  # contexts

# %% tags=["hide-input"]
for optimizer, name in {"adam": "fig-silent-counts", "sgd": "fig-silent-counts-sgd"}.items():
    across = "learning rate / predicted critical rate"
    heat = count_map(counts(optimizer), labels[optimizer], across, len(nb.contexts))
    nb.figure(heat, name, runs=runs.sel(optimizer))

# %% tags=["hide-input"]
for optimizer in labels:
    by_model = failing.sel(optimizer)
    nb.record(
        "C1",
        min(by_model.values()),
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": min(runs.fewest_contexts(o) for o in labels),
            "rates": len(multiples),
        },
        runs=runs.sel(optimizer),
        detail={"contexts failing at some rate": by_model},
    )

# %% tags=["hide-input"]
def tally(optimizer):
    """How many of all runs had which outcome."""
    words = ["failed silently", "overtook", "fell by too little to count", "rose at some step or diverged"]
    counts = pd.Series(0, words)
    for found in runs.sel(optimizer).values():
        won, quiet = silent_failure.overtakes(found), silent_failure.silent(found)
        failed = silent_failure.silent(found, least_fall)
        counts += [int(kind.sum()) for kind in (failed, won, quiet & ~failed, ~won & ~quiet)]
    return counts


for optimizer in labels:
    outcomes = tally(optimizer)
    nb.say(
        "**{label}**: contexts (of {contexts}) that fail silently at one or more of the declared multiples, by model: "
        "{counts}. The {runs} runs by outcome: {outcomes}.",
        label=labels[optimizer],
        counts=", ".join(f"{name} {count}" for name, count in failing.sel(optimizer).items()),
        contexts=len(nb.contexts),
        runs=outcomes.sum(),
        outcomes=", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()),
    )
for model in loaded:
    for optimizer in labels:
        missing = {c.id for c in nb.fitting_contexts(model)} - {*runs[optimizer, model.name].context.values}
        if missing:
            nb.say(
                "> Left out for {model} under {label}, because no critical rate can be predicted: {missing}.",
                model=model.name,
                label=labels[optimizer],
                missing=", ".join(sorted(missing)),
            )


def how_many(optimizer):
    """How many of the sentences fail silently, from the model with the fewest to the one with the most."""
    of_models, all_of_them = failing.sel(optimizer).values(), len(nb.contexts)
    if min(of_models) == all_of_them:
        return f"all {in_words(all_of_them)}"
    few, many = in_words(min(of_models)), in_words(max(of_models))
    return f"{few} of {in_words(all_of_them)}" if few == many else f"{few} to {many} of {in_words(all_of_them)}"


nb.answer(
    "{yes} {adam} sentences fail silently on every model under Adam, and {sgd} under SGD. Each does so at one or more "
    "of {rates} learning rates, from {low:g} to {high:g} times the predicted critical one. In the run of "
    "{{numref}}`fig-silent` cross-entropy falls by {fall:.2f} nats in {steps} steps, and “{competitor}” {stays} "
    "ahead of “{correct}”.",
    start,
    yes="Yes." if any(failing.values()) else "Not in these runs.",
    adam=how_many("adam").capitalize(),
    sgd=how_many("sgd"),
    rates=in_words(len(multiples)),
    low=min(multiples),
    high=max(multiples),
    fall=start.cross_entropy - end.cross_entropy,
    steps=steps,
    stays="stays" if end.logit_gap < 0 else "does not stay",
)
nb.glue("least_multiple", min(multiples))
nb.glue("largest_multiple", max(multiples))

# %% [markdown]
# ## The edge between failing and learning
#
# Where does failing end? We look closely at one sentence, with runs on both sides of its predicted critical learning
# rate.

# %%
model, recipe = loaded[0], Recipe(steps=steps)
around = [0.5, 0.6, 0.7, 0.8, 0.9, 0.98, 1.02, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0]
candidates = nb.fitting_contexts(model)
fitting, critical = contexts_with_rates(nb.store, model, candidates, recipe)
edge = nb.store.run(model, fitting[:1], critical[0] * np.array(around), recipe)
edge = edge.isel(context=0, seed=0).assign_coords(rate=around)

# %% tags=["remove-cell"]
nb.caption(
    "fig-below-and-above",
    """One sentence on the first model, full fine-tuning with Adam at thirteen learning rates (deterministic, no
        seeds). (a) The losses of the runs 2 % below and 2 % above the predicted critical rate. (b) The losses of all
        runs after their last step, one dot each. (c) The logit gaps of the two runs over their last steps. (d) The gaps
        of all runs. Grey line: the critical rate, predicted from the checkpoint before any run. Orange: the competitor
        leads to the end. Blue: the correct token has overtaken. At the critical rate the loss is smooth, and the gap
        changes its sign.""",
    alt="""The losses of two runs almost coincide; one gap ends below zero, the other above. Over all runs the loss
        changes smoothly, and the gap passes zero at the predicted rate.""",
)

# %% tags=["hide-input"]
def below_and_above(run, *, narrow=False):
    """One sentence on both sides of its predicted critical rate (1 on the axis ``rate``).

    The two runs next to it are drawn step by step; all runs by their last step. Orange: the competitor leads to the
    end. Blue: the correct token has overtaken. ``narrow``: the panels one below the other, for a phone.
    """
    grid, size = ((4, 1), (3.6, 9.2)) if narrow else ((2, 2), (WIDTH, 4.9))
    figure, axes = plt.subplots(*grid, figsize=size, layout="constrained")
    (loss, losses), (gap, gaps) = axes.reshape(2, 2)
    steps, tail = int(run.step[-1]), int(run.step[-1]) // 5
    overtakes = (run.logit_gap > 0).any("step")
    for panel in (losses, gaps):
        panel.axvline(1, color=REFERENCE, linewidth=1.2)
    for panel in (gap, gaps):
        panel.axhline(0, color=REFERENCE, linewidth=0.8, linestyle=":")

    pair = run.sel(rate=[run.rate[run.rate < 1].max(), run.rate[run.rate > 1].min()])
    for rate, dash, place in zip(pair.rate, ("-", (0, (2.5, 2))), ("top", "bottom")):
        one, won = run.sel(rate=rate), overtakes.sel(rate=rate)
        word, colour = (run.correct, CORRECT) if won else (run.competitor, COMPETITOR)
        label = f"{100 * abs(rate - 1):.0f} % {'below' if rate < 1 else 'above'} critical"
        loss.plot(run.step, one.cross_entropy, color=colour, linestyle=dash, label=label)
        gap.plot(run.step, one.logit_gap, color=colour, linestyle=dash, marker=".")
        label_line(gap, steps, one.logit_gap[-1].item(), f"“{word.item()}”", colour, va=place)
    shown = pair.logit_gap.isel(step=slice(-1 - tail, None))
    margin = 0.15 * np.ptp(shown.values)
    loss.set(xlim=(0, steps), ylabel="cross-entropy (nat)", title="Two losses")
    loss.legend(loc="lower left", fontsize="small")
    gap.set(xlim=(steps - tail - 0.2, steps + 0.2), ylim=(shown.min() - margin, shown.max() + margin))
    gap.set(ylabel=r"logit gap $\Delta$ (nat)", title="Their last steps: which word leads?")
    for panel in (loss, gap):
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))

    last = run.isel(step=-1)
    for panel, values in ((losses, last.cross_entropy), (gaps, last.logit_gap)):
        for chosen, colour in ((~overtakes, COMPETITOR), (overtakes, CORRECT)):
            panel.plot(run.rate[chosen], values[chosen], "o", color=colour, markersize=5)
        panel.set_xscale("log")
        panel.set_xticks([0.5, 0.7, 1, 1.4, 2], ["0.5", "0.7", "1", "1.4", "2"])
        panel.minorticks_off()
    reach = 1.5 * abs(last.logit_gap).max().item()
    place = {"va": "top", "transform": losses.get_xaxis_transform()}
    losses.text(1.05, 0.96, "predicted\nbefore step 1", color=REFERENCE, **place)
    losses.set(title="The loss after the last step", ylabel="cross-entropy (nat)")
    gaps.text(0.95, -0.72 * reach, f"“{run.competitor.item()}”\nstill leads", color=COMPETITOR, ha="right", va="center")
    gaps.text(1.05, 0.8 * reach, f"“{run.correct.item()}”\nleads", color=CORRECT, va="center")
    gaps.set(title="The gap after the last step", ylim=(-reach, reach), ylabel="logit gap $\\Delta$ (nat)")
    gaps.set_xlabel("learning rate / predicted critical rate")
    letter_panels(figure)
    return figure


picture, narrow = below_and_above(edge), below_and_above(edge, narrow=True)
nb.glue("below_and_above", picture)
nb.glue("below_and_above_narrow", narrow)  # for phones, on the first page
plt.close(narrow)
last = edge[["cross_entropy", "logit_gap"]].to_dataframe()
nb.figure(picture, "fig-below-and-above", runs=edge, data=last.reset_index())

# %% tags=["hide-input"]
below, above = (last.loc[rate, steps] for rate in (0.98, 1.02))
nb.say(
    "“{correct}” against “{competitor}”: the critical rate is predicted to be {predicted:.3g}. Just below it the loss "
    "ends at {cross_entropy:.2f} nats and the gap at {logit_gap:+.3f}; just above it, at {above.cross_entropy:.2f} and "
    "{above.logit_gap:+.3f}.",
    below,
    above=above,
    predicted=critical[0],
)
for side, run in {"below": below, "above": above}.items():
    nb.glue(f"below_and_above_loss_{side}", run.cross_entropy)
    nb.glue(f"below_and_above_gap_{side}", run.logit_gap)

# %% [markdown]
# ## Who pays
#
# The two rows of the readout lie close together. Does an update that lifts the correct token therefore lift its
# near-synonym too? In each silent failure of Adam we compare the change of $\log p_k$ with that of $\log p_c$. We use
# log probabilities, because a number added to all logits changes no prediction ([chapter
# 07](07_what_softmax_cannot_see.ipynb)).


# %%
def gains(ds):
    """A row for every silent failure: what both words and the bulk gained."""
    end, begin = ds.isel(step=-1, drop=True), ds.isel(step=0, drop=True)
    log_c = begin.cross_entropy - end.cross_entropy
    columns = {
        "silent": silent_failure.silent(ds, least_fall),
        "ratio": (log_c - (end.logit_gap - begin.logit_gap)) / log_c,
        "p_c": end.p_correct - begin.p_correct,
        "p_k": end.p_competitor - begin.p_competitor,
        "overlap": begin.overlap,
    }
    table = xr.Dataset(columns).to_dataframe().reset_index()
    return table[table.silent]


gained = runs.table(gains).query("optimizer == 'adam'")
trend = gained[["overlap", "ratio"]].corr(method="spearman").iloc[0, 1]

# %% tags=["remove-cell"]
nb.caption(
    "fig-who-pays",
    """Change of the competitor's log probability, divided by that of the correct token, against the overlap of their
        two rows at step 0. One dot for every silent failure under Adam, one colour per model. Above the grey line both
        words gain probability; below it the competitor loses. Full fine-tuning, deterministic.""",
    alt="Most dots lie above the grey line, where both words gain; a few lie just below it.",
)

# %% tags=["hide-input"]
if len(gained):
    figure, axes = plt.subplots(figsize=(WIDTH, 2.9), layout="constrained")
    axes.axhline(0, color=REFERENCE, linewidth=1)
    of_models = model_colours(loaded)
    axes.scatter(gained.overlap, gained.ratio, c=list(gained.model.map(of_models)), s=12, alpha=0.8, linewidths=0)
    axes.set(xlabel="overlap $g_{ck}$", ylabel=r"$\Delta\log p_k\,/\,\Delta\log p_c$")
    legend_above(figure, of_models)
    nb.figure(figure, "fig-who-pays", runs=adam, data=gained)
    nb.say(
        "In {rising} of {n} silent failures the competitor gains probability as well. The median ratio is "
        "{median:+.2f}, and its rank correlation with the overlap is {trend:+.2f}. In the median failure the bulk "
        "loses {bulk:.2f} times the probability that the correct token gains.",
        rising=int((gained.p_k > 0).sum()),
        n=len(gained),
        median=gained.ratio.median(),
        trend=trend,
        bulk=(1 + gained.p_k / gained.p_c).median(),
    )

# %% [markdown]
# ## What it means
#
# A falling loss says that the correct token gains probability. It does not say which tokens lose it. While the
# competitor keeps its probability, the bulk of the vocabulary pays.
#
# ## What could be wrong
#
# The count depends on the multiples and on the number of steps, which are ours. They were declared before any run on
# them, and most multiples lie below the edge. If the predictions are right, the correct token cannot overtake there,
# so its failure is no surprise. What these runs add is the loss: it falls at every step, and by enough to look like
# success.
#
# Earlier, each optimiser had a grid of absolute learning rates. We gave it up after we had seen its runs. Such a rate
# means something else on every model, and the whole grid of SGD lay above the critical rates, so that nothing could
# fail there. [The ledger](00_ledger.ipynb) keeps the old declaration and its verdicts beside the new one.
#
# At a large enough learning rate every context here overtakes. The failure is a matter of budget, and the book shows
# that the budget can be known beforehand.
#
# ## Exercise
#
# Open this chapter with `phantom edit 02`. Is the edge as sharp under SGD? In the section “The edge between failing
# and learning”, write `Recipe(optimizer="sgd", steps=steps)` in place of `Recipe(steps=steps)`, and run the cells of
# the section.
#
# :::{dropdown} Answer
# It is. The run 2 % below the predicted rate never overtakes; the run 2 % above it does. The predicted rate itself is
# about seven times that of Adam for this sentence and model. In units of the predicted rate the two optimisers look
# alike.
# :::
