"""Control pairs of chapter 11: the same prompts, another relation."""

from dataclasses import replace

import pytest
import torch
from chapter import chapter

from phantomlib.contexts import load_contexts, resolve
from phantomlib.errors import ParameterError
from phantomlib.models import language_model
from phantomlib.order_parameter import overlaps

eleven = chapter("11")


@pytest.fixture(scope="module")
def setting():
    model = language_model.load("zoo:gpt2-s")
    contexts = [resolve(c, model.tokenizer) for c in load_contexts()[:4]]
    return model, contexts, language_model.next_token_logits(model, contexts)


def test_unrelated_keeps_prompt_and_competitor_and_nearly_the_gap(setting):
    model, contexts, logits = setting
    for context, control, z in zip(contexts, eleven.controls(model, contexts, "unrelated"), logits, strict=True):
        assert (control.prompt_ids, control.competitor_id) == (context.prompt_ids, context.competitor_id)
        g = overlaps(model.readout, torch.tensor([context.competitor_id]))[:, 0]
        assert control.correct_id != context.correct_id and g[control.correct_id] <= g.median()
        allowed = [i for i in range(len(z)) if g[i] <= g.median() and z[i] < z[context.competitor_id]]
        best = min(abs(float(z[i] - z[context.correct_id])) for i in allowed if i != context.correct_id)
        assert abs(float(z[control.correct_id] - z[context.correct_id])) == pytest.approx(best)


def test_matched_controls_are_all_tokens_near_the_correct_ones_logit_with_less_overlap(setting):
    model, contexts, logits = setting
    found = eleven.controls(model, contexts, "matched")
    for context, z in zip(contexts, logits, strict=True):
        own = context.correct_id
        g = overlaps(model.readout, torch.tensor([context.competitor_id]))[:, 0]
        near = [i for i in range(len(z)) if i != own and abs(float(z[i] - z[own])) <= 0.5 and g[i] <= 0.75 * g[own]]
        near = sorted((i for i in near if z[i] < z[context.competitor_id]), key=lambda i: abs(float(z[i] - z[own])))
        mine = [c for c in found if c.id.startswith(f"{context.id}.")]
        assert [c.correct_id for c in mine] == near[:5]
        assert all(c.prompt_ids == context.prompt_ids and c.competitor_id == context.competitor_id for c in mine)
    assert len({c.id for c in found}) == len(found) > 4


@pytest.mark.parametrize("kind", eleven.KINDS)
def test_the_competitor_outranks(setting, kind):
    model, contexts, _ = setting
    for control in (found := eleven.controls(model, contexts, kind, seed=3)):
        z = language_model.next_token_logits(model, [control])[0]
        assert z[control.correct_id] < z[control.competitor_id] and control.context.kind == kind
    assert found


def test_random_pairs_follow_the_seed_and_are_likely_tokens(setting):
    model, contexts, logits = setting
    pairs = [eleven.controls(model, contexts, "random pair", seed) for seed in (0, 0, 1)]
    assert pairs[0] == pairs[1] != pairs[2]
    assert all(int((z > z[c.correct_id]).sum()) < eleven.LIKELY for c, z in zip(pairs[0], logits, strict=True))


def test_words_a_tokenizer_splits_are_left_out(setting):
    model, contexts, _ = setting
    words = {model.tokenizer.decode([i]).strip() for i in range(len(model.readout))}
    found = eleven.controls(model, contexts, "antonym")
    assert [c.id for c in found] == [own for own, other in eleven.ANTONYMS.items() if {own, other} <= words]


def test_a_competitor_that_outranks_nothing_has_no_unrelated_control(setting):
    model, contexts, logits = setting
    poor = replace(contexts[1], correct_id=int(logits[1].argmax()), competitor_id=int(logits[1].argmin()))
    found = eleven.controls(model, [contexts[0], poor, contexts[2]], "unrelated")
    assert [c.id for c in found] == [contexts[0].id, contexts[2].id]


def test_an_unknown_kind_is_refused(setting):
    with pytest.raises(ParameterError, match="'synonym'; choose one of matched"):
        eleven.controls(None, [], "synonym")
