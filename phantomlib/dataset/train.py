"""Fine-tune on a data set as everybody does, and measure its targets at the end of every epoch."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from phantomlib.dataset.loss import BatchLoss, batches_of
from phantomlib.dataset.rows import Row
from phantomlib.dataset.scan import Scan
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel
from phantomlib.progress import track


def train_and_measure(
    model: LanguageModel,
    rows: Sequence[Row],
    scan: Scan,
    learning_rate: float,
    recipe: Recipe = Recipe(),
    *,
    epochs: int = 3,
    schedule: str = "constant",
    warmup: int = 0,
    batch_size: int = 8,
    clip: float | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Train the model's tensors, copied, with ``torch.optim``; the rows in a new order each epoch.

    Args:
        model: the checkpoint; it is not changed.
        rows: the data.
        scan: of these rows and this batch size; says which targets are measured, and what leads them.
        learning_rate, epochs, schedule, warmup: see :meth:`phantomlib.dataset.scan.Scan.budget`.
        recipe: optimiser with its constants, method, rank and alpha.
        batch_size, clip: see :func:`phantomlib.dataset.scan.scan`.
        seed: of the orders, and of the LoRA initialisation.

    Returns:
        One row for each target and epoch, 0 to ``epochs``: ``row``, ``position``, ``epoch``, ``gap`` (to the token that led
        at the start, nats) and ``cross_entropy`` (nats).
    """
    loss = BatchLoss(model, recipe, seed)
    values = {name: value.clone().requires_grad_() for name, value in loss.values.items()}
    optimizer = _optimizer(list(values.values()), recipe)
    rates = iter(np.diff(scan.budget(learning_rate, epochs, schedule, warmup), prepend=0.0))
    measured = [_measured(loss, rows, values, scan, 0)]
    with track(f"{model.name}, {len(rows)} rows", epochs * scan.updates) as advance:
        for epoch in range(1, epochs + 1):
            for batch in batches_of(rows, batch_size, np.random.default_rng([seed, epoch])):
                optimizer.param_groups[0]["lr"] = next(rates)
                for value, gradient in zip(values.values(), loss.gradient(batch, values, clip), strict=True):
                    value.grad = gradient
                optimizer.step()
                advance(1)
            measured.append(_measured(loss, rows, values, scan, epoch))
    return pd.concat(measured, ignore_index=True)


def _optimizer(tensors: list[Tensor], recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(tensors, lr=0.0)
    betas = (recipe.beta1, recipe.beta2)  # AdamW without decay is Adam
    decay = recipe.weight_decay
    return torch.optim.AdamW(tensors, lr=0.0, betas=betas, eps=recipe.epsilon, weight_decay=decay, fused=True)


@torch.no_grad()
def _measured(loss: BatchLoss, rows, values: dict[str, Tensor], scan: Scan, epoch: int) -> pd.DataFrame:
    """Gap and cross-entropy of every target with these values, in the order of the scan."""
    led = scan.targets.set_index(["row", "position"]).competitor_id
    found = []
    for ids, c, places in loss.parts(rows):
        log_p = loss.logits(values, ids).log_softmax(1)  # (n, V)
        k = torch.tensor(led.loc[places].to_numpy(), device=c.device)
        own, other = (log_p.gather(1, token[:, None])[:, 0].double().cpu().numpy() for token in (c, k))
        number, position = zip(*places, strict=True)
        part = {"row": number, "position": position, "epoch": epoch, "gap": own - other, "cross_entropy": -own}
        found.append(pd.DataFrame(part))
    return pd.concat(found).sort_values(["row", "position"], ignore_index=True)
