"""Many independent copies of one model in one forward pass.

Replicas sit on the batch axis: row r of every batch is computed with replica r's own weights. Modules that hold
trainable weights are exchanged for ones that hold ``(R, ...)`` stacks and multiply batched; everything between them
(attention, activations, residuals) works row by row already and is left alone. All replicas share the frozen weights.

A model whose modules are not known here, or whose stacked copy does not reproduce the plain model, is run by
``torch.vmap`` instead, which is slower; and where that does not reproduce it either, the model itself runs for one
replica after the other.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
    """R replicas of a model.

    Attributes:
        parameters: trainable tensors (R, ...), by their name in the model; leaves with ``requires_grad``.
        logits: maps token ids (R, L), padded on the right, and the last position of each row (R,) to next-token logits
            (R, V). Causal attention makes the padding exact, unless :func:`padding_matters`.
        engine: one of ``ENGINES``.
        factors: where the matrices among ``parameters`` hand over the factors of their gradients, if somebody takes them.
    """

    parameters: dict[str, Tensor]
    logits: Callable[[Tensor, Tensor], Tensor]
    engine: str
    factors: "Factors"


class Factors:
    """Lets an optimiser have the gradient of a stacked matrix as products, instead of one more tensor of its size.

    Attributes:
        wanted: the weights whose gradients are left here; those of others go where autograd puts them.
        products: for a weight (R, m, n) what its gradient is the sum of: aᵀb for pairs of ``a`` (R, L, m) and ``b``
            (R, L, n), or with row numbers ``a`` (R, L), the rows ``b`` added there. Complete when the weight's
            post-accumulate hook is called.
    """

    def __init__(self):
        self.wanted, self.products = set(), defaultdict(list)


def stack(module: nn.Module, initial: list[dict[str, Tensor]], engine: str = "auto") -> Stack:
    """Stack R replicas of ``module``.

    Args:
        module: a causal language model; it is not changed.
        initial: for each replica the initial values of the trainable tensors by name. Names not listed stay frozen and
            shared.
        engine: one of ``ENGINES``, or ``auto``: the first of them that reproduces the plain model on a probe. One replica
            needs no vmap, nor the batch axis unless it is large.
    """
    parameters = {
        name: torch.stack([values[name] for values in initial]).detach().requires_grad_() for name in initial[0]
    }
    factors = Factors()
    tried: tuple[str, ...] = ENGINES if engine == "auto" else (engine,)
    if engine == "auto" and len(initial) == 1:
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
    names = list(values)
    leaves = [values[name].detach().requires_grad_() for name in names]
    own = dict(zip(names, leaves, strict=True))
    # of a copy: recurrent classes keep their last state in the module
    call = share_tensors(module), own, (ids[-1:, :5],), all_seen(module, ids[-1:, :5])
    plain = torch.func.functional_call(*call).logits[0, -1]
    try:
        logits = stacked.logits(ids, torch.full((replicas,), 4, device=device))[-1]
        ours = torch.autograd.grad(
            logits.log_softmax(-1)[0], [stacked.parameters[name] for name in names], allow_unused=True
        )
    except Exception:  # a module that does not work row by row, or not under vmap, fails in its own way
        return False
    oracle = torch.autograd.grad(plain.log_softmax(-1)[0], leaves, allow_unused=True)
    gradients = list(zip(ours, oracle, strict=True))
    pairs = [(logits, plain)] + [(a[-1], b) for a, b in gradients if a is not None and b is not None]
    same_use = all((a is None) == (b is None) for a, b in gradients)
    tolerance = 1e-3 if plain.dtype == torch.float32 else 1e-9
    return same_use and all((a - b).norm() <= tolerance * b.norm() + 1e-12 for a, b in pairs)


@torch.no_grad()
def padding_matters(module: CausalLM, lengths: Iterable[int]) -> bool:
    """Whether prompts of these lengths are read otherwise when padded to the longest: positions may depend on it."""
    longest, known = max(lengths), _padding.setdefault(module, {})
    device, vocabulary = next(module.parameters()).device, module.get_output_embeddings().weight.shape[0]
    ids = (torch.arange(longest, device=device)[None] * 7 + 3) % vocabulary
    for length in {*lengths} - {longest}:
        if (length, longest) not in known:
            padded, alone = (
                module(some, **all_seen(module, some)).logits[0, length - 1] for some in (ids, ids[:, :length])
            )
            tolerance = 1e-4 if alone.dtype == torch.float32 else 1e-6  # some classes compute norms in float32 anyway
            known[length, longest] = bool((padded - alone).norm() > tolerance * alone.norm())
    return any(known[length, longest] for length in {*lengths} - {longest})


def _one_by_one(module: CausalLM, parameters: dict[str, Tensor], factors: Factors) -> Callable:
    """The model's own forward pass for each replica, with its weights put in."""
    module = share_tensors(module)
    by_identity = {id(module.get_parameter(name)): stacked for name, stacked in parameters.items()}
    places = [
        (leaf._parameters, name, by_identity[id(p)])
        for leaf in module.modules()
        for name, p in leaf._parameters.items()
        if id(p) in by_identity
    ]
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


def _on_batch_axis(module: nn.Module, parameters: dict[str, Tensor], factors: Factors) -> Callable | None:
    """A forward pass over stacked weights, or None if some trainable module is not known here."""
    module = share_tensors(module)
    by_identity = {id(module.get_parameter(name)): stacked for name, stacked in parameters.items()}
    for path, leaf in list(module.named_modules()):
        own = {name: by_identity.get(id(p)) for name, p in leaf._parameters.items()}
        if not any(stacked is not None for stacked in own.values()):
            continue
        batched = _batched(leaf, own, factors)
        if batched is None:
            return None
        parent, _, name = path.rpartition(".")
        setattr(module.get_submodule(parent), name, batched)
    return _last_logits(module)


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
    if module.config.model_type in COUNT_PADDING:
        return {"use_cache": False}
    return {"attention_mask": torch.ones(ids.shape, dtype=torch.long, device=ids.device), "use_cache": False}


