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
#     minutes: 3
# ---

# %% [markdown]
# # 08 · Dimensionless numbers
#
# **Question.** Is there one dimensionless quantity that is the same for all architectures, and can it be computed from
# the untouched model?
#
# ```{glue:md} answer_08
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
tolerance: float = 0.005  # relative width of the bracket around a critical learning rate

# %% tags=["hide-cell"]
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from scipy.stats import gmean, variation

from phantombook import notebook
from phantombook.figures.charts import contexts_and_means
from phantombook.figures.palette import OTHER_FAMILY, REFERENCE, model_colours
from phantombook.figures.style import WIDTH, legend_above, log_ticks
from phantombook.ledger.claims import threshold
from phantomlib.critical import predictors, search
from phantomlib.critical.scaling import (
    architecture_numbers,
    coefficient_of_variation,
    interval,
    kinematic_number,
)
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.study import Study

nb = notebook.start("08_dimensionless_numbers")
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
optimizers = {"adam": "Adam", "sgd": "SGD"}
of_C8 = threshold("C8", "coefficient_of_variation")

# %% [markdown]
# ## The kinematic number
#
# The [critical learning rate](../definitions.md#critical-learning-rate) $\eta_c$ is the smallest at which the correct
# token overtakes within $T$ steps. It differs by an order of magnitude between [contexts](../definitions.md#context)
# and between optimisers, and less between models. The [kinematic number](../definitions.md#kinematic-number) compares
# two distances,
#
# $$N = \frac{\eta\, T\, v_0}{|\Delta_0|}, \qquad v_0 = \left.\frac{d\Delta}{d\eta}\right|_0 :$$
#
# how far the [logit gap](../definitions.md#context) would travel in $T$ steps at its first velocity, and how far it
# has to go. Here $v_0$ says how fast the gap begins to move along the optimiser's first update, per unit of learning
# rate. If training went in a straight line, the correct token would overtake at $N = 1$. We find $\eta_c$ by a
# bracketing search that starts from that guess, and compute $N_c = N(\eta_c)$.


# %%
def find_critical(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    fitting = nb.fitting_contexts(model)
    return search.critical_rates(nb.store, model, fitting, recipe, tolerance=tolerance)


def with_number(ds):
    number = kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap)
    return ds.assign(number=number).to_dataframe().reset_index()


def interval_of_spread(rows):
    """95 % bootstrap interval of the spread, the same contexts for all models."""
    table = rows.pivot(index="context", columns="model", values="number")
    values = table.where(table > 0).dropna().to_numpy()  # (contexts, models)

    def spread(drawn, axis=-1):
        means = gmean(values[drawn.astype(int)], axis=-2)
        return variation(means, axis=-1, ddof=1)

    return interval(np.arange(len(values)), spread, seed=nb.seed)


critical = Study.of(find_critical, loaded)
numbers = critical.table(with_number)  # a row for every optimiser, model and context
by_optimizer = {o: numbers[numbers.optimizer == o] for o in optimizers}
summaries = {
    o: architecture_numbers(rows, seed=nb.seed) for o, rows in by_optimizer.items()
}
spread = {o: coefficient_of_variation(found["mean"]) for o, found in summaries.items()}
between = {o: interval_of_spread(rows) for o, rows in by_optimizer.items()}

# %% tags=["remove-cell"]
nb.caption(
    "fig-kinematic-number",
    """Critical kinematic number by architecture, one colour per model, one panel per optimiser. Dots: contexts, in
        rising order; a context whose first velocity points the wrong way has none. Squares: geometric mean over the
        contexts; bars: its 95 % bootstrap interval. Grey line: N = 1, where a straight path would overtake. Full
        fine-tuning; critical rates to a bracket of 0.5 %; deterministic, no seeds.""",
    alt="Under both optimisers the squares of all models lie close to one; the dots of single contexts scatter around.",
)

