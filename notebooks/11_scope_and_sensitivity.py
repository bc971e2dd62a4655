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
#     minutes: 5
# ---

# %% [markdown]
# # 11 · Scope and sensitivity
#
# **Question.** Do the regularities belong to near-synonyms, or to any pair of tokens? Which conclusions move when we
# change one of our definitions or settings?
#
# ```{glue:md} answer_11
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed, and the seed of the random pairs
steps: int = 20  # optimiser steps of each run
multiples: list[float] = [0.1, 0.3, 0.7, 0.9, 1.5]  # learning rates in units of each context's predicted critical rate
kinds: list[str] = ["matched", "unrelated", "random pair", "antonym"]  # controls to measure
only: list[str] = []  # names of the variants to measure, all if empty

# %% tags=["hide-cell"]
from dataclasses import replace
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy.stats import gmean

from phantombook import markup, notebook
from phantombook.figures.palette import REFERENCE, model_colours
from phantombook.figures.style import WIDTH, dots_and_means, legend_above, log_ticks
from phantombook.ledger.claims import load_claims
from phantomlib.contexts import load_contexts, resolve
from phantomlib.critical import search
from phantomlib.critical.scaling import lora_outcomes
from phantomlib.critical.scaling import (
    coefficient_of_variation,
    interval,
    kinematic_number,
)
from phantomlib.critical.predictors import contexts_with_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, did_you_mean, shown
from phantomlib.models.language_model import next_token_logits
from phantomlib.order_parameter import overlaps
from phantomlib.runs.study import Study
from phantomlib.transition import silent_failure
from phantomlib.transition.jumps import find_jumps, with_critical_rate
from phantomlib.transition.silent_failure import drag_falls

nb = notebook.start("11_scope_and_sensitivity")
loaded = [nb.load(ref) for ref in nb.models]
labels = {"adam": "Adam", "sgd": "SGD"}
ledger = {claim.id: claim for claim in load_claims()}

# %% [markdown]
# ## Two experiments
#
# The first experiment changes the pair of tokens. The second changes one definition, setting or threshold at a time.
# The next cell lists these changes, and the claims that each can touch.


# %%
def worsens(share):
    """The rule for structural failures with another share of the order parameter."""
    return partial(silent_failure.drag_worsens, share=share)


