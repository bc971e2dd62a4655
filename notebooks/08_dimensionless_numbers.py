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
# # 08 · Dimensionless numbers
#
# **Question.** Is there one dimensionless quantity that is the same for all architectures, and another that sorts
# them into classes and tells whether LoRA suffices?
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
lora_seeds: list[int] = [0, 1, 2]  # seeds of the LoRA initialisation
lora_multiple: float = 10.0  # learning rate of LoRA in units of the critical one of full fine-tuning
tolerance: float = 0.005  # relative width of the bracket around a critical learning rate

# %% tags=["hide-cell"]
import numpy as np
import pandas as pd

from phantombook import notebook
from phantomlib.critical import lora_classes, predictors, search, step_zero
from phantomlib.critical.numbers import (
    architecture_numbers,
    coefficient_of_variation,
    kinematic_number,
    variation_interval,
)
from phantombook.figures.critical import ladder, lora_law, numbers_by_model, predicted_rates
from phantombook.figures.order_parameter import coherence_histories
from phantombook.figures.palette import model_colours
from phantomlib import readout_geometry
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.study import Study
from phantomlib.models import zoo_models

nb = notebook.start("08_dimensionless_numbers")
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
optimizers = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## The kinematic number
#
# The [critical learning rate](../definitions.md#critical-learning-rate) $\eta_c$ is the smallest at which the
# correct token overtakes within $T$ steps. It differs by an order of magnitude between
# [contexts](../definitions.md#context) and between optimisers, and less between models. The [kinematic
# number](../definitions.md#kinematic-number) compares two distances,
#
# $$N = \frac{\eta\, T\, v_0}{|\Delta_0|}, \qquad v_0 = \left.\frac{d\Delta}{d\eta}\right|_0 :$$
#
# how far the [logit gap](../definitions.md#context) would travel in $T$ steps at its first velocity, and how
# far it has to go. If training went in a straight line, the correct token would overtake at $N = 1$. We find
# $\eta_c$ by a bracketing search that starts from that guess and compute $N_c = N(\eta_c)$.


# %%
def find_critical(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    return search.critical_rates(nb.store, model, nb.fitting_contexts(model), recipe, tolerance=tolerance)


def with_number(ds):
    number = kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap)
    return ds.assign(number=number).to_dataframe().reset_index()


critical = Study.of(find_critical, loaded)
numbers = critical.table(with_number)  # a row for every optimiser, model and context
summaries = {o: architecture_numbers(numbers[numbers.optimizer == o], seed=nb.seed) for o in optimizers}

# %% tags=["remove-cell"]
nb.caption(
    "fig-kinematic-number",
    """Critical kinematic number by architecture. Dots: contexts (fewer than all where the first velocity
        points the wrong way). Bars: geometric mean over the contexts with its 95 % bootstrap interval.
        Full fine-tuning; critical rates to a bracket of 0.5 %; deterministic, no seeds. The grey line
        marks N = 1, where a straight path would overtake.""",
    alt="Critical kinematic numbers of every context and model under Adam and SGD, close to one.",
)

# %%
nb.figure(
    numbers_by_model(numbers, summaries, colours, optimizers),
    "fig-kinematic-number",
    runs=critical,
    data=numbers,
)

# %%
spread = {o: coefficient_of_variation(summaries[o]["mean"]) for o in optimizers}
between = {o: variation_interval(numbers[numbers.optimizer == o], seed=nb.seed) for o in optimizers}
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

# %% tags=["hide-input"]
words = {"mean": "$N_c$", "log_sd": "log sd over contexts", "low": "95 % from", "high": "to"}
for optimizer, label in optimizers.items():
    searches = list(critical.sel(optimizer).values())
    nb.say("**{label}**", label=label)
    nb.table(summaries[optimizer].rename(columns=words), runs=searches)
    rates = [float(np.exp(np.log(ds.critical_rate).mean())) for ds in searches]
    nb.say(
        "The coefficient of variation over the {models} architectures is {spread:.1%} (95 % bootstrap "
        "interval {low:.1%} to {high:.1%}). The critical learning rates themselves vary by {rates:.0%}. "
        "The searches took {runs} runs for {brackets} brackets, of which {closed} closed; {reentries} "
        "re-entries and {diverged} diverged runs were seen. In {undefined} cells $v_0$ is not positive "
        "and $N$ is undefined.",
        models=len(loaded),
        spread=spread[optimizer],
        low=between[optimizer][0],
        high=between[optimizer][1],
        rates=coefficient_of_variation(rates),
        runs=sum(int(ds.n_runs.sum()) for ds in searches),
        brackets=sum(ds.sizes["context"] for ds in searches),
        closed=sum(int(ds.converged.sum()) for ds in searches),
        reentries=sum(int(ds.reentries.sum()) for ds in searches),
        diverged=sum(int(ds.diverged.sum()) for ds in searches),
        undefined=int(summaries[optimizer].undefined.sum()),
    )