# %% tags=["hide-input"]
means = pd.concat(found.assign(optimizer=o) for o, found in summaries.items())
for optimizer, found in summaries.items():  # the page "Train it here" predicts with them
    nb.glue(f"critical_number_{optimizer}", float(found["mean"].mean()))
nb.figure(
    contexts_and_means(numbers, "number", means, colours, optimizers, "critical kinematic number $N_c$", line=1),
    "fig-kinematic-number",
    runs=critical,
    data=numbers,
)

# %% tags=["hide-input"]
words = {"mean": "$N_c$", "log_sd": "log sd over contexts", "low": "95 % from", "high": "to"}
for optimizer, summary in summaries.items():
    nb.record(
        "C8",
        spread[optimizer],
        optimizer=optimizer,
        interval=between[optimizer],
        n={"architectures": len(loaded), "contexts": int(summary.n.min() + summary.undefined.min())},
        runs=critical.sel(optimizer),
        detail={
            "N_c": dict(zip(summary.model, summary["mean"])),
            "undefined": int(summary.undefined.sum()),
            "interval": "95 % bootstrap over contexts",
        },
    )
    nb.say("**{label}**", label=optimizers[optimizer])
    nb.table(summary.rename(columns=words), runs=critical.sel(optimizer))
    searches = by_optimizer[optimizer]
    nb.say(
        "The coefficient of variation over the {models} architectures is {spread:.1%} (95 % bootstrap interval "
        "{low:.1%} to {high:.1%}). Claim C8 asks for at most {threshold:.0%}; the upper end of the interval lies "
        "{side} that. For comparison, the critical learning rates themselves vary by {rates:.0%} between models. The "
        "searches took {n_runs} runs for {brackets} brackets, of which {converged} closed. In {reentries} cases a "
        "rate above the critical one failed all the same, and {diverged} runs diverged. For {undefined} sentences "
        "$v_0$ is not positive, and $N$ is undefined.",
        searches[["n_runs", "converged", "reentries", "diverged"]].sum().astype(int),
        models=len(loaded),
        spread=spread[optimizer],
        low=between[optimizer][0],
        high=between[optimizer][1],
        rates=coefficient_of_variation(searches.groupby("model").critical_rate.agg(gmean)),
        brackets=len(searches),
        undefined=int(summary.undefined.sum()),
        side="above" if between[optimizer][1] > of_C8 else "below",
        threshold=of_C8,
    )

# %% [markdown]
# C8 is judged on these models. [Chapter 10](10_blind_prediction.ipynb) says how far the number of a held-out model
# lies from theirs, after its blind prediction.
#
# A bracket shows one boundary. Could there be another, far from it? For the first context of each model we also
# scanned three decades of learning rates.


# %%
def scan(model):
    """Whether the word overtakes at a tenth to a hundred times the critical rate."""
    rate = critical["adam", model.name].critical_rate.values[0]
    first, rates = nb.fitting_contexts(model)[:1], rate * np.logspace(-1, 2, 19)
    runs = nb.store.run(model, first, rates, Recipe(steps=steps))
    return runs.isel(context=0, seed=0)


def summary_of(runs):
    crossed = (runs.logit_gap > 0).any("step")
    return {
        "rates tried": runs.sizes["rate"],
        "that overtake": int(crossed.sum()),
        "re-entries": int((crossed.astype(int).diff("rate") < 0).sum()),
        "diverged": int((runs.diverged_step >= 0).sum()),
    }


scans = {model.name: scan(model) for model in loaded}

# %% tags=["hide-input"]
nb.table(
    pd.DataFrame({"model": name} | summary_of(runs) for name, runs in scans.items()),
    runs=scans,
)


# %% [markdown]
# ## Without any fitted constant
#
# $N_c$ is not exactly 1 because the path bends. How much it bends can be read off the untrained model. The
# **three-gradient** prediction follows the optimiser for $T$ steps while three numbers move: the logit of $c$, the
# logit of $k$, and the log-sum-exp of all others. Their gradients are kept as they are at step 0; only the
# probabilities that weigh them change. Nothing is fitted.


