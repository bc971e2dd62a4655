"""The loss that a training on a data set minimises, mini-batch by mini-batch, in blocks that fit the memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from phantomlib.dataset.rows import Row
from phantomlib.engine.finetune import trainable
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel, share_tensors

LOGITS = 2**26  # numbers of a block of logits (256 MB): rows of a mini-batch are taken in parts of at most so many


def batches_of(rows: Sequence[Row], size: int, order: np.random.Generator) -> list[list[Row]]:
    """The rows in a new order, in mini-batches."""
    shuffled = [rows[i] for i in order.permutation(len(rows))]
    return [shuffled[start : start + size] for start in range(0, len(rows), size)]


class BatchLoss:
    """The loss of mini-batches of rows as a function of the trainable tensors.

    Args:
        model: the checkpoint; it is not changed.
        recipe: its ``method``, ``rank`` and ``alpha`` decide what is trainable.
        seed: of the LoRA initialisation.

    Attributes:
        values: the trainable tensors by name, as they are in the checkpoint.
    """

    def __init__(self, model: LanguageModel, recipe: Recipe, seed: int):
        module, values = trainable(model, recipe, seed)
        self.device, self.vocabulary = model.device, len(model.readout)
        self.module = share_tensors(module)
        self.chosen: tuple[Tensor, Tensor] | None = None  # rows and positions whose logits are wanted
        # the readout sees the positions before a target only: (R, L, d) -> (1, n, d)
        self.module.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][self.chosen][None],))
        self.values = {name: value.detach() for name, value in values.items()}

    def parts(self, batch: Sequence[Row]) -> Iterator[tuple[Tensor, Tensor, list[tuple[int, int]]]]:
        """A mini-batch in blocks that fit: ids (R, L), targets' ids (n,), and (row, position) of each; sets ``chosen``."""
        block: list[Row] = []
        for row in [*batch, None]:
            size = sum(len(one.targets) for one in [*block, row] if one) * self.vocabulary
            if block and (row is None or size > LOGITS):
                longest = max(len(one.ids) for one in block)
                ids = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in block], device=self.device)
                places = [(i, t) for i, one in enumerate(block) for t in one.targets]
                at, position = torch.tensor(places, device=self.device).T
                self.chosen = (at, position - 1)
                yield ids, ids[at, position], [(block[i].number, t) for i, t in places]
                block = []
            if row is not None:
                block.append(row)

    def logits(self, values: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Next-token logits (n, V) at the chosen positions."""
        return torch.func.functional_call(self.module, values, (ids,), {"use_cache": False}).logits[0]

    def gradient(self, batch: Sequence[Row], values: dict[str, Tensor], clip: float | None) -> list[Tensor]:
        """Gradient of the mean loss over the targets of a mini-batch, for each tensor of ``values``; clipped to a norm."""
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        total = sum(len(row.targets) for row in batch)
        found = [torch.zeros_like(value) for value in leaves.values()]
        for ids, wanted, _ in self.parts(batch):
            loss = F.cross_entropy(self.logits(leaves, ids), wanted, reduction="sum") / total
            for g, part in zip(found, torch.autograd.grad(loss, list(leaves.values()), allow_unused=True), strict=True):
                if part is not None:
                    g += part
        if clip is not None:
            share = clip / (torch.nn.utils.get_total_norm(found) + 1e-6)  # as torch.nn.utils.clip_grad_norm_
            for g in found:
                g *= share.clamp(max=1.0)
        return found
