"""Contexts: a prompt, its correct completion and the near-synonym that competes with it, as the tokens where they part."""

import difflib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml

from phantomlib.errors import ContextError, all_at_once, shown
from phantomlib.plain_yaml import read_yaml

DEFAULT = Path(__file__).with_name("contexts.yaml")
WORDNET = Path(__file__).with_name("wordnet.tsv")  # its first lines say what it is and where it comes from
REQUIRED = ("id", "prompt", "correct", "competitor")
LOOKED_AT = 200  # characters of a prompt, from the first that is lost, in which lost ones are named
ID = re.compile(r"[\w.-]{1,100}")  # ids stand in file names, in pages and in log entries
RUNS = re.compile(r"\s*[^\S ]\s*|  +")  # blanks that are more than the space between two words
# Letters of scripts without spaces between words, by their names: classes ID, CJ, SA and AK of Unicode's Annex 14
UNSPACED = (
    *("CJK", "IDEOGRAPHIC", "FULLWIDTH", "HALFWIDTH", "HIRAGANA", "KATAKANA", "BOPOMOFO", "YI SYLLABLE", "TANGUT"),
    *("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "TAI ", "NEW TAI", "AHOM", "JAVANESE", "BALINESE"),
)


@dataclass(frozen=True)
class Context:
    """One sentence to learn, in plain words.

    Attributes:
        id: short unique name of letters, digits, ``_``, ``.`` and ``-``, at most 100.
        prompt: the text before the completion. The model reads it as it stands; a space follows, unless it ends with
            blanks of its own or is written without spaces, as Chinese is.
        correct: the completion to be learnt (``c``).
        competitor: the near-synonym the model prefers before training (``k``).
        kind: what the competitor is: ``near-synonym``, or the name of a control.

    Example:
        >>> import phantomlib as ph
        >>> ph.Context("shame", "After the lie, Anna felt a deep sense of", "shame", "guilt").kind
        'near-synonym'
    """

    id: str
    prompt: str
    correct: str
    competitor: str
    kind: str = "near-synonym"


@dataclass(frozen=True)
class Resolved:
    """A context in one tokenizer's ids: ``prompt_ids`` (L,), and the ids of ``c`` and ``k`` as the next token.

    Words of several tokens are compared where they part: ``prompt_ids`` end with the tokens that both begin with, and
    ``compared`` says which tokens are meant. It is empty where each word is one token.
    """

    context: Context
    prompt_ids: tuple[int, ...]
    correct_id: int
    competitor_id: int
    compared: str = ""

    @property
    def id(self) -> str:
        return self.context.id


def load_contexts(source: str | Path = "default") -> list[Context]:
    """Read contexts from a YAML list of mappings with ``id``, ``prompt``, ``correct`` and ``competitor``.

    ``source`` is ``"default"`` for the ten contexts of the book; ``"wordnet"`` for some seven thousand, one for each
    sentence and each near-synonym of its word; or a path. ContextError names all that is wrong with a file at once.

    Example:
        >>> import phantomlib as ph
        >>> contexts = ph.load_contexts()
        >>> len(contexts), contexts[0].correct, contexts[0].competitor
        (10, 'shame', 'guilt')
    """
    if str(source) == "wordnet":
        return list(_wordnet())
    path, name = DEFAULT if str(source) == "default" else Path(str(source)), shown(str(source))
    if not os.path.isfile(path):  # unlike path.is_file(), also False for text that cannot be a path
        raise ContextError(f"No contexts file at {name}. Give 'default', or a YAML file with a list of contexts.")
    try:
        entries = read_yaml(path)
    except OSError as error:
        raise ContextError(f"{name} cannot be read ({error.strerror}). Mend its permissions, or copy it.") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())[:300]
        raise ContextError(f"{name} is not valid YAML ({reason}). Mend it and run again.") from None
    if not isinstance(entries, list) or not entries:
        raise ContextError(f"{name} must hold a non-empty YAML list of contexts; each needs {', '.join(REQUIRED)}.")
    problems = [f"Entry {n} of {name} {wrong}." for n, one in enumerate(entries, 1) if (wrong := _problem(one))]
    ids = Counter(str(one["id"]) for one in entries if isinstance(one, dict) and "id" in one)
    said = "uses the id {} {} times; give every context its own id."
    problems += [f"{name} {said.format(shown(one), times)}" for one, times in ids.items() if times > 1]
    all_at_once([ContextError(problem) for problem in problems], f"of the {len(entries)} entries")
    return [Context(**entry) for entry in entries]


