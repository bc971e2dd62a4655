"""The fine-tuning engine: contexts × learning rates × seeds advanced together, everything measured at every step.

The loss of a replica is the cross-entropy of its correct token at the last position of its prompt, in nats. Row t of a
recording is the state *before* update t, so row 0 is the untouched model and row T the final one.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from weakref import WeakKeyDictionary

import numpy as np
import psutil
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor

from phantomlib import order_parameter as op
from phantomlib.contexts import Resolved
from phantomlib.errors import ContextError, ParameterError
from phantomlib.models import LanguageModel, add_lora, next_token_logits
from phantomlib.replicas import Stack, multiply_out, stack

REAL = int | float | np.integer | np.floating
IN_CACHE = 2**19  # numbers of a matrix that a CPU updates at a time: see the page on speed
SMALL = 2**17  # numbers of a stack that is updated together with the other small ones
ENGINE_VERSION = 5  # raised whenever the numbers of a run could change
# module -> its copies with LoRA by (rank, alpha, seed): to make one takes as long as many steps
_adapted = WeakKeyDictionary()
_checked = WeakKeyDictionary()  # module -> the contexts that check_contexts found to fit it

# what is recorded at every step: name -> (unit, meaning)
RECORDED = {
    "cross_entropy": ("nat", "-log p_c"),
    "logit_gap": ("nat", "z_c - z_k"),
    "p_correct": ("1", "probability of the correct token"),
    "p_competitor": ("1", "probability of the competitor"),
    "rank_correct": ("1", "1 + number of tokens with a larger logit than the correct one; 0 after divergence"),
    "phi": ("1", "order parameter, signal + drag"),
    "signal": ("1", "(p_c - p_k)(1 - g_ck^2)"),
    "drag": ("1", "sum over other tokens of p_i (g_ci^2 - g_ki^2)"),
    "overlap": ("1", "g_ck, cosine of the readout rows of the two tokens"),
    "readout_drift": ("1", "Frobenius norm of E_t - E_0 relative to that of E_0"),
    "readout_unchanged": ("1", "1 if E_t equals E_0 bit for bit, else 0"),
    "gradient_norm": ("nat", "Euclidean norm of the loss gradient over the trainable parameters; nan at the last step"),
    "phi_readout_part": ("1", "part of phi_t - phi_(t-1) carried by the change of p"),
    "phi_geometry_part": ("1", "part of phi_t - phi_(t-1) carried by the change of the overlaps"),
}


@dataclass(frozen=True)
class Recipe:
    """How to fine-tune; with the model, contexts and learning rates it determines every number of a run.

    Attributes:
        optimizer: ``sgd`` (plain), ``adam`` or ``adamw`` (decoupled weight decay), as in ``torch.optim``.
        method: ``full`` (all parameters) or ``lora`` (adapters on all linear layers but the readout).
        steps: number of updates T.
        weight_decay: only for ``adamw``.
        beta1, beta2, epsilon: of Adam and AdamW.
        rank, alpha: of LoRA.
        exponent: power of the overlap in Φ.
        geometry: whose rows give the overlaps, ``readout`` (the unembedding) or ``input`` (the token embedding).
        snapshots: steps at which the spectrum of ρ is recorded.
    """

    optimizer: str = "adam"
    method: str = "full"
    steps: int = 30
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    rank: int = 8
    alpha: float = 16.0
    exponent: int = 2
    geometry: str = "readout"
    snapshots: tuple[int, ...] = ()

    def __post_init__(self):
        if not isinstance(self.snapshots, list | tuple):
            raise ParameterError(f"snapshots is {self.snapshots!r}; give a list of steps, such as [0, 15, 30].")
        object.__setattr__(self, "snapshots", tuple(self.snapshots))
        known = {
            "optimizer": ("sgd", "adam", "adamw"),
            "method": ("full", "lora"),
            "exponent": (1, 2),
            "geometry": ("readout", "input"),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ParameterError(
                    f"{name} {getattr(self, name)!r} is not known; choose one of {', '.join(map(str, values))}."
                )
        for name, lowest in (("steps", 1), ("rank", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise ParameterError(f"{name} is {value!r}; give a whole number of at least {lowest}.")
        bounds = {
            "weight_decay": (0, math.inf),
            "beta1": (0, 1),
            "beta2": (0, 1),
            "epsilon": (0, math.inf),
            "alpha": (0, math.inf),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value < high:
                raise ParameterError(f"{name} is {value!r}; give a number with {low} <= {name} < {high}.")
        if self.weight_decay and self.optimizer != "adamw":
            raise ParameterError(f"weight_decay {self.weight_decay} needs optimizer 'adamw', not '{self.optimizer}'.")
        if any(isinstance(s, bool) or not isinstance(s, int) or not 0 <= s <= self.steps for s in self.snapshots):
            raise ParameterError(f"snapshots {self.snapshots} must be steps from 0 to {self.steps}.")
        if len(set(self.snapshots)) < len(self.snapshots):
            raise ParameterError(f"snapshots {self.snapshots} name a step twice; give each once.")


def check_learning_rates(learning_rates, contexts: int, steps: int | None = None) -> np.ndarray:
    """Learning rates as an array (C, rates), or (C, rates, steps) if each replica has a schedule.

    Args:
        learning_rates: (rates,), the same for all contexts; (C, rates); or (C, rates, steps), one rate per update.
        contexts: their number C.
        steps: the number of updates, to check schedules against.

    Raises:
        ParameterError: empty, not numbers, not all positive and finite, or of the wrong shape.
    """
    advice = (
        f"learning rates {learning_rates!r} must be a non-empty list of positive, finite numbers, such as [1e-4, 3e-4]."
    )
    flat = np.ravel(np.asarray(learning_rates, dtype=object))
    if not len(flat) or any(isinstance(v, bool | str) or not isinstance(v, REAL) for v in flat):
        raise ParameterError(advice)
    try:
        rates = np.asarray(learning_rates, dtype=float)
    except (ValueError, OverflowError):  # rows of different lengths; a whole number beyond the largest float
        raise ParameterError(advice) from None
    if rates.ndim == 0 or not np.isfinite(rates).all() or (rates <= 0).any():
        raise ParameterError(advice)
    if rates.ndim == 1:
        rates = np.tile(rates, (contexts, 1))
    if rates.ndim not in (2, 3) or len(rates) != contexts:
        raise ParameterError(
            f"learning rates of shape {rates.shape} do not fit {contexts} contexts; give (rates,) or "
            "(contexts, rates), or (contexts, rates, steps) for schedules."
        )
    if rates.ndim == 3 and steps is not None and rates.shape[2] != steps:
        raise ParameterError(f"schedules of {rates.shape[2]} learning rates do not fit {steps} steps; give one a step.")
    return rates


def check_seeds(seeds) -> None:
    """Raise ParameterError unless ``seeds`` is a non-empty list or tuple of whole numbers, none negative."""
    if not isinstance(seeds, list | tuple) or not seeds or any(type(s) is not int or s < 0 for s in seeds):
        raise ParameterError(f"seeds is {seeds!r}; give a list of whole numbers of at least 0, such as [0, 1].")


def check_contexts(model: LanguageModel, contexts: list[Resolved]) -> None:
    """Refuse contexts that do not fit the model, or whose correct word already outranks the competitor.

    Raises:
        ContextError: naming the context and what does not fit: ids, length, or the logit gap.
    """
    if not contexts:
        raise ContextError("There is no context to learn; give at least one.")
    known = _checked.setdefault(model.module, set())
    contexts = [context for context in contexts if context not in known]
    vocabulary = len(model.readout)
    positions = getattr(model.module.config, "max_position_embeddings", None) or math.inf
    for context in contexts:
        if max(*context.prompt_ids, context.correct_id, context.competitor_id) >= vocabulary:
            raise ContextError(
                f"Context '{context.id}' has token ids beyond the {vocabulary} of the vocabulary of '{model.name}'; "
                "resolve it with the model's own tokenizer."
            )
        if len(context.prompt_ids) > positions:
            raise ContextError(
                f"The prompt of context '{context.id}' has {len(context.prompt_ids)} tokens, but '{model.name}' reads "
                f"no more than {positions}; shorten it."
            )
    for context in contexts:
        z = next_token_logits(model, [context])[0]
        gap = float(z[context.correct_id] - z[context.competitor_id])
        if not gap < 0:
            words = context.context
            raise ContextError(
                f"Context '{context.id}': '{model.name}' already prefers '{words.correct}' to '{words.competitor}' "
                f"before training (logit gap {gap:+.2f} nats), so there is nothing to overtake. Choose a competitor "
                "that the model prefers, or exchange the two words."
            )
        known.add(context)


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
    progress: Callable[[int], None] | None = None,
    run: Callable | None = None,
) -> xr.Dataset:
    """Fine-tune one replica per context, learning rate and seed, and record everything.

    Args:
        model: the checkpoint; it is not changed.
        contexts: resolved contexts (C of them); each must be outranked by its competitor at step 0.
        learning_rates: (rates,) for all contexts, (C, rates), or schedules (C, rates, T); positive.
        recipe: optimiser, method, number of steps.
        seeds: of the LoRA initialisation. Full fine-tuning of a checkpoint has no randomness.
        engine: see :func:`phantomlib.replicas.stack`.
        chunk: replicas advanced together; by default from the size of the model.
        extra: further quantities to record, by name: functions of probabilities p (R, V), readout E (R, V, d), and ids
            c (R,) and k (R,) that return one number per replica (R,). The first line of the docstring is the meaning.
        progress: called with the number of replica-steps just done.
        run: computes all chunks, as :func:`run_here` does, which is the default; or elsewhere
            (:func:`phantomlib.cluster.run_there`).

    Returns:
        Dataset with dimensions (context, rate, seed, step), step = 0..T, the variables of ``RECORDED``,
        ``learning_rate`` (context, rate) and ``diverged_step`` (-1 if finite throughout). Of a schedule
        ``learning_rate`` is the largest value, and ``schedule`` (context, rate, step) holds all (nan at step T). From
        the step of divergence on, values are nan (``rank_correct`` 0). With snapshots also ``spectrum`` (..., snapshot,
        component), eigenvalues of ρ, and ``phi_trace`` (..., snapshot), Φ computed from ρ by the trace formula.
    """
    check_contexts(model, contexts)
    rates = check_learning_rates(learning_rates, len(contexts), recipe.steps)
    check_seeds(seeds)
    if engine not in ("auto", "batch axis", "vmap"):
        raise ParameterError(f"engine {engine!r} is not known; choose 'auto', 'batch axis' or 'vmap'.")
    if chunk is not None and (type(chunk) is not int or chunk < 1):
        raise ParameterError(f"chunk is {chunk!r}; give a number of replicas of at least 1, or None.")
    extra = check_extra(extra)
    shape = (len(contexts), rates.shape[1], len(seeds))
    grid = list(np.ndindex(shape))
    _, values = trainable(model, recipe, seeds[0])
    chunk = chunk or chunk_size(sum(v.numel() for v in values.values()), model.device)
    replicas = [Replica(contexts[c], rates[c, r], seeds[s]) for c, r, s in grid]
    chunks = [replicas[start : start + chunk] for start in range(0, len(grid), chunk)]
    parts = (run or run_here)(model, chunks, recipe, engine, extra, progress or (lambda done: None))
    return _label(parts, shape, contexts, rates, seeds, recipe, extra)


@dataclass(frozen=True)
class Replica:
    """One run of a sweep: a context, a learning rate (or one for each step, (T,)), and the seed of the LoRA start."""

    context: Resolved
    rate: np.ndarray
    seed: int


def run_here(model, chunks: list[list[Replica]], recipe, engine, extra, progress) -> list[dict[str, np.ndarray]]:
    """One chunk after the other, in this process."""
    return [advance(model, chunk, recipe, engine, extra, progress) for chunk in chunks]


def check_extra(extra: Mapping[str, Callable] | None) -> dict[str, Callable]:
    """Further quantities by name; ParameterError unless the names are new and the values are functions."""
    extra = dict(extra or {})
    for name, function in extra.items():
        if not isinstance(name, str) or not name.isidentifier() or name in RECORDED or not callable(function):
            raise ParameterError(
                f"extra holds {name!r}: {function!r}; give functions of (p, E, c, k) under names that are not recorded "
                "already, such as {'entropy': entropy}."
            )
    return extra


def trainable(model: LanguageModel, recipe: Recipe, seed: int) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """The module to run and the initial values of its trainable tensors; change neither."""
    if recipe.method == "full":
        return model.module, dict(model.module.named_parameters())
    adapted, key = _adapted.setdefault(model.module, {}), (recipe.rank, recipe.alpha, seed)
    if key not in adapted:
        adapted[key] = add_lora(model.module, rank=recipe.rank, alpha=recipe.alpha, seed=seed, share=True)
    module = adapted[key]
    return module, {name: p for name, p in module.named_parameters() if "lora_" in name}


def _embedding(module: torch.nn.Module, geometry: str) -> tuple[str, Tensor]:
    """Name (as in ``named_parameters``) and value of the matrix whose rows give the overlaps."""
    layer = module.get_output_embeddings() if geometry == "readout" else module.get_input_embeddings()
    return next(name for name, p in module.named_parameters() if p is layer.weight), layer.weight


def chunk_size(n_trainable: int, device: torch.device) -> int:
    """Replicas advanced together: on a CPU as many as pay (see the page on speed), if memory allows."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    fitting = max(
        1, int(free * 0.6 / (24 * n_trainable))
    )  # weights, two moments, activations; in float64, half as much again
    return min(fitting, 512 if device.type == "cuda" else max(4, min(64, 64_000_000 // n_trainable)))


def advance(model, chunk: list[Replica], recipe, engine, extra, progress) -> dict[str, np.ndarray]:
    """Run R replicas together for T steps; returns what was recorded, (R, T + 1) each, and snapshots."""
    seeds = {seed: trainable(model, recipe, seed) for seed in {replica.seed for replica in chunk}}
    module = seeds[chunk[0].seed][0]  # frozen tensors are the same for every seed
    stacked = stack(module, [seeds[replica.seed][1] for replica in chunk], engine)
    readout_name, readout_0 = _embedding(module, recipe.geometry)
    contexts, device = [replica.context for replica in chunk], model.device
    rates = torch.tensor(np.stack([replica.rate for replica in chunk])).to(model.readout)
    longest = max(len(c.prompt_ids) for c in contexts)
    ids = torch.tensor([[*c.prompt_ids, *[0] * (longest - len(c.prompt_ids))] for c in contexts], device=device)
    last = torch.tensor([len(c.prompt_ids) - 1 for c in contexts], device=device)
    c = torch.tensor([x.correct_id for x in contexts], device=device)
    k = torch.tensor([x.competitor_id for x in contexts], device=device)

    optimizer = _Optimizer(stacked, rates, recipe)  # before E is taken: it moves small parameters to other memory
    E_0 = readout_0.detach().clone()
    E = stacked.parameters.get(
        readout_name, readout_0
    ).detach()  # (R, V, d) if trained, else (V, d) for all; same memory
    recorder = Recorder(E_0, E, c, k, recipe, extra)
    for step in range(recipe.steps + 1):
        with torch.set_grad_enabled(step < recipe.steps):
            logits = stacked.logits(ids, last)  # (R, V)
            loss = F.cross_entropy(logits, c, reduction="none")
        recorder.record(step, logits.detach(), loss.detach())
        if step < recipe.steps:
            recorder.fields["gradient_norm"][:, step] = optimizer.step(loss)
            progress(len(chunk))
    optimizer.close()
    return {name: field.cpu().numpy() for name, field in (recorder.fields | recorder.snapshots).items()}


class _Optimizer:
    """SGD, Adam or AdamW with one learning rate per replica, applied to a parameter as soon as its gradient is known.

    Updating inside the backward pass means that no more than one parameter's gradient exists at a time. That of a
    matrix comes as factors and is multiplied out for as many replicas as fit a cache, into memory used over and over.
    Small parameters, where starting an operation would take longer than the operation, share one tensor and are
    updated together after the backward pass.
    """

    def __init__(self, stacked: Stack, rates: Tensor, recipe: Recipe):
        self.recipe, self.rates, self.steps = recipe, rates, 0  # rates (R,), or schedules (R, T)
        self.moments, self.factors = {}, stacked.factors
        parameters = list(stacked.parameters.values())
        self.small = [p for p in parameters if p.numel() <= SMALL]
        large = [p for p in parameters if p.numel() > SMALL]
        self.together = [self._join(self.small)] if self.small else []  # (R, all numbers of the small ones)
        most = max(self._block(p) * p[0].numel() for p in large + self.together)
        self.gradient, self.change = parameters[0].new_empty((2, most))
        self.handles = [p.register_post_accumulate_grad_hook(self._update) for p in large]
        self.factors.wanted.update(large)

    @staticmethod
    def _join(parameters: list[Tensor]) -> Tensor:
        """One tensor (R, n) in whose memory the parameters (R, ...) lie from now on."""
        joined = torch.cat([p.detach().flatten(1) for p in parameters], 1)
        for p, own in zip(parameters, joined.split([p[0].numel() for p in parameters], 1), strict=True):
            p.data = own.view_as(p)
        return joined

    def step(self, loss: Tensor) -> Tensor:
        """Update all replicas from their losses (R,); returns the norms of their gradients (R,)."""
        self.steps += 1
        self.rate = self.rates[:, self.steps - 1] if self.rates.dim() == 2 else self.rates
        self.count = torch.tensor(float(self.steps), device=self.rate.device)
        self.squared_norm = torch.zeros_like(self.rate)
        loss.sum().backward()  # replicas do not interact, so the gradient of the sum is each replica's own
        for joined in self.together:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.small]
            joined.grad = torch.cat([g.flatten(1) for g in gradients], 1)
            self._update(joined)
            for p in self.small:
                p.grad = None
        return self.squared_norm.sqrt()

    def _block(self, p: Tensor) -> int:
        """How many replicas of a parameter are updated at a time."""
        return len(p) if p.is_cuda else min(len(p), max(1, IN_CACHE // p[0].numel()))

    @torch.no_grad()
    def _update(self, p: Tensor) -> None:
        """Called in the backward pass when all parts of p's gradient are there."""
        whole, p.grad = p.grad, None
        products = self.factors.products.pop(p, [])
        if self.recipe.optimizer != "sgd" and p not in self.moments:
            self.moments[p] = torch.zeros_like(p), torch.zeros_like(p)
        block = self._block(p)
        for start in range(0, len(p), block):
            rows = slice(start, start + block)
            gradient = None if whole is None else whole[rows]
            factors = [(a[rows], b[rows]) for a, b in products]
            moments = [m[rows] for m in self.moments.get(p, ())]
            self._update_rows(p[rows], gradient, factors, moments, self.rate[rows], self.squared_norm[rows])

    def _update_rows(self, p, gradient, factors, moments, rate, squared_norm) -> None:
        recipe = self.recipe
        rate = rate.view(-1, *[1] * (p.dim() - 1))
        one_product = len(factors) == 1 and factors[0][0].dim() == 3
        if one_product:
            a, b = factors[0]
            squared_norm += ((a @ a.mT) * (b @ b.mT)).sum((1, 2)).clamp_min(0)  # |aᵀb|² from products L x L
            if recipe.optimizer == "sgd":  # the gradient itself is never needed
                p.baddbmm_((a * -rate).mT, b)
                return
        if gradient is None:
            gradient = multiply_out(factors, self.gradient[: p.numel()].view_as(p))
        if not one_product:
            squared_norm += torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()
        if recipe.optimizer == "sgd":
            p.addcmul_(gradient, rate, value=-1)
            return
        if recipe.weight_decay:
            p.mul_(1 - rate * recipe.weight_decay)
        change = self.change[: p.numel()].view_as(p).zero_()
        torch._fused_adam_(  # what torch.optim.Adam(fused=True) calls; it knows one learning rate only, so 1 here
            [change], [gradient], moments[:1], moments[1:], [], [self.count], amsgrad=False, maximize=False,
            beta1=recipe.beta1, beta2=recipe.beta2, eps=recipe.epsilon, lr=1.0, weight_decay=0.0,
        )  # fmt: skip
        p.addcmul_(change, rate)

    def close(self) -> None:
        self.factors.wanted.clear()
        for handle in self.handles:
            handle.remove()


class Recorder:
    """Writes each step's measurements into tensors (R, T + 1) on the device; nothing is read back before the end."""

    def __init__(self, E_0: Tensor, E: Tensor, c: Tensor, k: Tensor, recipe: Recipe, extra: dict):
        self.E_0, self.E, self.c, self.k, self.recipe, self.extra = E_0, E, c, k, recipe, extra
        self.pair = torch.stack([c, k], -1)  # (R, 2)
        self.trained = E.dim() == 3
        self.norm_0 = E_0.norm()
        self.moved = torch.empty_like(E)  # memory for E - E_0
        replicas = len(c)
        self.fields = {name: E_0.new_full((replicas, recipe.steps + 1), math.nan) for name in [*RECORDED, *extra]}
        self.h = self.g_ck = self.previous = None
        d, n = E_0.shape[1], len(recipe.snapshots)
        self.snapshots = (
            {"spectrum": E_0.new_zeros((replicas, n, d)), "phi_trace": E_0.new_zeros((replicas, n))} if n else {}
        )

    def record(self, step: int, logits: Tensor, loss: Tensor) -> None:
        """``logits`` (R, V) and ``loss`` (R,) of the state before update ``step``."""
        p = logits.softmax(-1)
        z_pair, p_pair = logits.gather(1, self.pair), p.gather(1, self.pair)
        if self.h is None or self.trained:  # a frozen readout keeps its overlaps
            self._measure_geometry()
        signal, drag = op.split(p, self.h, self.c, self.k, self.g_ck, self.recipe.exponent)
        moved = torch.sub(self.E, self.E_0, out=self.moved)
        values = {
            "cross_entropy": loss,
            "logit_gap": z_pair[:, 0] - z_pair[:, 1],
            "p_correct": p_pair[:, 0],
            "p_competitor": p_pair[:, 1],
            "rank_correct": 1 + (logits > z_pair[:, :1]).sum(1),
            "phi": signal + drag,
            "signal": signal,
            "drag": drag,
            "overlap": self.g_ck,
            "readout_drift": torch.linalg.vector_norm(moved, dim=(-2, -1)) / self.norm_0,
            "readout_unchanged": self._unchanged(),
        }
        if self.previous is not None:  # Φ is bilinear in p and h, so its change splits exactly
            p_0, h_0 = self.previous
            values["phi_readout_part"] = ((p - p_0) * (self.h + h_0)).sum(1) / 2
            values["phi_geometry_part"] = ((self.h - h_0) * (p + p_0)).sum(1) / 2
        self.previous = p, self.h
        for name, function in self.extra.items():
            values[name] = function(p, self._rows(), self.c, self.k)
        for name, value in values.items():
            self.fields[name][:, step] = value
        if step in self.recipe.snapshots:
            self._snapshot(self.recipe.snapshots.index(step), p)

    def _unchanged(self) -> Tensor:
        """Whether E equals E_0 bit for bit (R,), or one answer for all."""
        if self.E.is_cuda:  # torch.equal would wait for the device
            return (self.E == self.E_0).all(-1).all(-1)
        return torch.tensor([torch.equal(E, self.E_0) for E in self.E.view(-1, *self.E_0.shape)])

    def _rows(self) -> Tensor:
        """E (R, V, d); a frozen readout is the same memory for all."""
        return self.E if self.trained else self.E.expand(len(self.c), -1, -1)

    def _measure_geometry(self) -> None:
        g = op.overlaps(self._rows(), self.pair)  # (R, V, 2)
        self.h = op.contrast(g, self.recipe.exponent)
        self.g_ck = g[torch.arange(len(g), device=g.device), self.k, 0]

    def _snapshot(self, index: int, p: Tensor) -> None:
        """Eigenvalues of ρ, and Φ from ρ itself: a path that shares nothing with signal and drag."""
        E = self._rows()
        finite = torch.isfinite(p).all(1) & torch.isfinite(E).flatten(1).all(1)  # eigenvalue routines refuse nan
        rho = op.density_matrix(p.nan_to_num(0.0), E.nan_to_num(0.0, 0.0, 0.0))
        e = op.normalise(torch.take_along_dim(E, self.pair[..., None], 1))
        gone = torch.where(finite, 0.0, math.nan).to(p.dtype)
        self.snapshots["spectrum"][:, index] = op.spectrum(rho) + gone[:, None]
        self.snapshots["phi_trace"][:, index] = op.order_parameter_by_trace(rho, e[:, 0], e[:, 1]) + gone


def _label(parts, shape, contexts, rates, seeds, recipe, extra) -> xr.Dataset:
    recorded = RECORDED | {name: ("1", _meaning(function)) for name, function in extra.items()}
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    fields = {name: joined[name].reshape(*shape, -1) for name in recorded}
    finite = np.isfinite(fields["cross_entropy"]) & np.isfinite(fields["logit_gap"]) & np.isfinite(fields["phi"])
    alive = np.logical_and.accumulate(finite, axis=-1)  # once diverged, always diverged
    diverged = np.where(alive.all(-1), -1, alive.argmin(-1))
    dims = ("context", "rate", "seed", "step")
    data = {}
    for name, (unit, meaning) in recorded.items():
        values = np.where(alive, fields[name], np.nan)
        if name in ("rank_correct", "readout_unchanged"):
            values = np.nan_to_num(values).astype("int32" if name == "rank_correct" else "int8")
        data[name] = (dims, values, {"units": unit, "long_name": meaning})
    data["diverged_step"] = (
        dims[:3],
        diverged.astype("int32"),
        {"units": "1", "long_name": "first non-finite step, or -1"},
    )
    if recipe.snapshots:
        n, d = joined["spectrum"].shape[1:]
        data["spectrum"] = (
            (*dims[:3], "snapshot", "component"),
            joined["spectrum"].reshape(*shape, n, d),
            {"units": "1"},
        )
        data["phi_trace"] = ((*dims[:3], "snapshot"), joined["phi_trace"].reshape(*shape, n), {"units": "1"})
    coords = {
        "context": [c.id for c in contexts],
        "seed": list(seeds),
        "step": np.arange(recipe.steps + 1),
        "learning_rate": (
            ("context", "rate"),
            rates if rates.ndim == 2 else rates.max(-1),
            {"units": "1", "long_name": f"learning rate of {recipe.optimizer}"},
        ),
        "correct": ("context", [c.context.correct for c in contexts]),
        "competitor": ("context", [c.context.competitor for c in contexts]),
    }
    if rates.ndim == 3:  # the last state has no update
        data["schedule"] = (dims[:2] + dims[3:], np.pad(rates, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan))
    if recipe.snapshots:
        coords["snapshot"] = list(recipe.snapshots)
    attrs = {f"recipe_{key}": value for key, value in asdict(recipe).items() if key != "snapshots"}
    return xr.Dataset(data, coords, attrs)


def _meaning(function: Callable) -> str:
    return (function.__doc__ or "").strip().partition("\n")[0]
