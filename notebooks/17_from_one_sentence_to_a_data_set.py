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
#     minutes: 2
# ---

# %% [markdown]
# # 17 · From one sentence to a data set
#
# **Question.** Fine-tuning uses a data set, not one sentence. After three epochs, which targets will be learnt, and
# which will stay wrong while their loss falls? Can one tell before training?
#
# ```{glue:md} answer_17
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = [
    "zoo:gpt2-s",
    "zoo:neox-s",
]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # every chapter has it; here the rows are drawn from the zoo's language instead
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # added to the seed of every order of the rows
prompts: int = 20  # rows with one target each
sentences: int = 6  # rows that are trained on as a whole
batch_size: int = 8  # rows of a mini-batch
epochs: int = 3  # passes through the data
steps: int = 20  # passes where the whole data set is one batch
real: str = "pretrained:smollm2-135m"  # the real model that is trained on WordNet's sentences
published: str = "results"  # folder of published runs of it; '' trains it here

# %% tags=["hide-cell"]
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import gmean, spearmanr

from phantombook import notebook, published_runs
from phantombook.figures.palette import FAMILIES, REFERENCE, model_colours
from phantombook.figures.style import WIDTH, dots_and_means, legend_above, log_ticks
from phantombook.ledger.claims import threshold
from phantombook.published import copy_into
from phantomlib.contexts import load_contexts
from phantomlib.critical.scaling import balanced_accuracy, coefficient_of_variation
from phantomlib.dataset.rows import tokenise
from phantomlib.dataset.runs import train_once
from phantomlib.dataset.scan import FACTOR, NUMBERS, scan
from phantomlib.engine.recipe import Recipe
from zoo.language import Language, join_words

nb = notebook.start("17_from_one_sentence_to_a_data_set")
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)
all_runs = []  # the ids of all runs of this chapter

# %% [markdown]
# ## Targets, and what a scan knows of them
#
# A *target* is a token $c_i$ that the training loss asks for. It is *outranked* if the model ranks another token
# $k_i$ first. One sentence has one [kinematic number](../definitions.md#kinematic-number). A data set has one for each
# target,
#
# $$N_i = \frac{S\, v_i}{|\Delta_i|}, \qquad S = \sum_t \eta_t, \qquad v_i = \nabla\Delta_i \cdot u .$$
#
# The budget $S$ is the sum of the learning rates of all updates. The velocity $v_i$ says how fast the gap of target $i$
# closes while *all* rows are trained. One Jacobian-vector product gives all velocities. The direction $u$ is that of
# the first update, with one change. Adam divides by the root of its second moment, and the second moment contains the
# noise of the mini-batches. So, with the gradients $g_b$ of the mini-batches,
#
# $$u = -\frac{\langle g_b\rangle}{\sqrt{\langle g_b^2\rangle} + \epsilon} .$$
#
# A target is predicted to be learnt if $N_i$ exceeds a constant $N_c$. A *scan* computes all of this in one pass over
# the data, before training. `phantom scan` does it for [your own data](../data-set.md).
#
# ## Data and training
#
# The rows are sentences of the zoo's language, drawn by seed. There are two kinds. *Prompts* are sentences that are cut
# before their rarest word; the loss is that of this word. *Sentences* are trained on as a whole; the loss is that of
# every token but the first.


# %%
def draw(count: int, seed: int) -> tuple[list[list[str]], Counter]:
    """Different sentences of the zoo's language, and how often each word occurs."""
    drawn = Language().sample(4000, seed)
    different = {join_words(words): words for words in drawn}
    return list(different.values())[:count], Counter(
        w for words in drawn for w in words
    )


def cut_sentences(count: int, seed: int) -> list[dict]:
    rows, (chosen, often) = [], draw(count, seed)
    for words in chosen:
        cut = min(range(1, len(words)), key=lambda i: often[words[i]])
        before, through = join_words(words[:cut]), join_words(words[: cut + 1])
        rows.append({"prompt": before, "completion": through[len(before) :]})
    return rows


def whole_sentences(count: int, seed: int) -> list[dict]:
    return [{"text": join_words(words)} for words in draw(count, seed)[0]]


CALIBRATION = {
    "prompts": cut_sentences(prompts, seed=101),
    "sentences": whole_sentences(sentences, seed=102),
}
TEST = {
    "prompts": cut_sentences(prompts, seed=301),
    "sentences": whole_sentences(sentences, seed=302),
}

# %% [markdown]
# Each model is trained with `torch.optim` in mini-batches, at five learning rates around a *middle rate*. At the middle
# rate half of the model's outranked targets have $N \ge 1$. So it is known before training. We look only at the end of
# training: a target is learnt if it is ahead then. Between two learning rates we interpolate the final gap linearly.
# The rate at which it changes sign is the target's measured [critical
# rate](../definitions.md#critical-learning-rate). The value of $N$ at that rate is the target's $N_c$.

