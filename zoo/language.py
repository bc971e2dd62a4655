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

import numpy as np

from phantomlib.errors import ContextError
from zoo import lexicon
from zoo.frames import GENERIC_FRAMES, PAIR_FRAMES, PAIRS, Frame, Pair

FRACTIONS = {"generic": 0.61, "pair": 0.25, "test": 0.14}
ON_TOPIC = 0.85
COMPETITOR_SHARE = 0.7  # of a pair's sentences, before any frame is chosen
TOPICAL = {"{N}": "nouns", "{J}": "adjectives", "{VT}": "transitive", "{VI}": "intransitive"}
FIXED = {
    "{NAME}": lexicon.NAMES, "{PLACE}": lexicon.PLACES, "{ADV}": lexicon.ADVERBS, "{PREP}": lexicon.PREPOSITIONS,
    "{VB}": lexicon.BASE_VERBS, "{EVENT}": lexicon.EVENTS, "{MESSAGE}": lexicon.MESSAGES,
    "{BUILDING}": lexicon.BUILDINGS, "{ROLE}": lexicon.ROLES, "{FOOD}": lexicon.FOODS, "{SHAPE}": lexicon.SHAPES,
    "{GROUP}": lexicon.GROUPS,
}  # fmt: skip


def join_words(words: list[str]) -> str:
    """Words to text: single spaces, none before a comma or a full stop."""
    return " ".join(words).replace(" ,", ",").replace(" .", ".")


def _zipf(words: list[str], total: float = 1.0) -> dict[str, float]:
    """A distribution over words, most frequent first, whose probabilities sum to ``total``."""
    weight = 1.0 / np.arange(1, len(words) + 1)
    return dict(zip(words, total * (weight / weight.sum()), strict=True))


