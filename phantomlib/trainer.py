"""Watch a Hugging Face ``Trainer`` for silent failures while it trains.

::

    from phantomlib import PhantomCallback

    trainer = Trainer(...)                                   # any Trainer, full or peft; TRL's are Trainers too
    watch = PhantomCallback("my_contexts.yaml", every=10).attach(trainer)
    trainer.train()
    watch.frame()                                            # everything measured, as a table

Every ``every`` steps one forward pass over the prompts measures each context with :mod:`phantomlib.order_parameter`,
and logs it through the Trainer, so that TensorBoard and the others get it.
"""

import math
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import TrainerCallback

from phantomlib import order_parameter
from phantomlib.competitor_loss import CompetitorLoss
from phantomlib.contexts import Context, Resolved, load_contexts, resolve
from phantomlib.critical.step_zero import blocks, first_update
from phantomlib.engine.loss import training_loss
from phantomlib.engine.recipe import Recipe, check_lengths, positions_of
from phantomlib.errors import ContextError, ParameterError, PhantomError, all_at_once, shown

LEAST_FALL = 0.1  # nats by which a context's cross-entropy must have fallen before its failure counts as silent
WARMING = 0.25  # share of the learning-rate budget before which no forecast is made


class SilentFailureWarning(UserWarning):
    """The loss of a context falls, and the model does not come to prefer its correct word."""


@dataclass
class _Watched:
    """One context: what was measured of it, in order."""

    context: Resolved
    velocity: float = math.nan  # v_0, nats per unit learning rate
    rows: list[dict] = field(default_factory=list)
    warned: bool = False

    def fails_silently(self) -> bool:
        """Cross-entropy is lower than at the start, and the correct token was at no measurement ahead."""
        fall = self.rows[0]["cross_entropy"] - self.rows[-1]["cross_entropy"]
        return fall >= LEAST_FALL and all(row["gap"] <= 0 for row in self.rows)

    def forecast(self, budget: float) -> float:
        """The gap when the whole budget Ση is spent, if it goes on closing as between the last two measurements."""
        before, now = self.rows[-2:]
        spent = now["budget"] - before["budget"]
        return now["gap"] + (now["gap"] - before["gap"]) / spent * (budget - now["budget"]) if spent > 0 else now["gap"]


