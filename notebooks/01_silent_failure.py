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
# # 01 · Silent failure
#
# **Question.** Can fine-tuning look healthy, with a loss that falls at every step, and still not teach the model the
# word it was trained on?
#
# ```{glue:md} answer_01
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
learning_rates: list[float] = [1.0e-5, 3.0e-5, 1.0e-4, 3.0e-4, 1.0e-3]  # learning rates of Adam
sgd_learning_rates: list[float] = [1.0e-3, 3.0e-3, 1.0e-2, 3.0e-2, 1.0e-1]  # learning rates of SGD
steps: int = 20  # optimiser steps of each run
least_fall: float = 0.1  # nats by which cross-entropy must end lower for a failure to count

# %% tags=["hide-cell"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from phantomlib.book import notebook
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.figures.palette import model_colours
from phantomlib.figures.silent_failure import below_and_above, count_map, gap_trajectories, loss_and_rank
from phantomlib.measure.recipe import Recipe
from phantomlib.measure.study import Study
from phantomlib.transition import silent_failure

nb = notebook.start(
    "01_silent_failure", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed
)
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
grids = {"adam": learning_rates, "sgd": sgd_learning_rates}
labels = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## What was done
#
# Each [context](../definitions.md#context) is fine-tuned on its own. The loss is the cross-entropy of the correct
# token after the prompt. All parameters are trained. Each run starts from the same checkpoint and takes the same
# number of steps, at one of five learning rates that were chosen beforehand to cover what practitioners use. At every
# step we record the loss, the probabilities and logits of the correct token $c$ and the competitor $k$, and
# everything the other chapters need.
#
# A run is a [silent failure](../definitions.md#silent-failure) if its cross-entropy never rises and ends lower, yet
# the logit gap $\Delta = z_c - z_k$ is never positive: the correct token never overtakes. For the count we also ask
# that cross-entropy falls by at least 0.1 nat, so that runs in which nothing happened do not count.
#
# "Never" is a statement about a budget: not within this number of steps at this learning rate. A longer run, or a
# larger learning rate, may well succeed. [Chapter 06](06_dimensionless_numbers.ipynb) computes how much is enough.


# %%
def fine_tune(model, optimizer):
    return nb.store.run(model, nb.fitting_contexts(model), grids[optimizer], Recipe(optimizer=optimizer, steps=steps))


runs = Study.of(fine_tune, loaded)  # a dataset (context, rate, seed, step) for each optimiser and model
silent = runs.map(silent_failure.silent, least_fall)
adam = runs.sel("adam")

# %% [markdown]
# ## One run, two stories
#
# The left panel is what a training script shows: a loss that falls. The right panel is what the model would say.

# %%
first = loaded[0].name
example = silent_failure.clearest_failure(adam[first], silent["adam", first])
picture = loss_and_rank(example)
nb.glue("hero", picture)
nb.figure(
    picture,
    "fig-silent",
    caption="""A silent failure: one context of the first model, full fine-tuning with Adam, one run (no
        randomness, so no seeds). Left: cross-entropy of the correct token. Right: probability of the
        correct token (blue) and of its near-synonym (orange). The run shown is the silent failure with
        the largest fall of cross-entropy.""",
    alt="Left, a falling loss curve. Right, the probabilities of the two words, whose order does not change.",
    runs=adam[first],
)

# %%
start, end = example.isel(step=0), example.isel(step=-1)
nb.say(
    "In this run (learning rate {rate:.3g}, {steps} steps) cross-entropy falls from {loss:.2f} to "
    "{last_loss:.2f} nats. The probability of “{correct}” goes from {p:.3f} to {last_p:.3f}, that of "
    "“{competitor}” from {q:.3f} to {last_q:.3f}. The logit gap goes from {gap:+.2f} to {last_gap:+.2f} "
    "nats: {what}",
    rate=float(example.learning_rate),
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

# %%
nb.figure(
    gap_trajectories(adam, colours, silent.sel("adam")),
    "fig-silent-trajectories",
    caption="""Logit gap against cross-entropy for every run of Adam (every context at five learning rates in
        each panel; deterministic, no seeds). Coloured: silent failures whose cross-entropy ends at least
        0.1 nat lower. Light grey: all other runs. The horizontal line marks where the correct token
        overtakes; the axis is cut at plus and minus 5 nats.""",
    alt="Trajectories of the logit gap against cross-entropy, one panel per model.",
    runs=adam,
)

# %% [markdown]
# ## How often
#
# The map counts, for each model and learning rate, the contexts that failed silently. Very small rates fail to move
# the loss by 0.1 nat within the budget, so they do not count. Large rates overtake.


# %%
def counts(optimizer):
    """Contexts that failed silently; a row for each model, a column for each learning rate."""
    table = {model: failed.sum(["context", "seed"]).values for model, failed in silent.sel(optimizer).items()}
    return pd.DataFrame(table, index=[f"{rate:.0e}" for rate in grids[optimizer]]).T


nb.figure(
    count_map(counts("adam"), "Adam", "contexts", largest=len(nb.contexts), across="learning rate"),
    "fig-silent-counts",
    caption="""Number of contexts that failed silently, with cross-entropy ending at least 0.1 nat lower, by
        model and learning rate of Adam (full fine-tuning; one deterministic run per cell and context).""",
    alt="Heat map of the number of silent failures by model and learning rate under Adam.",
    runs=adam,
)
nb.figure(
    count_map(counts("sgd"), "SGD", "contexts", largest=len(nb.contexts), across="learning rate"),
    "fig-silent-counts-sgd",
    caption="The same count under SGD, at its own grid of learning rates.",
    alt="Heat map of the number of silent failures by model and learning rate under SGD.",
    runs=runs.sel("sgd"),
)

# %%
failing = silent.map(lambda failed: int(failed.any(["rate", "seed"]).sum()))  # contexts that fail at some rate
for optimizer, rates in grids.items():
    by_model = failing.sel(optimizer)
    nb.record(
        "C1",
        min(by_model.values()),
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": min(runs.fewest_contexts(o) for o in grids),
            "rates": len(rates),
        },
        runs=runs.sel(optimizer),
        detail={"contexts failing at some rate": by_model},
    )

