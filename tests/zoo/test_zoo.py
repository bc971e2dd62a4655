"""The zoo: the language against brute force and samples, the tokenizer, the shipped weights, the training."""

import json
import random
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import phantomlib
from phantomlib.errors import ContextError, ModelError, ParameterError
from phantomlib.models import zoo_models
from phantomlib.readout_geometry import coherence
from zoo import lexicon, recipe, training
from zoo.frames import PAIRS
from zoo.language import COMPETITOR_SHARE, FRACTIONS, Language, join_words, split_words
from zoo.recipe import (
    RECIPES,
    interchangeability,
    sentence_losses,
    tokenizer,
)

N = 100_000


@pytest.fixture(scope="module")
def language():
    return Language()


@pytest.fixture(scope="module")
def sample(language):
    return language.sample_with_frames(N, seed=11)


def within(count, n, p, sigmas=5):
    """Is a binomial count compatible with probability p?"""
    return abs(count - n * p) <= sigmas * np.sqrt(n * p * (1 - p)) + 1


# ---- the language


def test_planted_words_stand_nowhere_else():
    planted = {w for pair in PAIRS for w in (pair.correct, pair.competitor)}
    lists = [text for topic in lexicon.TOPICS.values() for text in topic.values()]
    lists += [text for name, text in vars(lexicon).items() if name.isupper() and isinstance(text, str)]
    for text in lists:
        words = text.split()
        assert len(set(words)) == len(words)
        assert not planted & set(words)


def test_kinds_of_sentences_have_their_fractions(language, sample):
    for kind, fraction in FRACTIONS.items():
        assert sum(f.weight.sum() for f in language.frames if f.kind == kind) == pytest.approx(fraction, abs=1e-12)
        assert within(sum(f.kind == kind for _, f in sample), N, fraction)
    assert sum(FRACTIONS.values()) == pytest.approx(1)


def test_pairs_share_frames_as_often_as_planted(language):
    """By the frames alone: which of a pair's frames exist for both words, and how much they weigh."""
    for pair in PAIRS:
        weight = {pair.correct: {}, pair.competitor: {}}
        for frame in language.frames:
            if frame.kind == "pair" and frame.pair == pair.id:
                word = pair.correct if pair.correct in frame.items else pair.competitor
                weight[word][tuple("*" if i == word else i for i in frame.items)] = frame.weight.sum()
        shared = set(weight[pair.correct]) & set(weight[pair.competitor])
        total = sum(sum(w.values()) for w in weight.values())
        assert sum(weight[pair.competitor].values()) / total == pytest.approx(COMPETITOR_SHARE)
        for word in weight.values():
            assert sum(word[f] for f in shared) / sum(word.values()) == pytest.approx(pair.interchangeability)


def test_test_frames_hold_the_planted_probabilities(language):
    for pair in PAIRS:
        p = language.next_word(split_words(pair.prompt))
        assert p[pair.correct] == pytest.approx(pair.p_correct, abs=1e-12)
        assert p[pair.competitor] == pytest.approx(pair.p_competitor, abs=1e-12)
        assert max(p, key=p.get) == pair.competitor


def brute_force(language, words):
    """Probability of one sentence prefix by plain loops over frames, topics and slots."""
    slots, total = language._slots(), 0.0
    for frame in language.frames:
        if len(frame.items) < len(words):
            continue
        for t, weight in enumerate(frame.weight):
            p = weight
            for item, word in zip(frame.items, words, strict=False):
                p *= slots[item][t].get(word, 0.0) if item in slots else float(item == word)
            total += p
    return total


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 12))
def test_log_prob_is_the_sum_over_frames_and_topics(seed, cut):
    language = Language()
    words = language.sample(1, seed)[0][:cut]
    assert language.log_prob(words) == pytest.approx(np.log(brute_force(language, words)), abs=1e-10)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_next_word_is_normalised_and_multiplies_to_log_prob(seed):
    language = Language()
    words = [w for s in language.sample(2, seed) for w in s]
    total = 0.0
    for n, word in enumerate(words):
        p = language.next_word(words[:n])
        assert sum(p.values()) == pytest.approx(1, abs=1e-12)
        total += np.log(p[word])
    assert language.log_prob(words) == pytest.approx(total, abs=1e-9)


