"""Published runs: results that take hours, kept with the book so that every reader has them without a model.

A folder of published runs is laid out like a store: runs, what was remembered of them, predictions, and for each model a
description that stands in for it. Beside them is a list of all files with their checksums. Nothing in it is ever changed
by reading: a reader's store takes up copies, and from there on everything is as if it had been computed here, but for what
needs the model itself.

Checksums find damage. Whether a published run is what the code gives is found out by computing it again:
:mod:`phantomlib.runs.verification`, or ``phantom verify``.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from phantomlib import files
from phantomlib.contexts import Context, Resolved, load_contexts
from phantomlib.engine.recipe import fitting_contexts
from phantomlib.errors import ContextError, ModelError, StoreError
from phantomlib.models.language_model import DTYPES, LanguageModel
from phantomlib.progress import locked
from phantomlib.runs.store import Store, commit_of

LIST = "published.json"  # every file with its SHA-256
MODELS = "models"  # descriptions that stand in for models
TABLES = "tables"  # what predictions were fitted on
REMEMBERED = ("predictors", "searches", "exactness")


@dataclass(frozen=True)
class PublishedModel:
    """What stands in for a model whose runs are published; it has what names a run, and no weights.

    Attributes:
        name, ref, fingerprint, revision, tied, n_parameters, model_type: as in
            :class:`phantomlib.models.language_model.LanguageModel`.
        dtype: ``float32`` or ``float64``.
        device_type: where the runs were made, ``cpu`` or ``cuda``.
        shape: of the readout, (V, d).
        contexts: those that fit it.
        left_out: why others do not, one sentence each.
    """

    name: str
    ref: str
    fingerprint: str
    revision: str
    tied: bool
    n_parameters: int
    model_type: str
    dtype: str
    device_type: str
    shape: tuple[int, int]
    contexts: tuple[Resolved, ...]
    left_out: tuple[str, ...]

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
        raise ModelError(
            f"'{self.ref}' itself is needed, because what is asked for was not published. Fetch it ('phantom models fetch "
            "NAME') and run the notebook with -p published ''."
        )

    tokenizer = module


def describe(store: Store, model: LanguageModel, contexts: Sequence[Resolved], left_out: Sequence[str]) -> None:
    """Write down what will stand in for a model, in ``<store>/models``.

    Args:
        store: the store with its runs.
        model: the model.
        contexts: those that fit it.
        left_out: why others do not.
    """
    description = {
        "name": model.name,
        "ref": model.ref,
        "fingerprint": model.fingerprint,
        "revision": model.revision,
        "tied": model.tied,
        "n_parameters": model.n_parameters,
        "model_type": model.model_type,
        "dtype": str(model.readout.dtype).removeprefix("torch."),
        "device_type": model.device.type,
        "shape": list(model.readout.shape),
        "contexts": [asdict(context) for context in contexts],
        "left_out": list(left_out),
    }
    path = store.root / MODELS / f"{model.name}.json"
    path.parent.mkdir(exist_ok=True)
    with locked(path.with_suffix(".lock")):
        files.write_json(path, description)


def stand_in(folder: Path, ref: str) -> PublishedModel:
    """What stands in for the model of this reference.

    Raises:
        ModelError: it is not among the published ones.
    """
    known = []
    for path in sorted((folder / MODELS).glob("*.json")):
        found = files.read_json(path)
        known.append(found["ref"])
        if found["ref"] == ref:
            contexts = tuple(
                Resolved(Context(**c["context"]), tuple(c["prompt_ids"]), c["correct_id"], c["competitor_id"])
                for c in found["contexts"]
            )
            fields = {"contexts": contexts, "shape": tuple(found["shape"]), "left_out": tuple(found["left_out"])}
            return PublishedModel(**found | fields)
    raise ModelError(
        f"'{ref}' is not among the models with published runs ({', '.join(known) or 'there are none'}). Give one of them, "
        "or compute it here: -p published ''."
    )


def models_with_contexts(
    store: Store, refs: list[str], contexts: str, folder: str, open_model: Callable[[str], LanguageModel]
) -> list[tuple[Any, list[Resolved], list[str]]]:
    """Models, the contexts that fit each, and why others do not, in one sentence each.

    Args:
        store: where published runs are taken up, or where what stands in for the models is written.
        refs: the models.
        contexts: their file.
        folder: published runs, or "" to load the models.
        open_model: loads one.

    Raises:
        ModelError, ContextError, StoreError: see :func:`stand_in`, :func:`take_up` and whatever ``open_model`` raises;
            the published runs are of other contexts.
    """
    wanted = load_contexts(contexts)
    if folder:
        take_up(Path(folder), store)
        standing = [stand_in(Path(folder), ref) for ref in refs]  # the store may describe it with other contexts
        for one in standing:
            known = {context.context for context in one.contexts}
            if len(wanted) != len(one.contexts) + len(one.left_out) or not known <= set(wanted):
                raise ContextError(
                    f"The published runs of '{one.ref}' are of other contexts than '{contexts}'. Give those they were "
                    "made with, or compute everything here: -p published ''."
                )
        return [(one, list(one.contexts), list(one.left_out)) for one in standing]
    found: list[tuple[Any, list[Resolved], list[str]]] = []
    for ref in refs:
        model = open_model(ref)
        fitting, refused = fitting_contexts(model, wanted)
        if not fitting:
            raise ContextError(f"None of the {len(wanted)} contexts in '{contexts}' fits '{model.name}'.")
        describe(store, model, fitting, list(map(str, refused)))
        found.append((model, fitting, list(map(str, refused))))
    return found


def table(store: Store, name: str, live: pd.DataFrame, folder: str) -> pd.DataFrame:
    """The table of this name as it was published; without a folder ``live``, which is kept to be published, digit by digit.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    path = (Path(folder) if folder else store.root) / TABLES / f"{name}.json"
    if not folder:
        path.parent.mkdir(exist_ok=True)
        with locked(path.with_suffix(".lock")):
            files.write_json(path, {"columns": live.to_dict("list"), "attrs": live.attrs})
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"The published table '{path}' cannot be read ({error}). Restore '{folder}'.") from None
    again = pd.DataFrame(found["columns"])
    again.attrs = found["attrs"]
    return again