def variants(steps, only=()):
    """By name: what is changed, and the claims that the change can touch."""
    known = {
        "as defined": ({}, "C1 C3 C4 C7 C8 C9"),
        "overlap to the power 1": ({"exponent": 1}, "C4 C7"),
        "overlaps of the input embedding": ({"geometry": "input"}, "C4 C7"),
        f"T = {steps // 2} steps": ({"steps": steps // 2}, "C1 C3 C8"),
        f"T = {2 * steps} steps": ({"steps": 2 * steps}, "C8"),
        "Adam's epsilon 1e-6": ({"epsilon": 1e-6}, "C8"),
        "double precision": ({"dtype": "float64"}, "C4 C7"),
        "LoRA rank 2": ({"rank": 2}, "C9"),
        "LoRA rank 32": ({"rank": 32}, "C9"),
        "silent: fall of 0.05 nat": ({"least_fall": 0.05}, "C1"),
        "silent: fall of 0.5 nat": ({"least_fall": 0.5}, "C1"),
        "structural: a fall of 5 %": ({"structural": worsens(0.05)}, "C3"),
        "structural: a fall of 20 %": ({"structural": worsens(0.2)}, "C3"),
        "structural: any fall of 0.001": ({"structural": drag_falls}, "C3"),
        "jump: twice the size": ({"size_factor": 0.2}, "C4 C7"),
        "jump: half the size": ({"size_factor": 0.05}, "C4 C7"),
        "jump: 5 times the median": ({"median_factor": 5.0}, "C4 C7"),
        "jump: 20 times the median": ({"median_factor": 20.0}, "C4 C7"),
    }
    for name in only:
        if name not in known:
            raise ParameterError(
                f"There is no variant {shown(name)}{did_you_mean(name, [*known])}; "
                f"known: {', '.join(known)}."
            )
    return {name: known[name] for name in known if not only or name in only}


varied = variants(steps, only)  # an unknown name is refused before anything runs

# %% [markdown]
# ## Controls
#
# For every [context](../definitions.md#context) we keep the prompt and change the pair.
#
# - **matched**: the competitor stays, and the gap nearly does. The correct token is replaced by every other whose
#   logit lies within half a nat of its own and whose overlap with the competitor is at most three quarters of its own.
#   What is left to differ is the relation of the two words. These controls judge C11.
# - **unrelated**: the competitor stays. The correct token is replaced by the one whose logit is nearest, among those
#   whose readout row overlaps with the competitor's no more than usual. The relation is gone altogether, but the gap
#   is another. These controls judged C11 before the matched ones.
# - **random pair**: two tokens drawn among the two hundred most probable. The default book leaves them out, because
#   the matched controls say more.
# - **antonym**: words of opposite meaning, where the tokenizer and vocabulary have them. The generated language of
#   the zoo has few such words and does not know that they are opposites. So this control counts for public
#   checkpoints only.
#
# For each pair we find the [critical learning rate](../definitions.md#critical-learning-rate) and the critical
# [kinematic number](../definitions.md#kinematic-number) $N_c$ under Adam, as in [chapter
# 08](08_dimensionless_numbers.ipynb). For the matched and the unrelated pairs we find them under SGD too.


# %%
BAND = 0.5  # nats between the logits of a matched control and of the correct token
SHARE = 0.75  # of the correct token's overlap with the competitor, at most
MOST = 5  # matched controls of a prompt, the nearest first; the zoo's have fewer
LIKELY = 200  # random pairs are drawn among so many tokens, so gaps have ordinary size
ANTONYMS = {  # by the id of the book's context that has the first of the two words
    "shame": "pride",
    "glad": "sad",
    "large": "small",
    "begin": "stop",
    "fast": "slow",
    "ill": "well",
}


def tokens_behind(model, contexts):
    """Logits, overlaps with the competitor, and the other tokens that it outranks."""
    for context, z in zip(contexts, next_token_logits(model, contexts)):  # z: (V,)
        competitor = torch.tensor([context.competitor_id], device=z.device)
        g = overlaps(model.readout, competitor)[:, 0]  # (V,)
        behind = z < z[competitor]
        behind[context.correct_id] = False
        yield context, z, g, behind


def matched(model, contexts, seed):
    """Gap and rank are nearly the same, the relation is not; several to a prompt."""
    for context, z, g, behind in tokens_behind(model, contexts):
        own = context.correct_id
        distance = (z - z[own]).abs()
        allowed = behind & (distance <= BAND) & (g <= SHARE * g[own])
        nearest = distance.masked_fill(~allowed, torch.inf).argsort(stable=True)
        for n, token in enumerate(nearest[: min(MOST, int(allowed.sum()))].tolist()):
            named = replace(context.context, id=f"{context.id}.{n}")
            yield replace(context, context=named), token, context.competitor_id


def unrelated(model, contexts, seed):
    """The relation is gone, whatever the gap; contexts without such a token: none."""
    for context, z, g, behind in tokens_behind(model, contexts):
        allowed = behind & (g <= g.median())
        if allowed.any():
            distance = (z - z[context.correct_id]).abs()
            nearest = int(distance.masked_fill(~allowed, torch.inf).argmin())
            yield context, nearest, context.competitor_id


def random_pairs(model, contexts, seed):
    generator = torch.Generator().manual_seed(seed)
    for context, z in zip(contexts, next_token_logits(model, contexts)):
        likely = z.argsort(descending=True, stable=True)[:LIKELY].tolist()
        own = context.correct_id, context.competitor_id
        likely = [token for token in likely if token not in own]
        drawn = torch.randperm(len(likely), generator=generator)[:2].tolist()
        yield context, likely[max(drawn)], likely[min(drawn)]


def antonyms(model, contexts, seed):
    """In the book's own prompts; the word that the model prefers is the competitor."""
    for context in load_contexts():
        if context.id not in ANTONYMS:
            continue
        words = replace(context, competitor=ANTONYMS[context.id])
        try:
            pair = resolve(words, model.tokenizer)
        except ContextError:  # the tokenizer does not hold one of the words
            continue
        if pair.compared:  # it splits one
            continue
        z = next_token_logits(model, [pair])[0]
        both = pair.correct_id, pair.competitor_id
        yield pair, *sorted(both, key=lambda token: float(z[token]))


KINDS = {
    "matched": matched,
    "unrelated": unrelated,
    "random pair": random_pairs,
    "antonym": antonyms,
}


def controls(model, contexts, kind, seed=0):
    """Control contexts of one kind for a model; the competitor outranks the other."""
    if kind not in KINDS:
        raise ParameterError(
            f"There is no control {shown(kind)}; choose one of {', '.join(KINDS)}."
        )
    found = []
    for context, correct, competitor in KINDS[kind](model, contexts, seed):
        words = [model.tokenizer.decode([i]).strip() for i in (correct, competitor)]
        spelt = {"correct": words[0], "competitor": words[1]}
        named = replace(context.context, kind=kind, **spelt)
        pair = {"correct_id": correct, "competitor_id": competitor}
        found.append(replace(context, context=named, **pair))
    return found


# %%
def pairs(model, kind):
    known = nb.fitting_contexts(model)
    if kind == "near-synonym":
        return known
    return controls(model, known, kind, nb.seed)


def measure(kind):
    """Critical rates of every model's pairs of one kind, where there are any."""

    def find_critical(model, optimizer):
        recipe = Recipe(optimizer=optimizer, steps=steps)
        return search.critical_rates(nb.store, model, pairs(model, kind), recipe)

    optimizers = ["adam", "sgd"] if kind in COMPARED else ["adam"]
    with_pairs = [model for model in loaded if pairs(model, kind)]
    return Study.of(find_critical, with_pairs, optimizers)


# %%
COMPARED = ("near-synonym", "matched", "unrelated")


def number_of(ds):
    number = kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap).values
    columns = {"context": ds.context.values, "N": number, "gap": ds.gap.values}
    columns["prompt"] = [context.partition(".")[0] for context in columns["context"]]
    return pd.DataFrame(columns)


all_kinds = ["near-synonym", *kinds]
searches = {kind: measure(kind) for kind in all_kinds}
measured = pd.concat(
    [
        study.table(number_of).assign(kind=kind)
        for kind, study in searches.items()
        if study
    ],
    ignore_index=True,
)
defined = measured[np.isfinite(measured.N) & (measured.N > 0)]

# %% tags=["remove-cell"]
nb.caption(
    "fig-controls",
    """Critical kinematic number of near-synonym and control pairs, on a logarithmic axis. One dot per context, where
        the number is defined; one colour per model. Black bars: geometric mean over the contexts of a model. Grey line:
        N = 1. One panel per optimiser. Full fine-tuning, critical rates to a bracket of 0.5 %, deterministic.""",
    alt="""Dots of every kind scatter around one. Bars of matched controls lie as close together as those of
        near-synonyms; those of unrelated pairs lie further apart.""",
)

# %% tags=["hide-input"]
for kind in kinds:
    if not searches[kind]:
        nb.say("No pair of the control “{kind}” exists for these models, so it is not measured.", kind=kind)
colours = model_colours(loaded)
figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.0), sharey=True, layout="constrained")
for axes, (optimizer, label) in zip(panels, labels.items()):
    rows = defined[defined.optimizer == optimizer]
    placed = rows.assign(kind=pd.Categorical(rows.kind, [kind for kind in all_kinds if searches[kind]]))
    axes.axhline(1, color=REFERENCE, linewidth=0.8)
    dots_and_means(axes, placed, "N", x="kind", hue="model", colours=colours)
    axes.set(yscale="log", title=label)
    axes.tick_params(axis="x", rotation=15)
