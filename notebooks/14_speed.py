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
# # Speed
#
# **Question.** How fast are the fine-tunings of this book, compared with what one would otherwise write, and how near to what the machine can do?
#
# **Answer.** The first table holds targets that were set beforehand and what was measured. The sections after it show where the figures come from. They are those of the last
# `make bench`: the book shows them and does not measure again, since a time depends on what else the machine does.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id; the benchmarks choose their own
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
results: str = "benchmarks/results/cpu.json"  # what 'make bench' wrote
runs: int = 100000  # of the plan below, in all
peak_flops: float = 6.7e13  # of the planned GPU, FLOP/s in float32 (data sheet of an H200)
bandwidth: float = 4.8e12  # of its memory, bytes/s
memory: float = 1.41e11  # bytes
price: float = 4.0  # of one hour, in any currency

# %% tags=["hide-cell"]
import pandas as pd
import seaborn as sns

from benchmarks import report
from phantomlib.book import notebook
from phantomlib.figures.speed import growth_panels, speed_panels

nb = notebook.start("14_speed", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
measured = report.read_results(results)
if measured is None:
    notebook.say(f"> There are no figures yet (`{results}`). Run `make bench`, then build the book again.")
measured = measured or {}

# %% tags=["hide-input"]
targets = report.reached(measured)
notebook.table(targets)

# %% tags=["hide-input"]
nb.made_by()

# %% tags=["hide-input"]
REASONS = {
    "anywhere": "*Below the plain loop.* One replica runs the plain model, so both do the same work, batching gains nothing, and 1 is the floor. Copying the tree of modules and labelling the result take "
    "a few milliseconds, spread over twenty steps only; the rest is the scatter of the measurement. Sweeps do not run single replicas.",
    "recording": "*Recording.* A trainable readout changes at every step, and so do all overlaps and the drift. That takes four readings of the readout matrix and one "
    "writing, and a dozen short operations on what they give; the table “What recording costs” shows the floor, the time of one reading. Half of the readings could be saved under SGD, whose updates have rank one, by another code path for this case "
    "alone; with less recorded, Φ would not be exact at every step.",
    "book": "*The whole book.* Fine-tuning alone takes the time that the table “The whole book” sums over the processes, at the share of the floor that the table “How near to the "
    "machine” gives. The predictions need third derivatives, the sharpness Hessian-vector products, and the pages are built in one process. Fewer runs would be faster; the quantities of the claims "
    "were declared before, and stay. On a machine that others use too the minutes vary from hour to hour; the ratios above vary less.",
}
missed = targets.index[targets.verdict == "not reached"]
if len(missed):
    notebook.say("**Why a target is missed.** The table “How near to the machine” shows the floor.")
    notebook.say("\n".join(f"- {REASONS.get(name, targets.target[name] + ': see the sections below.')}" for name in missed))

# %% tags=["hide-input"]
hardware = {name: suite["machine"] | {"minutes": f"{suite['seconds'] / 60:.1f}"} for name, suite in measured.items()}
if hardware:
    notebook.say("Every suite names the machine it ran on.")
    notebook.table(pd.DataFrame(hardware).T.rename_axis("suite").reset_index())

# %% [markdown]
# ## How it was measured
#
# - **Engine**: `phantomlib.measure.finetune`, everything recorded. Replicas sit on the batch axis and share one forward and backward pass; each matrix is updated inside the backward pass from the two
#   factors of its gradient.
# - **Plain loop**: one model after the other, `torch.optim` with its defaults, logits at the last position only, the same quantities recorded by the same code, nothing read back before the end.
# - **Fused loop**: the same with `fused=True`, which is not torch's default on a CPU.
# - **Trainer**: the Hugging Face `Trainer`, recording nothing.
#
# All use one thread. The contenders take turns; a ratio is formed within a round, and a cell gives the median of the rounds with the least and the greatest. Runs have 20 steps (4 above 20 M
# parameters), and include copying the model and, once in a process, the self-test of the engine.

# %% [markdown]
# ## Replica-steps per second
#
# Left, full fine-tuning. Right, why replicas are advanced many at a time: few of them leave the machine waiting for Python.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-speed", "caption": "Left: how many times more replica-steps per second the engine makes than a plain loop, against the number of replicas. Right: time per replica-step against the number of replicas advanced together, relative to the best. Full fine-tuning, Adam (solid) and SGD (dotted), one colour per model; median of the rounds, bands from the least to the greatest."}, "image": {"alt": "Two panels of lines against the number of replicas.", "width": "100%"}}
if {"throughput", "chunks"} <= measured.keys():
    rows = measured["throughput"]["rows"]
    full = rows[rows["method"] == "full"].copy()
    full["times"], full["low"], full["high"] = zip(*full["against plain loop"])
    cost = measured["chunks"]["rows"].copy()
    cost["relative"] = cost["ms per replica-step"].map(report.median)
    cost["relative"] /= cost.groupby(["model", "optimizer"])["relative"].transform("min")
    names = list(dict.fromkeys([*full["model"], *cost["model"]]))
    speed_panels(full, cost, dict(zip(names, sns.color_palette("colorblind", len(names)))));

# %% [markdown]
# How many times more replica-steps than the plain loop (medians), by the number of replicas:

# %% tags=["hide-input"]
if "throughput" in measured:
    rows = measured["throughput"]["rows"].assign(times=lambda table: table["against plain loop"].map(report.median))
    times = rows.pivot_table(index=["model", "method", "optimizer"], columns="replicas", values="times", sort=False).sort_index(axis=1)
    notebook.table(times.map(lambda value: "" if pd.isna(value) else f"{value:.2f}").rename(columns="{} replicas".format).reset_index())

# %% tags=["hide-input"]
if "throughput" in measured:
    columns = ["model", "parameters", "method", "optimizer", "replicas", "engine (1/s)", "against plain loop", "against fused loop", "against Trainer"]
    notebook.table(report.for_people(measured["throughput"]["rows"][columns]), fold="Everything that was measured, with the least and the greatest of the rounds")

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## Time to a critical learning rate
#
# Ten contexts, a bracket of 0.5 %. The dense grid has that spacing over two decades around the true value; one of its points is run for every context and the time multiplied. Bisection
# starts from the same two decades and is run in full. Both use the plain loop.

# %% tags=["hide-input"]
if "search" in measured:
    found = measured["search"]["rows"]
    notebook.table(report.for_people(found.drop(columns=["contexts", "bracket"])))
    notebook.say(
        f"The search closed {int(found['converged'].sum())} of {int(found['contexts'].sum())} brackets, and agrees with bisection in {int(found['same rate as bisection'].sum())}."
    )

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# A prediction at step 0 needs no fine-tuning at all:

# %% tags=["hide-input"]
if "predictors" in measured:
    notebook.table(report.for_people(measured["predictors"]["rows"].drop(columns="contexts")))

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## What recording costs
#
# A step that records everything against one that keeps the logit gap only, 40 replicas. The two kinds take turns within a run; medians over its steps. Beside it, as a share of the same step, the time of reading the
# readout matrices $E$ of all replicas once. With a trainable readout the overlaps change at every step, which takes a few passes over that matrix;
# the smaller the model, the larger its share. Under LoRA they are constant.

# %% tags=["hide-input"]
if "recording" in measured:
    table = measured["recording"]["rows"].copy()
    for column in table.columns.intersection(["overhead", "one reading of E"]):
        table[column] = table[column].map(lambda cell: "{:.1f} % ({:.1f} to {:.1f})".format(*[100 * x for x in cell]))
    notebook.table(table)

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## How near to the machine
#
# The work of a step is counted: operations of forward pass, backward pass and update, and bytes of weights, gradients and moments that must be moved. The peaks are measured: a large matrix
# product and a large addition, one thread. The floor is the longer of the two times. Activations are left out, and a product with a sequence of ten tokens cannot reach the peak of a large one, so
# a share of one half is good.

# %% tags=["hide-input"]
if "floor" in measured:
    notebook.table(report.for_people(measured["floor"]["rows"]))

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## Growth

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-growth", "caption": "Time of a sweep against the number of replicas, of steps, of parameters and of tokens in the vocabulary, everything else fixed (Adam, full fine-tuning; one run each). The exponent is the slope in logarithms; 1 is linear."}, "image": {"alt": "Four straight lines in double logarithmic panels.", "width": "100%"}}
if "growth" in measured:
    growth = measured["growth"]["rows"].copy()
    growth["time"], growth["low"], growth["high"] = zip(*growth["seconds"])
    growth_panels(growth, {of: report.exponent(growth, of) for of in dict.fromkeys(growth["of"])});

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## The whole book

# %% tags=["hide-input"]
if "book" in measured:
    notebook.table(measured["book"]["rows"], digits=1)

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## A plan for many runs
#
# What would a hundred thousand runs of 20 steps take, shared evenly among the Pythia models? The floor of a step follows from the counts above and the data sheet of a GPU. The
# engine is taken to reach the same share of it as the largest model measured here; on another machine that is a guess. See [On a cluster](../cluster) for how to run it.

# %% tags=["hide-input"]
if "floor" in measured:
    planned = report.plan(measured, runs, steps=20, tokens=12, flops=peak_flops, bandwidth=bandwidth, memory=memory, price=price)
    notebook.table(planned, digits=1)
    notebook.say(f"In all {planned['GPU hours'].sum():.0f} GPU hours, at {price:g} an hour {planned['cost'].sum():.0f}.")

# %% tags=["hide-input"]
nb.made_by()

# %% [markdown]
# ## What could be wrong
#
# The machine may be shared with others, so that medians move by a tenth or more between days; ratios move less. The plain loop could be made faster by batching it, which is what the engine does. The
# Trainer does more than fine-tune: it is here because it is what many would use. On a GPU everything is different, and other figures are needed: `make bench DEVICE=cuda` writes them.
