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
# # A blind prediction
#
# **Question.** Can the critical learning rate of an architecture that nobody has fine-tuned be predicted from the others?
#
# **Answer.** The first table gives the prediction, as it was written to disk beforehand, and the measurement made afterwards.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s", "zoo:gpt2-m"]  # models on which the prediction is fitted, at least three
held_out: str = "zoo:llama-s"  # the model that is predicted and only then measured
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed
steps: int = 20  # optimiser steps of each run
tolerance: float = 0.005  # relative width of the bracket around a critical learning rate

# %% tags=["hide-cell"]
import numpy as np
import pandas as pd

from phantomlib import blind, figures, notebook, prediction
from phantomlib.finetune import Recipe

nb = notebook.start("07_blind_prediction", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed, held_out=held_out)
loaded = [nb.load(ref) for ref in nb.models]
recipes = {o: Recipe(optimizer=o, steps=steps) for o in ("adam", "sgd")}
labels = {"adam": "Adam", "sgd": "SGD"}

# %% [markdown]
# ## The protocol
#
# 1. Measure the critical learning rates of the architectures in `models`.
# 2. Compare all predictors on them, each architecture predicted from the others. Take the one with the smallest error.
# 3. Apply it to the held-out model. Only quantities of the untouched model enter. Write the prediction, with its interval, commit and time, to a file.
# 4. Only now fine-tune the held-out model and measure.
#
# The order is enforced by the library. The measurement refuses to start without a prediction on disk; the prediction refuses to be made once a run of the held-out model is in the
# store. When this page is built again, the file and the runs are taken up as they are, and the file must be the older.

# %% [markdown]
# ## Step 1 and 2: the predictors, judged on the other architectures
#
# Five predictors use step-0 quantities only: the straight line $N = 1$ (`velocity`); the same with the path's second derivative (`straight_line`); a recursion with the gradients of three logits (`three_gradients`); and that recursion
# with gradients that change along the way (`second_order`, `third_order`). A sixth, `first_steps`, extrapolates from three real steps; it runs the model, so it takes no part in the blind prediction. Each can be used as it is, with a constant factor fitted on the
# other architectures, or with a factor that depends on the initial gap.

# %% tags=["hide-input"]
tables, rankings = {}, {}
for optimizer, recipe in recipes.items():
    parts = [prediction.results(nb.store, m, nb.fitting_contexts(m), recipe, tolerance=tolerance) for m in loaded]
    tables[optimizer] = pd.concat(parts, ignore_index=True)
    tables[optimizer].attrs["run_ids"] = [run for part in parts for run in part.attrs["run_ids"]]
    rankings[optimizer] = prediction.ranking(prediction.leave_one_out(tables[optimizer]))
    notebook.say(f"**{labels[optimizer]}**, leave-one-out errors in per cent, best first:")
    notebook.table(
        rankings[optimizer].assign(**{c: 100 * rankings[optimizer][c] for c in ("rms", "context_median", "architecture_median", "architecture_worst")}).rename(columns=lambda c: c.replace("_", " ")),
        digits=2,
    )

# %% tags=["hide-input"]
nb.made_by([tables[o].attrs["run_ids"] for o in tables])

# %% [markdown]
# ## Step 3: the prediction
#
# Both optimisers are predicted before either is measured.

# %% tags=["hide-input"]
subject = nb.load(held_out)
fitting = nb.fitting_contexts(subject)
predictions = {o: blind.predict_held_out(nb.store, subject, fitting, recipes[o], tables[o]) for o in recipes}
notebook.table(
    pd.DataFrame(
        {
            "optimiser": labels[o],
            "predicted critical rate": f"{p.value:.4g}",
            "95 % interval": f"{p.interval[0]:.4g} to {p.interval[1]:.4g}",
            "predictor": p.predictor,
            "calibration": p.calibration,
            "written (UTC)": p.time[:19].replace("T", " "),
            "commit": p.commit or "none",
        }
        for o, p in predictions.items()
    )
)

# %% tags=["hide-input"]
nb.made_by([tables[o].attrs["run_ids"] for o in tables])

# %% [markdown]
# ## Step 4: the measurement