# %%
MULTIPLES = np.array([0.25, 0.5, 1, 2, 4])  # learning rates in units of the middle rate


def first_ahead(x, gap):
    """Where a gap (x, target) first is positive; 0 below the range, inf above."""
    first = (gap > 0).argmax(0)
    left, right = np.maximum(first - 1, 0), np.maximum(first, 1)
    low, high = (np.take_along_axis(gap, i[None], 0)[0] for i in (left, right))
    crossing = x[left] + (x[right] - x[left]) * low / (low - high)
    return np.where((gap <= 0).all(0), np.inf, np.where(gap[0] > 0, 0.0, crossing))


def scanned(model, records, recipe=Recipe(), size=batch_size):
    rows, _ = tokenise(enumerate(records, 1), model.tokenizer)
    return rows, replace(scan(model, rows, recipe, batch_size=size), number=1.0)


def trained(
    model, records, orders, recipe=Recipe(), size=batch_size, rates=None, **training
):
    """A row for each outranked target and order."""
    training = {"epochs": epochs, "schedule": "constant"} | training
    rows, found = scanned(model, records, recipe, size)
    middle = found.learning_rate_for(0.5, **training)
    names = MULTIPLES if rates is None else rates
    rates = middle * MULTIPLES if rates is None else np.array(rates)
    multiples, seeds = rates / middle, tuple(nb.seed + order for order in orders)
    options = {"seeds": seeds, "batch_size": size} | training
    runs = train_once(nb.store, model, rows, found, rates, recipe, **options)
    all_runs.append(runs.attrs["run_id"])
    targets = found.at(middle, **training).assign(model=model.name, middle=middle)
    table = []
    for i, order in enumerate(orders):
        one = runs.isel(seed=i)
        gap, loss = one.gap[:, -1].values, one.cross_entropy.values  # (rate, target)
        ends = {f"gap at {m:g}": gap[i] for i, m in enumerate(names)}
        ends |= {
            f"loss falls at {m:g}": (loss[:, -1] < loss[:, 0])[i]
            for i, m in enumerate(names)
        }
        table.append(
            targets.assign(order=order, critical=first_ahead(multiples, gap), **ends)
        )
    return kept(pd.concat(table))


def kept(table):
    """The outranked targets with N_c, and whether a model's N_c is taken from them."""
    table = table[table.gap <= 0]
    fair = (table.ceiling > 0) & (table.velocity > 0) & table.number.between(0.5, 2)
    return table.assign(critical_number=table.number * table.critical, fair=fair)


def typical_number(table) -> float:
    """N_c of a model: the median over the sample."""
    return table.critical_number[table.fair].median()


# %% [markdown]
# With the whole data set as one batch, one run at four times the middle rate is enough. Its budget $S$ grows step by
# step and passes every budget up to four times that of the middle rate.


# %%
def one_batch(model, records, optimizer="adam"):
    """A row for each outranked target, as above."""
    recipe, size = Recipe(optimizer=optimizer), len(records)
    rows, found = scanned(model, records, recipe, size)
    middle = found.learning_rate_for(0.5, steps)
    training = {"epochs": steps, "batch_size": size}
    runs = train_once(nb.store, model, rows, found, [4 * middle], recipe, **training)
    all_runs.append(runs.attrs["run_id"])
    spent = 4 * np.arange(steps + 1) / steps  # in units of the middle rate's budget
    critical = first_ahead(spent, runs.gap[0, 0].values)
    targets = found.at(middle, steps).assign(model=model.name, middle=middle, order=0)
    return kept(targets.assign(critical=critical))


# %% [markdown]
# ## Calibration
#
# A scan cannot know the constant $N_c$, nor how far single targets lie from it. Both are calibrated. We wrote down the
# rule before these runs:
#
# - data and orders are those of the calibration, and no others;
# - the sample has the outranked targets whose gap closes at first, which no other row contradicts, and for which $N$
#   at the middle rate is between 1/2 and 2;
# - $N_c$ of a model is the median over its sample; a target that never crosses counts as above the median, and one that
#   is always ahead as below;
# - the constant is the geometric mean of $N_c$ over the models; for Adam in mini-batches it is taken over both kinds of
#   data too;
# - SGD has one constant, measured in one batch: SGD has no second moment, so mini-batches have the same first update;
# - the interval goes from the constant divided by a factor to the constant times it; it holds nine tenths of the sample
#   of all models.
#
# We changed two things after a first try of the calibration, and before any run on test data. First, prompts had been
# cut at random, mostly before words that the models knew already. Second, SGD had a constant for mini-batches. One
# model did not define it, because its training was unstable at twice the middle rate.


