"""Recordings made by hand, potentials with known descents, a store that keeps nothing and a Trainer."""

import copy

import numpy as np
import torch
import xarray as xr
from transformers import Trainer, TrainingArguments

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.transition import double_well, examine


class Direct:
    """A store that keeps nothing."""

    def run(self, model, contexts, learning_rates, recipe, **options):
        options.pop("progress", None)
        dataset = finetune(model, contexts, learning_rates, recipe, **options)
        dataset.attrs["run_id"] = "direct"
        return dataset


class Logistic(double_well.DoubleWell):
    """Two tokens of one softmax: a loss without barrier, whose descent crosses zero smoothly."""

    energy = staticmethod(lambda gap: np.logaddexp(0, -gap))
    slope = staticmethod(lambda gap: -1 / (1 + np.exp(gap)))


STARTS = {f"start {x:.1f}": x for x in (-2.2, -2.0, -1.8)}


def examined(toy, high):
    rates = toy.critical_rates(20)
    recipe = Recipe(optimizer="sgd", steps=20)
    return examine.examine(toy, None, toy.contexts(), rates, recipe, multiples=(0.5, high), counted=(high,))


def recorded(phi, *, overlap=0.6, contexts=("a",), **fields) -> xr.Dataset:
    """Runs with given Φ (C, rates, T + 1), one seed."""
    phi = np.asarray(phi, dtype=float)[:, :, None]
    dims = ("context", "rate", "seed", "step")
    readout = 0.9 * np.diff(phi, prepend=np.nan)
    values = {
        "phi": phi,
        "phi_readout_part": readout,
        "phi_geometry_part": readout / 9,
        "overlap": np.full_like(phi, overlap),
        "readout_drift": np.zeros_like(phi),
        "logit_gap": np.zeros_like(phi),
        "cross_entropy": -phi,
    } | {name: np.asarray(v, dtype=float)[:, :, None] for name, v in fields.items()}
    coords = {"context": list(contexts), "seed": [0], "step": np.arange(phi.shape[-1])}
    rates = (("context", "rate"), np.tile(np.arange(1.0, phi.shape[1] + 1), (len(phi), 1)))
    return xr.Dataset({name: (dims, v) for name, v in values.items()}, coords | {"learning_rate": rates})


def still(module):
    """A copy that trains without dropout, like the engine."""
    module = copy.deepcopy(module).requires_grad_(True)
    for layer in module.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
    return module


def only_the_word(context):
    """A row with the prompt and its correct token; only the latter is to be predicted."""
    ids = [*context.prompt_ids, context.correct_id]
    return {"input_ids": ids, "labels": [-100] * (len(ids) - 1) + ids[-1:], "attention_mask": [1] * len(ids)}


def a_trainer(module, rows, folder, rate, optimizer="sgd", given=None, **options):
    """A Trainer of a module that goes over rows once, without anything that an option does not ask for."""
    plain = {
        "lr_scheduler_type": "constant",
        "logging_steps": 2,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "num_train_epochs": 1,
    }
    options = plain | options
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=options.pop("batch", 1), learning_rate=rate, report_to=[],
        optim={"sgd": "sgd", "adam": "adamw_torch"}[optimizer], disable_tqdm=True, use_cpu=True, **options,
    )  # fmt: skip
    return Trainer(module, arguments, train_dataset=rows, **(given or {}))
