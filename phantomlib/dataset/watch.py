"""Follow the targets of a scan through the training of a Hugging Face ``Trainer``: predicted beside actual."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from transformers import TrainerCallback

from phantomlib.dataset.rows import Row
from phantomlib.dataset.scan import Scan
from phantomlib.errors import PhantomError

TOLD = ["row", "position", "before", "correct", "competitor", "number", "outcome"]  # of the scan, in the frame


class ScanCallback(TrainerCallback):
    """At the end of every epoch, what a scan predicts of every target beside what has become of it.

    The prediction follows from the learning rates that the Trainer has spent until then, whatever its schedule. Logged are
    shares of the targets that were outranked before training: ``scan/outranked`` are so still, ``scan/predicted`` are
    predicted to be (what is too close to call not counted), and ``scan/right`` of those called are as predicted.

    Args:
        scan: of these rows (:func:`phantomlib.dataset.scan.scan`), made with the Trainer's optimiser, method, and rows of an
            update.
        rows: the data as they were scanned; the Trainer has its own form of them.

    Example:
        >>> import phantomlib as ph
        >>> from phantomlib.dataset.rows import tokenise
        >>> model = ph.load("zoo:gpt2-s")
        >>> data = [{"prompt": context.prompt, "completion": " " + context.correct} for context in ph.load_contexts()]
        >>> rows = tokenise(enumerate(data, 1), model.tokenizer)[0]
        >>> watch = ph.ScanCallback(ph.scan(model, rows), rows)  # then watch.attach(trainer)
        >>> watch.frame().empty
        True
    """

    def __init__(self, scan: Scan, rows: Sequence[Row]):
        self.scan, self.rows, self.trainer = scan, rows, None
        self.spent, self.measured = 0.0, list[pd.DataFrame]()

    def attach(self, trainer) -> "ScanCallback":
        """Add this callback to a Trainer, and log through it."""
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def frame(self) -> pd.DataFrame:
        """A row for each target and epoch: the prediction for the budget spent, and ``gap`` and ``cross_entropy`` as they are."""
        return pd.concat(self.measured, ignore_index=True) if self.measured else pd.DataFrame()

    def misses(self) -> pd.DataFrame:
        """The targets of the last epoch of which the scan said something else."""
        last = self.measured[-1]
        return last[_called(last) & ((last.outcome == "learnt") != (last.gap > 0))]

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step:
            raise PhantomError("ScanCallback follows a training from its first step; start anew, or leave it out.")
        self.spent, self.measured = 0.0, []

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.spent += max(float(group["lr"]) for group in optimizer.param_groups)

    def on_epoch_end(self, args, state, control, model=None, **kwargs):
        now = self.scan.after(self.spent)
        outranked = (now.gap <= 0).to_numpy()
        now = now[TOLD].assign(epoch=round(state.epoch), **self._values(model))
        self.measured.append(now)
        of_them, called = now[outranked], now[outranked & _called(now)]
        log_through(self.trainer, state, control, {
            "scan/outranked": float((of_them.gap <= 0).mean()),
            "scan/predicted": float(of_them.outcome.isin(["silent failure", "contradicted"]).mean()),
            "scan/right": float(((called.outcome == "learnt") == (called.gap > 0)).mean()),
        })  # fmt: skip

    @torch.no_grad()
    def _values(self, model) -> dict[str, np.ndarray]:
        """Gap to the token that led at first, and cross-entropy, of every target in the order of the scan."""
        model.eval()  # a Trainer turns it back before the next step
        device, led = model.get_output_embeddings().weight.device, self.scan.targets.groupby("row").competitor_id
        of_row, found = {row.number: row for row in self.rows}, []
        for number, competitors in led:  # in the order of the scan, which is sorted
            ids, targets = of_row[number].ids, list(of_row[number].targets)
            logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -len(ids) :]
            log_p = logits[[t - 1 for t in targets]].double().log_softmax(1)  # (n, V)
            pair = torch.tensor([[ids[t] for t in targets], competitors.tolist()], device=device).T
            found.append(log_p.gather(1, pair).cpu().numpy())
        own, other = np.concatenate(found).T
        return {"gap": own - other, "cross_entropy": -own}


def log_through(trainer, state, control, values: dict[str, float]) -> None:
    """Log through a Trainer, without taking the place of its own log of this step; without one, into its history."""
    if trainer is None:
        state.log_history.append({**values, "step": state.global_step})
        return
    due = control.should_log  # logging resets it
    trainer.log(values)
    control.should_log = due


def _called(table: pd.DataFrame) -> np.ndarray:
    return table.outcome.isin(["learnt", "silent failure", "contradicted"]).to_numpy()