log_ticks(panels[0].yaxis)  # shared
panels[0].set_ylabel("critical kinematic number $N_c$")
legend_above(figure, colours)
nb.figure(figure, "fig-controls", runs=searches, data=measured)

# %%
logs = defined.assign(log=np.log(defined.N))
by_model = logs.groupby(["optimizer", "kind", "model"]).log.mean()
by_kind = logs.groupby(["optimizer", "kind"]).log
overall = np.exp(by_model.groupby(["optimizer", "kind"]).mean())  # geometric mean
summary = pd.DataFrame(
    {
        "$N_c$": overall,
        "log sd over contexts": by_kind.std(),
        "defined": by_kind.size(),
        "pairs": measured.groupby(["optimizer", "kind"]).size(),
        "variation over models (%)": 100
        * np.exp(by_model).groupby(["optimizer", "kind"]).agg(coefficient_of_variation),
        "gap, median (nat)": measured.groupby(["optimizer", "kind"]).gap.median(),
    }
)
gaps = measured.groupby("kind").gap.agg(["min", "max"])

# matched controls against the near-synonym of the same prompt, model by model
near = logs[logs.kind == "near-synonym"]
of_prompt = ["optimizer", "model", "prompt"]
paired = logs[logs.kind == "matched"].merge(near, on=of_prompt, suffixes=("", "_near"))
paired["ratio"] = paired.log - paired.log_near
paired["off"] = paired.gap - paired.gap_near
by_architecture = paired.groupby(of_prompt).ratio.mean().groupby(of_prompt[:2]).mean()
shift = np.expm1(by_architecture.groupby("optimizer").mean()).reindex(labels)
each = np.expm1(by_architecture)  # the shift of every architecture
matched_pairs = paired.groupby(of_prompt[:2]).size()
of_prompts = paired.groupby(of_prompt).ratio.mean().unstack("model")  # log ratios


