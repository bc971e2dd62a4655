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
#     code: shown
#     minutes: 1
# ---

# %% [markdown]
# # 21 · Watch a training run
#
# **Question.** The other chapters train with an engine of our own. Can one see a silent failure in an ordinary Hugging
# Face `Trainer`, while it happens?
#
# ```{glue:md} answer_21
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
steps: int = 40  # optimiser steps of each training
every: int = 4  # steps between two measurements
too_small: float = 0.6  # learning rate of the failing trainings, in units of the predicted critical one
large_enough: float = 1.4  # learning rate of the successful trainings, in the same units

# %% tags=["hide-cell"]
import copy
import tempfile
import warnings

import matplotlib.pyplot as plt
import pandas as pd
from transformers import PrinterCallback, Trainer, TrainingArguments

from phantomlib.trainer import PhantomCallback, SilentFailureWarning
from phantombook import notebook
from phantomlib.critical.rehearsal import estimate_critical_rate
from phantombook.figures.palette import COMPETITOR, CORRECT, REFERENCE
from phantombook.figures.style import WIDTH
from phantomlib.models.language_model import add_lora
from phantomlib.engine.recipe import Recipe

nb = notebook.start("21_watch_training")
loaded = [nb.load(ref) for ref in nb.models]

# %% [markdown]
# ## In your own script
#
# This script has a Trainer, adapters from peft, and one line of this book. `attach` adds the callback and lets it log
# through the Trainer, so that TensorBoard and other reporters get the values.
#
# ```python
# from peft import LoraConfig, get_peft_model
# from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
# from phantomlib import PhantomCallback
#
# tokenizer = AutoTokenizer.from_pretrained("my-model")
# model = AutoModelForCausalLM.from_pretrained("my-model")
# model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
# texts = tokenizer(open("my_texts.txt").read().splitlines())["input_ids"]
# rows = [{"input_ids": ids, "labels": ids} for ids in texts]
# arguments = TrainingArguments("out", per_device_train_batch_size=1, learning_rate=1e-4)
# trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
# watch = PhantomCallback("my_contexts.yaml", every=10).attach(trainer)
# trainer.train()
# print(watch.frame())  # a row for every context and measured step
# ```
#
# Without the line of peft it trains all parameters. A Trainer of TRL is a Trainer too. The contexts need not be rows
# of the data set; choose those you want to follow while the model trains. A run that is resumed from a checkpoint
# goes on with what was seen before.
#
# ## A real Trainer
#
# The data set is one sentence, the first [context](../definitions.md#context), repeated. The labels are set for its
# last token only.


# %%
def train(model, context, rate, method="full", batch=1, watched=None, interval=every):
    """One training with Adam: the Trainer, the callback and the warnings it gave."""
    module = copy.deepcopy(model.module).requires_grad_(method == "full")
    if method == "lora":
        module = add_lora(module, rank=8, alpha=16.0, seed=seed)
    sentence = [*context.prompt_ids, context.correct_id]
    row = {
        "input_ids": sentence,
        "labels": [-100] * len(context.prompt_ids) + sentence[-1:],
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=batch,
            learning_rate=rate, max_grad_norm=0.0,
            lr_scheduler_type="constant", logging_steps=every,
            save_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=device == "cpu", seed=seed,
        )  # fmt: skip
        trainer = Trainer(module, arguments, train_dataset=[row] * batch * steps)
        trainer.remove_callback(PrinterCallback)
        watch = PhantomCallback(watched or [context], every=interval).attach(trainer)
        trainer.train()
    return (
        trainer,
        watch,
        [str(w.message) for w in caught if w.category is SilentFailureWarning],
    )


# %% [markdown]
# ## A failure, caught
#
# First we predict the [critical learning rate](../definitions.md#critical-learning-rate) of this sentence for this
# many steps of Adam, as `phantom diagnose` does. Then we train below it.

# %%
model = loaded[0]
context = nb.fitting_contexts(model)[0]
critical = estimate_critical_rate(model, [context], Recipe(steps=steps))[0]
failing, failing_watch, said = train(model, context, too_small * critical.rate)
winning, winning_watch, _ = train(model, context, large_enough * critical.rate)
nb.say(
    "For {model}, “{correct}” against “{competitor}” and {steps} steps, the "
    "predicted critical rate is {rate:.3g} (between {low:.3g} and {high:.3g}). "
    "We train at {factor:g} times that rate. The callback says:",
    model=model.name,
    correct=context.context.correct,
    competitor=context.context.competitor,
    steps=steps,
    rate=critical.rate,
    low=critical.low,
    high=critical.high,
    factor=too_small,
)
for message in said or ["(nothing)"]:
    nb.say("> {message}", message=message)

# %% [markdown]
# This is the Trainer's own log at the end of that run, as a reporter would get it:

# %%
log = pd.DataFrame(failing.state.log_history).rename(
    columns=lambda c: c.removeprefix(f"phantom/{context.id}/")
)
watched = ["phi", "signal", "drag", "rank", "gap", "overlap", "kinematic_number_alone"]
table = log.dropna(subset=["gap"])[["step", *watched]].merge(
    log.dropna(subset=["loss"])[["step", "loss"]], how="left"
)
table["rank"] = table["rank"].astype(int)
words = {
    "phi": r"$\Phi$",
    "kinematic_number_alone": "kinematic number, this sentence alone",
}
nb.table(table.rename(columns=words), top=6)

