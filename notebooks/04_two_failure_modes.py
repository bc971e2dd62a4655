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
# ---

# %% [markdown]
# # 04 · Two failure modes
#
# **Question.** When fine-tuning fails silently, what went wrong: did the signal not grow, or did the drag get worse?
#
# ```{glue:md} answer_04
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

# %% tags=["hide-cell"]
import pandas as pd
import xarray as xr
from matplotlib.ticker import MaxNLocator

from phantombook import notebook
from phantomlib.critical.predictors import contexts_with_rates
from phantombook.figures.charts import failure_modes
from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import small_multiples
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.study import Study
from phantomlib.transition import silent_failure

nb = notebook.start("04_two_failure_modes")
loaded = [nb.load(ref) for ref in nb.models]
labels = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## What was done
#
# The runs are those of [chapter 02](02_silent_failure.ipynb), at multiples of each
# [context](../definitions.md#context)'s [predicted critical rate](../definitions.md#critical-learning-rate). For each
# [silent failure](../definitions.md#silent-failure) we ask how the
# [drag](../definitions.md#order-parameter-signal-and-drag) changed from the first to the last step. Here a silent
# failure counts however little its cross-entropy falls; chapter 02 counts it only if the fall is a tenth of a nat.
#
# - **Structural failure**: the drag fell by more than a tenth of $|\Phi_0|$ and ends below zero. Then the bulk pulls
#   towards the competitor, and by an amount that matters.
# - **Kinematic failure**: every other silent failure. The signal did not grow enough.
#
# This is the second definition. The first called a failure structural if the drag fell by more than $10^{-3}$. It
# asked neither for the sign of the drag nor for a size relative to $\Phi$. We changed it after we had seen what it
# counts; [the ledger](00_ledger.ipynb) keeps the old definition, its verdict and the reason. This page shows both.


# %%
def fine_tune(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    contexts = nb.fitting_contexts(model)
    fitting, critical = contexts_with_rates(nb.store, model, contexts, recipe)
    return nb.store.run(model, fitting, critical[:, None] * multiples, recipe)


runs = Study.of(fine_tune, loaded)
outcomes = runs.table(silent_failure.failure_table)  # a row for every run
before = runs.table(silent_failure.failure_table, silent_failure.drag_falls)
kinds = ["kinematic", "structural"]
counts, old_counts = (
    table.groupby(["optimizer", "model"], sort=False)["mode"]
    .value_counts()
    .unstack(fill_value=0)
    for table in (outcomes, before)
)
counts = counts.reindex(columns=[*kinds, *counts.columns.drop(kinds, errors="ignore")])
counts = counts.fillna(0).astype(int)
old_counts = old_counts.reindex(columns=kinds, fill_value=0)
failures = outcomes[outcomes["mode"].isin(kinds)]

# %% tags=["hide-input"]
shown = counts.assign(**{"structural by the first definition": old_counts.structural})
nb.table(shown.rename(labels).rename_axis(["optimiser", "model"]).reset_index(), runs=runs)
nb.say(
    "The columns count runs. “overtakes” are successes{other}.",
    other="; “other” are runs whose loss rose at some step" if "other" in counts else "",
)
total, old_total = (table.groupby("optimizer")[kinds].sum() for table in (counts, old_counts))
for optimizer in labels:
    nb.record(
        "C3",
        total.loc[optimizer].add_suffix("_failures").to_dict(),
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": runs.fewest_contexts(optimizer),
            "runs": int((outcomes.optimizer == optimizer).sum()),
        },
        runs=runs.sel(optimizer),
        detail=counts.loc[optimizer].to_dict("index") | {"first definition": old_total.loc[optimizer].to_dict()},
    )

# %% [markdown]
# ## What the drag does
#
# Each row of the next table counts the silent failures of one optimiser that have a property. The two parts of the
# definition stand apart: a sign and a size. The last rows look at what the drag is made of. It is the mass of the
# bulk, $1 - p_c - p_k$, times the bulk's mean contrast, $D / (1 - p_c - p_k)$. A contrast that falls says that the
# bulk's probability has moved towards the competitor.


