"""A checkpoint's folder: safetensors that lie in it, no code, no adapter, nothing left unread; hub models as such folders."""

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import torch

from phantomlib.errors import Unfit, shown
from phantomlib.files import check_regular, file_digest
from phantomlib.models.tokenizer_trial import try_tokenizer

PATIENCE = 5  # seconds in which the hub must answer
BESIDE = (".json", ".txt", ".model", ".jinja", ".tiktoken", ".bpe")  # what stands beside the weights, by its ending
NO_TOKENIZER = ("config.json", "generation_config.json")
# settings that say how many objects Python makes (and lists), and those of layers among them
COUNTS = re.compile(r"label|expert|head|layer|block|\[\]$")
LAYERS = re.compile(r"((n|num|num_hidden|encoder|decoder|num_encoder|num_decoder)_layers?|.*block_count)")
FEW = 2**14  # so many objects are always fine
ROOM = 4  # times as many numbers as the file holds: what fails to fit is then still named by its shape
# Tensors of old files that hold no weights: masks of GPT-2 and GPT-NeoX, positions; those of rotary_emb are compared.
HARMLESS = re.compile(r"(attn|attention)\.(masked_)?bias$|(^|\.)position_ids$|rotary_emb\.inv_freq$")
TOGETHER = "Give a configuration and weights that belong together."
Shapes = dict[str, tuple[int, ...]]


def read_folder(folder: Path, dtype: torch.dtype, stranger: bool) -> tuple[Any, Any]:
    """The causal language model of a folder, on the CPU with eager attention, and its tokenizer; a stranger's is tried first.

    Raises:
        Unfit: more asked for than the files hold; a tokenizer that fails; a tensor that would be left out.
        Exception: whatever transformers raises.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_folder(folder)
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name, file in _tensors(folder)}
    check_counts(_read(folder / "config.json").items(), shapes)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    config = AutoConfig.from_pretrained(folder, **options)
    config._attn_implementation = "eager"  # a configuration may ask for another, even for code from the hub
    check_size(config, shapes)
    if stranger:
        files = [file for file in folder.iterdir() if file.suffix in BESIDE and file.name not in NO_TOKENIZER]
        digests = frozenset((file.name, file_digest(file)) for file in files if file.is_file())
        try_tokenizer((config.model_type, digests), folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    options |= {"use_safetensors": True, "attn_implementation": "eager", "output_loading_info": True, "dtype": dtype}
    module, report = cast(Any, AutoModelForCausalLM.from_pretrained(folder, config=config, **options))
    check_used(report["missing_keys"], _unused(folder, module, shapes, report["unexpected_keys"]))
    return module, tokenizer


def check_folder(folder: Path) -> None:
    """Refuse a folder that transformers would not read as safetensors alone: Unfit, or OSError where it is unreadable."""
    if (folder / "adapter_config.json").exists():
        said = "Merge it first: peft's merge_and_unload(), then save_pretrained into a folder of its own."
        raise Unfit(f"holds an adapter (adapter_config.json), whose base model could be anything. {said}")
    if not (folder / "config.json").exists():
        gguf = next(folder.glob("*.gguf"), None)
        way_out = f"the path of a GGUF file, such as '{gguf}'" if gguf else "a folder that save_pretrained has made"
        raise Unfit(f"has no config.json; give {way_out}.")
    home = Path(os.path.realpath(folder))
    # the hub's cache has its files in blobs beside the snapshots
    allowed = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    for file in folder.iterdir():
        if file.is_symlink() and Path(os.path.realpath(file)).parent not in allowed:
            raise Unfit(f"has a link {shown(file.name)} that leads out of its folder; put the file itself there.")
        if not file.is_dir():
            check_regular(file)
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        if file.exists() and "auto_map" in _read(file):
            said = f"names its own code (auto_map in {file.name}), which is never run here"
            raise Unfit(f"{said}. If transformers has the model's class, save a copy with its save_pretrained.")
    weights = [file.name for file in folder.glob("*.safetensors")]
    if not weights:
        said = "convert pickled ones, which can run code, once with save_pretrained(..., safe_serialization=True)"
        raise Unfit(f"holds no .safetensors weights; {said}.")
    for index in folder.glob("*.safetensors.index.json"):
        listed = _read(index).get("weight_map")
        for name in listed.values() if isinstance(listed, dict) else [listed]:
            if name not in weights:
                said = f"{shown(name)}, which is no .safetensors file in its folder; no others are loaded"
                raise Unfit(f"has a {index.name} that names {said}. Fetch it again, or save it with save_pretrained.")


def _read(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Unfit(f"has a {path.name} that is not a JSON object. Save or fetch it again.")
    return found


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor's name, with the open file that holds it."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            yield from ((name, file) for name in list(file.keys()))


def check_counts(settings: Iterable[tuple[str, Any]], shapes: Shapes) -> None:
    """Raise Unfit for settings that ask for more layers, experts or labels than the tensors of the file can be for."""
    # each would become objects in Python before any weight is looked at; all numbers in lists count
    others = max(FEW, len(shapes), *(size for shape in shapes.values() for size in shape))
    for name, value in settings:
        most = len(shapes) if LAYERS.fullmatch(name) else others
        if isinstance(value, dict | list):
            check_counts(value.items() if isinstance(value, dict) else ((f"{name}[]", one) for one in value), shapes)
        elif isinstance(value, int | float) and COUNTS.search(name) and value > most:
            said = f"asks for {shown(value)} in its setting {shown(name)}, and has {len(shapes)} tensors for far fewer"
            raise Unfit(f"{said}. {TOGETHER}")


def check_size(config, shapes: Shapes) -> None:
    """Raise Unfit if a configuration's model would need several times the memory of what the file holds."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device("meta"):  # where nothing is allocated
        module: Any = AutoModelForCausalLM.from_config(config)
    held = sum(map(math.prod, shapes.values()))
    asked = sum(p.numel() for p in module.parameters())
    extra = sum(b.numel() for b in module.buffers())  # masks, for instance
    if asked > ROOM * held or extra > ROOM * held + 2**28:
        said = f"asks in its configuration for {asked + extra:,} numbers, and holds {held:,}, or of other shapes"
        raise Unfit(f"{said}. {TOGETHER}")


