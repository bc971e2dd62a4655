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
# For each assertion we wrote down three things before the runs: the quantity that tests it, the threshold it must
# meet, and the optimiser whose measurement decides. That optimiser is Adam, because practitioners use it. SGD is
# shown beside it. The notebooks record what they measured, and one comparison with the threshold gives the verdict.
#
# The verdict is “not tested” if the sample is smaller than the claim asks for, or if a run behind the measurement is
# damaged or no longer in the store. It is “stale” if the code that measured has changed since. Where only the sample
# is too small, the place of the verdict shows what the numbers say, and how many there are. [How verdicts are
# made](../verdicts.md) says what a verdict is bound to, and what it is not.

# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s", "zoo:neox-s"]  # zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id
contexts: str = "default"  # 'default' for the book's ten contexts, or a YAML file
device: str = "cpu"  # torch device, cpu or cuda
dtype: str = "float32"  # float32 or float64
store: str = "runs"  # folder of finished runs
seed: int = 0  # base seed

# %% tags=["hide-cell"]
import pandas as pd
from IPython.display import Markdown

from phantombook import markup, notebook
from phantombook.ledger import claims
from phantombook.project import Profile, find_root, load_profile, notebooks

nb = notebook.start("00_ledger")
root = find_root()
same = Profile("", {name: nb.parameters[name] for name in notebook.COMMON}, {})  # for a run without a profile

# %%
profile = load_profile(root, nb.profile) if nb.profile else same
sources = claims.expected_experiments(root, profile)  # whose measurements count
pairs = claims.verdicts(nb.store, sources)  # under Adam, which decides, and under SGD
real = claims.verdicts(nb.store, sources, group="real")  # the same on real models
ours = claims.verdicts(nb.store, sources, group="ours")

# %% [markdown]
# ## Value, threshold, verdict
#
# The id of a claim links to its chapter. The word “figure” links to what was measured. A claim with several criteria
# has a row for each. A threshold can be so weak that it is hardly possible to miss it. The last column says what it
# would have taken; we wrote it after the data had been seen, and it decides nothing.

# %% tags=["hide-input"]
LABELS = {"adam": "Adam", "sgd": "SGD"}
MARKS = {claims.REPRODUCED: "✓", claims.NOT_REPRODUCED: "✗"}
SIGNS = {"at least": "≥", "at most": "≤"}
available, contents = notebooks(root), (root / "_toc.yml").read_text(encoding="utf-8")


def linked(claim):
    """The id of a claim, with a link to its chapter if this book has it."""
    name = available[claim.notebook].stem if claim.notebook in available else ""
    return f"[{claim.id}](/book/generated/{name}.ipynb)" if name and f"/{name}" in contents else claim.id


def number(verdict, criterion):
    value = verdict.measurement.values.get(criterion.name) if verdict.measurement else None
    return "–" if value is None else f"{value:.3g}"


def verdict_table(pairs, real=()):
    """A row for each criterion; with ``real``, verdicts on real models, a column says what came out there."""
    again = {verdict.claim.repeats: f"{linked(verdict.claim)}: **{verdict.shown}**" for verdict, _ in real}
    rows = []
    for verdict, other in pairs:
        claim = verdict.claim
        for place, criterion in enumerate(claim.criteria):
            row = {
                "claim": linked(claim),
                "verdict": f"**{verdict.shown}**",
                "statement": markup.with_symbols(claim.statement),
                "figure": f"[figure](#{claim.figure})" if linked(claim) != claim.id else "",
                f"measured ({LABELS[verdict.optimizer]})": number(verdict, criterion),
                "needed": f"{SIGNS[criterion.direction]} {criterion.threshold:g}",
                f"under {LABELS[other.optimizer]}": number(other, criterion) + ("" if place else f": {other.shown}"),
            }
            if any(verdict.measurement for verdict, _ in real):
                row["on real models"] = again.get(claim.id, "")
            if any(verdict.claim.to_fail for verdict, _ in pairs):
                row["what it takes to fail"] = markup.with_symbols(claim.to_fail)
            if place:  # what is said of the claim as a whole stands in its first row
                once = {"claim", "verdict", "statement", "figure", "on real models", "what it takes to fail"}
                row |= dict.fromkeys(once & row.keys(), "")
            rows.append(row)
    return pd.DataFrame(rows)


def mark(verdict):
    style = verdict.status.replace(" ", "-")
    return f'<span class="verdict {style}">{MARKS.get(verdict.status, "–")} {verdict.shown}</span>'


def miniature(pairs, real=()):
    """A line for each claim with its marked verdict, and that on real models if there is one."""
    again, lines = {verdict.claim.repeats: verdict for verdict, _ in real}, []
    for verdict, other in pairs:
        claim = verdict.claim
        line = f"- {linked(claim)} {markup.with_symbols(claim.statement)} {mark(verdict)}"
        if other.shown != verdict.shown:
            line += f" (under {LABELS[other.optimizer]}: {other.shown})"
        if (on_real := again.get(claim.id)) and on_real.measurement:
            line += f" [{on_real.claim.id}, on real models](#{on_real.claim.figure}): {mark(on_real)}"
        lines.append(line)
    return "\n".join(lines)


