"""``python -m benchmarks.needs MODEL TASK DEVICE``: one task in a process of its own; prints what memory and time it took."""

import json
import sys
import tempfile
import time
from dataclasses import replace

import torch

from benchmarks.models import first_context, load, rows_of
from phantomlib.critical.predictors import predict_critical_rates
from phantomlib.critical.step_zero import sharpness, velocity
from phantomlib.dataset.scan import scan
from phantomlib.engine import memory
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel
from phantomlib.readout_geometry import readout_statistics
from phantomlib.runs.store import Store

STEPS = 3
RATE = {"sgd": 1e-5, "adam": 1e-6}


def _run(model, context, optimizer="adam", replicas=1, **recipe):
    rates = [RATE[optimizer] * (1 + n / 10) for n in range(replicas)]
    finetune(model, [context], rates, Recipe(optimizer=optimizer, steps=STEPS, **recipe), chunk=replicas)


def _predict(model, context, optimizer):
    with tempfile.TemporaryDirectory() as folder:
        predict_critical_rates(Store(folder), model, [context], Recipe(optimizer=optimizer, steps=STEPS))


def _scan(model, context, method="full"):
    scan(replace(model, tokenizer=load("gpt2-s", "cpu").tokenizer), rows_of(model), Recipe(method=method))


TASKS = {
    "model": lambda model, context: None,
    "run, SGD": lambda model, context: _run(model, context, "sgd"),
    "run, Adam": _run,
    "two runs together, Adam": lambda model, context: _run(model, context, replicas=2),
    "two runs together, LoRA": lambda model, context: _run(model, context, replicas=2, method="lora"),
    "run with spectra, Adam": lambda model, context: _run(model, context, snapshots=(0, STEPS)),
    "velocity": lambda model, context: velocity(model, [context]),
    "sharpness, Adam": lambda model, context: sharpness(model, [context], iterations=2),
    "predictors, SGD": lambda model, context: _predict(model, context, "sgd"),
    "predictors, Adam": lambda model, context: _predict(model, context, "adam"),
    "scan of 64 rows, Adam": _scan,
    "scan of 64 rows, LoRA": lambda model, context: _scan(model, context, "lora"),
    "overlaps of all pairs": lambda model, context: readout_statistics(model.readout),
}


def report(model: LanguageModel, task: str) -> dict:
    """Peak memory of this process when the model was there and at the end, in GiB; that beyond it in units of the
    parameters; seconds."""
    context = first_context(model)
    before, started = memory.peak(model.device), time.perf_counter()
    TASKS[task](model, context)
    seconds, after = time.perf_counter() - started, memory.peak(model.device)
    size = sum(p.nbytes for p in model.module.parameters())
    return {
        "peak (GiB)": after / 2**30,
        "model (GiB)": before / 2**30,
        "beyond it (parameters)": (after - before) / size,
        "seconds": seconds,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, task, device = sys.argv[1:]
    found = load(name, device)
    print(json.dumps(report(found, task)))
