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
# # A phase diagram
#
# **Question.** If we vary how interchangeable two words are, and how hard we train, where does the correct word win?
#
# **Answer.** Near the line $N = N_c$ that is fixed beforehand, from other models. This chapter goes beyond the paper. The table below says how many runs fall on the
# predicted side.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # models from which the boundary is predicted
charted: list[str] = ["zoo:gpt2-s-mix1", "zoo:gpt2-s-mix2"]  # models whose runs are charted
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
steps: int = 20  # optimiser steps of each run
numbers: list[float] = [0.1, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0, 10.0]  # kinematic numbers at which to run

# %% tags=["hide-cell"]
import numpy as np
import pandas as pd

from phantomlib.book import notebook
from phantomlib.critical import search
from phantomlib.critical.numbers import kinematic_number
from phantomlib.figures.silent_failure import phase_diagram
from phantomlib.zoo import shipped
from phantomlib.critical.step_zero import velocity
from phantomlib.measure.recipe import Recipe

nb = notebook.start("09_phase_diagram", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
recipe = Recipe(steps=steps)

# %% [markdown]
# ## The boundary, before any point
#
# The kinematic number $N = \eta T v_0 / |\Delta_0|$ compares the distance that the logit gap would travel at its initial velocity with the distance to go. The chapter on
# dimensionless numbers measured the value $N_c$ at which the correct token just overtakes. Here that value comes from models that are not
# charted.

# %% tags=["hide-input"]
fitted = []
for ref in nb.models:
    model = nb.load(ref)
    fitted.append(search.critical_rates(nb.store, model, nb.fitting_contexts(model), recipe))
per_model = [float(np.exp(np.nanmean(np.log(kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap))))) for ds in fitted]
boundary = float(np.exp(np.mean(np.log(per_model))))
band = (min(per_model), max(per_model))
notebook.say(f"From {len(per_model)} models: $N_c$ = {boundary:.3f}, between {band[0]:.3f} and {band[1]:.3f} over the models (geometric means over the contexts).")

# %% tags=["hide-input"]
nb.made_by([ds.attrs["run_ids"].split() for ds in fitted])

# %% [markdown]
# ## The points
#
# The charted models are two GPT-2 style models of the smallest size. They learnt languages in which the interchangeability of the ten pairs
# was reassigned, evenly between 0.05 and 0.98. That spreads the overlaps of the pairs. Each context is then fine-tuned with Adam at learning rates that
# correspond to given kinematic numbers.

# %% tags=["hide-input"]
rows, runs = [], []
for ref in charted:
    model = nb.load(ref)
    fitting = nb.fitting_contexts(model)
    first = velocity(model, fitting, recipe)
    usable = [i for i, v in enumerate(first.velocity.tolist()) if v > 0]
    if len(usable) < len(fitting):
        notebook.say(f"{model.name}: {len(fitting) - len(usable)} contexts start by moving away from the correct token; their kinematic number is undefined and they are not charted.")
    v, gap = first.velocity.numpy()[usable], first.gap.numpy()[usable]
    rates = np.outer(1 / kinematic_number(1.0, steps, v, gap), numbers)
    ds = nb.store.run(model, [fitting[i] for i in usable], rates, recipe)
    runs.append(ds)
    planted = shipped.report(model.name)["interchangeability"] if ref.startswith("zoo:") else {}
    for c, name in enumerate(ds.context.values):
        for r, number in enumerate(numbers):
            one = ds.isel(context=c, rate=r, seed=0)
            rows.append(
                {
                    "model": model.name,
                    "context": name,
                    "interchangeability": planted.get(name, np.nan),
                    "overlap": float(one.overlap[0]),
                    "number": number,
                    "order": float(one.phi[-1] / np.sqrt(1 - one.overlap[-1] ** 2)),
                    "rank": int(one.rank_correct[-1]),
                    "overtakes": bool((one.logit_gap > 0).any()),
                }
            )
points = pd.DataFrame(rows)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-phase", "caption": "Phase diagram: every dot is one run of Adam (full fine-tuning, deterministic), placed by the overlap of its pair before training and by its kinematic number. Left: the final order parameter in units of its bound, from commitment to the competitor (blue) to the correct token (red). Right: the final rank of the correct token. Grey line and band: the critical kinematic number predicted from other models, and its range over them."}, "image": {"alt": "Two scatter plots over overlap and kinematic number; the outcome changes near the predicted horizontal line.", "width": "100%"}}
phase_diagram(points, boundary, band);

# %% tags=["hide-input"]
nb.made_by(runs, [ds.attrs["run_ids"].split() for ds in fitted])

# %% [markdown]
# ## How sharp is the boundary?
#
# A run is predicted to overtake if its kinematic number exceeds the boundary.

# %% tags=["hide-input"]
predicted = points.number > boundary
points["right"] = predicted == points.overtakes
distance = pd.cut((np.log(points.number / boundary)).abs(), [0, 0.1, 0.25, 0.5, np.inf], labels=["within 10 %", "10 to 28 %", "28 to 65 %", "further"])
right = points.groupby(distance, observed=True).right.agg(["count", "mean"]).reset_index()
right.columns = ["distance of N from the boundary", "runs", "share on the predicted side"]
notebook.table(right, digits=3)
spread = points.drop_duplicates(["model", "context"])
correlation = spread[["interchangeability", "overlap"]].corr(method="spearman").iloc[0, 1]
notebook.say(
    f"In all, {int(points.right.sum())} of {len(points)} runs end on the predicted side. Over the charted pairs the planted interchangeability and the overlap have a rank "
    f"correlation of {correlation:.2f} (n = {len(spread)}): " + ("the language's setting shapes the readout." if correlation > 0.3 else "the setting shapes the readout only weakly.")
)

# %% tags=["hide-input"]
nb.made_by(runs)

# %% [markdown]
# ## What it means
#
# If the boundary is flat in the overlap, the overlap does not decide whether the correct token wins; it acts only through the velocity $v_0$, which the kinematic number contains already.
#
# ## What could be wrong
#
# The charted models are of one size and one family. The vertical axis is chosen from step-0 quantities of the charted model, so the diagram tests the constant
# $N_c$, not the learning rate itself.
