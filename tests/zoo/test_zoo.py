"""The zoo: the language against brute force and samples, the tokenizer, the shipped weights, the training."""

import json
import random
import re
import shutil
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import phantomlib
from phantomlib.errors import ContextError, ModelError, ParameterError
from phantomlib.models import zoo_models
from phantomlib.readout_geometry import coherence
from zoo import lexicon, recipe, training
from zoo.frames import PAIRS
from zoo.language import COMPETITOR_SHARE, FRACTIONS, Language, join_words

N = 100_000


@pytest.fixture(scope="module")
def language():
    return Language()


@pytest.fixture(scope="module")
def tok():
    return recipe.tokenizer()


def words_of(text):
    return re.findall(r"[^\s,.]+|[,.]", text)


def following(language, prefix):
    """Exact distribution of the word after a prefix."""
    before = language.log_prob(prefix)
    p = {word: np.exp(language.log_prob([*prefix, word]) - before) for word in language.words}
    assert sum(p.values()) == pytest.approx(1, abs=1e-9)
    return p


# ---- the language


def test_planted_words_stand_nowhere_else():
    planted = {w for pair in PAIRS for w in (pair.correct, pair.competitor)}
    lists = [text for topic in lexicon.TOPICS.values() for text in topic.values()]
    lists += [text for name, text in vars(lexicon).items() if name.isupper() and isinstance(text, str)]
    for text in lists:
        words = text.split()
        assert len(set(words)) == len(words)
        assert not planted & set(words)


def test_kinds_of_sentences_have_their_fractions(language):
    for kind, fraction in FRACTIONS.items():
        assert sum(f.weight.sum() for f in language.frames if f.kind == kind) == pytest.approx(fraction, abs=1e-12)
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
        p = following(language, words_of(pair.prompt))
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


def test_log_prob_is_the_sum_over_frames_and_topics(language):
    sentences, rng = language.sample(40, seed=1), random.Random(0)
    for words in sentences:
        words = words[: rng.randint(1, len(words))]
        assert language.log_prob(words) == pytest.approx(np.log(brute_force(language, words)), abs=1e-10)
    one, other = sentences[:2]
    assert language.log_prob(one + other) == pytest.approx(language.log_prob(one) + language.log_prob(other))
    assert language.log_prob([]) == 0 and language.log_prob(["Xylophone"]) == -np.inf
    assert language.log_prob(["The", "the"]) == language.log_prob([*one, "The", "the"]) == -np.inf


def test_samples_have_the_exact_frequencies(language):
    sentences = language.sample(N, seed=11)
    assert sentences[:50] == Language().sample(N, seed=11)[:50] != language.sample(N, seed=4)[:50]
    assert all(words_of(join_words(words)) == words and words[-1] == "." for words in sentences)
    for prefix in ([], ["The"], ["After", "the"], ["When", "the", "news", "came", ","]):
        after = Counter(s[len(prefix)] for s in sentences if s[: len(prefix)] == prefix)
        for word, p in following(language, prefix).items():
            n = after.total()  # a count of five standard deviations from what is expected is no chance
            assert abs(after[word] - n * p) <= 5 * np.sqrt(n * p * (1 - p)) + 1, (prefix, word)


def test_interchangeability_can_be_set():
    assert Language({"shame": 0.0}).interchangeability["shame"] == 0.0
    for wrong in ({"shme": 0.5}, {"shame": 1.5}):
        with pytest.raises(ContextError, match="numbers from 0 to 1 for some of shame, glad"):
            Language(wrong)
    one, two = map(recipe.interchangeability, (1, 2))
    assert sorted(one.values()) == sorted(two.values()) and one != two
    assert min(one.values()) == 0.05 and max(one.values()) == 0.98


# ---- contexts and tokenizer


def test_contexts_file_holds_the_pairs():
    file = Path(phantomlib.__file__).parent / "contexts.yaml"
    keys = ("id", "prompt", "correct", "competitor")
    assert yaml.safe_load(file.read_text()) == [{key: getattr(pair, key) for key in keys} for pair in PAIRS]


def test_tokenizer_has_one_token_per_word_and_is_the_shipped_one(language, tok):
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


def test_rows_start_with_a_sentence_and_are_full(language, tok):
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


def test_damaged_checksums_are_named(tmp_path):
    for name in (*zoo_models.NAMES, zoo_models.HELD_OUT):
        (tmp_path / name).symlink_to(zoo_models.WEIGHTS / name)
    whole = (zoo_models.WEIGHTS / "checksums.json").read_bytes()
    damaged = [b"", b"{", b"[]", b"null", b"{}", b'{"gpt2-s": {}}', b'{"gpt2-s": []}']
    for bit in random.Random(0).sample(range(8 * len(whole)), 200):
        damaged.append(bytearray(whole))
        damaged[-1][bit // 8] ^= 1 << bit % 8
    for text in damaged:
        (tmp_path / "checksums.json").write_bytes(text)
        same = False
        with suppress(ValueError):
            same = json.loads(text) == json.loads(whole)
        assert same or "checksums" in zoo_models.verify(tmp_path)[0] and "zoo train" in zoo_models.verify(tmp_path)[0]


@pytest.mark.parametrize("name", zoo_models.ALL)
def test_model_loads_and_is_close_to_the_language(name):
    module, tok = load(name)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    report = zoo_models.report(name)
    assert module.num_parameters() == report["n_parameters"]
    tied = module.get_input_embeddings().weight.data_ptr() == module.get_output_embeddings().weight.data_ptr()
    assert tied == report["tied"] == (report["model_type"] != "gpt_neox")
    assert report["recipe"]["steps"] == recipe.RECIPES[name].steps
    language = recipe.language(recipe.RECIPES[name])
    sentences = language.sample(400, seed=99)
    nats = recipe.sentence_losses(module, tok, sentences)
    truth = np.array([language.log_prob(s[:1]) - language.log_prob(s) for s in sentences])
    tokens = sum(len(s) - 1 for s in sentences)
    assert -0.01 < (nats - truth).sum() / tokens < 0.1  # an estimate of the divergence, nats per token
    assert report["validation_cross_entropy"] - report["language_entropy"] < 0.1


def test_contexts_at_step_0_meet_the_requirements():
    bulk, sizes = [], [zoo_models.report(name)["n_parameters"] for name in zoo_models.NAMES]
    assert max(sizes) / min(sizes) >= 5
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


def test_what_cannot_be_trained_is_refused(tmp_path):
    for call in (zoo_models.path, zoo_models.report, training.train):
        with pytest.raises(ModelError, match="'gpt2-x'.*gpt2-s"):
            call("gpt2-x")
    for steps in (0, -1, 2.5, True):
        with pytest.raises(ParameterError, match="steps"):
            training.train("gpt2-s", out=tmp_path, steps=steps)
    assert not list(tmp_path.iterdir())


def test_the_licence_of_the_weights_lies_beside_them():
    licence = (zoo_models.WEIGHTS / "LICENSE.txt").read_text(encoding="utf-8")
    repository = Path(__file__).parents[2]
    assert licence.endswith((repository / "LICENSE").read_text(encoding="utf-8")) and "generates" in licence
    readme = " ".join((repository / "README.md").read_text(encoding="utf-8").split())
    assert "The code and the shipped weights are under the MIT licence" in readme


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
