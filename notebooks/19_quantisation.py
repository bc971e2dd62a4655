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
#     minutes: 1
# ---

# %% [markdown]
# # 19 · What quantisation does
#
# **Question.** Checkpoints are often shared with their weights rounded to eight or four bits. What does rounding do to
# the quantities of this book?
#
# ```{glue:md} answer_19
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
kinds: list[str] = ["Q8_0", "Q4_1", "Q4_0"]  # formats of GGUF to round to: Q8_0, Q5_1, Q5_0, Q4_1 or Q4_0
steps: int = 20  # optimiser steps of each run
tolerance: float = 0.005  # relative width of the bracket around a critical learning rate

# %% tags=["hide-cell"]
import copy

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from scipy.stats import gmean

from phantombook import notebook
from phantombook.figures.palette import REFERENCE
from phantombook.figures.style import dots_and_means, legend_above, log_ticks, small_multiples
from phantomlib.critical.scaling import architecture_numbers, kinematic_number
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe, fitting_contexts
from phantomlib.errors import ModelError, ParameterError, shown
from phantomlib.models.language_model import LanguageModel
from phantomlib.readout_geometry import coherence, pair_overlaps
from phantomlib.runs.store import Store

nb = notebook.start("19_quantisation")
LABELS = {"adam": "Adam", "sgd": "SGD"}
ROUNDED = "#E69F00"  # of the set of Okabe and Ito, without another meaning; the darker, the later in the list
shades = dict(zip(kinds, sns.dark_palette(ROUNDED, n_colors=len(kinds) + 1, reverse=True)))


def panels_of(table):
    """A row of panels for each model, a column for each optimiser; the axes and their rows of the table."""
    places = list(table.groupby(["model", "optimizer"], sort=False))
    figure, panels = small_multiples(len(places), columns=table.optimizer.nunique(), height=2.7)
    for axes, (place, _) in zip(panels, places):
        axes.set_title(", ".join(place))
    legend_above(figure, shades)
    return figure, [(axes, rows) for axes, (_, rows) in zip(panels, places)]


# %% [markdown]
# ## Rounding
#
# GGUF, the format of llama.cpp, rounds 32 neighbouring weights of a row at a time. In such a block a weight becomes
# $w \approx a + s\,q$. The whole number $q$ has eight bits in `Q8_0` and four in `Q4_1` and `Q4_0`. The scale $s$
# and, in `Q4_1`, the offset $a$ belong to the block. With them a weight takes 8.5, 5 or 4.5 bits. All linear layers,
# the token embedding and the readout are rounded; norms, biases and learned positions are kept. To compute with such
# a file it is dequantised: every weight is a floating-point number again, one of the 256 or 16 that its block can
# hold.

# %%
# Bits a weight, with those of its block's scale and offset.
BITS = {"Q8_0": 8.5, "Q5_1": 6.0, "Q5_0": 5.5, "Q4_1": 5.0, "Q4_0": 4.5}
BLOCK = 32  # weights


def round_trip(rows, kind):
    """Rows (n, m) as the package gguf quantises and dequantises them."""
    how = GGMLQuantizationType[kind]
    values = np.ascontiguousarray(rows.float().cpu().numpy())
    return torch.from_numpy(dequantize(quantize(values, how), how))


@torch.no_grad()
def quantised(model, kind):
    """A copy of a model with what a GGUF file of this kind would give for its weights.

    Matrices are rounded whose rows, the inputs of an output, hold whole blocks.
    """
    if kind not in BITS:
        raise ParameterError(
            f"Quantisation {shown(kind)} is not known; choose one of {', '.join(BITS)}."
        )
    module = copy.deepcopy(model.module)
    embedding, done = module.get_input_embeddings(), set()
    for layer in module.modules():
        # transformers' Conv1D is a linear layer with the weight (in, out)
        transposed = type(layer).__name__ == "Conv1D"
        linear = transposed or isinstance(layer, torch.nn.Linear)
        if not linear and layer is not embedding:
            continue
        rows = layer.weight.T if transposed else layer.weight
        if rows.shape[1] % BLOCK == 0 and id(layer.weight) not in done:
            rows.copy_(round_trip(rows, kind))
            done.add(id(layer.weight))  # a tied readout is the embedding itself
    if not done:
        raise ModelError(
            f"'{model.name}' has no matrix whose rows are a multiple of {BLOCK} "
            "long, so "
            f"{kind} would leave it as it is; choose a wider model."
        )
    name = f"{model.name}-{kind}"
    return LanguageModel(
        name, model.ref, module, model.tokenizer, revision=model.revision
    )