def check_used(missing, unused) -> None:
    """Raise Unfit for weights that the file lacks, or for tensors and settings in it that the model does not use."""
    if missing:
        said = f"lacks weights that its configuration asks for ({', '.join(sorted(missing)[:3])}, ...)"
        raise Unfit(f"{said}. Give a complete causal language model.")
    if unused:
        said = f"says more than transformers' model would use: {shown(', '.join(sorted(unused)), 150)}"
        raise Unfit(f"{said}. Give a configuration that uses all of it, or another copy of the model.")


def _unused(folder: Path, module, shapes: Shapes, unexpected) -> set[str]:
    """Tensors that no module took, but for the few that are known to hold no weights."""
    found = {name for name in unexpected if not HARMLESS.search(name) or len(shapes.get(name, ())) == 1}
    own = [buffer.cpu().float() for name, buffer in module.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    for name, file in _tensors(folder):
        if name.endswith("rotary_emb.inv_freq"):  # says nothing if it is what the configuration gives
            theirs = file.get_tensor(name).float()
            same = any(theirs.shape == one.shape and torch.allclose(theirs, one, rtol=0.02) for one in own)
            found = found - {name} if same else found | {name}
    return found


def hub_snapshot(ref: str, revision: str | None) -> Path:
    """The folder into which a model of the hub was fetched; of an earlier time if the hub does not answer soon."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi().model_info(ref, revision=revision, timeout=PATIENCE)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception:  # no connection or no service, each in its own way
        return Path(snapshot_download(ref, revision=revision, local_files_only=True))
    files = [file.rfilename for file in found.siblings or () if "/" not in file.rfilename]
    weights = [name for name in files if name.endswith(".safetensors")]
    whole = [name for name in weights if name == "model.safetensors"] or weights  # not a second precision beside it
    wanted = [name for name in files if name.endswith(BESIDE)] + whole
    return Path(snapshot_download(ref, revision=found.sha, allow_patterns=wanted, etag_timeout=PATIENCE))
