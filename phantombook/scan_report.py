"""What ``phantom scan`` says: a summary in words, the targets as JSON or CSV, and a page that opens offline."""

import html
import math
from collections.abc import Sequence
from importlib import resources
from string import Template

import pandas as pd
from pydantic_core import to_json

from phantombook.figures.escaping import json_in_page
from phantomlib.dataset.rows import Row
from phantomlib.dataset.scan import Scan

WORST = 20  # targets that the text lists
SHARES = (0.5, 0.9)


def summary(found: Scan, table: pd.DataFrame, given: dict) -> dict:
    """What the scan comes to at the given learning rate, epochs, schedule and warm-up; ``table`` is ``found.at(**given)``."""
    outranked = table[table.gap <= 0]
    others = {name: given[name] for name in ("epochs", "schedule", "warmup")}
    rates = {f"learning_rate_for_{share:.0%}": found.learning_rate_for(share, **others) for share in SHARES}
    return {
        "targets": len(table),
        "outranked_now": len(outranked),
        "outranked_at_the_end": int((outranked.outcome != "learnt").sum()),
        "outcomes": {name: int(count) for name, count in outranked.outcome.value_counts().items()},
        "silent_failures_whose_loss_falls": int((outranked.loss_falls & (outranked.outcome == "silent failure")).sum()),
        "updates": found.updates * given["epochs"],
        "overlap": float(outranked.overlap.mean()) if len(outranked) else None,
        "overlap_of_random_pairs": found.random_overlap,
    } | rates


def as_json(found: Scan, table: pd.DataFrame, given: dict, problems: Sequence[str]) -> str:
    """Everything: what was asked, the summary, every target, and the rows that were left out."""
    told = {"summary": summary(found, table, given), "targets": table.to_dict("records"), "left_out": problems}
    return to_json(given | told, indent=1, inf_nan_mode="null").decode()


def as_text(found: Scan, table: pd.DataFrame, given: dict, problems: Sequence[str]) -> str:
    """A summary, the targets that are furthest from being learnt, and what would do."""
    told = summary(found, table, given)
    asked = (
        f"{given['epochs']:g} epochs at {given['learning_rate']:g} ({given['schedule']}, {told['updates']:g} updates)"
    )
    meaning = {
        "learnt": "are learnt",
        "silent failure": f"stay outranked (the loss of {told['silent_failures_whose_loss_falls']} falls all the same)",
        "too close to call": "are too close to call",
        "contradicted": "are contradicted: the same words are followed by the leading token at least as often",
    }
    lines = [
        f"{told['targets']} targets; the model ranks another token first in {told['outranked_now']} of them.",
        f"After {asked} of these:",
        *(f"  {told['outcomes'].get(name, 0):6d}  {what}" for name, what in meaning.items()),
    ]
    for share in SHARES:
        if math.isfinite(rate := told[f"learning_rate_for_{share:.0%}"]):
            lines.append(f"{share:.0%} of them are learnt from a learning rate of {rate:.2g} on.")
        else:
            lines.append(f"No learning rate teaches {share:.0%} of them: the others are contradicted, or lose ground.")
    worst = table[table.outcome == "silent failure"].sort_values("number").head(WORST)
    if len(worst):
        lines += ["", "Furthest from being learnt (N: how far the gap travels, over how far it has to):"]
        width = min(44, int(worst.before.str.len().max()) + 2)
    for row in worst.itertuples():
        before, correct, rival = (" ".join(text.split()) for text in (row.before, row.correct, row.competitor))
        lines.append(
            f"  row {row.row:<6} {before[-width:]:>{width}} “{correct}”, not “{rival}”  "
            f"N = {row.number:.2g}, from {row.critical_learning_rate:.2g} on"
        )
    return "\n".join([*lines, *(["", *problems] if problems else [])])


def as_page(found: Scan, rows: Sequence[Row], tokenizer, given: dict) -> str:
    """One HTML file with the data, each target coloured by its outcome, and sliders for learning rate and epochs.

    Nothing is fetched. The page knows the budget at which each target is learnt, so it answers for every rate.
    """
    places = zip(found.targets.row, found.targets.position, strict=True)
    at = {place: index for index, place in enumerate(places)}
    texts = []
    for row in rows:
        shown = ""
        for position, token in enumerate(row.ids):
            piece, target = html.escape(tokenizer.decode([token])), at.get((row.number, position))
            shown += piece if target is None else f'<i data-t="{target}">{piece}</i>'
        texts.append(f'<p id="r{row.number}"><b>{row.number}</b> {shown}</p>')
    columns = found.targets.assign(critical=found.critical_budget())
    fields = ["row", "before", "correct", "competitor", "gap", "velocity", "wake", "ceiling", "critical"]
    data = {name: columns[name].tolist() for name in fields}
    shape = float(found.budget(1.0, given["epochs"], given["schedule"], given["warmup"])[-1]) / (
        found.updates * given["epochs"]
    )
    facts = {"updates": found.updates, "number": found.number, "factor": found.factor, "shape": shape} | given
    template = Template(resources.files("phantombook").joinpath("scan.html").read_text(encoding="utf-8"))
    return template.substitute(rows="\n".join(texts), data=json_in_page(data), facts=json_in_page(facts))
