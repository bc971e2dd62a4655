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
# # 23 · Speed
#
# **Question.** How fast are the fine-tunings of this book? How do they compare with what one would otherwise write, and
# with what the machine can do?
#
# ```{glue:md} answer_23
# :format: myst
# ```
#
# The sections below the first table show where its figures come from. They are those of the last `make bench`. The
# book shows them and does not measure again, because a time depends on what else the machine does.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # as in every notebook; the benchmarks choose their own models
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
results: str = "benchmarks/results/cpu.json"  # what 'make bench' wrote
card: float = 2.4e10  # bytes of memory of a GPU, of which the page says what it would hold

# %% tags=["hide-cell"]
import os

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

from benchmarks import report
from phantombook import notebook
from phantomlib.critical.rehearsal import REHEARSAL_STEPS
from phantombook.figures.palette import CORRECT, REFERENCE
from phantombook.figures.style import WIDTH, log_ticks, small_multiples

nb = notebook.start("23_speed")
source = os.path.relpath(results)  # what the tables and figures of this page are made from, in place of runs

# %%
measured = report.read_results(results) or {}  # by suite
targets = report.reached(measured)

# %% [markdown]
# ## Targets, set beforehand

# %% tags=["hide-input"]
if not measured:
    nb.say("> There are no figures yet (`{file}`). Run `make bench`, then build the book again.", file=results)
nb.table(targets, runs=source)

# %% tags=["hide-input"]
counts = targets.verdict.value_counts()
missing = int(counts.get("not measured", 0))
sentences = ["Of {targets} targets that were set beforehand, {reached} are reached and {missed} are not"]
sentences[0] += ", and {missing} were not measured." if missing else "."
values = {
    "reached": int(counts.get("reached", 0)),
    "targets": len(targets),
    "missed": int(counts.get("not reached", 0)),
    "missing": missing,
}
if targets.measured.get("adam-small", ""):
    sentences.append(
        "Advancing {together} replicas of a small model at once under Adam makes at least {speedup} times as many "
        "steps a second as a plain loop."
    )
    together = sorted(set(measured["throughput"]["rows"].replicas) & set(range(30, 41)))
    values |= {"speedup": targets.measured["adam-small"], "together": " or ".join(map(str, together))}
if "floor" in measured:
    shares = 100 * measured["floor"]["rows"]["share of floor"]
    sentences.append(
        "A step reaches {low:.0f} % to {high:.0f} % of the pace that the machine's measured peaks would allow."
    )
    values |= {"low": shares.min(), "high": shares.max()}
nb.answer(" ".join(sentences), **values)
REHEARSALS = 5  # of a diagnosis: full fine-tuning, LoRA, the margin loss; and two for what else moves
REASONS = {
    "anywhere": """*Below the plain loop.* One replica runs the plain model. Both do the same work, batching gains
        nothing, and a ratio of 1 is the most to be expected. Copying the tree of modules and labelling the result take
        a few milliseconds, spread over the few steps of a run. The table of everything that was measured shows how far
        single rounds scatter. Sweeps do not run single replicas.""",
    "recording": """*Recording.* A trainable readout changes at every step, and so do all overlaps and the drift. That
        takes four readings of the readout matrix, one writing, and a dozen short operations. The table “What recording
        costs” shows the floor, the time of one reading. Under SGD, whose updates have rank one, another code path could
        save half of the readings, for this case alone. With less recorded, Φ would not be exact at every step.""",
    "size": """*At the paper's size, against a loop that records nothing.* One replica gains nothing from batching. It
        bears the copying of the model alone, and it records everything, which the loop does not. In the rows with more
        replicas these share the copying, as in a search.""",
    "size-recording": """*At the paper's size, against a loop that records the same.* One replica gains nothing from
        batching, and bears the copying of the model alone. Under Adam the loop has torch's fused
        optimiser.""",
    "diagnosis": """*A diagnosis.* It rehearses the fine-tune in four steps, by full fine-tuning, by LoRA and with the
        margin loss, and searches the critical rate of each. Then it measures what else moves. The section “At the
        paper's size” compares it with as many steps of the fused loop, recording nothing, and says how long so many
        rehearsals take at least.""",
    "book": """*The whole book.* The table “The whole book” sums the time of fine-tuning alone over the processes. The
        table “How near to the machine” gives its share of the floor. The predictions need third derivatives, the
        sharpness needs Hessian-vector products, and the pages are built in one process. Fewer runs would be faster, but
        the quantities of the claims were declared before and stay.""",
}
missed = targets.index[targets.verdict == "not reached"]
if len(missed):
    nb.say("**Why a target is missed.** The table “How near to the machine” shows the floor.")
    reasons = [REASONS.get(name, targets.target[name] + ": see the sections below.") for name in missed]
    nb.say("\n".join(f"- {' '.join(reason.split())}" for reason in reasons))

