"""Training as anybody would write it with ``torch.optim``: what the instruments are compared with."""

import copy

import torch
from scipy.special import rel_entr, softmax

from phantomlib.models.language_model import add_lora


def trained_copy(model, context, rate, recipe, steps, only=""):
    """The module after so many steps on one context; of LoRA's tensors, those whose name holds ``only`` are trained."""
    if recipe.method == "lora":
        module = add_lora(model.module, rank=recipe.rank, alpha=recipe.alpha, seed=0)
        parameters = [p for name, p in module.named_parameters() if "lora_" in name and only in name]
    else:
        module = copy.deepcopy(model.module).requires_grad_()
        parameters = list(module.parameters())
    options = {} if recipe.optimizer == "sgd" else {"eps": recipe.epsilon}
    update = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[recipe.optimizer](parameters, lr=rate, **options)
    c, k = context.correct_id, context.competitor_id
    for _ in range(steps):
        z = module(torch.tensor([context.prompt_ids])).logits[0, -1]
        loss = -z.log_softmax(0)[c]
        if recipe.loss == "margin":
            loss = loss + recipe.weight * torch.log(1 + torch.exp(z[k] - z[c]))
        update.zero_grad()
        loss.backward()
        update.step()
    return module


@torch.no_grad()
def divergence(before, after, ids) -> torch.Tensor:
    """KL divergence of the predictions after each token of a text from those of the module before, in nats; by scipy."""
    p, q = (softmax(module(torch.tensor([ids])).logits[0].double().numpy(), axis=1) for module in (before, after))
    return torch.from_numpy(rel_entr(p, q).sum(1))


@torch.no_grad()
def gap_of(module, context) -> float:
    """The logit gap Δ, in nats."""
    z = module(torch.tensor([context.prompt_ids])).logits[0, -1]
    return float(z[context.correct_id] - z[context.competitor_id])