class PhantomCallback(TrainerCallback):
    """Logs Φ, signal, drag, rank, gap, overlap, cross-entropy and kinematic number of contexts during training.

    The kinematic number of a step is the budget spent so far, ``Σ η``, times ``v_0 / |Δ_0|``: where training on the
    context alone would be. ``v_0`` is taken along the first update of the Trainer's own optimiser (SGD, Adam, AdamW;
    others have none) on the loss that is trained. It costs two backward passes per context before training, which
    ``kinematic=False`` saves.

    A :class:`SilentFailureWarning` is raised, once per context, as soon as its cross-entropy has fallen by 0.1 nat and
    the gap, extrapolated to the end of the schedule, stays negative; and at the end of training if it did.

    Args:
        contexts: ``"default"``, a contexts file, or a list of ``Context`` or ``Resolved``.
        every: steps between measurements. The first and the last step are measured too, unless training stops early and
            the Trainer has its best checkpoint back in place of the last weights.
        tokenizer: by default the Trainer's ``processing_class``.
        kinematic: whether to measure ``v_0``.
        prefix: of the logged names, ``phantom/shame/gap``.
        loss: ``margin``, ``unlikelihood`` or ``gap`` have :meth:`attach` give the Trainer a loss that looks at the
            competitors (:class:`phantomlib.competitor_loss.CompetitorLoss`).
        weight: λ of its term.

    Attributes:
        seconds: time spent measuring, without that before the first step.

    Raises:
        ContextError: the contexts cannot be read, do not fit the tokenizer, or are longer than the model reads. What can
            be told here, with ``tokenizer`` or resolved contexts, is told here; the rest by :meth:`attach`, or else when
            training starts.
        ParameterError: ``every`` is not a whole number of at least 1.
        PhantomError: there is no tokenizer; the Trainer has a loss function of its own already; or, when training
            starts, the weights are sharded over processes, or a loss was chosen and the callback not attached.

    Example:
        >>> import phantomlib as ph
        >>> callback = ph.PhantomCallback("default", every=5)  # then Trainer(..., callbacks=[callback])
        >>> callback.every
        5
    """

    def __init__(
        self,
        contexts="default",
        *,
        every: int = 10,
        tokenizer=None,
        kinematic=True,
        prefix="phantom",
        loss: str = "cross-entropy",
        weight: float = 1.0,
    ):
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ParameterError(f"every is {shown(every)}; give a whole number of steps of at least 1.")
        self.contexts = load_contexts(contexts) if isinstance(contexts, str | Path) else list(contexts)
        if not self.contexts or not all(isinstance(c, Context | Resolved) for c in self.contexts):
            raise ParameterError("contexts must be 'default', a contexts file, or a non-empty list of contexts.")
        self.every, self.tokenizer, self.kinematic, self.prefix = every, tokenizer, kinematic, prefix
        self.trainer, self.seconds, self.recipe = None, 0.0, Recipe(loss=loss, weight=weight)
        self.watched: list[_Watched] = []
        if tokenizer is not None:
            limit = getattr(tokenizer, "model_max_length", math.inf)
            check_lengths("the model of this tokenizer", sys.maxsize, limit, self._resolved(None))

    def attach(self, trainer) -> "PhantomCallback":
        """Add this callback to a Trainer, and log through it; refuses contexts that do not fit its model."""
        resolved = self._fitting(trainer.model, getattr(trainer, "processing_class", None))
        if self.recipe.loss != "cross-entropy":
            if trainer.compute_loss_func is not None:
                raise PhantomError(
                    "The Trainer has a compute_loss_func already; leave it out, or leave out 'loss' here."
                )
            trainer.compute_loss_func = CompetitorLoss(resolved, loss=self.recipe.loss, weight=self.recipe.weight)
        self.trainer = trainer
        trainer.add_callback(self)
        return self

    def frame(self) -> pd.DataFrame:
        """Everything measured so far: one row per context and measured step."""
        return pd.DataFrame([{"context": w.context.id, **row} for w in self.watched for row in w.rows])

    # -------------------------------------------------------------------------------------------- the Trainer's events

    def on_train_begin(self, args, state, control, model=None, processing_class=None, optimizer=None, **kwargs):
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise PhantomError("PhantomCallback needs whole weights in every process; FSDP and DeepSpeed shard them.")
        if self.recipe.loss != "cross-entropy" and self.trainer is None:
            raise PhantomError(f"The loss '{self.recipe.loss}' needs PhantomCallback(...).attach(trainer).")
        self.watched = [_Watched(context) for context in self._fitting(model, processing_class)]
        self.ahead = None  # (T + 1,) sum of the learning rates from each step on
        self.spent, self.seconds, self.unlogged, self.geometry = 0.0, 0.0, {}, None
        if self.kinematic:
            recipe = _first_update_of(optimizer, self.recipe)
            if recipe is not None:
                for w in self.watched:
                    w.velocity = _velocity(model, w.context, recipe)
        self._measure(state, control, model)
        self.seconds = 0.0

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        self.spent += optimizer.param_groups[0]["lr"]

    def on_step_end(self, args, state, control, model=None, lr_scheduler=None, **kwargs):
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._measure(state, control, model)
            budget = self.spent + self._still_to_come(lr_scheduler, state)
            for w in self.watched:
                if w.fails_silently() and not w.warned and WARMING * budget <= self.spent < budget:
                    end = w.forecast(budget)
                    if end <= 0:
                        self._warn(w, f"at this pace it ends at {end:+.2f}. Raise the learning rate, or train longer.")
        return control

    def on_train_end(self, args, state, control, model=None, **kwargs):
        replaced = args.load_best_model_at_end and state.best_model_checkpoint is not None  # by those of another step
        if self.watched[0].rows[-1]["step"] < state.global_step and not replaced:  # it stopped early
            self._measure(state, control, model)
        for w in self.watched:
            if w.fails_silently():
                self._warn(w, f"training ended after {state.global_step} steps.")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.trainer is None and logs is not None and self.watched:  # callbacks after this one may show it
            logs.update(self.unlogged)
            self.unlogged = {}

    # -------------------------------------------------------------------------------------------- inside

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
        found = self._resolved(processing_class)
        vocabulary = len(model.get_output_embeddings().weight)
        check_lengths(type(model).__name__, vocabulary, positions_of(model.config), found)
        return found

    def _still_to_come(self, scheduler, state) -> float:
        """Sum of the learning rates of the steps that are left."""
        if not hasattr(scheduler, "lr_lambdas"):
            return (state.max_steps - state.global_step) * scheduler.get_last_lr()[0]
        if self.ahead is None:  # the schedules of transformers are functions of the step: summed up once, from the end
            rates = [scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step) for step in range(state.max_steps)]
            self.ahead = np.append(np.cumsum(rates[::-1])[::-1], 0.0)
        return float(self.ahead[state.global_step])

    def _warn(self, w: _Watched, outlook: str) -> None:
        w.warned = True
        first, last, words = w.rows[0], w.rows[-1], w.context.context
        warnings.warn(
            f"Silent failure in '{w.context.id}' at step {last['step']}: cross-entropy fell from "
            f"{first['cross_entropy']:.2f} to {last['cross_entropy']:.2f} nats, but “{words.correct}” is still behind "
            f"“{words.competitor}” (logit gap {last['gap']:+.2f}); {outlook}",
            SilentFailureWarning,
            stacklevel=3,
        )

    @torch.no_grad()
    def _measure(self, state, control, model) -> None:
        started = time.perf_counter()
        with _evaluating(model):
            values = self._values(model)
        logged: dict[str, float] = {}
        for i, w in enumerate(self.watched):
            row = {name: column[i] for name, column in values.items()}
            row["kinematic_number"] = self.spent * w.velocity / abs((w.rows or [row])[0]["gap"])
            w.rows.append({"step": state.global_step, "budget": self.spent, **row})
            logged |= {f"{self.prefix}/{w.context.id}/{name}": value for name, value in row.items()}
        logged[f"{self.prefix}/silent_failures"] = sum(w.fails_silently() for w in self.watched)
        self._log(state, control, logged)
        self.seconds += time.perf_counter() - started

    def _values(self, model) -> dict[str, list[float]]:
        """All contexts at once: name -> one number per context."""
        contexts = [w.context for w in self.watched]
        layer = model.get_output_embeddings()
        device = layer.weight.device
        ids, last = _padded(contexts, device)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        z = logits[torch.arange(len(ids), device=device), last].float()  # (C, V)
        c = torch.tensor([x.correct_id for x in contexts], device=device)
        k = torch.tensor([x.competitor_id for x in contexts], device=device)
        pair = torch.stack([c, k], -1)  # (C, 2)
        if self.geometry is None or _is_trained(layer):
            g = order_parameter.overlaps(_readout(layer), pair.flatten())  # (V, 2 C)
            self.geometry = g.view(len(g), -1, 2).transpose(0, 1)  # (C, V, 2)
        g = self.geometry
        g_ck = g[torch.arange(len(g), device=device), k, 0]
        p = z.softmax(-1)
        signal, drag = order_parameter.split(p, order_parameter.contrast(g), c, k, g_ck)
        z_pair = z.gather(1, pair)
        found = {
            "phi": signal + drag,
            "signal": signal,
            "drag": drag,
            "rank": 1 + (z > z_pair[:, :1]).sum(1),
            "gap": z_pair[:, 0] - z_pair[:, 1],
            "overlap": g_ck,
            "cross_entropy": z.logsumexp(1) - z_pair[:, 0],
        }
        return {name: column.tolist() for name, column in found.items()}

    def _log(self, state, control, logged: dict) -> None:
        if self.trainer is None:
            state.log_history.append({**logged, "step": state.global_step})
            self.unlogged = logged
            return
        due = control.should_log  # logging resets it, and the Trainer's own log of this step would be lost
        self.trainer.log(dict(logged))
        control.should_log = due


