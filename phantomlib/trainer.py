"""Watch a Hugging Face ``Trainer`` for silent failures while it trains.

::

    from phantomlib import PhantomCallback
    trainer = Trainer(...)                                   # any Trainer, full or peft; TRL's are Trainers too
    watch = PhantomCallback("my_contexts.yaml", every=10).attach(trainer)
    trainer.train()
    watch.frame()                                            # everything measured, as a table

What is measured is logged through the Trainer, so that TensorBoard and the others get it.
"""

import math
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from phantomlib import order_parameter
from phantomlib.contexts import Context, Resolved, load_contexts, resolve
from phantomlib.critical.step_zero import blocks
from phantomlib.cure import CompetitorLoss
from phantomlib.dataset.watch import log_through
from phantomlib.engine.loss import training_loss
from phantomlib.engine.recipe import Recipe, check_lengths, positions_of
from phantomlib.errors import ContextError, ParameterError, PhantomError, Unfit, all_at_once, naming, shown
from phantomlib.models.language_model import check_causal

LEAST_FALL = 0.1  # nats by which a context's cross-entropy must have fallen before its failure counts as silent
WARMING = 0.25  # share of the learning-rate budget before which no forecast is made
OPTIMIZERS = (torch.optim.AdamW, torch.optim.Adam, torch.optim.SGD)  # whose first update is known


class SilentFailureWarning(UserWarning):
    """The loss of a context falls, and the model does not come to prefer its correct word.

    Example:
        >>> import phantomlib as ph
        >>> issubclass(ph.SilentFailureWarning, UserWarning)  # warnings.simplefilter("error", ...) stops a training
        True
    """


@dataclass
class _Watched:
    """One context: what was measured of it, in order."""

    context: Resolved
    velocity: list[float]  # v_0 of each parameter group (G,), nats per unit of its learning rate
    rows: list[dict] = field(default_factory=list)
    warned: bool = False

    def fails_silently(self) -> bool:
        fall = self.rows[0]["cross_entropy"] - self.rows[-1]["cross_entropy"]
        return fall >= LEAST_FALL and all(row["gap"] <= 0 for row in self.rows)

    def forecast(self, budget: float) -> float:
        """The gap when the whole budget Ση is spent, if it goes on closing as between the last two measurements."""
        (x, y), (now, gap) = ((row["budget"], row["gap"]) for row in self.rows[-2:])
        return gap + (gap - y) / (now - x) * (budget - now) if now > x else gap

    def warn(self, outlook: str) -> None:
        self.warned = True
        first, last, words = self.rows[0], self.rows[-1], self.context.context
        fell = f"cross-entropy fell from {first['cross_entropy']:.2f} to {last['cross_entropy']:.2f} nats"
        behind = f"“{words.correct}” is still behind “{words.competitor}” (logit gap {last['gap']:+.2f})"
        said = f"Silent failure in '{words.id}' at step {last['step']}: {fell}, but {behind}; {outlook}"
        warnings.warn(said, SilentFailureWarning, stacklevel=3)