# %% tags=["hide-input"]
hardware = {
    name: suite["machine"]
    | {"minutes": f"{suite['seconds'] / 60:.1f}"}
    | ({"rounds": str(suite["rounds"])} if "rounds" in suite else {})
    for name, suite in measured.items()
}
if hardware:
    machines = pd.DataFrame.from_dict(hardware, orient="index").rename_axis("suite").reset_index()
    nb.table(machines, fold="The machine that every suite ran on", runs=source)

# %% [markdown]
# ## How it was measured
#
# - **Engine**: `phantomlib.engine.finetune`, everything recorded. Replicas sit on the batch axis and share one
#   forward and backward pass; each matrix is updated inside the backward pass from the two factors of its gradient.
# - **Plain loop**: one model after the other, `torch.optim` with its defaults, logits at the last position only. The
#   same code records the same quantities, and nothing is read back before the end.
# - **Fused loop**: the same with `fused=True`, which is not torch's default on a CPU.
# - **Trainer**: the Hugging Face `Trainer`, recording nothing.
#
# All use one thread. The contenders take turns, and a ratio is formed within a round. A cell gives the median of the
# rounds with the least and the greatest; a cell with one value is of one round. One round before them is not counted;
# it includes the engine's self-test. Runs have 20 steps (4 above 20 M parameters), and include copying the model.

# %% [markdown]
# ## Replica-steps per second
#
# Panel (a) shows the speed of full fine-tuning. Panel (b) shows why many replicas are advanced at a time: with few
# of them the machine waits for Python.

# %% tags=["remove-cell"]
nb.caption(
    "fig-speed",
    """(a) Replica-steps per second of the engine, divided by those of a plain loop, against the number of
            replicas; median of the rounds, bands from the least to the greatest; grey line: as fast as the plain loop.
            (b) Time per replica-step against the number of replicas advanced together, relative to the best;
            median of the rounds, without bands. Logarithmic axes across. Full fine-tuning, Adam (solid) and SGD
            (dotted), one colour per model.""",
    alt="""The lines of (a) start near one, and those of the zoo rise to between two and six. All lines of (b) fall and
        level off.""",
)

# %%
if {"throughput", "chunks"} <= measured.keys():
    rows = measured["throughput"]["rows"]
    full = rows[rows["method"] == "full"].copy()
    full["times"], full["low"], full["high"] = zip(*full["against plain loop"])
    cost = measured["chunks"]["rows"].copy()
    cost["relative"] = cost["ms per replica-step"].map(report.median)
    by_case = cost.groupby(["model", "optimizer"])
    cost["relative"] /= by_case["relative"].transform("min")


