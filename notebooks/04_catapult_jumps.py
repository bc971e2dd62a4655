# ---
# jupyter:
#   phantom:
#     minutes: 3
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
# # Catapult-like jumps
#
# **Question.** As the learning rate grows past its critical value, does the model change its mind gradually, or at once?
#
# **Answer.** Both, and the learning rate decides which. Around the critical rate the order parameter climbs smoothly. Far above it, most of the way is covered in
# one or two steps: a jump. The counts below say how far is far, and the last figure compares it with the edge of stability.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
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
import pandas as pd

from phantomlib.book import notebook
from phantomlib.figures.jumps import jump_trajectories, jumps_by_model, onset_against_sharpness
from phantomlib.figures.palette import model_colours
from phantomlib.figures.silent_failure import count_map
from phantomlib.transition.jumps import clearest_jump, find_jumps, geometric_mean, jumping_contexts, nearest_multiple, onset, with_critical_rate
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import sharpness
from phantomlib.measure.recipe import Recipe

nb = notebook.start("04_catapult_jumps", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
titles = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## What was done
#
# For each model, context and optimiser we first find the **critical learning rate** $\eta_c$: the smallest one at which the correct token overtakes within the
# budget of steps, to within half a percent. Then we fine-tune all parameters at fixed multiples of it, below and above.
#
# A step of the order parameter $\Phi$ is a **catapult-like jump** if it is large in two ways. It is larger than a tenth of the greatest value that $|\Phi|$ can
# take, $\sqrt{1 - g_{ck}^2}$. And it is larger than ten times the median step of its own run, so that a run that moves fast all the time has none.

# %% tags=["hide-input"]
critical, runs, jumps = {}, {}, {}
for optimizer in titles:
    recipe = Recipe(optimizer=optimizer, steps=steps)
    for model in loaded:
        found = critical_rates(nb.store, model, nb.fitting_contexts(model), recipe)
        fitting, rates = with_critical_rate(nb.fitting_contexts(model), found)
        ds = nb.store.run(model, fitting, rates[:, None] * multiples, recipe)
        critical[optimizer, model.name], runs[optimizer, model.name] = found, ds
        jumps[optimizer, model.name] = find_jumps(ds, size_factor=size_factor, median_factor=median_factor)
searches = [ds.attrs["run_ids"].split() for ds in critical.values()]
notebook.table(
    pd.DataFrame(
        [
            {"model": m.name} | {f"η_c, {titles[o]} (geometric mean over contexts)": f"{geometric_mean(critical[o, m.name].critical_rate):.2e}" for o in titles}
            for m in loaded
        ]
    )
)

# %% tags=["hide-input"]
nb.made_by(searches)

# %% [markdown]
# ## One context, six learning rates
#
# The three columns show the same runs: the loss, the logit gap, the order parameter. Below the critical rate the gap never reaches zero. Just above it, nothing
# dramatic happens: the curves are the same, only faster. At large multiples $\Phi$ leaps. The rings mark the steps that meet the definition of a jump.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-jumps", "caption": "Fine-tuning one context at six learning rates, under Adam (top) and SGD (bottom): cross-entropy, logit gap and order parameter against the step. Colour: learning rate in units of the critical one. Rings: steps that are jumps by the definition above. One model, one context (the one with the largest jump under Adam), all parameters trained, one deterministic run per curve."}, "image": {"alt": "Three panels per optimiser: cross-entropy falls, the logit gap and the order parameter rise, faster the larger the learning rate; jumps of the order parameter are ringed.", "width": "100%"}}
hero = loaded[0].name
context = clearest_jump(jumps["adam", hero]) or nb.contexts[0].id
jump_trajectories(
    {o: runs[o, hero].sel(context=context).isel(seed=0) for o in titles},
    {o: jumps[o, hero].query("context == @context") for o in titles},
    multiples,
    titles,
);

# %% tags=["hide-input"]
nb.made_by([runs[o, hero] for o in titles])

# %% tags=["hide-input"]
shown = jumps["adam", hero].query("context == @context")
if len(shown):
    largest = shown.loc[shown.share_of_bound.idxmax()]
    word, rival = (runs["adam", hero].sel(context=context)[n].item() for n in ("correct", "competitor"))
    notebook.say(
        f"The context shown is “{word}” against “{rival}” in {hero}. Its largest jump under Adam comes at "
        f"{multiples[int(largest['rate'])]:g} times the critical rate, in step {largest['step']}: $\\Phi$ changes by {largest['size']:+.3f}, which is "
        f"{100 * largest.share_of_bound:.0f} % of the bound, while the logit gap goes from {largest.gap_before:+.2f} to {largest.gap_after:+.2f} nats."
    )
else:
    notebook.say(f"No run of {hero} under Adam has a jump; the context shown is “{context}”.")

# %% [markdown]
# ## All architectures
#
# The same for every context of every model, at the largest multiple (coloured) and at one and a half times the critical rate or the nearest multiple to it (grey).

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-jump-architectures", "caption": "Order parameter over its bound for every context of each model under Adam: at the largest multiple of the critical rate (coloured; rings mark jumps) and near 1.5 times the critical rate (grey). One deterministic run per context and rate; the number of contexts is the number of curves of a kind."}, "image": {"alt": "One panel per model: at the large learning rate the order parameter of most contexts leaps within the first steps; at the small one it climbs smoothly.", "width": "100%"}}
slow = nearest_multiple(multiples, 1.5)
jumps_by_model({m.name: runs["adam", m.name] for m in loaded}, {m.name: jumps["adam", m.name] for m in loaded}, colours, len(multiples) - 1, slow);

# %% tags=["hide-input"]
nb.made_by([runs["adam", m.name] for m in loaded])

# %% [markdown]
# ## How many contexts jump

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-jump-counts", "caption": "Number of contexts with at least one jump, by model and learning rate of Adam in units of the critical rate of each context. All parameters trained, one deterministic run per cell and context."}, "image": {"alt": "Heat map of the number of contexts that jump, by model and multiple of the critical learning rate, under Adam.", "width": "100%"}}
counts = {
    o: pd.DataFrame({m.name: jumping_contexts(jumps[o, m.name], len(multiples)) for m in loaded}, index=[f"{x:g}" for x in multiples]).T for o in titles
}
axes = count_map(counts["adam"], "Adam", "contexts", largest=len(nb.contexts))
axes.set_xlabel(r"learning rate, $\eta/\eta_c$");

# %% tags=["hide-input"]
nb.made_by([runs["adam", m.name] for m in loaded])

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-jump-counts-sgd", "caption": "The same count under SGD, at the same multiples of its own critical rates."}, "image": {"alt": "Heat map of the number of contexts that jump, by model and multiple of the critical learning rate, under SGD.", "width": "100%"}}
axes = count_map(counts["sgd"], "SGD", "contexts", largest=len(nb.contexts))
axes.set_xlabel(r"learning rate, $\eta/\eta_c$");

# %% tags=["hide-input"]
nb.made_by([runs["sgd", m.name] for m in loaded])

# %% tags=["hide-input"]
at = [multiples.index(x) for x in counted]
for optimizer in titles:
    jumping = {m.name: int(jumps[optimizer, m.name].query("rate in @at").context.nunique()) for m in loaded}
    nb.record(
        "C4",
        min(jumping.values()),
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": min(runs[optimizer, m.name].sizes["context"] for m in loaded)},
        runs=[[runs[optimizer, m.name] for m in loaded], [critical[optimizer, m.name].attrs["run_ids"].split() for m in loaded]],
        detail={"contexts with a jump": jumping, "by multiple": counts[optimizer].to_dict("index")},
    )
    pooled = pd.concat([jumps[optimizer, m.name] for m in loaded])
    sizes = pooled.share_of_bound
    notebook.say(
        f"**{titles[optimizer]}**: contexts with a jump at {' or '.join(f'{x:g}' for x in counted)} times the critical rate: "
        + ", ".join(f"{name} {count}" for name, count in jumping.items())
        + f", of {len(nb.contexts)}. "
        + (f"There are {len(sizes)} jumps in all; the median one is {100 * sizes.median():.0f} % of the bound, the largest {100 * sizes.max():.0f} %. The loss rises in {int((pooled.loss_change > 0).sum())} of them." if len(sizes) else "There is no jump.")
    )

# %% [markdown]
# ## The edge of stability
#
# In the literature a *catapult* {cite}`lewkowycz2020catapult` happens when the learning rate exceeds $2/\lambda_{\max}$, with $\lambda_{\max}$ the sharpness: the largest eigenvalue of the Hessian of the
# loss. Beyond this edge of stability the quadratic approximation of the loss says that steps overshoot. For Adam the Hessian is first rescaled by the size of
# its first update. So $\eta\lambda_{\max}/2 = 1$ marks the edge for both.
#
# Are our jumps such catapults? If they were, they would start at the grey vertical line, and the loss would rise as they begin.

# %% tags=["hide-input"]
edges = {}
for optimizer in titles:
    parts = []
    for model in loaded:
        fitting, _ = with_critical_rate(nb.fitting_contexts(model), critical[optimizer, model.name])
        fitting = fitting[:sharpness_contexts]
        largest_eigenvalue = sharpness(model, fitting, Recipe(optimizer=optimizer))
        series = pd.Series(largest_eigenvalue.value.tolist(), [c.id for c in fitting])
        parts.append(onset(jumps[optimizer, model.name], runs[optimizer, model.name], multiples, series).assign(model=model.name))
    edges[optimizer] = pd.concat(parts, ignore_index=True)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-edge", "caption": "Largest single step of the order parameter in each run, over its bound, against the learning rate in units of the edge of stability of the untrained model. Filled: runs with a jump. Dotted: the smallest size of a jump, fixed beforehand. Three contexts of each model (the first of the list), all learning rates; one deterministic run per point. Sharpness by Lanczos iteration at step 0; for Adam, of the Hessian rescaled by the first update."}, "image": {"alt": "Scatter plots of the largest step of the order parameter against the learning rate over the edge of stability, one panel per optimiser.", "width": "100%"}}
onset_against_sharpness(edges, colours, size_factor, titles);

# %% tags=["hide-input"]
nb.made_by(runs)

# %% tags=["hide-input"]
for optimizer, edge in edges.items():
    first = edge[edge.jumped].sort_values("multiple").drop_duplicates(["model", "context"]).edge
    at_critical = edge.drop_duplicates(["model", "context"]).critical_edge
    notebook.say(
        f"**{titles[optimizer]}**: at the critical rate $\\eta_c\\lambda_{{\\max}}/2$ has the median {at_critical.median():.2g} "
        f"(from {at_critical.min():.2g} to {at_critical.max():.2g}, {len(at_critical)} contexts). "
        + (
            f"At the smallest tried rate with a jump it has the median {first.median():.2g} (from {first.min():.2g} to {first.max():.2g}, {len(first)} contexts); "
            f"in {int((first < 1).sum())} of them the jump comes below the edge of stability."
            if len(first)
            else "None of these runs has a jump."
        )
    )

# %% [markdown]
# ## What it means
#
# Overtaking needs no instability: at the critical rate the path is smooth. Jumps are what the same path looks like when it is walked in few, large steps. Whether
# they are more than that, a phase transition for instance, is the question of the next chapter.
#
# ## What could be wrong
#
# The two factors in the definition of a jump, a tenth and ten, are our reconstruction; the chapter on sensitivity varies them. A jump that takes two steps counts as
# two. Learning rates are multiples of a critical rate that belongs to a budget of steps, so "30 times critical" is not a universal number. The sharpness is that
# of the untrained model, on a few contexts; it changes during training. For Adam, dividing by the size of the first update makes directions with tiny gradients look very
# sharp, so Adam's edge at step 0 is a weak guide.
