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
# # Dimensionless numbers
#
# **Question.** Is there one dimensionless quantity that is the same for all architectures, and another that sorts them into classes and tells
# whether LoRA suffices?
#
# **Answer.** The critical kinematic number is our candidate for the first, the bulk coherence for the second. Each is measured below, with its threshold, and
# beside every rival that was tried. The sentences with numbers are written by the run itself.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
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

from phantomlib.book import notebook
from phantomlib.critical import lora_classes, predictors, search, step_zero
from phantomlib.critical.numbers import architecture_numbers, coefficient_of_variation, kinematic_number, variation_interval
from phantomlib.figures.critical import ladder, lora_law, numbers_by_model, predicted_rates
from phantomlib.figures.order_parameter import coherence_histories
from phantomlib.figures.palette import model_colours
from phantomlib.measure import readout_geometry
from phantomlib.zoo import shipped
from phantomlib.measure.recipe import Recipe

nb = notebook.start(
    "06_dimensionless_numbers", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed
)
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
optimizers = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## The kinematic number
#
# The **critical learning rate** $\eta_c$ is the smallest at which the correct token overtakes within $T$ steps. It differs by an order of magnitude between
# contexts, optimisers and models. The **kinematic number** compares two distances,
#
# $$N = \frac{\eta\, T\, v_0}{|\Delta_0|}, \qquad v_0 = \left.\frac{d\Delta}{d\eta}\right|_0 :$$
#
# how far the logit gap would travel in $T$ steps at its first velocity, and how far it has to go. If training went in a straight line, the correct token
# would overtake at $N = 1$. We find $\eta_c$ by a bracketing search that starts from that guess and compute $N_c = N(\eta_c)$.

# %% tags=["hide-input"]
rows, full = [], {}
for optimizer in optimizers:
    for model in loaded:
        ds = search.critical_rates(
            nb.store, model, nb.fitting_contexts(model), Recipe(optimizer=optimizer, steps=steps), tolerance=tolerance
        )
        full[optimizer, model.name] = ds
        frame = ds.to_dataframe().reset_index()
        frame["number"] = kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap).values
        rows.append(frame.assign(model=model.name, optimizer=optimizer))
numbers = pd.concat(rows, ignore_index=True)
summaries = {o: architecture_numbers(numbers[numbers.optimizer == o], seed=nb.seed) for o in optimizers}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-kinematic-number", "caption": "Critical kinematic number by architecture. Dots: contexts (ten per model, less where the first velocity points the wrong way). Bars: geometric mean over the contexts with its 95 % bootstrap interval. Full fine-tuning; critical rates to a bracket of 0.5 %; deterministic, no seeds. The grey line marks N = 1, where a straight path would overtake."}, "image": {"alt": "Critical kinematic numbers of every context and model under Adam and SGD, close to one.", "width": "100%"}}
numbers_by_model(numbers, summaries, colours, optimizers);

# %% tags=["hide-input"]
nb.made_by([ds.attrs["run_ids"].split() for ds in full.values()])

# %% tags=["hide-input"]
for optimizer, label in optimizers.items():
    summary = summaries[optimizer]
    chosen = numbers[numbers.optimizer == optimizer]
    notebook.say(f"**{label}**")
    notebook.table(
        summary.rename(columns={"mean": "N_c", "log_sd": "log sd over contexts", "low": "95 % from", "high": "to"})
    )
    spread = coefficient_of_variation(summary["mean"])
    between = variation_interval(chosen, seed=nb.seed)
    searches = [full[optimizer, m.name] for m in loaded]
    nb.record(
        "C8",
        spread,
        optimizer=optimizer,
        interval=between,
        n={"architectures": len(loaded), "contexts": int(summary.n.min() + summary.undefined.min())},
        runs=[ds.attrs["run_ids"].split() for ds in searches],
        detail={
            "N_c": dict(zip(summary.model, summary["mean"])),
            "undefined": int(summary.undefined.sum()),
            "interval": "95 % bootstrap over contexts",
        },
    )
    rates = [float(np.exp(np.log(ds.critical_rate).mean())) for ds in searches]
    notebook.say(
        f"The coefficient of variation over the {len(loaded)} architectures is {100 * spread:.1f} % (95 % bootstrap interval {100 * between[0]:.1f} to {100 * between[1]:.1f} %). The critical learning rates themselves vary by "
        f"{100 * coefficient_of_variation(rates):.0f} %. The searches took {sum(int(ds.n_runs.sum()) for ds in searches)} runs for {len(chosen)} brackets, of which {sum(int(ds.converged.sum()) for ds in searches)} closed; "
        f"{sum(int(ds.reentries.sum()) for ds in searches)} re-entries and {sum(int(ds.diverged.sum()) for ds in searches)} diverged runs were seen. In {int(summary.undefined.sum())} cells $v_0$ is not positive and $N$ is undefined."
    )

