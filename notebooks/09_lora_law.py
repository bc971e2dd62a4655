# ---
# jupyter:
#   phantom:
#     after: ["08"]
#     minutes: 2
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
# # 09 · LoRA: another number on every model, and the law of its rate
#
# **Question.** Is there a quantity of the untouched model that sorts architectures into classes and tells whether LoRA
# suffices? And how much larger a learning rate does LoRA need than full fine-tuning?
#
# ```{glue:md} answer_09
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed, of bootstrap and sampling
steps: int = 20  # optimiser steps of each run
lora_seeds: list[int] = [0, 1, 2]  # seeds of the LoRA initialisation
lora_multiple: float = 10.0  # learning rate of LoRA in units of the critical one of full fine-tuning
tolerance: float = 0.005  # relative width of the bracket around a critical learning rate

# %% tags=["hide-cell"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import gmean, linregress

from phantombook import notebook
from phantombook.figures.palette import REFERENCE, model_colours
from phantombook.figures.style import WIDTH, dots_and_means, label_line, legend_above, log_ticks
from phantomlib import readout_geometry
from phantomlib.critical import scaling, search, step_zero
from phantomlib.critical.scaling import (
    architecture_numbers,
    balanced_accuracy,
    coefficient_of_variation,
    kinematic_number,
    lora_critical_rate,
)
from phantomlib.engine.recipe import Recipe
from phantomlib.models import zoo_models
from phantomlib.runs.study import Study

nb = notebook.start("09_lora_law")
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
optimizers = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## The bulk, and two classes
#
# The [bulk coherence](../definitions.md#bulk-coherence) $B = d\,\langle g_{ij}^2\rangle$ says how the readout's rows
# point. It is 1 if their directions are random, and larger if they crowd. We sort the architectures by $\log B$ and
# split them at its largest gap. Nothing else decides the split.

# %%
described = pd.DataFrame(
    {
        m.name: readout_geometry.readout_statistics(m.readout, seed=nb.seed)
        for m in loaded
    }
).T
classes = scaling.two_classes(described.coherence)
described["class"] = np.where(
    described.coherence > classes.boundary, "high", "low"
)

# %% tags=["hide-input"]
nb.table(described.rename_axis("model").reset_index().rename(columns=lambda c: c.replace("_", " ")))
nb.say(
    "Low class: {low}. High class: {high}. The gap between them in $\\log B$ is {gap:.2f}, "
    "{separation:.2f} times the largest range within a class.",
    low=", ".join(classes.low),
    high=", ".join(classes.high) or "none",
    gap=classes.gap,
    separation=classes.separation,
)

# %% tags=["remove-cell"]
nb.caption(
    "fig-bulk-classes",
    """Bulk coherence of the zoo's models along their pretraining (one seed each). Grey line: the boundary
        between the two classes, found in the final values. For other models only the final value is known;
        it is a dot.""",
    alt="""All lines begin at one. Those of one family rise steeply, fall again and end above the grey line; those of the
        other rise slowly and stay below it.""",
)

# %% tags=["hide-input"]
def history(ref, name):
    """Steps of pretraining and B, where they are known; else the final B alone."""
    if not ref.startswith("zoo:"):
        return [(0, described.coherence[name])]
    return [(h["step"], h["B"]) for h in zoo_models.report(name)["bulk_coherence"]]


figure, axes = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
axes.axhline(classes.boundary, color=REFERENCE, linewidth=1)
axes.axhline(1, color=REFERENCE, linewidth=0.8, linestyle=":")
for ref, model in zip(nb.models, loaded):
    at, B = np.array(history(ref, model.name), dtype=float).T
    style = "-" if len(at) > 1 else ""
    axes.plot(at, B, style, marker="o", markersize=3, color=colours[model.name], label=model.name)
axes.set(yscale="log", xlabel="pretraining step", ylabel="bulk coherence $B$")
axes.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
axes.minorticks_off()
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
nb.figure(figure, "fig-bulk-classes")