# %% tags=["hide-input"]
measured = {o: blind.sweep_held_out(nb.store, subject, fitting, recipes[o], tolerance=tolerance) for o in recipes}
comparison = {
    o: pd.DataFrame({"context": ds.context.values, "gap": ds.gap.values, "measured": ds.critical_rate.values, "predicted": [predictions[o].rates[c] for c in ds.context.values]})
    for o, ds in measured.items()
}
for optimizer, table in comparison.items():
    actual = float(np.exp(np.log(table.measured).mean()))
    p = predictions[optimizer]
    error = p.value / actual - 1
    by_context = (table.predicted / table.measured - 1).abs()
    nb.record(
        "C10",
        abs(error),
        optimizer=optimizer,
        interval=(p.interval[0] / actual - 1, p.interval[1] / actual - 1),
        n={"architectures": 1, "contexts": int(table.measured.notna().sum()), "fitted": len(loaded)},
        runs=[measured[optimizer].attrs["run_ids"].split(), tables[optimizer].attrs["run_ids"]],
        detail={"predicted": p.value, "measured": actual, "predictor": p.predictor, "calibration": p.calibration, "interval": "95 % prediction interval, relative to the measured rate"},
    )
    nb.glue(f"error_{optimizer}", 100 * abs(error))
    notebook.say(
        f"**{labels[optimizer]}**: predicted {p.value:.4g}, measured {actual:.4g}: an error of {100 * error:+.2f} %. The measured value lies "
        + ("inside" if p.interval[0] <= actual <= p.interval[1] else "outside")
        + f" the predicted interval. Over the single contexts the median error is {100 * by_context.median():.2f} %, the largest {100 * by_context.max():.2f} % (n = {len(table)})."
    )

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-blind", "caption": "Blind prediction of the held-out architecture: relative error of the predicted critical learning rate of every context, placed by its initial logit gap (full fine-tuning; measured to a bracket of 0.5 %, deterministic). Shaded: plus and minus 2.1 %, the error that the paper's abstract reports. Dashed: the error of the geometric mean over the contexts."}, "image": {"alt": "Errors of the blind prediction by context, for Adam and SGD, with the band of 2.1 per cent.", "width": "100%"}}
figures.blind_errors(comparison, 2.1, labels);

# %% tags=["hide-input"]
nb.made_by([ds.attrs["run_ids"].split() for ds in measured.values()])

# %% [markdown]
# ## Everyone held out in turn
#
# One architecture can be lucky. Now that all are measured, each is predicted from all others, with the predictor and calibration that the protocol had chosen, and with every other one.

# %% tags=["hide-input"]
for optimizer, recipe in recipes.items():
    own = prediction.results(nb.store, subject, fitting, recipe, tolerance=tolerance)
    errors = prediction.leave_one_out(pd.concat([tables[optimizer], own], ignore_index=True))
    p = predictions[optimizer]
    chosen = errors[(errors.predictor == p.predictor) & (errors.calibration == p.calibration)]
    by_model = 100 * np.expm1(chosen.groupby("model", sort=False).error.mean())
    notebook.say(f"**{labels[optimizer]}**, {p.predictor} with calibration “{p.calibration}”: error of each architecture's geometric mean, in per cent:")
    notebook.table(by_model.rename("error (%)").reset_index(), digits=2)
    notebook.say(
        f"Median over the architectures {by_model.abs().median():.2f} %, worst {by_model.abs().max():.2f} %; median over single contexts {100 * np.expm1(chosen.error.abs()).median():.2f} % (n = {len(chosen)})."
    )
    again = prediction.ranking(errors)
    notebook.table(again.assign(**{c: 100 * again[c] for c in ("rms", "context_median", "architecture_median", "architecture_worst")}).rename(columns=lambda c: c.replace("_", " ")), digits=2)

# %% tags=["hide-input"]
nb.made_by([tables[o].attrs["run_ids"] for o in tables], [ds.attrs["run_ids"].split() for ds in measured.values()])

# %% [markdown]
# ## What it means
#
# The critical learning rate is not a property that has to be found by sweeping. It follows from a few derivatives of the untouched model, and what is left is a small common factor.
#
# ## What could be wrong
#
# The held-out model is of another family, but it learnt the same language and is of the same size as the smallest of the others. Larger models may bend differently. The interval rests on few architectures.