# %% [markdown]
# Below, a model is compared with its own rounded copies, context by context. Each copy is treated like any other
# model. Its [initial gap](../definitions.md#context) and [overlap](../definitions.md#geometry) are read off. Its
# [critical learning rate](../definitions.md#critical-learning-rate) is predicted from step 0 (by *third order*, see
# [chapter 08](08_dimensionless_numbers.ipynb)) and then measured.


# %%
def study(model, fitting) -> pd.DataFrame:
    """One row per optimiser and context: step 0, critical rate and prediction."""
    parts = []
    for optimizer, label in LABELS.items():
        recipe = Recipe(optimizer=optimizer, steps=steps)
        found = critical_rates(here, model, fitting, recipe, tolerance=tolerance)
        predicted = predict_critical_rates(here, model, fitting, recipe).third_order
        runs.extend(found.attrs["run_ids"].split())
        rows = found.to_dataframe().reset_index()
        rows = rows.assign(predicted=predicted.values, optimizer=label)
        number = kinematic_number(rows.critical_rate, steps, rows.velocity, rows.gap)
        rows["number"] = number.where(number > 0)
        rows["overlap"] = pair_overlaps(model.readout, fitting)
        parts.append(rows)
    return pd.concat(parts, ignore_index=True)


# %%
here = Store(nb.store.root)  # not on a cluster: its workers could not load a copy
runs, parts, copies, left_out = [], [], [], []
for original in map(nb.load, nb.models):
    chosen = [context.id for context in nb.fitting_contexts(original)]
    candidates = [context for context in nb.contexts if context.id in chosen]
    for kind in ["original", *kinds]:
        model = original if kind == "original" else quantised(original, kind)
        fitting, refused = fitting_contexts(model, candidates)
        parts.append(study(model, fitting).assign(model=original.name, kind=kind))
        change = (model.readout - original.readout).norm() / original.readout.norm()
        copies.append(
            {
                "model": original.name,
                "weights": kind,
                "bits each": BITS.get(kind, float(dtype.removeprefix("float"))),
                "change of the readout (%)": 100 * float(change),
                "bulk coherence $B$": coherence(model.readout),
                "contexts": f"{len(fitting)} of {len(chosen)}",
            }
        )
        left_out += [(model.name, str(error)) for error in refused]

# %% tags=["hide-input"]
for name, reason in left_out:
    nb.say("> Left out for {model}: {reason}", model=name, reason=reason)
nb.table(pd.DataFrame(copies), digits=2)

# %% [markdown]
# ## Context by context
#
# Every quantity of a copy is divided by the same quantity of the original.

# %%
QUANTITIES = {
    "critical_rate": "critical rate",
    "gap": "initial gap",
    "overlap": "overlap $g_{ck}$",
    "velocity": "first velocity",
    "number": "kinematic number",
}
same = ["model", "optimizer", "context"]
table = pd.concat(parts, ignore_index=True)
ratios = table[table.kind != "original"].reset_index(drop=True)
originals = table[table.kind == "original"].set_index(same)
originals = originals.loc[pd.MultiIndex.from_frame(ratios[same])]
for quantity in [*QUANTITIES, "predicted"]:
    ratios[quantity] /= originals[quantity].to_numpy()
ratios = ratios[[*same, "kind", *QUANTITIES, "predicted"]]

# %% tags=["remove-cell"]
nb.caption(
    "fig-rounded-rates",
    f"""Critical learning rate of a rounded copy, divided by that of the original, for each of
        {ratios.context.nunique()} contexts (across). Filled: measured; rings: predicted from step 0; one shade per
        format, darker for formats later in the list. Up: the ratio, on a logarithmic axis. On the grey line rounding
        changes nothing. One panel per model and optimiser. Full fine-tuning, {steps} steps, brackets of
        {100 * tolerance:g} %, deterministic, no seeds.""",
    alt="For eight bits the ratios lie near one; for four bits they scatter around it. Rings lie on the dots.",
)

