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
import xarray as xr
from matplotlib.ticker import MaxNLocator

from phantombook import notebook
from phantomlib.critical.predictors import contexts_with_rates
from phantombook.figures.palette import REFERENCE
from phantombook.figures.silent_failure import MODES, failure_modes
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
# [context](../definitions.md#context)'s [predicted critical rate](../definitions.md#critical-learning-rate).
# For each [silent failure](../definitions.md#silent-failure) we ask how the
# [drag](../definitions.md#order-parameter-signal-and-drag) changed from the first to the last step. How far the
# cross-entropy falls does not matter here; chapter 02 counts only those runs in which it falls by a tenth of a nat.
#
# - **Kinematic failure**: the drag did not fall by more than $10^{-3}$.
# - **Structural failure**: the drag fell by more than $10^{-3}$. What the bulk adds to $\Phi$ ends lower than it
#   began: its words have come to lie closer to the competitor, or a bulk that lay closer to $c$ has lost mass. A drag
#   that falls need not drag: it may be positive before and after.


# %%
def fine_tune(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    contexts = nb.fitting_contexts(model)
    fitting, critical = contexts_with_rates(nb.store, model, contexts, recipe)
    return nb.store.run(model, fitting, critical[:, None] * multiples, recipe)


runs = Study.of(fine_tune, loaded)
failures = runs.table(silent_failure.failure_table)  # a row for every run
adam = failures[failures.optimizer == "adam"]
outcomes = failures.groupby(["optimizer", "model"], sort=False)["mode"].value_counts()
outcomes = outcomes.unstack(fill_value=0)  # a row for each optimiser and model

# %% tags=["hide-input"]
nb.table(outcomes.rename(labels).rename_axis(["optimiser", "model"]).reset_index(), runs=runs)
nb.say(
    "The columns count runs; “overtakes” are successes{other}. The rest of this page is about Adam.",
    other=", “other” are runs whose loss rose at some step" if "other" in outcomes else "",
)
counts = outcomes.reindex(columns=list(MODES), fill_value=0)
kinds = counts.groupby("optimizer")[["kinematic", "structural"]].sum()
for optimizer in labels:
    nb.record(
        "C3",
        kinds.loc[optimizer].add_suffix("_failures").to_dict(),
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": runs.fewest_contexts(optimizer),
            "runs": int((failures.optimizer == optimizer).sum()),
        },
        runs=runs.sel(optimizer),
        detail=counts.loc[optimizer].to_dict("index"),
    )

# %% [markdown]
# ## What gets worse, and when
#
# The loss falls along every one of these lines. In a kinematic failure the drag rises or hardly changes. In a
# structural one it falls, step by step, until the curve has crossed the grey line.

# %% tags=["remove-cell"]
nb.caption(
    "fig-drag-over-time",
    f"""Change of the drag along every silent failure under Adam, by its kind (full fine-tuning,
        deterministic; one line per run, all models together; symmetric logarithmic axis, linear
        within plus and minus {silent_failure.DRAG_WORSENS:g}). Grey: a fall of
        {silent_failure.DRAG_WORSENS:g}, fixed beforehand; a run that ends below it is structural.""",
    alt="Lines of the change of the drag against the step; of structural failures they fall.",
)

# %%
def drag_history(ds):
    """Change of the drag along every silent failure; a row for every run and step."""
    change = ds.drag - ds.drag.isel(step=0, drop=True)
    table = xr.Dataset({"mode": silent_failure.failure_mode(ds), "drag_change": change})
    table = table.to_dataframe().reset_index()
    return table[table["mode"].isin(["kinematic", "structural"])]


history = runs.table(drag_history).query("optimizer == 'adam'")


# %% tags=["hide-input"]
def drag_over_time(table, threshold):
    """Change of the drag along every silent failure, a panel per kind."""
    by_kind = table.groupby("mode")
    figure, panels = small_multiples(len(by_kind), columns=2, height=2.6)
    for axes, (mode, chosen) in zip(panels, by_kind):
        each = chosen.groupby(["model", "context", "rate"])
        for _, one in each:
            axes.plot(one.step, one.drag_change, color=MODES[mode], linewidth=0.8, alpha=0.6)
        axes.axhline(-threshold, color=REFERENCE, linewidth=1)
        axes.set_title(f"{mode}: {len(each)} runs")
        axes.set_yscale("symlog", linthresh=threshold)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel("change of the drag, $D_t - D_0$", fontsize="medium")
    return figure


if len(history):
    nb.figure(
        drag_over_time(history, silent_failure.DRAG_WORSENS),
        "fig-drag-over-time",
        runs=runs.sel("adam"),
        data=history,
    )
if not kinds.structural["adam"]:
    nb.say("No run under Adam failed in the structural way, so there is no such curve to show.")

# %% [markdown]
# ## Where the two modes lie
#
# To the right of the grey line the drag worsened. The lower a point, the further the competitor is ahead.

# %% tags=["remove-cell"]
nb.caption(
    "fig-modes",
    f"""Every run as a point: final signal against the fall of the drag (symmetric logarithmic axis,
        linear within plus and minus 0.001), coloured by failure mode. All contexts at all multiples of
        their predicted critical rate in each panel; Adam, full fine-tuning, deterministic. The grey line
        is the threshold {silent_failure.DRAG_WORSENS:g}, fixed beforehand.""",
    alt="Scatter plots of final signal against fall of the drag, one panel per model.",
)

# %% tags=["hide-input"]
nb.figure(
    failure_modes(adam, silent_failure.DRAG_WORSENS),
    "fig-modes",
    runs=runs.sel("adam"),
    data=adam,
)

