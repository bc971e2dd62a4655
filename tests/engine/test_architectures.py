"""Every causal class of the pinned transformers, built small: advanced as torch.optim does it, or refused with a reason."""

import copy
import dataclasses

import pytest
import tiny
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel, _check_causal, add_lora

pytestmark = pytest.mark.slow
SIZES = {  # value -> the names that configurations have for such a size
    tiny.V: ("vocab_size",),
    64: ("max_position_embeddings", "n_positions"),
    48: ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "dff", "n_inner"),
    32: (
        "hidden_size",
        "d_model",
        "n_embd",
        "embedding_size",
        "emb_dim",
        "word_embed_proj_dim",
        "attention_hidden_size",
    ),
    24: ("moe_intermediate_size", "shared_expert_intermediate_size"),
    8: ("head_dim", "rotary_dim"),
    4: ("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
    + ("decoder_attention_heads", "num_experts", "num_local_experts", "n_routed_experts", "mamba_n_heads"),
    2: (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "encoder_layers",
        "decoder_layers",
        "num_experts_per_tok",
    ),
    0: ("pad_token_id", "bos_token_id", "eos_token_id"),
    True: ("is_decoder",),
}
SPECIAL = {
    "BambaForCausalLM": {"mamba_d_head": 16},
    "GraniteMoeHybridForCausalLM": {"mamba_d_head": 16},
    "Mamba2ForCausalLM": {"head_dim": 16},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
}
LARGEST = 4_000_000  # numbers of a model that counts as small
CLASSES = {
    kind.__name__: (config, kind)
    for config, kinds in MODEL_FOR_CAUSAL_LM_MAPPING.items()
    for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
}


def built(config_class, kind) -> LanguageModel:
    fields = {field.name for field in dataclasses.fields(config_class)}
    config = config_class(
        **{name: size for size, names in SIZES.items() for name in names if name in fields}
        | SPECIAL.get(kind.__name__, {})
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        count = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    assert count < LARGEST, f"{count} numbers"
    torch.manual_seed(0)
    module = kind(config).eval().requires_grad_(False)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    return LanguageModel(kind.__name__, kind.__name__, module, None, kind.__name__)


@pytest.mark.parametrize("name", CLASSES)
def test_every_causal_class_is_advanced_right_or_refused(name):
    model = built(*CLASSES[name])
    _check_causal(model.module, name)
    contexts = tiny.contexts(model)
    for method in ("full", "lora"):
        recipe = Recipe(optimizer="sgd", method=method, steps=1, rank=2)
        run = finetune(model, contexts, [0.1], recipe)
        print("RESULT", name, method, run.attrs["engine"], run.attrs["equal_lengths_only"])
        for n, context in enumerate(contexts):
            gaps, norm = plain_step(model, context, method)
            assert run.logit_gap.values[n, 0, 0] == pytest.approx(gaps, rel=1e-3, abs=1e-4)
            assert float(run.gradient_norm[n, 0, 0, 0]) == pytest.approx(norm, rel=1e-3)
            assert norm > 0


def plain_step(model, context, method):
    """Logit gaps before and after one step of torch.optim.SGD, and the norm of the gradient."""
    module = (
        add_lora(model.module, rank=2, alpha=16.0, seed=0)
        if method == "lora"
        else copy.deepcopy(model.module).requires_grad_()
    )
    trained = [p for p in module.parameters() if p.requires_grad]
    step, gaps = torch.optim.SGD(trained, lr=0.1), []
    for _ in range(2):
        z = module(torch.tensor([context.prompt_ids]), use_cache=False).logits[0, -1]
        gaps.append(float(z[context.correct_id] - z[context.competitor_id]))
        if len(gaps) == 1:
            (-z.log_softmax(0)[context.correct_id]).backward()
            step.step()
    return gaps, float(torch.cat([p.grad.flatten() for p in trained if p.grad is not None]).norm())
