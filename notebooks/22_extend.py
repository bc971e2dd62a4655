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
#     code: shown
# ---

# %% [markdown]
# # 22 · Extend the companion
#
# **Question.** How do I record something new, use sentences of my own, and test a claim of mine?
#
# ```{glue:md} answer_22
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
multiples: list[float] = [0.3, 0.9, 1.5]  # learning rates in units of each context's predicted critical rate
steps: int = 20  # optimiser steps of each run

# %% tags=["hide-cell"]
import matplotlib.pyplot as plt
import seaborn as sns

from phantombook import notebook
from phantomlib.critical.predictors import contexts_with_rates
from phantomlib.engine.recipe import Recipe

nb = notebook.start("22_extend")
recipe = Recipe(steps=steps)

# %% [markdown]
# ## A new recorded quantity
#
# A quantity is a function of the next-token probabilities `p`, the readout `E` and the two ids, for all replicas of a
# run at once. This one measures how undecided the model is. Give it to the store under a name, and it is recorded at
# every step. The run's name depends on the text of the function, so a changed function gives a new run.


# %%
def entropy(p, E, c, k):  # (R, V), (R, V, d), (R,), (R,) -> (R,)
    """Shannon entropy of the next-token distribution, in nats"""
    return -(p * p.clamp_min(1e-30).log()).sum(1)


model = nb.load(nb.models[0])
candidates = nb.fitting_contexts(model)
fitting, critical = contexts_with_rates(nb.store, model, candidates, recipe)
rates = critical[:, None] * multiples
run = nb.store.run(model, fitting, rates, recipe, extra={"entropy": entropy})
run = run.assign_coords(rate=multiples)

# %% [markdown]
# A figure consists of a matplotlib figure, its name, its caption and its alt text. The line “How this was made”
# appears by itself, and offers the drawn numbers as a table.

# %% tags=["remove-cell"]
nb.caption(
    "fig-extend-entropy",
    """A quantity of one's own: entropy of the next-token distribution of the first model against the step, under full
        fine-tuning with Adam. One colour for each multiple of the predicted critical rate. Lines: mean over the
        contexts; bands: from the least to the greatest. Deterministic, no seeds.""",
    alt="All lines fall: the larger the learning rate, the faster the model becomes decided.",
)

# %%
figure, axes = plt.subplots(figsize=(7.2, 3), layout="constrained")
for multiple, colour in zip(multiples, sns.color_palette("viridis", len(multiples))):
    one = run.entropy.sel(rate=multiple).isel(seed=0)
    low, high = one.min("context"), one.max("context")
    axes.plot(run.step, one.mean("context"), color=colour, label=f"{multiple:g}")
    axes.fill_between(run.step, low, high, color=colour, alpha=0.15, linewidth=0)
axes.set(xlabel="step", ylabel="entropy (nat)", title="Undecidedness")
axes.legend(title="learning rate /\npredicted critical", fontsize="small")
nb.figure(
    figure,
    "fig-extend-entropy",
    runs=run,
    data=run.entropy.to_dataframe().reset_index(),
)

# %% [markdown]
# ## A new context set
#
# A set of [contexts](../definitions.md#context) is a YAML file. Prompts have no space at their end, and words are
# plain. `resolve` finds their tokens. It refuses a word that your tokenizer splits, and names similar words that it
# does not split. In the book, give the file as the parameter `contexts` of any notebook.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

from phantomlib.contexts import load_contexts, resolve
from phantomlib.errors import ContextError
from phantomlib.engine.recipe import check_contexts

my_contexts = """
- id: teacher-shame
  prompt: "After the lie, the teacher felt a deep sense of"
  correct: shame
  competitor: guilt
- id: quiet-road
  prompt: "Peter walked slowly down the busy"
  correct: road
  competitor: street
- id: split
  prompt: "After the lie, the teacher felt a deep sense of"
  correct: shamefulness
  competitor: guilt
"""