# %% [markdown]
# ## Does the class tell whether LoRA suffices?
#
# We declared the recipe beforehand: rank 8, alpha 16, all linear layers but the readout, at ten times the critical
# learning rate of full fine-tuning. LoRA [suffices](../definitions.md#lora-sufficiency) for an architecture if at least
# eight of ten contexts succeed. A context succeeds if the correct token overtakes and $\Phi > 0$ at the end. We then
# predict each architecture's outcome from the others in its class.


# %%
def find_critical(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    fitting = nb.fitting_contexts(model)
    return search.critical_rates(nb.store, model, fitting, recipe, tolerance=tolerance)


def lora(model, optimizer):
    return scaling.lora_outcomes(
        nb.store,
        model,
        nb.fitting_contexts(model),
        critical[optimizer, model.name].critical_rate,
        Recipe(optimizer=optimizer, method="lora", steps=steps),
        multiple=lora_multiple,
        seeds=tuple(lora_seeds),
    )


def foretold_by_peers(classes, outcome):
    """For each architecture what most others of its class had, or else most of all."""
    foretold = {}
    for name, label in classes.items():
        others = outcome.drop(name)
        peers = others[classes.drop(name) == label]
        foretold[name] = bool((peers if len(peers) else others).mean() > 0.5)
    return pd.Series(foretold)


critical = Study.of(find_critical, loaded)  # of full fine-tuning, as in chapter 08
outcomes = Study.of(lora, loaded)
sufficient = outcomes.map(lambda outcome: bool(outcome.sufficient.mean() > 0.5))
foretold, balanced = {}, {}
for optimizer in optimizers:
    outcome = pd.Series(sufficient.sel(optimizer))
    foretold[optimizer] = foretold_by_peers(described["class"], outcome)
    balanced[optimizer] = balanced_accuracy(outcome, foretold[optimizer])

# %% tags=["hide-input"]
for optimizer, label in optimizers.items():
    outcome = pd.Series(sufficient.sel(optimizer))
    nb.record(
        "C9",
        {"class_separation": classes.separation, "lora_balanced_accuracy": balanced[optimizer]},
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": outcomes.fewest_contexts(optimizer),
            "seeds": len(lora_seeds),
        },
        runs=[outcomes.sel(optimizer), critical.sel(optimizer)],
        detail={"class": described["class"].to_dict(), "sufficient": outcome.to_dict()},
    )
    table = {
        "class": described["class"],
        "successful contexts, by seed": {
            name: ", ".join(str(int(v)) for v in o.success.sum("context").values)
            for name, o in outcomes.sel(optimizer).items()
        },
        "LoRA suffices": outcome.map({True: "yes", False: "no"}),
        "predicted from its class": foretold[optimizer].map({True: "yes", False: "no"}),
    }
    nb.say("**{label}**", label=label)
    nb.table(pd.DataFrame(table).loc[outcome.index].rename_axis("model").reset_index(), runs=outcomes.sel(optimizer))
    nb.say(
        "The balanced accuracy of the prediction is {accuracy:.2f}. {what}",
        accuracy=balanced[optimizer],
        what="All architectures have the same outcome, so no quantity can tell them apart. The accuracy counts as that "
        "of chance."
        if outcome.nunique() < 2
        else "Both outcomes occur.",
    )

# %% [markdown]
# **Rivals.** We did the same with other quantities. Each splits the architectures at the largest gap of its logarithm.
# Then each architecture's outcome under Adam is predicted from the others in its class.

# %%
def readout_share(model):
    """Median over the contexts of the readout's share in the first velocity."""
    first = step_zero.velocity(model, nb.fitting_contexts(model), Recipe(steps=steps))
    return float(first.readout_share.median())


def rival(name):
    """How well the classes by one quantity foretell who succeeds with LoRA."""
    row = {"quantity": name, "low": "", "high": "", "separation": np.nan}
    if not (rivals[name] > 0).all():
        return row | {"accuracy": np.nan}  # there is no logarithm to split
    found = scaling.two_classes(rivals[name])
    outcome = pd.Series(sufficient.sel("adam"))
    told = foretold_by_peers(rivals[name] > found.boundary, outcome)
    return row | {
        "low": ", ".join(found.low),
        "high": ", ".join(found.high),
        "separation": found.separation,
        "accuracy": balanced_accuracy(outcome, told),
    }


