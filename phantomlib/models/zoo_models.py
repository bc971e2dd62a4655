"""The zoo: small causal language models pretrained from scratch on a generated language of known probabilities.

Five models of two families in `NAMES`, one of a third family held out (`HELD_OUT`): their weights ship with the package.
Variations in `EXTRAS` are in a clone of the repository only: the held-out model from another pretraining seed, and the
smallest from two other seeds and with two other assignments of the pairs' interchangeability. `phantom zoo train` rebuilds all.
"""

import json
from pathlib import Path

from phantomlib.errors import ModelError, did_you_mean, shown
from phantomlib.files import file_digest, read_json

NAMES = ("gpt2-s", "gpt2-m", "gpt2-l", "neox-s", "neox-m")
HELD_OUT = "llama-s"
EXTRAS = ("llama-s-seed1", "gpt2-s-seed1", "gpt2-s-seed2", "gpt2-s-mix1", "gpt2-s-mix2")
ALL = (*NAMES, HELD_OUT, *EXTRAS)
WEIGHTS = Path(__file__).parent / "weights"
IN_A_CLONE = Path(__file__).parents[2] / "zoo" / "weights"
CHECKSUMS = "checksums.json"  # beside the folders of the models


def known(name: str) -> str:
    """The name, if it is one of the zoo's; ModelError with the nearest name otherwise."""
    if name not in ALL:
        near = did_you_mean(str(name)[:80], ALL)
        raise ModelError(f"The zoo has no model {shown(name)}{near}; there are {', '.join(ALL)}.")
    return name


def home(name: str) -> Path:
    """The folder in which the folder of a zoo model belongs; ModelError for an unknown name."""
    return IN_A_CLONE if known(name) in EXTRAS else WEIGHTS


def path(name: str) -> Path:
    """The folder of a zoo model, in Hugging Face format; ModelError for an unknown name or missing weights."""
    folder = home(name) / name
    if not (folder / "model.safetensors").is_file():
        only = ", which is in a clone of the repository only. Clone it, or name" if name in EXTRAS else ". Name"
        raise ModelError(f"There are no weights of zoo model '{name}' in '{folder}'{only} another model.")
    return folder


def report(name: str) -> dict:
    """What was written down when the model was trained, see `zoo.recipe.pretrain`.

    Among others: `recipe` (dict), `seconds`, `n_parameters`, `validation_cross_entropy` beside `language_entropy`
    (nats per token, same sentences), `bulk_coherence` (list of step and B), `training_loss` (list of step and loss).
    """
    return json.loads((path(name) / "report.json").read_text())


def changed_files(folder: Path, digests: dict[str, str]) -> list[str]:
    """Files of a folder that are missing or do not have their recorded SHA-256, one phrase each."""
    found = []
    for file, digest in digests.items():
        if not (folder / file).is_file():
            found.append(f"{file} is missing")
        elif file_digest(folder / file) != digest:
            found.append(f"{file} has changed (its SHA-256 is not the recorded one)")
    return found


def verify(*roots: Path) -> list[str]:
    """What is wrong with the stored models of ``roots`` (of the package, and of a clone), one sentence each."""
    roots = roots or (WEIGHTS, *([IN_A_CLONE] if IN_A_CLONE.parent.is_dir() else []))
    problems, recorded = [], set()
    for root in roots:
        try:
            sums = read_json(root / CHECKSUMS)
        except (OSError, ValueError) as error:
            return [f"The checksums in '{root}' cannot be read ({error}); restore them, or run 'phantom zoo train'."]
        recorded |= set(sums)
        for name, digests in sums.items():
            way_out = f"restore it, or run 'phantom zoo train --model {name}'."
            problems += [f"{name}/{problem}; {way_out}" for problem in changed_files(root / name, digests)]
    missing = [name for name in ALL if home(name) in roots and name not in recorded]
    return problems + [f"{name} has no recorded weights; run 'phantom zoo train --model {name}'." for name in missing]