# %%
def measured_constants(tables: list) -> float:
    return gmean(
        [typical_number(of_model) for t in tables for _, of_model in t.groupby("model")]
    )


def of_all(study, *arguments, **options):
    return pd.concat([study(model, *arguments, **options) for model in loaded])


calibrated = {
    kind: of_all(trained, records, [1]) for kind, records in CALIBRATION.items()
}
pieces = CALIBRATION["prompts"]
constants = {
    "Adam, mini-batches": measured_constants(list(calibrated.values())),
    "Adam, one batch": measured_constants([of_all(one_batch, pieces)]),
    "SGD": measured_constants([of_all(one_batch, pieces, "sgd")]),
}
sample = pd.concat(calibrated.values()).query("fair").critical_number
with np.errstate(divide="ignore"):  # 0 is as far off as infinity
    away = np.abs(np.log(sample / constants["Adam, mini-batches"]))
factor = float(np.exp(np.quantile(away, 0.9, method="higher")))

# %% [markdown]
# The constants in `phantomlib/dataset/scan.py` are those of the profile `zoo`, with its five models, 40 prompts and
# 16 sentences. `phantom run 17 --profile zoo` measures them anew. If you change the zoo, copy them from this table.

# %% tags=["hide-input"]
names = {"adam": "Adam", "sgd": "SGD"}
stated = [NUMBERS["adam", True], NUMBERS["adam", False], NUMBERS["sgd", False], FACTOR]
measured = [*constants.values(), factor]
labels = [*(f"$N_c$, {name}" for name in constants), "factor of the interval"]
nb.table(
    pd.DataFrame(
        {"constant": labels, "measured here": measured, "in `scan.py`": stated}
    ),
    runs=all_runs,
)

# %% [markdown]
# ## Predicted and measured
#
# From here on we use test data: other rows, other orders of the rows, and the constants of `scan.py`.

# %%
tested = {kind: of_all(trained, records, [2, 3]) for kind, records in TEST.items()}
number = NUMBERS["adam", True]

