"""Diagnosis before training: every architecture, predictions against measured outcomes, the command."""

import copy
import json
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny import ARCHITECTURES, contexts, model
from typer.testing import CliRunner

from phantombook.cli import app
from phantombook.diagnosis_text import check_diagnosis, diagnosis_as_text, resolve_words
from phantombook.figures.diagnosis import diagnosis_figure, write_plot
from phantomlib.contexts import Context, load_contexts, resolve
from phantomlib.critical.rehearsal import CLOSE, OVERTAKES, SILENT, UNKNOWN, Estimate
from phantomlib.diagnosis import diagnose, propose
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, PhantomError
from phantomlib.models import language_model
from phantomlib.order_parameter import density_matrix, normalise, order_parameter_by_trace
from phantomlib.runs.store import Store

RECORDED = {
    "rank": "rank_correct", "p_correct": "p_correct", "p_competitor": "p_competitor", "gap": "logit_gap",
    "overlap": "overlap", "phi": "phi", "signal": "signal", "drag": "drag",
}  # fmt: skip


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


@pytest.mark.parametrize("method", ["full", "lora"])
def test_check_measures_what_was_predicted(method, tmp_path):
    plain = model("GPTNeoX")
    context = contexts(plain)[0]
    recipe = Recipe(method=method, rank=4, steps=4)
    for rate in (1e-5, 1.0):
        found = diagnose(plain, context, recipe, learning_rate=rate)
        outcome = check_diagnosis(plain, context, recipe, found, Store(tmp_path))
        assert outcome.inside and outcome.critical_rate == pytest.approx(found.critical.rate, rel=0.01)
        assert (outcome.first_step is not None) == (found.outcome == OVERTAKES)


@pytest.mark.parametrize("tied", [True, False])
def test_order_parameter_of_the_diagnosis_is_the_trace(tied):
    plain = model("GPT2", tied=tied)
    context = contexts(plain)[0]
    found = diagnose(plain, context, Recipe(steps=4))
    p = plain.module(torch.tensor([context.prompt_ids])).logits[0, -1].softmax(-1)
    e = normalise(plain.readout)
    trace = order_parameter_by_trace(density_matrix(p, plain.readout), e[context.correct_id], e[context.competitor_id])
    assert found.phi == pytest.approx(float(trace), abs=1e-12)


def test_kinematic_number_and_outcomes():
    plain = model("GPT2")
    context = contexts(plain)[0]
    critical = diagnose(plain, context, Recipe(steps=8)).critical
    rates = {SILENT: critical.low * 0.5, CLOSE: critical.rate, OVERTAKES: critical.high * 2}
    found = {name: diagnose(plain, context, Recipe(steps=8), rate) for name, rate in rates.items()}
    for name, one in found.items():
        assert one.outcome == name
        assert one.kinematic_number == pytest.approx(rates[name] * 8 * one.velocity / abs(one.gap))
    assert "without ever preferring" in found[SILENT].verdict and "too close" in found[CLOSE].verdict
    assert "after about 4 steps" in found[OVERTAKES].verdict
    assert Estimate(math.nan, math.nan, math.nan).outcome(1.0) == UNKNOWN


def test_what_the_verdict_advises_works():
    plain = model("Llama")
    context = contexts(plain, place=8)[0]
    recipe = Recipe(steps=8)
    critical = diagnose(plain, context, recipe).critical
    verdict = diagnose(plain, context, recipe, 0.4 * critical.rate).verdict
    advice = verdict.split("Try ")[1]
    rate, steps = float(advice.split(",")[0]), int(advice.split("or ")[1].split()[0])
    for used in ((rate, recipe), (0.4 * critical.rate, Recipe(steps=steps))):
        assert float(finetune(plain, [context], [used[0]], used[1]).logit_gap.max()) > 0


def test_proposals_outrank_the_word_and_come_by_overlap():
    loaded = language_model.load("zoo:gpt2-s")
    for context in load_contexts():
        found = propose(loaded, context.prompt, context.correct)
        assert context.competitor in [p.word for p in found]
        assert [p.overlap for p in found] == sorted((p.overlap for p in found), reverse=True)
        own = diagnose_rank(loaded, context)
        assert all(p.probability > own for p in found)


