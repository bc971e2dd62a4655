"""Diagnosis before training: every architecture, predictions against measured outcomes, proposals."""

import copy
import math
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import transformers
from tiny import ARCHITECTURES, contexts, model

from phantombook.diagnosis_text import diagnosis_as_text
from phantomlib.contexts import Context, load_contexts, resolve
from phantomlib.critical.rehearsal import CLOSE, OVERTAKES, SILENT, UNKNOWN, Estimate, estimate_critical_rate
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import velocity
from phantomlib.diagnosis import diagnose, propose
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, PhantomError
from phantomlib.models import language_model
from phantomlib.order_parameter import density_matrix, normalise, order_parameter_by_trace
from phantomlib.runs.store import Store

GPT2 = model("GPT2")
CONTEXT = contexts(GPT2)[0]
RECORDED = {"rank": "rank_correct", "gap": "logit_gap"}
RECORDED |= {name: name for name in ("p_correct", "p_competitor", "overlap", "phi", "signal", "drag")}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_from_diagnosis_to_outcome(architecture):
    """With T = 4 the rehearsal is the fine-tune, so the prediction must be right for any model at all."""
    plain = model(architecture)
    context = contexts(plain)[0]
    recipe = Recipe(rank=4, steps=4)
    found = diagnose(plain, context, recipe, learning_rate=1e-4)
    for method, estimate in (("full", found.critical), ("lora", found.critical_lora)):
        run = finetune(plain, [context], [estimate.low, estimate.high], replace(recipe, method=method))
        assert (run.logit_gap > 0).any("step").values.ravel().tolist() == [False, True]
        before = run.isel(context=0, rate=0, seed=0, step=0)
        for name, recorded in RECORDED.items():
            assert getattr(found, name) == pytest.approx(float(before[recorded]), rel=1e-9, abs=1e-12), name
    assert found.bulk_mass == pytest.approx(1 - found.p_correct - found.p_competitor)


@pytest.mark.parametrize("tied", [True, False])
def test_order_parameter_of_the_diagnosis_is_the_trace(tied):
    plain = model("GPT2", tied=tied)
    context = contexts(plain)[0]
    found = diagnose(plain, context, Recipe(steps=2))
    p = plain.module(torch.tensor([context.prompt_ids])).logits[0, -1].softmax(-1)
    e = normalise(plain.readout)
    trace = order_parameter_by_trace(density_matrix(p, plain.readout), e[context.correct_id], e[context.competitor_id])
    assert found.phi == pytest.approx(float(trace), abs=1e-12)


def test_words_of_several_tokens_are_compared_where_they_part():
    plain, prompt = language_model.load("zoo:gpt2-s"), "After the lie, Anna felt a deep sense of"
    found = diagnose(plain, resolve(Context("a", prompt, "shameful", "guilt"), plain.tokenizer), Recipe(steps=2))
    z = plain.module(torch.tensor([plain.tokenizer(prompt)["input_ids"]])).logits[0, -1]
    first, rival = (plain.tokenizer(word)["input_ids"][0] for word in (" shameful", " guilt"))
    assert found.gap == pytest.approx(float(z[first] - z[rival]), abs=1e-5)
    assert f"at token 1 of each: “{plain.tokenizer.decode([first]).strip()}” and “guilt”" in diagnosis_as_text(
        found
    ).replace("\n ", "")
    assert all(one.probability > float(z.softmax(0)[first]) for one in propose(plain, prompt, "shameful"))


def test_kinematic_number_and_outcomes():
    recipe = Recipe(steps=8)
    [critical] = estimate_critical_rate(GPT2, [CONTEXT], recipe)
    said = {SILENT: "without ever preferring", CLOSE: "too close", OVERTAKES: "after about 4 steps"}
    for rate, outcome in zip((critical.low * 0.5, critical.rate, critical.high * 2), said, strict=True):
        one = diagnose(GPT2, CONTEXT, recipe, rate)
        assert one.outcome == outcome and said[outcome] in one.verdict and one.critical == critical
        assert one.kinematic_number == pytest.approx(rate * 8 * one.velocity / abs(one.gap))
    assert Estimate(math.nan, math.nan, math.nan).outcome(1.0) == UNKNOWN
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ParameterError):
            diagnose(GPT2, CONTEXT, recipe, rate)


@pytest.mark.parametrize("name, place", [("gpt2-s", 0), ("gpt2-s", 3), ("neox-s", 5)])
def test_the_law_of_lora_gives_its_rate_from_that_of_full_fine_tuning(name, place, tmp_path):
    """Against a search; on the zoo the law was off by 2.6 % in the median from measured rates, and by 8 % at most."""
    small = language_model.load(f"zoo:{name}")
    context = resolve(load_contexts()[place], small.tokenizer)
    found = diagnose(small, context, Recipe(steps=20))
    measured = critical_rates(Store(tmp_path), small, [context], Recipe(method="lora", steps=20)).critical_rate.item()
    assert found.lora_by_law == pytest.approx(measured, rel=0.1) and "by LoRA's law" in diagnosis_as_text(found)
    alone = (
        found.critical_full.rate * found.velocity / velocity(small, [context], Recipe(method="lora")).velocity.item()
    )
    assert abs(alone / measured - 1) > 0.3  # without A


def test_under_sgd_no_law_is_said():
    found = diagnose(GPT2, CONTEXT, Recipe(optimizer="sgd", steps=4))
    assert math.isnan(found.lora_by_law) and "law" not in diagnosis_as_text(found)


