"""What is advised works when it is done, and costs what is said."""

import math
from dataclasses import replace

import pytest
import tiny

from phantombook.diagnosis_text import diagnosis_as_dict, diagnosis_as_text
from phantomlib.contexts import load_contexts, resolve
from phantomlib.critical.collateral import collateral
from phantomlib.critical.rehearsal import OVERTAKES, SILENT, Estimate
from phantomlib.cure import BARELY, remedies
from phantomlib.diagnosis import diagnose
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import load
from phantomlib.runs.store import Store


@pytest.fixture(scope="module")
def model():
    return load("zoo:gpt2-s")


def context(model, number=0):
    return resolve(load_contexts()[number], model.tokenizer)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_remedy_makes_the_word_overtake(model, method):
    recipe, rate = Recipe(method=method, steps=12), {"full": 1e-5, "lora": 1e-4}[method]
    found = diagnose(model, context(model), recipe, rate)
    assert found.outcome == SILENT and [r.way for r in found.remedies] == ["learning rate", "steps", "margin"]
    for remedy in found.remedies:
        done = replace(recipe, steps=remedy.steps, loss=remedy.loss)
        run = finetune(model, [context(model)], [remedy.learning_rate], done)
        assert bool((run.logit_gap > 0).any()), remedy
        assert remedy.training == remedy.steps / recipe.steps
    larger, longer, margin = found.remedies
    assert (
        larger.steps == margin.steps == 12 and longer.learning_rate == rate and longer.collateral == larger.collateral
    )


def test_the_cost_of_four_steps_is_that_of_the_fine_tune_itself(model, tmp_path):
    """With T = 4 the rehearsal is the fine-tune."""
    ours, recipe = [context(model, n) for n in range(3)], Recipe(steps=4)
    prompts = [c.prompt for c in load_contexts()]
    found = diagnose(model, ours[1], recipe)
    for remedy in found.remedies:
        done = replace(recipe, loss=remedy.loss)
        [margin] = diagnose(model, ours[1], done).remedies if remedy.loss == "margin" else [None]
        rate = found.critical.rate if margin is None else diagnose(model, ours[1], done).critical.rate
        elsewhere = [p for p in prompts if p != ours[1].context.prompt]
        measured = collateral(Store(tmp_path), model, ours[1:2], [BARELY * rate], done, elsewhere)
        assert remedy.collateral == pytest.approx(float(measured.on_sentences[0]), rel=1e-6) and remedy.collateral > 0
        assert margin is None or margin.way == "learning rate"  # a margin loss needs no second margin


def test_no_remedy_where_none_is_needed_or_known():
    plain = tiny.model("GPT2")
    one = tiny.contexts(plain)[0]
    assert diagnose(plain, one, Recipe(steps=4), 0.05).outcome == OVERTAKES
    assert diagnose(plain, one, Recipe(steps=4), 0.05).remedies == ()
    assert remedies(plain, one, Recipe(steps=4), Estimate(math.nan, math.nan, math.nan), 1e-4) == ()


def test_a_model_without_words_still_gets_advice():
    plain = tiny.model("GPT2")  # has no tokenizer
    found = diagnose(plain, tiny.contexts(plain)[0], Recipe(steps=4), 1e-5)
    assert all(math.isnan(r.collateral) for r in found.remedies) and "not measured" in diagnosis_as_text(found)


def test_no_number_of_steps_is_advised_that_nobody_could_run(model):
    found = diagnose(model, context(model), Recipe(steps=4), 1e-300)
    assert [r.way for r in found.remedies] == ["learning rate", "margin"]


def test_text_and_json_hold_the_remedies(model):
    found = diagnose(model, context(model), Recipe(steps=4), 1e-6)
    text = diagnosis_as_text(found)
    for remedy in found.remedies:
        assert f"{remedy.steps} steps at {remedy.learning_rate:.2g}" in text and f"{remedy.collateral:.2g} nat" in text
    said = diagnosis_as_dict(found)["diagnosis"]["remedies"]
    assert [one["loss"] for one in said] == ["cross-entropy", "cross-entropy", "margin"]
