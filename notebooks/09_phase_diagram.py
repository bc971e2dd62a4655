# ---
# jupyter:
#   phantom:
#     minutes: 1
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
# # 09 · A phase diagram
#
# **Question.** If we vary how interchangeable two words are, and how hard we train, where does the correct word win?
#
# ```{glue:md} answer_09
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
import numpy as np
import pandas as pd

from phantomlib.book import notebook
from phantomlib.critical import search
from phantomlib.critical.numbers import kinematic_number
from phantomlib.critical.step_zero import velocity
from phantomlib.figures.silent_failure import phase_diagram
from phantomlib.measure.recipe import Recipe
from phantomlib.zoo import shipped

nb = notebook.start(
    "09_phase_diagram", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed
)
recipe = Recipe(steps=steps)

# %% [markdown]
# ## The boundary, before any point
#
# The [kinematic number](../definitions.md#kinematic-number) $N = \eta T v_0 / |\Delta_0|$ compares the distance
# that the [logit gap](../definitions.md#context) would travel at its initial velocity with the distance to go.
# [Chapter 06](06_dimensionless_numbers.ipynb) measured the value $N_c$ at which the correct token just overtakes.
# Here that value comes from models that are not charted. This chapter goes beyond the paper.


# %%
def find_critical(ref):
    model = nb.load(ref)
    return search.critical_rates(nb.store, model, nb.fitting_contexts(model), recipe)


def critical_number(ds):
    """Of one model: the geometric mean over its contexts."""
    return float(np.exp(np.nanmean(np.log(kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap)))))


# %%
fitted = [find_critical(ref) for ref in nb.models]
per_model = [critical_number(ds) for ds in fitted]
boundary = float(np.exp(np.mean(np.log(per_model))))
band = (min(per_model), max(per_model))
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
# The charted models are two GPT-2 style models of the smallest size. They learnt languages in which the
# interchangeability of the ten pairs was reassigned, evenly between 0.05 and 0.98. That spreads the
# [overlaps](../definitions.md#geometry) of the pairs. Each context is then fine-tuned with Adam at learning rates
# that correspond to given kinematic numbers.


# %%
def chart(ref):
    """The runs of one model at the given kinematic numbers."""
    model = nb.load(ref)
    fitting = nb.fitting_contexts(model)
    first = velocity(model, fitting, recipe)
    usable = (first.velocity > 0).numpy()  # elsewhere the kinematic number is undefined
    if not usable.all():
        nb.say(
            f"{model.name}: {(~usable).sum()} contexts start by moving away from the correct token; their kinematic "
            "number is undefined and they are not charted."
        )
    one = kinematic_number(1.0, steps, first.velocity.numpy()[usable], first.gap.numpy()[usable])  # at learning rate 1
    return nb.store.run(model, [c for c, use in zip(fitting, usable) if use], np.outer(1 / one, numbers), recipe)


runs = {ref: chart(ref) for ref in charted}


# %%
def outcomes(ref, ds):
    """A row for every run: where it lies, and how it ended."""
    name = ref.removeprefix("zoo:")
    planted = shipped.report(name)["interchangeability"] if ref.startswith("zoo:") else {}
    start, end = (ds.isel(step=step, seed=0, drop=True) for step in (0, -1))
    table = (
        ds[[]]
        .assign(
            overlap=start.overlap,
            order=end.phi / np.sqrt(1 - end.overlap**2),  # the order parameter over its bound
            rank=end.rank_correct,
            overtakes=(ds.logit_gap > 0).any("step").isel(seed=0, drop=True),
        )
        .to_dataframe()
        .reset_index()
    )
    number = np.array(numbers)[table.groupby("context", sort=False).cumcount()]
    return table.assign(model=name, number=number, interchangeability=table.context.map(planted))


points = pd.concat([outcomes(ref, ds) for ref, ds in runs.items()], ignore_index=True)
nb.figure(
    phase_diagram(points, boundary, band),
    "fig-phase",
    caption="""Phase diagram: every dot is one run of Adam (full fine-tuning, deterministic), placed by the
        overlap of its pair before training and by its kinematic number. Left: the final order parameter
        in units of its bound, from commitment to the competitor (blue) to the correct token (red). Right:
        the final rank of the correct token. Grey line and band: the critical kinematic number predicted
        from other models, and its range over them.""",
    alt="Two scatter plots over overlap and kinematic number; the outcome changes near the predicted horizontal line.",
    runs=[runs, fitted],
    data=points,
)

# %% [markdown]
# ## How sharp is the boundary?
#
# A run is predicted to overtake if its kinematic number exceeds the boundary.

# %%
points["right"] = (points.number > boundary) == points.overtakes
distance = pd.cut(
    np.log(points.number / boundary).abs(),
    [0, 0.1, 0.25, 0.5, np.inf],
    labels=["within 10 %", "10 to 28 %", "28 to 65 %", "further"],
)
right = points.groupby(distance, observed=True).right.agg(["count", "mean"]).reset_index()
right.columns = ["distance of $N$ from the boundary", "runs", "share on the predicted side"]
nb.table(right, runs=runs)

# %%
pairs = points.drop_duplicates(["model", "context"])
correlation = pairs[["interchangeability", "overlap"]].corr(method="spearman").iloc[0, 1]
nb.say(
    "Over the charted pairs the planted interchangeability and the overlap have a rank correlation of "
    "{correlation:.2f} (n = {n}): the {what}.",
    correlation=correlation,
    n=len(pairs),
    what="language's setting shapes the readout" if correlation > 0.3 else "setting shapes the readout only weakly",
)

# %% tags=["hide-input"]
nb.answer(
    "Above the line $N = N_c$ = {boundary:.2f}, which was fixed beforehand, from other models: {right} "
    "of {runs} runs end on the predicted side, at overlaps from {least:.2f} to {most:.2f}.",
    boundary=boundary,
    right=int(points.right.sum()),
    runs=len(points),
    least=points.overlap.min(),
    most=points.overlap.max(),
)

# %% [markdown]
# ## What it means
#
# If the boundary is flat in the overlap, the overlap does not decide whether the correct token wins; it acts only
# through the velocity $v_0$, which the kinematic number contains already.
#
# ## What could be wrong
#
# The charted models are of one size and one family. The vertical axis is chosen from step-0 quantities of the charted
# model, so the diagram tests the constant $N_c$, not the learning rate itself.
