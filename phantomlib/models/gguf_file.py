"""Read a GGUF file: an ordinary transformers model with dequantised float32 weights, and its tokenizer."""

import io
import math
import mmap
import re
import struct
import tempfile
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phantomlib.errors import ModelError, shown
from phantomlib.models.checkpoint import check_counts, check_missing, check_size, refuse_unused

MAGIC, VERSIONS = b"GGUF", (2, 3)
# GGUF's numbers of its types: a letter of struct for each scalar, and the two others
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
ALIGNMENT = 32
# transformers' names of architectures that GGUF calls otherwise
RENAMED = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
# Settings that transformers does not read, and that the shapes of the weights or the tokenizer say again.
IMPLIED = re.compile(
    r"vocab_size|context_length|tensor_data_layout|.*feed_forward_length|attention\.(key|value)_length"
)
NEUTRAL = (0, 1, "none")  # no experts, a factor of one, no scaling
BOUNDS = ("sliding_window", "original_context_length")  # from which length on something else holds


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself: metadata (of lists the length), and type and shape of every tensor."""

    settings: dict[str, Any]
    types: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def is_gguf(path: Path) -> bool:
    """Whether the name says that this is a GGUF file, there or not."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def read_header(path: Path) -> Header:
    """The header of a GGUF file, read within the bounds of its bytes.

    The reader of the package ``gguf`` believes every length that it is told, and takes half a minute for a vocabulary of
    262,144. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.

    Raises:
        ModelError: unreadable, no GGUF file, one part of several, or not whole.
    """
    try:
        if not path.is_file():
            raise ModelError(f"{shown(str(path), 300)} is no file. Give the path of a GGUF file.")
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ModelError(
                    f"{shown(str(path), 300)} is no GGUF file, in spite of its name; it was perhaps not downloaded whole."
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header, needed = _parse(content)
    except (OSError, ValueError, struct.error, KeyError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelError(
            f"{shown(str(path), 300)} cannot be read ({shown(str(reason), 200)}): it is damaged, or was not downloaded whole."
        ) from None
    parts = header.settings.get("split.count", 1)
    if parts > 1:
        raise ModelError(
            f"{shown(str(path), 300)} is part {header.settings.get('split.no', 0) + 1} of {parts} of a model. Join the parts with "
            "llama.cpp's gguf-split --merge, and give the whole file."
        )
    if needed > (size := path.stat().st_size):
        raise ModelError(
            f"{shown(str(path), 300)} ends after {size:,} of {needed:,} bytes; it was not downloaded whole. Fetch it again."
        )
    return header


def _parse(content: mmap.mmap) -> tuple[Header, int]:
    """The header, and how long the file must be; struct.error where it ends too early."""
    from gguf import GGML_QUANT_SIZES

    at = len(MAGIC)

    def take(letter: str):
        nonlocal at
        value = struct.unpack_from(f"<{letter}", content, at)[0]
        at += struct.calcsize(f"<{letter}")
        return value

    def text() -> str:
        return take(f"{take('Q')}s").decode("utf-8")

    def value(kind: int):
        nonlocal at
        if kind == TEXT:
            return text()
        if kind != LIST:
            return take(SCALARS[kind])
        inner, length = take("I"), take("Q")
        if inner in SCALARS:
            at += length * struct.calcsize(f"<{SCALARS[inner]}")
        else:
            for _ in range(length):
                value(inner)
        return length

    if (version := take("I")) not in VERSIONS:
        raise ValueError(f"version {version} of the format is not one of {VERSIONS}")
    tensors, settings = take("Q"), {}
    for _ in range(take("Q")):
        name = text()
        settings[name] = value(take("I"))
    types, shapes, ends = {}, {}, [0]
    for _ in range(tensors):
        name = text()
        shapes[name] = tuple(reversed([take("Q") for _ in range(take("I"))]))
        types[name] = take("I")
        block, size = GGML_QUANT_SIZES[types[name]]
        ends.append(take("Q") + math.prod(shapes[name]) // block * size)
    alignment = settings.get("general.alignment", ALIGNMENT)
    return Header(settings, types, shapes), -(-at // alignment) * alignment + max(ends)


def storage(path: Path) -> dict[str, float]:
    """The formats in which a GGUF file holds its weights, such as ``Q4_1``: each with its share of them, the largest first."""
    from gguf import GGMLQuantizationType

    header, counts = read_header(path), Counter[str]()
    for name, kind in header.types.items():
        counts[GGMLQuantizationType(kind).name] += math.prod(header.shapes[name])
    return {name: count / counts.total() for name, count in counts.most_common()}


def read_gguf(path: Path, ref: str) -> tuple[Any, Any]:
    """The model of a GGUF file in float32 on the CPU, and its tokenizer.

    The file alone decides: what lies beside it is not looked at. Every weight is what the package ``gguf`` dequantises
    it to, apart from the order of rows and the offsets in which GGUF's conventions differ from transformers'.

    Raises:
        ModelError: not whole; more asked for than it holds; a tensor or a setting that would be left out.
        Exception: whatever transformers and ``gguf`` raise.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    header = read_header(path)
    check_counts(header.settings, header.shapes, ref)
    # an absolute name, because a file of the same name in the working folder would be taken for the weights, and
    # an empty folder, because an adapter or a tokenizer's configuration found there would be taken too
    with tempfile.TemporaryDirectory(prefix="phantom-") as empty, redirect_stderr(io.StringIO()):  # no bar in a page
        options: Any = {"gguf_file": str(path.resolve()), "trust_remote_code": False}
        config = AutoConfig.from_pretrained(empty, **options)
        check_size(config, header.shapes, ref)
        tokenizer = AutoTokenizer.from_pretrained(empty, **options)
        both: Any = AutoModelForCausalLM.from_pretrained(
            empty, config=config, dtype=torch.float32, output_loading_info=True, **options
        )
    loaded, report = both
    check_missing(report["missing_keys"], ref)
    if unused := _unused(loaded, header):
        refuse_unused(unused, ref)
    # transformers counts the loaded object as quantised and refuses to save it; an ordinary one takes its tensors over
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    config = type(loaded.config).from_dict(settings | {"architectures": [type(loaded).__name__]})
    config._attn_implementation = "eager"
    with init_empty_weights(include_buffers=False):
        module = type(loaded)(config)
    module.load_state_dict(loaded.state_dict(), assign=True)
    module.tie_weights()
    return module, tokenizer


def _unused(module, header: Header) -> set[str]:
    """Tensors and settings of the file that the model does not hold: transformers drops them without a word."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor, get_gguf_hf_weights_map

    found: set[str] = set()
    if sum(map(math.prod, header.shapes.values())) != sum(p.numel() for p in module.parameters()):
        known = get_gguf_hf_weights_map(module, TensorProcessor(config={}))
        found |= header.shapes.keys() - known.keys() or {"some of its tensors"}
    architecture = header.settings["general.architecture"]
    read: Any = GGUF_CONFIG_MAPPING[RENAMED.get(architecture, architecture)]
    rotated = {2 * b.shape[-1] for name, b in module.named_buffers() if name.endswith("inv_freq")}
    longest = header.settings.get(f"{architecture}.context_length", math.inf)
    for name, value in header.settings.items():
        prefix, _, setting = name.partition(".")
        if prefix != architecture or read.get(setting) or IMPLIED.fullmatch(setting):
            continue
        if value is not False and value in NEUTRAL or setting == "rope.dimension_count" and rotated == {value}:
            continue
        if setting.endswith(BOUNDS) and value >= longest:  # no text is that long
            continue
        found.add(f"{name} = {value}")
    return found
