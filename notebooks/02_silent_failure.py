# ---
# jupyter:
#   phantom:
#     minutes: 1.5
#   jupytext:
#     formats: py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Silent failure
#
# **Question.** Can fine-tuning look healthy, with a loss that falls at every step, and still not teach the model the
# word it was trained on?
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

from phantombook import notebook
from phantomlib.critical.predictors import contexts_with_rates
from phantombook.figures.palette import model_colours
from phantombook.figures.silent_failure import below_and_above, count_map, gap_trajectories, loss_and_rank
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.study import Study
from phantomlib.transition import silent_failure

nb = notebook.start("02_silent_failure")
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
labels = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## What was done
#
# Each [context](../definitions.md#context) is fine-tuned on its own. The loss is the cross-entropy of the correct
# token after the prompt. All parameters are trained. Each run starts from the same checkpoint and takes the same
# number of steps. At every step we record the loss, the probabilities and logits of the correct token $c$ and the
# competitor $k$, and everything the other chapters need.
#
# Learning rates are given in units of each context's [predicted critical
# rate](../definitions.md#critical-learning-rate): the smallest one at which the correct token is expected to overtake
# within these steps. It is predicted from the checkpoint alone, before any step of training ([chapter
# 08](08_dimensionless_numbers.ipynb) says how). So the same few multiples serve every model and both optimisers. They
# were chosen beforehand to lie mostly below one, where failing is expected, with one above it.
#
# A run is a [silent failure](../definitions.md#silent-failure) if its cross-entropy never rises and ends lower, yet
# the [logit gap](../definitions.md#context) $\Delta = z_c - z_k$ is never positive: the correct token never
# overtakes. For the count we also ask that cross-entropy falls by at least 0.1 nat, so that runs in which nothing
# happened do not count.
#
# "Never" is a statement about a budget: not within this number of steps at this learning rate. A longer run, or a
# larger learning rate, may well succeed. [Chapter 08](08_dimensionless_numbers.ipynb) computes how much is enough.


