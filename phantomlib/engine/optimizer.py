"""SGD, Adam and AdamW for replicas on the batch axis, applied inside the backward pass."""

import torch
from torch import Tensor

from phantomlib.engine.recipe import Recipe
from phantomlib.engine.replicas import Stack, add_rows, multiply_out, squared_norms
from phantomlib.errors import ModelError

IN_CACHE = 2**19  # numbers of a matrix that a CPU updates at a time: see the page on speed
PART = 2**18  # numbers of a matrix larger than that whose gradient is made and used up at a time
SMALL = 2**17  # numbers of a stack that is updated together with the other small ones


class BatchedOptimizer:
    """SGD, Adam or AdamW with one learning rate per replica, applied to a parameter as soon as its gradient is known.

    So no more than one parameter's gradient exists at a time. That of a matrix comes as factors, multiplied out for as many
    replicas as fit a cache, or for a few rows of a large one. Small parameters share one tensor, updated after the backward:
    starting an operation on each takes longer than the operation.
    """

    def __init__(self, stacked: Stack, rates: Tensor, recipe: Recipe):
        self.recipe, self.rates, self.steps = recipe, rates, 0  # rates (R,), or schedules (R, T)
        self.on_cpu = rates.device.type == "cpu"
        self.count = torch.zeros((), dtype=torch.float32, device=rates.device)  # of steps, as Adam's kernel reads it
        self.moments: dict[Tensor, tuple[Tensor, Tensor]] = {}
        self.factors = stacked.factors
        parameters = list(stacked.parameters.values())
        self.small = [p for p in parameters if p.numel() <= SMALL]
        large = [p for p in parameters if p.numel() > SMALL]
        self.together = [self._join(self.small)] if self.small else []  # (R, all numbers of the small ones)
        blocks = [self._block(p) * p[0].numel() for p in large + self.together]
        if self.on_cpu:
            blocks = [max(min(n, IN_CACHE), p.shape[-1]) for n, p in zip(blocks, large + self.together, strict=True)]
        self.gradient, self.change = parameters[0].new_empty((2, 0 if recipe.optimizer == "sgd" else max(blocks)))
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
        self.count += 1
        self.squared_norm = torch.zeros_like(self.rate)
        loss.sum().backward()  # replicas do not interact, so the gradient of the sum is each replica's own
        if left := len(self.factors.products):
            said = f"torch {torch.__version__} left the gradients of {left} matrices unused in its backward pass"
            raise ModelError(f"{said}. Install a newer torch, or use engine 'vmap'.")
        for joined in self.together:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.small]
            joined.grad = torch.cat([g.flatten(1) for g in gradients], 1)
            self._update(joined)
            for p in self.small:
                p.grad = None
        return self.squared_norm.sqrt()

    def _block(self, p: Tensor) -> int:
        """How many replicas of a parameter are updated at a time."""
        return len(p) if not self.on_cpu else min(len(p), max(1, IN_CACHE // p[0].numel()))

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
        """Update some replicas of a parameter, ``p`` (r, ...), from its gradient or else from the factors of that."""
        rates = rate.view(-1, *[1] * (p.dim() - 1))
        if gradient is None:  # |Σ aᵀb|² from L×L matrices
            squared_norm += squared_norms(factors)
        else:
            squared_norm += torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()
        if self.recipe.weight_decay:
            p.mul_(1 - rates * self.recipe.weight_decay)
        if self.recipe.optimizer == "sgd":
            if gradient is not None:
                p.addcmul_(gradient, rates, value=-1)
                return
            for a, b in factors:  # p - η aᵀb in one product: the gradient itself is never needed
                p.baddbmm_((a * -rates).mT, b) if a.dim() == 3 else add_rows(p, a, b * -rates)
        elif len(p) > 1 or not self.on_cpu:  # Adam's kernel knows one rate: it makes the step at rate 1, added times η
            if gradient is None:
                gradient = multiply_out(factors, self.gradient[: p.numel()].view_as(p))
            change = self.change[: p.numel()].view_as(p).zero_()
            fused_adam(change, gradient, moments, self.count, 1.0, self.recipe)
            p.addcmul_(change, rates)
        elif gradient is not None:  # one replica on a CPU, where to read its rate costs nothing
            fused_adam(p, gradient, moments, self.count, float(rate), self.recipe)
        else:  # a large matrix (1, m, n): the gradient of a few rows at a time
            height = max(1, PART // p.shape[2])
            for start in range(0, p.shape[1], height):
                here = slice(start, start + height)
                part, some = p[:, here], [m[:, here] for m in moments]
                gradient = multiply_out(factors, self.gradient[: part.numel()].view_as(part), start)
                fused_adam(part, gradient, some, self.count, float(rate), self.recipe)

    def close(self) -> None:
        self.factors.wanted.clear()
        for handle in self.handles:
            handle.remove()


def fused_adam(p: Tensor, gradient: Tensor, moments: list[Tensor], count: Tensor, rate: float, recipe: Recipe) -> None:
    """One step of Adam in place, by the private kernel that torch.optim.Adam(fused=True) calls."""
    torch._fused_adam_(
        [p], [gradient], moments[:1], moments[1:], [], [count], amsgrad=False, maximize=False,
        beta1=recipe.beta1, beta2=recipe.beta2, eps=recipe.epsilon, lr=rate, weight_decay=0.0,
    )  # fmt: skip