def _wordnet() -> Iterator[Context]:
    lines = (line for line in WORDNET.read_text(encoding="ascii").splitlines() if not line.startswith("#"))
    for number, line in enumerate(lines, 1):
        synset, prompt, correct, others = line.split("\t")
        for competitor in others.split():
            yield Context(f"{synset}.{number}.{competitor}", prompt, correct, competitor)


def _problem(entry) -> str:
    """What is wrong with an entry of a contexts file, if anything."""
    if not isinstance(entry, dict) or not set(REQUIRED) <= set(entry) <= {*REQUIRED, "kind"}:
        given = sorted(map(str, entry)) if isinstance(entry, dict) else entry
        return f"has {shown(given)}; a context needs exactly {', '.join(REQUIRED)} (and may have kind)"
    for key, value in entry.items():
        if not isinstance(value, str) or not value.strip():
            quoted = 'quote words such as "yes" or "on", which YAML reads as true'
            return f"is wrong: {key} is {shown(value)}; it must be non-empty text ({quoted})"
    if not ID.fullmatch(entry["id"]):
        return f"is wrong: id is {shown(entry['id'])}; use at most 100 letters, digits, '_', '.' and '-'"
    if entry["correct"].strip() == entry["competitor"].strip():
        return f"has {shown(entry['correct'])} as correct and as competitor; choose two different words"
    return ""


def resolve(context: Context, tokenizer) -> Resolved:
    """Find the tokens that continue the prompt with the two words; those at which they part, if a word is several tokens.

    Raises:
        ContextError: the model would not read what was typed (:func:`check_spelling`); or the tokenizer does not hold a word
            (the nearest that it holds are proposed), or one word begins with all tokens of the other.

    Example:
        >>> import phantomlib as ph
        >>> model = ph.load("zoo:gpt2-s")
        >>> context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
        >>> model.tokenizer.decode([context.correct_id]), len(context.prompt_ids)
        (' shame', 10)
    """
    if not isinstance(context, Context):
        raise ContextError(f"{shown(context)} is no context; give a ph.Context(id, prompt, correct, competitor).")
    check_spelling(context, tokenizer)
    found = tokens_of(context.prompt, [context.correct.strip(), context.competitor.strip()], tokenizer)
    if found is None or found[1][0] == found[1][1]:
        raise ContextError(_why_not(context, tokenizer))
    prompt_ids, (correct_id, competitor_id), compared = found
    return Resolved(context, prompt_ids, correct_id, competitor_id, compared)


def check_resolved(contexts) -> None:
    """Raise ContextError unless these are a list of :class:`Resolved`."""
    wrong = contexts
    if isinstance(contexts, Sequence):
        wrong = next((one for one in contexts if not isinstance(one, Resolved)), None)
    if wrong is not None:
        said = "give a list of what ph.resolve(context, model.tokenizer) returns"
        raise ContextError(f"{shown(wrong)} is no context in a model's ids; {said}.")


def check_spelling(context: Context, tokenizer) -> None:
    """Refuse a prompt that the tokenizer does not give back: it would be another sentence without anyone noticing.

    Single spaces, case and Unicode forms are not compared: some tokenizers move or fold them on purpose. ContextError
    names the characters that are lost, or a special token that would be read twice.
    """
    prompt, known_as = context.prompt, f"Context {shown(context.id)}"
    for text in (prompt, context.correct, context.competitor):
        if re.search("[\ud800-\udfff\0]", text):  # what a shell makes of other bytes; what ends a text in a run file
            raise ContextError(f"{known_as}: {shown(text)} holds half a character or NUL. Write it again in UTF-8.")
    ids = _encode(prompt, tokenizer, False)
    added = _ids(prompt, tokenizer)[: -len(ids)] if ids else []
    if added and ids[: len(added)] == added:
        said = f"begins with {shown(tokenizer.decode(added))}, which the tokenizer adds by itself; leave it out."
        raise ContextError(f"{known_as}: the prompt {said}")
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    given, read, blanks = _letters(prompt), _letters(text), RUNS.findall(prompt.rstrip(" "))
    if given == read and blanks == RUNS.findall(text.rstrip(" ")):
        return
    for special in tokenizer.all_special_tokens:  # one stands for what is unknown; its letters are none of the prompt's
        read = read if _letters(special) in given else read.replace(_letters(special), "\uffff")
    start = len(os.path.commonprefix([given, read]))
    given, read = given[start : start + LOOKED_AT], read[start : start + 2 * LOOKED_AT]
    changes = difflib.SequenceMatcher(None, given, read, autojunk=False).get_opcodes()
    lost = dict.fromkeys(given[i:j] for kind, i, j, _, _ in changes if kind != "equal" and i < j)
    lost = lost or dict.fromkeys(blanks)
    named = f"does not know {', '.join(shown(piece, 20) for piece in list(lost)[:8])} in" if lost else "alters"
    raise ContextError(
        f"{known_as}: the tokenizer {named} the prompt {shown(prompt)} and would read another; reword it."
    )