# %% [markdown]
# A bracket tells of one boundary. Could there be another, far from it? For the first context of each model we also
# ran a scan over three decades of learning rates.


# %%
def scan(model):
    rate = critical["adam", model.name].critical_rate.values[:1]
    return search.scan(nb.store, model, nb.fitting_contexts(model)[:1], Recipe(steps=steps), rate, per_decade=6)


scans = {model.name: scan(model) for model in loaded}
nb.table(
    pd.DataFrame(
        {
            "model": name,
            "rates tried": s.sizes["multiple"],
            "that overtake": int(s.crossed.sum()),
            "re-entries": int(s.reentries.sum()),
            "diverged": int(s.diverged.sum()),
        }
        for name, s in scans.items()
    ),
    runs=scans,
)

# %% [markdown]
# ## Without any fitted constant
#
# $N_c$ is not exactly 1 because the path bends. How much it bends can be read off the untrained model. The
# **three-gradient** prediction follows the optimiser for $T$ steps while three numbers move: the logits of $c$ and of
# $k$, and the log-sum-exp of all others. Their gradients are kept as they are at step 0. Nothing is fitted.


# %% tags=["remove-cell"]
nb.caption(
    "fig-predicted",
    """Predicted against measured critical learning rate, one dot per context and model. Open:
        velocity, for which N = 1. Filled: the three-gradient prediction. Both use step-0 quantities and no
        fitted constant. The grey line is equality. Full fine-tuning; measured to a bracket of 0.5 %;
        deterministic, no seeds.""",
    alt="""Predicted against measured critical learning rates on logarithmic axes, for Adam and SGD; the filled
        dots lie close to the line of equality.""",
)

# %%
def predict(model, optimizer):
    recipe = Recipe(optimizer=optimizer, steps=steps)
    return predictors.results(nb.store, model, nb.fitting_contexts(model), recipe, tolerance=tolerance)


predicted = Study.of(predict, loaded)
results = predicted.table()  # a row for every optimiser, model and context: measured rate and all predictions
nb.figure(
    predicted_rates(results, ["velocity", "three_gradients"], colours, optimizers),
    "fig-predicted",
    runs=[predicted, critical],
    data=results,
)

# %% [markdown]
# The gradients themselves change along the way. Each rung of the ladder below takes one more derivative of the same
# three numbers: *second order* along the first update, *third order* along the displacement that *second order*
# predicts. *Straight line* is the plain Taylor series of the gap along the first update. Two predictors beside the
# ladder leave step 0: *quadrature* evaluates gradients where the displacement is predicted to lead (the weights are
# moved by hand), and *first steps* makes three real steps.

# %% tags=["remove-cell"]
nb.caption(
    "fig-ladder",
    """Absolute error of every predictor of the critical learning rate, without any fitted constant. One
        dot per context and model; bars: median over all. The first five use step-0 quantities only.
        Dotted: half the width of the bracket, below which measurement and prediction cannot be told
        apart. Full fine-tuning; deterministic, no seeds.""",
    alt="""Errors of seven predictors on a logarithmic axis, falling from several per cent to a tenth of a per
        cent, for Adam and SGD.""",
)

# %%
nb.figure(
    ladder(results, list(predictors.PREDICTORS), colours, optimizers, floor=50 * tolerance),
    "fig-ladder",
    runs=[predicted, critical],
    data=results,
)


# %%
def errors(optimizer, predictor):
    chosen = results[results.optimizer == optimizer]
    ratio = chosen[predictor] / chosen.measured
    by_model = np.expm1(np.log(ratio).groupby(chosen.model).mean())  # of the geometric mean over a model's contexts
    return {
        "optimiser": optimizers[optimizer],
        "prediction": predictor.replace("_", " "),
        "median of contexts (%)": 100 * (ratio - 1).abs().median(),
        "largest (%)": 100 * (ratio - 1).abs().max(),
        "worst architecture (%)": 100 * by_model.abs().max(),
        "no prediction": int(ratio.isna().sum()),
    }


accuracy = pd.DataFrame(errors(o, name) for o in optimizers for name in predictors.PREDICTORS)
nb.table(accuracy, digits=2, runs=[predicted, critical])
nb.say(
    "The column “worst architecture” gives the error of the geometric mean over a model's contexts, for "
    "the model where it is largest. For single contexts under SGD an error of half the bracket is the "
    "limit of what can be measured."
)

# %% [markdown]
# ## The bulk, and two classes
#
# The [bulk coherence](../definitions.md#bulk-coherence) $B = d\,\langle g_{ij}^2\rangle$ is 1 if the readout's rows
# point in random directions and larger if they crowd. We split the architectures at the largest gap of $\log B$,
# without looking at anything else.