def test_what_the_verdict_advises_works():
    plain = model("Llama")
    context = contexts(plain, place=8)[0]
    recipe = Recipe(steps=8)
    [critical] = estimate_critical_rate(plain, [context], recipe)
    verdict = diagnose(plain, context, recipe, 0.4 * critical.rate).verdict
    advice = verdict.split("Try ")[1]
    rate, steps = float(advice.split(",")[0]), int(advice.split("or ")[1].split()[0])
    for used in ((rate, recipe), (0.4 * critical.rate, Recipe(steps=steps))):
        assert float(finetune(plain, [context], [used[0]], used[1]).logit_gap.max()) > 0


@pytest.fixture(scope="module")
def zoo():
    return language_model.load("zoo:gpt2-s")


@pytest.mark.parametrize("context", load_contexts(), ids=lambda c: c.id)
def test_proposals_are_words_to_go_on_with_and_the_strongest_rival_is_one(context, zoo):
    ids = zoo.tokenizer(context.prompt)["input_ids"]
    p = zoo.module(torch.tensor([ids])).logits[0, -1].softmax(-1).tolist()
    words = {i: zoo.tokenizer.decode([i]).strip() for i in range(len(p))}
    ranked = sorted((i for i in words if words[i].isalpha()), key=lambda i: -p[i])
    for correct in (context.correct, words[ranked[-1]]):  # the least likely word is outranked by all others
        found = propose(zoo, context.prompt, correct, count=2)
        assert words[ranked[0]] in [one.word for one in found]
        for one in found:  # the words above it hold less than nine tenths
            assert sum(x for x in p if x > one.probability + 1e-9) < 0.9
    found, c = propose(zoo, context.prompt, context.correct), resolve(context, zoo.tokenizer).correct_id
    assert context.competitor in [one.word for one in found] and all(one.probability > p[c] for one in found)
    assert [one.overlap for one in found] == sorted((one.overlap for one in found), reverse=True)


def test_no_proposal_for_the_favourite_or_for_what_cannot_be_read(zoo):
    small = replace(zoo, module=copy.deepcopy(zoo.module))  # its tokenizer is larger than its vocabulary
    small.module.resize_token_embeddings(50)
    lie = "After the lie, Anna felt a deep sense of"
    favourite = max(propose(zoo, lie, "shame"), key=lambda p: p.probability).word
    for prompt, correct, words in (
        (lie, favourite, "rather go on with no other word"),
        (lie, "zyzzÿva", "zyzzÿva"),
        ("Anna was very " * 40, "glad", "reads no more than 64"),
        ("Was Anna? She felt very", "glad", "does not know '\\?'"),
    ):
        with pytest.raises(ContextError, match=words):
            propose(zoo, prompt, correct)
    with pytest.raises(ContextError, match="beyond the 50 of the vocabulary"):
        propose(small, "When the news came, Anna was very", "glad")


SHAPE = ARCHITECTURES["Llama"][1] | {"pad_token_id": 0}
WITHOUT_LORA = {
    "Mamba": {"vocab_size": 41, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0},
    "Phimoe": SHAPE | {"num_local_experts": 2},
    "Llama4Text": SHAPE | {"num_local_experts": 2, "head_dim": 4, "intermediate_size_mlp": 24, "moe_layers": [1]},
}


@pytest.mark.parametrize("name", WITHOUT_LORA)
def test_an_architecture_without_lora_gets_the_rest(name):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = getattr(transformers, f"{name}Config")(**WITHOUT_LORA[name])
        module = transformers.AutoModelForCausalLM.from_config(config)
    module = module.eval().requires_grad_(False)
    odd = language_model.LanguageModel(f"tiny-{name}", name, module, None, language_model.fingerprint(module))
    context = contexts(odd)[0]
    found = diagnose(odd, context, Recipe(steps=2))
    run = finetune(odd, [context], [found.critical.low, found.critical.high], Recipe(steps=2), chunk=1)
    assert (run.logit_gap > 0).any("step").values.ravel().tolist() == [False, True]
    assert f"LoRA on all linear layers cannot be applied to 'tiny-{name}'" in diagnosis_as_text(found)
    with pytest.raises(PhantomError, match="cannot be put on.*[Uu]se full"):
        diagnose(odd, context, Recipe(method="lora", steps=2))


def test_a_diagnosis_says_how_far_it_is(monkeypatch):
    seen = []

    @contextmanager
    def track(label, total):
        seen.append([label, total, 0])
        yield lambda n: seen[-1].__setitem__(2, seen[-1][2] + n)

    monkeypatch.setattr("phantomlib.diagnosis.track", track)
    diagnose(GPT2, CONTEXT, Recipe(steps=4))
    assert seen == [["tiny-GPT2, diagnosis", 4, 4]]


def test_far_above_the_interval_the_rehearsal_at_this_very_rate_decides():
    """With T = 4 the rehearsal is the run: the outcome must be the run's, at every multiple."""
    recipe = Recipe(optimizer="sgd", steps=4)
    critical = estimate_critical_rate(GPT2, [CONTEXT], recipe)[0].rate
    seen = set()
    for multiple in (11.0, 1e2, 1e4, 1e8, 1e200):
        found = diagnose(GPT2, CONTEXT, recipe, multiple * critical)
        crosses = bool((finetune(GPT2, [CONTEXT], [multiple * critical], recipe).logit_gap > 0).any())
        assert found.outcome == (OVERTAKES if crosses else UNKNOWN)
        seen.add(crosses)
    assert seen == {True, False}
