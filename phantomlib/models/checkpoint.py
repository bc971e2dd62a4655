"""A checkpoint's folder: safetensors that lie in it, no code, no adapter, nothing left unread; hub models as such folders."""

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from phantomlib.errors import ModelError, shown

PATIENCE = 5  # seconds in which the hub must answer
CONFIGURATION = ("config.json", "tokenizer_config.json")
BESIDE = (".json", ".txt", ".model", ".jinja")  # what stands beside the weights on the hub, by its ending
LAYERS = re.compile(r"((n|num|num_hidden|encoder|decoder|num_encoder|num_decoder)_layers?|.*block_count)")
COUNTS = re.compile(r"label|expert|head|layer|block")  # settings that say how many objects Python makes
FEW = 2**14  # so many objects are always fine
ROOM = 4  # times as many numbers as the file holds: what fails to fit is then still named by its shape
# Tensors of old files that hold no weights: masks of GPT-2 and GPT-NeoX, positions; those of rotary_emb are compared.
HARMLESS = re.compile(r"(attn|attention)\.(masked_)?bias$|(^|\.)position_ids$|rotary_emb\.inv_freq$")
Shapes = dict[str, tuple[int, ...]]


def read_folder(folder: Path, ref: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """The causal language model of a folder, on the CPU with eager attention, and its tokenizer.

    Raises:
        ModelError: as in :func:`check_folder`; more asked for than the files hold; a tensor that would be left out.
        Exception: whatever transformers raises.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_folder(folder, ref)
    shapes = _shapes(folder)
    check_counts(_read(folder / "config.json", ref), shapes, ref)
    options: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    config = AutoConfig.from_pretrained(folder, **options)
    config._attn_implementation = "eager"  # a configuration may ask for another, even for code from the hub
    check_size(config, shapes, ref)
    found: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        use_safetensors=True,
        dtype=dtype,
        attn_implementation="eager",
        output_loading_info=True,
        **options,
    )
    module, report = found
    check_missing(report["missing_keys"], ref)
    _check_unused(folder, module, shapes, report["unexpected_keys"], ref)
    return module, tokenizer


def check_folder(folder: Path, ref: str) -> None:
    """Refuse a folder that transformers would not read as safetensors alone.

    Args:
        folder: where the checkpoint is.
        ref: what the user called it.

    Raises:
        ModelError: unreadable; without configuration or safetensors; with an adapter or code of its own; with an index or
            a link that leads to something else; with a device or a pipe.
    """
    try:
        _check(folder, ref)
    except OSError as error:
        raise ModelError(
            f"{shown(ref, 300)} cannot be read ({error.strerror}). Mend its permissions, or copy it."
        ) from None


def _check(folder: Path, ref: str) -> None:
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{shown(ref, 300)} holds an adapter (adapter_config.json), which transformers would load with whatever base model it "
            "names. Merge it first: peft's merge_and_unload(), then save_pretrained into a folder of its own."
        )
    if not (folder / "config.json").exists():
        raise ModelError(
            f"{shown(ref, 300)} has no config.json; give a folder saved with transformers' save_pretrained."
        )
    for file in folder.iterdir():
        _check_file(file, folder, ref)
    for name in CONFIGURATION:
        if "auto_map" in _read(folder / name, ref):
            raise ModelError(
                f"{shown(ref, 300)} names its own code (auto_map in {name}), which is never run here. If transformers itself "
                "implements the model, save a copy with its class: save_pretrained leaves auto_map out."
            )
    weights = {file.name for file in folder.glob("*.safetensors")}
    if not weights:
        raise ModelError(
            f"{shown(ref, 300)} holds no .safetensors weights. Pickled weights are not loaded, because they can run code; "
            "convert them once with save_pretrained(..., safe_serialization=True)."
        )
    for index in folder.glob("*.safetensors.index.json"):
        listed = _read(index, ref).get("weight_map")
        named = list(listed.values()) if isinstance(listed, dict) else [listed]
        if other := [name for name in named if not isinstance(name, str) or name not in weights]:
            raise ModelError(
                f"{shown(ref, 300)} has a {index.name} that names {shown(other[0])}, which is no .safetensors file in its folder; "
                "no others are loaded. Fetch it again, or save it with save_pretrained."
            )


def _check_file(file: Path, folder: Path, ref: str) -> None:
    """A link may lead to a file of the same folder, or, in the hub's cache, to the blobs beside the snapshots."""
    home = Path(os.path.realpath(folder))
    allowed = [home] + ([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])
    if file.is_symlink() and Path(os.path.realpath(file)).parent not in allowed:
        raise ModelError(
            f"{shown(ref, 300)} has a link {shown(file.name)} that leads out of its folder; put the file itself there."
        )
    if not stat.S_ISREG(mode := file.stat().st_mode) and not stat.S_ISDIR(mode):
        raise ModelError(f"{shown(ref, 300)} holds {shown(file.name)}, which is a device or a pipe; take it away.")


def _read(path: Path, ref: str) -> dict:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{shown(ref, 300)} has a {path.name} that is not JSON ({str(error)[:100]}). Save or fetch it again."
        ) from None
    if not isinstance(found, dict):
        raise ModelError(f"{shown(ref, 300)} has a {path.name} that is not a JSON object. Save or fetch it again.")
    return found


