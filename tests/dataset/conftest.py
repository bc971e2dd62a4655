"""Sentences of the zoo's language that its models have not seen."""

import pytest

from zoo.language import join_words
from zoo.recipe import RECIPES, validation


@pytest.fixture(scope="session")
def sentences():
    drawn, unseen = validation(RECIPES["gpt2-s"])
    return [{"text": join_words(words)} for words, new in zip(drawn, unseen, strict=True) if new]