# %% tags=["remove-cell"]
nb.caption(
    "fig-data-set-predicted",
    """Measured against predicted critical learning rate of every outranked target, in units of the middle rate, for
        prompts and for whole sentences. It is the rate from which a target is ahead after all epochs. Grey line:
        equality. Between the dotted lines a scan says “too close to call”. A dot at the upper edge is ahead at none of
        the five rates, a dot at the lower edge at all. Contradicted targets and those whose gap does not close at first
        are left out. Adam in mini-batches, two orders of the rows.""",
    alt="Most dots lie along the line of equality, within the dotted lines; some lie at the upper or lower edge.",
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(
    1, 2, figsize=(WIDTH, 3.6), sharex=True, sharey=True, layout="constrained"
)
edges = np.array([0.2, 5])
for axes, (kind, table) in zip(panels, tested.items()):
    ends = np.array([0.05, 20])
    axes.plot(ends, ends, color=REFERENCE, linewidth=0.8, zorder=0)
    for side in (FACTOR, 1 / FACTOR):
        axes.plot(
            ends, side * ends, color=REFERENCE, linewidth=0.9, linestyle=":", zorder=0
        )
    told = table[(table.ceiling > 0) & (table.velocity > 0)]
    for name, of_model in told.groupby("model", sort=False):
        measured = of_model.critical.clip(*edges)
        dots = {"color": colours[name], "markersize": 2.5, "alpha": 0.6}
        axes.plot(number / of_model.number, measured, "o", **dots)
    axes.set(title=kind, xscale="log", yscale="log", xlim=(0.08, 12), ylim=(0.18, 5.6))
    axes.set_xlabel("predicted critical rate")
    log_ticks(axes.xaxis, axes.yaxis)
panels[0].set_ylabel("measured critical rate")
legend_above(figure, colours)
columns = ["model", "order", "row", "position", "gap", "number", "critical", "critical_number"]
shown = pd.concat(table[columns].assign(kind=kind) for kind, table in tested.items())
nb.figure(figure, "fig-data-set-predicted", runs=all_runs, data=shown)

# %% [markdown]
# How much better could a prediction be? If the same rows are shuffled anew, a target's critical rate moves too. No
# prediction from step 0 can know the order.


# %%
def within_range(values):
    return np.isfinite(values) & (values > 0)


def reshuffled(table):
    """The factors by which a new order moves the critical rates."""
    places = ["model", "row", "position"]
    pairs = (
        table[table.fair]
        .pivot(index=places, columns="order", values="critical")
        .to_numpy()
    )
    pairs = pairs[within_range(pairs).all(1)]
    return np.exp(np.abs(np.log(pairs[:, 0] / pairs[:, 1])))


floor = {kind: np.median(reshuffled(table)) for kind, table in tested.items()}

# %% tags=["hide-input"]
nb.say(
    "A new order moves the critical rate of a target by a factor of {prompts:.2f} in the median (prompts), or "
    "{sentences:.2f} (sentences).",
    floor,
)

# %% [markdown]
# ## One number for all architectures

# %% tags=["remove-cell"]
nb.caption(
    "fig-data-set-numbers",
    """Critical number $N_c$ of the targets of the sample, by model. (a) With the first update scaled by the noise of
        the mini-batches, as a scan does. (b) With the first update of the whole data set as one batch. Dots: targets
        (those within the five rates), two orders; bars: medians over them. The grey line is the calibrated constant.
        Adam.""",
    alt="With the noise the bars of all models lie near one for both kinds of data; without it they lie higher.",
)

# %%
numbers = []
for kind, table in tested.items():
    for model in loaded:
        mine = table[(table.model == model.name) & table.fair]
        rows, _ = tokenise(enumerate(TEST[kind], 1), model.tokenizer)
        whole = scan(model, rows, batch_size=len(rows)).targets
        places = ["row", "position"]
        noiseless = mine.merge(
            whole[[*places, "velocity"]], on=places, suffixes=("", "_whole")
        )
        ratio = noiseless.velocity_whole / noiseless.velocity
        numbers.append(mine.assign(kind=kind, update="as scanned"))
        without = noiseless.critical_number * ratio
        numbers.append(
            noiseless.assign(kind=kind, update="without noise", critical_number=without)
        )
numbers = pd.concat(numbers)
medians = numbers.groupby(
    ["update", "kind", "model"], sort=False
).critical_number.median()
spread = medians.groupby(["update", "kind"], sort=False).agg(coefficient_of_variation)

# %% tags=["hide-input"]
figure, panels = plt.subplots(
    1, 2, figsize=(WIDTH, 3.2), sharey=True, layout="constrained"
)
inside = numbers[within_range(numbers.critical_number)]
for axes, update in zip(panels, ["as scanned", "without noise"]):
    axes.axhline(number, color=REFERENCE, linewidth=0.8)
    rows = inside[inside["update"] == update]
    dots_and_means(
        axes,
        rows,
        "critical_number",
        x="kind",
        hue="model",
        colours=colours,
        mean=np.median,
    )
    axes.set(title=update, yscale="log")
    log_ticks(axes.yaxis)
panels[0].set_ylabel("critical number $N_c$")
legend_above(figure, colours)
nb.figure(figure, "fig-data-set-numbers", runs=all_runs)
wide = medians.unstack("model").assign(**{"variation (%)": 100 * spread})[
    [*colours, "variation (%)"]
]
nb.table(wide.reset_index(), runs=all_runs)
typical = medians.groupby(["update", "kind"]).agg(gmean)
nb.say(
    "With the noise $N_c$ is {c:.2f} for prompts and {d:.2f} for sentences (geometric means over the models). Without "
    "it $N_c$ would be {a:.2f} for prompts and {b:.2f} for sentences.",
    a=typical["without noise", "prompts"],
    b=typical["without noise", "sentences"],
    c=typical["as scanned", "prompts"],
    d=typical["as scanned", "sentences"],
)

# %% [markdown]
# ## Does something simpler do as well?
#
# There are four baselines: the gap, the overlap of the two readout rows, the cross-entropy, and $N$ with the first
# update that the target's own row would make *alone*. Each baseline gets more than the scan. It has a threshold of its
# own for every model and kind of data, and the better of two directions. Both are fitted on the calibration data at the
# middle rate. Each is told which targets are contradicted. All predict the outcome at the middle rate on the test data.


# %%
def alone(model, records):
    """The velocity of every target, had its row been trained by itself."""
    rows, _ = tokenise(enumerate(records, 1), model.tokenizer)

    def measure():
        own = pd.concat([scan(model, [row], batch_size=1).targets for row in rows])
        return own[["row", "position", "velocity"]].to_dict("list")

    kept_before = nb.store.remember("alone", [records], model, [], Recipe(), measure)
    own = pd.DataFrame(kept_before).rename(columns={"velocity": "own"})
    return own.assign(model=model.name)


def with_alone(table, records):
    table = table.merge(of_all(alone, records), on=["model", "row", "position"])
    return table.assign(alone=table.number * table.own / table.velocity)


def outcomes(table) -> pd.Series:
    return table["gap at 1"] > 0


def best_threshold(score, ahead, possible):
    """Threshold and direction with the highest balanced accuracy."""
    cuts = np.unique(score)
    cuts = np.concatenate([[-np.inf], (cuts[1:] + cuts[:-1]) / 2])
    tried = [(sign, sign * cut) for sign in (1, -1) for cut in cuts]
    told = [balanced_accuracy(ahead, (s * score > cut) & possible) for s, cut in tried]
    return tried[int(np.argmax(told))]


BASELINES = {
    "gap": "gap",
    "overlap": "overlap",
    "cross_entropy": "loss",
    "alone": "row alone",
}
calibrated = {k: with_alone(t, CALIBRATION[k]) for k, t in calibrated.items()}
tested = {k: with_alone(t, TEST[k]) for k, t in tested.items()}
accuracy = []
for kind, table in tested.items():
    for (name, order), rows in table.groupby(["model", "order"], sort=False):
        known = calibrated[kind].query("model == @name")
        row = {"kind": kind, "model": name, "order": order}
        possible = rows.ceiling > 0
        told = balanced_accuracy(outcomes(rows), (rows.number >= number) & possible)
        accuracy.append(
            row
            | {"predictor": "scan", "accuracy": told, "ahead": outcomes(rows).mean()}
        )
        for column, label in BASELINES.items():
            sign, cut = best_threshold(
                known[column], outcomes(known), known.ceiling > 0
            )
            told = balanced_accuracy(
                outcomes(rows), (sign * rows[column] > cut) & possible
            )
            accuracy.append(row | {"predictor": label, "accuracy": told})
accuracy = pd.DataFrame(accuracy)
means = (
    accuracy.groupby(["kind", "predictor"], sort=False)
    .accuracy.mean()
    .unstack("predictor")
)
lead = means["scan"] - means.drop(columns="scan").max(axis=1)

# %% tags=["remove-cell"]
nb.caption(
    "fig-data-set-baselines",
    """Balanced accuracy of the outcome at the middle rate, predicted before training: by a scan with one constant for
        all, and by four baselines, each with thresholds of its own for every model and kind of data. Dots: models and
        orders; bars: means of a model. Dotted: the threshold of the ledger for the scan. At one half a
        predictor knows nothing. Adam in mini-batches.""",
    alt="For prompts and for sentences the bars of the scan stand higher than those of the four baselines.",
)

# %% tags=["hide-input"]
figure, panels = plt.subplots(
    1, 2, figsize=(WIDTH, 3.4), sharey=True, layout="constrained"
)
for axes, (kind, rows) in zip(panels, accuracy.groupby("kind", sort=False)):
    axes.axhline(
        threshold("O10", "balanced_accuracy"),
        color=REFERENCE,
        linewidth=0.9,
        linestyle=":",
    )
    axes.axhline(0.5, color=REFERENCE, linewidth=0.8)
    dots_and_means(
        axes,
        rows,
        "accuracy",
        x="predictor",
        hue="model",
        colours=colours,
        mean=np.mean,
    )
    axes.set_title(kind)
    plt.setp(axes.get_xticklabels(), rotation=30, ha="right", rotation_mode="anchor")
panels[0].set_ylabel("balanced accuracy")
legend_above(figure, colours)
nb.figure(figure, "fig-data-set-baselines", runs=all_runs, data=accuracy)
nb.table(means.assign(**{"scan's lead": lead}).reset_index(), runs=all_runs)

# %% [markdown]
# Where does the scan err? It predicts that a *contradicted* target fails. A target is contradicted if the token that
# leads now follows the same words in other rows, at least as often. In the first version *any* other token counted.
# Most of those targets overtook the token that led, and two claims were not met. We changed the rule after we had seen
# that. So we tested the claims again on test data that nobody had seen. [The ledger](00_ledger.ipynb) keeps the old
# values.


# %%
def afterwards(table):
    """Shares of contradicted targets that are learnt, and the accuracy without them."""
    possible, none = table[table.ceiling > 0], table[table.ceiling <= 0]
    told = [
        balanced_accuracy(outcomes(rows), rows.number >= number)
        for _, rows in possible.groupby(["model", "order"])
    ]
    at_most = (none["gap at 4"] > 0).mean()
    share = {"contradicted": len(none) / len(table), "learnt": at_most}
    return share | {"without": np.mean(told)}


errors = {kind: afterwards(table) for kind, table in tested.items()}

# %% tags=["hide-input"]
for kind, found in errors.items():
    of_these = (
        "At four times the middle rate {learnt:.0%} of these are ahead of the token that led before. Without them the "
        "balanced accuracy of the scan is {without:.2f}."
    )
    nb.say(
        "Of the outranked targets in *{kind}*, {contradicted:.0%} count as contradicted. "
        + of_these * bool(found["contradicted"]),
        found,
        kind=kind,
    )

# %% [markdown]
# ## The everyday question
#
# How many targets are outranked before training? How many are outranked after it? And for how many of these has the
# loss fallen all the same? A scan answers the first two questions for any rate.


# %%
def learnt(table, multiple):
    """Which targets a scan expects to be learnt at a multiple of the middle rate."""
    return (multiple * table.number >= number) & (table.ceiling > 0)


def at_the_end(table, multiple, name):
    """Shares of the targets at one rate, which the columns call by this name."""
    ahead, falls = table[f"gap at {name:g}"] > 0, table[f"loss falls at {name:g}"]
    row = {"predicted": (~learnt(table, multiple)).mean()}
    return row | {"outranked": (~ahead).mean(), "silent": (~ahead & falls).mean()}


def shares(kind, table):
    """By model and rate: predicted and measured shares of the outranked targets."""
    return pd.DataFrame(
        [
            {"kind": kind, "model": name, "rate": m} | at_the_end(mine, m, m)
            for name, mine in table.groupby("model", sort=False)
            for m in MULTIPLES
        ]
    )


share = pd.concat([shares(kind, table) for kind, table in tested.items()])

# %% tags=["remove-cell"]
nb.caption(
    "fig-data-set-outranked",
    """Share of the targets outranked before training that are outranked after it, against the learning rate, for each
        model. Lines: predicted before training. Filled dots: measured at the end of training. Open dots: outranked at
        the end although their cross-entropy fell. Adam in mini-batches, two orders of the rows.""",
    alt="""The share of targets that stay outranked falls with the learning rate. Measured dots lie close to the
        predicted lines, and filled and open dots nearly coincide.""",
)

# %% tags=["hide-input"]
def draw_shares(axes, table, rows, colour, middle=1.0):
    """Predicted shares as a line and measured ones as dots, against rates in units in which the middle one is this."""
    finely = np.geomspace(rows.rate.min() / 1.25, rows.rate.max() * 1.25, 60)
    told = [(~learnt(table, rate / middle)).mean() for rate in finely]
    axes.plot(finely, told, color=colour, linewidth=1)
    axes.plot(rows.rate, rows.outranked, "o", color=colour, markersize=4)
    axes.plot(rows.rate, rows.silent, "o", color=colour, markersize=7, markerfacecolor="none", alpha=0.8)
    axes.set(xscale="log", ylim=(0, 1))
    log_ticks(axes.xaxis)


figure, panels = plt.subplots(
    1, 2, figsize=(WIDTH, 3.4), sharey=True, layout="constrained"
)
for axes, (kind, table) in zip(panels, tested.items()):
    for name, mine in table.groupby("model", sort=False):
        draw_shares(axes, mine, share[(share.kind == kind) & (share.model == name)], colours[name])
    axes.set(title=kind, xlabel="learning rate / middle rate")
panels[0].set_ylabel("share still outranked")
legend_above(figure, colours)
nb.figure(figure, "fig-data-set-outranked", runs=all_runs, data=share)

# %% [markdown]
# ## Other batches, epochs and schedules
#
# Does only the budget $S$ count, however the rate, the epochs and the schedule make it up? Then the same constant
# serves every setting. In the second part of the table the whole data set is one batch.

# %%
first = loaded[:1]  # the longer settings on one model only
few = cut_sentences(10, seed=203)
many = cut_sentences(5 * prompts, seed=204)
records = TEST["prompts"]
SETTINGS = [
    ("batches of 2, 1 epoch", first, records, {"size": 2, "epochs": 1}),
    ("batches of 16, 10 epochs", first, records, {"size": 16, "epochs": 10}),
    ("batches of 8, linear decay", first, records, {"schedule": "linear"}),
    ("batches of 32, more rows", first, many, {"size": 32}),
    ("batches of 8, SGD", first, records, {"recipe": Recipe(optimizer="sgd")}),
]  # all with Adam but the last
ONE_BATCH = [(few, loaded), (records, loaded), (many, first)]


def setting(name, table, constant):
    """A row of the table: how well the targets of a setting follow the prediction."""
    fair = table[table.fair]
    ok = within_range(fair.critical)
    off = np.abs(np.log(fair.critical_number[ok] / constant))
    usual = table[(table.ceiling > 0) & (table.velocity > 0)]
    told = (usual.number >= constant) == (usual.critical <= 1)
    by_model = table.groupby("model", sort=False)
    ranks = [
        [
            spearmanr(score, of_model.critical).statistic
            for score in (-of_model.number, -of_model.gap)
        ]
        for _, of_model in usual.groupby("model")
    ]
    rank, of_gap = np.mean(ranks, axis=0)
    number = gmean([typical_number(t) for _, t in by_model])
    row = {
        "setting": name,
        "models": len(ranks),
        "targets": len(table),
        "$N_c$": number,
    }
    row |= {"rank correlation": rank, "of the gap alone": of_gap}
    return row | {
        "median factor off": np.exp(np.median(off)),
        "right (%)": 100 * told.mean(),
    }


rows = [
    setting(f"{kind}, batches of {batch_size}, {epochs} epochs", t, number)
    for kind, t in tested.items()
]
for name, chosen, data, options in SETTINGS:
    table = pd.concat([trained(model, data, [2], **options) for model in chosen])
    constant = NUMBERS["sgd", True] if "recipe" in options else number
    rows.append(setting(name, table, constant))
for optimizer, label in names.items():
    for data, chosen in ONE_BATCH:
        table = pd.concat([one_batch(model, data, optimizer) for model in chosen])
        name = f"one batch of {len(data)}, {label}, {steps} steps"
        rows.append(setting(name, table, NUMBERS[optimizer, False]))
settings = pd.DataFrame(rows)

# %% tags=["hide-input"]
nb.table(settings, digits=2, runs=all_runs)
of_adam = settings["$N_c$"][: len(tested) + len(SETTINGS) - 1]  # the last of them is SGD
nb.say(
    "“Right” is the share of targets whose outcome at the middle rate is as predicted. It counts targets whose gap "
    "closes at first and that nothing contradicts. A new order alone moves the rates by a factor of {prompts:.2f} "
    "(prompts) or {sentences:.2f} (sentences); compare the factors in the table with these. Over the settings of Adam "
    "in mini-batches $N_c$ is {least:.2f} to {most:.2f}.",
    floor,
    least=of_adam.min(),
    most=of_adam.max(),
)

# %% [markdown]
# ## A real model on real sentences
#
# SmolLM2 has 135 million parameters. We train it on the first 400 sentences of our list from WordNet whose correct word
# is one token for it. The loss is that of this word only. We fixed the rest before the runs: mini-batches of 8, three
# epochs, and a constant learning rate of 2e-6 to 2e-5 for full fine-tuning. LoRA's rates are ten times as large. The
# predictions use the constant of the zoo.

# %%
RATES = [2e-6, 5e-6, 1e-5, 2e-5]  # of full fine-tuning; LoRA's are ten times these
COUNT = 400


def wordnet_records(model):
    """The first sentences of the list whose correct word is one token."""
    sentences = {(c.prompt, c.correct): None for c in load_contexts("wordnet")}
    records = [{"prompt": p, "completion": f" {word}"} for p, word in sentences]
    rows, _ = tokenise(enumerate(records), model.tokenizer)
    return [records[row.number] for row in rows if len(row.targets) == 1][:COUNT]


def train_real(method):
    """A row for each outranked target, from the published runs or trained here."""
    rates = [rate * (10 if method == "lora" else 1) for rate in RATES]
    found = None
    if not published:
        model, recipe = nb.load(real), Recipe(method=method)
        found = trained(model, wordnet_records(model), [1], recipe, rates=rates)
        found.attrs["run_ids"] = all_runs[-1:]
    name = f"{real.rpartition(':')[2]}-wordnet-{method}"
    return published_runs.table(nb.store, name, found, published)


def outcomes_at(table, multiple):
    """A row for each rate: predicted and measured at the end of training."""
    rows, middle = [], table.middle.iloc[0]
    for rate in multiple * np.array(RATES):
        told, ahead = learnt(table, rate / middle), table[f"gap at {rate:g}"] > 0
        row = {"rate": rate} | at_the_end(table, rate / middle, rate)
        row |= {"right": (told == ahead).mean()}
        rows.append(row | {"accuracy": balanced_accuracy(ahead, told)})
    return pd.DataFrame(rows)


if published:
    copy_into(Path(published), nb.store)
methods = {"full": 1, "lora": 10}  # with the multiple of the rates
on_real = {method: train_real(method) for method in methods}
real_runs = {method: table.attrs["run_ids"] for method, table in on_real.items()}
real_shares = {method: outcomes_at(on_real[method], m) for method, m in methods.items()}

# %% tags=["remove-cell"]
nb.caption(
    "fig-data-set-real",
    """Share of SmolLM2's outranked targets that are still outranked after three epochs, against the learning rate.
        Line: predicted before training, with the constant of the zoo. Filled dots: measured. Open dots: outranked at
        the end although their cross-entropy fell. One panel for full fine-tuning, one for LoRA of rank 8. 400
        sentences from WordNet, mini-batches of 8, Adam, one order of the rows.""",
    alt="""The share of targets that stay outranked falls with the learning rate. Most measured dots lie above the
        predicted line, and filled and open dots nearly coincide.""",
)

# %% tags=["hide-input"]
titles = {"full": "full fine-tuning", "lora": "LoRA"}
figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.2), sharey=True, layout="constrained")
for axes, (method, rows) in zip(panels, real_shares.items()):
    table = on_real[method]
    draw_shares(axes, table, rows, FAMILIES["llama"], table.middle.iloc[0])
    axes.set(title=titles[method], xlabel="learning rate")
