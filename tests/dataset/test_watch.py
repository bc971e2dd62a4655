"""The targets of a scan followed through real Trainers: predicted as the scan says, measured as the model says."""

import numpy as np
import pytest
import torch
from data_rows import gaps, rows_of
from toys import a_trainer, still

from phantomlib.dataset.scan import scan
from phantomlib.dataset.watch import ScanCallback
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import PhantomError
from phantomlib.models.language_model import add_lora, load
from phantomlib.trainer import PhantomCallback

RATES = {"full": 3e-4, "lora": 3e-3}


def to_a_trainer(row):
    """A row as the Trainer's own collator takes it."""
    return {"input_ids": list(row.ids), "labels": [t if i in row.targets else -100 for i, t in enumerate(row.ids)]}


def padded(batch):
    length = max(len(row["input_ids"]) for row in batch)
    fill = {"input_ids": 0, "labels": -100}
    return {name: torch.tensor([r[name] + [x] * (length - len(r[name])) for r in batch]) for name, x in fill.items()}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_in_a_trainer(method, sentences, tmp_path):
    """Accumulated gradients and a linear schedule, with another callback that logs beside it."""
    model, recipe, rate = load("zoo:gpt2-s"), Recipe(method=method), RATES[method]
    rows = rows_of(model, sentences[:24])
    found = scan(model, rows, recipe, batch_size=8)
    module = still(model.module) if method == "full" else add_lora(model.module, rank=8, alpha=16, seed=0)
    plan = {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "lr_scheduler_type": "linear", "logging_steps": 3}
    trainer = a_trainer(module, [to_a_trainer(row) for row in rows], tmp_path, rate, "adam", batch=4,
                        given={"data_collator": padded}, **plan)  # fmt: skip
    other = PhantomCallback(every=9, tokenizer=model.tokenizer).attach(trainer)
    watch = ScanCallback(found, rows).attach(trainer)
    trainer.train()
    frame, end = watch.frame(), found.at(rate, 3, "linear")
    assert frame.epoch.value_counts().to_dict() == dict.fromkeys((1, 2, 3), len(end))
    last = frame[frame.epoch == 3].reset_index(drop=True)
    assert last.outcome.tolist() == end.outcome.tolist()
    np.testing.assert_allclose(last.number, end.number, rtol=1e-6)
    np.testing.assert_allclose(last.gap, gaps(trainer.model, rows, found.targets), atol=1e-4)
    called = last[end.outcome.isin(["learnt", "silent failure"])]
    right = (called.outcome == "learnt") == (called.gap > 0)
    assert right.mean() >= 0.85 and {"learnt", "silent failure"} == set(called.outcome)
    assert len(watch.misses()) == (~right).sum()
    logged = [entry for entry in trainer.state.log_history if "scan/right" in entry]
    outranked = (found.targets.gap <= 0).to_numpy()
    assert len(logged) == 3 and logged[-1]["scan/outranked"] == pytest.approx((last.gap[outranked] <= 0).mean())
    assert sum("loss" in entry for entry in trainer.state.log_history) == 3 and not other.frame().empty


def test_a_training_that_goes_on_is_refused(sentences, tmp_path):
    model = load("zoo:gpt2-s")
    rows = rows_of(model, sentences[:4])
    given = [to_a_trainer(row) for row in rows]
    options = {"given": {"data_collator": padded}, "save_strategy": "steps", "save_steps": 2}
    a_trainer(still(model.module), given, tmp_path, 1e-3, **options).train()
    again = a_trainer(still(model.module), given, tmp_path, 1e-3, num_train_epochs=2, **options)
    ScanCallback(scan(model, rows), rows).attach(again)
    with pytest.raises(PhantomError, match="from its first step"):
        again.train(resume_from_checkpoint=True)


def test_both_callbacks_in_the_sft_trainer_of_trl(sentences, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = load("zoo:gpt2-s")
    records = [
        {"prompt": one["text"].rsplit(" ", 1)[0], "completion": " " + one["text"].rsplit(" ", 1)[1]}
        for one in sentences[:16]
    ]
    rows = rows_of(model, records)
    arguments = SFTConfig(str(tmp_path), per_device_train_batch_size=8, num_train_epochs=2, learning_rate=3e-4, report_to=[],
                          lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no", use_cpu=True, bf16=False,
                          disable_tqdm=True, eos_token=None)  # fmt: skip
    trainer = SFTTrainer(
        still(model.module), arguments, train_dataset=Dataset.from_list(records), processing_class=model.tokenizer
    )
    watch, contexts = ScanCallback(scan(model, rows), rows).attach(trainer), PhantomCallback().attach(trainer)
    trainer.train()
    frame = watch.frame()
    assert frame.epoch.unique().tolist() == [1, 2] and len(contexts.frame()) == 20
    np.testing.assert_allclose(frame[frame.epoch == 2].gap, gaps(trainer.model, rows, watch.scan.targets), atol=1e-4)
    assert {"scan/right", "phantom/shame/gap"} <= set().union(*trainer.state.log_history)