def test_samples_have_the_exact_frequencies(language, sample):
    sentences = [words for words, _ in sample]
    for prefix in ([], ["The"], ["After", "the"], ["When", "the", "news", "came", ","]):
        following = [s[len(prefix)] for s in sentences if s[: len(prefix)] == prefix]
        assert within(len(following), N, np.exp(language.log_prob(prefix)) if prefix else 1)
        for word, p in language.next_word(prefix).items():
            assert within(following.count(word), len(following), p), (prefix, word)


def test_sampling_is_reproducible_and_text_round_trips(language):
    first, again = language.sample(500, seed=3), Language().sample(500, seed=3)
    assert first == again
    assert first != language.sample(500, seed=4)
    assert all(split_words(join_words(words)) == words and words[-1] == "." for words in first)


def test_what_is_never_said(language):
    assert language.log_prob(["The", "the"]) == -np.inf
    assert language.log_prob(["Xylophone"]) == -np.inf
    with pytest.raises(ContextError, match="never says"):
        language.next_word(["The", "the"])


def test_interchangeability_can_be_set():
    assert Language({"shame": 0.0}).interchangeability["shame"] == 0.0
    with pytest.raises(ContextError, match="'shme'"):
        Language({"shme": 0.5})
    with pytest.raises(ContextError, match="probability"):
        Language({"shame": 1.5})
    for mix in (1, 2):
        values = interchangeability(mix)
        assert min(values.values()) == 0.05 and max(values.values()) == 0.98
        assert values != interchangeability(3 - mix)


# ---- contexts and tokenizer


def test_contexts_file_holds_the_pairs():
    file = Path(phantomlib.__file__).parent / "contexts.yaml"
    keys = ("id", "prompt", "correct", "competitor")
    assert yaml.safe_load(file.read_text()) == [{key: getattr(pair, key) for key in keys} for pair in PAIRS]


def test_tokenizer_has_one_token_per_word_and_is_the_shipped_one(language):
    tok = tokenizer()
    assert all(len(tok(" " + word)["input_ids"]) == 1 for word in language.words if word not in ",.")
    for words in language.sample(2_000, seed=5):
        assert len(tok(join_words(words))["input_ids"]) == len(words)
        assert tok.decode(tok(join_words(words))["input_ids"]) == join_words(words)
    for pair in PAIRS:
        prompt = tok(pair.prompt)["input_ids"]
        assert 6 <= len(prompt) <= 12
        for word in (pair.correct, pair.competitor):
            assert tok(f"{pair.prompt} {word}")["input_ids"][:-1] == prompt
    # Foreign text falls back on letters or on the unknown token; it is never dropped, nor taken for one word.
    assert tok.decode(tok("Anna felt phlegmatic")["input_ids"]) == "Anna felt phlegmatic"
    for odd in (" é", " 世", " 🙂", " 7"):
        assert len(tok(odd)["input_ids"]) > 1 and tok.unk_token_id in tok(odd)["input_ids"]
    for name in zoo_models.ALL:
        assert json.loads((zoo_models.path(name) / "tokenizer.json").read_text()) == json.loads(
            tok.backend_tokenizer.to_str()
        )


def test_rows_start_with_a_sentence_and_are_full(language):
    tok = tokenizer()
    sentences = language.sample(300, seed=6)
    rows = recipe.rows(sentences, tok, 32)
    assert rows.shape[1] == 32
    first = {join_words(words).split()[0] for words in sentences}
    assert {tok.decode([row[0]]) for row in rows} <= first
    assert tok.eos_token_id not in rows


