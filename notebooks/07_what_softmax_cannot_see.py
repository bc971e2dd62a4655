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
# # 07 · What softmax cannot see
#
# **Question.** Which of this book's quantities belong to the model, and which to the way its readout happens to be
# written down?
#
# ```{glue:md} answer_07
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64; the exact experiment is in float64 always
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed, and the seed of the random direction
steps: int = 20  # optimiser steps of each run
multiples: list[float] = [0.3, 0.7, 1.5, 3.0, 10.0, 30.0]  # learning rates in units of the critical one
counted: list[float] = [10.0, 30.0]  # multiples whose jumps are counted
lora_multiple: float = 100.0  # learning rate of LoRA in units of the critical one of full fine-tuning
lora_seeds: list[int] = [0, 1]  # seeds of the LoRA initialisation
failing: list[float] = [0.1, 0.3, 0.7, 0.9, 1.5]  # multiples of predicted critical rates, as in chapter 02
exact_contexts: int = 4  # contexts of the exact experiment under full fine-tuning
exact_multiples: list[float] = [0.9, 10.0]  # its learning rates, in units of the critical one
exact_lora: float = 10.0  # that of LoRA, in units of the critical one of full fine-tuning

# %% tags=["hide-cell"]
import copy

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
import xarray as xr
from matplotlib.ticker import MaxNLocator

from phantombook import notebook
from phantombook.figures.charts import jump_panels
from phantombook.figures.palette import COMPETITOR, CORRECT, PHI, REFERENCE, model_colours
from phantombook.figures.stacked import letter_panels
from phantombook.figures.style import WIDTH, dots_and_means, log_ticks
from phantomlib.critical.predictors import contexts_with_rates
from phantomlib.critical.scaling import two_classes
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel, next_token_logits
from phantomlib.order_parameter import largest_residual
from phantomlib.readout_geometry import coherence
from phantomlib.runs.study import Study
from phantomlib.transition import jumps, silent_failure

nb = notebook.start("07_what_softmax_cannot_see")
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
titles = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## The shift
#
# The logit of token $i$ is $z_i = E_i \cdot h$, where $E_i$ is its row of the readout and $h$ the last hidden state.
# Add one vector $a$ to all rows. Every logit moves by the same number $a \cdot h$, and a softmax does not see a
# number that all logits share. So no prediction changes.
#
# Training does not change either. The gradient of the loss with respect to $h$ is $\sum_i (p_i - y_i) E_i$, with $y$
# the target, and the shift adds $a \sum_i (p_i - y_i) = 0$ to it. The gradient with respect to row $i$ is
# $(p_i - y_i)\, h$, and no $E$ occurs in it. Now let the readout be a matrix of its own, not tied to the input
# embedding. Then every gradient stays the same, and so does every step of SGD and of Adam, under full fine-tuning and
# under LoRA. Weight decay of $E$ would be the exception. It is known that such a shift leaves a *given* model as it
# is {cite:p}`nielsen2026cosine,steck2024cosine`; here it leaves the whole training as it is.
#
# The shift does change every overlap $g_{ij}$: overlaps are cosines, and a cosine depends on where the origin is. So
# the [order parameter](../definitions.md#order-parameter-signal-and-drag) $\Phi$, its drag, and the [bulk
# coherence](../definitions.md#bulk-coherence) $B$ change too. In the language of physics the shift is a change of
# *gauge*: it changes the description and nothing that can be observed.
#
# We use four gauges. In the first the readout is *as it is*. In the second it is *centred*, so that $\sum_i E_i = 0$.
# In the third, *expected*, $\sum_i p_i E_i = 0$, with $p$ the mean prediction over the contexts at step 0. In the
# fourth it is *shifted* along a random direction by the mean length of the rows. Tied models first get a readout of
# their own, a copy of the input embedding.


# %%
def own_readout(model, gauge="as it is", a=0.0):
    """A copy whose readout is its own, with the vector a added to all rows."""
    module = copy.deepcopy(model.module)
    module.config.tie_word_embeddings = False
    moved = torch.nn.Parameter(model.readout.detach() + a, requires_grad=False)
    module.get_output_embeddings().weight = moved
    name = f"{model.name}-{gauge.replace(' ', '-')}"
    return LanguageModel(name, model.ref, module, model.tokenizer)


def shifts(model, contexts):
    """The vectors that lead from the readout as it is to each gauge."""
    E = model.readout.detach()  # (V, d)
    p = next_token_logits(model, contexts).softmax(-1).mean(0)  # (V,)
    generator = torch.Generator().manual_seed(seed)
    away = torch.randn(E.shape[1], generator=generator, dtype=torch.float64).to(E)
    return {
        "as it is": 0 * away,
        "centred": -E.mean(0),
        "expected": -p @ E,
        "shifted": away * E.norm(dim=-1).mean() / away.norm(),
    }


exact = {m.name: nb.load(ref, dtype="float64") for m, ref in zip(loaded, nb.models)}
vectors = {name: shifts(m, nb.fitting_contexts(m)) for name, m in exact.items()}
gauges = list(next(iter(vectors.values())))

# %% [markdown]
# ## The exact experiment
#
# Each [context](../definitions.md#context) is fine-tuned in every gauge, in double precision. Learning rates are
# multiples of the [critical rate](../definitions.md#critical-learning-rate) of full fine-tuning: one just below it
# and one far above it, for LoRA one far above it. Two quantities are recorded for this chapter. One is the entropy of
# the prediction, which depends on all its probabilities. The other is the length of $\sum_i E_i$.


# %%
recipes = {o: Recipe(optimizer=o, steps=steps) for o in titles}


def entropy(p, E, c, k):
    """Entropy of the prediction, nats."""
    return -(p * p.clamp_min(1e-300).log()).sum(-1)


def row_sum(p, E, c, k):
    """Length of the sum of all rows of the readout."""
    return E.sum(-2).norm(dim=-1)


