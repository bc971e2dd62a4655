"""What a checkpoint's folder may hold: safetensors that lie in it, no code, no adapter; models on the hub as such folders."""

import json
import os
from pathlib import Path

from phantomlib.errors import ModelError, shown

PATIENCE = 5  # seconds in which the hub must answer
CONFIGURATION = ("config.json", "tokenizer_config.json")
BESIDE = (".json", ".txt", ".model", ".jinja")  # what stands beside the weights on the hub, by its ending


def check_folder(folder: Path, ref: str) -> None:
    """Refuse a folder that transformers would not read as safetensors alone.

    Args:
        folder: where the checkpoint is.
        ref: what the user called it.

    Raises:
        ModelError: unreadable; without configuration or safetensors; with an adapter or code of its own; with an index or
            a link that leads to something else.
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
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{shown(ref, 300)} has no config.json; give a folder saved with transformers' save_pretrained."
        )
    for name in CONFIGURATION:
        if "auto_map" in _read(folder / name, ref):
            raise ModelError(
                f"{shown(ref, 300)} names its own code (auto_map in {name}), which is never run here. If transformers itself "
                "implements the model, save a copy with its class: save_pretrained leaves auto_map out."
            )
    weights = list(folder.glob("*.safetensors"))
    if not weights:
        raise ModelError(
            f"{shown(ref, 300)} holds no .safetensors weights. Pickled weights are not loaded, because they can run code; "
            "convert them once with save_pretrained(..., safe_serialization=True)."
        )
    for index in folder.glob("*.index.json"):
        listed = _read(index, ref).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ModelError(
                f"{shown(ref, 300)} has a damaged {index.name}: it holds no weight_map. Save or fetch it again."
            )
        for name in dict.fromkeys(listed.values()):
            if index.name.endswith(".safetensors.index.json") and Path(name).suffix != ".safetensors":
                raise ModelError(
                    f"{shown(ref, 300)} has a {index.name} that names {shown(name)}; only .safetensors files are loaded, never "
                    "pickled ones. Save it again with save_pretrained."
                )
            if name != os.path.basename(name):
                raise ModelError(
                    f"{shown(ref, 300)} has a {index.name} that leads out of its folder, to {shown(name)}; put the weights beside it."
                )
    for file in weights:
        _check_link(file, folder, ref)


def _check_link(file: Path, folder: Path, ref: str) -> None:
    """A link may lead to a file of the same folder, or, in the hub's cache, to the blobs beside the snapshots."""
    if not file.is_symlink():
        return
    home = Path(os.path.realpath(folder))
    allowed = [home] + ([home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [])
    if Path(os.path.realpath(file)).parent not in allowed:
        raise ModelError(
            f"{shown(ref, 300)} has a link {shown(file.name)} that leads out of its folder; put the file itself there."
        )


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
