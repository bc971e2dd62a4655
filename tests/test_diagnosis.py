"""Diagnosis before training: every architecture, predictions against measured outcomes, the command."""

import copy
import json
import math
import random
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny import ARCHITECTURES, contexts, model
from typer.testing import CliRunner

from phantombook.cli import app
from phantombook.figures.diagnosis import diagnosis_figure, write_plot
from phantomlib import files
from phantomlib.contexts import load_contexts, resolve
from phantomlib.critical import rehearsal
from phantomlib.critical.rehearsal import CLOSE, OVERTAKES, SILENT, UNKNOWN, Estimate, estimate_critical_rate
from phantomlib.critical.search import critical_rates
from phantomlib.diagnosis import check_diagnosis, diagnose, propose
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError, PhantomError
from phantomlib.models import language_model, zoo_models
from phantomlib.order_parameter import density_matrix, normalise, order_parameter_by_trace
from phantomlib.report import diagnosis_as_text
from phantomlib.runs import published_runs
from phantomlib.runs.store import Store
from zoo import constants

PUBLISHED = Path(__file__).parents[1] / "results"
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


@pytest.mark.parametrize(
    "name, optimizer, method",
    [("gpt2-s", "adam", "full"), ("neox-s", "sgd", "full"), ("neox-s", "adam", "lora"), ("gpt2-s", "sgd", "lora")],
)
def test_stated_uncertainty_holds_on_the_zoo(name, optimizer, method, tmp_path):
    """At least nine of ten contexts; T = 12 lies between the budgets at which the errors were measured."""
    loaded = language_model.load(f"zoo:{name}")
    ten = [resolve(context, loaded.tokenizer) for context in load_contexts()]
    recipe = Recipe(optimizer=optimizer, method=method, steps=12)
    measured = critical_rates(Store(tmp_path), loaded, ten, recipe).critical_rate.values
    inside = [
        e.low <= rate <= e.high for e, rate in zip(estimate_critical_rate(loaded, ten, recipe), measured, strict=True)
    ]
    assert sum(inside) >= 9


def test_constants_were_measured_on_the_shipped_weights():
    """After retraining the zoo: phantom zoo constants."""
    found = rehearsal.load_constants()["made_by"]["models"]
    assert list(found) == list(zoo_models.NAMES) and zoo_models.HELD_OUT not in json.dumps(rehearsal.load_constants())
    assert {name: language_model.load(f"zoo:{name}").fingerprint for name in zoo_models.NAMES} == found


def test_errors_beyond_the_zoo_are_those_of_the_published_table():
    zoo = [language_model.load(f"zoo:{name}") for name in zoo_models.NAMES]
    found = constants.errors_beyond(PUBLISHED, zoo)
    assert found == rehearsal.load_constants()["beyond"]
    assert found["parameters"] == max(one.n_parameters for one in zoo)
    table = files.read_json(PUBLISHED / "tables/rehearsals.json")["columns"]
    for how, rate, measured in zip(
        map("-".join, zip(table["optimizer"], table["method"], strict=True)),
        table["rate"],
        table["measured"],
        strict=True,
    ):
        assert abs(math.log(measured / rate)) <= found["largest"][how] < 0.2


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_published_table_is_what_the_published_searches_say(optimizer, tmp_path):
    store = Store(tmp_path)
    published_runs.copy_into(PUBLISHED, store)
    table = pd.DataFrame(files.read_json(PUBLISHED / "tables/rehearsals.json")["columns"])
    for ref in ("pretrained:smollm2-135m", "pretrained:gemma3-270m"):
        real, recipe = published_runs.published_model(PUBLISHED, ref), Recipe(optimizer=optimizer, steps=20)
        rows = table[(table.model == real.name) & (table.optimizer == optimizer) & (table.method == "full")]
        assert rows.context.tolist() == [context.id for context in real.contexts]
        estimates = estimate_critical_rate(real, list(real.contexts), recipe, store)
        assert rows.rate.tolist() == pytest.approx([e.rate for e in estimates])
        measured = critical_rates(store, real, list(real.contexts), recipe).critical_rate.values
        assert rows.measured.tolist() == pytest.approx(measured.tolist())
        assert all(e.low <= rate <= e.high for e, rate in zip(estimates, measured, strict=True))  # it stems from these


