"""The models that are measured, with their contexts."""

from dataclasses import replace

import torch

from phantomlib.contexts import Context, Resolved, load_contexts, resolve
from phantomlib.dataset.rows import Row
from phantomlib.models import language_model
from phantomlib.models.language_model import LanguageModel

LARGE = {
    "llama-135m": (27, 576, 49_152),
    "llama-268m": (20, 640, 262_144),
}  # sizes and vocabularies of the fetched models


def load(name: str, device: str) -> LanguageModel:
    """A zoo model, or ``gpt2-small`` / ``gpt2-medium``: those sizes with random weights and the zoo's tokenizer.

    Those of ``LARGE``, and ``random:LAYERSxWIDTHxVOCABULARY``, have random weights and no tokenizer.
    """
    shape = LARGE.get(name) or (name.startswith("random:") and map(int, name.removeprefix("random:").split("x")))
    if shape:
        model = random_model(*shape)
        return replace(model, module=model.module.to(device))
    sizes = {"gpt2-small": (12, 12, 768), "gpt2-medium": (24, 16, 1024)}
    if name not in sizes:
        return language_model.load(f"zoo:{name}", device=device)
    from transformers import GPT2Config, GPT2LMHeadModel

    layers, heads, width = sizes[name]
    config = GPT2Config(n_layer=layers, n_head=heads, n_embd=width, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GPT2LMHeadModel._from_config(config, attn_implementation="eager")
    module = module.to(device).eval().requires_grad_(False)
    return LanguageModel(name, name, module, language_model.load("zoo:gpt2-s").tokenizer, f"random-{name}")


def random_model(layers: int, width: int, vocabulary: int) -> LanguageModel:
    """A Llama with random weights and no tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=8 * width // 3, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, vocab_size=vocabulary, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    return LanguageModel(
        "random", "random", module.eval().requires_grad_(False), None, f"{layers}-{width}-{vocabulary}"
    )


def contexts_of(model: LanguageModel) -> list:
    """The ten contexts; in random weights the two words are exchanged where the correct one leads."""
    found = [resolve(context, model.tokenizer) for context in load_contexts("default")]
    logits = language_model.next_token_logits(model, found)
    return [
        one if z[one.correct_id] < z[one.competitor_id] else replace(one, correct_id=one.competitor_id, competitor_id=one.correct_id)
        for one, z in zip(found, logits, strict=True)
    ]  # fmt: skip


def rows_of(model: LanguageModel, count: int = 64, length: int = 16) -> list[Row]:
    """Rows of random tokens, of which the loss sees the last."""
    ids = torch.randint(1, len(model.readout), (count, length), generator=torch.Generator().manual_seed(0))
    return [Row(number, tuple(row), (length - 1,)) for number, row in enumerate(ids.tolist(), 1)]


@torch.no_grad()
def first_context(model: LanguageModel) -> Resolved:
    """A prompt of ten tokens, whose competitor is the model's first choice and whose correct word its fifth."""
    ids = tuple((7 * n + 3) % len(model.readout) for n in range(10))
    logits = model.module(torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1).logits[0, -1]
    order = logits.topk(5).indices.tolist()
    return Resolved(Context("first", "ten tokens", "fifth", "first"), ids, order[4], order[0])
