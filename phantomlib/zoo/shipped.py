"""The zoo: small causal language models pretrained from scratch on a generated language of known probabilities.

Five models of two families in `NAMES`, one of a third family held out (`HELD_OUT`), and four variations of the
smallest in `EXTRAS`: two other pretraining seeds, two other assignments of the pairs' interchangeability. Weights
ship with the package; `train` rebuilds them.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tempfile
from pathlib import Path

from phantomlib import files
from phantomlib.errors import ModelError, ParameterError, shown

NAMES = ("gpt2-s", "gpt2-m", "gpt2-l", "neox-s", "neox-m")
HELD_OUT = "llama-s"
EXTRAS = ("gpt2-s-seed1", "gpt2-s-seed2", "gpt2-s-mix1", "gpt2-s-mix2")
ALL = (*NAMES, HELD_OUT, *EXTRAS)
WEIGHTS = Path(__file__).parent / "weights"


def _known(name: str) -> str:
    if name not in ALL:
        near = difflib.get_close_matches(str(name)[:80], ALL, n=3, cutoff=0.3) or ALL
        raise ModelError(
            f"the zoo has no model {shown(name)}; nearest names: {', '.join(near)} (all: {', '.join(ALL)})."
        )
    return name


def path(name: str) -> Path:
    """The folder of a zoo model, in Hugging Face format; ModelError for an unknown name or missing weights."""
    folder = WEIGHTS / _known(name)
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"the weights of zoo model {name!r} are not in {WEIGHTS}; run `phantom zoo train --model {name}`."
        )
    return folder


def report(name: str) -> dict:
    """What was written down when the model was trained, see `recipe.pretrain`.

    Among others: `recipe` (dict), `seconds`, `n_parameters`, `validation_cross_entropy` beside `language_entropy`
    (nats per token, same sentences), `bulk_coherence` (list of step and B), `training_loss` (list of step and loss).
    Seconds are wall-clock; other work shared the two cores while the shipped models were trained.
    """
    return json.loads((path(name) / "report.json").read_text())


def _record(root: Path, name: str) -> None:
    """Enter the checksums of one model into `root`/checksums.json, safely beside other trainings."""
    from filelock import FileLock

    target = root / "checksums.json"
    lock = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    with FileLock(Path(tempfile.gettempdir()) / f"phantom-zoo-{lock}.lock"):
        try:
            sums = files.read_json(target)
        except (FileNotFoundError, ValueError):  # the other models are then without a record, and `verify` says so
            sums = {}
        sums[name] = {file.name: files.file_digest(file) for file in sorted((root / name).iterdir())}
        files.write_json(target, dict(sorted(sums.items())))


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


def train(
    name: str, out: Path | str | None = None, device: str = "cpu", steps: int | None = None, progress: bool = True
) -> Path:
    """Rebuild a model from its seed into `out`/name (default: the package's weights); returns that folder.

    Its checksums are recorded in `out`/checksums.json, and its files are moved into place when complete. The same
    machine, device and number of threads give the same weights; another one gives them up to how rounding errors grow.
    `steps` shortens the training (for tests). Raises ModelError for an unknown name, ParameterError for `steps` < 1.
    """
    _known(name)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ParameterError(
            f"steps = {steps!r}: a training needs a whole number of steps, at least 1; "
            "leave it out for the recipe's own number."
        )
    from phantomlib.zoo.recipe import train_into

    root = Path(out) if out else WEIGHTS
    folder = train_into(name, root, device, steps, progress)
    _record(root, name)
    return folder


def audit(names=None, root: Path | str | None = None):
    """The ten contexts at step 0, as a pandas table: one row per model and pair.

    Columns: model, context, p_c, p_k (model), gap (logit of the correct word minus the competitor's, nats), overlap
    g_ck of their readout rows, bulk (1 - p_c - p_k), rank_c (1 is first), first (the most probable word), language_c,
    language_k (the language's own), s.
    """
    import pandas as pd
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from phantomlib.progress import quiet_transformers
    from phantomlib.zoo import recipe
    from phantomlib.zoo.frames import PAIRS
    from phantomlib.zoo.language import split_words

    root = Path(root) if root else WEIGHTS
    table = []
    for name in names or [n for n in ALL if (root / n / "model.safetensors").is_file()]:
        folder = root / _known(name)
        with quiet_transformers():
            module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tok = AutoTokenizer.from_pretrained(folder)
        language = recipe.language(recipe.RECIPES[name])
        rows = torch.nn.functional.normalize(module.get_output_embeddings().weight.detach().double(), dim=1)
        for pair in PAIRS:
            with torch.no_grad():
                z = module(torch.tensor([tok(pair.prompt)["input_ids"]])).logits[0, -1].double()
            (c,), (k,) = tok(" " + pair.correct)["input_ids"], tok(" " + pair.competitor)["input_ids"]
            p, truth = z.softmax(-1), language.next_word(split_words(pair.prompt))
            table.append(
                dict(
                    model=name, context=pair.id, p_c=float(p[c]), p_k=float(p[k]), gap=float(z[c] - z[k]),
                    overlap=float(rows[c] @ rows[k]), bulk=float(1 - p[c] - p[k]), rank_c=int((z > z[c]).sum()) + 1,
                    first=str(tok.decode([int(z.argmax())])).strip(), language_c=truth[pair.correct],
                    language_k=truth[pair.competitor], s=language.interchangeability[pair.id],
                )
            )  # fmt: skip
    return pd.DataFrame(table)