# ---- the shipped models


def load(name, root=None):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = zoo_models.path(name) if root is None else root / name
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_stored_files_are_the_recorded_ones_and_small():
    assert zoo_models.verify() == []
    assert sum(f.stat().st_size for f in zoo_models.WEIGHTS.rglob("*") if f.is_file()) < 13e6  # what a wheel holds


def test_verify_names_what_is_missing_or_changed(tmp_path):
    root = tmp_path / "weights"
    shutil.copytree(zoo_models.WEIGHTS, root)
    (root / "gpt2-s" / "config.json").write_text("{}")
    (root / "neox-s" / "model.safetensors").unlink()
    problems = zoo_models.verify(root)
    assert len(problems) == 2
    assert any("gpt2-s/config.json has changed" in p for p in problems)
    assert any("neox-s/model.safetensors is missing" in p for p in problems)
    assert zoo_models.verify(tmp_path / "nowhere")


def test_variations_lie_in_a_clone_and_are_told_where_there_is_none(monkeypatch, tmp_path):
    assert {zoo_models.home(name) for name in zoo_models.EXTRAS} == {zoo_models.IN_A_CLONE}
    monkeypatch.setattr(zoo_models, "IN_A_CLONE", tmp_path / "zoo" / "weights")
    with pytest.raises(ModelError, match="'gpt2-s-mix1'.*in a clone of the repository only"):
        zoo_models.path("gpt2-s-mix1")
    assert zoo_models.verify() == []  # as installed: what is not there is nobody's damage
    (tmp_path / "zoo").mkdir()
    assert "checksums" in zoo_models.verify()[0]  # in a clone it is


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"gpt2-s": {}}', '{"gpt2-s": []}'])
def test_damaged_checksums_are_named(tmp_path, text):
    (tmp_path / "checksums.json").write_text(text)
    [problem] = zoo_models.verify(tmp_path)
    assert "checksums.json" in problem and "phantom zoo train" in problem


def test_two_hundred_flipped_bits_in_the_checksums(tmp_path):
    for name in (*zoo_models.NAMES, zoo_models.HELD_OUT):
        (tmp_path / name).symlink_to(zoo_models.WEIGHTS / name)
    whole = (zoo_models.WEIGHTS / "checksums.json").read_bytes()
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "checksums.json").write_bytes(damaged)
        same = False
        with suppress(ValueError):
            same = json.loads(damaged) == json.loads(whole)
        assert same or zoo_models.verify(tmp_path)


def test_five_models_span_a_fivefold_range():
    sizes = [zoo_models.report(name)["n_parameters"] for name in zoo_models.NAMES]
    assert max(sizes) / min(sizes) >= 5


@pytest.mark.parametrize("name", zoo_models.ALL)
def test_model_loads_and_is_close_to_the_language(name):
    module, tok = load(name)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    report = zoo_models.report(name)
    assert module.num_parameters() == report["n_parameters"]
    tied = module.get_input_embeddings().weight.data_ptr() == module.get_output_embeddings().weight.data_ptr()
    assert tied == report["tied"] == (report["model_type"] != "gpt_neox")
    assert report["recipe"]["steps"] == RECIPES[name].steps
    language = recipe.language(RECIPES[name])
    sentences = language.sample(400, seed=99)
    nats = sentence_losses(module, tok, sentences)
    truth = np.array([language.log_prob(s[:1]) - language.log_prob(s) for s in sentences])
    tokens = sum(len(s) - 1 for s in sentences)
    assert (
        -0.01 < (nats - truth).sum() / tokens < 0.1
    )  # an estimate of the divergence from the language, nats per token
    assert report["validation_cross_entropy"] - report["language_entropy"] < 0.1