def _untrained_at(padding_idx: int, ids: Tensor, rows: Tensor) -> Tensor:
    """Embedded ``rows`` (..., d), without gradient where ``ids`` (...) are the padding token, as nn.Embedding does."""
    return torch.where((ids == padding_idx)[..., None], rows.detach(), rows)


def _batched(leaf: Any, own: dict[str, Any], factors: Factors) -> nn.Module | None:
    """The stacked version of one module with trainable tensors ``own`` (R, ...), or None if its kind is not known."""
    kind = type(leaf).__name__
    if own.get("weight") is None:
        return None  # a trainable bias beside a frozen weight
    if isinstance(leaf, nn.Linear) or kind == "Conv1D":  # the latter is a linear layer with the weight (in, out)
        return _Linear(own["weight"], own.get("bias"), leaf, factors, transposed=kind != "Conv1D")
    if type(leaf) is nn.Embedding or kind.endswith("ScaledWordEmbedding"):
        return _Embedding(own["weight"], factors, leaf.padding_idx, getattr(leaf, "embed_scale", None))
    if kind == "OPTLearnedPositionalEmbedding":
        return _OPTPositions(own["weight"], factors, leaf.offset)
    if isinstance(leaf, nn.LayerNorm):
        return _LayerNorm(own, leaf)
    if kind.endswith("RMSNorm"):
        return _Norm(own["weight"], leaf)
    return None


class _Linear(nn.Module):
    """y = x W + b for each replica; the stacked W is (R, in, out), or (R, out, in) if transposed; b is (R, out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None, leaf: nn.Module, factors: Factors, transposed: bool):
        super().__init__()
        self.stacked, self.factors, self.transposed = weight, factors, transposed
        self.stacked_bias = bias  # None: no bias, or a frozen one shared by all
        self.bias, self.weight = leaf.bias, leaf.weight  # adapters ask the weight for its dtype

    def forward(self, x: Tensor) -> Tensor:  # (R, L, in) -> (R, L, out); OPT gives (R L, in) and takes (R L, out)
        bias = self.bias if self.stacked_bias is None else self.stacked_bias[:, None]
        rows = x.reshape(len(self.stacked), -1, x.shape[-1])
        y = _Product.apply(rows, self.stacked, self.factors, self.transposed)
        return (y if bias is None else y + bias).view(*x.shape[:-1], -1)


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


class _Embedding(nn.Module):
    """Row lookup for each replica; weight (R, V, d). Some models scale the rows by a constant."""

    def __init__(self, weight: Tensor, factors: Factors, padding_idx: int | None = None, scale=None):
        super().__init__()
        self.stacked, self.factors, self.padding_idx = weight, factors, padding_idx
        self.scale = None if scale is None else torch.as_tensor(scale).to(weight)

    def forward(self, ids: Tensor) -> Tensor:  # (R or 1, L) -> (R, L, d)
        ids = ids.expand(len(self.stacked), -1)
        rows = _Rows.apply(self.stacked, ids, self.factors)
        rows = rows if self.padding_idx is None else _untrained_at(self.padding_idx, ids, rows)
        return rows if self.scale is None else rows * self.scale


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
    """Rows ``start`` and following of the gradient (R, m, n) that is the sum of these products, written to ``out``.

    For products see :class:`Factors`.
    """
    height, filled = out.shape[1], False
    for a, b in products:
        if a.dim() == 3:
            rows = a[:, :, start : start + height].mT  # (R, height, L)
            torch.bmm(rows, b, out=out) if not filled else out.baddbmm_(rows, b)
            filled = True
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


class _OPTPositions(_Embedding):
    """OPT's learned positions, which start at an offset."""

    def __init__(self, weight: Tensor, factors: Factors, offset: int):
        super().__init__(weight, factors)
        self.offset = offset

    def forward(self, attention_mask, past_key_values_length: int = 0, position_ids: Tensor | None = None) -> Tensor:
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) * attention_mask - 1).long()
        return super().forward(position_ids + self.offset)


class _LayerNorm(nn.Module):
    def __init__(self, own: dict[str, Any], leaf: nn.LayerNorm):
        super().__init__()
        self.shape, self.eps, self.own = leaf.normalized_shape, leaf.eps, own

    def forward(self, x: Tensor) -> Tensor:  # (R, ..., d), or (R L, d) from OPT
        y = F.layer_norm(x, self.shape, eps=self.eps).reshape(len(self.own["weight"]), -1, x.shape[-1])
        y = y * self.own["weight"][:, None]
        return (y if self.own.get("bias") is None else y + self.own["bias"][:, None]).view(x.shape)


class _Norm(nn.Module):
    """Any norm that uses its weight elementwise: the original code runs with a weight that broadcasts over replicas."""

    def __init__(self, weight: Tensor, leaf: nn.Module):
        super().__init__()
        self.stacked, self.leaf = weight, leaf
        del leaf.weight

    def forward(self, x: Tensor, *args) -> Tensor:
        # (R, d) -> (R, 1, ..., 1, d), to multiply x (R, ..., d)
        self.leaf.weight = self.stacked.view(len(self.stacked), *[1] * (x.dim() - 2), -1)
        return self.leaf(x, *args)
