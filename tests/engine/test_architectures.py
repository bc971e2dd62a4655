"""Every causal class of the pinned transformers, built small: advanced as torch.optim does it, or refused with a reason."""

import copy
import dataclasses
import re

import pytest
import tiny
import torch
import transformers
from plain import gap, gradient_norm, training
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ModelError
from phantomlib.models.language_model import LanguageModel, check_causal

SIZES = {  # what is given to the fields that configurations have under these names
    tiny.V: "vocab_size",
    64: "max_position_embeddings n_positions",
    48: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff dff n_inner",
    32: "hidden_size d_model n_embd embedding_size emb_dim word_embed_proj_dim attention_hidden_size",
    24: "moe_intermediate_size shared_expert_intermediate_size",
    8: "head_dim rotary_dim",
    4: "num_attention_heads num_key_value_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
    "num_experts num_local_experts n_routed_experts mamba_n_heads",
    2: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_experts_per_tok",
    0: "pad_token_id bos_token_id eos_token_id",
    True: "is_decoder",
}
SPECIAL = {
    "BambaForCausalLM": {"mamba_d_head": 16},
    "GraniteMoeHybridForCausalLM": {"mamba_d_head": 16},
    "GPTNeoForCausalLM": {"attention_types": [[["global", "local"], 1]]},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    # it hides the end of a prompt that holds its padding token
    "XLMWithLMHeadModel": {"pad_index": 39, "causal": True},
}
# what makes these small has names of its own, or must fit other fields
UNBUILT = {
    *("AXK1", "CohereCompass", "Dots1", "Gemma3n", "Gemma4", "Gemma4Assistant", "Gemma4UnifiedAssistant", "Lfm2Moe"),
    *("LongcatFlash", "Mamba2", "MiMoV2Flash", "Reformer", "Zamba", "Zamba2"),
}
REFUSED = {
    **dict.fromkeys(("CpmAnt", "ProphetNet", "XLNet"), "lets a token see those after it"),
    **dict.fromkeys(("Musicgen", "MusicgenMelody"), "has no readout"),  # a head for each of its codebooks
    "Xmod": "Input language unknown",
}
NO_LORA = ("DeepseekV4", "FalconH1", "FalconMamba", "Llama4", "Mamba", "NemotronH", "Phimoe")
LARGEST = 30_000_000  # numbers of a model that counts as small
CLASSES = {
    re.sub("ForCausalLM|ModelWithLMHead|LMHeadModel|WithLMHeadModel", "", name): name
    for name in sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()))
}


def built(kind) -> LanguageModel:
    config_class = kind.config_class
    if config_class.sub_configs:
        pytest.skip("its configuration is made of others: it reads more than text")
    fields = {field.name for field in dataclasses.fields(config_class)}
    sizes = {name: size for size, names in SIZES.items() for name in names.split() if name in fields}
    config = config_class(**sizes | SPECIAL.get(kind.__name__, {}))
    config._attn_implementation = "eager"
    with torch.device("meta"):
        count = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
    assert count < LARGEST
    torch.manual_seed(0)
    module = kind(config).eval().requires_grad_(False)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p), alpha=0.05)
    return LanguageModel(kind.__name__, kind.__name__, module, None, kind.__name__)


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in UNBUILT])
def test_every_causal_class_is_advanced_right_or_refused(name):
    model = built(getattr(transformers, CLASSES[name]))
    if name in REFUSED:
        with pytest.raises((ModelError, ValueError), match=REFUSED[name]):
            check_causal(model.module)
        return
    check_causal(model.module)
    contexts = tiny.contexts(model)
    for method in ("full", "lora"):
        recipe = Recipe(optimizer="sgd", method=method, steps=1, rank=2)
        if method == "lora" and name in NO_LORA:
            with pytest.raises(ModelError, match="LoRA cannot be put on"):
                finetune(model, contexts, [0.1], recipe)
            continue
        run = finetune(model, contexts, [0.1], recipe).isel(rate=0, seed=0)
        for n, context in enumerate(contexts):
            plain = [(gap(z, context), gradient_norm(one)) for one, z, _ in training(model, context, [0.1], recipe)]
            (before, norm), (after, _) = plain
            assert run.logit_gap.values[n] == pytest.approx([before, after], rel=1e-3, abs=1e-4)
            assert float(run.gradient_norm[n, 0]) == pytest.approx(norm, rel=1e-3) and norm > 0


def test_the_exceptions_are_classes_that_exist():
    assert CLASSES.keys() >= {*UNBUILT, *REFUSED, *NO_LORA}