def search(model, optimizer):
    contexts = nb.fitting_contexts(model)
    return critical_rates(nb.store, model, contexts, recipes[optimizer])


critical = Study.of(search, loaded)


def fine_tune_in_gauges(model, optimizer, method, at, only=None):
    """One dataset of the same runs in all gauges, with the dimension gauge."""
    found = critical[optimizer, model.name]
    fitting, rates = jumps.with_critical_rate(nb.fitting_contexts(model), found)
    rates = rates[:only, None] * at
    recipe = Recipe(
        optimizer=optimizer, method=method, steps=steps, snapshots=(0, steps)
    )
    extra = {"entropy": entropy, "row_sum": row_sum}
    runs = [
        nb.store.run(
            own_readout(exact[model.name], *gauge),
            fitting[:only],
            rates,
            recipe,
            extra=extra,
        )
        for gauge in vectors[model.name].items()
    ]
    joined = xr.concat(runs, pd.Index(gauges, name="gauge"), combine_attrs="drop")
    return joined.assign_attrs(run_ids=[run.attrs["run_id"] for run in runs])


full = Study.of(
    lambda model, o: fine_tune_in_gauges(
        model, o, "full", exact_multiples, exact_contexts
    ),
    loaded,
)
lora = Study.of(
    lambda model, o: fine_tune_in_gauges(model, o, "lora", [exact_lora]),
    loaded,
    ["adam"],
)
lora_sgd = Study.of(
    lambda model, o: fine_tune_in_gauges(
        model, o, "lora", [exact_lora], exact_contexts
    ),
    loaded,
    ["sgd"],
)
lora = Study(lora | lora_sgd)


def largest_difference(runs):
    """Of any prediction from that in the gauge as it is, over everything; nats."""
    log_p = -runs.cross_entropy  # of the correct token
    seen = xr.Dataset(
        {
            "$\\log p_c$": log_p,
            "$\\log p_k$": log_p - runs.logit_gap,
            "gap $\\Delta$": runs.logit_gap,
            "entropy": runs.entropy,
        }
    )
    found = abs(seen - seen.sel(gauge="as it is")).max()
    return {name: float(value) for name, value in found.items()}


exact_runs = {"full fine-tuning": full, "LoRA": lora}
compared = pd.concat(
    study.table(largest_difference).assign(method=method)
    for method, study in exact_runs.items()
)
observed = [name for name in compared if name not in ("optimizer", "model", "method")]
worst = compared.groupby(["optimizer", "method"], sort=False)[observed].max()

# %% tags=["hide-input"]
nb.table(
    worst.map("{:.0e}".format).rename(titles).rename_axis(["optimiser", "method"]).reset_index(),
    runs=[full, lora],
)
coherences = pd.DataFrame(
    {g: {name: coherence(m.readout + vectors[name][g]) for name, m in exact.items()} for g in gauges}
)
nb.say(
    "The table gives the largest difference of any prediction from that in the gauge as it is, in nats, over {models} "
    "models, {gauges} gauges, all steps and all contexts. The differences are rounding, while $B$ runs from "
    "{least:.1f} to {most:.1f}.",
    models=len(exact),
    gauges=len(gauges),
    least=coherences.min(axis=None),
    most=coherences.max(axis=None),
)
for optimizer in titles:
    nb.record(
        "O5",
        worst.loc[optimizer].max(axis=None),
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": min(full.fewest_contexts(optimizer), lora.fewest_contexts(optimizer)),
            "gauges": len(gauges),
        },
        runs=[full.sel(optimizer), lora.sel(optimizer), critical.sel(optimizer)],
        detail={"by method": worst.loc[optimizer].max(axis=1).to_dict()},
    )

# %% [markdown]
# ## One run in four gauges
#
# We show one run in all four gauges. Its probabilities are the same in each, so each word has one curve. Its order
# parameter has a different curve in every gauge. There is even a gauge in which it vanishes: with
# $a = -\tfrac12 (E_c + E_k)$ the rows of the two words are opposite and their projectors equal. Then $\Phi$ is zero
# for *every* prediction, whatever the model has learnt.

# %%
subject = next((m for m in loaded if not m.tied), loaded[0])
plain = exact[subject.name]
first = nb.fitting_contexts(subject)[0]
middle = -plain.readout[[first.correct_id, first.competitor_id]].mean(0)
blank = own_readout(plain, "blank", middle)
rate = critical["adam", subject.name].critical_rate.values[:1] * exact_multiples[-1]
blank_runs = {
    method: nb.store.run(blank, [first], rate, Recipe(method=method, steps=steps))
    for method in ("full", "lora")
}
one = full["adam", subject.name].sel(context=first.id).isel(rate=-1, seed=0)

# %% tags=["remove-cell"]
nb.caption(
    "fig-one-run-in-gauges",
    f"""One run of {subject.name} in four gauges: the same sentence and learning rate, full fine-tuning with Adam,
        double precision, deterministic. (a) Probabilities of the correct word (blue) and the competitor (orange); the
        curves of all gauges lie on each other. (b) The order parameter, one colour per gauge. Dashed: a fifth gauge,
        in which it vanishes at step 0 for every prediction.""",
    alt="Each word has one curve. The order parameter takes four different curves, and a fifth near zero.",
)