# %% tags=["remove-cell"]
nb.caption(
    "fig-watch",
    f"""Two trainings of the first model on its first context with a Hugging Face Trainer (Adam, constant learning
        rate, deterministic): at {too_small:g} (orange) and {large_enough:g} (blue) times the predicted critical
        learning rate. (a) The loss that the Trainer logs, with a point wherever it logs. (b) The logit gap that
        the callback logs. Above the grey line the model prefers the correct word.""",
    alt="Both losses fall. The logit gap of one run crosses zero; that of the other stays below it.",
)

# %% tags=["hide-input"]
def watched_trainings(runs):
    """Loss and logit gap of trainings, by label: a Trainer and the callback that watched it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    right.axhline(0, color=REFERENCE, linewidth=1)
    style = {"marker": "o", "markersize": 3}
    for (label, (trainer, watch)), colour in zip(runs.items(), (COMPETITOR, CORRECT)):
        losses = pd.DataFrame(trainer.state.log_history).dropna(subset=["loss"])
        left.plot(losses.step, losses.loss, **style, color=colour, label=label)
        right.plot(watch.frame().step, watch.frame().gap, **style, color=colour)
    left.set(xlabel="step", ylabel="loss (nat)", title="What the Trainer logs")
    left.legend(title="learning rate", fontsize="small", title_fontsize="small")
    right.set(xlabel="step", ylabel=r"logit gap $\Delta$ (nat)", title="What the callback adds")
    return figure


# %%
runs = {
    f"{too_small:g} of critical": (failing, failing_watch),
    f"{large_enough:g} of critical": (winning, winning_watch),
}
frames = [watch.frame().assign(run=label) for label, (_, watch) in runs.items()]
nb.figure(
    watched_trainings(runs), "fig-watch", data=pd.concat(frames, ignore_index=True)
)

# %% [markdown]
# ## Every model, full and LoRA
#
# We repeat this for each model, and for LoRA adapters (rank 8, alpha 16) trained through peft, once below and once
# above the predicted critical learning rate. The warning should come only below it.


# %%
def outcome(model, method, factor):
    """A training at a multiple of the predicted rate; whether the callback warned."""
    context = nb.fitting_contexts(model)[0]
    critical = estimate_critical_rate(
        model, [context], Recipe(steps=steps, method=method)
    )[0]
    _, watch, said = train(model, context, factor * critical.rate, method)
    seen = watch.frame()
    return {
        "model": model.name,
        "method": {"full": "full", "lora": "LoRA"}[method],
        "rate / critical": factor,
        "loss falls by": seen.cross_entropy.iloc[0] - seen.cross_entropy.iloc[-1],
        "gap at the end": seen.gap.iloc[-1],
        "warned": "yes" if said else "no",
    }


outcomes = pd.DataFrame(
    outcome(model, method, factor)
    for model in loaded
    for method in ("full", "lora")
    for factor in (too_small, large_enough)
)
nb.table(outcomes, top=8)

# %% tags=["hide-input"]
right = (outcomes.warned == "yes") == (outcomes["gap at the end"] <= 0)
nb.answer(
    "Yes, with one more line. The callback below logs the order parameter beside the loss. It warns as soon as the "
    "loss falls and the right word is not on its way to overtake. Its warning agreed with the outcome in {right} of "
    "{trainings} trainings.",
    right=int(right.sum()),
    trainings=len(outcomes),
)

# %% [markdown]
# ## What it costs
#
# A measurement is one forward pass over the prompts that are watched, and their
# [overlaps](../definitions.md#geometry) with the readout. The table gives the time spent in the callback as a share
# of the time spent training, for batches of eight sentences.


# %%
def cost(interval):
    """Time in the callback, as a share of the time spent training."""
    fitting = nb.fitting_contexts(loaded[0])
    trainer, watch, _ = train(
        loaded[0],
        fitting[0],
        critical.rate,
        batch=8,
        watched=fitting,
        interval=interval,
    )
    runtime = next(
        row["train_runtime"]
        for row in trainer.state.log_history
        if "train_runtime" in row
    )
    share = watch.seconds / (runtime - watch.seconds)
    return {
        "steps between measurements": interval,
        "contexts watched": len(fitting),
        "share of the training time": f"{100 * share:.1f} %",
    }


nb.table(pd.DataFrame(cost(interval) for interval in (1, 10)))

# %% [markdown]
# ## What could be wrong
#
# The forecast extrapolates the gap as a straight line in the learning rate that is left to spend. A gap that closes
# ever faster, as LoRA's does, may be warned about too early; the warning says “at this pace”. The [kinematic
# number](../definitions.md#kinematic-number) that is logged, `kinematic_number_alone`, says where training on the
# sentence *alone* would be after the same budget. It takes account of the optimiser, the learning rate of each
# parameter group, clipping and smoothed labels. It does not know the other rows of a data set, which may hold the
# word back at any number. Sharded weights (FSDP, DeepSpeed) cannot be watched. Models that do not predict a next
# token are refused.
