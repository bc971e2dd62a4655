"""The loss that a training on a data set minimises, mini-batch by mini-batch, in blocks that fit the memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
        blocks: list[list[Row]] = [[]]
        for row in batch:
            if blocks[-1] and sum(len(one.targets) for one in [*blocks[-1], row]) * self.vocabulary > LOGITS:
                blocks.append([])
            blocks[-1].append(row)
        for block in blocks:
            ids = pad_sequence([torch.tensor(row.ids, device=self.device) for row in block], batch_first=True)
            places = [(i, t) for i, row in enumerate(block) for t in row.targets]
            at, position = torch.tensor(places, device=self.device).T
            self.chosen = (at, position - 1)
            yield ids, ids[at, position], [(block[i].number, t) for i, t in places]

    def logits(self, values: dict[str, Tensor], ids: Tensor) -> Tensor:
        """Next-token logits (n, V) at the chosen positions."""
        return torch.func.functional_call(self.module, values, (ids,), {"use_cache": False}).logits[0]

    def gradient(self, batch: Sequence[Row], values: dict[str, Tensor], clip: float | None) -> list[Tensor]:
        """Gradient of the mean loss over the targets of a mini-batch, for each tensor of ``values``; clipped to a norm."""
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        total = sum(len(row.targets) for row in batch)
        for ids, wanted, _ in self.parts(batch):
            (F.cross_entropy(self.logits(leaves, ids), wanted, reduction="sum") / total).backward(
                inputs=list(leaves.values())
            )
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(leaves.values(), clip)
        return [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.values()]