# %%
def properties(rows):
    """How many silent failures have each property."""
    falls = rows.drag_fall > silent_failure.DRAG_FALLS
    large = rows.drag_fall > silent_failure.DRAG_WORSENS * rows.phi_start.abs()
    helping = (rows.contrast_start > 0) & (rows.contrast_end > 0)
    found = {
        "silent failures": rows["mode"].notna(),
        "the drag falls by more than 0.001 (the first definition)": falls,
        "... and is positive before and after": falls & helping,
        "the drag falls by more than a tenth of $\\lvert\\Phi_0\\rvert$": large,
        "the drag ends below zero": rows.drag < 0,
        "... and by more than a tenth of $\\lvert\\Phi_0\\rvert$: structural": large
        & (rows.drag < 0),
        "the mass of the bulk falls": rows.bulk_mass_end < rows.bulk_mass_start,
        "the contrast of the bulk falls": rows.contrast_end < rows.contrast_start,
        "the signal falls": rows.signal_fall > 0,
    }
    return pd.Series({name: int(has.sum()) for name, has in found.items()})


by_optimizer = failures.groupby("optimizer", sort=False)
table = pd.DataFrame({labels[o]: properties(rows) for o, rows in by_optimizer})
adam = outcomes[outcomes.optimizer == "adam"]
won = adam[adam["mode"] == "overtakes"]
old_worse = before[(before.optimizer == "adam") & (before["mode"] == "structural")]
pairs = old_worse[["model", "context"]].drop_duplicates()
cured = won[["model", "context"]].drop_duplicates().merge(pairs)

# %% tags=["hide-input"]
if len(failures):
    nb.table(table.rename_axis("property").reset_index(), runs=runs)
nb.say(
    "Under Adam the failures whose drag falls by more than {by:g} belong to {pairs} pairs of model and sentence; "
    "{cured} of these pairs overtake at another rate of the grid. In {above} of the {won} runs that overtake, the "
    "drag falls by more than the same {by:g}. So a fall of that size does not keep a word from overtaking. In the "
    "silent failures of Adam the signal ends up to {most:.3f} lower than it began: the loss falls while the "
    "competitor's lead in probability grows.",
    by=silent_failure.DRAG_FALLS,
    pairs=len(pairs),
    cured=len(cured),
    above=int((won.drag_fall > silent_failure.DRAG_FALLS).sum()),
    won=len(won),
    most=max(failures[failures.optimizer == "adam"].signal_fall.max(), 0.0),
)

# %% tags=["remove-cell"]
nb.caption(
    "fig-modes",
    f"""Every run under Adam as a point: the drag at the end against its fall in units of the order parameter before
        training, $|\\Phi_0|$ (symmetric logarithmic axis, linear within plus and minus 0.01), coloured by outcome.
        Rings: silent failures whose drag fell by more than {silent_failure.DRAG_FALLS:g}, structural by the first
        definition. A silent failure in the shaded corner is structural. One panel per model, with all contexts at all
        multiples of their predicted critical rate; full fine-tuning, deterministic.""",
    alt="The rings lie above zero, outside the shaded corner.",
)

# %% tags=["hide-input"]
nb.figure(failure_modes(adam), "fig-modes", runs=runs.sel("adam"), data=adam)

# %% [markdown]
# The paths of the drag show the same. If a structural failure came about, its line would cross zero.

# %% tags=["remove-cell"]
nb.caption(
    "fig-drag-over-time",
    f"""The drag along every silent failure under Adam: failures whose drag falls by more than
        {silent_failure.DRAG_FALLS:g}, structural by the first definition, in a panel apart from all others. One line
        per run, all models together; full fine-tuning, deterministic. Grey line: zero; below it the bulk pulls
        towards the competitor.""",
    alt="""In the first panel the lines fall a little and stay above zero. In the second, lines below zero rise towards
        it; others hardly move.""",
)

# %%
def drag_history(ds):
    """The drag along every silent failure; a row for every run and step."""
    columns = {"falls": silent_failure.drag_falls(ds), "drag": ds.drag}
    columns["silent"] = silent_failure.silent(ds)
    table = xr.Dataset(columns).to_dataframe().reset_index()
    return table[table.silent]