def headline(pairs, contexts, real=()):
    """Three results with a number each, of what was measured; ``contexts``: of each model."""
    both = [verdict for pair in [*pairs, *real] for verdict in pair]
    values = {v.claim.id: v.measurement.values for v in both if v.measurement and v.optimizer == "adam"}
    chapter = "{{glue:text}}`generated/02_silent_failure.ipynb::{}:g`"  # for a page in the folder `book`
    lowest, highest = chapter.format("least_multiple"), chapter.format("largest_multiple")
    results = []
    if found := values.get("C1"):
        silent, how_many = int(found["fewest_silent_contexts"]), "All"
        if silent < contexts:
            how_many = f"At least {markup.in_words(silent)} of"
        results += [
            f"**Silent failure is common.** {how_many} {markup.in_words(contexts)} sentences fail on every "
            f"architecture, at learning rates in the tried range, {lowest} to {highest} times the predicted critical "
            "one. The loss falls at every step, and the right word never comes first."
        ]
    if found := values.get("C10"):
        told = (
            "**It is known before step 1.** The critical learning rate of an architecture that had been left out was "
            f"predicted blind to within {100 * found['blind_error']:.1f} %."
        )
        if found := values.get("R10"):
            off = f"{100 * found['blind_error']:.1f} %"
            told += f" On two [real models](#fig-real-blind) the prediction is off by up to {off}."
        results += [told]
    if found := values.get("C7"):
        results += [
            "**The jump is a phantom.** In the median jump the softmax readout makes "
            f"{100 * found['median_readout_share']:.1f} % of the change; the geometry of the embeddings makes the rest."
        ]
    return "\n".join(f"- {result}" for result in results) or "The runs behind this book do not suffice for a summary."


def told(change):
    """An entry of a claim's `changes` as sentences."""
    was, now = f"Before: {change.before}.", f"Now: {change.now}."
    return f"Changed on {change.day}: {change.what}. {was} {now} Reason: {change.reason}"


def runs_behind(pairs):
    return [list(verdict.measurement.runs) for verdict, _ in pairs if verdict.measurement]


# %% tags=["hide-input"]
nb.table(verdict_table(pairs, real), cards=True, runs=runs_behind(pairs))

# %% [markdown]
# The first page shows one line for each claim. It also gives the main results in a few sentences, with the numbers of
# this ledger.

# %% tags=["hide-input"]
nb.glue("ledger", Markdown(miniature(pairs, real)))
nb.glue("headline", Markdown(headline(pairs, len(nb.contexts), real)))
decisive = [verdict for verdict, _ in pairs]
count = {status: sum(verdict.status == status for verdict in decisive) for status in claims.STATUSES}
small = sum(bool(verdict.outlook) for verdict in decisive)
nb.answer(
    "Of {claims} claims, {yes} are reproduced and {no} are not; {withheld} were not tested{why}. The table "
    "below gives every value with its threshold. All its numbers are computed.",
    claims=len(decisive),
    yes=count[claims.REPRODUCED],
    no=count[claims.NOT_REPRODUCED],
    withheld=count[claims.NOT_TESTED] + count[claims.STALE],
    why=f", {small} of them because the sample is too small" if small else "",
)

# %% [markdown]
# ## On real models
#
# These claims are about [two real models](13_real_blind.ipynb), of the size that we take the paper to have studied.
# Their samples are their own and were declared before the runs. R1 to R7 repeat claims of the paper. R8 and R10
# sharpen C8 and C10. R9 belongs to C9 but asks another question. C9 asks whether LoRA suffices; R9 asks whether
# LoRA's critical rate follows from step 0.

# %% tags=["hide-input"]
if runs_behind(real):
    nb.table(verdict_table(real), cards=True, runs=runs_behind(real))
else:
    nb.say("None of them was measured in this book.")

# %% [markdown]
# ## Claims of our own
#
# These claims are ours, not the paper's. They say what we expected of [a loss that looks at the
# competitor](18_cure.ipynb) (O1 to O4), of [what softmax cannot see](07_what_softmax_cannot_see.ipynb) (O5 to O9) and
# of [a data set](17_from_one_sentence_to_a_data_set.ipynb) (O10 to O14). Like the others, they were written down
# before the runs. The file of claims says what a prototype had shown by then. Here “reproduced” means that the
# expectation was met.

# %% tags=["hide-input"]
nb.table(verdict_table(ours), cards=True, runs=runs_behind(ours))

# %% [markdown]
# ## The quantities in full, and the evidence for each

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
    lines += [f"- {told(change)}" for change in claim.changes]
    nb.say("\n".join(map(markup.with_symbols, lines)))

# %% [markdown]
# ## What could be wrong
#
# We know the paper's abstract, not its text. A verdict is about our reconstruction of each assertion, on our models.
# “Not reproduced” says that this measurement, on these models, did not meet the threshold; it does not say that the
# paper is wrong.