def diagnose_rank(loaded, context):
    found = resolve(context, loaded.tokenizer)
    return float(loaded.module(torch.tensor([found.prompt_ids])).logits[0, -1].softmax(-1)[found.correct_id])


@pytest.mark.parametrize("context", load_contexts()[:5], ids=lambda c: c.id)
def test_proposals_are_words_to_go_on_with_and_the_strongest_rival_is_one(context):
    loaded = language_model.load("zoo:gpt2-s")
    ids = loaded.tokenizer(context.prompt)["input_ids"]
    p = loaded.module(torch.tensor([ids])).logits[0, -1].softmax(-1).tolist()
    words = {i: loaded.tokenizer.decode([i]).strip() for i in range(len(p))}
    ranked = sorted((i for i in words if words[i].isalpha()), key=lambda i: -p[i])
    for correct in (context.correct, words[ranked[-1]]):  # the least likely word is outranked by all others
        found = propose(loaded, context.prompt, correct, count=2)
        assert words[ranked[0]] in [one.word for one in found]
        for one in found:  # the words above it hold less than nine tenths
            assert sum(x for x in p if x > one.probability + 1e-9) < 0.9


def test_no_proposal_for_the_favourite_or_for_an_unknown_word():
    loaded = language_model.load("zoo:gpt2-s")
    first = propose(loaded, "After the lie, Anna felt a deep sense of", "shame")
    favourite = max(first, key=lambda p: p.probability).word
    with pytest.raises(ContextError, match="rather go on with no other word"):
        propose(loaded, "After the lie, Anna felt a deep sense of", favourite)
    with pytest.raises(ContextError, match="zyzzyva"):
        propose(loaded, "After the lie, Anna felt a deep sense of", "zyzzyva")


def test_a_diagnosis_says_what_it_assumes():
    plain = model("GPT2")
    context = contexts(plain)[0]
    for recipe, words in (
        (Recipe(steps=4), "dropout."),
        (Recipe(method="lora", rank=2, alpha=3.0, steps=4), "LoRA (rank 2, alpha 3)"),
    ):
        found = diagnose(plain, context, recipe, 1.0)
        text = " ".join(diagnosis_as_text(found).split())
        assert "Assumed: this sentence alone" in text and "loss is that of “right0” only" in text and words in text
        assert "constant" in text and "on this sentence alone" in found.verdict
        assert (found.lora_rank, found.lora_alpha) == (recipe.rank, recipe.alpha)