# %%
described = pd.DataFrame({m.name: readout_geometry.readout_statistics(m.readout, seed=nb.seed) for m in loaded}).T
classes = lora_classes.two_classes(described.coherence)
described["class"] = [classes.of(value) for value in described.coherence]
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
    """Bulk coherence of the zoo's models along their pretraining (one seed each), and the boundary
        between the two classes found in the final values (grey). For other models only the final value is
        known, drawn as a dot.""",
    alt="Bulk coherence against pretraining step, one line per model.",
)

# %%
zoo = [ref.removeprefix("zoo:") for ref in nb.models if ref.startswith("zoo:")]
histories = {name: [(h["step"], h["B"]) for h in zoo_models.report(name)["bulk_coherence"]] for name in zoo}
nb.figure(
    coherence_histories(histories, described.coherence, classes.boundary, colours),
    "fig-bulk-classes",
)

# %% [markdown]
# ## Does the class tell whether LoRA suffices?
#
# The declared recipe: rank 8, alpha 16, all linear layers but the readout, at ten times the critical learning rate of
# full fine-tuning. LoRA [suffices](../definitions.md#lora-sufficiency) for an architecture if in at least eight of
# ten contexts the correct token overtakes and $\Phi > 0$ at the end. Each architecture's outcome is then predicted
# from the others in its class.


# %%
def lora(model, optimizer):
    rates = critical[optimizer, model.name].critical_rate
    recipe = Recipe(optimizer=optimizer, method="lora", steps=steps)
    fitting, seeds = nb.fitting_contexts(model), tuple(lora_seeds)
    return lora_classes.lora_outcomes(nb.store, model, fitting, rates, recipe, multiple=lora_multiple, seeds=seeds)


outcomes = Study.of(lora, loaded)
sufficient = outcomes.map(lambda outcome: bool(outcome.sufficient.mean() > 0.5))
balanced = {}
for optimizer, label in optimizers.items():
    outcome = pd.Series(sufficient.sel(optimizer))
    foretold = lora_classes.predict_from_class(described["class"], outcome)
    balanced[optimizer] = lora_classes.balanced_accuracy(outcome, foretold)
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
        "predicted from its class": foretold.map({True: "yes", False: "no"}),
    }
    nb.say("**{label}**", label=label)
    nb.table(pd.DataFrame(table).loc[outcome.index].rename_axis("model").reset_index(), runs=outcomes.sel(optimizer))
    nb.say(
        "Balanced accuracy of the prediction: {accuracy:.2f}. {what}",
        accuracy=balanced[optimizer],
        what="All architectures have the same outcome, so no quantity can tell them apart, and the accuracy counts as "
        "that of chance."
        if outcome.nunique() < 2
        else "Both outcomes occur.",
    )

# %% [markdown]
# **Rivals.** The same was done with other quantities: split at the largest gap of its logarithm,
# and each architecture's outcome under Adam predicted from the others in its class.

# %%
rivals = described[["coherence", "mean_overlap", "common_share", "top_share", "kurtosis"]]
rivals = rivals.rename(columns=lambda c: c.replace("_", " ")).assign(
    **{
        "readout share of the first velocity": [
            float(step_zero.velocity(m, nb.fitting_contexts(m), Recipe(steps=steps)).readout_share.median())
            for m in loaded
        ],
        "width": [float(m.readout.shape[1]) for m in loaded],
        "parameters": [float(m.n_parameters) for m in loaded],
    }
)
nb.table(lora_classes.rival_classes(rivals, pd.Series(sufficient.sel("adam"))), digits=2, runs=outcomes.sel("adam"))

# %% [markdown]
# ## LoRA's own law
#
# How much larger a learning rate does LoRA need than full fine-tuning? LoRA adds a product of two matrices, $BA$, to
# each weight. At its start $B = 0$, so only $B$ moves, through the fixed random $A$. If the gradients of a layer have
# no preferred direction, its first velocity is smaller than that of full fine-tuning by $\sqrt{3}\,d/\alpha$ under
# Adam, with $d$ the width, whatever the rank. (The $\sqrt 3$ comes from how `peft` draws $A$.) Later $A$ moves too,
# and LoRA gains speed. The figure sets the ratio of the critical rates against the ratio of the first velocities,
# both measured.


# %%
def lora_against_full(model):
    """A row for every context: LoRA's critical rate over that of full fine-tuning, and what might explain it."""
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


lora_recipe = Recipe(method="lora", steps=steps)
lora_critical = {
    m.name: search.critical_rates(nb.store, m, nb.fitting_contexts(m), lora_recipe, tolerance=tolerance) for m in loaded
}
law = pd.concat([lora_against_full(m) for m in loaded], ignore_index=True)
positive = (law.drop(columns=["model", "context"]) > 0).all(axis=1)  # where it is not, there is no logarithm
law = law[positive]