# %% tags=["hide-input"]
def run_in_gauges(run, blank):
    """(a) Probabilities in all gauges. (b) Φ in each, and in the one without an order parameter."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.0), layout="constrained")
    for name, word, colour in (("p_correct", run.correct, CORRECT), ("p_competitor", run.competitor, COMPETITOR)):
        for gauge in gauges:
            label = f"“{word.item()}”" if gauge == gauges[0] else None
            left.plot(run.step, run[name].sel(gauge=gauge), color=colour, label=label)
    right.axhline(0, color=REFERENCE, linewidth=0.8)
    for gauge, colour in zip(gauges, (PHI, "#009E73", "#CC79A7", "#E69F00")):
        right.plot(run.step, run.phi.sel(gauge=gauge), color=colour, label=gauge)
    right.plot(run.step, blank, "--", color=REFERENCE, label=r"$a = -(E_c + E_k)/2$")
    left.set(xlabel="step", ylabel="probability", title="What the model says", ylim=(0, None))
    right.set(xlabel="step", ylabel=r"order parameter $\Phi$", title="What its order parameter says")
    left.legend(fontsize="small")
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower right", ncols=3, fontsize="small")
    for axes in (left, right):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


nb.figure(
    run_in_gauges(one, blank_runs["full"].phi.isel(context=0, rate=0, seed=0)),
    "fig-one-run-in-gauges",
    runs=[full["adam", subject.name], blank_runs],
)
zero = {method: float(abs(run.phi).max()) for method, run in blank_runs.items()}
ends = one.phi.isel(step=-1).to_series()
nb.say(
    "The run is “{correct}” against “{competitor}” in {model}, at {multiple:g} times the critical rate. The order "
    "parameter ends between {low:.2f} and {high:.2f}, depending on the gauge. In the fifth gauge it stays below "
    "{lora:.0e} under LoRA, where no row moves, and below {full:.1g} under full fine-tuning, where rows move.",
    correct=one.correct.item(),
    competitor=one.competitor.item(),
    model=subject.name,
    multiple=exact_multiples[-1],
    low=ends.min(),
    high=ends.max(),
    full=zero["full"],
    lora=max(zero["lora"], 1e-16),
)

# %% [markdown]
# ## What SGD conserves
#
# The gradients of the rows, $(p_i - y_i)\, h$, add to zero. So SGD without decay never moves $\sum_i E_i$ of a
# readout of its own. The direction that all rows share makes $B$ large. It was left there by initialisation and by
# the optimiser of pretraining, and fine-tuning by SGD cannot touch it. Adam scales each coordinate by itself, so its
# updates need not add to zero.


# %%
def change_of_sum(runs):
    """Largest change of the length of the sum of all rows, relative to the start."""
    start = runs.row_sum.isel(step=0)
    drift = abs(runs.row_sum - start)
    return {
        "as it is": float((drift / start).sel(gauge="as it is").max()),
        "centred": float(drift.sel(gauge="centred").max()),
    }


sums = (
    full.table(change_of_sum)
    .groupby("optimizer", sort=False)[["as it is", "centred"]]
    .max()
)

# %% tags=["hide-input"]
nb.say(
    "Under SGD the length of $\\sum_i E_i$ changes by at most {sgd[as it is]:.0e} of itself. In the centred gauge the "
    "sum is zero, and its length stays below {sgd[centred]:.0e}, so no component moves. Under Adam the length changes "
    "by up to {adam[as it is]:.0%}.",
    sgd=sums.loc["sgd"],
    adam=sums.loc["adam"],
)


# %% [markdown]
# ## Which verdicts are about the model
#
# The table shows the quantities behind the claims, from the same runs, gauge by gauge. A quantity that changes is
# about the choice of a gauge. A quantity that the theorem keeps is about the model: gaps, probabilities and $M$. A
# count of jumps or failures of $\Phi$ may happen to stay the same; that does not make it a statement about the model.


# %%
def silent_by(runs, fall):
    """How many silent failures have a drag that falls by more than a bound."""
    return int((silent_failure.silent(runs) & fall).sum())


def falls(drag):
    return drag.isel(step=0) - drag.isel(step=-1)


def mean_end(values):
    return float(values.isel(step=-1).mean())


def as_phi(runs):
    """The same runs with M where Φ was; its bound is 1."""
    return runs.assign(phi=runs.m, overlap=xr.zeros_like(runs.overlap))


def in_gauge(gauge, optimizer="adam"):
    """The claims' quantities in one gauge, over all models."""
    runs = [ds.sel(gauge=gauge) for ds in full.sel(optimizer).values()]
    adapted = [ds.sel(gauge=gauge) for ds in lora.sel(optimizer).values()]
    found = pd.concat([jumps.find_jumps(ds) for ds in runs])
    worse = silent_failure.DRAG_FALLS
    ahead = [silent_failure.overtakes(ds).isel(rate=0) for ds in adapted]
    high = [ds.phi.isel(step=-1, rate=0) > 0 for ds in adapted]
    return {
        "C1: silent failures": sum(int(silent_failure.silent(ds).sum()) for ds in runs),
        "C2: largest residual": f"{max(map(largest_residual, runs)):.0e}",
        "C3: structural failures": sum(
            silent_by(d, falls(d.drag) > worse) for d in runs
        ),
        "C4: jumps under full fine-tuning": len(found),
        "C7: median readout share": f"{found.readout_share.median():.3f}",
        "C8, C10, C11: overtaking runs": sum(
            int(silent_failure.overtakes(ds).sum()) for ds in runs
        ),
        "C9: LoRA overtakes": sum(int(won.sum()) for won in ahead),
        "C9: and ends with Φ > 0": sum(int((a & h).sum()) for a, h in zip(ahead, high)),
        "final Φ, mean": f"{np.mean([mean_end(ds.phi) for ds in runs]):.3f}",
        "final M, mean": f"{np.mean([mean_end(ds.m) for ds in runs]):.3f}",
        "jumps of M": sum(len(jumps.find_jumps(as_phi(ds))) for ds in runs),
    }


by_gauge = pd.DataFrame({gauge: in_gauge(gauge) for gauge in gauges})
depends = by_gauge.nunique(axis=1) > 1
verdict = depends.map({True: "yes", False: "no"})
verdict["C2: largest residual"] = "rounding"