names = ["coherence", "mean_overlap", "common_share", "top_share", "kurtosis"]
rivals = described[names].rename(columns=lambda name: name.replace("_", " "))
rivals["readout share of the first velocity"] = [readout_share(m) for m in loaded]
rivals["width"] = [float(m.readout.shape[1]) for m in loaded]
rivals["parameters"] = [float(m.n_parameters) for m in loaded]
rival_classes = pd.DataFrame([rival(name) for name in rivals])

# %% tags=["hide-input"]
nb.table(rival_classes, digits=2, runs=outcomes.sel("adam"))

# %% [markdown]
# ## LoRA's own law
#
# How much larger is the [critical learning rate](../definitions.md#critical-learning-rate) of LoRA than that of full
# fine-tuning? LoRA adds a product of two matrices, $BA$, to each weight. At the start $B = 0$. So only $B$ moves in the
# first step, and $A$ is fixed and random. Suppose that the gradients of a layer have no preferred direction. Then the
# first velocity under Adam is smaller than that of full fine-tuning by the factor $\sqrt{3}\,d/\alpha$, where $d$ is
# the width. The rank does not matter. (The $\sqrt 3$ comes from how `peft` draws $A$.) Later $A$ moves too, and LoRA
# gains speed. The figure compares the measured ratio of the critical rates with two others: this estimate, and the
# measured ratio of the first velocities.


# %%
def lora_against_full(model):
    """A row for every context: the ratio of the rates, and what might explain it."""
    fitting, whole = nb.fitting_contexts(model), critical["adam", model.name]
    ds = lora_critical[model.name]
    columns = {
        "model": model.name,
        "context": ds.context.values,
        "ratio": (ds.critical_rate / whole.critical_rate).values,
        "ratio of first velocities": (whole.velocity / ds.velocity).values,
        "number": kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap).values,
        "width over alpha": model.readout.shape[1] / Recipe.alpha,
        "parameters": model.n_parameters,
        "bulk coherence": described.coherence[model.name],
        "mean overlap": described.mean_overlap[model.name],
        "common share": described.common_share[model.name],
        "initial gap": np.abs(ds.gap.values),
        "pair overlap": readout_geometry.pair_overlaps(model.readout, fitting),
    }
    return pd.DataFrame(columns)


def find_lora_critical(model):
    recipe, fitting = Recipe(method="lora", steps=steps), nb.fitting_contexts(model)
    return search.critical_rates(nb.store, model, fitting, recipe, tolerance=tolerance)


lora_critical = {m.name: find_lora_critical(m) for m in loaded}
law = pd.concat([lora_against_full(m) for m in loaded], ignore_index=True)
positive = (law.drop(columns=["model", "context"]) > 0).all(axis=1)
law = law[positive]  # elsewhere there is no logarithm

# %% tags=["remove-cell"]
nb.caption(
    "fig-lora-law",
    """(a) Critical learning rate of LoRA over that of full fine-tuning, against the width over alpha. Dots:
        contexts. Squares: geometric means with 95 % bootstrap intervals over contexts. Grey line: the
        estimate for the first step. (b) The same ratio against the ratio of the first velocities. Grey
        line: equality. Adam, rank 8, alpha 16, one seed of the LoRA initialisation, brackets of 0.5 %.""",
    alt="The ratio of critical rates rises with the width; most dots lie below the grey lines.",
)

# %% tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True, layout="constrained")
width = np.array([law["width over alpha"].min() / 1.2, law["width over alpha"].max() * 1.2])
left.plot(width, np.sqrt(3) * width, color=REFERENCE, linewidth=1)
label_line(left, width[1], np.sqrt(3) * width[1], r"$\sqrt{3}\,d/\alpha$", REFERENCE, xytext=(-8, 0), ha="right")
ends = np.array([law["ratio of first velocities"].min() / 1.1, law["ratio of first velocities"].max() * 1.1])
right.plot(ends, ends, color=REFERENCE, linewidth=1)
means = architecture_numbers(law, column="ratio", seed=nb.seed)
for place, row in enumerate(means.itertuples()):
    rows, style = law[law.model == row.model], {"color": colours[row.model]}
    at = rows["width over alpha"].iloc[0] * (1 + 0.02 * (place - len(means) / 2))  # models of one width side by side
    left.plot(np.full(len(rows), at), rows.ratio, "o", markersize=3, alpha=0.6, **style)
    interval = [[row.mean - row.low], [row.high - row.mean]]
    left.errorbar(at * 1.02, row.mean, yerr=interval, fmt="s", capsize=3, markersize=5, **style)
    velocities = rows["ratio of first velocities"]
    right.plot(velocities, rows.ratio, "o", markersize=4, alpha=0.8, label=row.model, **style)