# %% tags=["hide-input"]
figure, panels = panels_of(ratios)
names = list(ratios.context.unique())
for axes, rows in panels:
    axes.axhline(1, color=REFERENCE, linewidth=0.8)
    for x, (kind, colour) in zip(np.linspace(-0.25, 0.25, len(kinds)), shades.items()):
        one = rows[rows.kind == kind]
        place = one.context.map(names.index) + x
        axes.plot(place, one.critical_rate, "o", markersize=4, color=colour)
        ring = {"markersize": 7, "markerfacecolor": "none", "markeredgewidth": 0.8}
        axes.plot(place, one.predicted, "o", color=colour, **ring)
    axes.set(yscale="log", xlim=(-0.6, len(names) - 0.4))
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
log_ticks(panels[0][0].yaxis)  # shared
figure.supylabel("critical rate over the original's", fontsize="medium")
nb.figure(figure, "fig-rounded-rates", runs=runs, data=ratios)

# %% [markdown]
# How large are these changes, and where do they come from? To a first approximation the critical rate is proportional
# to the initial gap divided by the first velocity. The [kinematic number](../definitions.md#kinematic-number) is what
# remains when that ratio is divided out.

# %%
changes = ratios.rename(columns=QUANTITIES)
quantities = [*QUANTITIES.values()]
changes = changes.melt([*same, "kind"], quantities, "quantity", "change")
changes["change"] = 100 * (changes.change - 1).abs()

# %% tags=["remove-cell"]
nb.caption(
    "fig-rounded-quantities",
    f"""Size of the relative change that rounding makes to each quantity (across) of a context, in % (up,
        logarithmic). Dots: {ratios.context.nunique()} contexts, one shade per format; bars: their median. Dotted: how
        well a critical rate is measured, {100 * tolerance:g} %. One panel per model and optimiser. Full fine-tuning,
        {steps} steps, deterministic, no seeds.""",
    alt="""For four bits critical rate and gap change most, overlap and kinematic number least. For eight bits little
        changes.""",
)

# %% tags=["hide-input"]
figure, panels = panels_of(changes)
for axes, rows in panels:
    axes.axhline(100 * tolerance, color=REFERENCE, linewidth=0.9, linestyle=":")
    drawn = rows.assign(change=rows.change.clip(lower=1e-3))
    dots_and_means(axes, drawn, "change", x="quantity", hue="kind", colours=shades, mean=np.median)
    axes.set(yscale="log", xlim=(-0.6, len(quantities) - 0.4))
    axes.set_xticks(range(len(quantities)), quantities, rotation=25, ha="right", rotation_mode="anchor")
log_ticks(panels[0][0].yaxis)
figure.supylabel("change, in per cent of the original", fontsize="medium")
nb.figure(figure, "fig-rounded-quantities", runs=runs, data=changes)

# %% [markdown]
# The table gives the median change in %, over all contexts and both optimisers.

# %% tags=["hide-input"]
medians = changes.groupby(["kind", "quantity"], sort=False).change.median().unstack(sort=False)
nb.table(medians.rename_axis(index="weights", columns=None).reset_index(), digits=2, runs=runs)

# %% [markdown]
# ## Do the regularities hold for a rounded model?
#
# Nothing in the regularities refers to where the weights come from. So the copies should have the kinematic number
# $N_c$ of the original (geometric mean over contexts), and their critical rates should be predicted equally well.

# %%
table["error"] = 100 * (table.predicted / table.critical_rate - 1).abs()


def summary(rows, kind: str, optimizer: str) -> dict:
    """One line of the table: all contexts of all models, under one optimiser."""
    of_models = architecture_numbers(rows, seed=nb.seed)["mean"]
    of_kind = changes[(changes.kind == kind) & (changes.optimizer == optimizer)]
    changed = of_kind[of_kind.quantity == "critical rate"].change
    return {
        "weights": kind,
        "optimiser": optimizer,
        "critical rate: median change (%)": changed.median(),
        "largest (%)": changed.max(),
        "$N_c$": gmean(of_models),
        "prediction: median error (%)": rows.error.median(),
        "largest error (%)": rows.error.max(),
    }


groups = table.groupby(["kind", "optimizer"], sort=False)
summaries = pd.DataFrame(summary(rows, *case) for case, rows in groups)

# %%
SAME = 5.0  # per cent within which two kinematic numbers count as the same
by_weights = summaries.set_index(["weights", "optimiser"])
original, rounded = by_weights.loc["original"], by_weights.drop("original", level=0)
shifts = 100 * (rounded["$N_c$"].div(original["$N_c$"], level="optimiser") - 1).abs()
columns = ["prediction: median error (%)", "largest error (%)"]
own, of_copies = original[columns].max(), rounded[columns].max()
bracket = 100 * tolerance  # how well a critical rate is measured, per cent
as_well = of_copies.iloc[0] < own.iloc[0] + bracket
stay = bool(shifts.max() < SAME and as_well)

