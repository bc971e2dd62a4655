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
#     after: all
# ---

# %% [markdown]
# # The claims ledger
#
# **Question.** Which assertions of the paper's abstract does this book reproduce, and which not?
#
# **Answer.** The table below. Nothing in it is typed by hand.
#
# For each assertion we wrote down, before the runs, the quantity that tests it, the threshold it must meet, and the optimiser whose
# measurement decides: Adam, because that is what practitioners use. SGD is shown beside it. The notebooks record what they measured. The
# verdict follows from the two by one comparison. It is withheld (“not tested”) if the sample is smaller than was asked
# for, or if one of the runs behind the measurement is no longer in the store or is damaged, and “stale” if the code that
# measured has changed since. [How verdicts are made](../verdicts.md) says what a verdict is bound to, and what it is not.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed

# %% tags=["hide-cell"]
from IPython.display import Markdown

from phantomlib.book import evidence, notebook
from phantomlib.ledger import claims

nb = notebook.start("10_ledger", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
pairs = claims.verdicts(nb.store, evidence.expected_beside(nb))
decisive = [pair[0] for pair in pairs]

# %% tags=["hide-input"]
count = {status: sum(v.status == status for v in decisive) for status in claims.STATUSES}
notebook.say(f"Of {len(decisive)} claims, {count[claims.REPRODUCED]} are reproduced, {count[claims.NOT_REPRODUCED]} are not, and {count[claims.NOT_TESTED] + count[claims.STALE]} were not tested.")
notebook.table(claims.ledger_summary(pairs))
nb.glue("ledger", Markdown(notebook.markdown_table(claims.ledger_summary(pairs))))

# %% tags=["hide-input"]
nb.made_by([list(v.measurement.runs) for v in decisive if v.measurement])

# %% [markdown]
# ## Every criterion
#
# A claim with several criteria is reproduced only if all of them hold. The full wording of each quantity is in the section after.

# %% tags=["hide-input"]
notebook.table(claims.ledger_table(pairs))

# %% [markdown]
# ## The wording of the quantities, and what lies behind each

# %% tags=["hide-input"]
for verdict in decisive:
    claim, measurement = verdict.claim, claims.verdict_as_dict(verdict)
    lines = [f"**{claim.id}. {claim.statement}** Verdict: {verdict.status}.", ""]
    lines += [f"- *{c.name.replace('_', ' ')}*: {c.quantity} ({c.direction} {c.threshold:g})." for c in claim.criteria]
    lines += [f"- sample: {', '.join(f'{count} {kind}' for kind, count in measurement['n'].items()) or 'none'}; runs: {len(measurement['runs'])}; measured in notebook {claim.notebook}."]
    if measurement["interval"]:
        lines += ["- interval: {:.3g} to {:.3g}".format(*measurement["interval"])]
    lines += [f"- threshold changed: {change}" for change in claim.changes]
    notebook.say("\n".join(lines))

# %% [markdown]
# ## What could be wrong
#
# We know the paper's abstract, not its text. A verdict is about our reconstruction of each assertion, on our models. “Not reproduced” says that this
# measurement, on these models, did not meet the threshold; it does not say that the paper is wrong.
