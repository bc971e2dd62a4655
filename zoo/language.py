"""A generated, English-like language whose every probability is known.

The language is a probabilistic list of *frames*. A frame is a short sentence of literal words and slots; a sentence
is drawn by choosing a frame, then a topic, then one word for every slot, independently given the topic. Hence the
probability of any prefix is a finite sum,

    P(w_1 ... w_n) = sum over frames f and topics t of  P(f) P(t | f) prod_j P(w_j | slot j of f, t),

which `Language.log_prob` computes exactly. A model trained on samples can therefore be compared with the truth, not
with another model.

Three kinds of sentences:

* generic (61 %): clauses on one of sixteen topics; a topical slot is on topic with probability 0.85;
* pair (25 %): sentences around one of ten near-synonym pairs. The competitor is chosen with probability 0.7, the
  correct word otherwise. With probability `s`, the pair's *interchangeability*, the sentence uses a frame both words
  share, otherwise a frame of the chosen word only, on a topic of its own. `s` is what sets how close the two words
  come in a trained model;
* test (14 %): the sentences whose prompts the contexts ask about. The last slot is the competitor with P_k, the
  correct word with P_c, otherwise a word of the same part of speech (Zipf).

Sentences end with "." and follow each other independently. Words are joined by single spaces, "," and "." without one.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from phantomlib.errors import ContextError
from zoo import lexicon
from zoo.frames import GENERIC_FRAMES, PAIR_FRAMES, PAIRS, Frame, Pair

FRACTIONS = {"generic": 0.61, "pair": 0.25, "test": 0.14}
ON_TOPIC = 0.85
COMPETITOR_SHARE = 0.7  # of a pair's sentences, before any frame is chosen


def join_words(words: list[str]) -> str:
    """Words to text: single spaces, none before a comma or a full stop."""
    return " ".join(words).replace(" ,", ",").replace(" .", ".")


def split_words(text: str) -> list[str]:
    """Text to words; the inverse of `join_words`."""
    return re.findall(r"[^\s,.]+|[,.]", text)


def _zipf(n: int) -> np.ndarray:
    weight = 1.0 / np.arange(1, n + 1)
    return weight / weight.sum()


class Language:
    """The language with its exact probabilities.

    `interchangeability` replaces `s` of the named pairs. `seed` only shuffles the Zipf tails of the test slots.
    Raises ContextError for an unknown pair or an `s` outside [0, 1].
    """

    def __init__(self, interchangeability: dict[str, float] | None = None, seed: int = 0):
        self.interchangeability = {pair.id: pair.interchangeability for pair in PAIRS}
        for name, s in (interchangeability or {}).items():
            if name not in self.interchangeability:
                known = ", ".join(self.interchangeability)
                raise ContextError(
                    f"interchangeability is given for {name!r}, no pair of the language; choose among: {known}."
                )
            if not 0 <= s <= 1:
                raise ContextError(
                    f"interchangeability of {name!r} is {s}; it is a probability, choose a value from 0 to 1."
                )
            self.interchangeability[name] = float(s)
        self.seed = seed
        self.topics = tuple(lexicon.TOPICS)
        self.frames = tuple(self._frames())
        self._compile(self._slots())

    # ---- construction

    def _frames(self):
        uniform = np.full(len(self.topics), 1 / len(self.topics))
        generic = GENERIC_FRAMES.strip().splitlines()
        for text in generic:
            yield Frame("generic", None, tuple(text.split()), FRACTIONS["generic"] / len(generic) * uniform)
        for pair in PAIRS:
            s = self.interchangeability[pair.id]
            choices = (
                ("correct", pair.correct, 1 - COMPETITOR_SHARE),
                ("competitor", pair.competitor, COMPETITOR_SHARE),
            )
            for role, word, share in choices:
                for group, probability in (("shared", s), (role, 1 - s)):
                    texts = PAIR_FRAMES[pair.part][group].strip().splitlines()
                    topic = pair.topics[("shared", "correct", "competitor").index(group)]
                    only = np.array([float(t == topic) for t in self.topics])
                    for text in texts:
                        weight = FRACTIONS["pair"] / len(PAIRS) * share * probability / len(texts)
                        yield Frame("pair", pair.id, tuple(text.replace("{W}", word).split()), weight * only)
            test = pair.frame.replace("{X}", "{X:" + pair.id + "}")
            yield Frame("test", pair.id, tuple(test.split()), FRACTIONS["test"] / len(PAIRS) * uniform)

    def _slots(self) -> dict[str, list[dict[str, float]]]:
        """For every slot one distribution over words per topic."""
        topical = {"N": "nouns", "J": "adjectives", "VT": "transitive", "VI": "intransitive"}
        fixed = {
            "NAME": lexicon.NAMES, "PLACE": lexicon.PLACES, "ADV": lexicon.ADVERBS, "PREP": lexicon.PREPOSITIONS,
            "VB": lexicon.BASE_VERBS, "EVENT": lexicon.EVENTS, "MESSAGE": lexicon.MESSAGES,
            "BUILDING": lexicon.BUILDINGS, "ROLE": lexicon.ROLES, "FOOD": lexicon.FOODS, "SHAPE": lexicon.SHAPES,
            "GROUP": lexicon.GROUPS,
        }  # fmt: skip
        slots = {}
        for slot, key in topical.items():
            own = []
            for topic in self.topics:
                words = lexicon.TOPICS[topic][key].split()
                own.append(dict(zip(words, _zipf(len(words)), strict=True)))
            anywhere: dict[str, float] = {}  # a uniformly chosen topic, this one included
            for distribution in own:
                for word, p in distribution.items():
                    anywhere[word] = anywhere.get(word, 0.0) + p / len(own)
            slots["{" + slot + "}"] = [
                {w: ON_TOPIC * d.get(w, 0.0) + (1 - ON_TOPIC) * p for w, p in anywhere.items()} for d in own
            ]
        for slot, text in fixed.items():
            words = text.split()
            slots["{" + slot + "}"] = [dict(zip(words, _zipf(len(words)), strict=True))] * len(self.topics)
        for number, pair in enumerate(PAIRS):
            words = self._bulk(pair, np.random.default_rng([self.seed, number]))
            rest = 1 - pair.p_correct - pair.p_competitor
            distribution = dict(zip(words, rest * _zipf(len(words)), strict=True))
            distribution |= {pair.competitor: pair.p_competitor, pair.correct: pair.p_correct}
            slots["{X:" + pair.id + "}"] = [distribution] * len(self.topics)
        return slots

    @staticmethod
    def _bulk(pair: Pair, rng: np.random.Generator) -> list[str]:
        """A test slot's other words, most frequent first: the likely ones, then that part of speech, shuffled."""
        if pair.part == "verb":
            return lexicon.BASE_VERBS.split()  # already in a natural order
        key = {"noun": "nouns", "adjective": "adjectives"}[pair.part]
        likely = pair.likely.split()
        words = {w for topic in lexicon.TOPICS.values() for w in topic[key].split()}
        rest = sorted(words - set(likely))
        rng.shuffle(rest)
        return likely + rest

    def _compile(self, slots):
        """Arrays: `_item` (frames, longest frame), `_table` (slots, topics, words), `_weight` (frames, topics)."""
        literals = sorted({i for f in self.frames for i in f.items if not i.startswith("{")})
        self.words = tuple(sorted(set(literals) | {w for d in slots.values() for topic in d for w in topic}))
        self.index = {w: n for n, w in enumerate(self.words)}
        self._slot_names = list(slots)
        self._n_slots = len(slots)
        item_index = {name: n for n, name in enumerate(self._slot_names + literals)}
        self._literal_word = np.array([self.index[w] for w in literals])
        self._table = np.zeros((len(slots), len(self.topics), len(self.words)))
        for n, name in enumerate(self._slot_names):
            for t, distribution in enumerate(slots[name]):
                for word, p in distribution.items():
                    self._table[n, t, self.index[word]] += p
        self._item = np.full((len(self.frames), max(len(f.items) for f in self.frames)), -1)
        for f, frame in enumerate(self.frames):
            self._item[f, : len(frame.items)] = [item_index[i] for i in frame.items]
        self._weight = np.stack([f.weight for f in self.frames])
        self._factor = functools.lru_cache(maxsize=None)(self._factor_of)

    # ---- exact probabilities

    def _factor_of(self, word: str) -> np.ndarray:
        """(items + 1, topics): probability of `word` at each item; the last row (index -1) is a frame's end, 0."""
        factor = np.zeros((self._n_slots + len(self._literal_word) + 1, len(self.topics)))
        n = self.index.get(word)
        if n is not None:
            factor[: self._n_slots] = self._table[:, :, n]
            factor[self._n_slots : -1] = (self._literal_word == n)[:, None]
        return factor

    def _joint(self, words: list[str]) -> np.ndarray:
        """(frames, topics): joint probability of the words of one sentence prefix with frame and topic."""
        joint = self._weight.copy()
        if len(words) > self._item.shape[1]:
            return np.zeros_like(joint)
        for position, word in enumerate(words):
            joint *= self._factor(word)[self._item[:, position]]
        return joint

    def log_prob(self, words: list[str]) -> float:
        """Exact log probability (nats) of a prefix, a sentence or several in a row; -inf if it cannot occur."""
        total = 0.0
        for sentence in _sentences(words):
            p = self._joint(sentence).sum()
            total += np.log(p) if p > 0 else -np.inf
        return float(total)

    def next_word(self, prefix: list[str]) -> dict[str, float]:
        """Exact distribution of the word after `prefix`; only what follows its last full stop matters.

        Raises ContextError if the prefix cannot occur.
        """
        sentence = (_sentences(prefix) or [[]])[-1]
        sentence = [] if sentence and sentence[-1] == "." else sentence
        joint = self._joint(sentence)
        if not joint.sum() > 0:
            raise ContextError(
                f"the language never says {join_words(sentence)!r}; take a prefix of a sampled sentence, "
                "or a prompt of contexts.yaml."
            )
        p = np.zeros(len(self.words))
        items = self._item[:, len(sentence)]
        for item in np.unique(items[joint.sum(1) > 0]):
            mass = joint[items == item].sum(0)
            if item < self._n_slots:
                p += mass @ self._table[item]
            else:
                p[self._literal_word[item - self._n_slots]] += mass.sum()
        p /= p.sum()
        return {self.words[n]: float(p[n]) for n in np.flatnonzero(p)}

    # ---- samples

    def sample(self, n: int, seed: int) -> list[list[str]]:
        """`n` sentences, each a list of words that ends with "."; the same seed gives the same sentences."""
        return [words for words, _ in self.sample_with_frames(n, seed)]

    def sample_with_frames(self, n: int, seed: int) -> list[tuple[list[str], Frame]]:
        rng = np.random.default_rng(seed)
        flat = self._weight.ravel()
        choice = rng.choice(flat.size, size=n, p=flat / flat.sum())
        u = rng.random((n, self._item.shape[1]))
        cumulative = self._table.cumsum(axis=2)
        cumulative /= cumulative[:, :, -1:]
        sentences: list = [None] * n
        for cell in np.unique(choice):  # all sentences of one frame and topic at once
            f, t = divmod(int(cell), len(self.topics))
            frame, members = self.frames[f], np.flatnonzero(choice == cell)
            columns = []
            for position, item in enumerate(frame.items):
                if item.startswith("{"):
                    slot = self._item[f, position]
                    drawn = np.searchsorted(cumulative[slot, t], u[members, position], side="right")
                    columns.append([self.words[w] for w in drawn])
                else:
                    columns.append([item] * len(members))
            for member, words in zip(members, zip(*columns, strict=True), strict=True):
                sentences[member] = (list(words), frame)
        return sentences


def _sentences(words: list[str]) -> list[list[str]]:
    """Cut after every full stop."""
    out, current = [], []
    for word in words:
        current.append(word)
        if word == ".":
            out.append(current)
            current = []
    return out + [current] if current else out
