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
# # Silent failure
#
# **Question.** Can fine-tuning look healthy, with a loss that falls at every step, and still never teach the model the word it was
# trained on?
#
# **Answer.** The table at the end of this page counts it, model by model. The loss is not a witness: it can fall because
# *both* near-synonyms gain on everything else, while their order stays as it was.

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
import pandas as pd

from phantomlib.book import notebook
from phantomlib.figures.palette import model_colours
from phantomlib.figures.silent_failure import count_map, gap_trajectories, loss_and_rank
from phantomlib.transition import silent_failure
from phantomlib.measure.recipe import Recipe

nb = notebook.start("01_silent_failure", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
grids = {"adam": learning_rates, "sgd": sgd_learning_rates}

# %% [markdown]
# ## What was done
#
# Each context is fine-tuned on its own. The loss is the cross-entropy of the correct token after the prompt. All parameters are
# trained. Each run starts from the same checkpoint and takes the same number of steps, at one of five learning rates that were chosen
# beforehand to cover what practitioners use. At every step we record the loss, the probabilities and logits of the correct token $c$ and the
# competitor $k$, and everything the later chapters need.
#
# A run is a **silent failure** if its cross-entropy never rises and ends lower, yet the logit gap $\Delta = z_c - z_k$ is never positive: the
# correct token never overtakes. For the count we also ask that cross-entropy falls by at least 0.1 nat, so that runs in which
# nothing happened do not count.
#
# "Never" is a statement about a budget. A longer run, or a larger learning rate, may well succeed; a later chapter computes how much is
# enough.

# %% tags=["hide-input"]
runs, silent = {}, {}
for optimizer, rates in grids.items():
    for model in loaded:
        fitting = nb.fitting_contexts(model)
        ds = nb.store.run(model, fitting, rates, Recipe(optimizer=optimizer, steps=steps))
        runs[optimizer, model.name], silent[optimizer, model.name] = ds, silent_failure.silent(ds, least_fall)

# %% [markdown]
# ## One run, two stories
#
# The left panel is what a training script shows: a loss that falls. The right panel is what the model would say.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-silent", "caption": "A silent failure: one context of the first model, full fine-tuning with Adam, one run (no randomness, so no seeds). Left: cross-entropy of the correct token falls at every step. Right: probability of the correct token (blue) and of its near-synonym (orange); their order never changes. The run shown is the silent failure with the largest fall of cross-entropy."}, "image": {"alt": "Left, a falling loss curve. Right, the probabilities of the two words, whose order does not change.", "width": "100%"}}
first = runs["adam", loaded[0].name]
example = silent_failure.clearest_failure(first, silent["adam", loaded[0].name])
figure = loss_and_rank(example)
nb.glue("hero", figure)

# %% tags=["hide-input"]
nb.made_by(first)

# %% tags=["hide-input"]
start, end = example.isel(step=0), example.isel(step=-1)
notebook.say(
    f"In this run (learning rate {float(example.learning_rate):.3g}, {steps} steps) cross-entropy falls from "
    f"{float(start.cross_entropy):.2f} to {float(end.cross_entropy):.2f} nats. The probability of “{example.correct.item()}” "
    f"goes from {float(start.p_correct):.3f} to {float(end.p_correct):.3f}, that of “{example.competitor.item()}” from "
    f"{float(start.p_competitor):.3f} to {float(end.p_competitor):.3f}. The logit gap goes from {float(start.logit_gap):+.2f} "
    f"to {float(end.logit_gap):+.2f} nats: "
    + ("it has closed somewhat and is still negative." if float(end.logit_gap) < 0 else "it has closed.")
)

# %% [markdown]
# ## All runs
#
# Each line below is one run of Adam. Training moves it to the right, as cross-entropy falls. A run succeeds when it crosses the
# grey line at $\Delta = 0$. Coloured lines never do, although their loss never rose: they failed silently. Light grey lines crossed, or fell by
# too little to count.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-silent-trajectories", "caption": "Logit gap against cross-entropy for every run of Adam (ten contexts by five learning rates in each panel; deterministic, no seeds). Coloured: silent failures whose cross-entropy ends at least 0.1 nat lower. Light grey: all other runs. The horizontal line marks where the correct token overtakes; the axis is cut at plus and minus 5 nats."}, "image": {"alt": "Trajectories of the logit gap against cross-entropy, one panel per model.", "width": "100%"}}
adam = {m.name: runs["adam", m.name] for m in loaded}
gap_trajectories(adam, colours, {m.name: silent["adam", m.name] for m in loaded});

# %% tags=["hide-input"]
nb.made_by(adam)

# %% [markdown]
# ## How often
#
# The map counts, for each model and learning rate, the contexts that failed silently. Very small rates fail to move the loss by 0.1
# nat within the budget, so they do not count. Large rates overtake.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-silent-counts", "caption": "Number of contexts that failed silently, with cross-entropy ending at least 0.1 nat lower, by model and learning rate of Adam (full fine-tuning; one deterministic run per cell and context)."}, "image": {"alt": "Heat map of the number of silent failures by model and learning rate under Adam.", "width": "100%"}}
counts = {
    optimizer: pd.DataFrame(
        {m.name: silent[optimizer, m.name].sum(["context", "seed"]).values for m in loaded},
        index=[f"{rate:.0e}" for rate in rates],
    ).T
    for optimizer, rates in grids.items()
}
axes = count_map(counts["adam"], "Adam", "contexts", largest=len(nb.contexts))
axes.set_xlabel("learning rate");

# %% tags=["hide-input"]
nb.made_by(adam)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-silent-counts-sgd", "caption": "The same count under SGD, at its own grid of learning rates."}, "image": {"alt": "Heat map of the number of silent failures by model and learning rate under SGD.", "width": "100%"}}
axes = count_map(counts["sgd"], "SGD", "contexts", largest=len(nb.contexts))
axes.set_xlabel("learning rate");

# %% tags=["hide-input"]
nb.made_by({m.name: runs["sgd", m.name] for m in loaded})

# %% tags=["hide-input"]
for optimizer in grids:
    failing = {m.name: int(silent[optimizer, m.name].any(["rate", "seed"]).sum()) for m in loaded}
    nb.record(
        "C1",
        min(failing.values()),
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": min(ds.sizes["context"] for ds in runs.values()), "rates": len(grids[optimizer])},
        runs=[runs[optimizer, m.name] for m in loaded],
        detail={"contexts failing at some rate": failing},
    )
    tally = silent_failure.tally([runs[optimizer, m.name] for m in loaded], least_fall)
    notebook.say(
        f"**{'SGD' if optimizer == 'sgd' else 'Adam'}**: contexts that fail silently at one or more of the declared rates: "
        + ", ".join(f"{name} {count}" for name, count in failing.items())
        + f", of {len(nb.contexts)}. All {sum(tally.values())} runs: "
        + ", ".join(f"{count} {outcome}" for outcome, count in tally.items())
        + "."
    )

# %% [markdown]
# ## The edge between failing and learning
#
# Where does failing end? The critical learning rate is the smallest one at which the correct token overtakes within the budget of steps. It is predicted here from the
# checkpoint alone, before any step of training ([how](06_dimensionless_numbers)). Then the runs are made, on both sides of it.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-below-and-above", "caption": "One sentence, full fine-tuning with Adam at thirteen learning rates (deterministic, no seeds). The grey line is the critical rate, predicted from the checkpoint before any of the runs; each dot is one run. Left: the two runs 2 % below and 2 % above it, the logit gap over their last steps. Right: all runs after their last step. The loss has no feature at the critical rate; the sign of the gap changes there."}, "image": {"alt": "Losses of two runs almost coincide; their logit gaps end on different sides of zero, at the predicted learning rate.", "width": "100%"}}
import numpy as np
import matplotlib.pyplot as plt

from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.figures.silent_failure import below_and_above

recipe = Recipe(steps=steps)
fitting = nb.fitting_contexts(loaded[0])
predicted = predict_critical_rates(nb.store, loaded[0], fitting, recipe).third_order
chosen = int(np.isfinite(predicted).argmax())  # the first sentence that has a prediction
multiples = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.98, 1.02, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0])
edge = nb.store.run(loaded[0], [fitting[chosen]], float(predicted[chosen]) * multiples, recipe).isel(context=0, seed=0)
figure = below_and_above(edge, float(predicted[chosen]))
nb.glue("below_and_above", figure)

