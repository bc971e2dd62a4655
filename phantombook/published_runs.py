"""Published runs in the book: chapters read them, ``make publish`` makes them, ``phantom verify`` computes some again."""

import json
import sys
from collections.abc import Callable, Container
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from phantombook import published
from phantomlib import files
from phantomlib.contexts import Context, Resolved, load_contexts
from phantomlib.engine.finetune import ENGINE_VERSION, finetune
from phantomlib.engine.recipe import Recipe, fitting_contexts
from phantomlib.errors import ContextError, ModelError, StoreError, shown
from phantomlib.models.language_model import LanguageModel, find, load
from phantomlib.progress import locked, track
from phantomlib.runs.store import Store, file_stem

# Two machines round differently, and a run at a large learning rate multiplies what they differ by.
TOLERANCE = 1e-3  # nats, or this share of the run's largest value if that is above one; the same for what has no unit
COMPARED = ("logit_gap", "cross_entropy", "phi", "signal", "drag", "overlap", "phi_readout_part", "readout_unchanged")
NAMED = ["context", "prompt", "correct", "competitor", "prompt_ids", "correct_id", "competitor_id"]
DESCRIBED = ("name", "ref", "fingerprint", "revision", "tied", "n_parameters", "model_type", "weights_key")


def models_with_contexts(
    store: Store, refs: list[str], contexts: str, folder: str, open_model: Callable[[str], LanguageModel]
) -> list[tuple[Any, list[Resolved], list[str]]]:
    """Models, the contexts of a file that fit each, and why others do not, in one sentence each.

    With a ``folder`` of published runs, which are copied into the store, what stands in for the models; with "" the
    models themselves, and the store gets what will stand in for them.
    """
    wanted = load_contexts(contexts)
    found: list[tuple[Any, list[Resolved], list[str]]] = []
    if folder:
        published.copy_into(Path(folder), store)
    for ref in refs:
        if folder:  # not the store's description, which may be of other contexts
            one = published.published_model(Path(folder), ref)
            known = {context.context for context in one.contexts}
            if len(wanted) != len(one.contexts) + len(one.left_out) or not known <= set(wanted):
                raise ContextError(
                    f"The published runs of {shown(ref)} are of other contexts than {shown(contexts)}. Give those they were "
                    "made with, or compute everything here: -p published ''."
                )
            found.append((one, list(one.contexts), list(one.left_out)))
            continue
        model = open_model(ref)
        fitting, refused = fitting_contexts(model, wanted)
        if not fitting:
            raise ContextError(f"None of the {len(wanted)} contexts in {shown(contexts)} fits {shown(model.name)}.")
        left_out = list(map(str, refused))
        description = {name: getattr(model, name) for name in DESCRIBED} | {
            "dtype": str(model.readout.dtype).removeprefix("torch."),
            "device_type": model.device.type,
            "shape": list(model.readout.shape),
            "contexts": [asdict(context) for context in fitting],
            "left_out": left_out,
            "engine_version": ENGINE_VERSION,
        }
        _write(store.root / published.MODELS / f"{file_stem(model.name)}.json", description)
        found.append((model, fitting, left_out))
    return found


def table(store: Store, name: str, live: pd.DataFrame, folder: str) -> pd.DataFrame:
    """The table of this name as it was published; without a folder ``live``, which is kept to be published."""
    path = (Path(folder) if folder else store.root) / published.TABLES / f"{name}.json"
    if not folder:
        _write(path, {"columns": live.to_dict("list"), "attrs": live.attrs})
    try:
        found = files.read_json(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"The published table '{path}' cannot be read ({error}). Restore '{folder}'.") from None
    again = pd.DataFrame(found["columns"])
    again.attrs = found["attrs"]
    return again


def resolved(table: pd.DataFrame) -> list[Resolved]:
    """The contexts that the rows of a table name, by its columns ``NAMED``."""
    return [
        Resolved(Context(*words), tuple(ids), correct_id, competitor_id)
        for *words, ids, correct_id, competitor_id in table[NAMED].itertuples(index=False)
    ]


def _write(path: Path, content: dict) -> None:
    path.parent.mkdir(exist_ok=True)
    with locked(path.with_suffix(".lock")):
        files.write_json(path, content)