def held_by(folder: str, path: Path) -> str:
    """Hash and day of the commit that holds a published prediction; empty if none does, or without a folder."""
    return commit_of(Path(folder) / path.parent.name / path.name) if folder else ""


def publish(store: Store, folder: Path) -> list[Path]:
    """Copy all that belongs to the described models of a store into a folder, and write the list of checksums anew.

    What is in the folder and not in the store stays; what differs is replaced.

    Returns:
        the published files, relative to the folder.

    Raises:
        StoreError: the store describes no model.
    """
    described = {files.read_json(path)["fingerprint"] for path in sorted((store.root / MODELS).glob("*.json"))}
    if not described:
        raise StoreError(f"'{store.root}' describes no model to publish. Run the chapter on real models there first.")
    found = [*store.root.glob(f"{MODELS}/*.json"), *store.root.glob(f"{TABLES}/*.json")]
    for kind in REMEMBERED:
        found += [p for p in store.root.glob(f"{kind}/*.json") if files.read_json(p)["model"] in described]
    found += _runs_of(store, described)
    names = [files.read_json(path)["name"] for path in store.root.glob(f"{MODELS}/*.json")]
    found += [path for name in names for path in store.root.glob(f"predictions/{name}-*.json")]
    for path in found:
        target = folder / path.relative_to(store.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_bytes() != path.read_bytes():
            files.write_bytes(target, path.read_bytes())
    kept = sorted(p.relative_to(folder) for pattern in ("*.nc", "*/*.json") for p in folder.glob(pattern))
    files.write_json(folder / LIST, {p.as_posix(): files.file_digest(folder / p) for p in kept})
    return kept


def _runs_of(store: Store, fingerprints: set[str]) -> dict[Path, dict]:
    """The attributes of all runs of these models in a store, by file."""
    found = {}
    for path in sorted(store.root.glob("*.nc")):
        with xr.open_dataset(path, engine="netcdf4") as run:
            if json.loads(run.attrs["specification"])["model"] in fingerprints:
                found[path] = dict(run.attrs)
    return found


def cost(store: Store, model: LanguageModel | PublishedModel) -> pd.Series:
    """What all runs of a model in a store took: ``runs``, ``hours`` of computing and ``peak_gib``, the largest peak memory."""
    runs = list(_runs_of(store, {model.fingerprint}).values())
    seconds, peaks = [float(a["seconds"]) for a in runs], [float(a["peak_memory_bytes"]) for a in runs]
    return pd.Series({"runs": len(runs), "hours": sum(seconds) / 3600, "peak_gib": max(peaks, default=0.0) / 2**30})


def problems(folder: Path) -> list[str]:
    """What is wrong with published files, one phrase each: missing, changed, not in the list."""
    try:
        listed = files.read_json(folder / LIST)
    except FileNotFoundError:
        return [f"{LIST} is missing"]
    except ValueError as error:
        return [str(error)]
    found = []
    for name, digest in listed.items():
        if not (folder / name).is_file():
            found.append(f"{name} is missing")
        elif files.file_digest(folder / name) != digest:
            found.append(f"{name} was changed")
    present = {p.relative_to(folder).as_posix() for pattern in ("*.nc", "*/*.json") for p in folder.glob(pattern)}
    return found + [f"{name} is not in {LIST}" for name in sorted(present - set(listed))]


def take_up(folder: Path, store: Store) -> None:
    """Copy published files into a store; what is there already stays.

    Raises:
        StoreError: the folder is not a whole set of published runs, or a file cannot be saved.
    """
    if found := problems(folder):
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise StoreError(
            f"The published runs in '{folder}' are not what was published: {'; '.join(found[:3])}{more}. Restore them "
            f"('git checkout -- {folder.name}'), or compute everything here: -p published ''."
        )
    try:
        for name in files.read_json(folder / LIST):
            target = store.root / name
            if target.is_file():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with locked(target.with_suffix(".lock")):  # as who computes it does
                if not target.is_file():
                    files.write_bytes(target, (folder / name).read_bytes())
    except OSError as error:
        raise StoreError(f"The published runs could not be copied into '{store.root}' ({error}).") from error
