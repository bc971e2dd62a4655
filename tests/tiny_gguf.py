"""A tiny random Llama as a GGUF file, and as wheels that hold one; written with the package ``gguf``."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
import tiny
import torch
import transformers

WIDTH, HEADS, KEY_HEADS = 32, 4, 2  # GGUF quantises rows in blocks of 32
LAYERS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama(tied: bool, vocabulary: int) -> transformers.LlamaForCausalLM:
    sizes = {
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_HEADS,
        "num_hidden_layers": 2,
    }
    sizes |= {"vocab_size": vocabulary, "intermediate_size": 64, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=tied, attn_implementation="eager")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        module = transformers.LlamaForCausalLM(config)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p), alpha=0.2)
    return module.eval()


def names(module) -> dict[str, str]:
    """transformers' name of every tensor -> GGUF's."""
    found = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    for i in range(module.config.num_hidden_layers):
        found |= {f"model.layers.{i}.{ours}.weight": f"blk.{i}.{theirs}.weight" for ours, theirs in LAYERS.items()}
    if not module.config.tie_word_embeddings:
        found["lm_head.weight"] = "output.weight"
    return found


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in GGUF's order: the two halves of each rotated pair side by side."""
    order = np.arange(len(rows)).reshape(heads, 2, -1)
    return rows[order.transpose(0, 2, 1).ravel()]


def write(path: Path, kind="Q8_0", tied=True, *, without="", architecture="llama", tensors=None, settings=None) -> dict:
    """Write the model, quantised.

    Args:
        kind: a GGML type; vectors stay float32, as in the files that people share.
        without: a GGUF tensor, or ``tokenizer``, to be left out.
        tensors: further ones, in float32, by name.
        settings: further or other ones, by the name of the writer's method, with its arguments.

    Returns:
        transformers' name -> (the original weights, what ``gguf`` itself dequantises the file's to), both in GGUF's order.
    """
    tokenizer = tiny.leading(bos=True)
    pieces = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    module = llama(tied, len(pieces["vocab"]))
    writer = gguf.GGUFWriter(path, architecture)
    usual = {
        "block_count": module.config.num_hidden_layers,
        "context_length": 64,
        "embedding_length": WIDTH,
        "feed_forward_length": 64,
        "head_count": HEADS,
        "head_count_kv": KEY_HEADS,
        "rope_dimension_count": WIDTH // HEADS,
        "vocab_size": len(pieces["vocab"]),
    }
    for setting, value in (usual | (settings or {})).items():
        getattr(writer, f"add_{setting}")(*(value if isinstance(value, tuple) else (value,)))
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    if without != "tokenizer":
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(sorted(pieces["vocab"], key=pieces["vocab"].get))
        writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(pieces["vocab"]) - 1))
        writer.add_token_merges([" ".join(pair) for pair in pieces["merges"]])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
    quantised, state, found = gguf.GGMLQuantizationType[kind], module.state_dict(), {}
    for ours, theirs in names(module).items():
        weights = state[ours].numpy()
        if ".attn_q." in theirs or ".attn_k." in theirs:
            weights = interleave(weights, HEADS if ".attn_q." in theirs else KEY_HEADS)
        here = quantised if weights.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(weights, here)
        if theirs != without:
            writer.add_tensor(theirs, packed, raw_dtype=here)
        found[ours] = weights, gguf.quants.dequantize(packed, here)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """A wheel NAME 1.0.0 that holds these files in its package."""
    module = name.replace("-", "_")
    info = f"{module}-1.0.0.dist-info"
    path = folder / f"{module}-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            archive.writestr(f"{module}/data/{file}", content)
        # as of the real one: installed with its dependencies, it would want a compiler
        about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\nRequires-Dist: no-such-package-anywhere\n"
        archive.writestr(f"{info}/METADATA", about)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path