# %% [markdown]
# A bracket tells of one boundary. Could there be another, far from it? For the first context of each model we also ran a scan over three decades of learning rates.

# %% tags=["hide-input"]
scans = {}
for model in loaded:
    rate = full["adam", model.name].critical_rate.values[:1]
    scans[model.name] = search.scan(
        nb.store, model, nb.fitting_contexts(model)[:1], Recipe(steps=steps), rate, per_decade=6
    )
notebook.table(
    pd.DataFrame(
        {
            "model": name,
            "rates tried": s.sizes["multiple"],
            "that overtake": int(s.crossed.sum()),
            "re-entries": int(s.reentries.sum()),
            "diverged": int(s.diverged.sum()),
        }
        for name, s in scans.items()
    )
)

# %% tags=["hide-input"]
nb.made_by(scans)

# %% [markdown]
# ## Without any fitted constant
#
# $N_c$ is not exactly 1 because the path bends. How much it bends can be read off the untrained model. The **three-gradient** prediction follows the optimiser for $T$ steps while three numbers move:
# the logits of $c$ and of $k$, and the log-sum-exp of all others. Their gradients are kept as they are at step 0. Nothing is fitted.

# %% tags=["hide-input"]
results = {
    o: pd.concat(
        [
            predictors.results(
                nb.store, m, nb.fitting_contexts(m), Recipe(optimizer=o, steps=steps), tolerance=tolerance
            )
            for m in loaded
        ],
        ignore_index=True,
    )
    for o in optimizers
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-predicted", "caption": "Predicted against measured critical learning rate, one dot per context and model. Open: the straight line, N = 1. Filled: the three-gradient prediction. Both use step-0 quantities and no fitted constant. The grey line is equality. Full fine-tuning; measured to a bracket of 0.5 %; deterministic, no seeds."}, "image": {"alt": "Predicted against measured critical learning rates on logarithmic axes, for Adam and SGD; the filled dots lie close to the line of equality.", "width": "100%"}}
predicted_rates(results, ["velocity", "three_gradients"], colours, optimizers);

# %% tags=["hide-input"]
nb.made_by(
    [table.attrs.get("run_ids", []) for table in results.values()],
    [ds.attrs["run_ids"].split() for ds in full.values()],
)

# %% [markdown]
# The gradients themselves change along the way. Each rung of the ladder below takes one more derivative of the same three numbers: `second_order` along the first update, `third_order` along the displacement that
# `second_order` predicts. `straight_line` is the plain Taylor series of the gap along the first update. Two predictors beside the ladder leave step 0: `quadrature` evaluates gradients where the displacement is
# predicted to lead (the weights are moved by hand), and `first_steps` makes three real steps.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ladder", "caption": "Absolute error of every predictor of the critical learning rate, without any fitted constant. One dot per context and model; bars: median over all. The first five use step-0 quantities only. Dotted: half the width of the bracket, below which measurement and prediction cannot be told apart. Full fine-tuning; deterministic, no seeds."}, "image": {"alt": "Errors of seven predictors on a logarithmic axis, falling from several per cent to a tenth of a per cent, for Adam and SGD.", "width": "100%"}}
ladder(results, list(predictors.PREDICTORS), colours, optimizers, floor=50 * tolerance);

# %% tags=["hide-input"]
nb.made_by(
    [table.attrs.get("run_ids", []) for table in results.values()],
    [ds.attrs["run_ids"].split() for ds in full.values()],
)

# %% tags=["hide-input"]
errors = pd.DataFrame(
    {
        "optimiser": label,
        "prediction": name.replace("_", " "),
        "median of contexts (%)": 100 * error.abs().median(),
        "largest (%)": 100 * error.abs().max(),
        "worst architecture (%)": 100 * by_model.abs().max(),
        "no prediction": int(results[o][name].isna().sum()),
    }
    for o, label in optimizers.items()
    for name in predictors.PREDICTORS
    for error in [results[o][name] / results[o].measured - 1]
    for by_model in [np.expm1(np.log(results[o][name] / results[o].measured).groupby(results[o].model).mean())]
)
notebook.table(errors, digits=2)
notebook.say(
    "The column “worst architecture” gives the error of the geometric mean over a model's contexts, for the model where it is largest. For single contexts under SGD an error of half the bracket is the limit of what can be measured."
)

# %% [markdown]
# ## The bulk, and two classes
#
# The **bulk coherence** $B = d\,\langle g_{ij}^2\rangle$ is 1 if the readout's rows point in random directions and larger if they crowd. We split the architectures at the largest gap of $\log B$, without
# looking at anything else.

# %% tags=["hide-input"]
described = pd.DataFrame({m.name: readout_geometry.readout_statistics(m.readout, seed=nb.seed) for m in loaded}).T
classes = lora_classes.two_classes(described.coherence)
described["class"] = [classes.of(value) for value in described.coherence]
notebook.table(described.rename_axis("model").reset_index().rename(columns=lambda c: c.replace("_", " ")))
notebook.say(
    f"Low class: {', '.join(classes.low)}. High class: {', '.join(classes.high)}. The gap between them in $\\log B$ is {classes.gap:.2f}, {classes.separation:.2f} times the largest range within a class."
)

# %% tags=["hide-input"]
nb.made_by()

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-bulk-classes", "caption": "Bulk coherence of the zoo's models along their pretraining (one seed each), and the boundary between the two classes found in the final values (grey). For other models only the final value is known, drawn as a dot."}, "image": {"alt": "Bulk coherence against pretraining step, one line per model.", "width": "100%"}}
histories = {
    ref.removeprefix("zoo:"): [(h["step"], h["B"]) for h in shipped.report(ref.removeprefix("zoo:"))["bulk_coherence"]]
    for ref in nb.models
    if ref.startswith("zoo:")
}
coherence_histories(histories, described.coherence, classes.boundary, colours);

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## Does the class tell whether LoRA suffices?
#
# The declared recipe: rank 8, alpha 16, all linear layers but the readout, at ten times the critical learning rate of full fine-tuning. LoRA suffices for an architecture if in at least eight of ten
# contexts the correct token overtakes and $\Phi > 0$ at the end. Each architecture's outcome is then predicted from the others in its class.

# %% tags=["hide-input"]
sufficient, made = {}, []
for optimizer, label in optimizers.items():
    outcomes, runs = {}, []
    for model in loaded:
        recipe = Recipe(optimizer=optimizer, method="lora", steps=steps)
        outcomes[model.name] = lora_classes.lora_outcomes(
            nb.store,
            model,
            nb.fitting_contexts(model),
            full[optimizer, model.name].critical_rate,
            recipe,
            multiple=lora_multiple,
            seeds=tuple(lora_seeds),
        )
        runs.append(outcomes[model.name].attrs["run_id"])
    outcome = sufficient[optimizer] = pd.Series({name: bool(o.sufficient.mean() > 0.5) for name, o in outcomes.items()})
    predicted = lora_classes.predict_from_class(described["class"], outcome)
    accuracy = lora_classes.balanced_accuracy(outcome, predicted)
    notebook.say(f"**{label}**")
    notebook.table(
        pd.DataFrame(
            {
                "model": name,
                "class": described["class"][name],
                "successful contexts, by seed": ", ".join(str(int(v)) for v in o.success.sum("context").values),
                "LoRA suffices": "yes" if outcome[name] else "no",
                "predicted from its class": "yes" if predicted[name] else "no",
            }
            for name, o in outcomes.items()
        )
    )
    notebook.say(
        f"Balanced accuracy of the prediction: {accuracy:.2f}. "
        + (
            "All architectures have the same outcome, so no quantity can tell them apart, and the accuracy counts as that of chance."
            if outcome.nunique() < 2
            else "Both outcomes occur."
        )
    )
    nb.record(
        "C9",
        {"class_separation": classes.separation, "lora_balanced_accuracy": accuracy},
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": min(o.sizes["context"] for o in outcomes.values()),
            "seeds": len(lora_seeds),
        },
        runs=[runs, [full[optimizer, m.name].attrs["run_ids"].split() for m in loaded]],
        detail={"class": described["class"].to_dict(), "sufficient": outcome.to_dict()},
    )
    made.extend(runs)