# %% tags=["remove-cell"]
nb.caption(
    "fig-lora-law",
    """Left: critical learning rate of LoRA over that of full fine-tuning, against the width over alpha;
        dots are contexts, squares geometric means with 95 % bootstrap intervals over contexts, the grey
        line is the estimate for the first step. Right: the same ratio against the ratio of the first
        velocities; the grey line is equality. Adam, rank 8, alpha 16, one seed of the LoRA
        initialisation, brackets of 0.5 %.""",
    alt="Two panels of the ratio of critical rates, rising with the width; most dots lie below the grey lines.",
)

# %%
nb.figure(
    lora_law(law, architecture_numbers(law, column="ratio", seed=nb.seed), colours),
    "fig-lora-law",
    runs=lora_critical,
    data=law,
)

# %%
together = law.groupby("model", sort=False)[["ratio", "ratio of first velocities", "number"]]
together = together.agg(lambda values: np.exp(np.log(values).mean()))  # geometric means over the contexts
estimates = {m.name: np.sqrt(3) * m.readout.shape[1] / Recipe.alpha for m in loaded}
together.insert(0, "estimate", together.index.map(estimates))
nb.table(
    together.rename(
        columns={
            "ratio": "LoRA over full",
            "ratio of first velocities": "first velocity, full over LoRA",
            "number": "$N_c$ of LoRA",
        }
    ).reset_index(),
    digits=2,
    runs=lora_critical,
)

# %% [markdown]
# How much of the ratio's variation over all contexts and models do single quantities explain, as power laws? The last
# column predicts each architecture from a line through the others (median error of the logarithm).

# %%
explanations = [c for c in law.columns if c not in ("model", "context", "ratio", "number")]
explained = lora_classes.explain(law, "ratio", explanations)
nb.table(explained.rename(columns=lambda c: c.replace("_", " ")), runs=lora_critical)

# %% tags=["hide-input"]
best, own = explained.iloc[0], explained.set_index("explanation").loc["bulk coherence"]
nb.say(
    "“{best}” explains most, {share:.0%} of the variance (exponent {exponent:.2f}); the bulk coherence "
    "explains {own:.0%} (n = {n} contexts in {models} models). The critical kinematic number of LoRA is "
    "{lora:.2f} (geometric mean), against {full:.2f} for full fine-tuning: LoRA overtakes {when} than "
    "its first velocity says.",
    best=best.explanation,
    share=best.r_squared,
    exponent=best.exponent,
    own=own.r_squared,
    n=len(law),
    models=law.model.nunique(),
    lora=np.exp(np.log(law.number).mean()),
    full=np.exp(np.log(summaries["adam"]["mean"]).mean()),
    when="sooner" if np.exp(np.log(law.number).mean()) < 1 else "later",
)
mean = summaries["adam"]["mean"]
nb.answer(
    "For the first: the critical kinematic number is {least:.3f} to {most:.3f} in all {models} "
    "architectures under Adam and varies by {spread:.1%} (SGD: {sgd:.1%}), where the critical learning "
    "rates vary by {rates:.0%}. For the second: the bulk coherence sorts them into classes of {low} and "
    "{high}, and predicts whether LoRA suffices with a balanced accuracy of {accuracy:.2f} (0.5 is "
    "chance).",
    least=mean.min(),
    most=mean.max(),
    models=len(loaded),
    spread=spread["adam"],
    sgd=spread["sgd"],
    rates=coefficient_of_variation(
        [float(np.exp(np.log(ds.critical_rate).mean())) for ds in critical.sel("adam").values()]
    ),
    low=len(classes.low),
    high=len(classes.high),
    accuracy=balanced["adam"],
)

# %% [markdown]
# ## What it means
#
# A kinematic number near 1 with a small spread says that overtaking is a matter of kinematics: a first velocity, a
# distance and a budget, all known before training. The rest is bending, and the ladder shows that the bending too is
# written in the untrained model: on the zoo every further derivative takes the error down. On real models, whose
# paths bend more, the third can make it worse ([chapter 13](13_real_blind.ipynb)).
#
# The bulk is another matter. A class that splits the architectures cleanly would still be of no use if all of them
# have the same outcome under LoRA. [The ledger](00_ledger.ipynb) judges both parts by the thresholds that were set
# beforehand.
#
# ## What could be wrong
#
# The predictors of higher order assume that the gap grows steadily; a path that crosses and falls back would be
# missed. With five architectures a split into two classes always exists; only its separation is evidence. The zoo's
# two families differ by construction in their initialisation, and the coherence remembers it. The recipe for LoRA is
# ours; another learning rate would change which architectures pass.
