"""Many independent copies of one model in one forward pass.

Replicas sit on the batch axis: row r of every batch is computed with replica r's own weights. Modules with trainable
weights compute with stacks of them, ``(R, ...)``; everything between them (attention, activations, residuals) works row
by row already and is left alone. All replicas share the frozen weights. A model whose modules are not known here, or whose
stacked copy does not reproduce the plain model, is run by ``torch.vmap``, which is slower; else one replica after the other.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from phantomlib.models.language_model import CausalLM, share_tensors

ENGINES = ("batch axis", "vmap", "one by one")  # each is right where those before it are not
COUNT_PADDING = ("xlm", "flaubert")  # kinds that tell a text's length by its padding, or else by a mask
LARGE = 2**23  # numbers of a replica from which on the memory that its gradients take decides its speed
_verdicts: dict[tuple, bool] = {}  # of the self-test, by what it depends on
_padding: WeakKeyDictionary = WeakKeyDictionary()  # module -> whether padding matters, by both lengths


@dataclass(frozen=True)
class Stack:
    """R replicas of a model; ``logits`` are exact for causal attention, unless :func:`padding_matters`."""

    # trainable tensors (R, ...), by their name in the model; leaves with ``requires_grad``
    parameters: dict[str, Tensor]
    logits: Callable[[Tensor, Tensor], Tensor]  # of ids (R, L), padded on the right, and last positions (R,): (R, V)
    engine: str  # one of ``ENGINES``
    factors: "Factors"  # where the matrices hand over the factors of their gradients, if somebody takes them


class Factors:
    """Lets an optimiser have the gradient of a stacked matrix as products, instead of one more tensor of its size."""

    def __init__(self):
        # weights whose gradients are left here; those of others go where autograd puts them
        self.wanted: set[Tensor] = set()
        # for a weight (R, m, n) what its gradient is the sum of: aᵀb for pairs of a (R, L, m) and b (R, L, n), or with row
        # numbers a (R, L), the rows b added there; complete when the weight's post-accumulate hook is called
        self.products: dict[Tensor, list] = defaultdict(list)


def stack(module: nn.Module, initial: list[dict[str, Tensor]], engine: str = "auto") -> Stack:
    """Stack R replicas of a causal language model, which is not changed.

    ``initial`` are for each replica the initial values of the trainable tensors by name; others stay frozen and shared.
    ``engine`` is one of ``ENGINES``, or ``auto``: the first of them that reproduces the plain model on a probe.
    """
    stacks = {name: torch.stack([values[name] for values in initial]) for name in initial[0]}
    parameters, factors = {name: p.detach().requires_grad_() for name, p in stacks.items()}, Factors()
    tried: tuple[str, ...] = ENGINES if engine == "auto" else (engine,)
    if engine == "auto" and len(initial) == 1:  # needs no vmap, nor the batch axis unless it is large
        large = sum(p.numel() for p in parameters.values()) >= LARGE
        tried = ("batch axis", "one by one") if large else ("one by one",)
    for name in tried:
        make = {"batch axis": _on_batch_axis, "vmap": _by_vmap, "one by one": _one_by_one}[name]
        forward = make(module, parameters, factors)
        if forward is not None:
            stacked = Stack(parameters, forward, name, factors)
            if name == tried[-1] or _tested(stacked, module, initial[-1]):
                return stacked
    raise NotImplementedError(f"no stacked version of every trainable module of {type(module).__name__}")


def _tested(stacked: Stack, module: CausalLM, values: dict[str, Tensor]) -> bool:
    """:func:`_agrees`, asked once in a process for each architecture, set of trainable tensors and engine."""
    kinds = tuple((name, type(leaf)) for name, leaf in module.named_modules())
    some = next(iter(stacked.parameters.values()))
    several = len(some) > 1  # one alone cannot be mixed with others
    key = (stacked.engine, several, kinds, tuple(values), module.config.to_json_string(), some.dtype, some.device)
    if key not in _verdicts:
        _verdicts[key] = _agrees(stacked, module, values)
    return _verdicts[key]


def _agrees(stacked: Stack, module: CausalLM, values: dict[str, Tensor]) -> bool:
    """Whether the last replica, with these ``values``, gives the plain model's logits and gradients on a short probe."""
    replicas = len(next(iter(stacked.parameters.values())))
    device = next(module.parameters()).device
    vocabulary = module.get_output_embeddings().weight.shape[0]
    # other tokens for each replica: experts that route them otherwise must not mix them
    ids = (torch.arange(6, device=device) * 7 + 3 + 5 * torch.arange(replicas, device=device)[:, None]) % vocabulary
    leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
    # of a copy: recurrent classes keep their last state in the module
    call = share_tensors(module), leaves, (ids[-1:, :5],), all_seen(module, ids[-1:, :5])
    plain = torch.func.functional_call(*call).logits[0, -1]
    oracle = _gradients(plain, leaves.values())
    try:
        logits = stacked.logits(ids, torch.full((replicas,), 4, device=device))[-1]
        ours = _gradients(logits, [stacked.parameters[name] for name in leaves])
    except Exception:  # a module that does not work row by row, or not under vmap, fails in its own way
        return False
    pairs = [(logits, plain), *((a[-1], b) for a, b in zip(ours, oracle, strict=True))]
    tolerance = 1e-3 if plain.dtype == torch.float32 else 1e-9
    return all((a - b).norm() <= tolerance * b.norm() + 1e-12 for a, b in pairs)