# %%
def fine_tune(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    fitting, critical = contexts_with_rates(nb.store, model, nb.fitting_contexts(model), recipe)
    return nb.store.run(model, fitting, critical[:, None] * multiples, recipe).assign_coords(rate=multiples)


runs = Study.of(fine_tune, loaded)  # a dataset (context, rate, seed, step) for each optimiser and model
silent = runs.map(silent_failure.silent, least_fall)
adam = runs.sel("adam")

# %% [markdown]
# ## One run, two stories
#
# The left panel is what a training script shows: a loss that falls. The right panel is what the model would say.

# %% tags=["remove-cell"]
nb.caption(
    "fig-silent",
    """A silent failure: one context of the first model, full fine-tuning with Adam, one run (no
        randomness, so no seeds). Left: cross-entropy of the correct token. Right: probability of the
        correct token (blue) and of its near-synonym (orange). The run shown is the silent failure with
        the largest fall of cross-entropy.""",
    alt="Left, a falling loss curve. Right, the probabilities of the two words, whose order does not change.",
)

# %%
first = loaded[0].name
example = silent_failure.clearest_failure(adam[first], silent["adam", first])
picture = loss_and_rank(example)
nb.glue("hero", picture)
nb.figure(picture, "fig-silent", runs=adam[first])

# %%
start, end = example.isel(step=0), example.isel(step=-1)
nb.say(
    "In this run ({steps} steps at {multiple:g} times the predicted critical learning rate, which is {rate:.3g}) "
    "cross-entropy falls from {loss:.2f} to {last_loss:.2f} nats. The probability of “{correct}” goes from "
    "{p:.3f} to {last_p:.3f}, that of “{competitor}” from {q:.3f} to {last_q:.3f}. The logit gap goes from "
    "{gap:+.2f} to {last_gap:+.2f} nats: {what}",
    multiple=float(example.rate),
    rate=float(example.learning_rate / example.rate),
    steps=steps,
    loss=float(start.cross_entropy),
    last_loss=float(end.cross_entropy),
    correct=example.correct.item(),
    competitor=example.competitor.item(),
    p=float(start.p_correct),
    last_p=float(end.p_correct),
    q=float(start.p_competitor),
    last_q=float(end.p_competitor),
    gap=float(start.logit_gap),
    last_gap=float(end.logit_gap),
    what="it has closed somewhat and is still negative." if float(end.logit_gap) < 0 else "it has closed.",
)

# %% [markdown]
# ## All runs
#
# Each line below is one run of Adam. Training moves it to the right, as cross-entropy falls. A run succeeds when it
# crosses the grey line at $\Delta = 0$. Coloured lines do not, although their loss never rose: they failed silently.
# Light grey lines crossed, or fell by too little to count.

# %% tags=["remove-cell"]
nb.caption(
    "fig-silent-trajectories",
    """Logit gap against cross-entropy for every run of Adam (every context at every multiple of its
        predicted critical rate in each panel; deterministic, no seeds). Coloured: silent failures whose
        cross-entropy ends at least 0.1 nat lower. Light grey: all other runs. The horizontal line marks
        where the correct token overtakes; the axis is cut at plus and minus 5 nats.""",
    alt="Trajectories of the logit gap against cross-entropy, one panel per model.",
)

# %%
nb.figure(
    gap_trajectories(adam, colours, silent.sel("adam")),
    "fig-silent-trajectories",
    runs=adam,
)

# %% [markdown]
# ## How often
#
# The maps count, for each model and multiple of the predicted critical rate, the contexts that failed silently. At
# small multiples the loss may not move by 0.1 nat within the budget; such runs do not count. Above one the correct
# token should overtake, and below one it should not: where it is otherwise, the prediction was off by as much.


# %% tags=["remove-cell"]
nb.caption(
    "fig-silent-counts",
    """Number of contexts that failed silently, with cross-entropy ending at least 0.1 nat lower, by
        model and learning rate, in units of each context's predicted critical rate under Adam (full
        fine-tuning; one deterministic run per cell and context).""",
    alt="Heat map of the number of silent failures by model and multiple of the predicted critical rate under Adam.",
)
nb.caption(
    "fig-silent-counts-sgd",
    "The same count under SGD, at the same multiples of the critical rates predicted for SGD.",
    alt="Heat map of the number of silent failures by model and multiple of the predicted critical rate under SGD.",
)

# %%
def counts(optimizer):
    """Contexts that failed silently; a row for each model, a column for each multiple."""
    table = {model: failed.sum(["context", "seed"]).values for model, failed in silent.sel(optimizer).items()}
    return pd.DataFrame(table, index=[f"{multiple:g}" for multiple in multiples]).T


across = "learning rate / predicted critical rate"
nb.figure(
    count_map(counts("adam"), "Adam", "contexts", largest=len(nb.contexts), across=across),
    "fig-silent-counts",
    runs=adam,
)
nb.figure(
    count_map(counts("sgd"), "SGD", "contexts", largest=len(nb.contexts), across=across),
    "fig-silent-counts-sgd",
    runs=runs.sel("sgd"),
)

# %%
failing = silent.map(lambda failed: int(failed.any(["rate", "seed"]).sum()))  # contexts that fail at some rate
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
for optimizer in labels:
    tally = silent_failure.tally(list(runs.sel(optimizer).values()), least_fall)
    nb.say(
        "**{label}**: contexts that fail silently at one or more of the declared multiples: {counts}, of "
        "{contexts}. All {runs} runs: {outcomes}.",
        label=labels[optimizer],
        counts=", ".join(f"{name} {count}" for name, count in failing.sel(optimizer).items()),
        contexts=len(nb.contexts),
        runs=sum(tally.values()),
        outcomes=", ".join(f"{count} {outcome}" for outcome, count in tally.items()),
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


def span(optimizer):
    """The share of each model's contexts that fail silently, from the least to the greatest."""
    shares = [count / runs[optimizer, name].sizes["context"] for name, count in failing.sel(optimizer).items()]
    return " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))


nb.answer(
    "{yes} Of each model's contexts {adam} fail silently under Adam, and {sgd} under SGD, at one or more of "
    "{rates} learning rates from {low:g} to {high:g} times the one that is predicted to be critical. In the run "
    "of {{numref}}`fig-silent` cross-entropy falls by {fall:.2f} nats in {steps} steps, and “{k}” {stays} ahead "
    "of “{c}”.",
    yes="Yes." if any(failing.values()) else "Not in these runs.",
    adam=span("adam"),
    sgd=span("sgd"),
    rates=len(multiples),
    low=min(multiples),
    high=max(multiples),
    fall=float(start.cross_entropy - end.cross_entropy),
    steps=steps,
    stays="stays" if float(end.logit_gap) < 0 else "does not stay",
    c=example.correct.item(),
    k=example.competitor.item(),
)

# %% [markdown]
# ## The edge between failing and learning
#
# Where does failing end? One sentence from close by: runs on both sides of the critical learning rate that was
# predicted for it.

# %%
model, recipe = loaded[0], Recipe(steps=steps)
around = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.98, 1.02, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0])
fitting, critical = contexts_with_rates(nb.store, model, nb.fitting_contexts(model), recipe)  # as above, from the store
edge = nb.store.run(model, fitting[:1], critical[0] * around, recipe).isel(context=0, seed=0)