left.set(xscale="log", yscale="log", xlabel=r"width over alpha, $d/\alpha$", ylabel=r"$\eta_c$(LoRA) / $\eta_c$(full)")
right.set(xscale="log", xlabel="first velocity, full over LoRA")
log_ticks(left.xaxis, left.yaxis, right.xaxis)
figure.legend(loc="outside upper center", ncols=len(means), fontsize="small")
nb.figure(figure, "fig-lora-law", runs=lora_critical, data=law)

# %%
columns = {
    "ratio": "LoRA over full",
    "ratio of first velocities": "first velocity, full over LoRA",
    "number": "$N_c$ of LoRA",
}
together = law.groupby("model", sort=False)[[*columns]].agg(gmean)  # over the contexts
widths = pd.Series({m.name: m.readout.shape[1] for m in loaded})
together.insert(0, "estimate", np.sqrt(3) * widths / Recipe.alpha)

# %% tags=["hide-input"]
nb.table(together.rename(columns=columns).reset_index(), digits=2, runs=lora_critical)

# %% [markdown]
# The ratio varies over contexts and models. How much of that does a single quantity explain, as a power law? For the
# last column each architecture is predicted from a line through the others; the column gives the median error of the
# logarithm.

# %%
def explain(name):
    """The power law of one quantity, and how far it is off on models left out."""
    logs = np.log(law[[name, "ratio"]].astype(float))
    row = {"explanation": name, "exponent": np.nan, "r_squared": np.nan}
    if logs[name].nunique() > 1:
        line = linregress(logs[name], logs.ratio)
        row |= {"exponent": line.slope, "r_squared": line.rvalue**2}
    off = []
    for _, left_out in logs.groupby(law.model):
        others = logs.drop(left_out.index)
        if others[name].nunique() > 1:
            line = linregress(others[name], others.ratio)
            foretold = line.intercept + line.slope * left_out[name]
            off.extend(abs(foretold - left_out.ratio))
    return row | {"left_out_error": np.median(off) if off else np.nan}


no_cause = ("model", "context", "ratio", "number")
explanations = [column for column in law.columns if column not in no_cause]
explained = pd.DataFrame([explain(name) for name in explanations])
explained = explained.sort_values("r_squared", ascending=False, ignore_index=True)
whole = critical.table(
    lambda ds: kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap)
    .rename("number")
    .to_dataframe()
)
full_numbers = architecture_numbers(whole[whole.optimizer == "adam"])["mean"]
number, full_number = gmean(law.number), gmean(full_numbers)

# %% tags=["hide-input"]
nb.table(explained.rename(columns=lambda c: c.replace("_", " ")), runs=lora_critical)
best, own = explained.iloc[0], explained.set_index("explanation").loc["bulk coherence"]
nb.say(
    "The {explanation} explains most: {r_squared:.0%} of the variance, with an exponent of {exponent:.2f}. The bulk "
    "coherence explains {own:.0%} (n = {n} contexts in {models} models). The critical [kinematic "
    "number](../definitions.md#kinematic-number) of LoRA has a geometric mean of {lora:.2f}; that of full fine-tuning "
    "is {full:.2f}. So LoRA overtakes {when} than its first velocity says.",
    best,
    own=own.r_squared,
    n=len(law),
    models=law.model.nunique(),
    lora=number,
    full=full_number,
    when="sooner" if number < 1 else "later",
)

