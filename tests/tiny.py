"""Tiny random models of every architecture, tiny tokenizers of every spacing habit; no file, no network."""

import functools

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from phantomlib.contexts import Context, Resolved
from phantomlib.models.language_model import LanguageModel, fingerprint

V = 41  # a prime, so that no dimension of a model can be mistaken for it

_SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
_ROPE = {"max_position_embeddings": 64, "num_key_value_heads": 2, "intermediate_size": 24}
_COMMON = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
_GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": V}
_NEOX = _COMMON | {"intermediate_size": 24, "max_position_embeddings": 64}
_OPT = _COMMON | {"ffn_dim": 24, "max_position_embeddings": 64}
_HEADS = _COMMON | _ROPE | {"head_dim": 8}  # wider than hidden_size / num_attention_heads
_CAPPED = {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "sliding_window": 4}
_GPT_NEO = {"vocab_size": V, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 64}

# architecture -> (configuration class, settings). Together: fused and split projections, learned, rotary and ALiBi
# positions, LayerNorm and RMSNorm before and after, norms inside attention, soft-capping, logit scaling, local windows.
ARCHITECTURES = {
    "GPT2": ("GPT2Config", _GPT2),
    "GPTNeoX": ("GPTNeoXConfig", _NEOX),
    "GPTNeoX-sequential": ("GPTNeoXConfig", _NEOX | {"use_parallel_residual": False}),
    "OPT": ("OPTConfig", _OPT | {"word_embed_proj_dim": 16}),
    "OPT-projected": ("OPTConfig", _OPT | {"word_embed_proj_dim": 8, "do_layer_norm_before": False}),
    "Llama": ("LlamaConfig", _COMMON | _ROPE),
    "Qwen2": ("Qwen2Config", _COMMON | _ROPE),
    "Qwen3": ("Qwen3Config", _HEADS),
    "Mistral": ("MistralConfig", _COMMON | _ROPE | {"sliding_window": 4}),
    "Phi": ("PhiConfig", _COMMON | _ROPE),
    "Phi3": ("Phi3Config", _COMMON | _ROPE),
    "Gemma": ("GemmaConfig", _HEADS),
    "Gemma2": ("Gemma2Config", _HEADS | _CAPPED),
    "GPTNeo": ("GPTNeoConfig", _GPT_NEO | {"attention_types": [[["global", "local"], 1]], "window_size": 4}),
    "Bloom": ("BloomConfig", {"vocab_size": V, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "Cohere": ("CohereConfig", _COMMON | _ROPE | {"logit_scale": 0.25, "use_qk_norm": True}),
}

# too much of it computes in float32 whatever the weights are for a comparison in float64
SINGLE_PRECISION = {"Gemma3": ("Gemma3TextConfig", _HEADS | {"sliding_window": 4})}
# positions turn faster from the sixth token on, for all tokens of a text
_LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [4.0, 9.0]}
_BY_LENGTH = {"original_max_position_embeddings": 5, "rope_scaling": _LONGROPE}
BY_LENGTH = {"Phi3-longrope": ("Phi3Config", _COMMON | _ROPE | _BY_LENGTH)}


@functools.cache
def model(
    architecture: str = "GPT2", dtype: str = "float64", tied: bool | None = None, device: str = "cpu"
) -> LanguageModel:
    """A tiny random model (d = 16, two layers, V = 41) with weights spread widely enough to have preferences.

    Treat it as read-only: it is shared between tests.
    """
    name, settings = (ARCHITECTURES | SINGLE_PRECISION | BY_LENGTH)[architecture]
    tie = {} if tied is None else {"tie_word_embeddings": tied}
    config = getattr(transformers, name)(**settings, **_SPECIAL, **tie, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p), alpha=0.15)
    module = module.to(device).eval().requires_grad_(False)
    return LanguageModel(f"tiny-{architecture}", architecture, module, None, fingerprint(module))


@torch.no_grad()
def contexts(model: LanguageModel, lengths=(7, 4), place: int = 5) -> list[Resolved]:
    """One context per prompt length: the competitor is the model's first choice, the correct token its ``place``-th.

    Every prompt starts with token 0, which is the padding token too: embeddings may refuse to train its row.
    """
    generator = torch.Generator().manual_seed(11)
    made = []
    for number, length in enumerate(lengths):
        ids = torch.randint(1, V, (length,), generator=generator)
        ids[0] = 0
        order = model.module(ids[None].to(model.device), use_cache=False).logits[0, -1].argsort(descending=True)
        words = Context(f"c{number}", f"prompt {number}", f"right{number}", f"wrong{number}")
        made.append(Resolved(words, tuple(ids.tolist()), int(order[place - 1]), int(order[0])))
    return made


TEXT = ("she felt deep shame", "she felt deep guilt", "he saw the large dog", "he saw the big dog") * 9


def _wrap(tokenizer: Tokenizer, **special) -> transformers.PreTrainedTokenizerFast:
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def leading(bos: bool = False, **options):
    """ByteLevel BPE, as in GPT-2: the space belongs to the piece that follows it."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXT, trainers.BpeTrainer(special_tokens=["<s>"], show_progress=False))
    if bos:
        t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return _wrap(t, bos_token="<s>", **options)


def bare():
    """Words without their spaces, and one piece for every unknown word."""
    t = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.train_from_iterator(TEXT, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return _wrap(t, unk_token="[UNK]")


def trailing():
    """The space belongs to the piece that precedes it; a word at the very end of a text falls apart into letters."""
    words = sorted({f"{w} " for line in TEXT for w in line.split()})
    letters = sorted(set("".join(words)))
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(letters + words))}
    merges = []
    for word in words:  # from the right, so that no word is a piece without its space
        for i in range(len(word) - 2, -1, -1):
            vocabulary.setdefault(word[i:], len(vocabulary))
            if (pair := (word[i], word[i + 1 :])) not in merges:
                merges.append(pair)
    merges.sort(key=lambda pair: len(pair[1]))
    t = Tokenizer(models.BPE(vocabulary, merges))
    t.pre_tokenizer = pre_tokenizers.Split(Regex(r"\S+ ?"), "isolated")
    t.decoder = decoders.Fuse()
    return _wrap(t)


def metaspace():
    """Metaspace BPE, as in Llama: a space is put before the whole text as well."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    t.decoder = decoders.Metaspace()
    t.train_from_iterator(TEXT, trainers.BpeTrainer(show_progress=False))
    return _wrap(t)


TOKENIZERS = {
    "leading": leading,
    "leading with BOS": lambda: leading(bos=True),
    "bare": bare,
    "trailing": trailing,
    "metaspace": metaspace,
}
