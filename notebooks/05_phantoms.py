# ---
# jupyter:
#   phantom:
#     minutes: 5
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
# # Phantoms
#
# **Question.** The jumps of the order parameter look like a phase transition. Are they one? Does some symmetry of the embeddings break, as it does in a magnet
# that picks a direction?
#
# **Answer.** We put six questions to the jumps, each with a number that would be different if a symmetry broke. The board at the end shows all
# numbers on their thresholds, which were written down before the runs. What looks like a transition and is none is what the paper calls a *phantom*.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
steps: int = 20  # optimiser steps of each run
multiples: list[float] = [0.3, 0.7, 1.5, 3.0, 10.0, 30.0]  # learning rates in units of the critical one
counted: list[float] = [10.0, 30.0]  # multiples whose jumps are examined; experiments start from the last
lora_multiple: float = 100.0  # learning rate of LoRA in units of the critical one of full fine-tuning
lora_seeds: list[int] = [0, 1]  # seeds of the LoRA initialisation

# %% tags=["hide-cell"]
import numpy as np
import pandas as pd

from phantomlib.book import notebook
from phantomlib.figures.examination import branch_panels, criteria_board, crossing_panels, potential_panels, ramp_panels, refinement_panels
from phantomlib.figures.jumps import lora_jump_panels, readout_shares
from phantomlib.figures.palette import model_colours
from phantomlib.ledger import scoreboard
from phantomlib.transition import double_well, examine, frozen_readout, jumps, potential, refinement, slowing
from phantomlib.ledger.claims import load_claims
from phantomlib.critical.search import critical_rates
from phantomlib.measure.recipe import Recipe

