"""GGUF files by path: the weights are what the package ``gguf`` dequantises, and what cannot be used is refused."""

import contextlib
import os
import random
import time

import gguf
import numpy as np
import pytest
import tiny
import tiny_gguf
import torch
from refused import refused

from phantomlib.errors import ModelError
from phantomlib.files import file_digest
from phantomlib.models.gguf_file import read_header, storage
from phantomlib.models.language_model import add_lora, load

# The largest rounding in a block of 32, in units of its largest absolute value, by the definition of each format:
# half a step (a whole one at Q4_0's far end, which has no level), and scale and offset in half precision.
HALF = 2.0**-11
LARGEST_ROUNDING = {
    "F32": 0.0,
    "F16": HALF,
    "Q8_0": 0.5 / 127 + HALF,
    "Q5_1": 1 / 31 + 3 * HALF,  # 31 steps over at most twice the largest value
    "Q4_1": 1 / 15 + 3 * HALF,
    "Q4_0": 1 / 8 + HALF,
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", LARGEST_ROUNDING)
def test_weights_are_those_that_gguf_dequantises(kind, tied, tmp_path):
    written = tiny_gguf.write(tmp_path / "small.gguf", kind, tied)
    model = load(str(tmp_path / "small.gguf"))
    state = model.module.state_dict()
    for name, (original, dequantised) in written.items():
        found = state[name].numpy()
        if "q_proj" in name or "k_proj" in name:
            found = tiny_gguf.interleave(found, tiny_gguf.HEADS if "q_proj" in name else tiny_gguf.KEY_HEADS)
        assert np.array_equal(found, dequantised), name
        blocks = np.abs(original.reshape(-1, 32)).max(axis=1, keepdims=True)
        assert (np.abs(found.reshape(-1, 32) - original.reshape(-1, 32)) <= LARGEST_ROUNDING[kind] * blocks).all(), name
    assert model.tied == tied
    assert state.keys() == tiny_gguf.llama(tied, len(state["lm_head.weight"])).state_dict().keys()
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in model.module.parameters())


def test_shares_of_the_formats(tmp_path):
    written = tiny_gguf.write(tmp_path / "small.gguf", "Q4_1", tied=True)
    sizes = {name: original.size for name, (original, _) in written.items()}
    as_vectors = sum(size for name, size in sizes.items() if "norm" in name)  # GGUF keeps vectors whole
    found = storage(tmp_path / "small.gguf")
    assert found == {"Q4_1": 1 - as_vectors / sum(sizes.values()), "F32": as_vectors / sum(sizes.values())}


def test_the_model_computes_as_the_one_that_was_written(tmp_path):
    tiny_gguf.write(tmp_path / "small.gguf", "F32")
    model = load(str(tmp_path / "small.gguf"), dtype="float64")
    original = tiny_gguf.llama(True, model.readout.shape[0]).double()
    ids = torch.tensor([[0, 5, 9, 11, 3]])
    with torch.no_grad():
        torch.testing.assert_close(model.module(ids).logits, original(ids).logits)
    assert model.readout.dtype == torch.float64


def test_the_tokenizer_comes_from_the_file(tmp_path):
    tiny_gguf.write(tmp_path / "small.gguf")
    loaded, original = load(str(tmp_path / "small.gguf")).tokenizer, tiny.leading()
    for text in ("she felt deep shame", "he saw the large dog", "a new word"):
        assert loaded(text, add_special_tokens=False).input_ids == original(text).input_ids
        assert loaded.decode(original(text).input_ids) == original.decode(original(text).input_ids)


def test_it_is_an_ordinary_model_with_a_name_and_an_identity(tmp_path):
    path = tmp_path / "small.Q8_0.gguf"
    tiny_gguf.write(path)
    model = load(str(path))
    assert model.name == "small.Q8_0" and model.ref == str(path)
    assert model.revision == f"sha256:{file_digest(path)[:16]}"
    config = model.module.config
    assert config._attn_implementation == "eager" and not hasattr(config, "quantization_config")
    adapted, ids = add_lora(model.module, rank=2, alpha=4.0, seed=0), torch.tensor([[0, 5, 9]])
    with torch.no_grad():
        assert torch.equal(adapted(ids).logits, model.module(ids).logits)
    model.module.save_pretrained(tmp_path / "folder")  # what transformers refuses for a model it counts as quantised
    model.tokenizer.save_pretrained(tmp_path / "folder")
    assert load(str(tmp_path / "folder")).fingerprint == model.fingerprint
    tiny_gguf.write(tmp_path / "coarser.gguf", "Q4_0")
    assert load(str(tmp_path / "coarser.gguf")).fingerprint != model.fingerprint


