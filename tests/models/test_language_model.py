"""Checkpoints on disk: what loads, what is refused and how, what a fingerprint sees, what LoRA touches."""

import copy
import dataclasses
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import tiny
import torch
import transformers
from refused import refused
from safetensors.torch import load_file

from phantomlib.errors import ContextError, ModelError, ParameterError
from phantomlib.models import language_model
from phantomlib.models.language_model import (
    LanguageModel,
    add_lora,
    check_device,
    fingerprint,
    load,
    next_token_logits,
    share_tensors,
    short_name,
    weights_key,
)


def save(folder, architecture="GPT2", tied=None, module=None, **options):
    """A complete checkpoint in Hugging Face format, with weights that only this architecture and tying have."""
    (module or tiny.model(architecture, "float32", tied).module).save_pretrained(folder, **options)
    tiny.leading().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copied")


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_comes_back_from_disk(architecture, tied, tmp_path):
    original = tiny.model(architecture, "float32", tied)
    loaded = load(str(save(tmp_path / "somewhere", architecture, tied)))
    contexts = tiny.contexts(original)
    assert torch.equal(next_token_logits(loaded, contexts), next_token_logits(original, contexts))
    assert torch.equal(loaded.readout, original.readout) and loaded.readout.shape[0] == tiny.V
    assert loaded.tied == tied and loaded.n_parameters == original.n_parameters
    assert loaded.model_type == original.module.config.model_type and loaded.name == "somewhere"
    assert not loaded.module.training and not any(p.requires_grad for p in loaded.module.parameters())


@pytest.mark.parametrize("bars", [True, False])
def test_loading_is_quiet_and_leaves_transformers_as_it_was(bars, saved, monkeypatch):
    logging = transformers.utils.logging

    def state(*_, **__):
        inside.append((logging.get_verbosity(), logging.is_progress_bar_enabled()))
        return inside[-1]

    inside = []
    verbosity, shown = state()
    switch = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        switch[bars]()
        logging.set_verbosity_info()
        load(str(saved))
        assert state() == (logging.INFO, bars)
        monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", state)
        with pytest.raises(ModelError):  # what it gives is no tokenizer
            load(str(saved))
        assert inside[2:] == [(logging.ERROR, False)] and state() == (logging.INFO, bars)
    finally:
        logging.set_verbosity(verbosity)
        switch[shown]()


