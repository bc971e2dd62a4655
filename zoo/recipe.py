"""How the zoo's models are made: sizes, tokenizer, corpus, training, files. One recipe for all, none tuned by itself.

What differs between the two families is what differs between GPT-2 and GPT-NeoX themselves. GPT-2 style: tied
readout, learned positions, a fixed initialisation scale 0.02. NeoX style: untied readout, rotary positions, parallel
residual, initialisation scale sqrt(2 / (5 d)), the "small init" of GPT-NeoX-20B. The held-out Llama is tied, rotary,
gated, RMS-normed, scale 0.02.
"""

import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phantomlib.progress import quiet_transformers
from phantomlib.readout_geometry import coherence
from zoo.frames import PAIRS
from zoo.language import Language, join_words

END = "<|endoftext|>"
N_POSITIONS = 64


@dataclass(frozen=True)
class PretrainingRecipe:
    """Everything that determines a model's weights, up to rounding on another machine."""

    name: str
    family: str  # "gpt2", "gpt_neox" or "llama"
    width: int
    layers: int
    heads: int
    seed: int = 0  # initialisation and order of the rows
    mix: int = 0  # 0: the language's own interchangeabilities; otherwise the number of a reassignment
    sentences: int = 150_000
    corpus_seed: int = 1
    validation_sentences: int = 3_000
    validation_seed: int = 2
    rows: int = 64
    tokens_per_row: int = 32
    steps: int = 1_600
    learning_rate: float = 2e-3
    warmup: int = 100
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip: float = 1.0


RECIPES = {
    recipe.name: recipe
    for recipe in (
        PretrainingRecipe("gpt2-s", "gpt2", 96, 3, 3),
        PretrainingRecipe("gpt2-m", "gpt2", 128, 4, 4),
        PretrainingRecipe("gpt2-l", "gpt2", 192, 5, 6),
        PretrainingRecipe("neox-s", "gpt_neox", 96, 3, 3),
        PretrainingRecipe("neox-m", "gpt_neox", 144, 4, 3),
        PretrainingRecipe("llama-s", "llama", 96, 4, 3),
        PretrainingRecipe("llama-s-seed1", "llama", 96, 4, 3, seed=1),
        PretrainingRecipe("gpt2-s-seed1", "gpt2", 96, 3, 3, seed=1),
        PretrainingRecipe("gpt2-s-seed2", "gpt2", 96, 3, 3, seed=2),
        PretrainingRecipe("gpt2-s-mix1", "gpt2", 96, 3, 3, mix=1),
        PretrainingRecipe("gpt2-s-mix2", "gpt2", 96, 3, 3, mix=2),
    )
}


def interchangeability(mix: int) -> dict[str, float] | None:
    """The planted `s` of a mix: ten values evenly spread from 0.05 to 0.98, in an order drawn from the mix's number."""
    if mix == 0:
        return None
    values = np.random.default_rng(mix).permutation(np.linspace(0.05, 0.98, len(PAIRS)))
    return {pair.id: round(float(s), 4) for pair, s in zip(PAIRS, values, strict=True)}


def language(recipe: PretrainingRecipe) -> Language:
    return Language(interchangeability(recipe.mix))