# %% tags=["hide-input"]
nb.made_by(made)

# %% [markdown]
# **Rivals.** The same was done with every other quantity we thought of: split at the largest gap of its logarithm, and each architecture's outcome under Adam predicted from the others in its class.

# %% tags=["hide-input"]
rivals = described[["coherence", "mean_overlap", "common_share", "top_share", "kurtosis"]].rename(
    columns=lambda c: c.replace("_", " ")
)
rivals["readout share of the first velocity"] = [
    float(step_zero.velocity(m, nb.fitting_contexts(m), Recipe(steps=steps)).readout_share.median()) for m in loaded
]
rivals["width"] = [float(m.readout.shape[1]) for m in loaded]
rivals["parameters"] = [float(m.n_parameters) for m in loaded]
notebook.table(lora_classes.rival_classes(rivals, sufficient["adam"]), digits=2)

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## LoRA's own law
#
# How much larger a learning rate does LoRA need than full fine-tuning? At its start $B = 0$, so only $B$ moves, through the fixed random $A$. If the gradients of a layer have no preferred direction, its first velocity is smaller
# than that of full fine-tuning by $\sqrt{3}\,d/\alpha$ under Adam, with $d$ the width, whatever the rank. (The $\sqrt 3$ comes from how `peft` draws $A$.) Later $A$ moves too, and LoRA gains speed. The figure sets the ratio of the critical rates against the ratio of the first
# velocities, both measured.

