"""Published runs: results that take hours, kept with the book so that every reader has them without a model.

A folder of them is laid out like a store: runs, what was remembered of them, predictions, for each model a description
that stands in for it, and a list of all files with their checksums. Its files are copied into a reader's store, and from
there on everything is as if it had been computed here, but for what needs the model itself.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from pydantic import TypeAdapter
from torch import Tensor

from phantomlib import files
from phantomlib.contexts import Resolved
from phantomlib.errors import ModelError, StoreError, shown
from phantomlib.models.language_model import DTYPES
from phantomlib.progress import locked
from phantomlib.runs.store import Store, file_stem

LIST = "published.json"  # every file with its SHA-256
MODELS = "models"  # descriptions that stand in for models
TABLES = "tables"  # what predictions were fitted on
REMEMBERED = ("predictors", "searches", "exactness")
KINDS = "|".join((MODELS, TABLES, "predictions", *REMEMBERED))
STEM = r"[\w+-][\w.+-]{0,199}"
NAME = re.compile(rf"{STEM}\.nc|({KINDS})/{STEM}\.json")  # no other file is copied


@dataclass(frozen=True)
class PublishedModel:
    """What stands in for a model whose runs are published; it has what names a run, and no weights."""

    name: str  # this and the next six as in LanguageModel when the runs were made
    ref: str
    fingerprint: str
    revision: str
    tied: bool
    n_parameters: int
    model_type: str
    dtype: str  # float32 or float64
    device_type: str  # where the runs were made, cpu or cuda
    shape: tuple[int, int]  # of the readout, (V, d)
    contexts: tuple[Resolved, ...]
    left_out: tuple[str, ...]  # why other contexts do not fit it, one sentence each
    weights_key: str = ""  # SHA-256 of the weights' values; empty if the runs are older than this key
    engine_version: int = 6  # of the engine that made the runs; with the fingerprint it names them for good

    @property
    def readout(self) -> Tensor:
        """A tensor of the readout's shape and dtype that holds no numbers."""
        return torch.empty(self.shape, dtype=DTYPES[self.dtype], device="meta")

    @property
    def device(self) -> torch.device:
        return torch.device(self.device_type)

    @property
    def module(self) -> NoReturn:
        """There is none: whatever was not published has to be computed with the model itself."""
        said = f"{shown(self.ref)} itself is needed, because what is asked for was not published"
        raise ModelError(f"{said}. Run the notebook with -p published '' ('phantom models fetch NAME' gets a model).")

    tokenizer = module


def published_models(folder: Path) -> list[PublishedModel]:
    """All models whose runs are in a folder; StoreError if a description cannot be read."""
    models = []
    for path in sorted((folder / MODELS).glob("*.json")):
        try:
            models.append(TypeAdapter(PublishedModel).validate_python(files.read_json(path)))
            if file_stem(models[-1].name) != path.stem:  # the name begins those of files
                raise ValueError(f"it describes {shown(models[-1].name)}")
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise StoreError(f"The description '{path}' cannot be used ({reason}). Restore '{folder}'.") from None
    return models


def published_model(folder: Path, ref: str) -> PublishedModel:
    """What stands in for the model of this reference; ModelError if it is not among the published ones."""
    known = {model.ref: model for model in published_models(folder)}
    if ref not in known:
        among = ", ".join(map(shown, known)) or "there are none"
        said = f"is not among the models with published runs ({among}). Give one of them, or compute it here: -p published ''."
        raise ModelError(f"{shown(ref)} {said}")
    return known[ref]


def present(folder: Path) -> list[str]:
    """Names of the files in a folder that may have been published, in order."""
    return sorted(p.relative_to(folder).as_posix() for kind in ("*.nc", "*/*.json") for p in folder.glob(kind))


def problems(folder: Path) -> list[str]:
    """What is wrong with published files, one phrase each: missing, changed, not in the list, no name of a published file."""
    try:
        listed = files.read_json(folder / LIST)
    except (OSError, ValueError) as error:
        return [f"{LIST} cannot be read ({error})"]
    found = [_problem(folder, name, digest) for name, digest in listed.items()]
    return [*filter(None, found), *(f"{name} is not in {LIST}" for name in present(folder) if name not in listed)]


def _problem(folder: Path, name: str, digest: str) -> str:
    path = folder / name
    if not NAME.fullmatch(name):
        return f"{shown(name)} is no name of a published file"
    if not path.is_file():
        return f"{name} is missing"
    if path.resolve() != folder.resolve() / name:
        return f"{name} is a link"
    try:
        return "" if files.file_digest(path) == digest else f"{name} was changed"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"


def copy_into(folder: Path, store: Store) -> None:
    """Copy published files, if all are whole, into a store and nowhere else; what is there already stays."""
    if found := problems(folder):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        said = f"The published runs in '{folder}' are not what was published: {'; '.join(found[:3])}{more}"
        raise StoreError(f"{said}. Restore them ('git checkout -- {folder.name}'), or compute them: -p published ''.")
    try:
        for name in files.read_json(folder / LIST):
            target = store.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.parent.resolve() != (store.root.resolve() / name).parent:
                raise StoreError(f"'{target.parent}' is a link, and published runs are written into the store alone.")
            if not target.is_file():
                with locked(target.with_suffix(".lock")):  # as who computes it does
                    if not target.is_file():
                        files.write_bytes(target, (folder / name).read_bytes())
    except OSError as error:
        raise StoreError(f"The published runs could not be copied into '{store.root}' ({error}).") from error
    store.runs()  # looked into all at once