class Language:
    """The language with its exact probabilities.

    ``interchangeability`` replaces the `s` of the named pairs; ContextError for an unknown pair, or no probability.
    """

    def __init__(self, interchangeability: dict[str, float] | None = None):
        given = interchangeability or {}
        self.interchangeability = {pair.id: pair.interchangeability for pair in PAIRS} | given
        if len(self.interchangeability) > len(PAIRS) or not all(0 <= s <= 1 for s in given.values()):
            known = ", ".join(pair.id for pair in PAIRS)
            raise ContextError(f"interchangeability is {given}; give numbers from 0 to 1 for some of {known}.")
        self.topics = tuple(lexicon.TOPICS)
        self.frames = tuple(self._frames())
        slots = self._slots()
        literals = sorted({item for frame in self.frames for item in frame.items if item not in slots})
        self.words = tuple(sorted({*literals, *(word for slot in slots.values() for topic in slot for word in topic)}))
        self.index = {word: n for n, word in enumerate(self.words)}
        # (items + 1, topics, words): probability of a word at an item, a slot or a literal; 0 behind a frame's end
        items = slots | {literal: [{literal: 1.0}] * len(self.topics) for literal in literals}
        self._table = np.zeros((len(items) + 1, len(self.topics), len(self.words)))
        for n, by_topic in enumerate(items.values()):
            for t, distribution in enumerate(by_topic):
                self._table[n, t, [self.index[word] for word in distribution]] = list(distribution.values())
        number = {name: n for n, name in enumerate(items)}
        self._item = np.full((len(self.frames), max(len(f.items) for f in self.frames)), -1)  # (frames, positions)
        for f, frame in enumerate(self.frames):
            self._item[f, : len(frame.items)] = [number[item] for item in frame.items]
        self._weight = np.stack([f.weight for f in self.frames])  # (frames, topics)

    def _frames(self):
        uniform = np.full(len(self.topics), 1 / len(self.topics))
        generic = GENERIC_FRAMES.strip().splitlines()
        for text in generic:
            yield Frame("generic", None, tuple(text.split()), FRACTIONS["generic"] / len(generic) * uniform)
        for pair in PAIRS:
            s = self.interchangeability[pair.id]
            for role, share in (("correct", 1 - COMPETITOR_SHARE), ("competitor", COMPETITOR_SHARE)):
                for group, probability in (("shared", s), (role, 1 - s)):
                    texts = PAIR_FRAMES[pair.part][group].strip().splitlines()
                    topic = pair.topics[("shared", "correct", "competitor").index(group)]
                    only = np.array([float(t == topic) for t in self.topics])
                    weight = FRACTIONS["pair"] / len(PAIRS) * share * probability / len(texts)
                    for text in texts:
                        items = tuple(text.replace("{W}", getattr(pair, role)).split())
                        yield Frame("pair", pair.id, items, weight * only)
            test = pair.frame.replace("{X}", "{X:" + pair.id + "}")
            yield Frame("test", pair.id, tuple(test.split()), FRACTIONS["test"] / len(PAIRS) * uniform)

    def _slots(self) -> dict[str, list[dict[str, float]]]:
        """For every slot one distribution over words per topic."""
        slots = {}
        for slot, key in TOPICAL.items():
            own = [_zipf(topic[key].split()) for topic in lexicon.TOPICS.values()]
            anywhere: dict[str, float] = {}  # a uniformly chosen topic, this one included
            for distribution in own:
                for word, p in distribution.items():
                    anywhere[word] = anywhere.get(word, 0.0) + p / len(own)
            slots[slot] = [{w: ON_TOPIC * d.get(w, 0.0) + (1 - ON_TOPIC) * p for w, p in anywhere.items()} for d in own]
        for slot, text in FIXED.items():
            slots[slot] = [_zipf(text.split())] * len(self.topics)
        for number, pair in enumerate(PAIRS):
            planted = {pair.competitor: pair.p_competitor, pair.correct: pair.p_correct}
            words = self._bulk(pair, np.random.default_rng([0, number]))
            rest = _zipf(words, 1 - pair.p_correct - pair.p_competitor)
            slots["{X:" + pair.id + "}"] = [rest | planted] * len(self.topics)
        return slots

    @staticmethod
    def _bulk(pair: Pair, rng: np.random.Generator) -> list[str]:
        """A test slot's other words, most frequent first: the likely ones, then that part of speech, shuffled."""
        if pair.part == "verb":
            return lexicon.BASE_VERBS.split()  # already in a natural order
        likely = pair.likely.split()
        words = {w for topic in lexicon.TOPICS.values() for w in topic[f"{pair.part}s"].split()}
        rest = sorted(words - set(likely))
        rng.shuffle(rest)
        return likely + rest

    def log_prob(self, words: list[str]) -> float:
        """Exact log probability (nats) of a prefix, a sentence or several in a row; -inf if it cannot occur."""
        total, joint, position = 0.0, self._weight, 0  # joint: with frame and topic (frames, topics), of one sentence
        with np.errstate(divide="ignore"):  # log 0, of what cannot occur
            for word in words:
                if word not in self.index or position == self._item.shape[1]:
                    return -np.inf
                joint = joint * self._table[self._item[:, position], :, self.index[word]]
                position += 1
                if word == ".":
                    total += np.log(joint.sum())
                    joint, position = self._weight, 0
            return float(total + np.log(joint.sum()) if position else total)

    def sample(self, n: int, seed: int) -> list[list[str]]:
        """`n` sentences, each a list of words that ends with "."; the same seed gives the same sentences."""
        rng = np.random.default_rng(seed)
        flat = self._weight.ravel()
        choice = rng.choice(flat.size, size=n, p=flat / flat.sum())
        u = rng.random((n, self._item.shape[1]))
        sentences: list[list[str]] = [[] for _ in range(n)]
        for cell in np.unique(choice):  # all sentences of one frame and topic at once
            f, t = divmod(int(cell), len(self.topics))
            members = np.flatnonzero(choice == cell)
            for position in range(len(self.frames[f].items)):
                cumulative = self._table[self._item[f, position], t].cumsum()
                drawn = np.searchsorted(cumulative / cumulative[-1], u[members, position], side="right")
                for member, word in zip(members, drawn, strict=True):
                    sentences[member].append(self.words[word])
        return sentences
