"""The fine-tuning engine: contexts × learning rates × seeds advanced together, everything measured at every step.

The loss of a replica is the cross-entropy of its correct token at the last position of its prompt, in nats, unless the
recipe chooses another. Row t of a recording is the state *before* update t: row 0 is the untouched model, row T the end.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from phantomlib.contexts import Resolved
from phantomlib.engine import memory
from phantomlib.engine.loss import training_loss
from phantomlib.engine.optimizer import BatchedOptimizer
from phantomlib.engine.recipe import Recipe, check_contexts, check_learning_rates, check_seeds
from phantomlib.engine.recorder import RECORDED, Recorder, check_extra, label_runs
from phantomlib.engine.replicas import ENGINES, all_seen, padding_matters, stack
from phantomlib.errors import ModelError, ParameterError, shown
from phantomlib.models.language_model import CausalLM, LanguageModel, add_lora

ENGINE_VERSION = 7  # raised whenever the numbers of a run could change
# module -> its copies with LoRA by (rank, alpha, seed): to make one takes as long as many steps
_adapted: WeakKeyDictionary = WeakKeyDictionary()


def finetune(
    model: LanguageModel,
    contexts: list[Resolved],
    learning_rates,
    recipe: Recipe = Recipe(),
    *,
    seeds: tuple[int, ...] = (0,),
    engine: str = "auto",
    chunk: int | None = None,
    extra: Mapping[str, Callable] | None = None,
    progress: Callable[[int], object] | None = None,
    run: Callable | None = None,
) -> xr.Dataset:
    """Fine-tune one replica per context, learning rate and seed, and record everything.

    Args:
        model: the checkpoint; it is not changed.
        contexts: resolved contexts (C of them); each must be outranked by its competitor at step 0.
        learning_rates: (rates,) for all contexts, (C, rates), or schedules (C, rates, T); positive.
        seeds: of the LoRA initialisation. Full fine-tuning of a checkpoint has no randomness.
        engine: see :func:`phantomlib.engine.replicas.stack`.
        chunk: replicas advanced together; by default from the size of the model, and fewer where memory does not allow it.
        extra: further quantities to record, by name: functions of probabilities p (R, V), readout E (R, V, d), and ids
            c (R,) and k (R,) that return one number per replica (R,). The first line of the docstring is the meaning.
        progress: called with the number of replica-steps just done.
        run: computes all chunks: :func:`run_here`, or :func:`phantomlib.engine.cluster.run_there`.

    Returns:
        Dataset with dimensions (context, rate, seed, step), step = 0..T, the variables of ``RECORDED``,
        ``learning_rate`` (context, rate; of a schedule the largest, and ``schedule`` (context, rate, step) holds all, nan
        at step T) and ``diverged_step`` (-1 if finite throughout), from which on values are nan (``rank_correct`` 0).
        With snapshots also ``spectrum`` (..., snapshot, component), eigenvalues of ρ, and ``phi_trace`` (..., snapshot),
        Φ from ρ by the trace formula; with a loss other than cross-entropy also ``loss``. Attributes: ``engine`` (two
        where a replica left over took another), ``replicas_together`` (at most) and ``equal_lengths_only``, 1 where a
        prompt is read otherwise beside a longer one.

    Example:
        >>> import phantomlib as ph
        >>> model = ph.load("zoo:gpt2-s")
        >>> context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
        >>> runs = ph.finetune(model, [context], [1e-5, 3e-3], ph.Recipe(optimizer="adam", steps=20))
        >>> (runs.logit_gap > 0).any("step").values.ravel()  # too small a learning rate fails silently
        array([False,  True])
    """
    check_contexts(model, contexts)
    rates = check_learning_rates(learning_rates, len(contexts), recipe.steps)
    check_seeds(seeds, recipe)
    if engine not in ("auto", *ENGINES):
        raise ParameterError(f"engine {shown(engine)} is not known; choose 'auto' or one of {', '.join(ENGINES)}.")
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ParameterError(f"chunk is {shown(chunk)}; give a number of replicas of at least 1, or None.")
    extra = check_extra(extra)
    shape = (len(contexts), rates.shape[1], len(seeds))
    check_recording(int(np.prod(shape)), model, recipe, len(extra))
    chunk = chunk_size(model, contexts, recipe, wanted=chunk, refuse=run is None)
    replicas = [Replica(contexts[c], rates[c, r], seeds[s]) for c, r, s in np.ndindex(shape)]
    apart = padding_matters(model.module, [len(context.prompt_ids) for context in contexts])
    batches: dict[int, list[int]] = {}  # numbers of replicas that can share a batch
    for number, replica in enumerate(replicas):
        batches.setdefault(len(replica.context.prompt_ids) if apart else 0, []).append(number)
    chunks = [batch[start : start + chunk] for batch in batches.values() for start in range(0, len(batch), chunk)]
    work = [[replicas[n] for n in some] for some in chunks]
    parts = (run or run_here)(model, work, recipe, engine, extra, progress or (lambda done: None))
    order = np.argsort(np.concatenate(chunks))
    joined = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    runs = label_runs(joined, shape, contexts, rates, seeds, recipe, extra)
    together = {"replicas_together": max(map(len, chunks)), "equal_lengths_only": int(apart)}
    return runs.assign_attrs(engine=", ".join(dict.fromkeys(joined["engine"].tolist())), **together)


def check_recording(replicas: int, model: LanguageModel, recipe: Recipe, extra: int = 0) -> None:
    """Raise ParameterError if what so many replicas record does not fit the memory."""
    recorded = replicas * (recipe.steps + 1) * (len(RECORDED) + extra)
    needed = 3 * recorded * model.readout.element_size()  # as written, as labelled, and on its way to a file
    what = f"Recording {replicas:,} run{'' if replicas == 1 else 's'} of {recipe.steps:,} steps"
    memory.refuse_if_too_large(what, needed, torch.device("cpu"), "fewer steps")


@dataclass(frozen=True)
class Replica:
    """One run of a sweep: a context, a learning rate (or one for each step, (T,)), and the seed of the LoRA start."""

    context: Resolved
    rate: np.ndarray
    seed: int


def run_here(model, chunks: list[list[Replica]], recipe, engine, extra, progress) -> list[dict[str, np.ndarray]]:
    """One chunk after the other, in this process."""
    return [advance(model, chunk, recipe, engine, extra, progress) for chunk in chunks]


def trainable(model: LanguageModel, recipe: Recipe, seed: int) -> tuple[CausalLM, dict[str, Tensor]]:
    """The module to run and the initial values of its trainable tensors; change neither. ModelError if LoRA does not fit."""
    if recipe.method == "full":
        return model.module, dict(model.module.named_parameters())
    adapted, key = _adapted.setdefault(model.module, {}), (recipe.rank, recipe.alpha, seed)
    if key not in adapted:
        try:
            module = add_lora(model.module, rank=recipe.rank, alpha=recipe.alpha, seed=seed, share=True)
            ids = torch.zeros((1, 2), dtype=torch.long, device=model.device)
            with torch.no_grad():
                module(ids, **all_seen(model.module, ids))
        except Exception as error:  # peft refuses some classes, and breaks others
            said = f"LoRA cannot be put on '{model.name}' ({type(model.module).__name__}): {shown(str(error))}"
            raise ModelError(f"{said}. Use full fine-tuning, method 'full'.") from error
        adapted[key] = module
    return adapted[key], {name: p for name, p in adapted[key].named_parameters() if "lora_" in name}


def chunk_size(
    model: LanguageModel, contexts: list[Resolved], recipe: Recipe, *, wanted: int | None = None, refuse: bool = True
) -> int:
    """Replicas advanced together: ``wanted``, or as many as pay for a model of this size (see the page on speed) and fit."""
    module, values = trainable(model, recipe, 0)
    tokens = max(len(context.prompt_ids) for context in contexts)
    shared, each = memory.of_replicas(module, values.values(), recipe, tokens)
    if refuse:
        what, advice = f"Fine-tuning {wanted or 1} of '{model.name}' at a time", "a smaller chunk" if wanted else ""
        memory.refuse_if_too_large(what, shared + (wanted or 1) * each, model.device, advice)
    fitting = max(1, (memory.free(model.device) - shared) // each)
    size = sum(v.numel() for v in values.values())
    paying = 512 if model.device.type == "cuda" else max(1, min(64, 64_000_000 // size))
    return wanted or min(fitting, paying)


def advance(model, chunk: list[Replica], recipe, engine, extra, progress) -> dict[str, np.ndarray]:
    """Run R replicas together for T steps; returns what was recorded, (R, T + 1) each, snapshots and the engine (R,)."""
    fields, used = advance_on_device(model, chunk, recipe, engine, extra, progress)
    return {name: field.cpu().numpy() for name, field in fields.items()} | {"engine": np.full(len(chunk), used)}


def advance_on_device(model, chunk: list[Replica], recipe, engine, extra, progress) -> tuple[dict[str, Tensor], str]:
    """What :func:`advance` records, on the device, and the engine: from the first step to the last nothing waits for it."""
    seeds = {seed: trainable(model, recipe, seed) for seed in {replica.seed for replica in chunk}}
    module = seeds[chunk[0].seed][0]  # frozen tensors are the same for every seed
    stacked = stack(module, [seeds[replica.seed][1] for replica in chunk], engine)
    rows = module.get_output_embeddings() if recipe.geometry == "readout" else module.get_input_embeddings()
    readout_0 = rows.weight  # without a name where it is a buffer, which nothing trains
    readout_name = next((name for name, p in module.named_parameters() if p is readout_0), "")
    contexts, device = [replica.context for replica in chunk], model.device
    scheduled = np.stack([replica.rate for replica in chunk])
    rates = torch.tensor(scheduled, dtype=model.readout.dtype, device=device)  # (R,), or schedules (R, T)
    prompts = [torch.tensor(context.prompt_ids) for context in contexts]
    ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(device)  # (R, L)
    last = torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)  # (R,)
    c, k = torch.tensor([(x.correct_id, x.competitor_id) for x in contexts], device=device).T  # (R,) each

    optimizer = BatchedOptimizer(stacked, rates, recipe)  # before E is taken: it moves small parameters to other memory
    E_0, E = readout_0.detach(), stacked.parameters.get(readout_name, readout_0).detach()
    if E.dim() == 2:  # frozen, (V, d) for all; else (R, V, d), a copy that is trained
        E_0 = E_0.clone()  # what must not change is compared with memory that nothing else knows
    recorder = Recorder(E_0, E, c, k, recipe, extra)
    try:
        for step in range(recipe.steps + 1):
            with torch.set_grad_enabled(step < recipe.steps):
                logits = stacked.logits(ids, last)  # (R, V)
                loss = training_loss(logits, c, k, recipe.loss, recipe.weight)  # (R,)
            recorder.record(step, logits.detach(), loss.detach())
            if step < recipe.steps:
                recorder.fields["gradient_norm"][:, step] = optimizer.step(loss)  # the update is made in there
                progress(len(chunk))
    finally:
        optimizer.close()
    return recorder.fields, stacked.engine
