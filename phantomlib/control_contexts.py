"""Control contexts: the same prompts with a competitor that is no near-synonym, to see what the regularities depend on."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from phantomlib.contexts import Resolved, load_contexts, resolve
from phantomlib.errors import ContextError, ParameterError, shown
from phantomlib.models.language_model import LanguageModel, next_token_logits
from phantomlib.order_parameter import overlaps

ANTONYMS = Path(__file__).with_name("controls.yaml")
KINDS = ("unrelated", "antonym", "random pair")
LIKELY = 200  # random pairs are drawn among so many most probable tokens, so that gaps stay of ordinary size


def controls(model: LanguageModel, contexts: list[Resolved], kind: str, seed: int = 0) -> list[Resolved]:
    """Control contexts for one model.

    Args:
        model: the checkpoint; its logits before training decide who outranks whom.
        contexts: the near-synonym contexts (C of them).
        kind: ``unrelated``: prompt and competitor stay; the correct token is exchanged for the one with the nearest logit among those
            whose overlap with the competitor is at most the vocabulary's median, so that the gap is matched and the relation is
            not. ``antonym``: pairs of opposite meaning in the same prompts. ``random pair``: two tokens drawn by ``seed`` among
            the 200 most probable.
        seed: of the random pairs.

    Returns:
        Up to C resolved contexts; in each the competitor outranks the correct token. One for which there is no control is
        left out.

    Raises:
        ParameterError: there is no such kind.
    """
    if kind not in KINDS:
        raise ParameterError(f"There is no control {shown(kind)}; choose one of {', '.join(KINDS)}.")
    if kind == "antonym":
        return _antonyms(model)
    logits = next_token_logits(model, contexts)  # (C, V)
    if kind == "unrelated":
        found = [_unrelated(model, context, z) for context, z in zip(contexts, logits, strict=True)]
        return [context for context in found if context]
    generator = torch.Generator().manual_seed(seed)
    return [_random(model, context, z, generator) for context, z in zip(contexts, logits, strict=True)]


def _unrelated(model: LanguageModel, context: Resolved, z: Tensor) -> Resolved | None:
    """None if no token is allowed."""
    g = overlaps(model.readout, torch.tensor([context.competitor_id], device=z.device))[:, 0]  # (V,)
    allowed = (g <= g.median()) & (z < z[context.competitor_id])
    allowed[context.correct_id] = False
    if not allowed.any():
        return None
    distance = (z - z[context.correct_id]).abs().masked_fill(~allowed, torch.inf)
    return _named(model, context, int(distance.argmin()), context.competitor_id, "unrelated")


def _random(model: LanguageModel, context: Resolved, z: Tensor, generator: torch.Generator) -> Resolved:
    likely = z.argsort(descending=True, stable=True)[:LIKELY].tolist()
    likely = [token for token in likely if token not in (context.correct_id, context.competitor_id)]
    first, second = sorted(torch.randperm(len(likely), generator=generator)[:2].tolist())
    return _named(model, context, likely[second], likely[first], "random pair")


def _antonyms(model: LanguageModel) -> list[Resolved]:
    found = []
    for context in load_contexts(ANTONYMS):
        try:
            pair = resolve(replace(context, kind="antonym"), model.tokenizer)
        except ContextError:  # this tokenizer splits one of the words
            continue
        z = next_token_logits(model, [pair])[0]
        if z[pair.correct_id] > z[pair.competitor_id]:
            pair = _named(model, pair, pair.competitor_id, pair.correct_id, "antonym")
        found.append(pair)
    return found


def _named(model: LanguageModel, context: Resolved, correct_id: int, competitor_id: int, kind: str) -> Resolved:
    words = [model.tokenizer.decode([token]).strip() for token in (correct_id, competitor_id)]
    named = replace(context.context, correct=words[0], competitor=words[1], kind=kind)
    return replace(context, context=named, correct_id=correct_id, competitor_id=competitor_id)