with TemporaryDirectory() as folder:
    file = Path(folder) / "my_contexts.yaml"
    file.write_text(my_contexts)
    loaded = load_contexts(file)

mine = []
for context in loaded:
    try:
        found = resolve(context, model.tokenizer)
        check_contexts(model, [found])  # the model must prefer the competitor
        mine.append(found)
    except ContextError as error:
        print(error)

# %%
if mine:
    mine, critical = contexts_with_rates(nb.store, model, mine, recipe)
    own = nb.store.run(model, mine, critical[:, None] * multiples, recipe)
    enough = (own.logit_gap > 0).any("step").isel(seed=0)  # which multiples are enough?
    columns = [f"{multiple:g} × predicted" for multiple in multiples]
    nb.table(enough.to_pandas().set_axis(columns, axis=1).reset_index(), runs=own)
else:
    nb.say("None of these contexts fits this model.")

# %% [markdown]
# ## A new claim
#
# A claim says beforehand what will be measured and what would count: a quantity, a threshold, a direction. It goes
# into `phantombook/ledger/claims.yaml` or, as here, into a file of your own. The notebook records the measured value
# and the runs behind it. The verdict is computed from the claim and the measurement.

# %%
from phantombook.ledger import claims

my_claim = """
- id: X1
  statement: Fine-tuning on one word makes the model more decided.
  notebook: "22"
  figure: fig-extend-entropy
  decides: adam
  needs: {contexts: 2}
  criteria:
    share_of_runs:
      quantity: Share of runs whose entropy ends below its start.
      direction: at least
      threshold: 0.9
      unit: "1"
  changes: []
"""

with TemporaryDirectory() as folder:
    ledger = Path(folder) / "my_claims.yaml"
    ledger.write_text(my_claim)
    share = float((run.entropy.isel(step=-1) < run.entropy.isel(step=0)).mean())
    sample = {"contexts": run.sizes["context"]}
    nb.record("X1", share, optimizer="adam", n=sample, runs=run, ledger=ledger)
    [claim] = claims.load_claims(ledger)

verdict = nb.verdict(claim)
print(f"{claim.statement} {verdict.shown}: {verdict.reason}")

# %% [markdown]
# ## The results, in any tool
#
# A run is a netCDF file in the store. xarray and any other netCDF reader open it. One more line makes a table in
# parquet or CSV. You can also download the numbers of every figure and table of this book from its page, under “How
# this was made”.

# %%
import pandas as pd
import xarray as xr

[path] = nb.store.root.glob(f"*-{run.attrs['run_id']}.nc")
with xr.open_dataset(path) as opened:
    at_snapshots = {"snapshot", "component"} & set(opened.dims)
    table = opened.drop_dims(at_snapshots).to_dataframe().reset_index()

with TemporaryDirectory() as folder:
    table.to_parquet(f"{folder}/run.parquet")
    table.to_csv(f"{folder}/run.csv", index=False)
    same = pd.read_parquet(f"{folder}/run.parquet").equals(table)

print(f"{path.name}: {len(table)} rows, {len(table.columns)} columns.")
print(f"Parquet gives the same table: {same}.")
columns = ["context", "learning_rate", "step", "cross_entropy", "logit_gap", "entropy"]
table[columns].head()

# %% tags=["hide-input"]
nb.answer(
    "Each takes a few lines. This page is a notebook like the others and is run with the book, so what it shows works: "
    "{runs} runs with a new quantity, {contexts} new sentences that fit {model}, and a new claim with the verdict "
    "“{verdict}”.",
    runs=run.diverged_step.size,
    contexts=len(mine),
    model=model.name,
    verdict=verdict.shown,
)

# %% [markdown]
# ## What could be wrong
#
# A function is named by its text. If it uses something from outside, such as a constant, and that changes, the run
# keeps its name. Put such constants inside the function. A quantity that needs more than `p` and `E`, such as
# gradients, belongs in the engine (`phantomlib/engine/finetune.py`).
