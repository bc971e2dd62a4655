"""Collateral against a copy of the model trained with torch.optim, text by text, by scipy."""

import copy
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from chapter import chapter
from plain import divergence, trained_copy

from phantomlib.critical import collateral
from phantomlib.critical.collateral import Probe, train_until_overtaking
from phantomlib.critical.step_zero import Problem
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.runs.store import Store

SENTENCES = ["3 1 4 1 5", "9 2 6", "5 3 5 8 9 7 9"]
FAST = {"sgd": 0.3, "adam": 0.02}  # overtakes within ten steps


def speaking(architecture):
    """A tiny model whose words are its token ids."""

    def tokenizer(sentences):
        return {"input_ids": [[int(word) for word in sentence.split()] for sentence in sentences]}

    return replace(tiny.model(architecture), tokenizer=tokenizer)


def changed_elsewhere(folder, *given, sentences=SENTENCES):
    """As chapter 18 measures it."""
    nb = SimpleNamespace(store=Store(folder), seed=0)
    return chapter("18", nb=nb, sentences=sentences).changed_elsewhere(*given)


@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("architecture, method", [("GPT2", "full"), ("GPTNeoX", "full"), ("Llama", "lora")])
def test_it_is_what_a_trained_copy_has_changed(architecture, method, optimizer, loss, tmp_path):
    model = speaking(architecture)
    contexts = tiny.contexts(model, lengths=(7, 4, 5))
    recipe = Recipe(optimizer=optimizer, method=method, steps=10, rank=2, loss=loss)
    rates = [FAST[optimizer]] * 3
    run = finetune(model, contexts, rates[:1], recipe).isel(rate=0, seed=0)
    assert (run.logit_gap > 0).any("step").all()
    found = changed_elsewhere(tmp_path, model, contexts, rates, recipe)
    assert found.step.tolist() == [int(np.argmax(gap > 0)) for gap in run.logit_gap.values]
    texts = model.tokenizer(SENTENCES)["input_ids"]
    for context, one in zip(contexts, found.itertuples(), strict=True):
        after = trained_copy(model, context, rates[0], recipe, int(one.step))
        others = [c.prompt_ids for c in contexts if c is not context]
        on_contexts = np.mean([divergence(model.module, after, ids)[-1] for ids in others])
        on_sentences = torch.cat([divergence(model.module, after, ids)[:-1] for ids in texts]).mean()
        with torch.no_grad():
            p = after(torch.tensor([context.prompt_ids])).logits[0, -1].softmax(0)[context.correct_id]
        expected = tuple(map(float, (on_contexts, on_sentences, p)))
        assert (one.on_contexts, one.on_sentences, one.p_correct) == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert min(expected) > 1e-6  # something was changed


def test_the_untouched_model_has_no_collateral_and_stays_as_it_is():
    model, recipe = speaking("GPT2"), Recipe(steps=3)
    contexts, before = tiny.contexts(model), copy.deepcopy(model.module.state_dict())
    probe, problem = (
        Probe(model, recipe, [c.prompt_ids for c in contexts], last=True),
        Problem(model, contexts[0], recipe),
    )
    assert probe.divergence(problem.values).tolist() == [0.0, 0.0]
    _, values = train_until_overtaking(problem, 0.01, recipe)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in values.items())


def test_what_does_not_fit_is_refused_first(monkeypatch):
    monkeypatch.setattr(collateral.memory, "free", lambda device: 1000)
    with pytest.raises(ParameterError, match="Keeping what the untouched model predicts elsewhere needs about"):
        Probe(speaking("GPT2"), Recipe(), [(1, 2)], last=True)


@pytest.mark.parametrize("last", [True, False])
def test_texts_are_looked_at_in_blocks(last, monkeypatch):
    """As many as fit, each in its place; one at a time where not even two do."""
    model = speaking("GPT2")
    texts = [c.prompt_ids for c in tiny.contexts(model, lengths=(7, 4, 5))]
    problem = Problem(model, tiny.contexts(model)[0], Recipe())
    moved = {name: 1.1 * value for name, value in problem.values.items()}
    whole = Probe(model, Recipe(), texts, last=last)
    for block, sizes in ((2 * 7 * len(model.readout), [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr(collateral, "BLOCK", block)
        probe = Probe(model, Recipe(), texts, last=last)
        assert len(whole.ids) == 1 and [len(ids) for ids in probe.ids] == sizes
        assert probe.divergence(moved).tolist() == pytest.approx(whole.divergence(moved).tolist(), rel=1e-9)
    assert min(whole.divergence(moved)) > 1e-6


def test_small_divergences_are_not_rounding():
    """In float32, against the same change in float64."""
    single = tiny.model("GPT2", "float32")
    found = []
    for model in (single, replace(single, module=copy.deepcopy(single.module).double())):
        context = tiny.contexts(single)[0]
        problem = Problem(model, context, Recipe())
        direction = torch.randn(41, 16, generator=torch.Generator().manual_seed(1)).to(model.readout.dtype)
        moved = problem.values | {problem.readout: problem.values[problem.readout] + 1e-4 * direction}
        found.append(float(Probe(model, Recipe(), [context.prompt_ids], last=True).divergence(moved)[0]))
    assert 1e-9 < found[1] < 1e-6 and found[0] == pytest.approx(found[1], rel=0.02)


def test_it_is_kept_for_what_it_depends_on_and_absent_without_overtaking(tmp_path):
    model, recipe = speaking("GPT2"), Recipe(steps=6)
    contexts, rates = tiny.contexts(model, lengths=(7, 4, 5)), [1e-7, math.nan, 0.05]
    first = changed_elsewhere(tmp_path, model, contexts, rates, recipe)
    assert first.isna().all(axis=1).tolist() == [True, True, False]

    def kept():
        return len(list(tmp_path.glob("collateral/*.json")))

    assert changed_elsewhere(tmp_path, model, contexts, rates, recipe).equals(first) and kept() == 1
    changed_elsewhere(tmp_path, model, contexts, [1e-7, math.nan, 0.06], recipe)
    changed_elsewhere(tmp_path, model, contexts, rates, recipe, sentences=SENTENCES[:2])
    changed_elsewhere(tmp_path, model, contexts, rates, replace(recipe, loss="margin"))
    assert kept() == 4