def _first_update_of(optimizer, recipe: Recipe) -> Recipe | None:
    """``recipe`` with the Trainer's optimiser; None for one whose first update is not known here."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    if isinstance(inner, torch.optim.Adam | torch.optim.AdamW):
        return replace(recipe, optimizer="adam", epsilon=inner.param_groups[0]["eps"])
    return replace(recipe, optimizer="sgd") if isinstance(inner, torch.optim.SGD) else None


def _velocity(model, context: Resolved, recipe: Recipe) -> float:
    """``v_0`` over the parameters that this training changes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with _evaluating(model), torch.enable_grad():
        ids = torch.tensor([context.prompt_ids], device=model.get_output_embeddings().weight.device)
        z = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        gap = z[context.correct_id] - z[context.competitor_id]
        c, k = torch.tensor([[context.correct_id], [context.competitor_id]], device=z.device)
        loss = training_loss(z[None], c, k, recipe.loss, recipe.weight)[0]
        of_loss = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        of_gap = torch.autograd.grad(gap, trained, allow_unused=True)
    pairs = [(a, b) for a, b in zip(of_gap, of_loss, strict=True) if a is not None and b is not None]
    doubled = (block.double() for a, b in pairs for block in blocks([a], [b]))
    return sum(float((a * first_update(b, recipe)).sum()) for a, b in doubled)


def _padded(contexts: list[Resolved], device) -> tuple[Tensor, Tensor]:
    """Token ids (C, L), padded on the right, which causal attention makes harmless, and last positions (C,)."""
    longest = max(len(c.prompt_ids) for c in contexts)
    rows = [[*c.prompt_ids, *[c.prompt_ids[-1]] * (longest - len(c.prompt_ids))] for c in contexts]
    return torch.tensor(rows, device=device), torch.tensor([len(c.prompt_ids) - 1 for c in contexts], device=device)


def _readout(layer) -> Tensor:
    """The unembedding matrix (V, d) in float32, with what adapters add to it."""
    E = layer.weight.float()
    if hasattr(layer, "get_delta_weight"):  # LoRA on the readout itself
        for name in layer.active_adapters:
            E = E + layer.get_delta_weight(name).float()
    return E


def _is_trained(layer) -> bool:
    return any(p.requires_grad for p in layer.parameters())


class _evaluating:
    """Dropout off inside; every module's mode as before after."""

    def __init__(self, model):
        self.modes = [(m, m.training) for m in model.modules()]
        self.model = model

    def __enter__(self):
        self.model.eval()

    def __exit__(self, *exception):
        for module, mode in self.modes:
            module.training = mode