# %%
def predict(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    fitting = nb.fitting_contexts(model)
    return predictors.measured_and_predicted(
        nb.store, model, fitting, recipe, tolerance=tolerance
    )


predicted = Study.of(predict, loaded)
results = predicted.table()  # a row for every optimiser, model and context

# %% tags=["remove-cell"]
nb.caption(
    "fig-predicted",
    """Predicted against measured critical learning rate, both axes logarithmic, one dot per context and model, one
        colour per model. Open: velocity, for which N = 1. Filled: the three-gradient prediction. Both use step-0
        quantities and no fitted constant. Grey line: equality. Full fine-tuning; measured to a bracket of 0.5 %;
        deterministic, no seeds.""",
    alt="Under both optimisers the filled dots lie on the line of equality; the open dots lie further from it.",
)

# %% tags=["hide-input"]
def predicted_rates(axes, rows):
    """Predicted against measured: velocity open, three gradients filled."""
    ends = np.array([rows.measured.min() / 1.3, rows.measured.max() * 1.3])
    axes.plot(ends, ends, color=REFERENCE, linewidth=0.8, zorder=0)
    dots = {"alpha": 0.8, "markersize": 4, "linestyle": "", "marker": "o"}
    for name, of_model in rows.groupby("model", sort=False):
        axes.plot(of_model.measured, of_model.velocity, color=colours[name], markerfacecolor="none", **dots)
        axes.plot(of_model.measured, of_model.three_gradients, color=colours[name], **dots)
    axes.set(xscale="log", yscale="log", xlabel="measured critical learning rate")
    log_ticks(axes.xaxis, axes.yaxis)


figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.5), layout="constrained")
for axes, (optimizer, title) in zip(panels, optimizers.items()):
    predicted_rates(axes, results[results.optimizer == optimizer])
    axes.set_title(title)
panels[0].set_ylabel("predicted")
marks = {"velocity": (OTHER_FAMILY, "none"), "three gradients": (OTHER_FAMILY, OTHER_FAMILY)}
marks |= {name: (colour, colour) for name, colour in colours.items()}
handles = [
    mpl.lines.Line2D([], [], marker="o", linestyle="", label=name, color=colour, markerfacecolor=face)
    for name, (colour, face) in marks.items()
]
figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize="small")
nb.figure(figure, "fig-predicted", runs=[predicted, critical], data=results)

# %% [markdown]
# The gradients themselves change along the way. So the rungs of the ladder below take further derivatives of the same
# three numbers at step 0. *Velocity* is $N = 1$. *Straight line* adds the gap's second derivative along the first
# update. *Second order* lets the three gradients change at the rate that they have along the first update. *Third
# order* adds how that rate changes; it takes both along the displacement that *second order* predicts. Two more
# predictors leave step 0. *Quadrature* moves the weights along the predicted displacement, without training, and
# takes gradients there. *First steps* makes three real steps.

# %%
ladder = results.melt(
    ["optimizer", "model", "context", "measured"],
    predictors.PREDICTORS,
    var_name="predictor",
    value_name="rate",
).sort_values("optimizer", kind="stable")
ladder["ratio"] = ladder.rate / ladder.measured
ladder["error"] = 100 * (ladder.ratio - 1).abs()  # per cent
ladder["predictor"] = ladder.predictor.str.replace("_", " ")
by_predictor = ladder.groupby(["optimizer", "predictor"], sort=False)
of_models = ladder.groupby(["optimizer", "predictor", "model"], sort=False).ratio
of_models = 100 * (of_models.agg(gmean, nan_policy="omit") - 1).abs()
accuracy = pd.DataFrame(
    {
        "median of contexts (%)": by_predictor.error.median(),
        "largest (%)": by_predictor.error.max(),
        "worst architecture (%)": of_models.groupby(level=[0, 1], sort=False).max(),
        "no prediction": by_predictor.rate.agg(lambda rates: rates.isna().sum()),
    }
)

