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
# # 00 · The claims ledger
#
# **Question.** Which assertions of the paper's abstract does this book reproduce, and which not?
#
# ```{glue:md} answer_00
# :format: myst
# ```
#
# For each assertion we wrote down, before the runs, the quantity that tests it, the threshold it must meet, and the
# optimiser whose measurement decides: Adam, because that is what practitioners use. SGD is shown beside it. The
# notebooks record what they measured. The verdict follows from the two by one comparison. It is withheld (“not
# tested”) if the sample is smaller than was asked for, or if one of the runs behind the measurement is no longer in
# the store or is damaged, and “stale” if the code that measured has changed since. Where the sample alone is too small,
# the place of the verdict says what its numbers say, and how many there are. [How verdicts are
# made](../verdicts.md) says what a verdict is bound to, and what it is not.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed

# %% tags=["hide-cell"]
from IPython.display import Markdown

from phantombook import evidence, ledger_page, markup, notebook
from phantombook.ledger import claims

nb = notebook.start("00_ledger")

# %%
sources = evidence.expected_beside(nb)
pairs = claims.verdicts(nb.store, sources)  # under Adam, which decides, and under SGD
real = claims.verdicts(nb.store, sources, group="real")  # the same on real models
ours = claims.verdicts(nb.store, sources, group="ours")

# %% [markdown]
# ## Value, threshold, verdict
#
# The number of a claim leads to its chapter, the figure to what was measured. Where a claim has several criteria,
# each has a row.

# %% tags=["hide-input"]
def runs_behind(pairs):
    return [list(verdict.measurement.runs) for verdict, _ in pairs if verdict.measurement]


nb.table(ledger_page.verdict_table(pairs, real), runs=runs_behind(pairs))

# %% [markdown]
# The first page shows one line for each claim, and says in a few sentences what matters most, with the numbers of
# this ledger.

# %% tags=["hide-input"]
nb.glue("ledger", Markdown(ledger_page.miniature(pairs, real)))
nb.glue("headline", Markdown(ledger_page.headline(pairs, len(nb.contexts), real)))
decisive = [verdict for verdict, _ in pairs]
count = {status: sum(verdict.status == status for verdict in decisive) for status in claims.STATUSES}
small = sum(bool(verdict.outlook) for verdict in decisive)
nb.answer(
    "Of {claims} claims, {yes} are reproduced and {no} are not; {withheld} were not tested{why}. The table "
    "below has every value with its threshold; nothing in it is typed by hand.",
    claims=len(decisive),
    yes=count[claims.REPRODUCED],
    no=count[claims.NOT_REPRODUCED],
    withheld=count[claims.NOT_TESTED] + count[claims.STALE],
    why=f", {small} of them for want of a larger sample: the table has what their numbers say" if small else "",
)

# %% [markdown]
# ## On real models
#
# These claims are about [two real models](13_real_blind.ipynb), of the size that we take the paper to have
# studied. They have their own samples, declared before the runs. R1 to R7 ask the paper's again. R8 and R10 sharpen C8
# and C10, and R9 stands beside C9 but asks something else: not whether LoRA suffices, but whether its critical rate
# follows from step 0.

# %% tags=["hide-input"]
if runs_behind(real):
    nb.table(ledger_page.verdict_table(real), runs=runs_behind(real))
else:
    nb.say("None of them was measured in this book.")

# %% [markdown]
# ## Claims of our own
#
# These are not the paper's. They say what we expected of [a data set](17_from_one_sentence_to_a_data_set.ipynb) and of
# [a loss that looks at the competitor](18_cure.ipynb), and were written down before the runs like the others. Here “reproduced” means that the expectation was met.

# %% tags=["hide-input"]
nb.table(ledger_page.verdict_table(ours), runs=runs_behind(ours))

# %% [markdown]
# ## The wording of the quantities, and what lies behind each

# %% tags=["hide-input"]
for verdict, _ in [*pairs, *real, *ours]:
    claim, found = verdict.claim, claims.verdict_as_dict(verdict)
    sample = ", ".join(f"{count} {kind}" for kind, count in found["n"].items()) or "none"
    lines = [f"**{claim.id}. {claim.statement}** Verdict: {verdict.shown}.", ""]
    if verdict.status in (claims.NOT_TESTED, claims.STALE):
        lines += [f"- why: {verdict.reason}"]
    lines += [f"- {c.quantity} ({c.direction} {c.threshold:g})" for c in claim.criteria]
    lines += [f"- sample: {sample}; runs: {len(found['runs'])}; measured in chapter {claim.notebook}"]
    if found["interval"]:
        lines += ["- interval of the signed value: {:.3g} to {:.3g}".format(*found["interval"])]
    lines += [f"- {ledger_page.change_sentences(change)}" for change in claim.changes]
    nb.say("\n".join(map(markup.with_symbols, lines)))

# %% [markdown]
# ## What could be wrong
#
# We know the paper's abstract, not its text. A verdict is about our reconstruction of each assertion, on our models.
# “Not reproduced” says that this measurement, on these models, did not meet the threshold; it does not say that the
# paper is wrong.
