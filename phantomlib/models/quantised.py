"""What quantisation makes of a model: its matrices rounded to blocks of 8 or 4 bits by the package ``gguf``."""

import copy

import numpy as np
import torch
from torch import nn

from phantomlib.errors import ModelError, ParameterError, shown
from phantomlib.models.language_model import LanguageModel

# Bits a weight, with those of a block's scale: GGUF rounds 32 weights of a row at a time.
BITS = {"Q8_0": 8.5, "Q5_1": 6.0, "Q5_0": 5.5, "Q4_1": 5.0, "Q4_0": 4.5}
BLOCK = 32


@torch.no_grad()
def quantised(model: LanguageModel, kind: str) -> LanguageModel:
    r"""A copy of a model with quantised and dequantised weights: what a GGUF file of this kind would give.

    In a block of 32 neighbours of a row, a weight w becomes :math:`a + s\,q` with a whole number q of 8, 5 or 4 bits; the
    scale s and, in kinds that end in 1, the offset a belong to the block and are half-precision numbers. Rounded are the
    linear layers, the token embedding and the readout, where the rows (the inputs of an output) are a multiple of 32 long;
    vectors and learned positions are kept. Files of llama.cpp do the same, but often keep the readout at 6 or 8 bits.

    Args:
        model: the checkpoint; it stays as it is.
        kind: one of ``BITS``.

    Returns:
        a model called ``NAME-KIND`` on the same device in the same precision, with a fingerprint of its own; tied weights
        stay tied. Its ``ref`` is that of the original, from which it can be made again.

    Raises:
        ParameterError: another kind.
        ModelError: no matrix has rows of a multiple of 32.
    """
    if kind not in BITS:
        raise ParameterError(f"Quantisation {shown(kind)} is not known; choose one of {', '.join(BITS)}.")
    module = copy.deepcopy(model.module)
    embedding, rounded = module.get_input_embeddings(), set()
    for layer in module.modules():
        transposed = type(layer).__name__ == "Conv1D"  # of transformers: a linear layer with the weight (in, out)
        if not (transposed or layer is embedding or isinstance(layer, nn.Linear)):
            continue
        rows = layer.weight.T if transposed else layer.weight
        if rows.shape[1] % BLOCK == 0 and id(layer.weight) not in rounded:
            rows.copy_(torch.from_numpy(_round_trip(rows.float().cpu().numpy(), kind)))
            rounded.add(id(layer.weight))  # a tied readout is the embedding itself
    if not rounded:
        raise ModelError(
            f"'{model.name}' has no matrix whose rows are a multiple of {BLOCK} long, so {kind} would leave it as it is; "
            "choose a wider model."
        )
    return LanguageModel(f"{model.name}-{kind}", model.ref, module, model.tokenizer, revision=model.revision)


def _round_trip(rows: np.ndarray, kind: str) -> np.ndarray:
    """Rows (n, m), float32, quantised and dequantised."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    how = GGMLQuantizationType[kind]
    return dequantize(quantize(np.ascontiguousarray(rows), how), how)
