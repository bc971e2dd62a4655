"""A run to follow, shared by the tests of this folder."""

import pytest
import tiny

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.transition import jumps


@pytest.fixture(scope="module")
def jumping():
    """A tiny model, its contexts, a run, and a "jump" declared at step 3 of every context."""
    model, recipe = tiny.model("GPTNeoX"), Recipe(optimizer="adam", steps=6)
    contexts = tiny.contexts(model)
    run = finetune(model, contexts, [0.01], recipe)
    table = jumps.find_jumps(run, size_factor=0, median_factor=0)
    first = table[table["step"] == 3].drop_duplicates("context").set_index("context")
    return model, contexts, recipe, run, first
