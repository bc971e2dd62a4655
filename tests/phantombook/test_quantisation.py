"""Quantised copies of chapter 19: the block formulas by hand, a GGUF file read by transformers, and what must stay as it is."""

import numpy as np
import pytest
import tiny
import tiny_gguf
import torch
from chapter import chapter

from phantomlib.errors import ModelError, ParameterError
from phantomlib.models.language_model import LanguageModel, fingerprint, load

nineteen = chapter("19")
BITS, quantised = nineteen.BITS, nineteen.quantised


def by_hand(block, kind):
    """A block (32,) in float64 after rounding; GGML's definition of each format, a scale and an offset in float16."""
    half = lambda x: float(np.float16(x))  # noqa: E731
    if kind == "Q8_0":
        scale = np.abs(block).max() / 127
        return half(scale) * np.round(block / scale)
    if kind == "Q4_0":  # the largest value, with its sign, becomes -8
        scale = block[np.abs(block).argmax()] / -8
        return half(scale) * (np.minimum(np.floor(block / scale + 8.5), 15) - 8)
    scale = (block.max() - block.min()) / 15
    return half(scale) * np.floor((block - block.min()) / scale + 0.5) + half(block.min())


@pytest.fixture(scope="module")
def gpt2():
    return load("zoo:gpt2-s")


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_rounded_as_the_format_says(kind, gpt2):
    found = quantised(gpt2, kind).module.state_dict()
    for name, transposed in (("transformer.wte.weight", False), ("transformer.h.1.mlp.c_fc.weight", True)):
        before, after = (s[name].double().numpy() for s in (gpt2.module.state_dict(), found))
        before, after = (m.T if transposed else m for m in (before, after))  # transformers' Conv1D holds (in, out)
        for row, start in ((0, 0), (3, 32), (7, 64)):
            block = slice(start, start + 32)
            np.testing.assert_allclose(after[row, block], by_hand(before[row, block], kind), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", BITS)
def test_it_is_what_a_gguf_file_gives(kind, tied, tmp_path):
    tiny_gguf.write(tmp_path / "small.gguf", kind, tied)
    read = load(str(tmp_path / "small.gguf"))
    module = tiny_gguf.llama(tied, len(read.readout)).requires_grad_(False)
    copy = quantised(LanguageModel("small", "small", module, read.tokenizer, fingerprint(module)), kind)
    ours, theirs = copy.module.state_dict(), read.module.state_dict()
    assert ours.keys() == theirs.keys() and copy.tied == tied
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("kind", BITS)
def test_rounding_twice_is_rounding_once(kind, gpt2):
    once = quantised(gpt2, kind)
    assert once.fingerprint == quantised(gpt2, kind).fingerprint != gpt2.fingerprint
    assert quantised(once, kind).fingerprint == once.fingerprint


def test_more_bits_are_nearer(gpt2):
    original = gpt2.readout
    distance = [float((quantised(gpt2, kind).readout - original).norm()) for kind in BITS]
    assert list(BITS.values()) == sorted(BITS.values(), reverse=True) and distance == sorted(distance)


def test_what_is_no_matrix_is_kept(gpt2):
    before = {name: p.clone() for name, p in gpt2.module.named_parameters()}
    copy = quantised(gpt2, "Q4_0")
    for name, p in copy.module.named_parameters():
        kept = p.ndim == 1 or name == "transformer.wpe.weight"
        assert torch.equal(p, before[name]) == kept, name
    assert all(torch.equal(p, before[name]) for name, p in gpt2.module.named_parameters())  # the original, too
    assert copy.tied and copy.name == "gpt2-s-Q4_0" and copy.ref == "zoo:gpt2-s" and copy.tokenizer is gpt2.tokenizer
    assert not any(p.requires_grad for p in copy.module.parameters())


def test_only_rows_of_whole_blocks_are_rounded():
    model = tiny.model("GPT2")  # width 16; the second layer of its MLP has 64 inputs
    copy, before = quantised(model, "Q8_0"), model.module.state_dict()
    changed = {name for name, p in copy.module.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (0, 1)}
    assert copy.readout.dtype == torch.float64


def test_what_is_refused(gpt2):
    with pytest.raises(ParameterError, match="Q4_2.*Q8_0, Q5_1, Q5_0, Q4_1, Q4_0"):
        quantised(gpt2, "Q4_2")
    with pytest.raises(ModelError, match="tiny-OPT.*multiple of 32"):
        quantised(tiny.model("OPT"), "Q4_0")