# %% tags=["hide-input"]
def lines(axes, table, x, y, named=(), band=()):
    """A line for each model and optimiser, Adam solid and SGD dotted; ``named`` models are in another legend."""
    for (model, optimizer), rows in table.groupby(["model", "optimizer"], sort=False):
        label = model if optimizer == "adam" and model not in named else None
        style = {"color": shades[model], "label": label}
        axes.plot(rows[x], rows[y], "-" if optimizer == "adam" else ":", marker="o", markersize=3, **style)
        if band:
            axes.fill_between(rows[x], *(rows[end] for end in band), color=shades[model], alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")


if {"throughput", "chunks"} <= measured.keys():
    names = list(dict.fromkeys([*full["model"], *cost["model"]]))
    shades = dict(zip(names, sns.color_palette("colorblind", len(names))))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.0), layout="constrained")
    left.axhline(1, color=REFERENCE, linewidth=1)
    lines(left, full, "replicas", "times", band=("low", "high"))
    lines(right, cost, "chunk", "relative", named=set(full["model"]))
    left.set(xlabel="replicas", ylabel="speed (plain loop = 1)", title="Speed", xticks=[1, 8, 32, 128])
    right.set(xlabel="replicas advanced together", ylabel="time per replica-step (least = 1)", title="Chunks")
    right.set_xticks([1, 4, 16, 64])
    nb.figure(figure, "fig-speed", runs=source)

# %% [markdown]
# The table gives the same ratio to the plain loop (medians), by the number of replicas.

# %% tags=["hide-input"]
if "throughput" in measured:
    rows = measured["throughput"]["rows"].assign(times=lambda table: table["against plain loop"].map(report.median))
    by = {"index": ["model", "method", "optimizer"], "columns": "replicas", "values": "times"}
    times = rows.pivot_table(**by, sort=False).sort_index(axis=1)
    times = times.rename(columns=lambda count: f"{count} replica" + "s" * (count != 1))
    nb.table(times.reset_index(), digits=2, top=10, runs=source)
    contenders = ["engine (1/s)", "against plain loop", "against fused loop", "against Trainer"]
    everything = rows[["model", "parameters", "method", "optimizer", "replicas", *contenders]]
    nb.table(
        report.for_people(everything),
        fold="Everything that was measured, with the least and the greatest of the rounds",
        runs=source,
    )

# %% [markdown]
# ## Time to a critical learning rate
#
# Each search covers ten contexts to a bracket of 0.5 %. The dense grid has that spacing over two decades around the
# true value; we run one of its points for every context and multiply the time. Bisection starts from the same two
# decades and is run in full. Both use the plain loop.

# %% tags=["hide-input"]
if "search" in measured:
    found = measured["search"]["rows"]
    told = ["contexts", "bracket", "converged", "same rate as bisection", "grid points", "halvings"]
    nb.table(report.for_people(found.drop(columns=told)), top=10, runs=source)
    nb.say(
        "For a context the grid has {points} points, and bisection halves its bracket {halvings:.0f} times. "
        "The search closed {closed} of {brackets} brackets, and agrees with bisection in {same}.",
        points=int(found["grid points"].median()),
        halvings=found["halvings"].mean(),
        closed=int(found["converged"].sum()),
        brackets=int(found["contexts"].sum()),
        same=int(found["same rate as bisection"].sum()),
    )

# %% tags=["hide-input"]
if "predictors" in measured:
    predicted = measured["predictors"]["rows"].drop(columns="contexts")
    of_search = {
        kind: 1 / predicted[f"{kind}, times faster"].map(report.median) for kind in ("velocity", "all predictors")
    }
    nb.say(
        "A prediction at step 0 needs no fine-tuning. The velocity alone costs {cheap:.0f} % to {dear:.0f} % of a "
        "search. All predictors together, with their third derivatives, take {least:.1f} to {most:.1f} times as long "
        "as a search.",
        cheap=100 * of_search["velocity"].min(),
        dear=100 * of_search["velocity"].max(),
        least=of_search["all predictors"].min(),
        most=of_search["all predictors"].max(),
    )
    nb.table(report.for_people(predicted), top=10, runs=source)

# %% [markdown]
# ## What recording costs
#
# We compare a step that records everything with one that keeps the logit gap only, for 40 replicas. The two kinds
# take turns within a run; the table gives medians over its steps. It also gives the time of reading the readout
# matrices $E$ of all replicas once, as a share of the same step. With a trainable readout the overlaps change at
# every step, which takes a few passes over that matrix. Under LoRA they are constant.