class PhantomCallback(TrainerCallback, ExportableState):
    """Logs Φ, signal, drag, rank, gap, overlap, cross-entropy and a kinematic number of contexts during training.

    The values are logged as ``phantom/shame/gap`` and so on. A :class:`SilentFailureWarning` comes once per context as soon
    as its cross-entropy has fallen by 0.1 nat and the gap, extrapolated to the end of the schedule, stays negative; and at
    the end of training if it did.

    ``kinematic_number_alone`` says where training on the context *alone* would be: the budget that each parameter group
    has spent, ``Σ η``, times its ``v_0 / |Δ_0|``, summed over groups. A data set may fail at any number. ``v_0`` is taken
    along the first update of the Trainer's own optimiser on the loss that is trained, with gradients clipped and labels
    smoothed as the Trainer does; nan for optimisers other than SGD without momentum, Adam and AdamW, and for a loss
    function of your own.

    Args:
        contexts: ``"default"``, a contexts file, or a list of ``Context`` or ``Resolved``.
        every: steps between measurements. The first and the last step are measured too, unless training stops early and
            the Trainer has its best checkpoint back in place of the last weights.
        tokenizer: by default the Trainer's ``processing_class``.
        loss: ``margin``, ``unlikelihood`` or ``gap`` have :meth:`attach` give the Trainer a loss that looks at the
            competitors (:class:`phantomlib.cure.CompetitorLoss`); ``weight`` is the λ of its term.

    Attributes:
        seconds: time spent measuring, without that before the first step.

    Raises:
        PhantomError: what cannot be watched, told here, by :meth:`attach` or when training starts, as soon as it is known.

    Example:
        >>> import phantomlib as ph
        >>> callback = ph.PhantomCallback("default", every=5)  # then callback.attach(trainer)
        >>> callback.every
        5
    """

    def __init__(
        self,
        contexts: str | Path | Sequence[Context | Resolved] = "default",
        *,
        every: int = 10,
        tokenizer=None,
        loss: str = "cross-entropy",
        weight: float = 1.0,
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ParameterError(f"every is {shown(every)}; give a whole number of steps of at least 1.")
        given = load_contexts(contexts) if isinstance(contexts, str | Path) else contexts
        if not isinstance(given, Sequence) or not given or not all(isinstance(c, Context | Resolved) for c in given):
            raise ParameterError("contexts must be 'default', a contexts file, or a non-empty list of contexts.")
        self.contexts = list(given)
        self.every, self.tokenizer, self.recipe = every, tokenizer, Recipe(loss=loss, weight=weight)
        self.trainer, self.seconds, self.watched = None, 0.0, list[_Watched]()
        self.spent = np.zeros(0)  # (G,) sum of the learning rates of each parameter group so far
        if tokenizer is not None:
            limit = getattr(tokenizer, "model_max_length", math.inf)
            check_lengths("the model of this tokenizer", sys.maxsize, limit, self._resolved(None))

    def attach(self, trainer) -> "PhantomCallback":
        """Add this callback to a Trainer, and log through it."""
        resolved = self._fitting(trainer.model, getattr(trainer, "processing_class", None))
        if self.recipe.loss != "cross-entropy":
            if trainer.compute_loss_func is not None:
                raise PhantomError("The Trainer has a compute_loss_func already; leave out that, or 'loss' here.")
            trainer.compute_loss_func = CompetitorLoss(resolved, loss=self.recipe.loss, weight=self.recipe.weight)
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def frame(self) -> pd.DataFrame:
        """Everything measured so far: one row per context and measured step."""
        return pd.DataFrame([{"context": w.context.id, **row} for w in self.watched for row in w.rows])

    def on_train_begin(self, args, state, control, model=None, processing_class=None, optimizer=None, **kwargs):
        own_loss = self.recipe.loss == "cross-entropy" and getattr(self.trainer, "compute_loss_func", None)
        if args.fsdp or args.deepspeed:
            raise PhantomError("PhantomCallback needs whole weights in every process; FSDP and DeepSpeed shard them.")
        if args.restore_callback_states_from_checkpoint:
            raise PhantomError("The callback reads its own state: leave out restore_callback_states_from_checkpoint.")
        if self.trainer is None and self.recipe.loss != "cross-entropy":
            raise PhantomError(f"The loss '{self.recipe.loss}' needs PhantomCallback(...).attach(trainer).")
        if self.trainer is None and args.report_to:
            unseen = f"PhantomCallback cannot log to {', '.join(args.report_to)} by itself"
            warnings.warn(f"{unseen}: add it with PhantomCallback(...).attach(trainer).", stacklevel=2)
        resolved, kept = self._fitting(model, processing_class), self._kept(state)
        self.planned = self.geometry = None
        if kept:
            self.spent = np.array(kept["spent"])
            self.watched = [_Watched(c, **kept["contexts"][c.id]) for c in resolved]
        else:
            self.spent = np.zeros(len(optimizer.param_groups))
            unknown = [math.nan] * len(self.spent) if own_loss else None
            self.watched = [_Watched(c, unknown or _velocity(model, c, optimizer, self.recipe, args)) for c in resolved]
            self._measure(state, control, model)
        self.seconds = 0.0

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.spent = self.spent + [float(group["lr"]) for group in optimizer.param_groups]

    def on_step_end(self, args, state, control, model=None, lr_scheduler=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._measure(state, control, model)
            budget = self._budget(lr_scheduler, state).max()
            for w in self.watched if WARMING * budget <= self.spent.max() < budget else ():
                if w.fails_silently() and not w.warned and (end := w.forecast(budget)) <= 0:
                    w.warn(f"at this pace it ends at {end:+.2f}. Raise the learning rate, or train longer.")

    def on_train_end(self, args, state, control, model=None, **kwargs):
        replaced = args.load_best_model_at_end and state.best_model_checkpoint is not None  # by those of another step
        if self.watched[0].rows[-1]["step"] < state.global_step and not replaced:  # it stopped early
            self._measure(state, control, model)
        for w in self.watched:
            if w.fails_silently():
                w.warn(f"training ended after {state.global_step} steps.")

    def state(self) -> dict:
        """What the Trainer keeps with a checkpoint, so that a run that goes on from there is one run."""
        kept = {w.context.id: {"velocity": w.velocity, "rows": w.rows, "warned": w.warned} for w in self.watched}
        return {"args": {}, "attributes": {"spent": self.spent.tolist(), "contexts": kept}}

    def _kept(self, state) -> dict | None:
        """The attributes of :meth:`state` in the checkpoint from which training goes on; None at a start."""
        # A name that is not there yet, as in a checkpoint of a run without this callback, would make the Trainer fail.
        kept = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        states = [one["attributes"] for one in (kept if isinstance(kept, list) else [kept])]  # the last is the newest
        mine = [one for one in states if one["contexts"].keys() == {c.id for c in self.contexts}]
        return mine[-1] if mine and state.global_step > 0 else None

    def _resolved(self, processing_class) -> list[Resolved]:
        tokenizer = self.tokenizer or processing_class
        if tokenizer is None and not all(isinstance(context, Resolved) for context in self.contexts):
            raise PhantomError("The Trainer has no processing_class; give PhantomCallback(..., tokenizer=...).")
        found, problems = [], []
        for context in self.contexts:
            try:
                found.append(context if isinstance(context, Resolved) else resolve(context, tokenizer))
            except ContextError as error:
                problems.append(error)
        all_at_once(problems, f"in {len(self.contexts)} contexts")
        return found

    def _fitting(self, model, processing_class) -> list[Resolved]:
        """The contexts as ids of a model; an error if no next token follows a prompt in it, or is seen beforehand."""
        kind = type(model).__name__
        with _measuring(model), naming(kind):
            if model.config.is_encoder_decoder:
                raise Unfit("reads one text and writes another; choose a causal language model.")
            check_causal(model, tolerance=1e-3)  # of half precision
        found, vocabulary = self._resolved(processing_class), len(model.get_output_embeddings().weight)
        virtual = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0  # in front
        check_lengths(kind, vocabulary, positions_of(model.config) - virtual, found)
        longest = max(found, key=lambda context: len(context.prompt_ids))
        try:  # a limit may have any name, or begin at an offset
            with _measuring(model):
                _last_logits(model, [longest])
        except (IndexError, RuntimeError) as error:
            which = f"the prompt of context '{longest.id}', {len(longest.prompt_ids)} tokens"
            raise ContextError(f"{kind} cannot read {which} ({shown(str(error), 100)}). Shorten it.") from error
        return found

    def _budget(self, scheduler, state) -> np.ndarray:
        """The sum of the learning rates over the whole training, of each parameter group (G,)."""
        left = range(state.global_step, state.max_steps)
        if not hasattr(scheduler, "lr_lambdas"):  # it goes by its last rate
            return self.spent + len(left) * np.array(scheduler.get_last_lr())
        if self.planned is None:  # the schedules of transformers are functions of the step: summed up once
            groups = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            self.planned = self.spent + [base * sum(map(share, left)) for base, share in groups]
        return self.planned

    def _measure(self, state, control, model) -> None:
        started = time.perf_counter()
        with _measuring(model):
            values = self._values(model)
        logged: dict[str, float] = {}
        for i, w in enumerate(self.watched):
            row = {name: column[i] for name, column in values.items()}
            row["kinematic_number_alone"] = float(self.spent @ w.velocity) / abs((w.rows or [row])[0]["gap"])
            w.rows.append({"step": state.global_step, "budget": float(self.spent.max()), **row})
            logged |= {f"phantom/{w.context.id}/{name}": value for name, value in row.items()}
        logged["phantom/silent_failures"] = sum(w.fails_silently() for w in self.watched)
        log_through(self.trainer, state, control, logged)
        self.seconds += time.perf_counter() - started

    def _values(self, model) -> dict[str, list[float]]:
        """All contexts at once: name -> one number per context."""
        contexts, layer = [w.context for w in self.watched], model.get_output_embeddings()
        z = _last_logits(model, contexts).float()  # (C, V)
        pair = torch.tensor([[x.correct_id, x.competitor_id] for x in contexts], device=z.device)  # (C, 2)
        if self.geometry is None or any(p.requires_grad for p in layer.parameters()):
            g = order_parameter.overlaps(_readout(layer), pair.flatten())  # (V, 2 C)
            self.geometry = g.unflatten(1, (-1, 2)).transpose(0, 1)  # (C, V, 2)
        g, (c, k), z_pair = self.geometry, pair.T, z.gather(1, pair)
        g_ck = g[torch.arange(len(g), device=z.device), k, 0]
        signal, drag = order_parameter.split(z.softmax(-1), order_parameter.contrast(g), c, k, g_ck)
        found = {
            "phi": signal + drag,
            "signal": signal,
            "drag": drag,
            "overlap": g_ck,
            "rank": 1 + (z > z_pair[:, :1]).sum(1),
            "gap": z_pair[:, 0] - z_pair[:, 1],
            "cross_entropy": z.logsumexp(1) - z_pair[:, 0],
        }
        return {name: column.tolist() for name, column in found.items()}


def _velocity(model, context: Resolved, optimizer, recipe: Recipe, args) -> list[float]:
    """``v_0`` of each parameter group (G,), nats per unit of its learning rate; nan where it is not known."""
    groups, inner = optimizer.param_groups, getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    kind = type(inner)  # a class derived from one of these may step otherwise
    if kind not in OPTIMIZERS or any(group.get("momentum") for group in groups):
        return [math.nan] * len(groups)
    trained = {p: i for i, group in enumerate(groups) for p in group["params"] if p.requires_grad}
    with _measuring(model), torch.enable_grad():
        z = _last_logits(model, [context]).float()  # (1, V)
        c, k = torch.tensor([[context.correct_id], [context.competitor_id]], device=z.device)
        loss, gap = training_loss(z, c, k, recipe.loss, recipe.weight)[0], (z[0, c] - z[0, k])[0]
        if recipe.loss == "cross-entropy":  # as transformers' LabelSmoother; a loss function is not smoothed
            loss = loss - args.label_smoothing_factor * (loss + z.log_softmax(1).mean())
        leaves = list(trained)
        of_loss = torch.autograd.grad(loss, leaves, retain_graph=True, materialize_grads=True)
        of_gap = torch.autograd.grad(gap, leaves, materialize_grads=True)
    norm = float(torch.nn.utils.get_total_norm(of_loss))
    clip = min(1.0, args.max_grad_norm / (norm + 1e-6)) if args.max_grad_norm else 1.0  # as torch's clip_grad_norm_
    velocity = [0.0] * len(groups)
    for (p, i), a, b in zip(trained.items(), of_gap, of_loss, strict=True):
        for slope, g, w in (block.double() for block in blocks([a], [b], [p])):
            new = w.clone()
            new.grad = clip * g
            kind([groups[i] | {"params": [new], "lr": 1.0}]).step()  # the optimiser's own first step
            velocity[i] += float((slope * (new - w)).sum())
    return velocity


def _last_logits(model, contexts: Sequence[Resolved]) -> Tensor:
    """Logits (C, V) after each prompt, those of one length together: what a forward pass gives may depend on the length."""
    found: dict[int, Tensor] = {}
    for length in {len(c.prompt_ids) for c in contexts}:
        places = [i for i, c in enumerate(contexts) if len(c.prompt_ids) == length]
        prompts = [contexts[i].prompt_ids for i in places]
        ids = torch.tensor(prompts, device=model.get_output_embeddings().weight.device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        found |= dict(zip(places, logits[:, -1], strict=True))  # from the end: virtual tokens may stand in front
    return torch.stack([found[i] for i in range(len(contexts))])


def _readout(layer) -> Tensor:
    """The unembedding matrix (V, d) in float32, with what adapters add to it."""
    E = layer.weight.float()
    if hasattr(layer, "get_delta_weight"):  # LoRA on the readout itself
        for name in layer.active_adapters:
            E = E + layer.get_delta_weight(name).float()
    return E


@contextmanager
def _measuring(model) -> Iterator[None]:
    """Without gradients and dropout inside; every module's mode as before after."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode
