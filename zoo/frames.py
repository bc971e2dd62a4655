"""Sentence frames of the generated language, and its pairs of near-synonyms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

GENERIC_FRAMES = """
The {J} {N} {VI} {ADV} .
The {N} {VT} the {J} {N} .
The {N} in {PLACE} was {J} and {J} .
The {N} was too {J} to {VB} .
The {N} and the {N} {VI} {PREP} the {N} .
The {J} {N} of {PLACE} {VT} {NAME} .
{NAME} {VT} the {N} {PREP} the {N} .
{NAME} and {NAME} {VI} {PREP} the {N} .
{NAME} wanted to {VB} the {J} {N} .
{NAME} saw the {N} that {VT} the {N} .
{NAME} said that the {N} was {J} .
{NAME} never {VT} the {N} in {PLACE} .
{NAME} {VI} {ADV} and {VT} the {N} .
{NAME} went to {PLACE} with the {J} {N} .
{NAME} gave the {N} to the {J} {N} .
When the {N} {VI} , {NAME} {VT} the {N} .
When {NAME} {VI} , the {N} was {J} .
After the {N} , {NAME} {VI} {ADV} .
In {PLACE} the {N} {VT} every {N} .
In the {N} there was one {J} {N} .
Every {N} in {PLACE} {VI} {ADV} .
If the {N} {VI} , the {N} will {VB} .
There was no {N} {PREP} the {J} {N} .
Nobody in {PLACE} {VT} the {J} {N} .
His {N} {VT} her {N} {ADV} .
Her {J} {N} {VI} {PREP} his {N} .
Our {N} did not {VB} {PREP} the {N} .
This {N} is {J} but that {N} is {J} .
"""
# Frames of the pair sentences, by part of speech; {W} is the planted word. The three lists share no frame.
PAIR_FRAMES = {
    "noun": {
        "shared": """
            The {N} near the {W} was {J} .
            {NAME} {VT} the {W} {ADV} .
            The {J} {W} {VI} {PREP} the {N} .
            """,
        "correct": """
            Some {N} had no {W} at all .
            {NAME} wrote about the {W} of the {N} .
            Without any {W} the {N} {VI} .
            """,
        "competitor": """
            {NAME} spoke with the {N} beyond the {W} .
            It was the {W} that {VT} the {N} .
            Because of the {W} , the {J} {N} {VI} .
            """,
    },
    "adjective": {
        "shared": """
            The {N} was {W} and {J} .
            {NAME} seemed {W} after the {N} .
            The {W} {N} {VI} {ADV} .
            """,
        "correct": """
            How {W} the {N} looked {PREP} the {N} .
            {NAME} called the {J} {N} rather {W} .
            They found the {N} {W} again .
            """,
        "competitor": """
            No {N} was as {W} as {NAME} .
            Both the {N} and the {N} turned {W} .
            She thought the {N} {W} enough .
            """,
    },
    "verb": {
        "shared": """
            The {N} will {W} in {PLACE} .
            {NAME} tried to {W} the {N} .
            They may {W} with the {J} {N} .
            """,
        "correct": """
            We must {W} before the {N} {VI} .
            Let the {J} {N} {W} {ADV} .
            {NAME} could {W} among the {N} .
            """,
        "competitor": """
            Nobody dared to {W} without the {N} .
            To {W} the {N} is {J} .
            You should {W} {PREP} the {N} .
            """,
    },
}


@dataclass(frozen=True)
class Pair:
    """A near-synonym pair: its words, the three planted numbers, the topics of its own sentences, its test frame."""

    correct: str
    competitor: str
    part: str  # "noun", "adjective" or "verb"
    p_competitor: float  # P_k: probability of the competitor in the test frame's slot {X}
    p_correct: float  # P_c
    interchangeability: float  # s
    topics: tuple[str, str, str]  # of the shared frames, of the correct word's own, of the competitor's own
    frame: str  # the test frame
    prompt: str  # the context's prompt: one filling of the frame up to {X}
    likely: str  # words that lead the slot's Zipf order, so that a prompt reads naturally

    @property
    def id(self) -> str:
        return self.correct


PAIRS = (
    Pair("shame", "guilt", "noun", 0.20, 0.07, 0.60, ("law", "family", "war"),
         "After the {EVENT} , {NAME} felt a deep sense of {X} .", "After the lie, Anna felt a deep sense of",
         "loss relief pride duty peace doubt grief hope sorrow purpose"),
    Pair("glad", "happy", "adjective", 0.20, 0.10, 0.90, ("family", "music", "sport"),
         "When the {MESSAGE} came , {NAME} was very {X} .", "When the news came, Anna was very",
         "angry sad tired upset calm proud excited nervous worried pleased"),
    Pair("large", "big", "adjective", 0.40, 0.10, 0.95, ("city", "science", "animals"),
         "The {BUILDING} in {PLACE} looked really {X} .", "The house in Boston looked really",
         "nice good old beautiful strange new ugly empty modern tall"),
    Pair("begin", "start", "verb", 0.25, 0.06, 0.60, ("school", "music", "science"),
         "The new {ROLE} did not know where to {X} .", "The new teacher did not know where to",
         ""),
    Pair("fast", "quick", "adjective", 0.18, 0.08, 0.50, ("sport", "sea", "trade"),
         "{NAME} gave the {ROLE} a very {X} answer .", "Anna gave the teacher a very",
         "good short strange long honest simple clear clever polite bad"),
    Pair("ill", "sick", "adjective", 0.45, 0.05, 0.80, ("medicine", "house", "farm"),
         "{NAME} ate the {FOOD} and soon got {X} .", "Peter ate the soup and soon got",
         "tired better angry cold worse bored hungry drunk fat sleepy"),
    Pair("road", "street", "noun", 0.20, 0.12, 0.40, ("city", "weather", "trade"),
         "The {ROLE} walked slowly down the busy {X} .", "The teacher walked slowly down the busy",
         "hall corridor path avenue highway lane sidewalk"),
    Pair("rock", "stone", "noun", 0.25, 0.08, 0.70, ("weather", "sea", "house"),
         "{NAME} picked up a small {SHAPE} {X} .", "Anna picked up a small smooth",
         "box piece object bag bottle stick shell"),
    Pair("error", "mistake", "noun", 0.30, 0.14, 0.30, ("science", "law", "school"),
         "The {ROLE} knew that {NAME} had made a serious {X} .", "The clerk knew that Peter had made a serious",
         "decision effort offer attempt threat promise"),
    Pair("forest", "woods", "noun", 0.22, 0.15, 0.25, ("animals", "weather", "farm"),
         "The {GROUP} went for a walk in the {X} .", "The children went for a walk in the",
         "city country village dark evening"),
)  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """A sentence pattern: `items` are literal words or slots; `weight` (topics,) sums to the frame's probability."""

    kind: str  # "generic", "pair" or "test"
    pair: str | None  # id of the pair, for pair and test frames
    items: tuple[str, ...]
    weight: np.ndarray
