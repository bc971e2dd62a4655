"""Control pairs: the same prompts, another relation."""

from dataclasses import replace

import pytest
import torch

from phantomlib import control_contexts
from phantomlib.contexts import load_contexts, resolve
from phantomlib.control_contexts import ANTONYMS, LIKELY, controls
from phantomlib.errors import ParameterError
from phantomlib.models import language_model
from phantomlib.order_parameter import overlaps


@pytest.fixture(scope="module")
def setting():
    model = language_model.load("zoo:gpt2-s")
    contexts = [resolve(c, model.tokenizer) for c in load_contexts()[:4]]
    return model, contexts, language_model.next_token_logits(model, contexts)


def test_unrelated_keeps_prompt_and_competitor_and_nearly_the_gap(setting):
    model, contexts, logits = setting
    for context, control, z in zip(contexts, controls(model, contexts, "unrelated"), logits, strict=True):
        assert (control.prompt_ids, control.competitor_id) == (context.prompt_ids, context.competitor_id)
        g = overlaps(model.readout, torch.tensor([context.competitor_id]))[:, 0]
        assert control.correct_id != context.correct_id and g[control.correct_id] <= g.median()
        others = [
            i
            for i in range(len(z))
            if g[i] <= g.median() and z[i] < z[context.competitor_id] and i != context.correct_id
        ]
        best = min(abs(float(z[i] - z[context.correct_id])) for i in others)
        assert abs(float(z[control.correct_id] - z[context.correct_id])) == pytest.approx(best)


@pytest.mark.parametrize("kind", ["unrelated", "random pair"])
def test_competitor_outranks(setting, kind):
    model, contexts, logits = setting
    for control, z in zip(controls(model, contexts, kind, seed=3), logits, strict=True):
        assert z[control.correct_id] < z[control.competitor_id]
        assert control.context.kind == kind


def test_random_pairs_follow_the_seed_and_are_likely_tokens(setting):
    model, contexts, logits = setting
    pairs = [
        [(c.correct_id, c.competitor_id) for c in controls(model, contexts, "random pair", seed)] for seed in (0, 0, 1)
    ]
    assert pairs[0] == pairs[1] != pairs[2]
    for control, z in zip(controls(model, contexts, "random pair"), logits, strict=True):
        assert int((z > z[control.correct_id]).sum()) < LIKELY


def test_words_a_tokenizer_splits_are_left_out(setting):
    model, contexts, _ = setting
    found = controls(model, contexts, "antonym")
    words = {piece.strip() for piece in map(lambda i: model.tokenizer.decode([i]), range(len(model.readout)))}
    listed = load_contexts(ANTONYMS)
    assert [c.id for c in found] == [c.id for c in listed if {c.correct, c.competitor} <= words]
    for control in found:
        z = language_model.next_token_logits(model, [control])[0]
        assert z[control.correct_id] < z[control.competitor_id]


def test_a_competitor_that_outranks_nothing_has_no_unrelated_control(setting):
    model, contexts, logits = setting
    last = int(logits[1].argmin())
    poor = replace(contexts[1], correct_id=int(logits[1].argmax()), competitor_id=last)
    found = controls(model, [contexts[0], poor, contexts[2]], "unrelated")
    assert [c.id for c in found] == [contexts[0].id, contexts[2].id]


def test_unknown_kind_is_refused_before_the_model_is_asked(setting, monkeypatch):
    model, contexts, _ = setting
    monkeypatch.setattr(control_contexts, "next_token_logits", lambda *_: pytest.fail("computed"))
    with pytest.raises(ParameterError, match="'synonym'; choose one of unrelated"):
        controls(model, contexts, "synonym")