# %% tags=["hide-input"]
shown = by_gauge.assign(**{"changes with the gauge": verdict}).rename_axis("quantity under Adam").reset_index()
nb.table(shown, runs=[full.sel("adam"), lora.sel("adam")])
nb.table(
    coherences.map("{:.1f}".format).rename_axis("bulk coherence $B$ of").reset_index(),
)

# %% [markdown]
# Claims without a row of their own follow from these. The [kinematic number](../definitions.md#kinematic-number) (C8)
# is made of gaps. So it is about the model, and everything predicted from it is too (C10, C11). Two of the five tests
# against a broken symmetry (C5) are about the model: critical slowing down asks when the gap crosses zero, and the
# effective potential along the update asks for the loss. The other tests measure sizes in one gauge: geometry, final
# $\Phi$, loop areas and refined jumps. Jumps under LoRA (C6) depend on the gauge like those under full fine-tuning.
# The exact split of $\Phi$ (C2) is an identity in every gauge.
#
# ## An order parameter without a gauge
#
# A quantity that no shift changes is made of differences of rows. Let $\bar e = \sum_i p_i E_i$ be the expected
# readout. We look at it along the axis from $k$ to $c$:
#
# $$M = \frac{2\,(E_c - E_k) \cdot \left(\bar e - \tfrac12 (E_c + E_k)\right)}{|E_c - E_k|^2}
#   = (p_c - p_k) + \sum_{i \ne c,k} p_i\, m_i .$$
#
# A prediction certain of $c$ has $M = 1$, one certain of $k$ has $M = -1$. $M$ is linear in $p$. Its signal is
# $p_c - p_k$. The sum is its drag, the part that all other words add along the axis
# ([definition](../definitions.md#what-a-shift-does-not-change)). $M$ is ours, not the paper's. Every run of this book
# records it.
#
# $M$ can sort a [silent failure](../definitions.md#silent-failure), with a threshold on the scale of the run itself.
# The failure is *structural* if the drag of $M$ falls by more than a tenth of $|M_0|$, else *kinematic*. The runs are
# those of [chapter 02](02_silent_failure.ipynb).


# %%
def fail(model, optimizer):
    contexts = nb.fitting_contexts(model)
    fitting, rates = contexts_with_rates(nb.store, model, contexts, recipes[optimizer])
    return nb.store.run(model, fitting, rates[:, None] * failing, recipes[optimizer])


failures = Study.of(fail, loaded)
near = [
    index for index, multiple in enumerate(failing) if 0.2 < multiple < 1
]  # of them


def kinds(runs):
    """Every silent failure: how far both drags fall, and where they end."""
    runs = runs.isel(rate=near)
    start = runs.isel(step=0)
    columns = {
        "silent": silent_failure.silent(runs),
        "fall": falls(runs.m_drag) / abs(start.m),  # of M's drag, in units of |M_0|
        "fall of Φ's drag": falls(runs.drag),
        "end": runs.m_drag.isel(step=-1),
        "signal falls": falls(runs.signal) > 0,
    }
    columns = {
        name: values.drop_vars("step", errors="ignore")
        for name, values in columns.items()
    }
    table = xr.Dataset(columns).to_dataframe().reset_index()
    return table[table.silent]


sorted_by_m = failures.table(kinds)
counts = sorted_by_m.groupby(["optimizer", "model"], sort=False).apply(
    lambda rows: pd.Series(
        {
            "silent": len(rows),
            "structural by M": int((rows.fall > 0.1).sum()),
            "kinematic by M": int((rows.fall <= 0.1).sum()),
            "falls by a fifth": int((rows.fall > 0.2).sum()),
            "drag of M ends below 0": int((rows.end < 0).sum()),
            "both": int(((rows.fall > 0.1) & (rows.end < 0)).sum()),
            "structural by Φ": int(
                (rows["fall of Φ's drag"] > silent_failure.DRAG_FALLS).sum()
            ),
        }
    ),
    include_groups=False,
)

# %% tags=["remove-cell"]
nb.caption(
    "fig-kinds-by-m",
    """Fall of the drag of M, in units of the size of M before training. One dot for every silent failure at 0.3, 0.7
        and 0.9 times the predicted critical rate, one colour per model, one panel per optimiser. Black bars: the median
        of a model. Above the grey line (a tenth, fixed beforehand) a failure is structural by M, below it kinematic.
        Full fine-tuning, deterministic.""",
    alt="Every model has dots on both sides of the line, under both optimisers.",
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.0), sharey=True, layout="constrained")
for axes, (optimizer, title) in zip(panels, titles.items()):
    axes.axhline(0.1, color=REFERENCE, linewidth=1)
    rows = sorted_by_m[sorted_by_m.optimizer == optimizer]
    dots_and_means(axes, rows, "fall", x="model", hue="model", colours=colours, mean=np.median)
    axes.set_title(title)
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_yticks([-1, -0.1, 0, 0.1, 1, 10], ["−1", "−0.1", "0", "0.1", "1", "10"])
    axes.tick_params(axis="x", rotation=25)
panels[0].set_ylabel("fall of the drag of $M$, over $|M_0|$")
nb.figure(figure, "fig-kinds-by-m", runs=failures, data=sorted_by_m)
nb.table(counts.rename(titles).rename_axis(["optimiser", "model"]).reset_index(), runs=failures)
for optimizer in titles:
    least = counts.loc[optimizer].min()
    nb.record(
        "O6",
        {
            "fewest_structural": least["structural by M"],
            "fewest_kinematic": least["kinematic by M"],
            "fewest_structural_at_twice": least["falls by a fifth"],
        },
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": failures.fewest_contexts(optimizer)},
        runs=failures.sel(optimizer),
        detail=counts.loc[optimizer].to_dict("index"),
    )
