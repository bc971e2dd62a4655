"""Whether published runs are what the code gives: some of them, drawn at random, are computed again and compared."""

import json
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from phantomlib.contexts import Context, Resolved
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ModelError, ParameterError, StoreError, shown
from phantomlib.models.language_model import LanguageModel, find, load
from phantomlib.progress import track
from phantomlib.runs.published_runs import problems, published_models

# Two machines round differently, and a run at a large learning rate multiplies what they differ by.
TOLERANCE = 1e-3  # nats, or this share of the run's largest value if that is above one; the same for what has no unit
COMPARED = ("logit_gap", "cross_entropy", "phi", "signal", "drag", "overlap", "phi_readout_part", "readout_unchanged")


@dataclass(frozen=True)
class Comparison:
    """One replica computed again beside what was published.

    Attributes:
        run: name of the published file.
        replica: its context, learning rate (of a schedule, the first) and number of steps.
        difference: largest difference of the logit gap over the steps at which both are finite, nats.
        differing: which of ``COMPARED`` are not within ``TOLERANCE`` at every step, or are finite at other steps.
        agrees: whether none differs, and the outcome is the same.
    """

    run: str
    replica: str
    difference: float
    differing: tuple[str, ...]
    agrees: bool

    def __str__(self) -> str:
        beyond = f"; beyond the tolerance: {', '.join(self.differing)}" if self.differing else ""
        return (
            f"{'agrees' if self.agrees else 'DIFFERS'}: {self.run}, {self.replica}: the logit gap differs by at most "
            f"{self.difference:.2g} nats{beyond}"
        )


def check_published(
    folder: Path, sample: int, seed: int | None = None, say: Callable[[str], None] = print
) -> list[Comparison]:
    """Check every published file, then compute some replicas again, drawn among the models that are here.

    Args:
        folder: the published runs.
        sample: how many replicas.
        seed: of the draw; another one each time if None.
        say: called with each finding.

    Raises:
        ParameterError: a negative seed.
        StoreError: a file is missing or was changed, or a replica comes out differently.
        ModelError: none of the models is here, or one is another than the runs were made with.
    """
    if found := problems(folder):
        raise StoreError(f"The published runs in '{folder}' are not what was published: {'; '.join(found)}.")
    say(f"{len(list(folder.rglob('*.nc')))} published runs in '{folder}' are what was published.")
    missing = {}
    for model in published_models(folder):
        try:
            find(model.ref)
        except ModelError as error:
            missing[model.ref] = error
            say(f"Nothing is drawn of {shown(model.ref)}: {error}")
    compared = []
    for replica in draw(folder, sample, seed, set(missing)):
        compared.append(compute_again(*replica))
        say(str(compared[-1]))
    if missing and len(compared) < sample:
        raise next(iter(missing.values()))
    if different := sum(not one.agrees for one in compared):
        raise StoreError(f"{different} of {len(compared)} published runs come out differently here.")
    return compared


def draw(folder: Path, sample: int, seed: int | None, missing: Container[str] = ()) -> list[tuple[Path, int, int, int]]:
    """Replicas drawn at random, each as likely as any other: file, and indices of context, rate and seed.

    Args:
        folder, sample, seed: as in :func:`check_published`.
        missing: references of models that nothing is drawn of.

    Raises:
        ParameterError: a negative seed.
    """
    if seed is not None and seed < 0:
        raise ParameterError(
            f"seed is {shown(seed)}; give a whole number of at least 0, or none for another draw each time."
        )
    every = []
    for path in sorted(folder.glob("*.nc")):
        with xr.open_dataset(path, engine="netcdf4") as run:
            shape = tuple(run.sizes[name] for name in ("context", "rate", "seed"))
            if run.attrs["model_ref"] not in missing:
                every += [(path, *map(int, index)) for index in np.ndindex(shape)]
    return [every[i] for i in np.random.default_rng(seed).permutation(len(every))[:sample]]


def _is_same_model(model: LanguageModel, run: xr.Dataset, fingerprint: str, folder: Path) -> bool:
    """Whether the weights are those of a run; its fingerprint may have been taken in an older way."""
    weights = next((m.weights_key for m in published_models(folder) if m.fingerprint == fingerprint), "")
    if weights:
        return weights == model.weights_key
    return model.fingerprint == fingerprint or "" != model.revision == run.attrs["model_revision"]


def compute_again(path: Path, context: int, rate: int, seed: int) -> Comparison:
    """Compute one replica of a published run with the model itself.

    Args:
        path: the run's file.
        context, rate, seed: indices of the replica.

    Raises:
        ModelError: the model is not here, or is another one than the runs were made with.
    """
    run = xr.load_dataset(path, engine="netcdf4")
    published = run.isel(context=context, rate=rate, seed=seed)
    made, ref = json.loads(run.attrs["specification"]), run.attrs["model_ref"]
    model = load(ref, dtype=made["dtype"], device=made["device"], revision=run.attrs["model_revision"] or None)
    if not _is_same_model(model, run, made["model"], path.parent):
        raise ModelError(f"{shown(ref)} has other weights here than the published runs were made with.")
    name, prompt, correct, competitor, ids, correct_id, competitor_id = made["contexts"][context]
    resolved = Resolved(Context(name, prompt, correct, competitor), tuple(ids), correct_id, competitor_id)
    rates = np.asarray(made["learning_rates"][context][rate], dtype=float)[None, None]  # one, or a schedule
    recipe = Recipe(**made["recipe"])
    with track(f"{path.stem}, {name}", recipe.steps) as advance:
        again = finetune(model, [resolved], rates, recipe, seeds=(made["seeds"][seed],), progress=advance)
    again = again.isel(context=0, rate=0, seed=0)
    differing = tuple(x for x in COMPARED if x in published and not _near(again[x].values, published[x].values))
    same_end = bool((again.logit_gap[-1] > 0) == (published.logit_gap[-1] > 0))
    return Comparison(
        path.name,
        f"'{name}' at {rates.flat[0]:.3g}, {recipe.steps} steps",
        _difference(again.logit_gap.values, published.logit_gap.values),
        differing,
        same_end and not differing,
    )


def _difference(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    return float(np.abs(one - other)[both].max(initial=0))


def _near(again: np.ndarray, published: np.ndarray) -> bool:
    again, published = again.astype(float), published.astype(float)
    same_places = np.array_equal(np.isfinite(again), np.isfinite(published))
    largest = float(np.abs(published[np.isfinite(published)]).max(initial=1))
    return same_places and _difference(again, published) <= TOLERANCE * largest