def interval_of_shift(optimizer):
    """95 % bootstrap interval over the prompts, the same for all architectures."""
    values = of_prompts.loc[optimizer].to_numpy()  # (prompts, models), nan if none

    def mean(drawn, axis=-1):
        return np.nanmean(np.nanmean(values[drawn.astype(int)], axis=-2), axis=-1)

    low, high = interval(np.arange(len(values)), mean, seed=nb.seed)
    return float(np.expm1(low)), float(np.expm1(high))

# %% tags=["hide-input"]
nb.table(summary.rename(labels).rename_axis(["optimiser", "kind of pair"]).reset_index(), runs=searches)
for optimizer, label in labels.items():
    if optimizer not in shift.dropna():
        continue
    spreads = summary["variation over models (%)"][optimizer]
    low, high = interval_of_shift(optimizer)
    prompts = np.expm1(of_prompts.loc[optimizer].mean(axis=1))  # over the architectures
    nb.record(
        "C11",
        abs(shift[optimizer]),
        optimizer=optimizer,
        interval=(low, high),
        n={"architectures": len(matched_pairs[optimizer]), "contexts": int(matched_pairs[optimizer].min())},
        runs=[searches[kind].sel(optimizer) for kind in ("near-synonym", "matched")],
        detail={
            "interval": "95 % bootstrap over prompts, of the signed shift",
            "shift by architecture": each[optimizer].to_dict(),
            "shift by prompt": prompts.to_dict(),
            "pairs": matched_pairs[optimizer].to_dict(),
        },
    )
    nb.say(
        "**{label}**: $N_c$ of {n} matched controls differs by {shift:+.1%} from that of the near-synonyms of the same "
        "prompts ({least:+.1%} to {most:+.1%} by architecture; 95 % bootstrap interval over the prompts {low:+.1%} to "
        "{high:+.1%}). In the median prompt it differs by {median:+.1%}; in “{which}” it differs most, by "
        "{largest:+.1%}. Over the models $N_c$ varies by {near:.1f} % for near-synonyms, by {matched:.1f} % for "
        "matched controls{rest}.",
        label=label,
        n=int(matched_pairs[optimizer].sum()),
        shift=shift[optimizer],
        least=each[optimizer].min(),
        most=each[optimizer].max(),
        low=low,
        high=high,
        median=prompts.median(),
        which=prompts.abs().idxmax(),
        largest=prompts[prompts.abs().idxmax()],
        near=spreads["near-synonym"],
        matched=spreads["matched"],
        rest=f", and by {spreads['unrelated']:.1f} % for unrelated pairs" if "unrelated" in spreads else "",
    )