nb.say(
    "By the threshold on $\\Phi$, {adam} of these failures are structural under Adam and {sgd} under SGD, in the "
    "gauge as it is. By $M$, {m_adam} and {m_sgd} are structural, in every gauge. In {both} of these {structural} the "
    "drag of $M$ ends below zero, so it holds the word back. In the others it falls and still helps.",
    adam=counts.loc["adam", "structural by Φ"].sum(),
    sgd=counts.loc["sgd", "structural by Φ"].sum(),
    m_adam=counts.loc["adam", "structural by M"].sum(),
    m_sgd=counts.loc["sgd", "structural by M"].sum(),
    both=counts["both"].sum(),
    structural=counts["structural by M"].sum(),
)

# %% [markdown]
# Does $M$ jump? We apply the rule of [chapter 05](05_catapult_jumps.ipynb) to the same runs, with 1 in place of the
# bound on $\Phi$.


# %%
def fine_tune(model, optimizer):
    found = critical[optimizer, model.name]
    fitting, rates = jumps.with_critical_rate(nb.fitting_contexts(model), found)
    return nb.store.run(model, fitting, rates[:, None] * multiples, recipes[optimizer])


runs = Study.of(fine_tune, loaded)
phi_jumps = runs.map(jumps.find_jumps)
m_jumps = runs.map(lambda ds: jumps.find_jumps(as_phi(ds)))
at = [multiples.index(multiple) for multiple in counted]


def jumping(optimizer, model):
    """Contexts that jump, by Φ and by M; steps of M at the largest rate."""
    steepest = abs(runs[optimizer, model].m.isel(rate=at[-1], seed=0).diff("step")).max(
        "step"
    )
    return {
        "jumps of Φ": phi_jumps[optimizer, model]
        .query("rate in @at")
        .context.nunique(),
        "jumps of M": m_jumps[optimizer, model].query("rate in @at").context.nunique(),
        "step of M of 0.4 or more": int((steepest >= 0.4).sum()),
        "largest step of M, median": float(steepest.median()),
    }


of_m = pd.DataFrame({key: jumping(*key) for key in runs}).T.rename_axis(
    ["optimizer", "model"]
)

# %% tags=["remove-cell"]
nb.caption(
    "fig-jumps-of-m",
    f"""The order parameter M for every context under Adam at {multiples[-1]:g} times the critical rate, one panel per
        model. Rings mark jumps of M. The axis is one of log(1 + step). Full fine-tuning; one curve per context, one
        deterministic run per curve.""",
    alt="In every panel M leaps from below zero to about one within a few steps in most contexts.",
)

# %% tags=["hide-input"]
adam = runs.sel("adam")
figure = jump_panels(
    {name: as_phi(ds) for name, ds in adam.items()}, m_jumps.sel("adam"), colours, rate=len(multiples) - 1
)
figure.supylabel("order parameter $M$", fontsize="medium")
nb.figure(figure, "fig-jumps-of-m", runs=adam)
named = of_m.rename(titles, level=0).rename_axis(["optimiser", "model"]).reset_index()
nb.table(named.astype({name: int for name in of_m if "median" not in name}), digits=2, runs=runs)
for optimizer in titles:
    least = of_m.loc[optimizer].min()
    nb.record(
        "O7",
        {"fewest_large_steps": least["step of M of 0.4 or more"], "fewest_jumping_contexts": least["jumps of M"]},
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": runs.fewest_contexts(optimizer)},
        runs=[runs.sel(optimizer), critical.sel(optimizer)],
        detail=of_m.loc[optimizer].to_dict("index"),
    )

# %% [markdown]
# ## The class by bulk coherence, and LoRA
#
# [Chapter 09](09_lora_law.ipynb) sorts the architectures by $B$ and asks whether the class says if LoRA suffices. A
# shift limits what the answer can mean: it moves a model to the other class, and LoRA's runs stay what they were.

# %%
classes = two_classes(coherences["as it is"])
of_gauge = coherences > classes.boundary  # the class in each gauge
changing = int((of_gauge.nunique(axis=1) > 1).sum())
outcome = {
    name: silent_failure.overtakes(ds).isel(rate=0, seed=0)
    for name, ds in lora.sel("adam").items()
}
changed = sum(
    int((won != won.isel(gauge=0)).any("gauge").sum()) for won in outcome.values()
)

# %% tags=["remove-cell"]
nb.caption(
    "fig-classes-in-gauges",
    f"""Bulk coherence of each model in the four gauges (one colour and mark per gauge), and the boundary between the
        two classes of the models as they are (grey line). Numbers at the right: in how many contexts the correct token
        overtakes under LoRA, in each of the four gauges, at {exact_lora:g} times the critical rate of full fine-tuning
        with Adam. The tied models have a readout of their own here. Deterministic, but for the initialisation of LoRA
        (one seed).""",
    alt="""The marks of a model lie on both sides of the boundary; its number of LoRA successes is the same in all
        gauges.""",
)

# %% tags=["hide-input"]
figure, axes = plt.subplots(figsize=(WIDTH, 0.42 * len(coherences) + 1.5), layout="constrained")
axes.axvline(classes.boundary, color=REFERENCE, linewidth=1)
for gauge, colour, marker in zip(gauges, (PHI, "#009E73", "#CC79A7", "#E69F00"), "os^D"):
    axes.plot(coherences[gauge], coherences.index, marker, color=colour, label=gauge, markersize=6)
axes.set(xscale="log", xlabel="bulk coherence $B$", ylim=(len(coherences) - 0.5, -0.5))
log_ticks(axes.xaxis)
for row, won in enumerate(outcome.values()):
    successes = "/".join(str(int(n)) for n in won.sum("context"))
    axes.annotate(successes, (1.02, row), xycoords=axes.get_yaxis_transform(), va="center", fontsize="small")
