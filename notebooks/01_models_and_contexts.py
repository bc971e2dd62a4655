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
# # 01 · Models and contexts
#
# **Question.** Which models and sentences are the claims tested on, and do they suit the purpose?
#
# ```{glue:md} answer_01
# :format: myst
# ```
#
# Large public checkpoints are the natural subjects, and the `paper` profile runs this book on them. The default
# profile must run anywhere, offline, in minutes. So it uses a *zoo*: small models with the real GPT-2, GPT-NeoX and
# Llama architectures, trained on a language that we generate. The language's own probabilities are known exactly. So
# we can say how far each model is from a perfect one.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed

# %% tags=["hide-cell"]
import numpy as np
import pandas as pd

from phantombook import notebook
from phantombook.figures.palette import COMPETITOR, REFERENCE, model_colours
from phantombook.figures.style import small_multiples
from phantomlib.models.language_model import next_token_logits
from phantomlib.order_parameter import decompose
from phantomlib.models import zoo_models
from phantomlib.readout_geometry import sample_overlaps

nb = notebook.start("01_models_and_contexts")

# %% [markdown]
# ## The models
#
# The two families differ in how they are built. The GPT-2 style models tie the readout to the token embedding, learn
# their positions, and start from random weights of a fixed size (standard deviation 0.02). The GPT-NeoX style models
# have a readout of their own, rotary positions, parallel residual branches, and GPT-NeoX's width-dependent
# initialisation. The Llama style model belongs to neither family. It is held out: we look at no fine-tuning of it
# until its [critical learning rate](../definitions.md#critical-learning-rate) has been predicted.

# %%
loaded = [nb.load(ref) for ref in nb.models]

# %% tags=["hide-input"]
nb.table(
    pd.DataFrame(
        {
            "model": m.name,
            "type": m.model_type,
            "parameters": f"{m.n_parameters:,}",
            "width": m.readout.shape[1],
            "vocabulary": m.readout.shape[0],
            "readout": "tied" if m.tied else "untied",
        }
        for m in loaded
    )
)

# %% [markdown]
# ## How well each model learnt its language
#
# A language model cannot do better than the language's own entropy. For the generated language we know that bound
# exactly, because we know the probability of every sentence. The table compares the cross-entropy of each zoo model
# with the bound, on the same held-out sentences, in nats per token. The excess is what the model still has to learn.

# %%
zoo = [ref.removeprefix("zoo:") for ref in nb.models if ref.startswith("zoo:")]
reports = {name: zoo_models.report(name) for name in zoo}  # written when it was trained

# %% tags=["hide-input"]
trained = pd.DataFrame(
    {
        "model": name,
        "training steps": r["recipe"]["steps"],
        "tokens (M)": r["recipe"]["steps"] * r["recipe"]["rows"] * r["recipe"]["tokens_per_row"] / 1e6,
        "seed": r["recipe"]["seed"],
        "time (s)": round(r["seconds"]),
        "cross-entropy": r["validation_cross_entropy"],
        "language entropy": r["language_entropy"],
        "excess": r["validation_cross_entropy"] - r["language_entropy"],
    }
    for name, r in reports.items()
)
if len(trained):
    nb.table(trained)
else:
    nb.say("None of these models belongs to the zoo, so there is no language entropy to compare with.")

# %% [markdown]
# ## The contexts before training
#
# Each [context](../definitions.md#context) is a prompt, its correct completion $c$, and a competitor $k$ that nearly
# means the same. Fine-tuning trains the model to say $c$. We measure the probabilities of the two words, their [logit
# gap](../definitions.md#context) $\Delta = z_c - z_k$, the [overlap](../definitions.md#geometry) $g_{ck}$ of their
# readout rows, and the mass of all other tokens, the bulk. The table shows the smallest and the largest value over
# the contexts.


# %%
def before_training(model, context):
    z = next_token_logits(model, [context])[0].double()  # (V,)
    p = z.softmax(-1)
    split = decompose(p, model.readout, context.correct_id, context.competitor_id)
    return {
        "model": model.name,
        "context": context.id,
        "$p_c$": float(p[context.correct_id]),
        "$p_k$": float(p[context.competitor_id]),
        "gap": float(z[context.correct_id] - z[context.competitor_id]),
        "overlap": split.overlap,
        "bulk": split.bulk_mass,
        "rank of $k$": int((z > z[context.competitor_id]).sum()) + 1,
        r"$\Phi$": split.phi,
    }


step0 = pd.DataFrame(
    before_training(model, context)
    for model in loaded
    for context in nb.fitting_contexts(model)
)

# %% tags=["hide-input"]
spread = step0.groupby("model", sort=False)[["$p_c$", "$p_k$", "gap", "overlap", "bulk"]].agg(["min", "max"])
spread.columns = [f"{name} {which}" for name, which in spread.columns]
nb.table(spread.reset_index(), digits=2)

# %% [markdown]
# Are the requirements met? They were written before the models were trained. The competitor must outrank the correct
# word everywhere. The bulk must hold at least 40 % of the probability in most contexts. The overlaps must be spread,
# so that a law can be told from a coincidence.

