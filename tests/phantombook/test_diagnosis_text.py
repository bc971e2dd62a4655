"""A diagnosis at the command line: words, text, figure, and the check by training."""

import json
import math
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from tiny import contexts, model
from typer.testing import CliRunner

from phantombook.cli import app
from phantombook.diagnosis_text import check_diagnosis, diagnosis_as_text, resolve_words
from phantombook.figures.diagnosis import diagnosis_figure, write_plot
from phantomlib.contexts import Context
from phantomlib.critical.rehearsal import OVERTAKES, SILENT, UNKNOWN, Estimate
from phantomlib.diagnosis import diagnose
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.models import language_model
from phantomlib.runs.store import Store

GPT2 = model("GPT2")
CONTEXT = contexts(GPT2)[0]


@pytest.fixture(scope="module")
def found():
    return diagnose(GPT2, CONTEXT, Recipe(steps=4))


@pytest.mark.parametrize("method, rate", [("full", 1e-5), ("full", 1.0), ("lora", 1e-5), ("lora", 1.0)])
def test_check_measures_what_was_predicted(method, rate, tmp_path):
    plain = model("GPTNeoX")
    recipe, [context] = Recipe(method=method, rank=4, steps=4), contexts(plain)[:1]
    found = diagnose(plain, context, recipe, learning_rate=rate)
    outcome = check_diagnosis(plain, context, recipe, found, Store(tmp_path))
    assert outcome.inside and outcome.critical_rate == pytest.approx(found.critical.rate, rel=0.01)
    assert (outcome.first_step is not None) == (found.outcome == OVERTAKES)