history = runs.table(drag_history).query("optimizer == 'adam'")


# %% tags=["hide-input"]
def drag_over_time(table, by):
    """The drag along every silent failure, those that fall by more than a bound apart."""
    figure, panels = small_multiples(2, columns=2, height=2.6)
    for axes, falls in zip(panels, (True, False)):
        each = table[table.falls == falls].groupby(["model", "context", "rate"])
        for _, one in each:
            axes.plot(one.step, one.drag, color="#D55E00" if falls else "#0072B2", linewidth=0.8, alpha=0.6)
        axes.axhline(0, color=REFERENCE, linewidth=1)
        title = f"{'falls' if falls else 'does not fall'} by more than {by:g}: {len(each)} runs"
        axes.set_title(title, fontsize="small")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("drag $D_t$", fontsize="medium")
    return figure


if len(history):
    figure = drag_over_time(history, silent_failure.DRAG_FALLS)
    nb.figure(figure, "fig-drag-over-time", runs=runs.sel("adam"), data=history)

# %% tags=["hide-input"]
count = total.loc["adam"]
failed = count.sum()
if not failed:
    what = "Nothing failed."
elif count.structural:
    what = "Both happen." if count.kinematic else "The drag got worse."
else:
    what = "The signal did not grow enough; no drag came to pull the wrong way."
nb.answer(
    "{what} Of {runs} runs under Adam {failed} failed silently. In {structural} of these the drag fell by more than a "
    "tenth of $|\\Phi_0|$ and ended below zero (structural). The other {kinematic} are kinematic. Under SGD "
    "{sgd.kinematic} failures are kinematic and {sgd.structural} structural. By this page's first definition, a fall "
    "of {threshold:g} whatever the sign, {old.structural} failures were structural under Adam and {old_sgd.structural} "
    "under SGD.",
    count,
    what=what,
    runs=len(adam),
    failed=failed,
    threshold=silent_failure.DRAG_FALLS,
    old=old_total.loc["adam"],
    old_sgd=old_total.loc["sgd"],
    sgd=total.loc["sgd"],
)

# %% [markdown]
# ## What it means
#
# In a structural failure the bulk would drag more and more until the word can no longer overtake, at any learning
# rate. The zoo does not show that. Its drags shrink towards zero from both sides, because probability leaves the
# bulk. A drag that helps comes to help less, and one that pulls the wrong way comes to pull less. The sentences whose
# drag falls are learnt at a larger rate, like the others. Some failures of real models are structural by this
# definition ([chapter 14](14_real_failures.ipynb)).
#
# Does an update that lifts one word lift the other? [Chapter 02](02_silent_failure.ipynb) plots what the
# competitor gains over what the correct word gains, against the overlap. Overlaps also depend on where the origin is,
# and so does this classification. [Chapter 07](07_what_softmax_cannot_see.ipynb) sorts the same runs by an order
# parameter that does not depend on it.
#
# ## What could be wrong
#
# The grid of learning rates was changed after runs on an older grid had been seen, as [chapter
# 02](02_silent_failure.ipynb) says. On the older grid nothing could fail under SGD. The grid decides how many runs
# fail, and the drag decides of which kind they are. At the smallest multiples nothing moves far, and neither does the
# drag. The kinds were redefined after the first count, so the new definition was written by people who knew that it
# would count few failures or none. A tenth of $|\Phi_0|$ is ours; [chapter 11](11_scope_and_sensitivity.ipynb) halves
# and doubles it. The classification looks at the two ends of a run, not at its path; so the paths are shown.
#
# ## Exercise
#
# Open this chapter with `phantom edit 04`. Which part of the definition decides? Drop the sign: write
# `runs.table(silent_failure.failure_table, silent_failure.drag_falls)` in place of
# `runs.table(silent_failure.failure_table)`, so that any fall of 0.001 counts. Then ask for a fall of 0.01 with
# `lambda ds: silent_failure.drag_falls(ds, 0.01)`. How many structural failures are there?
#
# :::{dropdown} Answer
# With any fall of 0.001 fifteen failures are structural under Adam and none under SGD. With a fall of 0.01 none is.
# The number of silent failures has not changed, because the kinds only sort them.
# :::