# %%
cells = len(step0)
behind = (step0.gap < 0).sum()
broad = (step0.bulk >= 0.4).sum()
first = (step0["rank of $k$"] == 1).sum()

# %% tags=["hide-input"]
nb.table(
    pd.DataFrame(
        [
            ("competitor ahead of the correct word", f"{behind} of {cells} cells", "all"),
            ("bulk mass at least 0.4", f"{broad} of {cells} cells", "more than half"),
            ("overlap, smallest to largest", f"{step0.overlap.min():.2f} to {step0.overlap.max():.2f}", "spread"),
            ("competitor is the most probable token", f"{first} of {cells} cells", "not required"),
        ],
        columns=["requirement", "measured", "needed"],
    )
)
nb.glue("cells", cells)

# %% tags=["hide-input"]
sizes = [m.n_parameters / 1e6 for m in loaded]
learnt = (
    f"The models come within {trained.excess.max():.2f} nats per token of their language's entropy." if zoo else ""
)
nb.answer(
    "The claims are tested on {count} language models of {small:.2g} to {large:.2g} million parameters and on "
    "{contexts} sentences. The right completion of each has a near-synonym that the model prefers. {learnt} The "
    "competitor leads in {behind} of {cells} cases, by {least:.1f} to {most:.1f} nats.",
    count=len(loaded),
    small=min(sizes),
    large=max(sizes),
    contexts=len(nb.contexts),
    learnt=learnt,
    behind=behind,
    cells=cells,
    least=-step0.gap.max(),
    most=-step0.gap.min(),
)

# %% [markdown]
# The first table lists the sentences. The second gives their values in every model.

# %% tags=["hide-input"]
nb.table(
    pd.DataFrame({"context": c.id, "prompt": c.prompt, "$c$": c.correct, "$k$": c.competitor} for c in nb.contexts)
)
nb.table(step0, top=len(nb.contexts))

# %% [markdown]
# ## The overlaps of the readout
#
# The [order parameter](../definitions.md#order-parameter-signal-and-drag) of this book depends on the overlaps
# $g_{ij}$, the cosines between rows of the readout. Random directions in a high-dimensional space would be nearly
# orthogonal. Trained readouts are not random: their rows share a common direction, so the mean overlap is positive.
# The families differ in how strong that direction is.

# %% tags=["remove-cell"]
nb.caption(
    "fig-overlaps",
    """Overlaps of readout rows (cosine similarity) in each model, one panel and one colour per model. Histogram:
        density over pairs of distinct tokens (one million sampled pairs, fixed seed). Grey line: its mean. Orange
        ticks: the near-synonym pairs of the contexts. Measured before any fine-tuning.""",
    alt="""In every model most overlaps lie around a mean above zero. The orange ticks of the near-synonyms lie far to
        the right.""",
)

# %%
samples = {m.name: sample_overlaps(m.readout, 1_000_000, seed=seed) for m in loaded}


# %% tags=["hide-input"]
def overlap_histograms(samples, step0, colours):
    """Distribution of the overlaps of each model's readout rows; ticks: the overlaps of the contexts' two words."""
    figure, panels = small_multiples(len(samples))
    for axes, (name, values) in zip(panels, samples.items()):
        pairs = step0[step0.model == name].overlap
        mean = values.mean()
        style = {"transform": axes.get_xaxis_transform(), "color": REFERENCE, "fontsize": "small", "va": "top"}
        axes.hist(values, bins=np.linspace(-0.6, 1, 81).tolist(), density=True, color=colours[name], alpha=0.85)
        axes.axvline(mean, color=REFERENCE, linewidth=1)
        axes.text(mean + 0.03, 0.96, f"mean {mean:.2f}", **style)
        axes.plot(pairs, np.zeros(len(pairs)), "|", color=COMPETITOR, markersize=16, markeredgewidth=1.6, clip_on=False)
        axes.set_title(name)
    figure.supxlabel("overlap $g_{ij}$ of two readout rows (cosine)", fontsize="medium")
    figure.supylabel("density", fontsize="medium")
    return figure


nb.figure(overlap_histograms(samples, step0, model_colours(loaded)), "fig-overlaps")

# %% [markdown]
# ## What could be wrong
#
# The zoo is small and its language is simple: short sentences from a fixed set of frames. A claim that holds here may
# fail in a large model, and a claim that fails here may hold there. The language was made to contain near-synonyms of
# known interchangeability, so its contexts are easier to interpret than natural ones. This makes the zoo a good
# instrument. It is also why the same notebooks run on public checkpoints.
#
# ## Exercise
#
# Open this chapter with `phantom edit 01`. In the cell that begins `samples = `, subtract the mean row from the
# readout: write `m.readout - m.readout.mean(0)` in place of `m.readout`. Run the cell and the figure. Where is the
# mean overlap now?
#
# :::{dropdown} Answer
# It is about zero in both models: the positive mean came from the direction that all rows share. No prediction of the
# model changes when one vector is subtracted from all rows, as [chapter 07](07_what_softmax_cannot_see.ipynb) shows.
# So the mean overlap is about how the readout is written down, not about what the model says.
# :::
