"""Rows of a data set, their loss and their gaps, each row by itself and by the model's own forward pass."""

import numpy as np
import torch
import torch.nn.functional as F

from phantomlib.dataset.rows import tokenise


def rows_of(model, records):
    return tokenise(enumerate(records, 1), model.tokenizer)[0]


def mean_loss(module, batch):
    """Mean cross-entropy over the targets of a mini-batch, one row after the other."""
    total = 0.0
    for row in batch:
        z = module(torch.tensor([row.ids]), use_cache=False).logits[0]
        total = total + sum(F.cross_entropy(z[t - 1], torch.tensor(row.ids[t])) for t in row.targets)
    return total / sum(len(row.targets) for row in batch)


def gaps(module, rows, targets):
    """z_c - z_k of every target, each row by itself."""
    with torch.no_grad():
        logits = {row.number: module(torch.tensor([row.ids]), use_cache=False).logits[0] for row in rows}
    places = targets[["row", "position", "correct_id", "competitor_id"]].itertuples(index=False)
    return np.array([float(logits[row][t - 1][c] - logits[row][t - 1][k]) for row, t, c, k in places])
