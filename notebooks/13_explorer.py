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
#     after: ["04"]
# ---

# %% [markdown]
# # Explorer
#
# **Question.** What do loss, logit gap, signal, drag and order parameter do together, in the run I want to see?
#
# **Answer.** Choose an architecture, a context and a method, and move the learning rate. It is given in units of the critical one of full fine-tuning. Just below 1 the loss falls and
# the word is never preferred; just above, it is; far above, the order parameter moves in jumps. LoRA needs a larger learning rate for the same.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed, and the seed of the LoRA initialisation
steps: int = 20  # optimiser steps of each run
multiples: list[float] = [0.3, 0.7, 1.5, 3.0, 10.0, 30.0]  # learning rates in units of the critical one of full fine-tuning

# %% tags=["hide-cell"]
from IPython.display import HTML

from phantomlib.book import notebook
from phantomlib.figures.explorer import page
from phantomlib.transition import jumps
from phantomlib.critical.search import critical_rates
from phantomlib.measure.recipe import Recipe

nb = notebook.start("13_explorer", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
methods = {"full, Adam": ("full", "adam"), "full, SGD": ("full", "sgd"), "LoRA, Adam": ("lora", "adam")}

# %% tags=["hide-input"]
runs = {}
for ref in nb.models:
    model = nb.load(ref)
    for label, (method, optimizer) in methods.items():
        found = critical_rates(nb.store, model, nb.fitting_contexts(model), Recipe(optimizer=optimizer, steps=steps))
        fitting, rates = jumps.with_critical_rate(nb.fitting_contexts(model), found)
        if len(fitting):
            recipe = Recipe(optimizer=optimizer, method=method, steps=steps)
            runs.setdefault(model.name, {})[label] = nb.store.run(model, fitting, rates[:, None] * multiples, recipe, seeds=(seed if method == "lora" else 0,))
HTML(page(runs, multiples))

# %% tags=["hide-input"]
nb.made_by(runs)

# %% [markdown]
# The curves are those of the chapter on jumps, and the same runs under LoRA: all parameters trained, or adapters of rank 8 and alpha 16; one deterministic run per curve (LoRA: one seed).
