"""The store: one labelled netCDF file per run, named by everything that determines its numbers.

A run file is an ordinary netCDF-4 dataset (``xarray.open_dataset(path)``, or any netCDF reader), and complete once it has
its name. Several processes may share a store.
"""

import json
import os
import platform
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from phantomlib import files
from phantomlib.contexts import Resolved, check_resolved
from phantomlib.engine import memory
from phantomlib.engine.finetune import ENGINE_VERSION, finetune
from phantomlib.engine.recipe import Recipe, check_contexts, check_learning_rates, check_seeds
from phantomlib.engine.recorder import check_extra, recorded
from phantomlib.errors import ContextError, StoreError, shown
from phantomlib.models.language_model import LanguageModel
from phantomlib.progress import locked, track
from phantomlib.runs.function_key import function_key
from phantomlib.runs.run_file import Index, checksum, decode, describe_run, run_id

PACKAGES = ("torch", "transformers", "peft", "numpy", "xarray")


class Store:
    """A folder of finished runs.

    Args:
        root: the folder; made if absent. StoreError if it cannot be made or written to.
        run_chunks: what computes, such as :func:`phantomlib.engine.cluster.run_there`;
            :func:`phantomlib.engine.finetune.run_here` if None.

    Example:
        >>> import tempfile
        >>> import phantomlib as ph
        >>> model = ph.load("zoo:gpt2-s")
        >>> context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = ph.Store(folder)
        ...     first = store.run(model, [context], [1e-4], ph.Recipe(steps=3))
        ...     again = store.run(model, [context], [1e-4], ph.Recipe(steps=3))  # from disk
        >>> first.identical(again)
        True
    """

    def __init__(self, root: str | Path, run_chunks: Callable | None = None):
        self.run_chunks, self.root = run_chunks, Path(os.path.expanduser(root))
        self.notes: dict[str, str] = {}
        self._index = Index(self.root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except (OSError, ValueError) as error:  # ValueError: text that cannot be a path
            said = f"cannot be written to ({getattr(error, 'strerror', error)}). Choose another with the parameter 'store'."
            raise StoreError(f"The store folder {shown(str(root), 300)} {said}") from None

    def run(
        self,
        model: LanguageModel,
        contexts: list[Resolved],
        learning_rates,
        recipe: Recipe = Recipe(),
        *,
        seeds: tuple[int, ...] = (0,),
        extra: Mapping[str, Callable] | None = None,
    ) -> xr.Dataset:
        """The dataset of :func:`phantomlib.engine.finetune.finetune`, from disk if it was computed before.

        Functions in ``extra`` are part of the run's key (:func:`phantomlib.runs.function_key.function_key`). A run that
        lacks a quantity which is recorded today is computed again, unless the model is only known by its published runs.
        The attributes hold the ``run_id``, the model's fingerprint, all parameters, commit, package versions, device,
        seconds and peak memory (bytes).
        """
        check_resolved(contexts)
        rates = check_learning_rates(learning_rates, len(contexts), recipe.steps)
        check_seeds(seeds, recipe)
        for word in (word for c in contexts for word in (c.id, c.context.correct, c.context.competitor)):
            if "\0" in word:  # no run would ever be what was written
                raise ContextError(f"{shown(word)} has a NUL character, which ends a text in a file. Choose another.")
        spec = specification(model, contexts, rates, recipe, seeds, extra)
        if not self.path(spec, model, recipe).exists():
            check_contexts(model, contexts)  # before anything is left on the disk

        def compute() -> xr.Dataset:
            label, size = f"{model.name}, {recipe.method}, {recipe.optimizer}", rates.size * len(seeds) * recipe.steps
            with track(label, size) as advance:
                return finetune(
                    model, contexts, rates, recipe, seeds=seeds, extra=extra, progress=advance, run=self.run_chunks
                )

        # a published run stays as it is
        return self.keep(spec, model, recipe, compute, () if hasattr(model, "engine_version") else recorded(recipe))

    def path(self, spec: dict, model, recipe: Recipe) -> Path:
        """The file of the run that ``spec`` determines, there or not."""
        return self.root / f"{file_stem(model.name)}-{recipe.method}-{recipe.optimizer}-{run_id(spec)}.nc"

    def keep(
        self, spec: dict, model, recipe: Recipe, compute: Callable[[], xr.Dataset], needed: Iterable[str] = ()
    ) -> xr.Dataset:
        """The run that ``spec`` (plain JSON types) determines, from its file if that holds all variables ``needed``;
        else what ``compute`` returns, saved with attributes as in :meth:`run`. Of several processes one computes."""
        path = self.path(spec, model, recipe)
        with locked(path.with_suffix(".lock")):
            dataset = self._read(path, "is computed again")
            if dataset is None or not set(needed) <= dataset.keys():
                kept = {} if dataset is None else dataset.attrs  # such as the prediction after which it was made
                dataset = self._compute(path, kept, spec, model, compute)
        return dataset

    def noting(self, **notes: str) -> "Store":
        """The same store, but runs that it computes carry these attributes too."""
        noting = copy(self)
        noting.notes = self.notes | notes
        return noting

    def open(self, identifier: str) -> xr.Dataset:
        """The finished run with this ``run_id``; StoreError if there is none, or it cannot be read at present."""
        for path in self._paths(identifier):
            with locked(path.with_suffix(".lock")):
                dataset = self._read(path, "has to be computed again")
            if dataset is not None:
                return dataset
        where = shown(str(self.root), 300)
        raise StoreError(f"No run {shown(identifier)} in {where}. Run the notebook that makes it first.")

    def has(self, identifier: str) -> bool:
        """Whether a finished run with this ``run_id`` is there."""
        return bool(self._paths(identifier))

    def holds(self, identifier: str) -> bool:
        """Whether a finished run with this ``run_id`` is there and is what was written; each file is read once."""
        return any(map(self._index.holds, self._paths(identifier)))

    def runs(self) -> dict[Path, dict]:
        """What the index knows of each finished run (:func:`phantomlib.runs.run_file.describe_run`), without opening any."""
        return self._index.entries()

    def _paths(self, identifier: str) -> list[Path]:
        found = self._index.listing().get(identifier, []) if isinstance(identifier, str) else []
        return [path for path in found if path.is_file()]

    def remember(
        self, kind: str, key: list, model, contexts, recipe, compute: Callable[[], dict], *, seeds=(), holds=None
    ) -> dict:
        """What ``compute`` returns (JSON types), from the folder ``kind`` if it was computed before and still ``holds``.

        ``key`` is whatever it depends on besides model, contexts, recipe and seeds.
        """
        check_resolved(contexts)
        spec = specification(model, contexts, np.zeros((len(contexts), 0)), recipe, seeds)
        whole_key = files.digest([*key, spec])
        path = self.root / kind / f"{file_stem(model.name)}-{recipe.optimizer}-{whole_key[:12]}.json"
        with _saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            kept = _read_json(path, kind=kind, key=whole_key)
            if kept is None or (holds and not holds(kept["found"])):
                named = {"model": model.fingerprint, "weights": model.weights_key}
                kept = {"kind": kind, "key": whole_key, **named, "found": compute()}
                with _saving(path):
                    files.write_json(path, kept)
        return kept["found"]

    def _compute(self, path: Path, kept: dict, spec: dict, model, compute: Callable[[], xr.Dataset]) -> xr.Dataset:
        on_gpu, started = model.device.type == "cuda", time.perf_counter()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(model.device)
        dataset = compute()
        dataset.attrs = kept | dataset.attrs | self.notes
        dataset.attrs |= {
            "run_id": run_id(spec),
            "specification": json.dumps(spec),
            "model": model.name,
            "model_ref": model.ref,
            "model_revision": model.revision,
            "n_parameters": model.n_parameters,
            "tied_readout": int(model.tied),
            "weights_key": model.weights_key,
            "seconds": time.perf_counter() - started,
            "peak_memory_bytes": memory.peak(model.device),
            "device": torch.cuda.get_device_name(model.device) if on_gpu else platform.machine(),
            "commit": commit(),
            "versions": json.dumps({name: version(name) for name in PACKAGES}),
        }
        dataset.attrs["checksum"] = checksum(dataset)
        with _saving(path):
            content = bytes(dataset.to_netcdf(engine="netcdf4"))  # in memory: HDF5 itself may crash on a full disk
            self._index.append([describe_run(path.name, content, dataset.attrs)])
            files.write_bytes(path, content)
        return decode(content)  # as it is found from now on, to the order of its variables

    def _read(self, path: Path, fate: str) -> xr.Dataset | None:
        """The stored run, or None if there is none; a damaged file is set aside, and the warning tells its ``fate``."""
        try:
            content = self._index.read(path)
        except FileNotFoundError:
            return None
        if content is not None:
            return decode(content)
        _set_aside(path, fate)
        return None


def file_stem(name: str) -> str:
    """A model's name as file names begin with it: a file system takes 255 bytes for the whole."""
    whole = name.encode()
    return name if len(whole) <= 120 else f"{whole[:100].decode(errors='ignore')}-{files.digest(name)[:12]}"


def _read_json(path: Path, **named: str) -> dict | None:
    """What is remembered, or None if nothing is; a damaged file, or one copied from another, is set aside."""
    try:
        found = files.read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        found = {}
    except OSError as error:
        raise StoreError(f"'{path}' cannot be read at present ({error.strerror}). It is left as it is.") from None
    if named.items() <= found.items():
        return found
    _set_aside(path, "is computed again")
    return None


def _set_aside(path: Path, fate: str) -> None:
    aside = path.with_suffix(f".damaged-{time.time_ns()}")
    os.replace(path, aside)
    warnings.warn(f"{path.name} is damaged; it was set aside as {aside.name} and {fate}.", stacklevel=4)


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        way_out = "Free some space, or choose another folder with the parameter 'store': finished runs are kept."
        raise StoreError(f"{path.name} could not be saved ({error}). {way_out}") from error


def specification(model: LanguageModel, contexts: list[Resolved], rates, recipe: Recipe, seeds, extra=None) -> dict:
    """Everything that determines a run's numbers and labels, as plain JSON types."""
    extras = {"extra": {name: function_key(function) for name, function in check_extra(extra).items()}} if extra else {}
    return extras | {
        "engine": getattr(model, "engine_version", ENGINE_VERSION),  # published runs keep theirs
        "model": model.fingerprint,
        "name": model.name,
        "dtype": str(model.readout.dtype).removeprefix("torch."),
        "device": model.device.type,
        "contexts": [
            [x.id, x.prompt, x.correct, x.competitor, list(c.prompt_ids), c.correct_id, c.competitor_id]
            for c, x in ((c, c.context) for c in contexts)
        ],
        "learning_rates": rates.tolist(),
        "recipe": json.loads(json.dumps(recipe.settings())),
        "seeds": list(seeds),
    }


@lru_cache(maxsize=1)  # what this process has loaded stays the same
def commit() -> str:
    """The commit of this package's source, with ``+`` if files differ from it or are new; empty outside a repository."""
    package = Path(__file__).parents[1]
    head = _git(package, "rev-parse", "--short=10", "HEAD")
    differs, new = _git(package, "status", "--porcelain", "-uno"), _git(package, "ls-files", "-o", "--exclude-standard")
    return head and head + ("+" if differs or new else "")


def commit_of(path: Path) -> str:
    """Hash and day of the first commit that holds a file as it is now; empty if none does."""
    blob = _git(path.parent, "hash-object", path.name)
    found = blob and _git(path.parent, "log", "--reverse", "--format=%h, %cs", f"--find-object={blob}", "--", path.name)
    return found.split("\n")[0]


def _git(folder: Path, *words: str) -> str:
    """What git says; empty if it cannot say it."""
    try:
        return subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