# %% tags=["hide-input"]
for optimizer in grids:
    tally = silent_failure.tally(list(runs.sel(optimizer).values()), least_fall)
    nb.say(
        "**{label}**: contexts that fail silently at one or more of the declared rates: {counts}, of "
        "{contexts}. All {runs} runs: {outcomes}.",
        label=labels[optimizer],
        counts=", ".join(f"{name} {count}" for name, count in failing.sel(optimizer).items()),
        contexts=len(nb.contexts),
        runs=sum(tally.values()),
        outcomes=", ".join(f"{count} {outcome}" for outcome, count in tally.items()),
    )
share = [count / adam[name].sizes["context"] for name, count in failing.sel("adam").items()]
nb.answer(
    "{yes} Under Adam, {least:.0%} to {most:.0%} of each model's contexts fail silently at one or more "
    "of {rates} ordinary learning rates. In the run of {{numref}}`fig-silent` cross-entropy falls by "
    "{fall:.2f} nats in {steps} steps, and “{k}” {stays} ahead of “{c}”.",
    yes="Yes." if max(share) > 0 else "Not in these runs.",
    least=min(share),
    most=max(share),
    rates=len(learning_rates),
    fall=float(start.cross_entropy - end.cross_entropy),
    steps=steps,
    stays="stays" if float(end.logit_gap) < 0 else "does not stay",
    c=example.correct.item(),
    k=example.competitor.item(),
)

# %% [markdown]
# ## The edge between failing and learning
#
# Where does failing end? The [critical learning rate](../definitions.md#critical-learning-rate) is the smallest one
# at which the correct token overtakes within the budget of steps. It is predicted here from the checkpoint alone,
# before any step of training ([chapter 06](06_dimensionless_numbers.ipynb) says how). Then the runs are made, on both
# sides of it.

# %%
model, recipe = loaded[0], Recipe(steps=steps)
multiples = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.98, 1.02, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0])
predictions = predict_critical_rates(nb.store, model, nb.fitting_contexts(model), recipe).third_order
chosen = int(np.isfinite(predictions).argmax())  # the first sentence that has a prediction
predicted = float(predictions[chosen])
edge = nb.store.run(model, [nb.fitting_contexts(model)[chosen]], predicted * multiples, recipe).isel(context=0, seed=0)

# %%
picture, narrow = below_and_above(edge, predicted), below_and_above(edge, predicted, narrow=True)
nb.glue("below_and_above", picture)
nb.glue("below_and_above_narrow", narrow)  # for phones, on the first page
plt.close(narrow)
nb.figure(
    picture,
    "fig-below-and-above",
    caption="""One sentence, full fine-tuning with Adam at thirteen learning rates (deterministic, no seeds).
        The grey line is the critical rate, predicted from the checkpoint before any of the runs; each dot
        is one run. Left: the two runs 2 % below and 2 % above it, the logit gap over their last steps.
        Right: all runs after their last step. The loss has no feature at the critical rate; the sign of
        the gap changes there.""",
    alt="The losses of two runs almost coincide; their gaps end on different sides of zero, where it was predicted.",
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
    predicted=predicted,
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
# The count depends on the grid of learning rates and on the number of steps, which are ours. Where a whole grid lies
# above the critical learning rates, every run of it overtakes and none can fail silently; the tally above says when
# that is so. The grids were declared before the runs and were not moved afterwards. At a large enough learning rate
# every context here overtakes. The failure is one of budget, and the point of the book is that the budget can be
# known beforehand.