if len(paired):
    nb.say(
        "The gaps of the matched controls differ from that of their near-synonym by {off:.2f} nats in the median. The "
        "gaps of near-synonyms run from {near[min]:.1f} to {near[max]:.1f} nats.",
        off=paired.off.abs().median(),
        near=gaps.loc["near-synonym"],
    )
if "unrelated" in gaps.index:
    nb.say(
        "Those of unrelated pairs run from {far[min]:.1f} to {far[max]:.1f} nats. So what the unrelated pairs say is "
        "**confounded**: their number may differ because the words are unrelated or because the gap is longer.",
        far=gaps.loc["unrelated"],
    )

# %% [markdown]
# Are silent failures and jumps a matter of near-synonyms? We fine-tune one pair of each of five prompts at 0.7 and at
# 30 times its own critical rate, under Adam. A run fails silently as in [chapter 02](02_silent_failure.ipynb); jumps
# are those of [chapter 05](05_catapult_jumps.ipynb).


# %%
FOLLOWED, PROMPTS = (0.7, 30.0), 5  # learning rates in units of the critical; prompts


def follow(kind):
    def fine_tune(model, optimizer):
        found = searches[kind][optimizer, model.name]
        known, rates = with_critical_rate(pairs(model, kind), found)
        prompts = [context.id.partition(".")[0] for context in known]
        first = sorted(map(prompts.index, dict.fromkeys(prompts)))[:PROMPTS]
        recipe = Recipe(optimizer=optimizer, steps=steps)
        chosen = [known[place] for place in first]
        return nb.store.run(model, chosen, np.outer(rates[first], FOLLOWED), recipe)

    with_pairs = [model for model in loaded if ("adam", model.name) in searches[kind]]
    return Study.of(fine_tune, with_pairs, ["adam"])


def behaviour(runs):
    """Of the pairs of one model: how many fail silently at 0.7, and jump at 30."""
    failed = silent_failure.silent(runs.isel(rate=[0]), 0.1)
    jumped = find_jumps(runs.isel(rate=[1]))
    return {
        "pairs": runs.sizes["context"],
        "fail silently at 0.7": int(failed.sum()),
        "jump at 30": jumped.context.nunique(),
        "jumps": len(jumped),
    }


followed = {kind: follow(kind) for kind in COMPARED if searches.get(kind)}
behaviours = pd.concat(
    study.table(behaviour).assign(kind=kind) for kind, study in followed.items()
)
counted = behaviours.drop(columns=["optimizer", "model"])
counted = counted.groupby("kind", sort=False).sum()  # over the architectures

# %% tags=["hide-input"]
nb.table(counted.rename_axis("kind of pair").reset_index(), runs=followed)