def publish(store: Store, folder: Path) -> None:
    """Copy all that belongs to the described models of a store into a folder, where the rest stays, and list it anew."""
    models = published.published_models(store.root)
    if not models:
        raise StoreError(f"'{store.root}' describes no model to publish. Run the chapter on real models there first.")
    names = {file_stem(model.name) for model in models}
    found = [*store.root.glob(f"{published.MODELS}/*.json"), *store.root.glob(f"{published.TABLES}/*.json")]
    found += [path for model in models for path in store.root.glob(f"predictions/{model.name}-*.json")]
    found += [path for path in store.runs() if path.stem.rsplit("-", 3)[0] in names]
    for kind in published.REMEMBERED:
        found += [path for path in store.root.glob(f"{kind}/*.json") if path.stem.rsplit("-", 2)[0] in names]
    for path in found:
        target = folder / path.relative_to(store.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(target, path.read_bytes())
    files.write_json(folder / published.LIST, {n: files.file_digest(folder / n) for n in published.present(folder)})


@dataclass(frozen=True)
class Comparison:
    """One replica computed again: its file, the largest difference of the logit gap in nats, and what is not the same."""

    run: str
    replica: str
    difference: float
    differing: tuple[str, ...]

    def __str__(self) -> str:
        verdict = f"DIFFERS in {', '.join(self.differing)}" if self.differing else "agrees"
        return f"{verdict}: {self.run}, {self.replica}: the logit gap differs by at most {self.difference:.2g} nats"


def check_published(folder: Path, sample: int, seed: int | None, say: Callable[[str], None]) -> list[Comparison]:
    """Check every published file, then compute a ``sample`` of replicas again, drawn among the models that are here.

    StoreError if a file is not what was published, or a replica comes out differently; ModelError if models are missing.
    """
    if found := published.problems(folder):
        raise StoreError(f"The published runs in '{folder}' are not what was published: {'; '.join(found)}.")
    say(f"{len(list(folder.rglob('*.nc')))} published runs in '{folder}' are what was published.")
    missing = {}
    for model in published.published_models(folder):
        try:
            find(model.ref)
        except ModelError as error:
            missing[model.ref] = error
            say(f"Nothing is drawn of {shown(model.ref)}: {error}")
    compared = []
    for replica in draw(folder, sample, seed, missing):
        compared.append(compute_again(*replica))
        say(str(compared[-1]))
    if missing and len(compared) < sample:
        raise next(iter(missing.values()))
    if different := sum(bool(one.differing) for one in compared):
        raise StoreError(f"{different} of {len(compared)} published runs come out differently here.")
    return compared


def draw(folder: Path, sample: int, seed: int | None, missing: Container[str] = ()) -> list[tuple[Path, int, int, int]]:
    """Replicas drawn at random, each as likely as any other, but none of ``missing`` models: file, context, rate, seed.

    A training on a data set has no replicas, and is not drawn.
    """
    every: list[tuple[Path, int, int, int]] = []
    for path in sorted(folder.glob("*.nc")):
        with xr.open_dataset(path, engine="netcdf4") as run:
            shape = tuple(run.sizes.get(name, 0) for name in ("context", "rate", "seed"))
            if run.attrs["model_ref"] not in missing:
                every += [(path, c, r, s) for c, r, s in np.ndindex(shape)]
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:sample]]


def compute_again(path: Path, context: int, rate: int, seed: int) -> Comparison:
    """Compute the replica of a published run with these indices again; ModelError if the model is not here, or another."""
    run = xr.load_dataset(path, engine="netcdf4")
    before = run.isel(context=context, rate=rate, seed=seed)
    made, ref, revision = json.loads(run.attrs["specification"]), run.attrs["model_ref"], run.attrs["model_revision"]
    model = load(ref, dtype=made["dtype"], device=made["device"], revision=revision or None)
    keys = {m.fingerprint: m.weights_key for m in published.published_models(path.parent)}
    if key := keys.get(made["model"]):
        same = model.weights_key == key
    else:  # older runs; their fingerprints may have been taken in another way
        same = model.fingerprint == made["model"] or "" != model.revision == revision
    if not same:
        raise ModelError(f"{shown(ref)} has other weights here than the published runs were made with.")
    *words, ids, correct_id, competitor_id = made["contexts"][context]
    resolved = Resolved(Context(*words), tuple(ids), correct_id, competitor_id)
    rates = np.asarray(made["learning_rates"][context][rate], dtype=float)[None, None]  # one, or a schedule
    recipe = Recipe(**made["recipe"])
    with track(f"{path.stem}, {words[0]}", recipe.steps) as advance:
        again = finetune(model, [resolved], rates, recipe, seeds=(made["seeds"][seed],), progress=advance)
    again = again.isel(context=0, rate=0, seed=0)
    differing = [name for name in COMPARED if name in before and not _near(again[name], before[name])]
    if (again.logit_gap[-1] > 0) != (before.logit_gap[-1] > 0):
        differing.append("outcome")
    difference = float(abs(again.logit_gap - before.logit_gap).max().fillna(0))
    replica = f"'{words[0]}' at {rates.flat[0]:.3g}, {recipe.steps} steps"
    return Comparison(path.name, replica, difference, tuple(differing))


def _near(again: xr.DataArray, before: xr.DataArray) -> bool:
    again, before = again.astype(float), before.astype(float)
    largest = np.abs(before.values[np.isfinite(before)]).max(initial=1.0)
    return bool(np.allclose(again, before, rtol=0, atol=TOLERANCE * largest, equal_nan=True))


if __name__ == "__main__":  # python -m phantombook.published_runs STORE FOLDER
    publish(Store(sys.argv[1]), Path(sys.argv[2]))
