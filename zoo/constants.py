"""How far predictions are off on the zoo, where critical learning rates are known: what ``constants.json`` holds."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from phantomlib import files, readout_geometry
from phantomlib.contexts import Resolved, load_contexts, resolve
from phantomlib.critical.rehearsal import CONSTANTS, rehearsal
from phantomlib.critical.scaling import kinematic_number, two_classes
from phantomlib.critical.search import critical_rates
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel, load
from phantomlib.models.zoo_models import NAMES
from phantomlib.runs.store import Store, commit

BUDGETS = (8, 20, 80)  # numbers of steps at which the errors are measured


def write_constants(root: Path) -> Path:
    """Measure with the runs of the clone in ``root``, and with those published there; returns the file that is written."""
    models = [load(f"zoo:{name}") for name in NAMES]

    def contexts(model: LanguageModel) -> list[Resolved]:
        return [resolve(context, model.tokenizer) for context in load_contexts()]

    files.write_json(CONSTANTS, measure_errors(models, contexts, Store(root / "runs"), root / "results"))
    return CONSTANTS


def measure_errors(
    models: list[LanguageModel],
    contexts: Callable[[LanguageModel], list[Resolved]],
    store: Store,
    published: Path,
    *,
    budgets: tuple[int, ...] = BUDGETS,
) -> dict:
    """Measure critical learning rates, and how far each predictor is from them.

    Args:
        models: the zoo's five; never the held-out one.
        contexts: gives a model's resolved contexts.
        store: the runs of the notebooks are reused.
        published: folder of the published runs of real models.
        budgets: numbers of steps T.

    Returns:
        the content of ``constants.json``: log ratios per optimiser, method, T, predictor, model and context, the
        two classes of the bulk, and :func:`errors_beyond`.
    """
    found: dict[str, dict] = {}
    for optimizer in ("adam", "sgd"):
        for method in ("full", "lora"):
            by_steps = found[f"{optimizer}-{method}"] = {}
            for steps in budgets:
                recipe = Recipe(optimizer=optimizer, method=method, steps=steps)
                rows = {model.name: _measure_one(model, contexts(model), recipe, store) for model in models}
                by_steps[str(steps)] = {
                    predictor: {name: row[predictor] for name, row in rows.items()}
                    for predictor in ("rehearsal", "kinematic")
                }
    coherence = {model.name: round(readout_geometry.coherence(model.readout), 4) for model in models}
    classes = two_classes(pd.Series(coherence))
    fingerprints = {model.name: model.fingerprint for model in models}
    return {
        "made_by": {"command": "phantom zoo constants", "commit": commit(), "models": fingerprints},
        "bulk": {
            "coherence": coherence,
            "boundary": round(classes.boundary, 4),
            "coherent": list(classes.high),
            "dispersed": list(classes.low),
        },
        "errors": found,
        "beyond": errors_beyond(published, models),
    }


def _measure_one(
    model: LanguageModel, contexts: list[Resolved], recipe: Recipe, store: Store
) -> dict[str, list[float]]:
    few = rehearsal(recipe)
    real = critical_rates(store, model, contexts, recipe)
    rehearsed = critical_rates(store, model, contexts, few)
    ratio = (real.critical_rate * recipe.steps / (rehearsed.critical_rate * few.steps)).values
    number = kinematic_number(real.critical_rate, recipe.steps, real.velocity, real.gap).values
    return {
        "rehearsal": [round(math.log(x), 4) for x in ratio if x > 0],
        "kinematic": [round(math.log(x), 4) for x in number if x > 0],  # without a positive velocity there is no N
    }


def errors_beyond(published: Path, models: list[LanguageModel]) -> dict:
    """Largest errors of rehearsals on real models, and from which size on they count.

    Args:
        published: folder of published runs; its table ``rehearsals`` has predicted and measured critical learning rates.
        models: the zoo's.

    Returns:
        ``parameters``, of the largest of the zoo; ``largest``, by optimiser and method the largest absolute log ratio.
    """
    table = pd.DataFrame(files.read_json(published / "tables" / "rehearsals.json")["columns"])
    error = np.log(table.measured / table.rate).abs()
    largest = np.ceil(1e4 * error.groupby(table.optimizer + "-" + table.method).max()) / 1e4
    return {"parameters": max(model.n_parameters for model in models), "largest": largest.to_dict()}