axes.annotate("LoRA", (1.02, 1.0), xycoords="axes fraction", va="bottom", fontsize="small")
figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
nb.figure(figure, "fig-classes-in-gauges", runs=lora.sel("adam"), data=coherences.rename_axis("model").reset_index())
nb.record(
    "O8",
    {"changing_classes": changing, "changed_outcomes": changed},
    optimizer="adam",
    n={"architectures": len(loaded), "contexts": lora.fewest_contexts("adam"), "gauges": len(gauges)},
    runs=[lora.sel("adam"), critical.sel("adam")],
    detail={"B": coherences.to_dict("index"), "boundary": classes.boundary},
)
nb.say(
    "{changing} of {models} models change their class in one of the gauges. The outcome of LoRA changes in {changed} "
    "contexts. So $B$ cannot be a *cause* of whether LoRA suffices: the same run can have any $B$. It may still show "
    "how a model was made, and that may matter.",
    changing=changing,
    models=len(coherences),
    changed=changed,
)

# %% [markdown]
# ## Where the jumps come from
#
# Is a [jump](../definitions.md#jumps) of $\Phi$ a jump of the model, or of the curve through which we look? We plot
# the runs of one sentence at many learning rates, full and LoRA, against the [logit gap](../definitions.md#context).
# If they lie on one smooth curve, a jump is a large step along it. Each run is compared with the curve of the others.


