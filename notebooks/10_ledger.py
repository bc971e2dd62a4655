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
# # 10 · The claims ledger
#
# **Question.** Which assertions of the paper's abstract does this book reproduce, and which not?
#
# ```{glue:md} answer_10
# :format: myst
# ```
#
# For each assertion we wrote down, before the runs, the quantity that tests it, the threshold it must meet, and the
# optimiser whose measurement decides: Adam, because that is what practitioners use. SGD is shown beside it. The
# notebooks record what they measured. The verdict follows from the two by one comparison. It is withheld (“not
# tested”) if the sample is smaller than was asked for, or if one of the runs behind the measurement is no longer in
# the store or is damaged, and “stale” if the code that measured has changed since. [How verdicts are
# made](../verdicts.md) says what a verdict is bound to, and what it is not.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # model references, zoo:NAME, a folder or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed

# %%
import pandas as pd
from IPython.display import Markdown

from phantomlib.book import evidence, jobs, markup, notebook
from phantomlib.ledger import claims

nb = notebook.start("10_ledger", models=models, contexts=contexts, device=device, dtype=dtype, store=store, seed=seed)
sources = evidence.expected_beside(nb)
pairs = claims.verdicts(nb.store, sources)  # under Adam, which decides, and under SGD
decisive = [verdict for verdict, _ in pairs]
ours = claims.verdicts(nb.store, sources, ours=True)
runs = [list(verdict.measurement.runs) for verdict in decisive if verdict.measurement]

# %% [markdown]
# ## Value, threshold, verdict
#
# The number of a claim leads to its chapter, the figure to what was measured. Where a claim has several criteria,
# each has a row.

# %%
root = jobs.find_root()
contents, chapters = (root / "_toc.yml").read_text(encoding="utf-8"), jobs.notebooks(root)


def chapter(claim):
    """Address of the chapter that tests a claim; None if this book has no such chapter."""
    name = chapters[claim.notebook].stem if claim.notebook in chapters else ""
    return f"/book/generated/{name}.ipynb" if name and f"/{name}" in contents else None


def criterion_rows(verdict, other):
    claim, linked = verdict.claim, chapter(verdict.claim)
    for number, criterion in enumerate(claim.criteria):
        sign = "≥" if criterion.direction == "at least" else "≤"
        yield {
            "claim": "" if number else f"[{claim.id}]({linked})" if linked else claim.id,
            "statement": "" if number else markup.with_symbols(claim.statement),
            "figure": "" if number or not linked else f"[figure](#{claim.figure})",
            "measured": value_of(verdict, criterion),
            "needed": f"{sign} {criterion.threshold:g}",
            "verdict": "" if number else f"**{verdict.status}**",
            "under SGD": value_of(other, criterion) + ("" if number else f": {other.status}"),
        }


def value_of(verdict, criterion):
    measured = verdict.measurement.values.get(criterion.name) if verdict.measurement else None
    return "–" if measured is None else f"{measured:.3g}"


# %%
nb.table(pd.DataFrame(row for pair in pairs for row in criterion_rows(*pair)), runs=runs)

# %%
MARKS = {claims.REPRODUCED: "✓", claims.NOT_REPRODUCED: "✗"}


def in_one_line(verdict, other):
    claim, linked = verdict.claim, chapter(verdict.claim)
    name = f"[{claim.id}]({linked})" if linked else claim.id
    style = verdict.status.replace(" ", "-")
    mark = f'<span class="verdict {style}">{MARKS.get(verdict.status, "–")} {verdict.status}</span>'
    elsewhere = "" if other.status == verdict.status else f" (under SGD: {other.status})"
    return f"- {name} {markup.with_symbols(claim.statement)} {mark}{elsewhere}"


nb.glue("ledger", Markdown("\n".join(in_one_line(*pair) for pair in pairs)))  # the first page shows it

# %% [markdown]
# The first page says in three sentences what matters most, with the numbers of this ledger.

# %%
values = {(v.claim.id, v.optimizer): v.measurement.values for pair in pairs for v in pair if v.measurement}
adam, sgd = ({claim: found for (claim, by), found in values.items() if by == optimizer} for optimizer in ("adam", "sgd"))
sentences = []
if "C1" in adam:
    sentences += [
        f"On every architecture, at least {adam['C1']['fewest_silent_contexts']:.0f} of {len(nb.contexts)} sentences "
        "fail silently at some ordinary learning rate: the loss falls at every step, and the word never comes first."
    ]
if "C10" in adam and "C10" in sgd:
    sentences += [
        "Whether a run learns the word is known before step 1: the critical learning rate of an architecture that had "
        f"been left out was predicted blindly to {adam['C10']['blind_error']:.1%} under Adam and to "
        f"{sgd['C10']['blind_error']:.2%} under SGD."
    ]
if "C8" in adam:
    sentences += [
        "Measured in the units that step 0 gives, the critical learning rates of the architectures agree to "
        f"{adam['C8']['coefficient_of_variation']:.1%} (coefficient of variation, Adam)."
    ]
nb.glue("headline", Markdown(" ".join(sentences) or "The runs behind this book do not suffice for a summary."))

# %% tags=["hide-input"]
count = {status: sum(verdict.status == status for verdict in decisive) for status in claims.STATUSES}
nb.answer(
    "Of {claims} claims, {yes} are reproduced and {no} are not; {withheld} were not tested. The table "
    "below has every value with its threshold; nothing in it is typed by hand.",
    claims=len(decisive),
    yes=count[claims.REPRODUCED],
    no=count[claims.NOT_REPRODUCED],
    withheld=count[claims.NOT_TESTED] + count[claims.STALE],
)

# %% [markdown]
# ## Claims of our own
#
# These are not the paper's. They say what we expected of [a loss that looks at the competitor](15_cure.ipynb), and were
# written down before its runs like the others. Here “reproduced” means that the expectation was met.

# %%
nb.table(
    pd.DataFrame(row for pair in ours for row in criterion_rows(*pair)),
    runs=[list(verdict.measurement.runs) for verdict, _ in ours if verdict.measurement],
)

# %% [markdown]
# ## The wording of the quantities, and what lies behind each

# %%
for verdict in [*decisive, *(verdict for verdict, _ in ours)]:
    claim, found = verdict.claim, claims.verdict_as_dict(verdict)
    sample = ", ".join(f"{count} {kind}" for kind, count in found["n"].items()) or "none"
    lines = [f"**{claim.id}. {claim.statement}** Verdict: {verdict.status}.", ""]
    if verdict.status in (claims.NOT_TESTED, claims.STALE):
        lines += [f"- why: {verdict.reason}"]
    lines += [f"- {c.quantity} ({c.direction} {c.threshold:g})" for c in claim.criteria]
    lines += [f"- sample: {sample}; runs: {len(found['runs'])}; measured in chapter {claim.notebook}"]
    if found["interval"]:
        lines += ["- interval: {:.3g} to {:.3g}".format(*found["interval"])]
    lines += [f"- threshold changed: {change}" for change in claim.changes]
    nb.say("\n".join(map(markup.with_symbols, lines)))

# %% [markdown]
# ## What could be wrong
#
# We know the paper's abstract, not its text. A verdict is about our reconstruction of each assertion, on our models.
# “Not reproduced” says that this measurement, on these models, did not meet the threshold; it does not say that the
# paper is wrong.
