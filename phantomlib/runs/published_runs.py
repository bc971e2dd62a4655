"""Published runs: results that take hours, kept with the book so that every reader has them without a model.

A folder of published runs is laid out like a store: runs, what was remembered of them, predictions, and for each model a
description that stands in for it. Beside them is a list of all files with their checksums. Nothing in it is ever changed
by reading: its files are copied into a reader's store, and from there on everything is as if it had been computed here,
but for what needs the model itself.

Checksums find damage. Whether a published run is what the code gives is found out by computing it again:
:mod:`phantomlib.runs.verification`, or ``phantom verify``.
"""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import pandas as pd
import torch
from pydantic import TypeAdapter
from torch import Tensor

from phantomlib import files
from phantomlib.contexts import Resolved, load_contexts
from phantomlib.engine.finetune import ENGINE_VERSION
from phantomlib.engine.recipe import fitting_contexts
from phantomlib.errors import ContextError, ModelError, StoreError, shown
from phantomlib.models.language_model import DTYPES, LanguageModel
from phantomlib.progress import locked
from phantomlib.runs.store import Store, commit_of, file_stem

LIST = "published.json"  # every file with its SHA-256
MODELS = "models"  # descriptions that stand in for models
TABLES = "tables"  # what predictions were fitted on
REMEMBERED = ("predictors", "searches", "exactness")
KINDS = "|".join((MODELS, TABLES, "predictions", *REMEMBERED))
STEM = r"[\w+-][\w.+-]{0,199}"
NAME = re.compile(rf"{STEM}\.nc|({KINDS})/{STEM}\.json")  # no other file is copied