def _shapes(folder: Path) -> Shapes:
    """Name and shape of every tensor, from the headers of the files alone."""
    return {name: tuple(file.get_slice(name).get_shape()) for name, file in _tensors(folder)}


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every tensor's name, with the open file that holds it."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            yield from ((name, file) for name in list(file.keys()))


def check_counts(settings: dict, shapes: Shapes, ref: str) -> None:
    """Refuse settings that ask for more layers, experts or labels than the tensors of the file can be for.

    Each would become objects in Python before any weight is looked at.
    """
    most = max(FEW, len(shapes), *(size for shape in shapes.values() for size in shape), 0)
    for name, value in _numbers(settings):
        limit = len(shapes) if LAYERS.fullmatch(name) else most
        if value > limit:
            raise ModelError(
                f"{shown(ref, 300)} asks for {shown(value)} in its setting {shown(name)}, and its {len(shapes)} tensors hold "
                "weights for far fewer. Give a configuration and weights that belong together."
            )


def _numbers(settings, name: str = "") -> Iterator[tuple[str, float]]:
    """Numbers that say how many there are of something, by the name of their setting; all those within lists."""
    inside = settings.items() if isinstance(settings, dict) else [(f"{name}[]", one) for one in settings]
    for key, value in inside:
        if isinstance(value, dict | list):
            yield from _numbers(value, str(key))
        elif isinstance(value, int | float) and (COUNTS.search(str(key)) or str(key).endswith("[]")):
            yield str(key), value


def check_size(config, shapes: Shapes, ref: str) -> None:
    """Refuse a configuration whose model would need several times the memory of what the file holds.

    The model is built on torch's device ``meta``, which allocates nothing.
    """
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    with no_init_weights(), torch.device("meta"):
        module: Any = AutoModelForCausalLM.from_config(config)
    held = sum(torch.Size(shape).numel() for shape in shapes.values())
    asked = sum(p.numel() for p in module.parameters())
    extra = sum(b.numel() for b in module.buffers())  # masks, for instance
    if asked > ROOM * held or extra > ROOM * held + 2**28:
        raise ModelError(
            f"{shown(ref, 300)} asks in its configuration for {asked + extra:,} numbers, and holds {held:,}; its weights have "
            "other shapes, or part of them is missing. Give a configuration and weights that belong together."
        )


def check_missing(missing, ref: str) -> None:
    """Refuse a model some of whose weights were not in the file."""
    if missing:
        raise ModelError(
            f"{shown(ref, 300)} lacks weights that its configuration asks for ({', '.join(sorted(missing)[:3])}, ...); they "
            "would start at random. Give a complete causal language model."
        )


def refuse_unused(names, ref: str) -> None:
    """Raise ModelError for tensors or settings of a file that the model does not use."""
    raise ModelError(
        f"{shown(ref, 300)} says more than transformers' model would use: {shown(', '.join(sorted(names)), 150)}. What is left "
        "out would change its numbers silently. Give a configuration that uses all of it, or another copy of the model."
    )


def _check_unused(folder: Path, module, shapes: Shapes, unexpected, ref: str) -> None:
    """Refuse tensors that no module took, but for the few that are known to hold no weights."""
    unused = {name for name in unexpected if not HARMLESS.search(name) or len(shapes.get(name, ())) == 1}
    own = [buffer.cpu().float() for name, buffer in module.named_buffers() if name.endswith("rotary_emb.inv_freq")]
    for name, file in _tensors(folder):
        if name.endswith("rotary_emb.inv_freq"):  # says nothing if it is what the configuration gives
            theirs = file.get_tensor(name).float()
            if not any(theirs.shape == one.shape and torch.allclose(theirs, one, rtol=0.02) for one in own):
                unused.add(name)
    if unused:
        refuse_unused(unused, ref)


def hub_snapshot(ref: str, revision: str | None) -> Path:
    """The folder into which a model of the hub was fetched; of an earlier time if the hub does not answer soon.

    Raises:
        Exception: whatever the hub's client raises, if the model is not there already.
    """
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