# %% [markdown]
# ## One change at a time
#
# Only the claims that a change can touch are measured again. [Silent failures](../definitions.md#silent-failure) (C1,
# C3) are counted at the multiples of [chapter 02](02_silent_failure.ipynb). With another number of steps, the
# critical rates are predicted for that number. A tick in the table says that the value still meets the claim's
# threshold. For C9 the cell lists in how many contexts LoRA succeeded, model by model.

# %%
JUMPS = (10.0, 30.0)  # learning rates of jumps, in units of the measured critical one
LORA = 10.0  # learning rate of LoRA, in units of that of full fine-tuning


def load(dtype):
    """The models with their contexts, in a dtype or (None) in the notebook's own."""
    chosen = [nb.load(ref, dtype=dtype) for ref in nb.models] if dtype else loaded
    return [(model, nb.fitting_contexts(model)) for model in chosen]


def dynamics(recipe):
    """Without what only changes Φ, so that searches and predictions are shared."""
    return replace(recipe, exponent=2, geometry="readout", rank=Recipe.rank)


def failures(pairs, recipe, least_fall=0.1, structural=silent_failure.drag_worsens):
    """C1 and C3: runs around each context's predicted critical rate."""
    grids = []
    for model, contexts in pairs:
        known, rates = contexts_with_rates(nb.store, model, contexts, dynamics(recipe))
        grids.append(nb.store.run(model, known, np.outer(rates, multiples), recipe))
    failed = [silent_failure.silent(ds, least_fall) for ds in grids]
    silent = min(int(runs.any(["rate", "seed"]).sum()) for runs in failed)
    tables = [silent_failure.failure_table(ds, structural) for ds in grids]
    modes = pd.concat(tables)["mode"].value_counts()
    by_mode = {f"{m}_failures": modes.get(m, 0) for m in ("kinematic", "structural")}
    return {"C1": {"fewest_silent_contexts": silent}, "C3": by_mode}, grids


def jumps(pairs, found, recipe, **definition):
    """C4 and C7: runs far above each context's measured critical rate."""
    runs = []
    for (model, contexts), ds in zip(pairs, found):
        # a tied model has one matrix, so the runs of the readout serve
        own = replace(recipe, geometry="readout") if model.tied else recipe
        known, rates = with_critical_rate(contexts, ds)
        runs.append(nb.store.run(model, known, np.outer(rates, JUMPS), own))
    tables = [find_jumps(ds, **definition) for ds in runs]
    fewest = min(table.context.nunique() for table in tables)
    share = pd.concat(tables).readout_share.median()
    values = {"fewest_jumping_contexts": fewest}, {"median_readout_share": share}
    return dict(zip(("C4", "C7"), values)), runs


def variation(found, steps):
    """C8: over the architectures, of N_c, the geometric mean over the contexts."""
    numbers = [
        kinematic_number(ds.critical_rate, steps, ds.velocity, ds.gap).values
        for ds in found
    ]
    means = [gmean(number[number > 0]) for number in numbers]
    return {"C8": {"coefficient_of_variation": coefficient_of_variation(means)}}


def lora(pairs, found, recipe):
    """C9: in how many contexts LoRA succeeds, by model."""
    recipe = replace(recipe, method="lora")
    outcomes = []
    for (model, contexts), ds in zip(pairs, found):
        known, rates = with_critical_rate(contexts, ds)
        outcomes.append(
            lora_outcomes(nb.store, model, known, rates, recipe, multiple=LORA)
        )
    successes = [int(outcome.success.sum()) for outcome in outcomes]
    return {"C9": {"lora_successes": successes}}, outcomes


