# ---
# jupyter:
#   phantom:
#     minutes: 1
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
# # The order parameter
#
# **Question.** What single number says whether the model has committed to the correct token, given that tokens are not
# independent but overlap in the readout?
#
# **Answer.** The order parameter $\Phi$: the difference between the correct token's and the competitor's weight in a *density matrix*
# built from the predicted distribution and the directions of the readout. It splits exactly into a signal and a drag.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
learning_rates: list[float] = [1.0e-4, 3.0e-4, 1.0e-3]  # learning rates of Adam
sgd_learning_rates: list[float] = [1.0e-4, 1.0e-3, 1.0e-2]  # learning rates of SGD
steps: int = 20  # optimiser steps of each run

# %% tags=["hide-cell"]
import numpy as np
import pandas as pd
import xarray as xr

from phantomlib.book import notebook
from phantomlib.figures.order_parameter import decomposition_panels, spectra
from phantomlib.figures.palette import model_colours
from phantomlib.measure import order_parameter
from phantomlib.measure.recipe import Recipe
from phantomlib.measure.models import next_token_logits

nb = notebook.start("02_order_parameter", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
loaded = [nb.load(ref) for ref in nb.models]
colours = model_colours(loaded)

# %% [markdown]
# ## Definition
#
# Let $\hat e_i$ be the normalised rows of the readout, $g_{ij} = \hat e_i \cdot \hat e_j$ their overlaps, and $p$ the predicted distribution of the
# next token. Put
#
# $$\rho = \sum_i p_i\, \hat e_i \hat e_i^\top .$$
#
# This is a density matrix: symmetric, positive, with trace one. With the projectors $\Pi_i = \hat e_i \hat e_i^\top$ the order parameter is
#
# $$\Phi = \mathrm{Tr}\,[\rho\,(\Pi_c - \Pi_k)] = \sum_i p_i\,(g_{ci}^2 - g_{ki}^2) .$$
#
# Two terms of the sum belong to $c$ and $k$ themselves; the rest is the bulk. That is the split:
#
# $$\Phi = \underbrace{(p_c - p_k)(1 - g_{ck}^2)}_{\text{signal } S} + \underbrace{\sum_{i \ne c,k} p_i\,(g_{ci}^2 - g_{ki}^2)}_{\text{drag } D} .$$
#
# $\Phi$ reaches its largest value $1 - g_{ck}^2$ among predictions certain of $c$, and lies between $\pm\sqrt{1 - g_{ck}^2}$ always.
# The abstract of the paper names a density matrix over a non-orthogonal basis; this form of it is our reconstruction.

# %% [markdown]
# ## Is the split exact?
#
# We compute $\Phi$ twice. Once from the definition: build $\rho$ as a $d \times d$ matrix and take the trace. Once as $S + D$. The two share no
# intermediate result. Before training we compare them in double precision; along training in the precision of the run.

# %% tags=["hide-input"]
exact = 0.0
for ref in nb.models:
    model = nb.load(ref, dtype="float64")
    for context in nb.fitting_contexts(model):
        p = next_token_logits(model, [context])[0].softmax(-1)
        exact = max(exact, order_parameter.trace_residual(p, model.readout, context.correct_id, context.competitor_id))
by_optimizer, along = {}, {}
for optimizer, rates in (("adam", learning_rates), ("sgd", sgd_learning_rates)):
    recipe = Recipe(optimizer=optimizer, steps=steps, snapshots=(0, steps // 2, steps))
    by_optimizer[optimizer] = {m.name: nb.store.run(m, nb.fitting_contexts(m), rates, recipe) for m in loaded}
    residuals = {name: order_parameter.largest_residual(ds) for name, ds in by_optimizer[optimizer].items()}
    along |= {(optimizer, name): value for name, value in residuals.items()}
    nb.record(
        "C2",
        {"residual_float64": exact, "residual_float32": max(residuals.values())},
        optimizer=optimizer,
        n={"architectures": len(loaded), "contexts": min(ds.sizes["context"] for ds in by_optimizer[optimizer].values())},
        runs=by_optimizer[optimizer],
        detail={"snapshots": [0, steps // 2, steps]},
    )
runs = by_optimizer["adam"]
notebook.table(
    pd.DataFrame(
        [("step 0, double precision, all models", f"{exact:.1e}")]
        + [(f"along training with {optimizer}, {nb.dtype}, {name}", f"{value:.1e}") for (optimizer, name), value in along.items()],
        columns=["where", "largest difference between trace and S + D"],
    )
)

# %% tags=["hide-input"]
nb.made_by(by_optimizer["adam"], by_optimizer["sgd"])

# %% [markdown]
# ## Signal and drag along training
#
# One context of the first model at three learning rates. Dotted lines mark the bound $\pm\sqrt{1 - g_{ck}^2}$ at step 0.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-decomposition", "caption": "Order parameter (black, dashed), signal (green) and drag (pink) along training: first context, first model, Adam, full fine-tuning, one deterministic run per panel. Dotted: the bound on the order parameter at step 0."}, "image": {"alt": "Signal, drag and their sum against the step, one panel per learning rate.", "width": "100%"}}
first = runs[loaded[0].name]
one = first.isel(context=0, seed=0)
decomposition_panels(one, [f"learning rate {rate:.0e}" for rate in one.learning_rate.values]);

# %% tags=["hide-input"]
nb.made_by(first)

# %% tags=["hide-input"]
last = one.isel(step=-1)
notebook.say(
    f"The context is “{nb.contexts[0].prompt} …” with $c$ “{one.correct.item()}” and $k$ “{one.competitor.item()}”. After {steps} steps the order "
    "parameter is "
    + ", ".join(f"{float(phi):+.3f} at {rate:.0e}" for phi, rate in zip(last.phi.values, one.learning_rate.values))
    + f". The largest possible commitment, $1 - g_{{ck}}^2$ at step 0, is {float(1 - one.overlap[0, 0] ** 2):.3f}."
)

# %% [markdown]
# ## The spectrum of the density matrix
#
# The eigenvalues of $\rho$ say how many directions the prediction is spread over. A certain prediction has one eigenvalue equal to one. The
# exponential of the von Neumann entropy is the effective rank. Because readout rows share a common direction, $\rho$ has one large
# eigenvalue even for a broad distribution.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-spectrum", "caption": "Largest thirty eigenvalues of the density matrix, before training (solid) and after it (dashed): first context, largest learning rate, Adam, full fine-tuning, one deterministic run per model."}, "image": {"alt": "Eigenvalue spectra on a logarithmic scale, one panel per model.", "width": "100%"}}
spectrum = xr.concat(
    [runs[m.name].spectrum.isel(context=0, rate=-1, seed=0, drop=True).isel(component=slice(0, 30)) for m in loaded],
    pd.Index([m.name for m in loaded], name="model"),
)
spectra(spectrum, colours);

# %% tags=["hide-input"]
nb.made_by(runs)

# %% tags=["hide-input"]
rows = []
for name, ds in runs.items():
    for snapshot in (0, steps):
        values = ds.spectrum.sel(snapshot=snapshot).isel(rate=-1, seed=0).values
        rows.append(
            {
                "model": name,
                "step": snapshot,
                "purity": np.nanmedian(order_parameter.purity(values)),
                "entropy (nat)": np.nanmedian(order_parameter.von_neumann_entropy(values)),
                "effective rank": np.nanmedian(np.exp(order_parameter.von_neumann_entropy(values))),
                "largest eigenvalue": np.nanmedian(values[:, 0]),
            }
        )
notebook.say("Medians over the contexts, at the largest learning rate:")
notebook.table(pd.DataFrame(rows), digits=3)

# %% tags=["hide-input"]
nb.made_by(runs)

# %% [markdown]
# ## What it means
#
# $\Phi$ is a linear function of the prediction at fixed geometry, and the geometry enters through squared overlaps only. So its behaviour can be
# traced to two causes that can be told apart exactly: the prediction moved, or the readout moved. A later chapter uses that split.
#
# ## What could be wrong
#
# Other order parameters could be built from the same ingredients: another power of the overlap, the input embedding instead of the
# readout. The chapter on sensitivity changes them and shows which conclusions move.