# %% tags=["hide-input"]
if "recording" in measured:
    table = measured["recording"]["rows"].copy()
    for column in table.columns.intersection(["overhead", "one reading of E"]):
        table[column] = table[column].map(lambda cell: "{:.1f} % ({:.1f} to {:.1f})".format(*[100 * x for x in cell]))
    nb.table(table.rename(columns={"one reading of E": "one reading of $E$"}), top=10, runs=source)
if {"recording", "throughput"} <= measured.keys():
    sizes = measured["throughput"]["rows"].set_index("model")["parameters"].to_dict()
    rows = measured["recording"]["rows"].query("method == 'full'")
    overheads = 100 * rows["overhead"].map(report.median).groupby(rows["model"].map(sizes)).mean()
    if len(overheads) > 1:
        nb.say(
            "Under full fine-tuning the overhead is {small:.0f} % in the smallest of these models and {large:.0f} % in "
            "the largest (mean of both optimisers).",
            small=overheads.iloc[0],
            large=overheads.iloc[-1],
        )

# %% [markdown]
# ## At the paper's size
#
# These are two models with random weights, of the sizes and vocabularies of the two real models in [chapter
# 13](13_real_blind.ipynb). The table times whole runs on one core, copying the model included. Under Adam the loops
# use torch's fused optimiser. The engine records everything in all rows. A search makes runs of 30 steps unless told
# otherwise. The longer a run, the less its set-up counts.

# %% tags=["hide-input"]
if "size" in measured:
    nb.table(report.for_people(measured["size"]["rows"].drop(columns="parameters")), top=10, runs=source)

# %% [markdown]
# The next table times a [diagnosis](../your-model.md) of one context, once the model is in memory. A diagnosis needs
# a number of backward passes. Beside it stands the time that as many steps of the fused loop, recording nothing,
# would take: a yardstick, not a bound.

# %% tags=["hide-input"]
if "diagnosis" in measured:
    rows = measured["diagnosis"]["rows"].set_index("model")
    nb.table(report.for_people(rows.reset_index()), runs=source)
    least = rows["seconds"].map(report.median) / rows["backward passes"] * REHEARSALS * REHEARSAL_STEPS
    limit = report.TARGETS["diagnosis"][2]
    nb.say(
        "It rehearses at least {count} times: three searches, and two trainings that measure what else moves. If every "
        "search were right at its first guess, these would be {passes} passes. At the measured pace they take {times}. "
        "{beyond} {limit:g} s are out of reach without rehearsing less.",
        count=REHEARSALS,
        passes=REHEARSALS * REHEARSAL_STEPS,
        times=", ".join(f"{s:.0f} s for {name}" for name, s in least.items()),
        beyond="For " + " and ".join(least.index[least > limit]) if (least > limit).any() else "For none of them",
        limit=limit,
    )

# %% tags=["hide-input"]
if "scan" in measured:
    nb.say(
        "A [scan](../data-set.md) of 64 rows of 16 tokens, once the model is in memory, and one epoch of a fused loop "
        "over the same rows, copying the model included. The last column is their ratio."
    )
    nb.table(report.for_people(measured["scan"]["rows"].drop(columns="parameters")), runs=source)

# %% tags=["hide-input"]
if "memory" in measured:
    nb.say(
        "Peak memory of what the chapters ask for, each in a process of its own. *Beyond it* is the peak without the "
        "model, in units of the model's own size."
    )
    nb.table(report.for_people(measured["memory"]["rows"]), top=10, runs=source)
    needed = report.at_size(measured, 405_334_016)  # parameters of pythia-410m
    most = needed.loc[needed["GiB"].idxmax()]
    nb.say(
        "Scaled in proportion to 410 million parameters, “{task}” needs the most memory, {GiB:.1f} GiB. A GPU with "
        "{card:.0f} GB {verdict} it.",
        most,
        card=card / 1e9,
        verdict="holds" if most["GiB"] * 2**30 <= card else "does not hold",
    )
if not results.endswith("cuda.json"):
    nb.say("**Figures measured on a GPU are missing.** No GPU was at hand when this page was made.")