def test_shards_and_places_do_not_matter_but_weights_and_settings_do(saved, tmp_path):
    reference = load(str(saved)).fingerprint
    sharded = save(tmp_path / "sharded", max_shard_size="5KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert load(str(sharded)).fingerprint == load(f"{saved}/").fingerprint == reference
    assert load(str(save(tmp_path / "untied", tied=False))).fingerprint != reference
    assert load(str(saved), dtype="float64").fingerprint != reference
    configure(sharded, layer_norm_epsilon=0.1)
    assert load(str(sharded)).fingerprint != reference


def test_one_changed_bit_changes_the_fingerprint():
    module = copy.deepcopy(tiny.model().module)
    before = fingerprint(module)
    assert before == fingerprint(tiny.model().module)
    bias = module.transformer.h[1].mlp.c_fc.bias
    bias[3] = torch.nextafter(bias[3], bias[3] + 1)
    assert fingerprint(module) != before


class Later(transformers.GPT2Config):
    """The class as a later transformers has it: one setting more, and one default that nothing here uses."""

    a_new_setting: int = 3


class Wrapped(transformers.LlamaConfig):
    """A configuration within a configuration."""

    sub_configs = {"inner": Later}
    inner: dict | transformers.PreTrainedConfig | None = None

    def __post_init__(self, **options):
        self.inner = Later(**(self.inner or {}))
        super().__post_init__(**options)


def test_a_setting_that_a_later_transformers_adds_changes_no_fingerprint():
    def found(**changes):
        module = copy.copy(tiny.model("GPT2", "float32").module)
        for name, value in changes.items():
            setattr(module, name, value) if name == "config" else setattr(module.config, name, value)
        return fingerprint(module)

    config = tiny.model("GPT2", "float32").module.config
    settings = {k: v for k, v in config.to_dict().items() if k not in ("model_type", "transformers_version")}
    later = Later(**settings)
    assert later.to_dict()["a_new_setting"] == 3
    assert found(config=later) == found() == found(config=transformers.GPT2Config(**settings))
    assert found(config=Later(**settings | {"a_new_setting": 4})) != found()
    for silent in ({"use_cache": False}, {"architectures": ["X"]}, {"bos_token_id": 1}, {"transformers_version": "9"}):
        assert found(config=Later(**settings | silent)) == found(), silent
    assert found(config=Later(**settings | {"layer_norm_epsilon": 0.1})) != found()
    plain, inside = (found(config=Wrapped(inner=inner)) for inner in ({}, {"a_new_setting": 4}))
    assert plain != inside and plain == found(config=Wrapped(inner={"use_cache": False}))


def test_the_weights_key_is_that_of_the_values_alone(saved, copied):
    single, double = load(str(saved)), load(str(saved), dtype="float64")
    assert single.fingerprint != double.fingerprint
    configure(copied, layer_norm_epsilon=0.1)
    assert single.weights_key == double.weights_key == load(str(copied)).weights_key == weights_key(single.module)
    digest = hashlib.sha256()  # by the file's own tensors; GPT-2's readout is the embedding
    for name, tensor in sorted(load_file(saved / "model.safetensors").items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().astype("f4").tobytes())
    assert single.weights_key == digest.hexdigest()
    assert load("zoo:gpt2-s").weights_key != single.weights_key


def test_loading_hashes_the_weights_once(saved, monkeypatch):
    hashed, real = [], language_model._bytes
    monkeypatch.setattr(language_model, "_bytes", lambda tensor: (hashed.append(tensor.numel()), real(tensor))[1])
    assert sum(hashed) == 0 and load(str(saved)).n_parameters == sum(hashed)


ROBERTA = {"is_decoder": True, "max_position_embeddings": 20, "pad_token_id": 1, "intermediate_size": 20}
LIMITS = {  # class -> settings under which it reads 18 tokens
    "RobertaForCausalLM": ROBERTA,
    "MptForCausalLM": {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 18},
    "GPT2LMHeadModel": {"n_positions": 18},
}


@pytest.mark.parametrize("kind, settings", LIMITS.items(), ids=LIMITS)
def test_a_prompt_beyond_the_positions_is_told_whatever_the_limit_is_called(kind, settings):
    names = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        module = getattr(transformers, kind)(getattr(transformers, kind).config_class(**names | settings)).eval()
    model = LanguageModel("small", "small", module, None)
    context = tiny.contexts(tiny.model("GPT2", "float32"))[0]
    fits, beyond = (dataclasses.replace(context, prompt_ids=(5,) * length) for length in (18, 19))
    assert next_token_logits(model, [fits]).shape == (1, 60)
    with pytest.raises(ContextError, match="cannot read the prompt of context 'c0', 19 tokens"):
        next_token_logits(model, [beyond])


def test_half_precision_is_computed_in_single(tmp_path):
    half = copy.deepcopy(tiny.model("GPT2", "float32").module).to(torch.bfloat16)
    model = load(str(save(tmp_path, module=half)))
    assert model.readout.dtype == torch.float32 and model.module.dtype == torch.float32
    contexts = tiny.contexts(model)
    assert torch.equal(next_token_logits(model, contexts), torch.stack([_logits(half.float(), c) for c in contexts]))


@torch.no_grad()
def _logits(module, context):
    return module(torch.tensor([context.prompt_ids])).logits[0, -1]


def test_a_model_has_a_short_plain_name(saved, monkeypatch):
    refs = ["pretrained:smollm2-135m", "zoo:gpt2-s", "some/where/model.Q4.gguf", "owner/name", "a/folder/"]
    assert [short_name(ref) for ref in refs] == ["smollm2-135m", "gpt2-s", "model.Q4", "name", "folder"]
    for odd in ("a <b>", "$x$", "c|d", "=e", "f g"):  # on pages, and in names of files
        assert re.fullmatch(r"[\w.+-]+", short_name(f"in/{odd}")) and len(short_name(odd)) == len(odd)
    monkeypatch.chdir(saved)
    assert load(".").name == saved.name


@pytest.mark.parametrize("asked", ["sdpa", "flash_attention_2", "somebody/kernels:attention", {"": "sdpa"}], ids=str)
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_attention_is_eager_whatever_a_configuration_asks_for(key, asked, copied, saved):
    configure(copied, **{key: asked})
    found = load(str(copied))
    assert found.module.config._attn_implementation == "eager" and found.fingerprint == load(str(saved)).fingerprint


def test_a_link_within_the_folder_and_the_hub_s_own_cache_are_fine(saved, tmp_path):
    cache = tmp_path / "models--a--b"
    snapshot = shutil.copytree(saved, cache / "snapshots" / "0123456789abcdef")
    (cache / "blobs").mkdir()
    weights = snapshot / "model.safetensors"
    weights.rename(cache / "blobs" / "aa")
    weights.symlink_to("../../blobs/aa")
    assert load(str(snapshot)).fingerprint == load(str(saved)).fingerprint


def test_a_missing_shard_is_refused(tmp_path):
    folder = save(tmp_path / "sharded", max_shard_size="5KB")
    next(folder.glob("*-00002-*.safetensors")).unlink()
    with pytest.raises(ModelError, match="00002"):
        load(str(folder))


REFS = {  # what the message must say -> references
    "The zoo has no model": ("zoo:gpt2-xs", "zoo:", "zoo:../../etc", "zoo:" + "x" * 4000, "zoo:gpt2-s\0"),
    "Check the path": ("/no/such", "./nowhere", "~nobody-of-that-name/model", "some/deep/path", "https://a.org/model"),
    "A model is named by zoo:NAME": ("", "  ", None, 7, "x" * 5000, "zoo:" + "x" * 50_000),
}


@pytest.mark.parametrize(
    "named, ref", [(named, ref) for named, refs in REFS.items() for ref in refs], ids=lambda x: repr(x)[:20]
)
def test_references_that_lead_nowhere_are_refused(named, ref):
    with refused(ModelError, named):
        load(ref)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    refuse = Mock(side_effect=socket.gaierror(-2, "Name or service not known"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's client tries again and again


@pytest.mark.parametrize("declared", [True, False], ids=["HF_HUB_OFFLINE", "cable cut"])
@pytest.mark.parametrize("ref", ["no-such-owner/no-such-model", "two words", "x" * 300, "a\0b", "a\nb", "<b>/x"])
def test_hub_models_are_refused_with_a_way_out_when_offline(ref, declared, no_network, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", declared)
    with pytest.raises(ModelError, match="no connection to the hub, or no such model.*zoo:gpt2-s"):
        load(ref)


DEVICES = ("gpu", "", "meta", "cuda:99", None, 3.5, ["cpu"], "hpu", "privateuseone", "xla:0", "mtia")


@pytest.mark.parametrize("dtype", ["float16", "double", "", None, ["float32"], torch.float32], ids=str)
def test_impossible_dtypes_are_refused(dtype, saved):
    with refused(ParameterError, "choose one of float32, float64"):
        load(str(saved), dtype=dtype)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_impossible_devices_are_refused(device):
    with refused(ParameterError, f"^device .*{re.escape(str(device))}.* cannot be used here.*Use device 'cpu'"):
        check_device(device)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_lora_adapts_every_linear_layer_but_the_readout_and_changes_nothing_yet(architecture):
    model = tiny.model(architecture)
    context = tiny.contexts(model)[0]
    before, state = copy.deepcopy(model.module.state_dict()), torch.random.get_rng_state()
    adapted = add_lora(model.module, rank=3, alpha=6.0, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert model.module.state_dict().keys() == before.keys()
    assert not any(p.requires_grad for p in model.module.parameters())
    assert torch.equal(_logits(adapted, context), _logits(model.module, context))
    leaves, readout = dict(model.module.named_modules()), model.module.get_output_embeddings()
    linear = {n for n, leaf in leaves.items() if isinstance(leaf, torch.nn.Linear) or type(leaf).__name__ == "Conv1D"}
    linear = {name for name in linear if leaves[name] is not readout}
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert trained == {f"base_model.model.{name}.lora_{m}.default.weight" for name in linear for m in "AB"}
    assert all(p.dtype == torch.float64 for p in adapted.parameters())
    assert torch.equal(adapted.get_output_embeddings().weight, model.readout)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_shared_copy_has_the_tensors_but_its_own_tree_hooks_and_configuration(architecture, lora):
    model = tiny.model(architecture)
    module, context = model.module, tiny.contexts(model)[0]
    if lora:
        module = add_lora(module, rank=2, alpha=4.0, seed=0)
    before, settings = _logits(module, context), module.config.to_json_string()
    shared = share_tensors(module)
    assert torch.equal(_logits(shared, context), before)
    assert all(a is b for a, b in zip(module.parameters(), shared.parameters(), strict=True))
    assert not set(module.modules()) & set(shared.modules())
    shared.config.pad_token_id = 3
    for leaf in shared.modules():
        leaf.register_forward_hook(lambda *_: pytest.fail("a hook of the copy ran in the original"))
        leaf._parameters.clear()
        leaf._modules = {}
    assert torch.equal(_logits(module, context), before) and module.config.to_json_string() == settings


def test_lora_is_drawn_from_its_seed_alone():
    def drawn(seed):
        torch.rand(3)
        module = add_lora(tiny.model().module, rank=2, alpha=4.0, seed=seed)
        return torch.cat([p.flatten() for name, p in module.named_parameters() if "lora_A" in name])

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


# ------------------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(monkeypatch, saved, tmp_path):
    """A hub that has one model; what is asked of it is noted."""
    asked = []
    folder = shutil.copytree(saved, tmp_path / "models--a--b" / "snapshots" / ("0" * 40))

    def model_info(self, ref, revision=None, timeout=None):
        asked.append(("info", timeout))
        names = (
            "model.safetensors",
            "model.fp16.safetensors",
            "pytorch_model.bin",
            "onnx/w.safetensors",
            "config.json",
        )
        return SimpleNamespace(sha="0" * 40, siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(ref, revision=None, allow_patterns=None, local_files_only=False, **_):
        asked.append(("local" if local_files_only else "download", allow_patterns))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked, folder


def test_of_a_hub_model_only_what_is_needed_is_fetched_and_checked_as_a_folder_is(hub, saved):
    asked, folder = hub
    found = load("a/b")
    assert found.fingerprint == load(str(saved)).fingerprint and found.revision == "0" * 40
    assert asked == [("info", 5), ("download", ["config.json", "model.safetensors"])]
    configure(folder, auto_map={"AutoModelForCausalLM": "x.M"})
    with pytest.raises(ModelError, match="own code"):
        load("a/b")


def test_without_a_connection_what_was_fetched_earlier_is_taken(hub, saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", Mock(side_effect=OSError("no route to host")))
    assert load("a/b").fingerprint == load(str(saved)).fingerprint and hub[0] == [("local", None)]


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path):
    """A port that takes connections and says nothing: the answer comes after the client's patience, not its retries."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = (
            "import time, transformers\nfrom phantomlib.errors import ModelError\nfrom phantomlib.models import checkpoint\n"
            "from phantomlib.models.language_model import load\ncheckpoint.PATIENCE, started = 1, time.perf_counter()\n"
            "try:\n    load('nobody/nothing')\n"
            "except ModelError as error:\n    print(time.perf_counter() - started, error)"
        )
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        around = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        options = {"capture_output": True, "text": True, "timeout": 200}
        done = subprocess.run([sys.executable, "-c", code], env=around, **options)
    assert "no connection to the hub" in done.stdout, done.stderr
    assert float(done.stdout.split()[0]) < 15  # the client's patience of a second, on a busy machine
