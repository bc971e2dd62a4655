"""Stacked replicas against the plain model, one at a time, for every architecture: logits and gradients, float64."""

import copy
import dataclasses
import re
from unittest.mock import patch

import pytest
import tiny
import torch
import transformers
from torch import nn

from phantomlib.engine.finetune import finetune, trainable
from phantomlib.engine.recipe import Recipe
from phantomlib.engine.replicas import multiply_out, squared_norms, stack
from phantomlib.errors import ModelError
from phantomlib.models.language_model import LanguageModel

# full fine-tuning; LoRA trains linear layers only and gets the batch axis everywhere
ENGINES = dict.fromkeys(tiny.ARCHITECTURES, "batch axis") | {"Cohere": "vmap"}
NO_VMAP = {"Bloom"}  # its activation is an autograd function that vmap refuses


def replicas(model, method: str, n: int):
    """The module and n different sets of values for its trainable tensors."""
    module, values = trainable(model, Recipe(method=method, rank=3), seed=0)
    noise = torch.Generator().manual_seed(1)
    drawn = [{k: torch.randn(v.shape, generator=noise, dtype=v.dtype) for k, v in values.items()} for _ in range(n)]
    return module, [{k: v + 0.05 * one[k].to(v.device) for k, v in values.items()} for one in drawn]


def batch(contexts, device, padding=0):
    prompts = [torch.tensor(c.prompt_ids, device=device) for c in contexts]
    ids = nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=padding)
    return ids, torch.tensor([len(prompt) - 1 for prompt in prompts], device=device)


def gradients(log_p, tensors):
    return torch.autograd.grad(log_p, tensors, allow_unused=True, materialize_grads=True)


def one_by_one(module, values, context):
    """Next-token logits and the gradient of log p(correct), from the untouched model with these values put in."""
    leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
    device = next(iter(leaves.values())).device
    ids = torch.tensor([context.prompt_ids], device=device)
    logits = torch.func.functional_call(module, leaves, (ids,), {"use_cache": False}).logits[0, -1]
    return logits.detach(), gradients(logits.log_softmax(-1)[context.correct_id], list(leaves.values()))