nb = notebook.start("05_phantoms", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
titles = {"adam": "Adam", "sgd": "SGD"}
claim = next(c for c in load_claims() if c.id == "C5")

# %% [markdown]
# ## What was done
#
# The jumps are those of the previous chapter: full fine-tuning at ten and thirty times the critical learning rate $\eta_c$ of each context. Further experiments start
# from the first jump of each context at the largest rate. They are ordinary fine-tuning runs whose learning rate changes at some step.
#
# A test is worth little if nothing can fail it. So each experiment is also run on a **control** in which two branches do exist: gradient descent in the double
# well $U(\Delta) = (\Delta^2 - 1)^2/4$, started on the outer slope. There, a small learning rate ends in the left well for ever and a large one leaps into the right well. The control should
# fail the tests that look for a second branch.

# %% tags=["hide-input"]
examined, searches = {o: {} for o in titles}, []
for optimizer in titles:
    recipe = Recipe(optimizer=optimizer, steps=steps)
    for model in loaded:
        found = critical_rates(nb.store, model, nb.fitting_contexts(model), recipe)
        fitting, rates = jumps.with_critical_rate(nb.fitting_contexts(model), found)
        examined[optimizer][model.name] = examine.examine(nb.store, model, fitting, rates, recipe, multiples=tuple(multiples), counted=tuple(counted))
        searches += found.attrs["run_ids"].split()
adam = examined["adam"]
measured = {o: examine.summarise_tests(list(found.values())) for o, found in examined.items()}
control = double_well.DoubleWell.examined(steps)
control_measured = examine.summarise_tests([control])
run_ids = {o: sorted({i for e in found.values() for i in e.run_ids}) for o, found in examined.items()}
shown = next((name for name, e in adam.items() if len(e.first)), None)
notebook.table(
    pd.DataFrame(
        [
            {"model": name, "optimiser": titles[o], "contexts": e.runs.sizes["context"], "jumps examined": len(e.jumps), "contexts followed": len(e.first)}
            for o, found in examined.items()
            for name, e in found.items()
        ]
    )
)
if shown is None:
    notebook.say("**No context jumps under Adam at these rates, so most quantities below do not exist.**")

# %% tags=["hide-input"]
nb.made_by(run_ids)

# %% [markdown]
# ## (i) Does the geometry move?
#
# The order parameter has two ingredients: the probabilities $p$ that the softmax reads out, and the overlaps $g$ of the embedding vectors. Its change splits exactly
# into a readout part and a geometry part. If a symmetry of the embeddings broke, the overlaps would rearrange at the jump.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-readout-share", "caption": "Share of each jump that is carried by the change of the probabilities, against the size of the jump over its bound. Every jump at the examined multiples of the critical rate; full fine-tuning; deterministic runs. Grey line: the smallest median allowed, fixed beforehand; dotted: all of the jump. A share above one means that the geometry part points the other way."}, "image": {"alt": "Scatter plots of readout share against jump size, one panel per optimiser; the points lie close to one.", "width": "100%"}}
tables = {o: examine.join_jumps(found) for o, found in examined.items()}
threshold = next(c for c in load_claims() if c.id == "C7").criteria[0].threshold
readout_shares(tables, colours, threshold, titles);

# %% tags=["hide-input"]
nb.made_by([e.runs for found in examined.values() for e in found.values()])

# %% tags=["hide-input"]
for optimizer, found in examined.items():
    pooled = tables[optimizer]
    if len(pooled):
        numbers = measured[optimizer]["geometry"]
        nb.record(
            "C7",
            pooled.readout_share.median(),
            optimizer=optimizer,
            n={"architectures": len(loaded), "contexts": min(e.runs.sizes["context"] for e in found.values()), "jumps": len(pooled)},
            interval=jumps.median_interval(pooled.readout_share),
            runs=[[e.runs for e in found.values()], searches],
            detail={"interval": "95 % bootstrap over jumps", "smallest": pooled.readout_share.min(), "largest": pooled.readout_share.max(), "by model": pooled.groupby("model", sort=False).readout_share.median().to_dict()},
        )
        notebook.say(
            f"**{titles[optimizer]}**, {len(pooled)} jumps: the median readout share is {pooled.readout_share.median():.3f} (from {pooled.readout_share.min():.3f} to {pooled.readout_share.max():.3f}). "
            f"In nine of ten jumps the overlap $g_{{ck}}$ changes by less than {numbers['high_overlap_change']:.4f}, and the readout matrix moves by less than {100 * numbers['high_drift']:.2f} % of its norm."
        )

# %% [markdown]
# ## (ii) Are there two branches?
#
# A magnet below its critical temperature has two states at the same temperature, and its history decides which. So we stop each run just before and just after its
# jump, and go on from both states at the same, ten times smaller learning rate. A second branch would hold back the replica that had not jumped yet.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-branches", "caption": "Left: one context slowed down to a tenth of its learning rate just before its jump (dashed) and just after it (solid). Right: final order parameter over its bound for all contexts of all models under Adam, from before the jump against from after it; on the diagonal both end at the same place. Crosses: the double well, which has two branches. Twice the usual number of steps; one deterministic run per point."}, "image": {"alt": "Left, two curves that merge. Right, points on the diagonal, and the control's points far from it.", "width": "100%"}}
if shown:
    followed = {name: e.branches for name, e in adam.items() if e.branches is not None}
    example = followed[shown].sel(context=jumps.clearest_jump(adam[shown].first.reset_index()))
    ends = {name: (b.phi / jumps.bound(b)).isel(step=-1) for name, b in followed.items()}
    branch_panels(example, ends, control.branches, colours)

# %% tags=["hide-input"]
nb.made_by([e.branches for e in adam.values() if e.branches is not None])

# %% [markdown]
# The second sign of two branches is hysteresis: a state that depends on whether a control was turned up or down. Fine-tuning on one sentence has no way back, so
# a plot against the learning rate proves nothing. But we can use the same learning rates once in rising and once in falling order. If only their sum counts,
# $\Phi$ is the same function of the sum. With hysteresis the two curves enclose an area.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ramps", "caption": "Left: order parameter of one context along a ramp of learning rates from 0.3 to 30 times critical, rising and falling, against the sum of the rates used so far; a point per step. Right: area between the two curves as a share of bound times range, for every context of each model under Adam; grey line: the largest median allowed; cross: median of the double well. One deterministic run per curve."}, "image": {"alt": "Left, two nearly equal curves. Right, small loop areas for all models and a large one for the control.", "width": "100%"}}
first = next(iter(adam.values()))
example = first.ramps.sel(context=jumps.clearest_jump(first.jumps) or str(first.ramps.context[0].item()))
ramp_panels(
    example,
    {name: e.ramps.area.values for name, e in adam.items()},
    float(control.ramps.area.median()),
    claim.tests["bistability"]["loop_area"]["threshold"],
    colours,
);

# %% tags=["hide-input"]
nb.made_by([e.ramps for e in adam.values()])

# %% tags=["hide-input"]
for optimizer in titles:
    b = measured[optimizer]["bistability"]
    notebook.say(
        f"**{titles[optimizer]}**: {100 * b['same_branch_share']:.0f} % of the jumps end on the same side from both states (control: {100 * control_measured['bistability']['same_branch_share']:.0f} %); "
        f"the final order parameters differ by {b['branch_difference']:.3f} of the bound in the median. Rising and falling ramps end on the same side in "
        f"{100 * b['ramp_same_branch_share']:.0f} % of the contexts, and the median loop area is {b['loop_area']:.3f} (control: {control_measured['bistability']['loop_area']:.2f})."
    )

# %% [markdown]
# ## (iii) Does time diverge?
#
# Near a critical point everything slows down: the time to settle grows without limit. Here the candidate is the critical learning rate. If it were a critical point,
# the step $t^*$ at which the token overtakes would grow as $(\eta/\eta_c - 1)^{-\nu}$ just above it and be infinite below. If only the consumed learning rate $\eta t$ counts, then
# $\eta t^*$ is a constant, $t^*$ passes through $\eta_c$ as if nothing were there, and a token that fails in twenty steps overtakes in more.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-slowing", "caption": "Left: step at which the token overtakes, against the learning rate, under Adam; below the critical rate the budget is extended. Solid line: $\\eta t^*$ constant; dotted: a critical point with exponent one half. Right: exponent fitted just above the critical rate; solid line: the largest median allowed; dotted: one half. Every context of each model; one deterministic run per point."}, "image": {"alt": "Left, points on the line of constant product. Right, exponents near one tenth, far below one half.", "width": "100%"}}
slow = {name: slowing.slowing_down(e.times) for name, e in adam.items()}
crossing_panels({name: e.times for name, e in adam.items()}, {name: s.exponent for name, s in slow.items()}, claim.tests["slowing"]["exponent"]["threshold"], colours);

# %% tags=["hide-input"]
nb.made_by([examine.ids_of_examination(e.times) for e in adam.values()])

# %% tags=["hide-input"]
for optimizer, found in examined.items():
    s = measured[optimizer]["slowing"]
    slopes = np.concatenate([slowing.slowing_down(e.times).slope for e in found.values()])
    notebook.say(
        f"**{titles[optimizer]}**: {100 * s['crossing_share']:.0f} % of the contexts overtake at every rate, also at a quarter of the critical one. The exponent $\\nu$ has the median "
        f"{s['exponent']:.3f}; a pure $1/\\eta$ law gives {slowing.regular_exponent(first.times.multiple.values):.3f} on this range. Over a forty-fold range of rates $\\log t^*$ falls with the median slope {np.nanmedian(slopes):.3f} "
        f"in $\\log\\eta$, and $\\eta t^*$ changes by the median factor {s['spread']:.2f}."
    )

# %% [markdown]
# ## (iv) Is there a double well?
#
# A broken symmetry has an effective potential with two wells and a barrier between them. We look for the barrier where the jump passes: along the straight
# line of the jump's own update, from the state before it to the state after it and half as far again. We also walk the way in steps 32 times smaller and measure the
# force on the gap, $d\Delta/ds$ with $s$ the summed learning rate. At the edge of a well the force would vanish before the crossing.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-potential", "caption": "Left: cross-entropy along the update of the first jump of every context, scaled to its range (0: before, 1: after the jump); dashed: the double well. Right: force on the logit gap, relative to its first value, on the way to the crossing in steps 32 times smaller. Adam, full fine-tuning, one line per context, coloured by model; deterministic."}, "image": {"alt": "Left, losses that fall without a barrier, and the control with a hump. Right, forces that stay positive until the crossing.", "width": "100%"}}
if shown:
    with_jumps = {name: e for name, e in adam.items() if e.profile is not None}
    potential_panels(
        {name: e.profile for name, e in with_jumps.items()},
        control.profile,
        {name: potential.force(e.refined[max(e.refined)]) for name, e in with_jumps.items()},
        colours,
    )

# %% tags=["hide-input"]
nb.made_by([examine.ids_of_examination(e.profile, *e.refined.values()) for e in adam.values()])

# %% tags=["hide-input"]
for optimizer, found in examined.items():
    v = measured[optimizer]["potential"]
    barriers = np.concatenate([e.profile.barrier.values for e in found.values() if e.profile is not None] or [np.array([np.nan])])
    notebook.say(
        f"**{titles[optimizer]}**: {100 * v['single_well_share']:.0f} % of the lines have one minimum (control: {100 * control_measured['potential']['single_well_share']:.0f} %). The highest barrier on the way is "
        f"{barriers.max():.2g} nats (control: {float(control.profile.barrier.max()):.2g}). In the median {100 * v['convex_share']:.0f} % of a line is not concave. In small steps "
        f"{100 * v['smooth_crossing_share']:.0f} % overtake all the same, and the weakest force before the crossing is {v['weakest_force']:.2f} of the first one in the median."
    )

# %% [markdown]
# ## (v) Does the jump survive small steps?
#
# A true discontinuity does not care how finely one walks across it. So we divide the learning rate by $n$, take $n$ times as many steps, and measure the largest single-step
# change of $\Phi$ again. On a smooth path it shrinks as $1/n$: slope $-1$ in the double logarithmic plot. A discontinuity stays: slope 0.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-refinement", "caption": "Largest single-step change of the order parameter, over its bound, against the refinement: n times as many steps of 1/n the learning rate. First jumps of every context at the largest multiple; one line per context, coloured by model; full fine-tuning, deterministic. Grey: smooth (slope -1); dotted: discontinuous (slope 0)."}, "image": {"alt": "Lines that fall in proportion to the refinement, one panel per optimiser.", "width": "100%"}}
largest = {o: {name: refinement.largest_steps(e.refined) for name, e in found.items() if e.refined} for o, found in examined.items()}
refinement_panels(largest, colours, titles);

# %% tags=["hide-input"]
nb.made_by([examine.ids_of_examination(*e.refined.values()) for found in examined.values() for e in found.values()])

# %% tags=["hide-input"]
for optimizer, models_of in largest.items():
    slopes = np.concatenate([refinement.refinement_slopes(data).values for data in models_of.values()] or [np.array([np.nan])])
    r = measured[optimizer]["refinement"]
    notebook.say(
        f"**{titles[optimizer]}**: over the refinements 8, 16 and 32 the slope has the median {r['median_slope']:.3f} (from {slopes.min():.3f} to {slopes.max():.3f}, {len(slopes)} jumps)."
    )

# %% [markdown]
# ## (vi) Can it jump with frozen embeddings?
#
# The sharpest test needs no statistics. LoRA trains small matrices inside the network and leaves the readout matrix alone, bit for bit. Its geometry cannot move at all. If
# $\Phi$ jumps even so, then embeddings that rearrange are not what makes it jump.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-lora-jumps", "caption": "Order parameter over its bound under LoRA (Adam, rank 8, alpha 16, all linear layers but the readout), at one hundred times the critical rate of full fine-tuning; rings mark jumps. One curve per context and seed of the LoRA initialisation. The readout matrix is compared with its initial value bit for bit at every step."}, "image": {"alt": "One panel per model: under LoRA the order parameter of many contexts leaps, although the embeddings are frozen.", "width": "100%"}}
lora, lora_jumps = {o: {} for o in titles}, {o: {} for o in titles}
for optimizer in titles:
    for model in loaded:
        found = critical_rates(nb.store, model, nb.fitting_contexts(model), Recipe(optimizer=optimizer, steps=steps))
        fitting, rates = jumps.with_critical_rate(nb.fitting_contexts(model), found)
        recipe = Recipe(optimizer=optimizer, method="lora", steps=steps)
        lora[optimizer][model.name] = nb.store.run(model, fitting, rates[:, None] * lora_multiple, recipe, seeds=tuple(lora_seeds))
        lora_jumps[optimizer][model.name] = jumps.find_jumps(lora[optimizer][model.name])
lora_jump_panels(lora["adam"], lora_jumps["adam"], colours);

# %% tags=["hide-input"]
nb.made_by(lora["adam"])

# %% tags=["hide-input"]
for optimizer, runs in lora.items():
    frozen = frozen_readout.frozen_jumps(list(runs.values()), list(lora_jumps[optimizer].values()))
    nb.record(
        "C6",
        {"sentences_with_frozen_jumps": len(frozen.sentences), "steps_with_changed_readout": frozen.changed_steps},
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": min(ds.sizes["context"] for ds in runs.values()), "seeds": len(lora_seeds), "runs": frozen.runs},
        runs=[runs, searches],
        detail={"sentences": frozen.sentences, "contexts that jump by model and seed": {name: frozen_readout.contexts_by_seed(t, lora_seeds) for name, t in lora_jumps[optimizer].items()}},
    )
    counts = {name: frozen_readout.contexts_by_seed(t, lora_seeds) for name, t in lora_jumps[optimizer].items()}
    notebook.say(
        f"**LoRA with {titles[optimizer]}**, {frozen.runs} runs of {steps} steps: the readout differs from its initial value at {frozen.changed_steps} steps. Contexts that jump (one number per seed): "
        + "; ".join(f"{name} {', '.join(map(str, c))}" for name, c in counts.items())
        + f". Over all models, {len(frozen.sentences)} sentences jump with embeddings that are unchanged bit for bit."
    )

# %% [markdown]
# ## The board
#
# Every row is one criterion: what was measured, the threshold (grey line), and the side on which the criterion is met (shaded). The thresholds are in the
# ledger file, written before the runs. A test is passed when all its criteria are met.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-tests", "caption": "The criteria of the five tests under full fine-tuning: measured values for Adam (filled) and SGD (open), the threshold fixed beforehand (grey line), and the side that meets it (shaded). Each value is a median, quantile or share over all models and contexts, as the label says. Crosses: the double-well control, which has two branches and should fail bistability, slowing and potential; a cross that is missing is a quantity that does not exist there."}, "image": {"alt": "One row per criterion with its threshold and measured values.", "width": "100%"}}
criteria_board(scoreboard.criteria_of(claim), {titles[o]: measured[o] for o in titles}, control_measured);

# %% tags=["hide-input"]
nb.made_by(run_ids)

# %% tags=["hide-input"]
for optimizer, found in examined.items():
    verdicts = scoreboard.passed_tests(claim, measured[optimizer])
    nb.record(
        "C5",
        sum(verdicts.values()),
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": min(e.runs.sizes["context"] for e in found.values()), "jumps": sum(len(e.first) for e in found.values())},
        runs=[run_ids[optimizer], searches],
        detail={"passed": verdicts, "measured": measured[optimizer]},
    )
    notebook.say(
        f"**{titles[optimizer]}**: " + ", ".join(f"{test} {'passed' if ok else '**failed**'}" for test, ok in verdicts.items()) + f": {sum(verdicts.values())} of {len(verdicts)}."
    )
notebook.say(
    "**Double well (control)**: " + ", ".join(f"{test} {'passed' if ok else 'failed'}" for test, ok in scoreboard.passed_tests(claim, control_measured).items()) + "."
)
notebook.table(scoreboard.scoreboard(claim, {titles[o]: measured[o] for o in titles} | {"double well": control_measured}))

# %% tags=["hide-input"]
nb.made_by(run_ids)

# %% [markdown]
# ## What it means
#
# A jump that passes the tests is the same smooth descent seen through large steps. The softmax turns a gap that grows steadily into probabilities that flip
# quickly, and $\Phi$ inherits the flip. The embeddings are bystanders: under LoRA they do not move at all.
#
# ## What could be wrong
#
# Passing is evidence against a broken symmetry, not proof of its absence. "Just before the jump" keeps the optimiser's memory: for Adam the moments are carried
# over. The line along the jump is one direction out of very many; a barrier elsewhere would not be seen, but it would not be on the path either. Adam has
# a memory measured in steps, so for Adam a refined run is not quite the same dynamics in smaller steps. The exponent is fitted on a range that starts two percent above
# the critical rate, which is itself known to half a percent.