def _gradients(logits: Tensor, leaves: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(logits.log_softmax(-1)[0], list(leaves), materialize_grads=True)


@torch.no_grad()
def padding_matters(module: CausalLM, lengths: Iterable[int]) -> bool:
    """Whether prompts of these lengths are read otherwise when padded to the longest: positions may depend on it."""
    longest, known = max(lengths), _padding.setdefault(module, {})
    device, vocabulary = next(module.parameters()).device, module.get_output_embeddings().weight.shape[0]
    ids = (torch.arange(longest, device=device)[None] * 7 + 3) % vocabulary
    pairs = {(length, longest) for length in lengths if length < longest}
    for length, _ in pairs - known.keys():
        texts = ids, ids[:, :length]
        padded, alone = (module(text, **all_seen(module, text)).logits[0, length - 1] for text in texts)
        tolerance = 1e-4 if alone.dtype == torch.float32 else 1e-6  # some classes compute norms in float32 anyway
        known[length, longest] = bool((padded - alone).norm() > tolerance * alone.norm())
    return any(known[pair] for pair in pairs)


def _one_by_one(module: CausalLM, parameters: dict[str, Tensor], factors: Factors) -> Callable:
    """The model's own forward pass for each replica, with its weights put in."""
    module = share_tensors(module)
    places = [(leaf._parameters, name, p) for leaf, own in _owners(module, parameters) for name, p in own.items()]
    forward = _last_logits(module)

    def logits(ids: Tensor, last: Tensor) -> Tensor:
        # of one replica a view: the gradients of several are stacked, which takes memory
        weights = [p.unbind() if len(p) > 1 else (p.squeeze(0),) for _, _, p in places]
        rows = []
        for r in range(len(ids)):
            for (own, name, _), each in zip(places, weights, strict=True):
                own[name] = cast(nn.Parameter, each[r])
            rows.append(forward(ids[r : r + 1], last[r : r + 1]))  # (1, V)
        return torch.cat(rows)

    return logits


def _by_vmap(module: nn.Module, parameters: dict[str, Tensor], factors: Factors) -> Callable:
    module = share_tensors(module)
    for leaf in module.modules():
        # vmap heeds padding_idx for the first replica only
        if isinstance(leaf, nn.Embedding) and leaf.padding_idx is not None:
            leaf.register_forward_hook(lambda _, args, rows, idx=leaf.padding_idx: _untrained_at(idx, args[0], rows))

    def one(values: dict[str, Tensor], ids: Tensor, last: Tensor) -> Tensor:
        logits = torch.func.functional_call(module, values, (ids[None],), all_seen(module, ids[None])).logits[0]
        return logits.index_select(0, last[None])[0]

    return lambda ids, last: torch.vmap(one)(parameters, ids, last)


def _on_batch_axis(module: CausalLM, parameters: dict[str, Tensor], factors: Factors) -> Callable | None:
    """A forward pass over stacked weights, or None if some trainable module is not known here."""
    module = share_tensors(module)
    known = all(_batch(leaf, own, factors) for leaf, own in _owners(module, parameters))
    return _last_logits(module) if known else None


def _owners(module: CausalLM, parameters: dict[str, Tensor]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """Every module with trainable tensors of its own, and the stacks of these by the name that they have there."""
    stacks = {id(module.get_parameter(name)): p for name, p in parameters.items()}
    for leaf in module.modules():
        if own := {name: stacks[id(p)] for name, p in leaf._parameters.items() if id(p) in stacks}:
            yield leaf, own


def _batch(leaf: Any, own: dict[str, Tensor], factors: Factors) -> bool:
    """Let a module compute with its stacked tensors ``own`` (R, ...); False if its kind is not known."""
    # What it is given must not refer to the module itself: such a cycle would keep the weights after the run.
    kind, weight = type(leaf).__name__, own.get("weight")
    if weight is None:
        return False  # a trainable bias beside a frozen weight
    if isinstance(leaf, nn.Linear) or kind == "Conv1D":  # the latter is a linear layer with the weight (in, out)
        leaf.forward = partial(_linear, weight, own.get("bias"), leaf.bias, factors, kind != "Conv1D")
    elif type(leaf) is nn.Embedding or kind.endswith("ScaledWordEmbedding"):
        scale = torch.as_tensor(leaf.embed_scale).to(weight) if hasattr(leaf, "embed_scale") else None
        leaf.forward = partial(_embed, weight, factors, leaf.padding_idx, scale)
    elif kind == "OPTLearnedPositionalEmbedding":
        leaf.forward = partial(_opt_positions, weight, factors, leaf.offset)
    elif isinstance(leaf, nn.LayerNorm):
        forward = partial(_layer_norm, weight, own.get("bias"), leaf.normalized_shape, leaf.eps)
        leaf.forward = forward  # type: ignore[method-assign]
    elif kind.endswith("RMSNorm"):  # any that uses its weight elementwise: the original code runs
        del leaf.weight
        leaf.register_forward_pre_hook(partial(_spread, weight))
    else:
        return False
    return True


def _linear(weight, own_bias, shared_bias, factors, transposed: bool, x: Tensor) -> Tensor:
    """y = x W + b: x (R, L, in) -> (R, L, out), or (R L, in) -> (R L, out) from OPT; W (R, in, out), or transposed."""
    bias = shared_bias if own_bias is None else own_bias[:, None]
    y = _Product.apply(x.reshape(len(weight), -1, x.shape[-1]), weight, factors, transposed)
    return (y if bias is None else y + bias).view(*x.shape[:-1], -1)


def _embed(weight: Tensor, factors: Factors, padding_idx: int | None, scale: Tensor | None, ids: Tensor) -> Tensor:
    """Rows of W (R, V, d) for ids (R or 1, L), times a constant in some models: (R, L, d)."""
    ids = ids.expand(len(weight), -1)
    rows = _Rows.apply(weight, ids, factors)
    rows = rows if padding_idx is None else _untrained_at(padding_idx, ids, rows)
    return rows if scale is None else rows * scale


def _opt_positions(weight, factors, offset: int, attention_mask, past_key_values_length=0, position_ids=None) -> Tensor:
    if position_ids is None:
        position_ids = (attention_mask.cumsum(1) * attention_mask - 1).long()
    return _embed(weight, factors, None, None, position_ids + offset)


def _layer_norm(weight: Tensor, bias: Tensor | None, shape, eps: float, x: Tensor) -> Tensor:
    """x (R, ..., d), or (R L, d) from OPT; the weight and the bias are (R, d)."""
    y = F.layer_norm(x, shape, eps=eps).reshape(len(weight), -1, x.shape[-1]) * weight[:, None]
    return (y if bias is None else y + bias[:, None]).view(x.shape)


def _spread(weight: Tensor, leaf: Any, args: tuple) -> None:
    """Before the module's own forward pass: (R, d) -> (R, 1, ..., 1, d), to multiply x (R, ..., d)."""
    leaf.weight = weight.view(len(weight), *[1] * (args[0].dim() - 2), -1)


def _last_logits(module: CausalLM) -> Callable:
    """The forward pass, with a hook that lets the readout see only the position asked for of each row."""
    rows: dict[str, Tensor] = {}

    def keep_last(_, args):  # (R, L, d) -> (R, 1, d)
        hidden = args[0]
        return (hidden[torch.arange(len(hidden), device=hidden.device), rows["last"]][:, None],)

    module.get_output_embeddings().register_forward_pre_hook(keep_last)

    def logits(ids: Tensor, last: Tensor) -> Tensor:
        rows["last"] = last
        found = module(ids, **all_seen(module, ids)).logits
        # some classes multiply with the readout's weight without calling it: then all positions are there
        return found[:, 0] if found.shape[1] == 1 else found[torch.arange(len(ids), device=ids.device), last]

    return logits


def all_seen(module: CausalLM, ids: Tensor) -> dict[str, Any]:
    """What to call ``module`` with beside ``ids`` (R, L): a mask that hides no token, so that it need not ask the device."""
    mask = {} if module.config.model_type in COUNT_PADDING else {"attention_mask": torch.ones_like(ids)}
    return {"use_cache": False} | mask


def _untrained_at(padding_idx: int, ids: Tensor, rows: Tensor) -> Tensor:
    """Embedded ``rows`` (..., d), without gradient where ``ids`` (...) are the padding token, as nn.Embedding does."""
    return torch.where((ids == padding_idx)[..., None], rows.detach(), rows)


class _Product(torch.autograd.Function):
    """x W, or x Wᵀ if transposed; hands over the gradient of W as its two factors if they are asked for."""

    @staticmethod
    def forward(ctx, x, stacked, factors, transposed):
        ctx.save_for_backward(x, stacked)
        ctx.factors, ctx.transposed = factors, transposed
        return torch.bmm(x, stacked.mT if transposed else stacked)

    @staticmethod
    def backward(ctx, gradient):
        x, stacked = ctx.saved_tensors
        a, b = (gradient, x) if ctx.transposed else (x, gradient)
        for_x = torch.bmm(gradient, stacked if ctx.transposed else stacked.mT) if ctx.needs_input_grad[0] else None
        if stacked not in ctx.factors.wanted:
            return for_x, torch.bmm(a.mT, b), None, None
        ctx.factors.products[stacked].append((a, b))
        return for_x, None, None, None


class _Rows(torch.autograd.Function):
    """Rows of a stacked matrix; hands over the row numbers and their gradients if they are asked for."""

    @staticmethod
    def forward(ctx, stacked, ids, factors):
        ctx.save_for_backward(stacked, ids)
        ctx.factors = factors
        return stacked[torch.arange(len(ids), device=ids.device)[:, None], ids]

    @staticmethod
    def backward(ctx, gradient):
        stacked, ids = ctx.saved_tensors
        if stacked not in ctx.factors.wanted:
            return add_rows(torch.zeros_like(stacked), ids, gradient), None, None
        ctx.factors.products[stacked].append((ids, gradient))
        return None, None, None


def add_rows(matrix: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """Add ``rows`` (R, L, d) to the rows ``ids`` (R, L) of ``matrix`` (R, V, d), in place; returns it."""
    return matrix.index_put_((torch.arange(len(ids), device=ids.device)[:, None], ids), rows, accumulate=True)


def multiply_out(products: list[tuple[Tensor, Tensor]], out: Tensor, start: int = 0) -> Tensor:
    """Rows ``start`` and following of the gradient (R, m, n) that :class:`Factors` holds as products, written to ``out``."""
    height, filled = out.shape[1], 0
    for a, b in products:
        if a.dim() == 3:
            out.baddbmm_(a[:, :, start : start + height].mT, b, beta=filled)  # the first product overwrites
            filled = 1
    if not filled:
        out.zero_()
    for ids, rows in products:
        if ids.dim() == 2:
            ids = ids - start
            inside = (ids >= 0) & (ids < height)  # the others add zero, which needs no answer from a device
            add_rows(out, ids.clamp(0, height - 1), torch.where(inside[..., None], rows, 0.0))
    return out


def squared_norms(products: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Squared Euclidean norms (R,) of the gradients that are the sums of these products, from L×L matrices."""
    total = products[0][1].new_zeros(len(products[0][1]))
    for n, (a, b) in enumerate(products):
        for other, (c, d) in enumerate(products[: n + 1]):
            if a.dim() == c.dim() == 3:
                left = a @ c.mT
            elif a.dim() == c.dim():
                left = a[:, :, None] == c[:, None]
            elif a.dim() == 3:
                left = torch.take_along_dim(a, c[:, None], 2)
            else:
                left = torch.take_along_dim(c, a[:, None], 2).mT
            total = total + (left * (b @ d.mT)).sum((1, 2)) * (1 if other == n else 2)
    return total.clamp_min(0)
