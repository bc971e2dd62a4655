"""The zoo: small causal language models pretrained from scratch on a generated language of known probabilities.

Five models of two families in `NAMES`, one of a third family held out (`HELD_OUT`), and four variations of the
smallest in `EXTRAS`: two other pretraining seeds, two other assignments of the pairs' interchangeability. Weights
ship with the package; `phantom zoo train` rebuilds them.
"""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from phantomlib import files
from phantomlib.errors import ModelError, shown

NAMES = ("gpt2-s", "gpt2-m", "gpt2-l", "neox-s", "neox-m")
HELD_OUT = "llama-s"
EXTRAS = ("gpt2-s-seed1", "gpt2-s-seed2", "gpt2-s-mix1", "gpt2-s-mix2")
ALL = (*NAMES, HELD_OUT, *EXTRAS)
WEIGHTS = Path(__file__).parent / "weights"


def known(name: str) -> str:
    """The name, if it is one of the zoo's; ModelError with the nearest names otherwise."""
    if name not in ALL:
        near = difflib.get_close_matches(str(name)[:80], ALL, n=3, cutoff=0.3) or ALL
        raise ModelError(
            f"the zoo has no model {shown(name)}; nearest names: {', '.join(near)} (all: {', '.join(ALL)})."
        )
    return name


def path(name: str) -> Path:
    """The folder of a zoo model, in Hugging Face format; ModelError for an unknown name or missing weights."""
    folder = WEIGHTS / known(name)
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"the weights of zoo model {name!r} are not in {WEIGHTS}; run `phantom zoo train --model {name}`."
        )
    return folder


def report(name: str) -> dict:
    """What was written down when the model was trained, see `zoo.recipe.pretrain`.

    Among others: `recipe` (dict), `seconds`, `n_parameters`, `validation_cross_entropy` beside `language_entropy`
    (nats per token, same sentences), `bulk_coherence` (list of step and B), `training_loss` (list of step and loss).
    Seconds are wall-clock; other work shared the two cores while the shipped models were trained.
    """
    return json.loads((path(name) / "report.json").read_text())


def verify(root: Path | str | None = None) -> list[str]:
    """Problems with the stored models, one sentence each: missing or changed files. An empty list: all is well."""
    root = Path(root) if root else WEIGHTS
    target = root / "checksums.json"
    if not target.is_file():
        return [f"{target} is missing; run `phantom zoo train`."]
    try:
        sums = files.read_json(target)
    except ValueError as error:
        return [f"{error}; restore {target}, or run `phantom zoo train`."]
    problems = [
        f"{name} has no recorded weights; run `phantom zoo train --model {name}`." for name in ALL if name not in sums
    ]
    for name, recorded in sums.items():
        way_out = f"restore it, or run `phantom zoo train --model {name}`."
        for file, digest in recorded.items():
            here = root / name / file
            if not here.is_file():
                problems.append(f"{name}/{file} is missing; {way_out}")
            elif files.file_digest(here) != digest:
                problems.append(f"{name}/{file} has changed (its sha256 is not the recorded one); {way_out}")
    return problems