# %% tags=["hide-input"]
nb.made_by(edge)

# %% tags=["hide-input"]
below, above = (edge.isel(rate=index, step=-1) for index in (5, 6))
notebook.say(
    f"“{edge.correct.item()}” against “{edge.competitor.item()}”: the critical rate is predicted to be {float(predicted[chosen]):.3g}. Just below it the loss ends at "
    f"{float(below.cross_entropy):.2f} nats and the gap at {float(below.logit_gap):+.3f}; just above it, at {float(above.cross_entropy):.2f} and {float(above.logit_gap):+.3f}."
)
for side, run in {"below": below, "above": above}.items():
    nb.glue(f"below_and_above_loss_{side}", float(run.cross_entropy))
    nb.glue(f"below_and_above_gap_{side}", float(run.logit_gap))
narrow = below_and_above(edge, float(predicted[chosen]), narrow=True)
nb.glue("below_and_above_narrow", narrow)  # for phones, on the first page
plt.close(narrow)

# %% [markdown]
# ## What it means
#
# A falling loss says that the correct token gains probability. It does not say from whom. Near-synonyms sit close
# together in the readout, so an update that lifts one lifts the other; most of the gain comes from the bulk of the vocabulary.
#
# ## What could be wrong
#
# The count depends on the grid of learning rates and on the number of steps, which are ours. Where a whole grid lies above the critical learning rates, every run of it overtakes and none can fail
# silently; the tally above says when that is so. The grids were declared before the runs and were not moved afterwards. At a large enough learning rate every context here
# overtakes. The failure is one of budget, and the point of the book is that the budget can be known beforehand.