def test_a_model_larger_than_the_zoo_has_a_wider_interval(monkeypatch):
    plain, known = model("GPT2"), rehearsal.load_constants()
    recipe, [context] = Recipe(steps=8), contexts(plain, place=8)[:1]

    def half(method, parameters):
        beyond = {"parameters": parameters, "largest": {"adam-full": 0.5, "sgd-full": 0.6}}
        monkeypatch.setattr(rehearsal, "load_constants", lambda: known | {"beyond": beyond})
        [found] = estimate_critical_rate(plain, [context], replace(recipe, method=method))
        assert found.rate**2 == pytest.approx(found.low * found.high)
        return math.log(found.high / found.low) / 2

    assert half("full", plain.n_parameters) < 0.2  # no larger than the largest there
    assert half("full", plain.n_parameters - 1) == pytest.approx(0.5)
    assert half("lora", plain.n_parameters - 1) == pytest.approx(0.6)  # never seen: the largest of all


def test_summary_of_errors():
    found = rehearsal.summarise_errors({"a": [0.1, 0.3], "b": [-0.2, 0.2], "c": [0.4]})
    assert found.centre == pytest.approx((0.2 + 0.0 + 0.4) / 3)
    assert found.largest == pytest.approx(0.5)  # b's -0.2 against the mean 0.3 of a and c
    assert found.range == pytest.approx((math.exp(-0.2), math.exp(0.4)))


def test_constants_are_measured_and_written(tmp_path):
    measured = constants.measure_errors(
        [model("GPT2"), model("GPTNeoX")], contexts, Store(tmp_path / "runs"), PUBLISHED, budgets=(6,)
    )
    files.write_json(tmp_path / "constants.json", measured)
    again = files.read_json(tmp_path / "constants.json")
    assert again == measured and set(again["errors"]) == {"adam-full", "adam-lora", "sgd-full", "sgd-lora"}
    exact = critical_rates(Store(tmp_path / "runs"), model("GPT2"), contexts(model("GPT2")), Recipe(steps=6))
    coarse = critical_rates(
        Store(tmp_path / "runs"), model("GPT2"), contexts(model("GPT2")), rehearsal.rehearsal(Recipe(steps=6))
    )
    ratio = (exact.critical_rate * 6 / (coarse.critical_rate * 4)).values
    written = again["errors"]["adam-full"]["6"]["rehearsal"]["tiny-GPT2"]
    assert [math.exp(x) for x in written] == pytest.approx(ratio.tolist(), rel=1e-3)


@pytest.mark.parametrize(
    "text", [None, "", "{", "[]", "null", "{}", '{"errors": {}}', '{"checksum": "", "content": {}}']
)
def test_a_missing_or_damaged_table_says_how_to_make_it(tmp_path, monkeypatch, text):
    monkeypatch.setattr(rehearsal, "CONSTANTS", tmp_path / "constants.json")
    if text is not None:
        rehearsal.CONSTANTS.write_text(text)
    rehearsal.load_constants.cache_clear()
    with pytest.raises(PhantomError, match="phantom zoo constants"):
        rehearsal.load_constants()
    rehearsal.load_constants.cache_clear()


def test_two_hundred_flipped_bits_in_the_table(tmp_path, monkeypatch):
    whole, known, accepted = rehearsal.CONSTANTS.read_bytes(), rehearsal.load_constants(), 0
    monkeypatch.setattr(rehearsal, "CONSTANTS", tmp_path / "constants.json")
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        rehearsal.CONSTANTS.write_bytes(damaged)
        rehearsal.load_constants.cache_clear()
        with suppress(PhantomError):
            assert rehearsal.load_constants() == known
            accepted += 1
    rehearsal.load_constants.cache_clear()
    assert accepted < 150  # much of the file is blanks


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


def test_no_proposal_for_the_favourite_or_for_an_unknown_word():
    loaded = language_model.load("zoo:gpt2-s")
    first = propose(loaded, "After the lie, Anna felt a deep sense of", "shame")
    favourite = max(first, key=lambda p: p.probability).word
    with pytest.raises(ContextError, match="prefers no other word"):
        propose(loaded, "After the lie, Anna felt a deep sense of", favourite)
    with pytest.raises(ContextError, match="zyzzyva"):
        propose(loaded, "After the lie, Anna felt a deep sense of", "zyzzyva")


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
    monkeypatch.setattr("phantomlib.diagnosis.critical_rates", lambda *_, **__: pytest.fail("it started"))
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