def _letters(text: str) -> str:
    """What a text says, without blanks, case and Unicode forms."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def single_tokens(prompt: str, words: Sequence[str], tokenizer) -> tuple[tuple[int, ...], list[int]] | None:
    """Ids of the prompt, and of each word as the one token after it; None if no way of joining them gives such ids."""
    for prompt_ids, extended in _joined(prompt, words, tokenizer):
        # a piece must spell its word: some tokenizers put one piece for all unknown words, or drop unknown letters
        spelt = [_letters(tokenizer.decode(ids[-1:])) for ids in extended if ids[:-1] == prompt_ids]
        if prompt_ids and spelt == [_letters(word) for word in words]:
            return tuple(prompt_ids), [ids[-1] for ids in extended]
    return None


def tokens_of(prompt: str, words: Sequence[str], tokenizer) -> tuple[tuple[int, ...], list[int], str] | None:
    """As :func:`single_tokens`, and what :class:`Resolved` says of it; else the same of where one or two words part."""
    if found := single_tokens(prompt, words, tokenizer):
        return *found, ""
    for prompt_ids, extended in islice(_joined(prompt, words, tokenizer), 2):  # the third may end with a space
        ends = [ids[len(prompt_ids) :] for ids in extended if ids[: len(prompt_ids)] == prompt_ids]
        shared = len(os.path.commonprefix(ends)) if len(ends) > 1 else 0
        spelt = [_letters(tokenizer.decode(end)) for end in ends]
        special = {*getattr(tokenizer, "all_special_ids", ())} & {piece for end in ends for piece in end}
        if prompt_ids and not special and spelt == [_letters(word) for word in words] and shared < min(map(len, ends)):
            parted = [end[shared] for end in ends]
            pieces = " and ".join(f"“{tokenizer.decode([piece]).strip()}”" for piece in parted)
            said = f"the words are compared where they part, at token {shared + 1} of each: {pieces}"
            return (*prompt_ids, *ends[0][:shared]), parted, said
    return None


def _joined(prompt: str, words: Sequence[str], tokenizer):
    """For each way of joining: ids of the prompt, and of the prompt with each word."""
    if prompt[-1:].isspace():  # typed as it is meant; a space may belong to the piece of the word
        without, whole = prompt.removesuffix(" "), prompt
    elif any(unicodedata.name(letter, "").startswith(UNSPACED) for letter in (prompt[-1:], words[0][:1]) if letter):
        without = whole = prompt
    else:
        without, whole = prompt, prompt + " "
    # the space between words is at the front of the next piece, a piece of its own, or at the end of the previous one
    for head, end in ((without, ""), (whole, ""), (whole, " ")):
        yield _ids(head, tokenizer), [_ids(f"{whole}{word}{end}", tokenizer) for word in words]


def _ids(text: str, tokenizer) -> list[int]:
    """Ids of a text with what the tokenizer puts before it (BOS), without what it puts behind it (EOS, [SEP])."""
    whole, inner = _encode(text, tokenizer, True), _encode(text, tokenizer, False)
    starts = (start for start in range(len(whole) - len(inner) + 1) if whole[start : start + len(inner)] == inner)
    return whole[: next(starts, len(whole)) + len(inner)]


def _encode(text: str, tokenizer, special: bool) -> list[int]:
    try:
        return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how Rust gives up, for instance on an expression without end
            raise
        raise ContextError(f"The tokenizer fails on {shown(text)} ({shown(str(error), 150)}). Reword it.") from None


def _why_not(context: Context, tokenizer) -> str:
    decoded = (tokenizer.decode([piece]).strip() for piece in tokenizer.get_vocab().values())
    words = dict.fromkeys(filter(str.isalpha, decoded))  # for proposals
    reasons = []
    for role, word in (("correct", context.correct.strip()), ("competitor", context.competitor.strip())):
        if not word or tokens_of(context.prompt, [word], tokenizer):  # not chosen yet, or fine by itself
            continue
        near = ", ".join(difflib.get_close_matches(word, words.keys() - {word}, n=3, cutoff=0.5))
        reasons.append(f"the {role} word {shown(word)} is unknown{near and f' (nearest single tokens: {near})'}")
    named = " and ".join(shown(word) for word in (context.correct, context.competitor) if word)
    reasons = reasons or [f"{named} do not part at a token after this prompt"]
    return (
        f"Context {shown(context.id)} does not fit the tokenizer: {'; '.join(reasons)}. "
        "Choose words that part at a token after the prompt, or reword the prompt."
    )