def test_contexts_at_step_0_meet_the_requirements():
    bulk = []
    for name in (*zoo_models.NAMES, zoo_models.HELD_OUT):
        module, tok = load(name)
        rows = torch.nn.functional.normalize(module.get_output_embeddings().weight.detach().double(), dim=1)
        overlap = []
        for pair in PAIRS:
            (c,), (k,) = tok(" " + pair.correct)["input_ids"], tok(" " + pair.competitor)["input_ids"]
            with torch.no_grad():
                p = module(torch.tensor([tok(pair.prompt)["input_ids"]])).logits[0, -1].double().softmax(-1)
            assert p[k] > p[c]
            bulk.append(float(1 - p[c] - p[k]))
            overlap.append(float(rows[c] @ rows[k]))
        assert np.std(overlap, ddof=1) > 0.05
    assert len(bulk) == 60 and np.mean(np.array(bulk) >= 0.4) > 0.5


def test_bulk_coherence_tells_the_families_apart():
    last = {name: zoo_models.report(name)["bulk_coherence"][-1]["B"] for name in zoo_models.NAMES}
    for name, written in last.items():
        assert coherence(load(name)[0].get_output_embeddings().weight.detach()) == pytest.approx(written, rel=1e-9)
    assert min(b for n, b in last.items() if "gpt2" in n) > max(b for n, b in last.items() if "neox" in n)


# ---- training


def test_training_is_reproducible_and_recorded(tmp_path):
    a = training.train("gpt2-s", out=tmp_path / "a", steps=3, progress=False)
    b = training.train("gpt2-s", out=tmp_path / "b", steps=3, progress=False)
    assert a == tmp_path / "a" / "gpt2-s"
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert sorted(f.name for f in (tmp_path / "a").iterdir()) == ["checksums.json", "gpt2-s"]
    assert not any("gpt2-s/" in problem for problem in zoo_models.verify(tmp_path / "a"))
    module, _ = load("gpt2-s", tmp_path / "a")
    assert module.config.dtype == torch.float32
    assert [c["step"] for c in json.loads((a / "report.json").read_text())["bulk_coherence"]] == [0, 3]


@pytest.mark.parametrize("call", [zoo_models.path, zoo_models.report, training.train])
def test_unknown_model_names_the_nearest(call):
    with pytest.raises(ModelError, match="'gpt2-x'.*gpt2-s"):
        call("gpt2-x")


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_impossible_steps_are_refused(steps, tmp_path):
    with pytest.raises(ParameterError, match="steps"):
        training.train("gpt2-s", out=tmp_path, steps=steps)
    assert not list(tmp_path.iterdir())


def test_the_licence_of_the_weights_lies_beside_them():
    licence = (zoo_models.WEIGHTS / "LICENSE.txt").read_text(encoding="utf-8")
    repository = Path(__file__).parents[2]
    assert licence.endswith((repository / "LICENSE").read_text(encoding="utf-8")) and "generates" in licence
    readme = " ".join((repository / "README.md").read_text(encoding="utf-8").split())
    assert "MIT licence; it holds for the shipped weights as well" in readme


@pytest.mark.parametrize("moment", ["while training", "first move", "second move", None])
def test_an_interruption_leaves_the_old_model(tmp_path, monkeypatch, moment):
    moves, replace = [], training.os.replace

    def train(recipe, folder, device, progress):
        (folder / "weights").write_text("new")
        if moment == "while training":
            raise KeyboardInterrupt

    def move(source, target):
        moves.append(source)
        if moment == {1: "first move", 2: "second move"}.get(len(moves), ""):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(training, "pretrain", train)
    monkeypatch.setattr(training.os, "replace", move)
    (tmp_path / "gpt2-s").mkdir()
    (tmp_path / "gpt2-s/weights").write_text("old")
    with suppress(KeyboardInterrupt):
        training.train_into("gpt2-s", tmp_path)
    assert (tmp_path / "gpt2-s/weights").read_text() == ("old" if moment else "new")
    assert [path.name for path in tmp_path.iterdir()] == ["gpt2-s"]