@dataclass(frozen=True)
class PublishedModel:
    """What stands in for a model whose runs are published; it has what names a run, and no weights.

    Attributes:
        name, ref, fingerprint, revision, tied, n_parameters, model_type: as in
            :class:`phantomlib.models.language_model.LanguageModel` when the runs were made.
        dtype: ``float32`` or ``float64``.
        device_type: where the runs were made, ``cpu`` or ``cuda``.
        shape: of the readout, (V, d).
        contexts: those that fit it.
        left_out: why others do not, one sentence each.
        weights_key: SHA-256 of the weights' values; empty if the runs are older than this key.
        engine_version: of the engine that made the runs. Together with the fingerprint it names them for good.
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
    weights_key: str = ""
    engine_version: int = 6

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
            f"{shown(self.ref)} itself is needed, because what is asked for was not published. Fetch it ('phantom models fetch "
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
    same = ("name", "ref", "fingerprint", "revision", "tied", "n_parameters", "model_type")
    description = {name: getattr(model, name) for name in same} | {
        "dtype": str(model.readout.dtype).removeprefix("torch."),
        "device_type": model.device.type,
        "shape": list(model.readout.shape),
        "contexts": [asdict(context) for context in contexts],
        "left_out": list(left_out),
        "weights_key": model.weights_key,
        "engine_version": ENGINE_VERSION,
    }
    _write(store.root / MODELS / f"{file_stem(model.name)}.json", description)


def published_models(folder: Path) -> list[PublishedModel]:
    """All models whose runs are in a folder.

    Raises:
        StoreError: a description cannot be read.
    """
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
    """What stands in for the model of this reference.

    Raises:
        ModelError: it is not among the published ones.
        StoreError: a description cannot be read.
    """
    known = {model.ref: model for model in published_models(folder)}
    if ref not in known:
        among = ", ".join(map(shown, known)) or "there are none"
        raise ModelError(
            f"{shown(ref)} is not among the models with published runs ({among}). Give one of them, or compute it here: "
            "-p published ''."
        )
    return known[ref]


def models_with_contexts(
    store: Store, refs: list[str], contexts: str, folder: str, open_model: Callable[[str], LanguageModel]
) -> list[tuple[Any, list[Resolved], list[str]]]:
    """Models, the contexts that fit each, and why others do not, in one sentence each.

    Args:
        store: where published runs are copied to, or where what stands in for the models is written.
        refs: the models.
        contexts: their file.
        folder: published runs, or "" to load the models.
        open_model: loads one.

    Raises:
        ModelError, ContextError, StoreError: see :func:`published_model`, :func:`copy_into` and whatever ``open_model``
            raises; the published runs are of other contexts.
    """
    wanted = load_contexts(contexts)
    if folder:
        copy_into(Path(folder), store)
        standing = [published_model(Path(folder), ref) for ref in refs]  # the store may describe it with other contexts
        for one in standing:
            known = {context.context for context in one.contexts}
            if len(wanted) != len(one.contexts) + len(one.left_out) or not known <= set(wanted):
                raise ContextError(
                    f"The published runs of {shown(one.ref)} are of other contexts than {shown(contexts)}. Give those they were "
                    "made with, or compute everything here: -p published ''."
                )
        return [(one, list(one.contexts), list(one.left_out)) for one in standing]
    found: list[tuple[Any, list[Resolved], list[str]]] = []
    for ref in refs:
        model = open_model(ref)
        fitting, refused = fitting_contexts(model, wanted)
        if not fitting:
            raise ContextError(f"None of the {len(wanted)} contexts in {shown(contexts)} fits {shown(model.name)}.")
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
        _write(path, {"columns": live.to_dict("list"), "attrs": live.attrs})
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"The published table '{path}' cannot be read ({error}). Restore '{folder}'.") from None
    again = pd.DataFrame(found["columns"])
    again.attrs = found["attrs"]
    return again


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    with locked(path.with_suffix(".lock")):
        files.write_json(path, content)


def held_by(folder: str, path: Path) -> str:
    """Hash and day of the commit that holds a published prediction; empty if none does, or without a folder."""
    return commit_of(Path(folder) / path.parent.name / path.name) if folder else ""


def cost(store: Store, model: LanguageModel | PublishedModel) -> pd.Series:
    """What all runs of a model in a store took: ``runs``, ``hours`` of computing and ``peak_gib``, the largest peak memory."""
    runs = [known for known in store.runs().values() if known["model"] == model.fingerprint]
    seconds, peak = sum(one["seconds"] for one in runs), max((one["peak_memory_bytes"] for one in runs), default=0)
    return pd.Series({"runs": len(runs), "hours": seconds / 3600, "peak_gib": peak / 2**30})


def publish(store: Store, folder: Path) -> list[Path]:
    """Copy all that belongs to the described models of a store into a folder, and write the list of checksums anew.

    What is in the folder and not in the store stays; what differs is replaced.

    Returns:
        the published files, relative to the folder.

    Raises:
        StoreError: the store describes no model.
    """
    models = published_models(store.root)
    if not models:
        raise StoreError(f"'{store.root}' describes no model to publish. Run the chapter on real models there first.")
    described = {model.fingerprint for model in models}
    found = [*store.root.glob(f"{MODELS}/*.json"), *store.root.glob(f"{TABLES}/*.json")]
    found += [path for model in models for path in store.root.glob(f"predictions/{model.name}-*.json")]
    found += [path for path, known in store.runs().items() if known["model"] in described]
    for kind in REMEMBERED:
        found += [p for p in store.root.glob(f"{kind}/*.json") if files.read_json(p)["model"] in described]
    for path in found:
        target = folder / path.relative_to(store.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or target.read_bytes() != path.read_bytes():
            files.write_bytes(target, path.read_bytes())
    kept = sorted(_present(folder))
    files.write_json(folder / LIST, {name: files.file_digest(folder / name) for name in kept})
    return [Path(name) for name in kept]


def _present(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for pattern in ("*.nc", "*/*.json") for p in folder.glob(pattern)}


def problems(folder: Path) -> list[str]:
    """What is wrong with published files, one phrase each: missing, changed, not in the list, no name of a published file."""
    try:
        listed = files.read_json(folder / LIST)
    except FileNotFoundError:
        return [f"{LIST} is missing"]
    except (OSError, ValueError) as error:
        return [str(error)]
    unlisted = [f"{name} is not in {LIST}" for name in sorted(_present(folder) - set(listed))]
    return [*filter(None, (_problem(folder, name, digest) for name, digest in listed.items())), *unlisted]


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
    """Copy published files into a store; what is there already stays. Nothing is written outside the store.

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
            if target.parent.resolve() != (store.root.resolve() / name).parent:
                raise StoreError(f"'{target.parent}' is a link, and published runs are written into the store alone.")
            with locked(target.with_suffix(".lock")):  # as who computes it does
                if not target.is_file():
                    files.write_bytes(target, (folder / name).read_bytes())
    except OSError as error:
        raise StoreError(f"The published runs could not be copied into '{store.root}' ({error}).") from error
    store.runs()  # looked into all at once


if __name__ == "__main__":  # python -m phantomlib.runs.published_runs STORE FOLDER
    print(len(publish(Store(sys.argv[1]), Path(sys.argv[2]))), f"files in {sys.argv[2]}")