def test_what_lies_around_does_not_matter(tmp_path, monkeypatch):
    for folder in ("mine", "elsewhere"):
        (tmp_path / folder).mkdir()
    tiny_gguf.write(tmp_path / "mine/small.gguf")
    tiny_gguf.write(tmp_path / "elsewhere/small.gguf", "Q4_0")
    expected = load(str(tmp_path / "mine/small.gguf")).fingerprint
    (tmp_path / "mine/adapter_config.json").write_text('{"base_model_name_or_path": "no-such-owner/no-such-model"}')
    (tmp_path / "mine/tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    monkeypatch.chdir(tmp_path / "elsewhere")  # holds a file of the same name
    assert load("../mine/small.gguf").fingerprint == expected


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


BROKEN = {  # what is done to a good file -> what the message must say
    "no such file": (lambda p: p.unlink(), "Check the path"),
    "a pipe": (lambda p: (p.unlink(), os.mkfifo(p)), "not a regular file"),
    "no GGUF file": (lambda p: p.write_bytes(b"<html>404</html>"), "is no GGUF file"),
    "empty": (lambda p: p.write_bytes(b""), "is no GGUF file"),
    "header alone": (lambda p: p.write_bytes(p.read_bytes()[:40]), "was not downloaded whole"),
    "truncated": (truncate, "was not downloaded whole"),
    "unknown architecture": (lambda p: tiny_gguf.write(p, architecture="newnet"), "newnet"),
    "a tensor missing": (lambda p: tiny_gguf.write(p, without="blk.1.ffn_up.weight"), "layers.1.mlp.up_proj"),
    "no tokenizer": (lambda p: tiny_gguf.write(p, without="tokenizer"), "token"),
}


@pytest.mark.parametrize("damage, named", BROKEN.values(), ids=BROKEN)
def test_files_that_cannot_be_used_are_refused(damage, named, tmp_path):
    path = tmp_path / "small.gguf"
    tiny_gguf.write(path)
    damage(path)
    with refused(ModelError, f"{path}.*{named}"):
        load(str(path))


def test_a_folder_of_gguf_files_names_one(tmp_path):
    tiny_gguf.write(tmp_path / "small.gguf")
    with pytest.raises(ModelError, match=r"give the path of a GGUF file, such as '.*small\.gguf'"):
        load(str(tmp_path))


# ------------------------------------------------------------------ what a file says is used, or refused by its name

EXTRA = {  # tensors and settings beyond what transformers reads -> what is named
    "scaled rotary frequencies": (dict(tensors={"rope_freqs.weight": np.ones(4, "f4")}), "rope_freqs.weight"),
    "biases": (dict(tensors={"blk.0.attn_q.bias": np.ones(32, "f4")}), "blk.0.attn_q.bias"),
    "fewer layers": (dict(settings={"block_count": 1}), "blk.1."),
    "no layers": (dict(settings={"block_count": 0}), "blk.0."),
    "yarn": (dict(settings={"rope_scaling_type": gguf.RopeScalingType.YARN}), "llama.rope.scaling.type = yarn"),
    "a factor": (dict(settings={"rope_scaling_factor": 4.0}), "llama.rope.scaling.factor = 4.0"),
    "a scale of logits": (dict(settings={"logit_scale": 0.5}), "llama.logit_scale = 0.5"),
    "a million layers": (dict(settings={"block_count": 10**6}), "1000000"),
    "a giant width": (dict(settings={"embedding_length": 10**9}), "could not be loaded|numbers"),
    "a short window": (dict(settings={"sliding_window": 8}), "llama.attention.sliding_window = 8"),
    "no causal mask": (dict(settings={"causal_attention": False}), "llama.attention.causal = False"),
    "half of each head rotated": (dict(settings={"rope_dimension_count": 4, "key_length": 8}), "shapes|numbers"),
    "one part": (dict(settings={"uint16": ("split.count", 3)}), "part 1 of 3"),
}


@pytest.mark.parametrize("extra, named", EXTRA.values(), ids=EXTRA)
def test_what_would_be_left_out_is_refused_by_name(extra, named, tmp_path):
    path, started = tmp_path / "small.gguf", time.process_time()
    tiny_gguf.write(path, **extra)
    with refused(ModelError, f"{path}.*({named})"):
        load(str(path))
    assert time.process_time() - started < 10


def test_what_says_nothing_new_is_no_reason_to_refuse(tmp_path):
    neutral = {"rope_scaling_type": gguf.RopeScalingType.NONE, "key_length": 8, "value_length": 8, "expert_count": 0}
    neutral |= {"rope_scaling_orig_ctx_len": 64, "sliding_window": 64, "causal_attention": True}
    tiny_gguf.write(tmp_path / "small.gguf", settings=neutral)
    tiny_gguf.write(tmp_path / "plain.gguf")
    found = [load(str(tmp_path / f"{name}.gguf")).fingerprint for name in ("small", "plain")]
    assert found[0] == found[1]


def test_header_and_weights_are_what_gguf_itself_reads(tmp_path):
    """`tiny_gguf.write` reports what gguf's own reader finds in the file, not what was meant."""
    written = tiny_gguf.write(tmp_path / "small.gguf", "Q4_1")
    header, reader = read_header(tmp_path / "small.gguf"), gguf.GGUFReader(tmp_path / "small.gguf")
    assert header.shapes == {t.name: tuple(map(int, reversed(t.shape))) for t in reader.tensors}
    assert header.types == {t.name: int(t.tensor_type) for t in reader.tensors}
    for name, value in header.settings.items():
        found = reader.fields[name].contents()
        assert value == (len(found) if isinstance(found, list) else found), name
    held = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    theirs = tiny_gguf.names(tiny_gguf.llama(True, 8))
    assert held.keys() == set(theirs.values())
    assert all(np.array_equal(held[theirs[name]], dequantised) for name, (_, dequantised) in written.items())


@pytest.mark.parametrize("seed", range(4))
def test_damaged_headers_are_told_at_once(seed, tmp_path):
    """Lengths and counts changed to anything: never a loop, never another error."""
    path = tmp_path / "small.gguf"
    tiny_gguf.write(path)
    whole, choose = path.read_bytes(), random.Random(seed)
    for _ in range(150):
        damaged, at = bytearray(whole), choose.randrange(4, 3000)
        others = [b"\xff" * 8, b"\x00" * 8, choose.randbytes(8), (10**12).to_bytes(8, "little")]
        damaged[at : at + 8] = choose.choice(others)
        path.write_bytes(damaged)
        started = time.process_time()
        with contextlib.suppress(ModelError):
            read_header(path)
        assert time.process_time() - started < 1