# %% tags=["hide-input"]
nb.table(summaries, digits=2, runs=runs)
nb.say(
    ("They do" if stay else "Not all of them do")
    + ". Under the same optimiser, $N_c$ of a copy differs from that of the original by at most {shift:.1f} %. The "
    "median error of the prediction is at most {error:.2f} % over the copies and {own:.2f} % for the original. The "
    "largest error of any context is {worst:.1f} % over the copies and {own_worst:.1f} % for the original.",
    shift=shifts.max(),
    error=of_copies.iloc[0],
    own=own.iloc[0],
    worst=of_copies.iloc[1],
    own_worst=own.iloc[1],
)

# %% tags=["hide-input"]
fine, coarse = max(kinds, key=BITS.get), min(kinds, key=BITS.get)
short = {"critical rate: median change (%)": "median", "largest (%)": "most", "$N_c$": "number"}
short |= {"prediction: median error (%)": "error", "largest error (%)": "worst"}
adam = summaries[summaries.optimiser == "Adam"].set_index("weights").rename(columns=short)
largest = changes[changes.quantity == "critical rate"].set_index("kind").change
nb.answer(
    "Rounding makes another model, with its own values of these quantities. Under Adam a context's critical learning "
    "rate changes by {fine[median]:.1f} % in the median (at most {fine[most]:.0f} %) when weights are rounded to "
    "{fine.name}, and by {coarse[median]:.0f} % (at most {coarse[most]:.0f} %) when rounded to {coarse.name}. The "
    "largest change of any context, optimiser and format is {most:.0f} % ({where}). "
    + ("The regularities stay." if stay else "The regularities do not all stay.")
    + " Under Adam, for the original and these two copies, the mean kinematic number is {own[number]:.3f}, "
    "{fine[number]:.3f} and {coarse[number]:.3f}. The median error of the prediction from step 0 is {own[error]:.1f} "
    "%, {fine[error]:.1f} % and {coarse[error]:.1f} %; its largest error is {own[worst]:.1f} %, {fine[worst]:.1f} % "
    "and {coarse[worst]:.1f} %.",
    fine=adam.loc[fine],
    coarse=adam.loc[coarse],
    own=adam.loc["original"],
    most=largest.max(),
    where=largest.idxmax(),
)

# %% [markdown]
# ## What it means
#
# The [pretrained checkpoints from the package index](../your-model.md#real-checkpoints-without-the-hub) come rounded.
# SmolLM2 has four fifths of its weights in four bits (`Q4_1`). Gemma has most in eight (`Q8_0`, though its file is
# called `Q4_K_M`). Both have the readout in eight. So Gemma lies nearer to the eight-bit copies above. Both models
# are dequantised once; then they are computed with and fine-tuned in full precision like all others. Every gap,
# overlap, critical rate and prediction of such a model is exactly that of the rounded model; rounding adds no error
# to it.
#
# Rounding decides *which* model it is: the publisher's original is another one. For a small model the figures above
# show how far apart two such models are in a given sentence. If you want the number for your own weights, predict or
# measure it on these weights.

# %%
gaps = table[table.optimizer == "Adam"].pivot_table(
    index=["model", "context"], columns="kind", values="gap"
)
gaps = gaps.dropna()
size = gaps["original"].abs()
moved = gaps[kinds].sub(gaps["original"], axis=0).abs()
together = pd.Series(dtype=float)  # rank correlation of the shift with the size
if len(gaps) > 2:
    together = moved.corrwith(size, method="spearman")

# %% tags=["hide-input"]
if len(together) and together.abs().max() < 0.5:
    nb.say(
        "The gap is a difference of two logits, and rounding moves both. The shift hardly depends on the size of the "
        "gap (rank correlations from {low:.2f} to {high:.2f} over the formats, n = {n}). So a small gap can change "
        "much in proportion, here by up to {most:.0f} %.",
        low=together.min(),
        high=together.max(),
        n=len(gaps),
        most=100 * moved.div(size, axis=0).max().max(),
    )

# %% [markdown]
# Where rounding changes the sign of a gap, the right word already leads, and there is nothing to learn.
#
# ## What could be wrong
#
# The model is small. In a large model errors can average out over more weights, so rounding may have less effect.
# Files of llama.cpp often keep the readout at six or eight bits, which changes less than what is done here, and newer
# formats (`Q4_K_M`) choose their scales with more care. Only weights are rounded here. Training in low precision,
# with rounded activations and gradients, is another matter, and so is fine-tuning adapters on weights that stay
# rounded.