# %% tags=["remove-cell"]
nb.caption(
    "fig-ladder",
    """Absolute error of seven predictors of the critical learning rate, without any fitted constant. One dot per
        context and model, one colour per model; bars: median over all. The first five use step-0 quantities only.
        Dotted: half the width of the bracket, below which measurement and prediction cannot be told apart. Errors below
        0.01 % are drawn at 0.01 %. Full fine-tuning; deterministic, no seeds.""",
    alt="Under both optimisers the medians fall along the ladder, from several % to about a tenth of 1 %.",
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.6), sharey=True, layout="constrained")
for axes, (optimizer, title) in zip(panels, optimizers.items()):
    rows = ladder[ladder.optimizer == optimizer].assign(error=lambda rows: rows.error.clip(lower=0.01))
    axes.axhline(50 * tolerance, color=REFERENCE, linewidth=0.9, linestyle=":")  # half the bracket, in per cent
    style = {"palette": colours, "dodge": True, "jitter": False, "size": 3, "alpha": 0.8, "legend": False}
    sns.stripplot(rows, x="predictor", y="error", hue="model", ax=axes, **style)
    medians = rows.groupby("predictor", sort=False).error.median()
    places = np.arange(len(medians))
    axes.hlines(medians, places - 0.34, places + 0.34, color="black", linewidth=1.6)
    axes.set(title=title, yscale="log", ylim=(0.009, None), xlabel="")
    plt.setp(axes.get_xticklabels(), rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
panels[0].set_ylabel("absolute error (%)")
legend_above(figure, colours)
nb.figure(figure, "fig-ladder", runs=[predicted, critical], data=results)
named = accuracy.rename(index=optimizers, level=0).rename_axis(["optimiser", "prediction"])
nb.table(named.reset_index(), digits=2, runs=[predicted, critical])
nb.say(
    "The column “worst architecture” takes the geometric mean over the contexts of each model, and gives the largest "
    "error among the models. A measured rate is known to half its bracket, so smaller errors mean nothing for a single "
    "context."
)

# %% tags=["hide-input"]
of_adam = summaries["adam"]["mean"]
at_step_0 = accuracy.loc["adam", "median of contexts (%)"].iloc[: len(predictors.STEP_0)]
nb.answer(
    "The critical kinematic number lies between {least:.3f} and {most:.3f} in all {models} architectures under "
    "Adam. It varies by {adam:.1%} (SGD: {sgd:.1%}); the critical learning rates vary by {rates:.0%}. The untouched "
    "model tells the rest. The best prediction from it, *{best}*, is off by {error:.2f} % in the median context.",
    spread,
    least=of_adam.min(),
    most=of_adam.max(),
    models=len(loaded),
    rates=coefficient_of_variation(by_optimizer["adam"].groupby("model").critical_rate.agg(gmean)),
    best=at_step_0.idxmin(),
    error=at_step_0.min(),
)

# %% [markdown]
# ## What it means
#
# A kinematic number near 1 with a small spread says that overtaking is a matter of kinematics: a first velocity, a
# distance and a budget, all known before training. The path also bends, and the ladder shows that the untrained model
# tells how. On the zoo every further derivative lowers the error. On real models, whose paths bend more, the third
# derivative can raise it ([chapter 13](13_real_blind.ipynb)). LoRA has a law of its own ([chapter
# 09](09_lora_law.ipynb)). [The ledger](00_ledger.ipynb) has the verdict.
#
# ## What could be wrong
#
# The predictors of higher order assume that the gap grows steadily. They would miss a path that crosses and falls
# back. The zoo's two families share a language and a recipe of training.