# %% [markdown]
# ## One number for full fine-tuning and LoRA
#
# Why is LoRA faster than its first velocity says? And why does the factor depend on the model? At step 0 only $B$ has a
# gradient. Adam's steps do not depend on how large a gradient is. So from the second step on it moves $A$ at full speed
# as well, and the velocity grows. Let $\kappa$ be the relative growth of the velocity per unit learning rate as $A$
# moves. It is a derivative at step 0, and computing it takes two more passes. After $T$ steps the gap has closed if
#
# $$N\,(1 + \eta\,(T-1)\,\kappa) = N_c ,$$
#
# where $N$ is LoRA's own number and $N_c$ the constant of *full* fine-tuning. Under SGD a small gradient makes a small
# step. So to first order $A$ stays where it is, and $\kappa = 0$. The last table tests that too.


# %%
def one_number(model, recipe, seed=0, contexts=None):
    """A row for each context: critical numbers of full fine-tuning and of LoRA."""
    fitting = nb.fitting_contexts(model)[:contexts]
    options = {"tolerance": tolerance}
    of_lora = search.critical_rates(
        nb.store, model, fitting, recipe, seeds=(seed,), **options
    )
    plain = Recipe(optimizer=recipe.optimizer, steps=recipe.steps)
    of_full = search.critical_rates(nb.store, model, fitting, plain, **options)
    growth = step_zero.velocity_growth(model, fitting, recipe, seed=seed).numpy()
    numbers = {
        name: kinematic_number(
            ds.critical_rate, recipe.steps, ds.velocity, ds.gap
        ).values
        for name, ds in (("full", of_full), ("LoRA", of_lora))
    }
    rate, v, gap = (of_lora[n].values for n in ("critical_rate", "velocity", "gap"))
    awake = rate * (recipe.steps - 1) * growth
    told = lora_critical_rate(numbers["full"], recipe.steps, v, gap, growth)
    columns = {"model": model.name, "context": of_lora.context.values} | numbers
    columns |= {"corrected": numbers["LoRA"] * (1 + awake), "awake": awake}
    return pd.DataFrame(columns | {"error": told / rate - 1})


KINDS = ["full", "LoRA", "corrected"]
of_all = pd.concat(
    [one_number(m, Recipe(method="lora", steps=steps)) for m in loaded]
)
by_model = of_all.groupby("model", sort=False)
law_numbers = by_model[[*KINDS, "awake"]].agg(lambda n: gmean(n[n > 0]))
away = law_numbers.corrected / law_numbers.full - 1
spread = coefficient_of_variation(law_numbers.corrected) if len(loaded) > 1 else np.nan

# %% tags=["remove-cell"]
nb.caption(
    "fig-lora-one-number",
    """Critical kinematic number of full fine-tuning, of LoRA, and of LoRA corrected for the motion of the matrix $A$.
        Dots: contexts; bars: geometric means over them. Adam, rank 8, alpha 16, one seed of the LoRA
        initialisation; critical rates to a bracket of 0.5 %.""",
    alt="""Three groups of dots. Those of LoRA lie lower than those of full fine-tuning and differ by model; corrected,
        they lie at the height of full fine-tuning.""",
)

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(WIDTH, 3.0), layout="constrained")
tidy = of_all.melt(["model", "context"], KINDS, "kind", "number")
dots_and_means(axes, tidy[tidy.number > 0], "number", x="kind", hue="model", colours=colours)
axes.set(ylabel="critical number $N_c$", yscale="log")
log_ticks(axes.yaxis)
legend_above(figure, colours)
nb.figure(figure, "fig-lora-one-number", runs=[lora_critical, critical.sel("adam")], data=of_all)
shown = law_numbers.rename(columns={"awake": "$\\eta_c (T-1) \\kappa$"}).assign(**{"off by (%)": 100 * away})
nb.table(shown.reset_index(), digits=2, runs=lora_critical)
if len(loaded) > 1:  # one architecture has no variation
    nb.record(
        "O15",
        {"variation_of_corrected_number": spread, "difference_to_full": away.abs().max()},
        optimizer="adam",
        n={"architectures": len(loaded), "contexts": int(by_model.corrected.count().min())},
        runs=[lora_critical, critical.sel("adam")],
        detail={"corrected": law_numbers.corrected.to_dict(), "full": law_numbers.full.to_dict()},
    )