# %% tags=["hide-input"]
rows, lora = [], {}
for model in loaded:
    fitting = nb.fitting_contexts(model)
    ds = search.critical_rates(nb.store, model, fitting, Recipe(method="lora", steps=steps), tolerance=tolerance)
    lora[model.name] = ds
    whole = full["adam", model.name]
    pairs = readout_geometry.pair_overlaps(model.readout, fitting)
    rows.append(
        pd.DataFrame(
            {
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
                "pair overlap": pairs,
            }
        )
    )
law = pd.concat(rows, ignore_index=True)
law = law[
    (law.drop(columns=["model", "context"]) > 0).all(axis=1)
]  # where the first velocity has the wrong sign there is no logarithm

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-lora-law", "caption": "Left: critical learning rate of LoRA over that of full fine-tuning, against the width over alpha; dots are contexts, squares geometric means with 95 % bootstrap intervals over contexts, the grey line is the estimate for the first step. Right: the same ratio against the ratio of the first velocities; the grey line is equality. Adam, rank 8, alpha 16, one seed of the LoRA initialisation, brackets of 0.5 %."}, "image": {"alt": "Two panels of the ratio of critical learning rates, rising with the width; most dots lie below the grey lines.", "width": "100%"}}
lora_law(law, architecture_numbers(law, column="ratio", seed=nb.seed), colours);

# %% tags=["hide-input"]
nb.made_by([ds.attrs["run_ids"].split() for ds in lora.values()])

# %% tags=["hide-input"]
means = [
    architecture_numbers(law, column=column, seed=nb.seed)[["model", "mean"]].rename(columns={"mean": label})
    for column, label in (
        ("ratio", "LoRA over full"),
        ("ratio of first velocities", "first velocity, full over LoRA"),
        ("number", "N_c of LoRA"),
    )
]
together = means[0].merge(means[1]).merge(means[2])
together.insert(
    1, "estimate", [np.sqrt(3) * m.readout.shape[1] / Recipe.alpha for m in loaded if m.name in set(law.model)]
)
notebook.table(together, digits=2)
notebook.say(
    "How much of the ratio's variation over all contexts and models do single quantities explain, as power laws? The last column predicts each architecture from a line through the others (median error of the logarithm)."
)
explanations = [
    "ratio of first velocities",
    "width over alpha",
    "parameters",
    "bulk coherence",
    "mean overlap",
    "common share",
    "initial gap",
    "pair overlap",
]
explained = lora_classes.explain(law, "ratio", explanations)
notebook.table(explained.rename(columns=lambda c: c.replace("_", " ")))
best, own = explained.iloc[0], explained.set_index("explanation").loc["bulk coherence"]
notebook.say(
    f"“{best.explanation}” explains most, {100 * best.r_squared:.0f} % of the variance (exponent {best.exponent:.2f}); the bulk coherence explains {100 * own.r_squared:.0f} % (n = {len(law)} contexts in {law.model.nunique()} models). "
    f"The critical kinematic number of LoRA is {np.exp(np.log(law.number).mean()):.2f} (geometric mean), against {np.exp(np.log(summaries['adam']['mean']).mean()):.2f} for full fine-tuning: LoRA overtakes sooner than its first velocity says."
)

# %% tags=["hide-input"]
nb.made_by([ds.attrs["run_ids"].split() for ds in lora.values()])

# %% [markdown]
# ## What it means
#
# A kinematic number near 1 with a small spread says that overtaking is a matter of kinematics: a first velocity, a distance and a budget, all known before training. The rest is bending, and the ladder shows that the bending too is
# written in the untrained model: every further derivative takes the error down.
#
# The bulk is another matter. A class that splits the architectures cleanly would still be of no use if all of them have the same outcome under LoRA. The ledger judges both parts by the thresholds that were set beforehand.
#
# ## What could be wrong
#
# The predictors of higher order assume that the gap grows steadily; a path that crosses and falls back would be missed. With five architectures a split into two classes always exists; only its separation is evidence. The zoo's two families differ by construction in their initialisation, and the coherence remembers it. The recipe for LoRA is ours; another
# learning rate would change which architectures pass.
