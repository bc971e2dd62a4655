"""What is advised works when it is done, and costs what is said; the loss that looks at the competitor is what it says."""

import json
import math
import textwrap
from dataclasses import replace

import pytest
import tiny
import torch
from plain import divergence, trained_copy

from phantombook.diagnosis_text import diagnosis_as_json, diagnosis_as_text
from phantomlib import cure
from phantomlib.contexts import Context, Resolved, load_contexts, resolve
from phantomlib.critical.rehearsal import OVERTAKES, SILENT, Estimate
from phantomlib.cure import BARELY, CompetitorLoss, remedies
from phantomlib.diagnosis import diagnose
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError
from phantomlib.models.language_model import load


@pytest.fixture(scope="module")
def model():
    return load("zoo:gpt2-s")


@pytest.fixture(scope="module")
def context(model):
    return resolve(load_contexts()[0], model.tokenizer)


@pytest.mark.parametrize("method, rate", [("full", 1e-5), ("lora", 1e-4)])
def test_each_remedy_makes_the_word_overtake(method, rate, model, context):
    recipe = Recipe(method=method, steps=8)
    found = diagnose(model, context, recipe, rate)
    assert found.outcome == SILENT and [r.way for r in found.remedies] == ["learning rate", "steps", "margin"]
    text, said = diagnosis_as_text(found), json.loads(diagnosis_as_json(found))["diagnosis"]["remedies"]
    for remedy, told in zip(found.remedies, said, strict=True):
        done = replace(recipe, steps=remedy.steps, loss=remedy.loss)
        assert bool((finetune(model, [context], [remedy.learning_rate], done).logit_gap > 0).any()), remedy
        assert remedy.training == remedy.steps / recipe.steps and told["loss"] == remedy.loss
        assert f"{remedy.steps} steps at {remedy.learning_rate:.2g}" in text and f"{remedy.collateral:.2g} nat" in text
    larger, longer, margin = found.remedies
    assert larger.steps == margin.steps == 8 and longer.learning_rate == rate
    assert longer.collateral == larger.collateral and (longer.loss, margin.loss) == ("cross-entropy", "margin")


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_the_cost_of_four_steps_is_that_of_the_fine_tune_itself(loss, model, context):
    """With T = 4 the rehearsal is the fine-tune."""
    recipe = Recipe(steps=4, loss=loss)
    found = diagnose(model, context, recipe)
    rate = BARELY * found.critical.rate
    gap = finetune(model, [context], [rate], recipe).logit_gap[0, 0, 0]
    after = trained_copy(model, context, rate, recipe, int((gap > 0).argmax()))
    elsewhere = [c.prompt for c in load_contexts() if c.prompt != context.context.prompt]
    places = torch.cat([divergence(model.module, after, ids)[:-1] for ids in model.tokenizer(elsewhere)["input_ids"]])
    assert found.remedies[0].collateral == pytest.approx(float(places.mean()), rel=1e-3) and places.mean() > 0
    # a margin loss needs no second margin
    assert [r.loss for r in found.remedies] == {"cross-entropy": [loss, "margin"], "margin": [loss]}[loss]


def test_no_remedy_where_none_is_needed_or_known():
    plain = tiny.model("GPT2")  # has no tokenizer
    one = tiny.contexts(plain)[0]
    overtakes, found = (diagnose(plain, one, Recipe(steps=4), rate) for rate in (0.05, 1e-300))
    assert overtakes.outcome == OVERTAKES and overtakes.remedies == ()
    assert remedies(plain, one, Recipe(steps=4), Estimate(math.nan, math.nan, math.nan), 1e-4) == ()
    # no number of steps is advised that nobody could run; without words nothing can be told of other prompts
    assert [r.way for r in found.remedies] == ["learning rate", "margin"]
    assert all(math.isnan(r.collateral) for r in found.remedies) and "not measured" in diagnosis_as_text(found)


def test_the_term_counts_wherever_the_word_comes_next():
    logits = torch.randn(3, 5, 41, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([[7, 3, 3, 9, -100], [3, 2, 1, 0, 3], [5, 5, 9, 5, 5]])
    pairs = [(3, 8), (9, 1), (3, 8), (3, 5)]  # one again after another prompt, one with a second competitor
    words = Context("a", "p", "x", "y")
    loss = CompetitorLoss([Resolved(words, (n,), *pair) for n, pair in enumerate(pairs)], loss="margin", weight=0.5)
    expected, count = 0.0, 0
    for row, targets in zip(logits.double(), labels, strict=True):
        for z, label in zip(row[:-1], targets[1:].tolist(), strict=True):
            if label != -100:
                count += 1
                expected -= float(z.log_softmax(0)[label])
                for competitor in {3: (8, 5), 9: (1,)}.get(label, ()):
                    expected += 0.5 * float(torch.log(1 + torch.exp(z[competitor] - z[label])))
    assert float(loss({"logits": logits}, labels)) == pytest.approx(expected / count, rel=1e-5)
    assert float(loss({"logits": logits}, labels, torch.tensor(40))) == pytest.approx(expected / 40, rel=1e-5)


def test_the_example_of_the_module_works(tmp_path, monkeypatch):
    example = textwrap.dedent(cure.__doc__.split("::\n")[1].split("\nOr let")[0])
    pair, tokenizer = Context("x", "she felt deep", "shame", "guilt"), tiny.leading()
    (tmp_path / "my_contexts.yaml").write_text("- {id: x, prompt: she felt deep, correct: shame, competitor: guilt}\n")
    monkeypatch.chdir(tmp_path)
    names = {"tokenizer": tokenizer, "Trainer": lambda *given, **options: options}
    exec(example, names)
    correct, competitor = (tokenizer(f" {word}")["input_ids"][0] for word in ("shame", "guilt"))
    assert names["trainer"]["compute_loss_func"].competitors == {correct: [competitor]}
    with pytest.raises(ContextError):
        CompetitorLoss([replace(pair, correct="zyzzyva")], tokenizer)


@pytest.mark.parametrize("given", [{"loss": "cross-entropy"}, {"loss": "hinge"}, {"weight": 0.0}, {"weight": -1.0}])
def test_what_makes_no_term_is_refused(given):
    with pytest.raises(ParameterError):
        CompetitorLoss(tiny.contexts(tiny.model()), **given)
    with pytest.raises(ParameterError, match="at least one"):
        CompetitorLoss([])


@pytest.mark.parametrize("loss", ["margin", "unlikelihood", "gap"])
def test_no_step_waits_for_the_device(loss):
    """On the device meta everything that would need a number on the host raises."""
    made = CompetitorLoss(tiny.contexts(tiny.model("GPT2", "float32")), loss=loss)
    logits, labels = torch.empty(2, 5, 41, device="meta"), torch.empty(2, 5, dtype=torch.long, device="meta")
    assert made({"logits": logits}, labels).shape == made({"logits": logits}, labels, 7).shape == ()
