"""Contexts: a prompt, its correct completion and the near-synonym that competes with it, as single tokens."""

import difflib
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from phantomlib.errors import ContextError

DEFAULT = Path(__file__).with_name("contexts.yaml")


@dataclass(frozen=True)
class Context:
    """One sentence to learn, in plain words.

    Attributes:
        id: short unique name.
        prompt: the text before the completion, without a trailing space.
        correct: the completion to be learnt (``c``).
        competitor: the near-synonym the model prefers before training (``k``).
        kind: what the competitor is: ``near-synonym``, or the name of a control.
    """

    id: str
    prompt: str
    correct: str
    competitor: str
    kind: str = "near-synonym"


@dataclass(frozen=True)
class Resolved:
    """A context in one tokenizer's ids: ``prompt_ids`` (L,), and the ids of ``c`` and ``k`` as the next token."""

    context: Context
    prompt_ids: tuple[int, ...]
    correct_id: int
    competitor_id: int

    @property
    def id(self) -> str:
        return self.context.id


def load_contexts(source: str | Path = "default") -> list[Context]:
    """Read contexts from a YAML list of mappings with ``id``, ``prompt``, ``correct`` and ``competitor``.

    Args:
        source: ``"default"`` for the ten contexts of the book, or a path.

    Raises:
        ContextError: the file is missing, is not such a list, repeats an id, or names one word twice.

    Example:
        >>> import phantomlib as ph
        >>> contexts = ph.load_contexts()
        >>> len(contexts), contexts[0].correct, contexts[0].competitor
        (10, 'shame', 'guilt')
    """
    path = DEFAULT if str(source) == "default" else Path(str(source))
    if not os.path.isfile(path):  # unlike path.is_file(), also False for text that cannot be a path
        raise ContextError(
            f"No contexts file at '{source}'. Give 'default' for the book's ten contexts, or a YAML file with a list "
            "of entries that have id, prompt, correct and competitor."
        )
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, or a date such as 2024-13-45
        raise ContextError(
            f"'{source}' is not valid YAML ({' '.join(str(error).split())}). Mend it and run again."
        ) from None
    if not isinstance(entries, list) or not entries:
        raise ContextError(
            f"'{source}' must hold a non-empty YAML list of contexts; each entry needs id, prompt, correct and "
            "competitor."
        )
    contexts = [_context(entry, number, source) for number, entry in enumerate(entries, 1)]
    ids = [context.id for context in contexts]
    for name in ids:
        if ids.count(name) > 1:
            raise ContextError(
                f"'{source}' uses the id '{name}' {ids.count(name)} times; give every context its own id."
            )
    return contexts


def _context(entry, number: int, source) -> Context:
    required, known = {"id", "prompt", "correct", "competitor"}, {"id", "prompt", "correct", "competitor", "kind"}
    if not isinstance(entry, dict) or not required <= set(entry) or not set(entry) <= known:
        given = sorted(map(str, entry)) if isinstance(entry, dict) else entry
        raise ContextError(
            f"Entry {number} of '{source}' has {given}; a context needs exactly id, prompt, correct and competitor "
            "(and may have kind)."
        )
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip():
            raise ContextError(
                f"Entry {number} of '{source}': {key} is {value!r}; it must be non-empty text (quote words such as "
                '"yes" or "on", which YAML reads as true).'
            )
    context = Context(**entry)
    if context.correct.strip() == context.competitor.strip():
        raise ContextError(
            f"Context '{context.id}': correct and competitor are both '{context.correct}'; choose two different words."
        )
    return context


def resolve(context: Context, tokenizer) -> Resolved:
    """Find the single tokens that continue the prompt with the two words.

    Tokenizers put the space between words at the front of the next piece (GPT-2), on its own, or at the end of the
    previous piece. Each way of joining prompt and word is tried in turn; the first in which *both* words extend the
    encoded prompt by exactly one id is used.

    Raises:
        ContextError: no way of joining makes both words single tokens; nearest single-token words are proposed.

    Example:
        >>> import phantomlib as ph
        >>> model = ph.load("zoo:gpt2-s")
        >>> context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
        >>> model.tokenizer.decode([context.correct_id]), len(context.prompt_ids)
        (' shame', 10)
    """
    words = (context.correct.strip(), context.competitor.strip())
    found = single_tokens(context.prompt, words, tokenizer)
    if found is None or found[1][0] == found[1][1]:
        raise ContextError(_why_not(context, tokenizer))
    prompt_ids, (correct_id, competitor_id) = found
    return Resolved(context, prompt_ids, correct_id, competitor_id)


def single_tokens(prompt: str, words: Sequence[str], tokenizer) -> tuple[tuple[int, ...], list[int]] | None:
    """Ids of the prompt, and of each word as the one token after it; None if no way of joining them gives such ids."""
    prompt = prompt.strip()
    spaced = prompt + " "
    joins = (  # (text to encode as the prompt, text of the prompt with each word)
        (prompt, [f"{spaced}{word}" for word in words]),
        (spaced, [f"{spaced}{word}" for word in words]),
        (spaced, [f"{spaced}{word} " for word in words]),
    )
    for head, texts in joins:
        prompt_ids = list(tokenizer(head)["input_ids"])
        extended = [list(tokenizer(text)["input_ids"]) for text in texts]
        if prompt_ids and all(
            ids[:-1] == prompt_ids and _plain(tokenizer.decode(ids[-1:])) == _plain(word)
            for ids, word in zip(extended, words, strict=True)
        ):
            return tuple(prompt_ids), [ids[-1] for ids in extended]
    return None


def _plain(text: str) -> str:
    """Letters only as far as tokenizers keep them, without case and accents.

    A piece must spell its word: some tokenizers put one piece for all unknown words, or drop unknown letters.
    """
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).casefold().strip()


def _why_not(context: Context, tokenizer) -> str:
    words = {}  # plain spelling -> present, for proposals
    for piece_id in tokenizer.get_vocab().values():
        text = tokenizer.decode([piece_id]).strip()
        if text.isalpha():
            words[text] = None
    reasons = []
    for role, word in (("correct", context.correct), ("competitor", context.competitor)):
        if not word:  # not chosen yet
            continue
        texts = (f" {word.strip()}", f"{word.strip()} ")
        encoded = min((tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts), key=len)
        if len(encoded) != 1 or word.strip() not in words:
            known = _plain(tokenizer.decode(encoded)) == _plain(word)
            near = difflib.get_close_matches(word.strip(), words.keys() - {word.strip()}, n=3, cutoff=0.5)
            reasons.append(
                f"the {role} word '{word}' is {f'{len(encoded)} tokens' if known else 'unknown'}"
                + (f" (nearest single tokens: {', '.join(near)})" if near else "")
            )
    words = " and ".join(f"'{word}'" for word in (context.correct, context.competitor) if word)
    reasons = reasons or [f"{words} cannot follow this prompt as one token each"]
    return (
        f"Context '{context.id}' does not fit the tokenizer: {'; '.join(reasons)}. "
        "Choose words that are one token after the prompt, or reword the prompt."
    )
