"""A table of spoilt folders: each is refused in one paragraph, soon, runs no code, and leaves the folder as it was."""

import copy
import json
import os
import shutil
import time
from unittest.mock import Mock

import pytest
import tiny
import tiny_gguf
import torch
import transformers
from refused import refused
from safetensors.torch import load_file, save_file

from phantomlib.errors import ModelError
from phantomlib.models import tokenizer_trial
from phantomlib.models.language_model import load

SECONDS = 20  # of the processor
INDEX, WEIGHTS = "model.safetensors.index.json", "model.safetensors"


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def settings(file="config.json", **changes):
    def change(folder):
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def index(name):
    """An index whose weights are in another file; they are where it says."""

    def change(folder):
        state = tiny.model("GPT2", "float32").module.state_dict()
        write(INDEX, json.dumps({"metadata": {}, "weight_map": dict.fromkeys(state, name)}))(folder)
        torch.save(state, folder / "w.bin")
        (folder / WEIGHTS).rename(folder / "other.safetensors")

    return change


def link(name, target):
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def remove(name):
    return lambda folder: [path.unlink() for path in folder.glob(name)]


def pipe(name):
    return lambda folder: (remove(name)(folder), os.mkfifo(folder / name))


def header(length):
    """Safetensors whose header claims to be so many bytes long."""
    return write(WEIGHTS, length.to_bytes(8, "little") + b"{}")


def tensors(**more):
    """Further tensors in the file; None takes one away."""

    def change(folder):
        held = load_file(folder / WEIGHTS) | {name.replace("__", "."): value for name, value in more.items()}
        kept = {name: value for name, value in held.items() if value is not None}
        save_file(kept, folder / WEIGHTS, {"format": "pt"})

    return change


def saved_as(kind, config, **options):
    def change(folder):
        with torch.random.fork_rng():
            getattr(transformers, kind)(getattr(transformers, config)(**options)).save_pretrained(folder)

    return change


def tokenizer(change):
    """The tokenizer's own file, altered."""

    def spoil(folder):
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return spoil


def expression(pattern):
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return tokenizer(lambda content: content.update(pre_tokenizer=split))


def growing(content):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    content["normalizer"] = {"type": "Sequence", "normalizers": [double] * 60}


def not_a_number(folder):
    module = copy.deepcopy(tiny.model("GPT2", "float32").module)
    module.transformer.ln_f.bias[0] = float("nan")
    module.save_pretrained(folder)


def own_code(folder):
    settings(model_type="new", auto_map={"AutoConfig": "new.C", "AutoModelForCausalLM": "new.M"})(folder)
    (folder / "new.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


SMALL = {"vocab_size": 60, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2}
T5 = {"vocab_size": 60, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 20, "d_kv": 8}
GPT2 = tiny.ARCHITECTURES["GPT2"][1]
FAR = json.dumps({"w": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 2**62]}}).encode()