panels[0].set_ylabel("share still outranked")
nb.figure(figure, "fig-data-set-real", runs=real_runs, data=pd.concat(real_shares, names=["method"]).reset_index(0))

# %%
real_number = {method: typical_number(table) for method, table in on_real.items()}
at_1e5 = real_shares["full"].set_index("rate").loc[1e-5]
half = real_shares["full"].iloc[(real_shares["full"].predicted - 0.5).abs().argmin()]
difference = abs(real_number["full"] / number - 1)

# %% tags=["hide-input"]
told = pd.concat([rows.assign(method=titles[m]) for m, rows in real_shares.items()])
names = {"predicted": "predicted (%)", "outranked": "outranked (%)", "silent": "silent (%)", "right": "right (%)"}
told[list(names)] *= 100
told["rate"] = told.rate.map("{:.0e}".format)
told = told.rename(columns=names | {"rate": "learning rate", "accuracy": "balanced accuracy"})
nb.table(told[["method", "learning rate", *names.values(), "balanced accuracy"]], digits=2, runs=real_runs)
nb.say(
    "At 1e-5 {silent:.0%} of {n} outranked targets are silent failures of full fine-tuning: they stay outranked, and "
    "their loss falls. The critical number is {full:.2f} for full fine-tuning and {lora:.2f} for LoRA. That of full "
    "fine-tuning differs from the zoo's {zoo:.2f} by {off:.0%}. Under full fine-tuning the rank correlation of "
    "predicted and measured critical rates is {rank:.2f}. That of the gap alone with the measured rates is "
    "{of_gap:.2f}.",
    n=len(on_real["full"]),
    rank=spearmanr(-on_real["full"].number, on_real["full"].critical).statistic,
    of_gap=spearmanr(-on_real["full"].gap, on_real["full"].critical).statistic,
    silent=at_1e5.silent,
    full=real_number["full"],
    off=difference,
    zoo=number,
    lora=real_number["lora"],
)
of_one = {"architectures": 1, "targets": len(on_real["full"])}
nb.record("O13", at_1e5.silent, optimizer="adam", n=of_one, runs=real_runs["full"])
nb.record(
    "O14",
    {"difference_to_zoo": difference, "balanced_accuracy": half.accuracy},
    optimizer="adam",
    n=of_one,
    runs=real_runs["full"],
    detail={"rate": half.rate, "N_c": real_number["full"]},
)