# %%
def curve(gap, value, at, width=0.3):
    """Local straight lines through the points (gap, value), read at other gaps."""
    at = np.clip(at, gap.min(), gap.max())
    away = gap - at[:, None]  # (n, points)
    near = -(away**2) / (2 * width**2)
    weight = np.exp(near - near.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    centre, mean = (weight * away).sum(1), (weight * value).sum(1)
    spread = (weight * away**2).sum(1) - centre**2
    slope = ((weight * away * value).sum(1) - centre * mean) / (
        spread + (0.1 * width) ** 2
    )
    return mean - slope * centre


def fine_tune_lora(model, optimizer):
    """The runs of chapter 06."""
    found = critical[optimizer, model.name]
    fitting, rates = jumps.with_critical_rate(nb.fitting_contexts(model), found)
    recipe = Recipe(optimizer=optimizer, method="lora", steps=steps)
    far = lora_multiple * rates[:, None]
    return nb.store.run(model, fitting, far, recipe, seeds=tuple(lora_seeds))


lora_far = Study.of(fine_tune_lora, loaded)


def of_sentence(optimizer, model):
    """Gap, Φ and M of all runs: (context, run, step), full before LoRA."""
    parts = [study[optimizer, model] for study in (runs, lora_far)]
    stacked = [
        part[["logit_gap", "phi", "m"]].stack(run=("rate", "seed"), create_index=False)
        for part in parts
    ]
    return xr.concat(stacked, "run", combine_attrs="drop").transpose(
        "context", "run", "step"
    )


def through_the_others(points, run, at, name="phi"):
    """The curve through all runs of a sentence but one, read at gaps ``at``."""
    others = points.isel(run=[r for r in range(points.sizes["run"]) if r != run])
    gap, value = others.logit_gap.values.ravel(), others[name].values.ravel()
    there = np.isfinite(gap)
    return curve(gap[there], value[there], at)


compared_runs = [multiples.index(x) for x in (3.0, 30.0) if x in multiples] + [
    len(multiples)
]


def deviations(optimizer, model):
    """Largest deviation of three runs of each sentence from the curve of its others."""
    for context, points in of_sentence(optimizer, model).groupby(
        "context", squeeze=False
    ):
        points = points.isel(context=0)
        row = {"optimizer": optimizer, "model": model, "context": context}
        for name in ("phi", "m"):
            off = [
                abs(
                    points[name][r]
                    - through_the_others(points, r, points.logit_gap[r].values, name)
                ).max()
                for r in compared_runs
            ]
            row[name] = float(max(off) / np.ptp(points[name].values))
        yield row


off_curve = pd.DataFrame(row for key in runs for row in deviations(*key))
typical = off_curve.groupby("optimizer", sort=False)[["phi", "m"]].median()

# %% [markdown]
# For comparison we make two **nulls**. In the first the gap goes from its first to its last value at constant
# velocity, and $\Phi$ is read off the curve of the sentence's other runs. Whatever jumps then is made by the curve
# alone. The second null keeps the first velocity of the run instead: the gap is $\Delta_0 + \eta v_0 t$.


# %%
def replayed(optimizer, model, gap):
    """The runs with another gap, and Φ read at it off the curve of the other runs."""
    ds, points = runs[optimizer, model], of_sentence(optimizer, model)
    phi = ds.phi.copy(deep=True)
    for c in range(ds.sizes["context"]):
        for r in range(ds.sizes["rate"]):
            there = gap[c, r].values.ravel()
            phi[c, r, 0] = through_the_others(points.isel(context=c), r, there)
    return ds.assign(phi=phi, logit_gap=gap.transpose(*ds.logit_gap.dims))


def constant_velocity(optimizer, model):
    gap = runs[optimizer, model].logit_gap
    first, last = gap.isel(step=0), gap.isel(step=-1)
    return replayed(optimizer, model, first + (last - first) * gap.step / steps)


def first_velocity(optimizer, model):
    ds = runs[optimizer, model]
    velocity = critical[optimizer, model].velocity.sel(context=ds.context)
    gap = ds.logit_gap.isel(step=0) + ds.learning_rate * velocity * ds.step
    return replayed(optimizer, model, gap.transpose(*ds.logit_gap.dims))


def made(jumps_of_null, optimizer, model):
    """Of every run the smaller of the two numbers of jumps, summed."""
    each = [
        table.query("rate in @at").groupby(["context", "rate"]).size()
        for table in (phi_jumps[optimizer, model], jumps_of_null)
    ]
    return int(pd.concat(each, axis=1).fillna(0).min(axis=1).sum())


nulls = {"constant velocity": constant_velocity, "first velocity": first_velocity}
null_runs = {name: {key: null(*key) for key in runs} for name, null in nulls.items()}
null_jumps = {
    name: {key: jumps.find_jumps(ds) for key, ds in found.items()}
    for name, found in null_runs.items()
}


def gap_jumps(ds):
    """Where the gap itself makes a step more than ten times the run's median one."""
    size = abs(ds.logit_gap.diff("step"))
    return size > 10 * size.median("step")


def split(optimizer, model):
    """A row for every jump: how far the gap moved, and by how much more than usual."""
    ds, table = runs[optimizer, model], phi_jumps[optimizer, model].query("rate in @at")
    usual = abs(ds[["phi", "logit_gap"]].diff("step")).median("step")
    place = {
        name: xr.DataArray(table[name].values, dims="jump")
        for name in ("context", "rate")
    }
    here = usual.isel(seed=0).sel(context=place["context"]).isel(rate=place["rate"])
    by_rule = (
        gap_jumps(ds)
        .isel(seed=0)
        .sel(context=place["context"])
        .isel(rate=place["rate"])
    )
    steps_of = xr.DataArray(table.step.values, dims="jump")
    return table.assign(
        optimizer=optimizer,
        model=model,
        moved=(table.gap_after - table.gap_before).abs(),
        phi_factor=table["size"].abs().values / here.phi.values,
        gap_factor=(table.gap_after - table.gap_before).abs().values
        / here.logit_gap.values,
        gap_jumps=by_rule.sel(step=steps_of).values,
    )


every_jump = pd.concat([split(*key) for key in runs], ignore_index=True)
by_optimizer = every_jump.groupby("optimizer", sort=False)
summary = pd.DataFrame(
    {
        "jumps of Φ": by_optimizer.size(),
        "the gap moves, median (nat)": by_optimizer.moved.median(),
        "at most (nat)": by_optimizer.moved.max(),
        "times the run's median step: Φ": by_optimizer.phi_factor.median(),
        "and the gap": by_optimizer.gap_factor.median(),
        "jumps of the gap by the same rule": by_optimizer.gap_jumps.sum(),
        "cross Δ = 0": by_optimizer.apply(
            lambda rows: int(((rows.gap_before <= 0) & (rows.gap_after > 0)).sum()),
            include_groups=False,
        ),
        "come after the word leads": by_optimizer.apply(
            lambda rows: int((rows.gap_before > 0).sum()), include_groups=False
        ),
    }
)
for name, tables in null_jumps.items():
    summary[f"made at {name}"] = [
        sum(made(tables[key], *key) for key in runs if key[0] == optimizer)
        for optimizer in summary.index
    ]

# %% tags=["remove-cell"]
nb.caption(
    "fig-phi-against-gap",
    f"""One sentence on the first model, full fine-tuning with Adam at {len(multiples)} learning rates (colours, in
        units of the critical one) and LoRA (dashed, crosses). (a) The order parameter against the step, with its jumps
        ringed. (b) The same points against the logit gap; grey: the curve through all of them. (c), (d) The same for M,
        which no shift changes, with the same steps ringed. One deterministic run per learning rate, one seed of
        LoRA.""",
    alt="Against the step the curves leap at large learning rates. Against the gap the same points lie on one curve.",
)


# %% tags=["hide-input"]
def against_gap(full, lora, ringed, *, narrow=False):
    """Φ and M against the step, jumps ringed, and against the gap; one sentence at many rates."""
    grid, size = ((4, 1), (3.6, 9.6)) if narrow else ((2, 2), (WIDTH, 5.2))
    figure, axes = plt.subplots(*grid, figsize=size, layout="constrained")
    rows = axes.reshape(2, 2)
    labels = {"phi": r"order parameter $\Phi$", "m": "order parameter $M$"}
    gap = np.concatenate([full.logit_gap.values.ravel(), lora.logit_gap.values.ravel()])
    grid_of_gap = np.linspace(np.nanmin(gap), np.nanmax(gap), 200)
    for (left, right), name in zip(rows, labels):
        value = np.concatenate([full[name].values.ravel(), lora[name].values.ravel()])
        right.plot(grid_of_gap, curve(gap, value, grid_of_gap), color="#BBBBBB", linewidth=5, zorder=0)
        for panel, x in ((left, full.step), (right, None)):
            panel.axhline(0, color=REFERENCE, linewidth=0.8)
            for rate, colour in enumerate(sns.color_palette("flare", len(multiples))):
                run = full.isel(rate=rate)
                across = run.logit_gap if x is None else x
                style = {"marker": ".", "linestyle": "", "markersize": 5} if x is None else {}
                panel.plot(across, run[name], color=colour, label=f"{multiples[rate]:g}", **style)
                at = ringed.query("rate == @rate").step.to_list()
                ring = {"marker": "o", "linestyle": "", "markersize": 8, "markerfacecolor": "none"}
                panel.plot(across.sel(step=at), run[name].sel(step=at), color=colour, **ring)
            across = lora.logit_gap if x is None else x
            style = {"marker": "x", "linestyle": "", "markersize": 3.5} if x is None else {"linestyle": "--"}
            panel.plot(across, lora[name], color="#0072B2", label="LoRA", **style)
        left.set(xlabel="step", ylabel=labels[name])
        right.set(xlabel=r"logit gap $\Delta$ (nat)", ylabel=labels[name])
        right.axvline(0, color=REFERENCE, linewidth=0.8, linestyle=":")
        left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    handles = rows[0, 0].get_legend_handles_labels()
    title = r"learning rate, $\eta/\eta_c$"
    figure.legend(*handles, loc="outside lower center", ncols=4 if narrow else 7, fontsize="small", title=title)
    letter_panels(figure)
    return figure


name = loaded[0].name
context = jumps.clearest_jump(phi_jumps["adam", name]) or nb.contexts[0].id
sentence = [study["adam", name].sel(context=context).isel(seed=0) for study in (runs, lora_far)]
sentence[1] = sentence[1].isel(rate=0)
ringed = phi_jumps["adam", name].query("context == @context")
picture, narrow = (against_gap(*sentence, ringed, narrow=is_narrow) for is_narrow in (False, True))
nb.glue("phi_against_gap", picture)
nb.glue("phi_against_gap_narrow", narrow)  # for phones, on the first page
plt.close(narrow)
nb.figure(picture, "fig-phi-against-gap", runs=[runs["adam", name], lora_far["adam", name]])
nb.table(
    summary.T.map("{:.3g}".format).rename(columns=titles).rename_axis("at the counted rates").reset_index(),
    runs=[runs, lora_far],
)
shares = summary["made at constant velocity"] / summary["jumps of Φ"]
for optimizer in summary.index:
    nb.record(
        "O9",
        {"median_deviation": typical.phi[optimizer], "share_made_by_null": shares[optimizer]},
        optimizer=optimizer,
        n={
            "architectures": len(loaded),
            "contexts": runs.fewest_contexts(optimizer),
            "jumps": summary.loc[optimizer].iloc[0],
        },
        runs=[runs.sel(optimizer), lora_far.sel(optimizer), critical.sel(optimizer)],
        detail={"deviation of M": typical.m[optimizer], "split": summary.loc[optimizer].to_dict()},
    )
adam_split = summary.loc["adam"]
nb.glue("jumps_seen", float(adam_split["jumps of Φ"]))
nb.glue("jumps_of_null", float(adam_split["made at constant velocity"]))
nb.glue("jumps_of_first_velocity", float(adam_split["made at first velocity"]))
nb.say(
    "A run deviates from the curve of the sentence's other runs by {phi:.1%} of the range of $\\Phi$ in the median "
    "sentence under Adam ($M$: {m:.1%}). Under SGD it deviates by {sgd.phi:.1%} ($M$: {sgd.m:.1%}), because SGD's "
    "long steps leave the curve few points. Under Adam a gap that goes the whole way at constant velocity makes "
    "{made:.0f} of the {jumps:.0f} jumps. A gap that keeps the first velocity of its run, and so goes on where the "
    "run slows down, makes {first:.0f}. In the median jump $\\Phi$ moves by {factor:.0f} times the median step of its "
    "run. The gap moves by {gap_factor:.1f} times its own median step, which is {moved:.1f} nats. By the same rule "
    "{own:.0f} of the jumps are jumps of the gap too. So a jump has two causes: a curve that is steep in some places "
    "and flat in others, and a gap that does not grow steadily.",
    typical.loc["adam"],
    sgd=typical.loc["sgd"],
    made=adam_split["made at constant velocity"],
    first=adam_split["made at first velocity"],
    jumps=adam_split["jumps of Φ"],
    factor=adam_split["times the run's median step: Φ"],
    gap_factor=adam_split["and the gap"],
    moved=adam_split["the gap moves, median (nat)"],
    own=adam_split["jumps of the gap by the same rule"],
)

# %% tags=["hide-input"]
nb.answer(
    "Gaps, critical rates and kinematic numbers belong to the model. Three things belong to the way the readout is "
    "written down: the size of $\\Phi$, the class by $B$, and structural failures by the drag of $\\Phi$ ({few} to "
    "{many} of the same {silent} failures, depending on the gauge). The reason is that neither softmax nor training "
    "sees one vector added to all rows. Over {gauges} gauges, full fine-tuning and LoRA, Adam and SGD, predictions "
    "differ by at most {worst:.0e} nats, while the bulk coherence runs from {least:.0f} to {most:.0f}. The order "
    "parameter $M$ does not depend on the gauge. By $M$, {by_m} of {all} silent failures under Adam are structural, "
    "and {jumping} of {contexts} contexts jump. Against the gap $\\Phi$ follows one curve. That curve alone, walked "
    "at constant velocity, makes {made:.0f} of {jumps:.0f} jumps.",
    by_m=counts.loc["adam", "structural by M"].sum(),
    all=counts.loc["adam", "silent"].sum(),
    jumping=int(of_m.loc["adam", "jumps of M"].sum()),
    contexts=sum(ds.sizes["context"] for ds in adam.values()),
    made=adam_split["made at constant velocity"],
    jumps=adam_split["jumps of Φ"],
    gauges=len(gauges),
    worst=worst.max(axis=None),
    least=coherences.min(axis=None),
    most=coherences.max(axis=None),
    few=by_gauge.loc["C3: structural failures"].min(),
    many=by_gauge.loc["C3: structural failures"].max(),
    silent=by_gauge.loc["C1: silent failures"].iloc[0],
)

# %% [markdown]
# ## What it means
#
# The paper says that the discontinuity lives in the softmax readout and not in the geometry of the embeddings. The
# shift makes the second half exact: the geometry can be changed at will, and no prediction follows. The shift also
# limits this book's own statements. What is measured in overlaps is measured in one gauge: the size of $\Phi$, the
# kinds of failure by its drag, the class by $B$. Statements about the model are those that hold in every gauge: the
# gap, the probabilities, critical rates, kinematic numbers, and $M$. The first half of the paper's statement has two
# parts, the softmax curve and the uneven steps of the gap itself.
#
# ## What could be wrong
#
# The theorem is about a readout of its own. In a tied model the shift would change the input embedding too, so there
# it can be applied to the measurement only. The gauges of the tied models are therefore those of copies, whose
# training differs from that of the originals. One random direction stands for all.
#
# The kinds of failure by $M$ have a threshold of our own, a tenth of $|M_0|$. Where $M_0$ is nearly zero, every fall
# is large in this unit. A prototype on these models had shown that some runs lie on either side; the ledger says what
# was known. $M$ is one choice among those that no shift changes. Rescaling the channels of $h$, moved from the last
# norm into $E$, is a second symmetry, of the model's function but not of its training. $M$ does change under it.
#
# The curve is drawn through runs that include those which jump, and each run is compared with the curve of the
# others. Between its points the curve is a straight line, so a curve that is steep where no run stopped would go
# unseen.