@pytest.mark.parametrize("optimizer, name", [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_a_question_about_lora_is_answered_about_lora_and_says_what_it_assumes(optimizer, name):
    recipe = Recipe(method="lora", optimizer=optimizer, rank=2, alpha=3.0, steps=4)
    lora, full = (diagnose(GPT2, CONTEXT, replace(recipe, method=method), 1e-2) for method in ("lora", "full"))
    for found, words in ((lora, "LoRA (rank 2, alpha 3) on all linear layers but the readout."), (full, "dropout.")):
        text = " ".join(diagnosis_as_text(found).split())
        assert "Assumed: this sentence alone" in text and "loss is that of “right0” only" in text and words in text
        assert "learning rate is constant" in text and (found.lora_rank, found.lora_alpha) == (2, 3.0)
    rows = dict(line.split("  ", 1) for line in diagnosis_as_text(lora).splitlines() if "  " in line)
    assert "LoRA" not in rows and f"{lora.critical_full.rate:.3g}" in rows["full"]
    assert f"LoRA with {name} on this sentence alone" in lora.verdict
    assert full.critical == full.critical_full == lora.critical_full and full.critical_lora == lora.critical


def test_text_and_figure_cope_with_what_is_odd(found, tmp_path):
    behind = replace(found, phi=0.05, signal=-0.01, drag=0.06, gap=-1.0)
    assert "why positive" in diagnosis_as_text(behind)
    for other in ({"phi": -0.05}, {"gap": 1.0}):
        assert "why positive" not in diagnosis_as_text(replace(behind, **other))
    nothing = Estimate(math.nan, math.nan, math.nan)
    odd = replace(found, critical=nothing, critical_lora=nothing, learning_rate=1.0, kinematic_number=math.nan)
    assert "none found" in diagnosis_as_text(odd) and "undefined" in diagnosis_as_text(odd)
    diagnosis_figure(odd)
    for word in ("$$", "$\\frac$", "a$b$c"):  # shown as it is
        write_plot(tmp_path / "out.svg", replace(found, correct=word, competitor="$x^$"))
        assert (tmp_path / "out.svg").stat().st_size > 1000


def test_a_chat_prompt_goes_through_the_template():
    loaded = language_model.load("zoo:gpt2-s")  # read anew each time
    asked = Context("given", "Anna was very", "glad", "happy")
    with pytest.raises(ParameterError, match="no chat template"):
        resolve_words(loaded, asked, chat=True)
    loaded.tokenizer.chat_template = "When the news came, {{ messages[0].content }}"
    found, proposals = resolve_words(loaded, asked, chat=True)
    assert loaded.tokenizer.decode(found.prompt_ids) == "When the news came, Anna was very" and not proposals
    assert resolve_words(loaded, replace(asked, competitor=""), chat=True)[1][0].word == found.context.competitor


def phantom(*arguments):
    given = ["diagnose", "--model", "zoo:neox-s", "--steps", "4", *map(str, arguments)]
    return CliRunner().invoke(app, given, catch_exceptions=False).stdout


def test_json_holds_everything_and_check_stands_beside_it(tmp_path):
    plot = tmp_path / "out.png"
    found = json.loads(
        phantom("--context", "shame", "--learning-rate", 1e-5, "--check", "--json", "--plot", plot, "--store", tmp_path)
    )
    one = found["diagnosis"]
    assert (one["correct"], one["competitor"], one["steps"]) == ("shame", "guilt", 4)
    assert one["phi"] == pytest.approx(one["signal"] + one["drag"]) and one["outcome"] == SILENT
    assert found["check"]["inside"] and found["check"]["first_step"] is None and one["verdict"].startswith("At 1e-05")
    assert found["check"]["cross_entropy_fall"] > 0 and [r["way"] for r in one["remedies"]][-1] == "margin"
    assert plot.read_bytes()[:4] == b"\x89PNG" and list(tmp_path.glob("neox-s-full-adam-*.nc"))


def test_own_words_with_and_without_a_competitor():
    own = ["--prompt", "After the lie, Anna felt a deep sense of", "--correct", "shame"]
    proposed, given = phantom(*own), phantom(*own, "--competitor", "guilt", "--optimizer", "sgd")
    assert "Words the model prefers" in proposed and "the strongest rival" in proposed and "guilt" in proposed
    assert "Words the model prefers" not in given and "4 steps of full fine-tuning with SGD" in given


def test_a_learning_rate_next_to_nothing_is_advised_in_numbers_that_can_be_read():
    for rate in (5e-324, 1e-40):
        found = diagnose(GPT2, CONTEXT, Recipe(steps=4), rate)
        assert found.outcome == SILENT and "or " not in found.verdict and "No number of steps" in found.verdict
        assert len(diagnosis_as_text(found)) < 1500
        assert max(len(digits) for digits in re.findall(r"\d+", diagnosis_as_text(found))) < 10


@pytest.mark.parametrize("rate, method", [(1e30, "full"), (1e308, "full"), (1e300, "lora")])
def test_a_learning_rate_beyond_anything_is_not_promised_to_work(rate, method, tmp_path):
    plain = model("GPT2", "float32")
    recipe, [context] = Recipe(method=method, rank=4, steps=8), contexts(plain)[:1]
    found = diagnose(plain, context, recipe, rate)
    assert found.outcome == UNKNOWN and "cannot be told" in found.verdict and "after about" not in found.verdict
    assert found.learning_rate == rate and max(map(len, re.findall(r"\d+", diagnosis_as_text(found)))) < 10
    said = diagnosis_as_text(found, check_diagnosis(plain, context, recipe, found, Store(tmp_path)))
    assert "it diverges" in said and "nan" not in said


@pytest.mark.parametrize(
    "steps, words", [(10**9, "Recording 2 runs of 1,000,000,000 steps"), (2 * 10**7, "would take .* days at")]
)
def test_a_check_that_would_never_end_is_refused_before_it_starts(steps, words, found, tmp_path, monkeypatch):
    monkeypatch.setattr("phantombook.diagnosis_text.critical_rates", lambda *_, **__: pytest.fail("it started"))
    if steps < 10**9:
        free = partial(SimpleNamespace, available=10**15, total=10**15)
        monkeypatch.setattr("phantomlib.engine.memory.psutil.virtual_memory", free)
    with pytest.raises(ParameterError, match=words):
        check_diagnosis(GPT2, CONTEXT, Recipe(steps=steps), found, Store(tmp_path))
    assert list(tmp_path.iterdir()) == []