SPOILT = {  # what is done to a good checkpoint -> what must be said
    "no configuration": (remove("config.json"), "no config.json"),
    "a configuration of nothing": (write("config.json", ""), "not a JSON object"),
    "a configuration that is a list": (write("config.json", "[]"), "not a JSON object"),
    "a configuration without end": (write("config.json", "[" * 100_000), "not a JSON object"),
    "a configuration of other bytes": (write("config.json", b"\xff\xfe"), "not a JSON object"),
    "a configuration with nan": (settings(layer_norm_epsilon=float("nan")), "nan|could not be loaded"),
    "a configuration that is a link out": (link("config.json", "/etc/passwd"), "leads out of its folder"),
    "a configuration that is a pipe": (pipe("config.json"), "not a regular file"),
    "a pipe beside them": (pipe("generation_config.json"), "not a regular file"),
    "no type": (write("config.json", "{}"), "model_type"),
    "an unknown type": (settings(model_type="<b>"), "could not be loaded"),
    "a type that is a list": (settings(model_type=["gpt2"]), "could not be loaded"),
    "a type of pictures": (settings(model_type="vit"), "could not be loaded"),
    "its own code": (own_code, "own code"),
    "its own code beside a known type": (settings(auto_map={"AutoModelForCausalLM": "evil.Model"}), "own code"),
    "a tokenizer with its own code": (
        settings("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}), "own code"
    ),
    "a tokenizer's configuration that is none": (write("tokenizer_config.json", "{"), "not a JSON object"),
    "a tokenizer without end": (write("tokenizer.json", "[" * 100_000), "could not be loaded"),
    "a tokenizer that is slow": (expression("(a|a)*(b|c)*(a|a)*$"), "fails in a trial"),
    "a tokenizer that grows": (tokenizer(growing), "seconds or 2 GiB"),
    "a tokenizer with a limit that is a word": (
        settings("tokenizer_config.json", model_max_length="x"), "could not be loaded"
    ),
    "no tokenizer": (remove("tokenizer*"), "tokenizer"),
    "an adapter": (write("adapter_config.json", "{}"), "Merge it first"),
    "an adapter alone": (
        lambda f: (write("adapter_config.json", "{}")(f), remove("config.json")(f)), "Merge it first"
    ),
    "no weights": (remove(WEIGHTS), "no .safetensors weights"),
    "pickled weights only": (
        lambda f: (write("pytorch_model.bin", b"\x80")(f), remove(WEIGHTS)(f)), "no .safetensors weights"
    ),
    "weights of nothing": (write(WEIGHTS, ""), "could not be loaded"),
    "weights that are a pickle": (write(WEIGHTS, b"\x80\x04cos\nsystem\n"), "could not be loaded"),
    "weights cut short": (lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 100), "could not be loaded"),
    "weights with a giant header": (header(2**62), "could not be loaded"),
    "weights of a shape beyond anything": (write(WEIGHTS, len(FAR).to_bytes(8, "little") + FAR), "could not be loaded"),
    "weights with nan": (not_a_number, "nan"),
    "weights that are a link out": (link(WEIGHTS, "/etc/passwd"), "leads out of its folder"),
    "weights that are a link to itself": (link(WEIGHTS, WEIGHTS), "cannot be read|out of"),
    "weights that are a folder": (lambda f: (remove(WEIGHTS)(f), (f / WEIGHTS).mkdir()), "could not be loaded"),
    "an index of a pickle": (index("w.bin"), "'w.bin'"),
    "an index of a pickle in disguise": (index("w.bin\x00.safetensors"), "no .safetensors file"),
    "an index that leads up": (index("../w.safetensors"), "no .safetensors file in its folder"),
    "an index that leads down": (index("sub/x.safetensors"), "no .safetensors file in its folder"),
    "an index of numbers": (index(3), "names 3"),
    "an index that is a list": (write(INDEX, "[]"), "not a JSON object"),
    "an index without a map": (write(INDEX, "{}"), "names None"),
    "an index that is none": (write(INDEX, "{"), "not a JSON object"),
    "another width": (settings(n_embd=32), "shapes"),
    "a width below nothing": (settings(n_embd=-16), "could not be loaded"),
    "a width of words": (settings(n_embd="wide"), "wide"),
    "heads that do not divide": (settings(n_head=3), "could not be loaded"),
    "another vocabulary": (settings(vocab_size=3), "shapes"),
    "a vocabulary of three": (saved_as("GPT2LMHeadModel", "GPT2Config", **GPT2 | {"vocab_size": 3}), "vocabulary of 3 tokens"),
    "two positions": (saved_as("GPT2LMHeadModel", "GPT2Config", **GPT2 | {"n_positions": 2}), "could not be loaded"),
    "an unknown precision": (settings(dtype="float7"), "could not be loaded"),
    "quantised in a way that needs more packages": (
        settings(quantization_config={"quant_method": "gptq", "bits": 4}), "could not be loaded"
    ),
    "bidirectional": (saved_as("BertForMaskedLM", "BertConfig", **SMALL), "causal"),
    "encoder and decoder": (saved_as("T5ForConditionalGeneration", "T5Config", **T5), "causal"),
    # the configuration against the weights
    "layers that are not there": (settings(n_layer=3), "h.2."),
    "a weight that is not there": (tensors(transformer__ln_f__bias=None), "lacks weights"),
    "layers that are left out": (settings(n_layer=1), "h.1."),
    "a bias that is left out": (tensors(lm_head__bias=torch.ones(tiny.V)), "lm_head.bias"),
    "a tensor of nothing known": (tensors(more=torch.ones(2)), "more"),
    # bounded before anything is built
    "a million layers": (settings(n_layer=10**6), "asks for 1000000 in its setting 'n_layer'"),
    "layers without end": (settings(n_layer=float("inf")), "asks for inf"),
    "a billion labels": (settings(num_labels=10**9), "'num_labels'"),
    "a list of a billion": (settings(attention_types=[[["global"], 10**9]]), "1000000000"),
    "a million layers inside": (settings(text_config={"num_hidden_layers": 10**6}), "'num_hidden_layers'"),
    "a vocabulary of a billion": (settings(vocab_size=10**9), "numbers, and holds"),
    "a billion positions": (settings(n_positions=10**9), "numbers, and holds"),
    "masks of a terabyte": (
        saved_as("GPTNeoForCausalLM", "GPTNeoConfig", **tiny.ARCHITECTURES["GPTNeo"][1] | {"max_position_embeddings": 10}),
        settings(max_position_embeddings=10**6), "numbers, and holds",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A complete checkpoint, copied and spoilt by the rows."""
    folder = tmp_path_factory.mktemp("hostile") / "good"
    tiny.model("GPT2", "float32").module.save_pretrained(folder)
    tiny.leading().save_pretrained(folder)
    return folder


def tree(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_spoilt_folders_are_refused(spoil, good, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizer_trial, "SECONDS", 10)
    folder = shutil.copytree(good, tmp_path / "model")
    *changes, words = spoil
    for change in changes:
        change(folder)
    before, started = tree(folder), time.process_time()
    with refused(ModelError, f"{folder}.*({words})"):
        load(str(folder))
    assert tree(folder) == before and time.process_time() - started < SECONDS


def llama(folder, change=lambda state, module: state):
    """A Llama of several layers; what its file holds can be changed."""
    module = tiny.model("Llama", "float32", tied=True).module
    module.save_pretrained(folder)
    state = {name: tensor.contiguous() for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(change(state, module), folder / WEIGHTS, {"format": "pt"})
    tiny.leading().save_pretrained(folder)
    return folder


ROTARY = "model.layers.1.self_attn.rotary_emb.inv_freq"
LEFTOVERS = {  # what old files hold besides weights
    "rotary frequencies": lambda state, m: state | {ROTARY: m.model.rotary_emb.inv_freq.half()},
    "positions": lambda state, m: state | {"model.position_ids": torch.arange(64)[None]},
    "masks": lambda state, m: state | {"model.layers.0.attn.masked_bias": torch.tensor(-1e4)},
    "the readout of a tied model": lambda state, m: state | {"lm_head.weight": m.lm_head.weight.clone()},
}


@pytest.mark.parametrize("change", LEFTOVERS.values(), ids=LEFTOVERS)
def test_leftovers_that_hold_no_weights_are_no_reason_to_refuse(change, tmp_path):
    found = load(str(llama(tmp_path / "old", change)))
    assert found.fingerprint == load(str(llama(tmp_path / "new"))).fingerprint and found.tied


def test_rotary_frequencies_of_their_own_are_refused(tmp_path):
    folder = llama(tmp_path, lambda state, m: state | {ROTARY: m.model.rotary_emb.inv_freq / 4})
    with pytest.raises(ModelError, match=f"would use: .*{ROTARY}"):
        load(str(folder))


def test_biases_that_the_configuration_denies_are_refused(tmp_path):
    bias = "model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(ModelError, match=bias):
        load(str(llama(tmp_path, lambda state, m: state | {bias: torch.ones(16)})))


def test_a_readout_of_its_own_is_the_file_s_whatever_the_configuration_says(tmp_path):
    readout = torch.randn(tiny.V, 16, generator=torch.Generator().manual_seed(0))
    model = load(str(llama(tmp_path, lambda state, m: state | {"lm_head.weight": readout})))
    assert torch.equal(model.readout, readout) and not model.tied


def test_a_folder_that_may_not_be_read_is_refused(good, monkeypatch):
    refuse = Mock(side_effect=PermissionError(13, "Permission denied", str(good)))
    monkeypatch.setattr("pathlib.Path.exists", refuse)  # root may read everything, so a mode would not do
    with pytest.raises(ModelError, match="cannot be read .Permission denied"):
        load(str(good))


def test_a_model_that_is_not_causal_is_not_hidden_by_logits_whose_squares_overflow(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "model")
    with torch.random.fork_rng():
        module = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL, tie_word_embeddings=False))
    with torch.no_grad():
        module.get_output_embeddings().weight.mul_(1e30)
    module.save_pretrained(folder)
    with pytest.raises(ModelError, match="causal"):
        load(str(folder))


def in_files(folder, pair=" "):
    """The tokenizer of a folder as vocab.json and merges.txt."""
    held = json.loads((folder / "tokenizer.json").read_text())["model"]
    write("vocab.json", json.dumps(held["vocab"]))(folder)
    write("merges.txt", "\n".join(["#version: 0.2", *map(pair.join, held["merges"])]))(folder)
    write("tokenizer_config.json", json.dumps({"tokenizer_class": "GPT2Tokenizer"}))(folder)
    (folder / "tokenizer.json").unlink()


def test_every_tokenizer_is_tried_once_in_whatever_files_and_ours_never(good, tmp_path, monkeypatch):
    tried, real = [], tokenizer_trial.subprocess.run
    monkeypatch.setattr(tokenizer_trial, "_fine", set())
    monkeypatch.setattr(tokenizer_trial.subprocess, "run", lambda *a, **o: (tried.append(a), real(*a, **o))[1])
    in_files(shutil.copytree(good, tmp_path / "files"))
    in_files(shutil.copytree(good, tmp_path / "odd"), pair="  ")
    tiny_gguf.write(tmp_path / "small.gguf")
    texts = [load(str(tmp_path / name)).tokenizer("she felt deep shame").input_ids for name in ("files", "small.gguf")]
    assert len(tried) == 2 and texts[0] == texts[1]
    with pytest.raises(ModelError, match="its tokenizer fails in a trial"):
        load(str(tmp_path / "odd"))
    for number in range(2):
        load(str(shutil.copytree(good, tmp_path / str(number))))
    load("zoo:gpt2-s")
    assert len(tried) == 4