def tokenizer():
    """The one tokenizer of all zoo models: byte-level BPE trained on the language; every word is a single token.

    Plain BPE keeps, beside the words, all 256 bytes and every piece that led to a word, none of which the language
    emits. A first zoo, with such a vocabulary, had a quarter of its readout rows dead: rows that are never a target
    drift together, and they made more than half of the bulk coherence (neox-s: B = 8.6, and 3.4 without them). So the
    training runs until each word is one token, and then only the words and the letters seen in the language stay: one
    row in twenty-five is dead. `ignore_merges` finds a word without its intermediate pieces. Other text falls back on
    letters, and what the language never shows on the end-of-text token: nothing is silently lost.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    sample = Language().sample(20_000, seed=RECIPES["gpt2-s"].corpus_seed)
    first = {words[0] for words in sample}  # without a leading space at the start of a row, with one inside
    surface = {",", ".", *first, *(" " + word for word in Language().words if word not in ",.")}
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = {pieces.pre_tokenize_str(word)[0][0] for word in surface}

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pieces
    trainer = trainers.BpeTrainer(vocab_size=6_000, special_tokens=[END], show_progress=False)
    trained.train_from_iterator([*map(join_words, sample), *sorted(surface)], trainer)
    by_rank = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    kept = [piece for piece, _ in by_rank if piece == END or len(piece) == 1 or piece in words]
    vocabulary = {piece: n for n, piece in enumerate(kept)}

    final = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True, unk_token=END))
    final.pre_tokenizer, final.decoder = pieces, decoders.ByteLevel()
    ends = dict(eos_token=END, pad_token=END, unk_token=END)
    return PreTrainedTokenizerFast(tokenizer_object=final, model_max_length=N_POSITIONS, **ends)


def build(recipe: PretrainingRecipe, vocabulary: int):
    """A freshly initialised model of the recipe's family and size; eager attention, no dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    d, layers, heads = recipe.width, recipe.layers, recipe.heads
    common: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None, "initializer_range": 0.02}
    if recipe.family == "gpt2":
        sizes = {"n_positions": N_POSITIONS, "n_embd": d, "n_layer": layers, "n_head": heads}
        own: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        own["activation_function"] = "gelu_pytorch_tanh"  # gelu_new, fused: the same function, a quarter faster
    else:
        sizes = {"hidden_size": d, "num_hidden_layers": layers, "num_attention_heads": heads}
        sizes["max_position_embeddings"] = N_POSITIONS
    if recipe.family == "gpt_neox":
        own = {"intermediate_size": 4 * d, "tie_word_embeddings": False, "initializer_range": math.sqrt(2 / (5 * d))}
    if recipe.family == "llama":
        own = {"intermediate_size": 8 * d // 3, "tie_word_embeddings": True}
        own |= {"num_key_value_heads": heads, "head_dim": d // heads}
    config = AutoConfig.for_model(recipe.family, vocab_size=vocabulary, **common | sizes | own)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def rows(sentences: list[list[str]], tok, length: int) -> np.ndarray:
    """(rows, length) token ids: consecutive sentences joined by a space, cut at `length` tokens.

    A row starts with a sentence's first word and no BOS, so a prompt at position 0 is what the model saw in training.
    """
    out, row, tokens = [], [], 0
    for words in sentences:
        row.append(join_words(words))
        tokens += len(words)  # one token per word
        if tokens >= length:
            out.append(" ".join(row))
            row, tokens = [], 0
    return np.array([ids[:length] for ids in tok(out)["input_ids"]])


def validation(recipe: PretrainingRecipe) -> tuple[list[list[str]], np.ndarray]:
    """Independent sentences of the language, and which of them (bool array) the training sentences do not contain.

    All of them together estimate the cross-entropy without bias; the unseen ones alone tell whether a model only
    remembers.
    """
    lang = language(recipe)
    known = {tuple(words) for words in lang.sample(recipe.sentences, recipe.corpus_seed)}
    drawn = lang.sample(recipe.validation_sentences, recipe.validation_seed)
    return drawn, np.array([tuple(words) not in known for words in drawn])


def sentence_losses(module, tok, sentences: list[list[str]], batch: int = 256) -> np.ndarray:
    """(n,) -log Q(sentence | first word) of a model, in nats: each later token is predicted, the full stop too."""
    import torch

    device = next(module.parameters()).device
    losses = np.zeros(len(sentences))
    ids = tok([join_words(words) for words in sentences])["input_ids"]
    with torch.no_grad():
        for length in sorted({len(i) for i in ids}):  # equal lengths together: no padding, no mask
            members = [n for n, i in enumerate(ids) if len(i) == length]
            for start in range(0, len(members), batch):
                chosen = members[start : start + batch]
                x = torch.tensor([ids[n] for n in chosen], device=device)
                log_p = module(input_ids=x, use_cache=False).logits[:, :-1].float().log_softmax(-1)
                losses[chosen] = -log_p.gather(-1, x[:, 1:, None])[..., 0].double().sum(1).cpu().numpy()
    return losses


def learning_rate(recipe: PretrainingRecipe, step: int) -> float:
    """Linear warm-up, then a cosine down to zero at the last step."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.5 * (1 + math.cos(math.pi * progress)))


def pretrain(recipe: PretrainingRecipe, folder: Path, device: str = "cpu", progress: bool = True) -> None:
    """Train the recipe's model; write weights (float16), config, tokenizer and report.json into `folder`.

    The report says how the model was made, and what :func:`measure_zoo_model` finds on the stored weights.
    """
    import torch
    import transformers
    from tqdm.auto import tqdm

    tok = tokenizer()
    data = torch.tensor(rows(language(recipe).sample(recipe.sentences, recipe.corpus_seed), tok, recipe.tokens_per_row))
    with torch.random.fork_rng(devices=[]):  # transformers initialises from the global generator: leave it as it was
        torch.manual_seed(recipe.seed)
        module = build(recipe, len(tok)).to(device).train()
    decay = [p for p in module.parameters() if p.ndim >= 2]
    rest = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe.learning_rate, betas=recipe.betas,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(recipe.seed)
    order = torch.randperm(len(data), generator=generator)
    at, losses, started = 0, [], time.perf_counter()
    watch = {0, *(s for s in (25, 50, 100, 200, 400, 800, 1200) if s < recipe.steps)}
    history = []
    bar = tqdm(
        range(recipe.steps), desc=recipe.name, unit="step", disable=not progress, file=sys.stderr, mininterval=1.0
    )
    for step in bar:
        if step in watch:
            history.append({"step": step, "B": coherence(module.get_output_embeddings().weight.detach())})
        if at + recipe.rows > len(data):
            order, at = torch.randperm(len(data), generator=generator), 0
        x = data[order[at : at + recipe.rows]].to(device)
        at += recipe.rows
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step)
        logits = module(input_ids=x, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizer.step()
        if step % 25 == 0 or step == recipe.steps - 1:  # reading the loss waits for the device
            losses.append({"step": step, "loss": float(loss.detach())})
            bar.set_postfix(loss=f"{losses[-1]['loss']:.3f}")
    seconds = time.perf_counter() - started

    module = module.cpu().half().eval()
    with quiet_transformers():
        module.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = "float32"  # so that a plain from_pretrained computes in float32
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").unlink(missing_ok=True)
    tok.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # written readable by its owner only

    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    report = {
        "name": recipe.name,
        "recipe": asdict(recipe),
        "interchangeability": language(recipe).interchangeability,
        "training_tokens": recipe.steps * recipe.rows * recipe.tokens_per_row,
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name(device) if str(device).startswith("cuda") else f"{device}, {threads}",
        "versions": {"python": platform.python_version()} | {m.__name__: m.__version__ for m in (torch, transformers)},
        "training_loss": losses,
    }
    report |= measure_zoo_model(recipe, folder)
    report["bulk_coherence"] = [*history, {"step": recipe.steps, "B": report.pop("B")}]
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def measure_zoo_model(recipe: PretrainingRecipe, folder: Path) -> dict:
    """What is true of a model on disk, computed in float32: size, cross-entropy beside the language's, coherence B.

    Cross-entropies are nats per token over every token after a sentence's first, the model's and the language's own on
    the same sentences; `unseen_...` restricts both to the sentences that the training sentences do not contain.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers():
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tok = AutoTokenizer.from_pretrained(folder)
    lang = language(recipe)
    sentences, unseen = validation(recipe)
    model_nats = sentence_losses(module, tok, sentences)
    true_nats = np.array([lang.log_prob(words[:1]) - lang.log_prob(words) for words in sentences])
    predicted = np.array([len(words) - 1 for words in sentences])  # one token per word
    return {
        "model_type": module.config.model_type,
        "n_parameters": module.num_parameters(),
        "n_embedding_rows": len(tok),
        "tied": bool(module.config.tie_word_embeddings),
        "initializer_range": module.config.initializer_range,
        "stored_dtype": "float16",
        "validation_sentences": len(sentences),
        "validation_tokens": int(predicted.sum()),
        "validation_cross_entropy": float(model_nats.sum() / predicted.sum()),
        "language_entropy": float(true_nats.sum() / predicted.sum()),
        "unseen_sentences": int(unseen.sum()),
        "unseen_cross_entropy": float(model_nats[unseen].sum() / predicted[unseen].sum()),
        "unseen_language_entropy": float(true_nats[unseen].sum() / predicted[unseen].sum()),
        "B": coherence(module.get_output_embeddings().weight.detach()),
    }