# %% [markdown]
# ## What the drag is made of
#
# The drag is a product: the mass of the bulk, $1 - p_c - p_k$, times the mean contrast of the bulk, $D / (1 - p_c -
# p_k)$. Mass falls when training draws probability from the bulk to the pair. Contrast changes when probability moves
# *within* the bulk, or the geometry does. The table shows the medians over the silent failures of each mode.

# %%
silent = adam[adam["mode"].isin(["kinematic", "structural"])]
factors = ["bulk_mass_start", "bulk_mass_end", "contrast_start", "contrast_end"]
parts = [*factors, "drag_fall", "signal", "overlap"]
medians = silent.groupby(["model", "mode"], sort=False)[parts].median().reset_index()
worse = silent[silent["mode"] == "structural"]

# %% tags=["hide-input"]
if len(silent):
    nb.table(medians.rename(columns=lambda name: name.replace("_", " ")), digits=4, runs=runs.sel("adam"))
    nb.say(
        "Of the {n} structural failures, {mass} end with less mass in the bulk, and {contrast} with a bulk that lies "
        "closer to $k$ than at the start.",
        n=len(worse),
        mass=int((worse.bulk_mass_end < worse.bulk_mass_start).sum()),
        contrast=int((worse.contrast_end < worse.contrast_start).sum()),
    )
else:
    nb.say("There is no silent failure among these runs, so there is nothing to take apart.")

# %% [markdown]
# Does the definition single out what it names? The same threshold can be put to the runs that overtake, and the signal
# can be asked as well as the drag.

# %%
kinematic = silent[silent["mode"] == "kinematic"]
overtaking = adam[adam["mode"] == "overtakes"]
at_start = runs.map(lambda ds: ds[["phi", "signal"]].isel(step=0, drop=True))
start = at_start.table(lambda ds: ds.to_dataframe().reset_index())
keys = ["optimizer", "model", "context", "learning_rate"]
fell = kinematic.merge(start, on=keys, suffixes=("", "_start"))
fell = fell.assign(signal_fall=fell.signal_start - fell.signal)
of_phi = worse.merge(start, on=keys, suffixes=("", "_start"))
pairs = worse[["model", "context"]].drop_duplicates()
cured = overtaking[["model", "context"]].drop_duplicates().merge(pairs)

# %% tags=["hide-input"]
if len(worse):
    nb.say(
        "Of the {n} structural failures {helping} have a drag that is positive before and after: it falls, and it "
        "still helps. In {tenth} it falls by more than a tenth of $|\\Phi_0|$. All belong to {pairs} pairs of model "
        "and sentence, of which {cured} overtake at another rate of the grid. {above} of the {won} runs that "
        "overtake have a drag that falls by more than the same threshold.",
        n=len(worse),
        helping=int(((worse.contrast_start > 0) & (worse.contrast_end > 0)).sum()),
        tenth=int((of_phi.drag_fall > 0.1 * of_phi.phi.abs()).sum()),
        pairs=len(pairs),
        cured=len(cured),
        above=int((overtaking.drag_fall > silent_failure.DRAG_WORSENS).sum()),
        won=len(overtaking),
    )
nb.say(
    "Of the {n} kinematic failures {falling} end with a smaller *signal* than they began with, by up to {most:.3f}: "
    "the loss falls while the competitor's lead in probability grows.",
    n=len(fell),
    falling=int((fell.signal_fall > 0).sum()),
    most=max(fell.signal_fall.max(), 0.0),
)

# %% tags=["hide-input"]
count = kinds.loc["adam"]
failed = count.sum()
if not failed:
    what = "Nothing failed."
elif count.kinematic == count.structural:
    what = "Each as often as the other."
else:
    what = f"Mostly the {'first' if count.kinematic > count.structural else 'second'}."
nb.answer(
    "{what} Of {runs} runs under Adam {failed} failed silently: in {kinematic} the drag held and the signal had not "
    "grown enough when the budget ended (kinematic), in {structural} the drag fell by more than "
    "{threshold:g} (structural), though in {helping} of these it is positive to the end. Under SGD it is "
    "{sgd.kinematic} and {sgd.structural}.",
    count,
    what=what,
    runs=len(adam),
    failed=failed,
    threshold=silent_failure.DRAG_WORSENS,
    helping=int((worse.contrast_end > 0).sum()),
    sgd=kinds.loc["sgd"],
)

# %% [markdown]
# ## What it means
#
# The threshold sorts runs by the direction in which the drag moves, and says little about a cure: the sentences of the
# structural failures are learnt at a larger rate, like the others. A structural failure in the full sense, a bulk that
# drags and drags ever more until the word can no longer overtake, is not among these runs. Overlaps depend on where
# the origin is, too, and so does this classification. [Chapter 07](07_what_softmax_cannot_see.ipynb) sorts the same
# runs by an order parameter that does not.
#
# ## What could be wrong
#
# The grid of learning rates was changed after runs on an older one had been seen, as [chapter
# 02](02_silent_failure.ipynb) says; on that one nothing could fail under SGD. The grid decides how many runs fail. The
# drag decides of which kind they are, but at the smallest multiples nothing moves far, not even the drag. The
# threshold $10^{-3}$ is ours. It lies above the noise seen in prototypes, and it was fixed before these runs. A drag
# can worsen because probability flows into the bulk's $k$-like tokens for a few steps only; the classification looks
# at the ends of a run, not at its path, which is why the paths are shown.