# %% tags=["remove-cell"]
nb.caption(
    "fig-below-and-above",
    """One sentence, full fine-tuning with Adam at thirteen learning rates (deterministic, no seeds).
        The grey line is the critical rate, predicted from the checkpoint before any of the runs; each dot
        is one run. Left: the two runs 2 % below and 2 % above it, the logit gap over their last steps.
        Right: all runs after their last step. The loss has no feature at the critical rate; the sign of
        the gap changes there.""",
    alt="The losses of two runs almost coincide; their gaps end on different sides of zero, where it was predicted.",
)

# %%
picture, narrow = below_and_above(edge, critical[0]), below_and_above(edge, critical[0], narrow=True)
nb.glue("below_and_above", picture)
nb.glue("below_and_above_narrow", narrow)  # for phones, on the first page
plt.close(narrow)
nb.figure(
    picture,
    "fig-below-and-above",
    runs=edge,
    data=edge[["cross_entropy", "logit_gap"]].to_dataframe().reset_index(),
)

# %%
below, above = (edge.isel(rate=index, step=-1) for index in (5, 6))
nb.say(
    "“{correct}” against “{competitor}”: the critical rate is predicted to be {predicted:.3g}. Just "
    "below it the loss ends at {loss_below:.2f} nats and the gap at {gap_below:+.3f}; just above it, at "
    "{loss_above:.2f} and {gap_above:+.3f}.",
    correct=edge.correct.item(),
    competitor=edge.competitor.item(),
    predicted=critical[0],
    loss_below=float(below.cross_entropy),
    gap_below=float(below.logit_gap),
    loss_above=float(above.cross_entropy),
    gap_above=float(above.logit_gap),
)
for side, run in {"below": below, "above": above}.items():
    nb.glue(f"below_and_above_loss_{side}", float(run.cross_entropy))
    nb.glue(f"below_and_above_gap_{side}", float(run.logit_gap))

# %% [markdown]
# ## What it means
#
# A falling loss says that the correct token gains probability. It does not say from whom. Near-synonyms sit close
# together in the readout, so an update that lifts one lifts the other; most of the gain comes from the bulk of the
# vocabulary.
#
# ## What could be wrong
#
# The count depends on the multiples and on the number of steps, which are ours. They were declared before any run on
# them, and chosen to lie mostly below the edge. If the predictions are right, the correct token cannot overtake
# there, and it is no surprise that it does not; what these runs add is that the loss falls at every step all the
# while, and by enough to look like success. Earlier, each optimiser had a grid of absolute learning rates. It was
# given up after its runs had been seen: such a rate means something else on every model, and the whole grid of SGD
# lay above the critical rates, so that nothing could fail there. [The ledger](00_ledger.ipynb) keeps the old
# declaration and its verdicts beside the new one.
#
# At a large enough learning rate every context here overtakes. The failure is one of budget, and the point of the book
# is that the budget can be known beforehand.
