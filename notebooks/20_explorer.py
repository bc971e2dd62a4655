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
#     after: ["05"]
# ---

# %% [markdown]
# # 20 · Explorer
#
# **Question.** What do loss, logit gap, signal, drag and order parameter do together, in the run I want to see?
#
# ```{glue:md} answer_20
# :format: myst
# ```

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed, and the seed of the LoRA initialisation
steps: int = 20  # optimiser steps of each run
multiples: list[float] = [
    0.3,
    0.7,
    1.5,
    3.0,
    10.0,
    30.0,
]  # learning rates in units of the critical one of full fine-tuning

# %% tags=["hide-cell"]
from phantombook import notebook
from phantomlib.critical.search import critical_rates
from phantombook.figures.explorer import page
from phantomlib.engine.recipe import Recipe
from phantomlib.transition import jumps

nb = notebook.start("20_explorer")

# %% [markdown]
# The learning rate is given in units of the [critical one](../definitions.md#critical-learning-rate) of full
# fine-tuning with the same optimiser, also under LoRA, which needs a larger one. Full fine-tuning: the runs of
# [chapter 05](05_catapult_jumps.ipynb), deterministic, no seeds. LoRA: adapters of rank 8 and alpha 16, one seed.


# %%
methods = {
    "full, Adam": ("full", "adam"),
    "full, SGD": ("full", "sgd"),
    "LoRA, Adam": ("lora", "adam"),
}


def fine_tune(model, method, optimizer):
    contexts = nb.fitting_contexts(model)
    full = Recipe(optimizer=optimizer, steps=steps)
    found = critical_rates(nb.store, model, contexts, full)
    fitting, rates = jumps.with_critical_rate(contexts, found)
    if not fitting:
        return None
    recipe = Recipe(optimizer=optimizer, method=method, steps=steps)
    rates, seeds = rates[:, None] * multiples, (seed if method == "lora" else 0,)
    return nb.store.run(model, fitting, rates, recipe, seeds=seeds)


runs = {}
for model in map(nb.load, nb.models):
    found = {label: fine_tune(model, *how) for label, how in methods.items()}
    found = {label: ds for label, ds in found.items() if ds is not None}
    if found:
        runs[model.name] = found

# %% tags=["hide-input"]
nb.say(
    "Each curve is one run of {steps} steps; from top to bottom: the cross-entropy of the correct token; the logit gap "
    "between the two words, with a line at zero, above which the correct word leads; signal, drag and their sum, the "
    "order parameter.",
    steps=steps,
)
nb.page(page(runs, multiples), runs=runs)

# %% tags=["hide-input"]
under_adam = [found["full, Adam"] for found in runs.values() if "full, Adam" in found]
full = [ds.isel(step=-1, seed=0).logit_gap > 0 for ds in under_adam]
ahead = [sum(int(ds.isel(rate=rate).sum()) for ds in full) for rate in range(len(multiples))]
nb.answer(
    "Choose an architecture, a context and a method, and move the learning rate. Under Adam, with all "
    "parameters trained, the correct word leads at the end in {below} of {n} cases at {low:g} times the "
    "critical rate, and in {above} at {high:g} times.",
    below=ahead[0],
    above=ahead[-1],
    n=sum(ds.sizes["context"] for ds in full),
    low=multiples[0],
    high=multiples[-1],
)
