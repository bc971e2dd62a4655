"""What a user would otherwise do: one model after the other, with PyTorch alone or with the Hugging Face Trainer."""

import copy
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

from phantomlib.contexts import Resolved
from phantomlib.critical.search import crossing_step
from phantomlib.dataset.rows import Row
from phantomlib.engine.recipe import Recipe
from phantomlib.engine.recorder import Recorder
from phantomlib.models.language_model import LanguageModel, add_lora


def plain_loop(
    model: LanguageModel, context: Resolved, rate: float, recipe: Recipe, record: bool = True, fused: bool = False
) -> dict:
    """Fine-tune one copy with ``torch.optim``; all quantities of the engine are recorded, by the same code and without a sync.

    ``fused`` asks for torch's fused optimiser, which is not its default on a CPU.
    The fair baseline: logits at the last position only, tensors preallocated, nothing read back before the end.

    Returns:
        recorded tensors (1, T + 1) by name; only ``logit_gap`` without ``record``.
    """
    module = _trainable(model, recipe)
    parameters = [p for p in module.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=rate, fused=fused or None)
    else:
        optimizer = torch.optim.Adam(
            parameters, lr=rate, betas=(recipe.beta1, recipe.beta2), eps=recipe.epsilon, fused=fused or None
        )
    ids = torch.tensor([context.prompt_ids], device=model.device)
    c = torch.tensor([context.correct_id], device=model.device)
    k = torch.tensor([context.competitor_id], device=model.device)
    E = module.get_output_embeddings().weight
    E_0 = E.detach().clone()
    recorder = Recorder(E_0, E.detach()[None] if E.requires_grad else E_0, c, k, recipe, {})
    gap = E.new_empty((1, recipe.steps + 1)).detach()
    for step in range(recipe.steps + 1):
        with torch.set_grad_enabled(step < recipe.steps):
            logits = module(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
            loss = F.cross_entropy(logits, c, reduction="none")
        if record:
            recorder.record(step, logits.detach(), loss.detach())
        else:
            gap[:, step] = logits.detach()[:, c[0]] - logits.detach()[:, k[0]]
        if step < recipe.steps:
            optimizer.zero_grad()
            loss.sum().backward()
            if record:
                norms = torch.stack(torch._foreach_norm([p.grad for p in parameters if p.grad is not None]))
                recorder.fields["gradient_norm"][:, step] = norms.norm()
            optimizer.step()
    return recorder.fields if record else {"logit_gap": gap}


def epoch(model: LanguageModel, rows: list[Row], rate: float, recipe: Recipe, batch_size: int = 8) -> None:
    """Train one copy on rows of one length with torch's fused Adam, once through, recording nothing."""
    module = _trainable(model, recipe)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate, fused=True)
    for start in range(0, len(rows), batch_size):
        ids = torch.tensor([row.ids for row in rows[start : start + batch_size]], device=model.device)
        logits = module(ids, use_cache=False, logits_to_keep=2).logits[:, 0]
        optimizer.zero_grad()
        F.cross_entropy(logits, ids[:, -1]).backward()
        optimizer.step()


def trainer_loop(model: LanguageModel, context: Resolved, rate: float, recipe: Recipe) -> None:
    """Fine-tune one copy with the Hugging Face ``Trainer``, recording nothing."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    sentence = [*context.prompt_ids, context.correct_id]
    row = {"input_ids": sentence, "labels": [-100] * len(context.prompt_ids) + sentence[-1:]}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=recipe.steps,
            per_device_train_batch_size=1,
            learning_rate=rate,
            lr_scheduler_type="constant",
            optim="sgd" if recipe.optimizer == "sgd" else "adamw_torch",
            max_grad_norm=0.0,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=model.device.type == "cpu",
        )
        trainer = Trainer(_trainable(model, recipe), arguments, train_dataset=[row] * recipe.steps)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def bisection(model: LanguageModel, context: Resolved, recipe: Recipe, low: float, high: float, tolerance: float):
    """Halve the logarithmic interval from ``low`` to ``high`` until it is as narrow as asked for.

    Returns:
        lower and upper end of the bracket, and the number of runs.
    """
    runs = 0
    while high / low > 1 + tolerance:
        middle = float(np.sqrt(low * high))
        runs += 1
        if _overtakes(model, context, middle, recipe):
            high = middle
        else:
            low = middle
    return low, high, runs


def _overtakes(model, context, rate, recipe) -> bool:
    return crossing_step(plain_loop(model, context, rate, recipe)["logit_gap"][0].cpu().numpy())[0]


def _trainable(model: LanguageModel, recipe: Recipe) -> torch.nn.Module:
    if recipe.method == "lora":
        return add_lora(model.module, rank=recipe.rank, alpha=recipe.alpha, seed=0)
    return copy.deepcopy(model.module).requires_grad_(True)