@pytest.mark.parametrize("optimizer, name", [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_a_question_about_lora_is_answered_about_lora(optimizer, name):
    plain = model("GPT2")
    recipe = Recipe(method="lora", optimizer=optimizer, rank=4, steps=4)
    found = diagnose(plain, contexts(plain)[0], recipe, 1e-2)
    rows = dict(line.split("  ", 1) for line in diagnosis_as_text(found).splitlines() if "  " in line)
    assert "LoRA" not in rows and f"{found.critical_full.rate:.3g}" in rows["full"]
    assert f"LoRA with {name} on" in found.verdict
    again = diagnose(plain, contexts(plain)[0], replace(recipe, method="full"))
    assert again.critical == again.critical_full == found.critical_full and again.critical_lora == found.critical


MIXTURE = {
    "vocab_size": 41,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MIXTURE |= {"intermediate_size": 24, "num_local_experts": 2, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


@pytest.mark.parametrize("name", ["Mamba", "Phimoe", "Llama4Text"])
def test_an_architecture_without_lora_gets_the_rest(name):
    settings = MIXTURE | (
        {"head_dim": 4, "intermediate_size_mlp": 24, "moe_layers": [1]} if name == "Llama4Text" else {}
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**settings))
    module = module.eval().requires_grad_(False)
    odd = language_model.LanguageModel(f"tiny-{name}", name, module, None, language_model.fingerprint(module))
    context = contexts(odd)[0]
    found = diagnose(odd, context, Recipe(steps=2))
    run = finetune(odd, [context], [found.critical.low, found.critical.high], Recipe(steps=2), chunk=1)
    assert (run.logit_gap > 0).any("step").values.ravel().tolist() == [False, True]
    assert f"LoRA on all linear layers cannot be applied to 'tiny-{name}'" in diagnosis_as_text(found)
    with pytest.raises(PhantomError, match="cannot be applied.*Ask about full"):
        diagnose(odd, context, Recipe(method="lora", steps=2))


def test_a_positive_order_parameter_behind_the_competitor_is_explained():
    plain = model("GPT2")
    found = diagnose(plain, contexts(plain)[0], Recipe(steps=4))
    behind = replace(found, phi=0.05, signal=-0.01, drag=0.06, gap=-1.0)
    assert "why positive" in diagnosis_as_text(behind)
    assert "why positive" not in diagnosis_as_text(replace(behind, phi=-0.05)) + diagnosis_as_text(
        replace(behind, gap=1.0)
    )


def test_a_diagnosis_says_how_far_it_is(monkeypatch):
    plain, seen = model("GPT2"), []

    @contextmanager
    def track(label, total):
        seen.append([label, total, 0])
        yield lambda n: seen[-1].__setitem__(2, seen[-1][2] + n)

    monkeypatch.setattr("phantomlib.diagnosis.track", track)
    diagnose(plain, contexts(plain)[0], Recipe(steps=4))
    assert seen == [["tiny-GPT2, diagnosis", 4, 4]]


def test_a_chat_prompt_goes_through_the_template():
    loaded = replace(
        language_model.load("zoo:gpt2-s"), tokenizer=copy.deepcopy(language_model.load("zoo:gpt2-s").tokenizer)
    )
    asked = Context("given", "Anna was very", "glad", "happy")
    with pytest.raises(ParameterError, match="no chat template"):
        resolve_words(loaded, asked, chat=True)
    loaded.tokenizer.chat_template = "When the news came, {{ messages[0].content }}"
    found, proposals = resolve_words(loaded, asked, chat=True)
    assert loaded.tokenizer.decode(found.prompt_ids) == "When the news came, Anna was very" and not proposals
    assert resolve_words(loaded, replace(asked, competitor=""), chat=True)[1][0].word == found.context.competitor


def test_figure_and_text_survive_what_is_undefined():
    plain = model("GPT2")
    found = diagnose(plain, contexts(plain)[0], Recipe(steps=4))
    nothing = Estimate(math.nan, math.nan, math.nan)
    odd = replace(found, critical=nothing, critical_lora=nothing, learning_rate=1.0, kinematic_number=math.nan)
    assert "none found" in diagnosis_as_text(odd) and "undefined" in diagnosis_as_text(odd)
    diagnosis_figure(odd)


# ------------------------------------------------------------------------------------------------- the command

GIVEN = ["diagnose", "--model", "zoo:neox-s", "--steps", "4"]


def phantom(*arguments):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def test_json_holds_everything_and_check_stands_beside_it(tmp_path):
    plot = tmp_path / "out.png"
    result = phantom(
        *GIVEN, "--context", "shame", "--learning-rate", "1e-5", "--check", "--json", "--plot", str(plot)
    )  # fmt: skip
    found = json.loads(result.stdout)
    one = found["diagnosis"]
    assert (one["correct"], one["competitor"], one["steps"]) == ("shame", "guilt", 4)
    assert one["phi"] == pytest.approx(one["signal"] + one["drag"]) and one["outcome"] == SILENT
    assert found["check"]["inside"] and found["check"]["first_step"] is None
    assert found["check"]["cross_entropy_fall"] > 0
    assert plot.read_bytes()[:4] == b"\x89PNG" and list(tmp_path.iterdir()) == [plot]


def test_own_words_with_and_without_a_competitor(tmp_path):
    own = ["--prompt", "After the lie, Anna felt a deep sense of", "--correct", "shame"]
    proposed, given = phantom(*GIVEN, *own), phantom(*GIVEN, *own, "--competitor", "guilt", "--optimizer", "sgd")
    assert "Words the model prefers" in proposed.stdout and "guilt" in proposed.stdout
    assert "Words the model prefers" not in given.stdout and "4 steps of full fine-tuning with SGD" in given.stdout


def test_the_runs_of_a_check_are_kept_where_asked(tmp_path):
    result = phantom(*GIVEN, "--context", "glad", "--method", "lora", "--check", "--store", str(tmp_path))
    assert "measured" in result.stdout and list(tmp_path.glob("neox-s-lora-adam-*.nc"))


def test_an_impossible_learning_rate_is_refused():
    plain = model("GPT2")
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ParameterError):
            diagnose(plain, contexts(plain)[0], Recipe(steps=4), rate)


# ------------------------------------------------------------------------------------------- beyond what is sensible


@pytest.mark.parametrize("rate", [5e-324, 1e-308, 1e-40])
def test_a_learning_rate_next_to_nothing_is_advised_in_numbers_that_can_be_read(rate):
    plain = model("GPT2")
    context = contexts(plain)[0]
    found = diagnose(plain, context, Recipe(steps=8), rate)
    assert found.outcome == SILENT and "or " not in found.verdict and "No number of steps" in found.verdict
    assert len(diagnosis_as_text(found)) < 1500
    assert max(len(digits) for digits in re.findall(r"\d+", diagnosis_as_text(found))) < 10


@pytest.mark.parametrize("rate", [1e30, 1e300, 1e308])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_learning_rate_beyond_anything_is_not_promised_to_work(rate, method, tmp_path):
    plain = model("GPT2", "float32")
    context = contexts(plain)[0]
    recipe = Recipe(method=method, rank=4, steps=8)
    found = diagnose(plain, context, recipe, rate)
    assert found.outcome == UNKNOWN and "cannot be told" in found.verdict and "after about" not in found.verdict
    assert found.learning_rate == rate and max(map(len, re.findall(r"\d+", diagnosis_as_text(found)))) < 10
    outcome = check_diagnosis(plain, context, recipe, found, Store(tmp_path))
    said = diagnosis_as_text(found, outcome)
    assert "it diverges" in said and "nan" not in said


def test_far_above_the_interval_the_rehearsal_at_this_very_rate_decides():
    """With T = 4 the rehearsal is the run: the outcome must be the run's, at every multiple."""
    plain = model("GPT2")
    context = contexts(plain)[0]
    recipe = Recipe(optimizer="sgd", steps=4)
    critical = diagnose(plain, context, recipe).critical.rate
    seen = set()
    for multiple in (11.0, 1e2, 1e4, 1e8, 1e200):
        found = diagnose(plain, context, recipe, multiple * critical)
        crosses = bool((finetune(plain, [context], [multiple * critical], recipe).logit_gap > 0).any())
        assert found.outcome == (OVERTAKES if crosses else UNKNOWN)
        seen.add(crosses)
    assert seen == {True, False}


def test_a_check_that_would_never_end_is_refused_before_it_starts(tmp_path, monkeypatch):
    plain = model("GPT2")
    context = contexts(plain)[0]
    monkeypatch.setattr("phantombook.diagnosis_text.critical_rates", lambda *_, **__: pytest.fail("it started"))
    for steps, words in (
        (10**9, "Recording 2 runs of 1,000,000,000 steps needs"),
        (2 * 10**7, "would take .* days at"),
    ):
        recipe = Recipe(steps=steps)
        found = diagnose(plain, context, recipe)
        with monkeypatch.context() as roomy:
            if steps < 10**9:
                roomy.setattr(
                    "phantomlib.engine.memory.psutil.virtual_memory",
                    lambda: SimpleNamespace(available=10**15, total=10**15),
                )
            with pytest.raises(ParameterError, match=words):
                check_diagnosis(plain, context, recipe, found, Store(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_refused_without_a_competitor_too():
    loaded = language_model.load("zoo:gpt2-s")
    with pytest.raises(ContextError, match="reads no more than 64"):
        propose(loaded, "Anna was very " * 40, "glad")
    with pytest.raises(ContextError, match="does not know '\\?'"):
        propose(loaded, "Was Anna? She felt very", "glad")
    small = replace(loaded, module=copy.deepcopy(loaded.module))  # its tokenizer is larger than its vocabulary
    small.module.resize_token_embeddings(50)
    with pytest.raises(ContextError, match="beyond the 50 of the vocabulary"):
        propose(small, "When the news came, Anna was very", "glad")


@pytest.mark.parametrize("word", ["$$", "$\\frac$", "a$b$c"])
def test_a_figure_shows_dollars_as_they_are(word, tmp_path):
    plain = model("GPT2")
    found = replace(diagnose(plain, contexts(plain)[0], Recipe(steps=4)), correct=word, competitor="$x^$")
    write_plot(tmp_path / "out.svg", found)
    assert (tmp_path / "out.svg").stat().st_size > 1000