# %% [markdown]
# ## How near to the machine
#
# We count the work of a step: the operations of forward pass, backward pass and update, and the bytes of weights,
# gradients and moments that must be moved. We measure the peaks with a large matrix product and a large addition, on
# one thread. The floor is the longer of the two times. Activations are left out. A product with a sequence of ten
# tokens cannot reach the peak of a large one, so a share of one half is good.

# %% tags=["hide-input"]
if "floor" in measured:
    rows = measured["floor"]["rows"]
    same = rows["bound by"].nunique() == 1
    nb.say(
        "The floor is a share of {low:.2f} to {high:.2f} of a step's time, {middle:.2f} in the median. "
        + ("All of them are bound by {bound}." if same else "The last column says what bounds a step."),
        low=rows["share of floor"].min(),
        high=rows["share of floor"].max(),
        middle=rows["share of floor"].median(),
        bound=rows["bound by"].iloc[0],
    )
    nb.table(
        report.for_people(rows.drop(columns=["replicas", "bound by"] if same else "replicas")), top=10, runs=source
    )

# %% [markdown]
# ## Growth

# %% tags=["remove-cell"]
nb.caption(
    "fig-growth",
    """Time of a sweep against the number of replicas, of steps, of parameters and of tokens in the
            vocabulary, everything else fixed; both axes logarithmic. Adam, full fine-tuning, one measurement per
            point, no repetition. Title: slope over all points in logarithms; 1 is linear. Where a curve steepens, the
            slope at the right end is larger.""",
    alt="In all four panels the time rises with the number.",
)

# %%
if "growth" in measured:
    growth = measured["growth"]["rows"].copy()
    growth["time"], growth["low"], growth["high"] = zip(*growth["seconds"])
    slopes = {of: report.exponent(growth, of) for of in growth["of"].unique()}

# %% tags=["hide-input"]
if "growth" in measured:
    figure, panels = small_multiples(len(slopes), columns=2, height=2.2, sharex=False, sharey=False)
    for axes, (of, slope) in zip(panels, slopes.items()):
        rows = growth[growth["of"] == of]
        axes.plot(rows["value"], rows["time"], color=CORRECT, marker="o", markersize=3)
        axes.fill_between(rows["value"], rows["low"], rows["high"], color=CORRECT, alpha=0.15, linewidth=0)
        axes.set(xscale="log", yscale="log", xlabel=of, ylabel="time (s)", title=f"exponent {slope:.2f}")
        log_ticks(axes.xaxis, axes.yaxis)
    nb.figure(figure, "fig-growth", runs=source, data=growth.drop(columns="seconds"))

# %% [markdown]
# ## The whole book
#
# The table shows the book as it was when this suite was measured. *Cold* means an empty store, *warm* a store with
# all runs. Several notebooks run at a time, so their times do not add up to that of the whole.

# %% tags=["hide-input"]
if "book" in measured:
    rows = measured["book"]["rows"]
    nb.say(
        "It had {n} notebooks then, up to “{last}”.",
        n=int(rows["notebook"].str.match(r"\d").sum()),
        last=rows["notebook"].iloc[-1],
    )
    nb.table(rows, digits=1, top=10, runs=source)

# %% [markdown]
# ## What could be wrong
#
# The machine may be shared with others, so it is slower at some times than at others. Batching would make the plain
# loop faster; that is what the engine does. The Trainer does more than fine-tune; it is here because many would use
# it. On a GPU everything is different and other figures are needed: `make bench DEVICE=cuda` writes them.

# %% tags=["hide-input"]
if "throughput" in measured:
    scatter = measured["throughput"]["rows"][["engine (1/s)", "against plain loop"]]
    scatter = 100 * scatter.map(lambda cell: cell[2] / cell[1] - 1).median()
    nb.say(
        "In the median over the measurements of the section “Replica-steps per second”, the quickest round made "
        "{pace:.0f} % more steps a second than the slowest. The greatest ratio to the plain loop was {ratio:.0f} % "
        "above the least.",
        pace=scatter["engine (1/s)"],
        ratio=scatter["against plain loop"],
    )