# %% [markdown]
# ## What it means
#
# The claims O10 to O14 of the [ledger](00_ledger.ipynb) are ours, not the paper's. We wrote down quantities and
# thresholds before these runs, together with what a prototype had shown. O13 and O14 are about a real model.

# %% tags=["hide-input"]
fewest = min(
    len(t)
    for table in tested.values()
    for _, t in table[table.order == 2].groupby("model")
)
smallest = min(
    len(t) for table in tested.values() for _, t in table[table.fair].groupby("model")
)
widest = spread["as scanned"].max()
of_five = {"architectures": len(loaded), "targets": fewest}
nb.record("O10", means["scan"].min(), optimizer="adam", n=of_five, runs=all_runs)
nb.record("O11", lead.min(), optimizer="adam", n=of_five, runs=all_runs)
nb.record(
    "O12", widest, optimizer="adam", n=of_five | {"targets": smallest}, runs=all_runs
)
middle = share[share.rate == 1]
best = means.drop(columns="scan").max(axis=1)
nb.answer(
    "{better}, but not for all targets. A scan is one pass over the data before training. It predicts the outcome with "
    "a balanced accuracy of {prompts:.2f} for single words and {sentences:.2f} for whole sentences. The best of four "
    "simpler predictors reaches {other:.2f} and {others:.2f}. (These are means over {models} models, at a rate where "
    "about half of the targets are learnt.) At that rate {failed:.0%} of the outranked targets stay outranked, and for "
    "{silent:.0%} of these the loss falls all the same. On a real model at 1e-5, {at_1e5:.0%} of {n} outranked targets "
    "fail silently, and the scan is right about {right:.0%} of all.",
    means["scan"],
    better="Yes, better than by anything simpler that we tried" if lead.min() > 0 else "Yes",
    other=best["prompts"],
    others=best["sentences"],
    models=len(loaded),
    at_1e5=at_1e5.silent,
    n=len(on_real["full"]),
    right=at_1e5.right,
    failed=middle.outranked.mean(),
    silent=middle.silent.sum() / middle.outranked.sum(),
)

# %% [markdown]
# ## What could be wrong
#
# The models are small, and the data are of the language that they were pretrained on. A target is outranked because the
# language itself prefers another word there. It is not outranked because the model knows too little. The rows are
# short. The constants were calibrated on this kind of data. On a real model they are a prediction. O14 tests it with
# one model, one order of the rows and one word in each row.
#
# A scan predicts the end of training. Some targets are ahead for a while and fall back. The velocities change as the
# weights move. So the longer the training, the less the first update tells. With very small batches the constant is
# different. And nobody knows the order of the rows beforehand, which moves a target's critical rate by the factor given
# above.