def compare(model, method, engine):
    contexts = tiny.contexts(model, lengths=(7, 4, 5))
    module, values = replicas(model, method, len(contexts))
    stacked = stack(module, values, engine)
    logits = stacked.logits(*batch(contexts, model.device))
    targets = torch.tensor([c.correct_id for c in contexts], device=model.device)
    ours = gradients(logits.log_softmax(-1).gather(1, targets[:, None]).sum(), list(stacked.parameters.values()))
    for r, context in enumerate(contexts):
        plain_logits, plain = one_by_one(module, values[r], context)
        assert torch.allclose(logits[r], plain_logits, rtol=0, atol=1e-9)
        assert all(torch.allclose(a[r], b, rtol=0, atol=1e-9) for a, b in zip(ours, plain, strict=True))
    assert any(g.abs().max() > 1e-3 for g in ours)
    return stacked.engine


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("tied, engine", [(True, "auto"), (False, "auto"), (None, "vmap")])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_replicas_equal_plain_models(architecture, tied, engine, method):
    if engine == "vmap" and architecture in NO_VMAP:
        return
    model = tiny.model(architecture, tied=tied)
    assert tied is None or model.tied == tied
    first = ENGINES[architecture] if method == "full" else "batch axis"
    assert compare(model, method, engine) == (first if engine == "auto" else engine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_replicas_equal_plain_models_on_a_gpu(architecture, method):
    compare(tiny.model(architecture, device="cuda"), method, "auto")


def test_architectures_that_compute_in_single_precision_get_the_batch_axis():
    for architecture in tiny.SINGLE_PRECISION:
        module, values = replicas(tiny.model(architecture, "float32"), "full", 2)
        assert stack(module, values).engine == "batch axis"  # after its self-test


@pytest.mark.parametrize("engine", ["batch axis", "vmap"])
@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "OPT", "Llama"])
def test_what_stands_in_the_padding_does_not_matter(architecture, engine):
    model = tiny.model(architecture)
    contexts = tiny.contexts(model, lengths=(9, 3))
    stacked = stack(*replicas(model, "full", 2), engine)
    one, other = (stacked.logits(*batch(contexts, "cpu", padding)) for padding in (0, 17))
    assert torch.allclose(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("engine", ["batch axis", "vmap"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_model_itself_is_left_alone(method, engine):
    model = tiny.model("Llama")
    module, values = replicas(model, method, 2)
    contexts = tiny.contexts(model)
    before = copy.deepcopy(module.state_dict())
    plain = module(torch.tensor([contexts[0].prompt_ids])).logits
    stacked = stack(module, values, engine)
    stacked.logits(*batch(contexts, "cpu")).sum().backward()
    with torch.no_grad():
        for p in stacked.parameters.values():
            p.mul_(3)
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert torch.equal(module(torch.tensor([contexts[0].prompt_ids])).logits, plain)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in module.modules())


class MixingRMSNorm(nn.Module):
    """Known by its name, but not elementwise in its weight: stacked weights would mix the replicas."""

    def __init__(self, norm):
        super().__init__()
        self.weight = norm.weight

    def forward(self, x):
        return x * self.weight.sum()


class Unheard(MixingRMSNorm):
    """Not known at all."""


def test_an_unknown_module_is_refused_where_the_batch_axis_was_asked_for():
    module = copy.deepcopy(tiny.model("Llama").module)
    module.model.norm = Unheard(module.model.norm)
    with pytest.raises(NotImplementedError, match="LlamaForCausalLM"):
        stack(module, [dict(module.named_parameters())], "batch axis")


def test_a_verdict_on_one_replica_is_none_on_several():
    module = copy.deepcopy(tiny.model("Llama").module)
    module.model.norm = MixingRMSNorm(module.model.norm)
    values = dict(module.named_parameters())
    with patch("phantomlib.engine.replicas.LARGE", 0):
        assert [stack(module, [values] * n).engine for n in (1, 2)] == ["batch axis", "vmap"]


class ByNumber(MixingRMSNorm):
    """Asks for a number, which vmap cannot give."""

    def forward(self, x):
        return x * self.weight * (2.0 if x.sum().item() else 1.0)


class ByReplica(MixingRMSNorm):
    """Right for the first replica and for tokens that are the same in all, as experts may be."""

    def forward(self, x):
        return x * self.weight + (x - x[:1])


RIGHT = {MixingRMSNorm: "vmap", Unheard: "vmap", ByNumber: "one by one", ByReplica: "vmap"}


@pytest.mark.parametrize("kind", RIGHT)
def test_a_module_gets_the_first_engine_that_is_right(kind):
    model = tiny.model("Llama")
    model = dataclasses.replace(model, module=copy.deepcopy(model.module))
    model.module.model.norm = kind(model.module.model.norm)
    assert compare(model, "full", "auto") == RIGHT[kind]
    assert compare(model, "lora", "auto") == ("vmap" if kind is ByReplica else "batch axis")  # it leaves the norm alone


def test_gradients_left_in_their_factors_are_an_error():
    """As they would be where a backward pass skips the hooks of tensors without a gradient."""
    model = tiny.model("GPT2")
    with (
        patch("torch.Tensor.register_post_accumulate_grad_hook"),
        patch("phantomlib.engine.optimizer.SMALL", 0),
        pytest.raises(ModelError, match=f"torch {re.escape(torch.__version__)} left the gradients of"),
    ):
        finetune(model, tiny.contexts(model), [0.1], Recipe(optimizer="sgd", steps=1), engine="batch axis")


def test_the_private_kernel_of_adam_takes_what_it_is_given():
    arguments = torch.ops.aten._fused_adam_.default._schema.arguments
    lists = ("self", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps")
    expected = dict.fromkeys(lists, "List[Tensor]") | dict.fromkeys(
        ("lr", "beta1", "beta2", "weight_decay", "eps"), "float"
    )
    expected |= dict.fromkeys(("amsgrad", "maximize"), "bool")
    assert [(a.name, str(a.type)) for a in arguments[:13]] == list(expected.items())
    assert all(a.has_default_value() for a in arguments[13:])


def test_a_strict_configuration_without_a_padding_token_is_left_as_it_is():
    config = transformers.ModernBertDecoderConfig(
        vocab_size=tiny.V, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        pad_token_id=0, bos_token_id=0, eos_token_id=0, cls_token_id=0, sep_token_id=0,
    )  # fmt: skip
    module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval().requires_grad_(False)
    compare(LanguageModel("strict", "strict", module, None, ""), "full", "auto")


@pytest.mark.parametrize("kinds", ["a", "i", "ai", "aai", "iia"], ids=str)
def test_products_give_norms_and_rows_of_the_gradient_they_stand_for(kinds):
    generator = torch.Generator().manual_seed(0)
    products, dense, ids = [], torch.zeros(2, 9, 5, dtype=torch.float64), torch.tensor([[1, 7, 1], [0, 8, 8]])
    for kind in kinds:  # factors, or row numbers, of which one may come twice
        a, b = (torch.randn(2, 3, n, generator=generator, dtype=torch.float64) for n in (9, 5))
        rows = a if kind == "a" else nn.functional.one_hot(ids, 9).double()
        dense += torch.einsum("rlm,rln->rmn", rows, b)
        products.append((a if kind == "a" else ids, b))
    torch.testing.assert_close(squared_norms(products), dense.square().sum((1, 2)))
    torch.testing.assert_close(multiply_out(products, torch.full_like(dense, torch.nan)), dense)
    for start, stop in ((0, 2), (1, 8), (8, 9)):
        part = multiply_out(products, torch.full((2, stop - start, 5), torch.nan, dtype=torch.float64), start)
        torch.testing.assert_close(part, dense[:, start:stop])
