"""How the ledger is written on pages: the table of all values, one line for each claim, the sentences of the first page."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from phantombook.ledger.claims import NOT_REPRODUCED, REPRODUCED, Change, Claim, Criterion, Verdict
from phantombook.markup import in_words, with_symbols
from phantombook.project import find_root, notebooks

LABELS = {"adam": "Adam", "sgd": "SGD"}
MARKS = {REPRODUCED: "✓", NOT_REPRODUCED: "✗"}

Pair = tuple[Verdict, Verdict]  # under the optimiser that decides, and under the other


def verdict_table(pairs: list[Pair], real: Sequence[Pair] = ()) -> pd.DataFrame:
    """Value, threshold and verdict; one row for each criterion, the first of a claim linked to its chapter and figure.

    Args:
        pairs: the verdicts.
        real: those of the claims that repeat some of them on real models; with any, a column more says what came out.
    """
    table = pd.DataFrame(row for pair in pairs for row in _criterion_rows(*pair))
    if any(verdict.measurement for verdict, _ in real):
        again = {verdict.claim.repeats: f"{_name(verdict.claim)}: **{verdict.shown}**" for verdict, _ in real}
        first = [
            verdict.claim.id if number == 0 else ""
            for verdict, _ in pairs
            for number, _ in enumerate(verdict.claim.criteria)
        ]
        table["on real models"] = [again.get(name, "") for name in first]
    return table


def _criterion_rows(verdict: Verdict, other: Verdict):
    claim, chapter = verdict.claim, _chapter(verdict.claim)
    for number, criterion in enumerate(claim.criteria):
        sign = "≥" if criterion.direction == "at least" else "≤"
        yield {
            "claim": "" if number else _name(claim),
            "verdict": "" if number else f"**{verdict.shown}**",
            "statement": "" if number else with_symbols(claim.statement),
            "figure": "" if number or not chapter else f"[figure](#{claim.figure})",
            f"measured ({LABELS[verdict.optimizer]})": _measured(verdict, criterion),
            "needed": f"{sign} {criterion.threshold:g}",
            f"under {LABELS[other.optimizer]}": _measured(other, criterion) + ("" if number else f": {other.shown}"),
        }


def change_sentences(change: Change) -> str:
    """An entry of a claim's ``changes``: what was changed and on which day, what it was before and is now, and why."""
    return "Changed on {day}: {what}. Before: {before}. Now: {now}. Reason: {reason}".format_map(asdict(change))


def miniature(pairs: list[Pair], real: Sequence[Pair] = ()) -> str:
    """The ledger as a list, one line for each claim with its marked verdict, and that on real models if there is one."""
    again = {verdict.claim.repeats: verdict for verdict, _ in real}
    return "\n".join(_line(*pair, again.get(pair[0].claim.id)) for pair in pairs)


def _line(verdict: Verdict, other: Verdict, real: Verdict | None) -> str:
    elsewhere = "" if other.shown == verdict.shown else f" (under {LABELS[other.optimizer]}: {other.shown})"
    if real and real.measurement:
        elsewhere += f" [{real.claim.id}, on real models](#{real.claim.figure}): {_mark(real)}"
    return f"- {_name(verdict.claim)} {with_symbols(verdict.claim.statement)} {_mark(verdict)}{elsewhere}"


def _mark(verdict: Verdict) -> str:
    style = verdict.status.replace(" ", "-")
    return f'<span class="verdict {style}">{MARKS.get(verdict.status, "–")} {verdict.shown}</span>'


def headline(pairs: list[Pair], contexts: int, real: Sequence[Pair] = ()) -> str:
    """What matters most, in up to four sentences, of the claims that were measured.

    Args:
        pairs: the verdicts.
        contexts: how many sentences each model was tested on.
        real: the verdicts on real models.
    """
    both = [*pairs, *real]
    values = {(v.claim.id, v.optimizer): v.measurement.values for pair in both for v in pair if v.measurement}
    sentences = []
    if found := values.get(("C1", "adam")):
        silent = int(found["fewest_silent_contexts"])
        how_many = "all" if silent == contexts else f"at least {in_words(silent)} of"
        sentences += [
            f"On every architecture, {how_many} {in_words(contexts)} sentences fail silently at one or more learning "
            f"rates from {_from_chapter_02('least_multiple')} to {_from_chapter_02('largest_multiple')} times the one "
            "they are predicted to need: the loss falls at every step, and the word never comes first."
        ]
    if (adam := values.get(("C10", "adam"))) and (sgd := values.get(("C10", "sgd"))):
        sentences += [
            "Whether a run learns the word is known before step 1: the critical learning rate of an architecture that had "
            f"been left out was predicted blindly to {adam['blind_error']:.1%} under Adam and to {sgd['blind_error']:.2%} "
            "under SGD."
        ]
    if (adam := values.get(("R10", "adam"))) and (sgd := values.get(("R10", "sgd"))):
        missed = any(v.status == "not reproduced" for pair in real for v in pair if v.claim.id == "R10")
        sentences += [
            "For [real pretrained models](#fig-real-blind), far larger, the same kind of prediction "
            f"{'misses what the paper reports: it ' if missed else ''}is off by up to {adam['blind_error']:.1%} under Adam "
            f"and {sgd['blind_error']:.1%} under SGD in the mean over a model's sentences, and by more on single ones."
        ]
    if found := values.get(("C8", "adam")):
        sentences += [
            "Measured in the units that step 0 gives, the critical learning rates of the architectures agree to "
            f"{found['coefficient_of_variation']:.1%} (coefficient of variation, Adam)."
        ]
    return " ".join(sentences) or "The runs behind this book do not suffice for a summary."


def _from_chapter_02(number: str) -> str:
    """A number as the chapter names it, for a page in the folder ``book``."""
    return f"{{glue:text}}`generated/02_silent_failure.ipynb::{number}:g`"


def _name(claim: Claim) -> str:
    chapter = _chapter(claim)
    return f"[{claim.id}]({chapter})" if chapter else claim.id


def _chapter(claim: Claim) -> str | None:
    """Address of the chapter that tests a claim; None if this book has no such chapter."""
    root = find_root()
    available, contents = notebooks(root), (root / "_toc.yml").read_text(encoding="utf-8")
    name = available[claim.notebook].stem if claim.notebook in available else ""
    return f"/book/generated/{name}.ipynb" if name and f"/{name}" in contents else None


def _measured(verdict: Verdict, criterion: Criterion) -> str:
    value = verdict.measurement.values.get(criterion.name) if verdict.measurement else None
    return "–" if value is None else f"{value:.3g}"