nb.say(
    "LoRA's own number is {least:.2f} to {most:.2f}. The corrected number varies by {spread:.1%} over the models. It "
    "differs from that of full fine-tuning by {off:.1%} at most. For a single sentence, the critical rate of LoRA "
    "follows from that of full fine-tuning and $\\kappa$; the median error is {error:.1%}. At the critical rate the "
    "motion of $A$ adds the share $\\eta_c (T-1) \\kappa$ to the velocity, which is {low:.2f} to {high:.2f}.",
    least=law_numbers.LoRA.min(),
    most=law_numbers.LoRA.max(),
    spread=spread,
    off=away.abs().max(),
    error=of_all.error.abs().median(),
    low=law_numbers.awake.min(),
    high=law_numbers.awake.max(),
)

# %% [markdown]
# Does the law hold for other ranks, alphas, budgets and seeds of $A$, and for SGD? We test it on one model and five
# contexts.

# %%
VARIANTS = {
    "rank 2": {"rank": 2},
    "rank 32": {"rank": 32},
    "alpha 4": {"alpha": 4.0},
    "alpha 64": {"alpha": 64.0},
    "half the steps": {"steps": steps // 2},
    "twice the steps": {"steps": 2 * steps},
    "another A": {"seed": 1},
    "SGD": {"optimizer": "sgd"},
}


def variant(name, seed=0, **options):
    recipe = Recipe(**{"method": "lora", "steps": steps} | options)
    rows = one_number(loaded[0], recipe, seed, contexts=5)
    means = dict(rows[[*KINDS, "awake"]].mean())
    return {"setting": name} | means | {"median error": rows.error.abs().median()}


variants = pd.DataFrame([variant(name, **o) for name, o in VARIANTS.items()])

# %% tags=["hide-input"]
nb.table(variants.rename(columns={"awake": "$\\eta_c (T-1) \\kappa$"}), digits=2, runs=lora_critical)
of_sgd, others = variants[variants.setting == "SGD"].iloc[0], variants[variants.setting != "SGD"]
nb.say(
    "Under Adam the median error of a sentence is {least:.1%} to {most:.1%}, depending on the setting. The share of "
    "$A$ varies by a factor of {range:.0f} over these settings. Under SGD the error is {sgd:.0%}, so the law does not hold "
    "there. A step of SGD that closes the gap is so large that $A$ moves as well, and no derivative at step 0 tells "
    "that.",
    least=others["median error"].min(),
    most=others["median error"].max(),
    range=others.awake.max() / others.awake.min(),
    sgd=of_sgd["median error"],
)

# %% tags=["hide-input"]
nb.answer(
    "{classes} The bulk coherence sorts the architectures into classes of {low} and {high}. It predicts whether LoRA "
    "suffices with a balanced accuracy of {accuracy:.2f}; 0.5 is chance. LoRA's critical learning rate is {least:.1f} "
    "to {most:.1f} times that of full fine-tuning, depending on the model. Its critical kinematic number is "
    "{number:.2f}, and that of full fine-tuning {full:.2f}. With the motion of LoRA's matrix $A$ counted, which step 0 "
    "tells, LoRA's is {corrected:.2f}.",
    classes="The class does not tell." if balanced["adam"] <= 0.5 else "The class says something.",
    corrected=gmean(law_numbers.corrected),
    low=len(classes.low),
    high=len(classes.high),
    accuracy=balanced["adam"],
    least=together.ratio.min(),
    most=together.ratio.max(),
    number=number,
    full=full_number,
)

# %% [markdown]
# ## What it means
#
# A class is of no use if all architectures have the same outcome under LoRA, however cleanly it splits them. The ratio
# of the rates is a better question, because it has an answer on every model. [The ledger](00_ledger.ipynb) judges the
# class by thresholds that were set beforehand.
#
# ## What could be wrong
#
# Five architectures can always be split into two classes. Only the separation of the classes is evidence. The zoo's two
# families were initialised differently, and the coherence still shows it. The recipe for LoRA is ours. Another learning
# rate would change which architectures pass. A prototype on these models was known when the claim about the corrected
# number was written down. The main table has one rank and one seed of $A$; the last table varies them on one model.