def measure_variant(change, claims):
    """Values of the claims that a change can touch, and the runs behind them."""

    def changed(*names):
        return {name: change[name] for name in names if name in change}

    settings = changed("steps", "exponent", "geometry", "epsilon", "rank")
    recipe = Recipe(**{"steps": steps} | settings)
    pairs, values, runs = load(change.get("dtype")), {}, []
    if {"C1", "C3"} & claims:
        definition = changed("least_fall", "structural")
        values, runs = failures(pairs, recipe, **definition)
    if {"C4", "C7", "C8", "C9"} & claims:
        # in the notebook's own dtype: the bracket is wider than what precision moves
        found = [
            search.critical_rates(nb.store, model, contexts, dynamics(recipe))
            for model, contexts in load(None)
        ]
        values, runs = values | variation(found, recipe.steps), runs + found
    if {"C4", "C7"} & claims:
        definition = changed("size_factor", "median_factor")
        more, used = jumps(pairs, found, recipe, **definition)
        values, runs = values | more, runs + used
    if "C9" in claims:
        more, used = lora(pairs, found, recipe)
        values, runs = values | more, runs + used
    return {claim: values[claim] for claim in sorted(claims)}, runs


# %%
values, used = {}, []
for name, (change, claims) in varied.items():
    values[name], runs = measure_variant(change, set(claims.split()))
    used += runs


# %% tags=["hide-input"]
def cell(claim, found):
    """Of the table: the values, and whether they meet the claim's thresholds."""
    if claim == "C9":
        return "/".join(map(str, found["lora_successes"]))
    numbers = ", ".join(f"{value:.3g}" for value in found.values())
    return f"{numbers.replace('nan', '–')} {'✓' if ledger[claim].holds(found) else '✗'}"


cells = {name: {claim: cell(claim, one) for claim, one in found.items()} for name, found in values.items()}
table = pd.DataFrame.from_dict(cells, orient="index").sort_index(axis=1).fillna("")
nb.table(table.rename_axis("variant").reset_index(), runs=used)

# %% tags=["hide-input"]
def moved(claim):
    """Variants under which the claim's threshold is met and was not, or the other way round."""
    held = {name: ledger[claim].holds(found[claim]) for name, found in values.items() if claim in found}
    return [name for name, holds in held.items() if holds != held.get("as defined", holds)]


judged = [c for c in ("C1", "C3", "C4", "C7", "C8") if c in values.get("as defined", {})]
changes = {claim: moved(claim) for claim in judged}
if shift.isna().any():
    scope = "There are no matched controls for these models, so what belongs to near-synonyms cannot be told."
else:
    scope = markup.fill(
        "With the gap and the prompt matched, the critical kinematic number of other pairs differs from that of "
        "near-synonyms by {adam:+.1%} under Adam (95 % interval over the prompts {low:+.1%} to {high:+.1%}) and by "
        "{sgd:+.1%} under SGD; silent failures and jumps are the same.",
        shift,
        dict(zip(("low", "high"), interval_of_shift("adam"))),
    )
nb.answer(
    "{scope} We measured {claims} claims again under {variants} changes, each under those that can "
    "touch it. Of these claims, {what}.",
    scope=scope,
    claims=len(judged),
    variants=len(values) - ("as defined" in values),
    what="; ".join(f"{claim} changes sides under {', '.join(names)}" for claim, names in changes.items() if names)
    or "none changes sides of its threshold",
)

# %% [markdown]
# ## What it means
#
# Silent failures and jumps do not belong to near-synonyms: other pairs show them as often. Nor does the consistency of
# the constant over architectures. Whether the constant itself is another depends on the prompt. A mean over ten
# prompts, of which one or two stand apart, supports little; the interval says so.
#
# Where a change leaves the tick as it is, the verdict does not depend on that choice. Where the tick changes, read
# the verdict in [the ledger](00_ledger.ipynb) together with the definition.
#
# ## What could be wrong
#
# Matched controls are words of the same part of speech, with some overlap left; a word without any at the same gap does
# not exist in these prompts. A longer gap and an absent relation come together, and only the first is separated here.
#
# We change one thing at a time and try no combinations. C2, C5, C6, C10 and C11 are not in the table. C2 is an
# identity, the tests of C5 have thresholds of their own, and C6 is exact. C10 would need another sweep of the
# held-out architecture. C11 is the first part of this chapter.
