"""Read a GGUF file: an ordinary transformers model with dequantised float32 weights, and its tokenizer."""

import io
import tempfile
from collections import Counter
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from phantomlib.errors import ModelError

MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Whether the name says that this is a GGUF file, there or not."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def check_header(path: Path) -> None:
    """Raise ModelError unless the file begins as a GGUF file does."""
    try:
        with open(path, "rb") as file:
            begins = file.read(len(MAGIC))
    except (OSError, ValueError) as error:  # ValueError: text that cannot be a path
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"'{path}' cannot be read ({reason}). Give the path of a GGUF file.") from None
    if begins != MAGIC:
        raise ModelError(f"'{path}' is no GGUF file, in spite of its name; it was perhaps not downloaded whole.")


def storage(path: Path) -> dict[str, float]:
    """The formats in which a GGUF file holds its weights, such as ``Q4_1``: each with its share of them, the largest first."""
    from gguf import GGUFReader

    counts: Counter[str] = Counter()
    for tensor in GGUFReader(path).tensors:
        counts[tensor.tensor_type.name] += int(tensor.n_elements)
    return {name: count / counts.total() for name, count in counts.most_common()}


def read_gguf(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """The model of a GGUF file in float32 on the CPU, its tokenizer, and what transformers says about the loading.

    The file alone decides: what lies beside it is not looked at. Every weight is what the package ``gguf`` dequantises
    it to, apart from the order of rows and the offsets in which GGUF's conventions differ from transformers'.
    Whatever transformers and ``gguf`` raise goes through.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # an absolute name, because a file of the same name in the working folder would be taken for the weights, and
    # an empty folder, because an adapter or a tokenizer's configuration found there would be taken too
    with tempfile.TemporaryDirectory(prefix="phantom-") as empty, redirect_stderr(io.StringIO()):  # no bar in a page
        options: Any = {"gguf_file": str(path.resolve()), "trust_remote_code": False}
        tokenizer = AutoTokenizer.from_pretrained(empty, **options)
        both: Any = AutoModelForCausalLM.from_pretrained(
            empty, dtype=torch.float32, output_loading_info=True, **options
        )
    loaded, report = both
    # transformers counts the loaded object as quantised and refuses to save it; an ordinary one takes its tensors over
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(loaded.config).from_dict(settings | {"architectures": [type(loaded).__name__]})
    config._attn_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        module = type(loaded)(config)
    module.load_state_dict(loaded.state_dict(), assign=True)
    module.tie_weights()
    return module, tokenizer, report
