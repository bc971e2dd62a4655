"""Training as anybody would write it with ``torch.optim``: what the engine and the instruments are compared with."""

import copy

import torch
from scipy.special import rel_entr, softmax

from phantomlib.models.language_model import add_lora

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
LOSSES = {  # by their definitions, from logits (V,), the two ids and λ
    "cross-entropy": lambda z, c, k, weight: -z.log_softmax(0)[c],
    "margin": lambda z, c, k, weight: -z.log_softmax(0)[c] + weight * (1 + (z[k] - z[c]).exp()).log(),
    "unlikelihood": lambda z, c, k, weight: -z.log_softmax(0)[c] - weight * (1 - z.softmax(0)[k]).log(),
    "gap": lambda z, c, k, weight: weight * (1 + (z[k] - z[c]).exp()).log(),
}


def training(model, context, rates, recipe, *, seed=0, only=""):
    """Train a copy on one context at ``rates`` (T,): module, logits (V,) and loss before each update and after the last.

    The parameters hold the gradients of the loss. Of LoRA's tensors those whose name holds ``only`` are trained.
    """
    if recipe.method == "lora":
        module = add_lora(model.module, rank=recipe.rank, alpha=recipe.alpha, seed=seed)
        trained = [p for name, p in module.named_parameters() if "lora_" in name and only in name]
    else:
        module = copy.deepcopy(model.module).requires_grad_()
        trained = list(module.parameters())
    settings = {"betas": (recipe.beta1, recipe.beta2), "eps": recipe.epsilon, "weight_decay": recipe.weight_decay}
    update = OPTIMIZERS[recipe.optimizer](trained, lr=0.0, **({} if recipe.optimizer == "sgd" else settings))
    ids = torch.tensor([context.prompt_ids], device=model.device)
    for rate in [*rates, None]:
        z = module(ids, use_cache=False).logits[0, -1]
        loss = LOSSES[recipe.loss](z, context.correct_id, context.competitor_id, recipe.weight)
        update.zero_grad()
        loss.backward()
        yield module, z.detach(), float(loss.detach())
        if rate is not None:
            update.param_groups[0]["lr"] = rate
            update.step()


def trained_copy(model, context, rate, recipe, steps, only=""):
    """The module after so many steps on one context."""
    return [module for module, *_ in training(model, context, [rate] * steps, recipe, only=only)][-1]


def gradient_norm(module) -> float:
    return float(torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None]))


@torch.no_grad()
def divergence(before, after, ids) -> torch.Tensor:
    """KL divergence of the predictions after each token of a text from those of the module before, in nats; by scipy."""
    p, q = (softmax(module(torch.tensor([ids])).logits[0].double().numpy(), axis=1) for module in (before, after))
    return torch.from_numpy(rel_entr(p, q).sum(1))


def gap_of(module, context) -> float:
    """The logit gap Δ, in nats."""
    with torch.no_grad():
        return gap(module(torch.tensor([context.prompt_ids])).logits[0, -1], context)


def gap(z, context) -> float:
    return float(z[context.correct_id] - z[context.competitor_id])
