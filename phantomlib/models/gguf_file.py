"""Read a GGUF file: an ordinary transformers model with dequantised float32 weights, and its tokenizer."""

import hashlib
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
from typing import Any, cast

import torch

from phantomlib.errors import Unfit, shown
from phantomlib.files import check_regular
from phantomlib.models.checkpoint import check_counts, check_size, check_used
from phantomlib.models.tokenizer_trial import try_tokenizer

MAGIC, VERSIONS = b"GGUF", (2, 3)
# GGUF's numbers of its types: a letter of struct for each scalar, and the two others
SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
ALIGNMENT = 32
# transformers' names of architectures that GGUF calls otherwise
RENAMED = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2"}
# Settings that transformers does not read, and that the shapes of the weights or the tokenizer say again.
IMPLIED = re.compile(r"vocab_size|tensor_data_layout|(context|.*feed_forward|attention\.(key|value))_length")
NEUTRAL = (0, 1, "none")  # no experts, a factor of one, no scaling
BOUNDS = ("sliding_window", "original_context_length")  # from which length on something else holds


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself: metadata, and type and shape of every tensor."""

    tokenizer: str  # a hash of all that the metadata say of it
    settings: dict[str, Any]  # of lists the length
    types: dict[str, int]
    shapes: dict[str, tuple[int, ...]]


def is_gguf(path: Path) -> bool:
    """Whether the name says that this is a GGUF file, there or not."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def read_header(path: Path) -> Header:
    """The header of a GGUF file, read within the bounds of its bytes; Unfit if it is none, one part of several, or not whole.

    The reader of the package ``gguf`` believes every length that it is told, and takes half a minute for a vocabulary of
    262,144. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
    """
    check_regular(path)
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise Unfit("is no GGUF file, in spite of its name; it was perhaps not downloaded whole.")
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                header, needed = _parse(content)
        except (ValueError, struct.error, KeyError, RecursionError) as error:
            reason = shown(str(error), 200)
            raise Unfit(f"cannot be read ({reason}): it is damaged, or was not downloaded whole.") from None
    if (parts := header.settings.get("split.count", 1)) > 1:
        said = f"is part {header.settings.get('split.no', 0) + 1} of {parts} of a model"
        raise Unfit(f"{said}. Join them with llama.cpp's gguf-split --merge, and give the whole file.")
    if needed > (size := path.stat().st_size):
        raise Unfit(f"ends after {size:,} of {needed:,} bytes; it was not downloaded whole. Fetch it again.")
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
    tokenizer = hashlib.sha256()
    for _ in range(take("Q")):
        start, name = at, text()
        settings[name] = value(take("I"))
        if name.startswith("tokenizer."):
            tokenizer.update(content[start:at])
    types, shapes, ends = {}, {}, [0]
    for _ in range(tensors):
        name = text()
        shapes[name] = tuple(reversed([take("Q") for _ in range(take("I"))]))
        types[name] = take("I")
        block, size = GGML_QUANT_SIZES[types[name]]
        ends.append(take("Q") + math.prod(shapes[name]) // block * size)
    alignment = settings.get("general.alignment", ALIGNMENT)
    return Header(tokenizer.hexdigest(), settings, types, shapes), -(-at // alignment) * alignment + max(ends)


def storage(path: Path) -> dict[str, float]:
    """The formats in which a GGUF file holds its weights, such as ``Q4_1``: each with its share of them, the largest first."""
    from gguf import GGMLQuantizationType

    header, counts = read_header(path), Counter[str]()
    for name, kind in header.types.items():
        counts[GGMLQuantizationType(kind).name] += math.prod(header.shapes[name])
    return {name: count / counts.total() for name, count in counts.most_common()}


def read_gguf(path: Path, stranger: bool) -> tuple[Any, Any]:
    """The model of a GGUF file in float32 on the CPU, and its tokenizer; a stranger's is tried first.

    Every weight is what the package ``gguf`` dequantises it to, apart from the order of rows and the offsets in which
    GGUF's conventions differ from transformers'.

    Raises:
        Unfit: not whole; more asked for than it holds; a tokenizer that fails; a tensor or a setting that would be left out.
        Exception: whatever transformers and ``gguf`` raise.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    header = read_header(path)
    check_counts(header.settings.items(), header.shapes)
    # An absolute name and an empty folder: a file of the same name in the working folder would be taken for the weights,
    # and an adapter or a tokenizer's configuration beside it would be taken too.
    with tempfile.TemporaryDirectory(prefix="phantom-") as empty, redirect_stderr(io.StringIO()):  # no bar in a page
        options: Any = {"gguf_file": str(path.resolve()), "trust_remote_code": False}
        config = AutoConfig.from_pretrained(empty, **options)
        check_size(config, header.shapes)
        if stranger:
            try_tokenizer((config.model_type, header.tokenizer), Path(empty), path.resolve())
        tokenizer = AutoTokenizer.from_pretrained(empty, **options)
        options |= {"attn_implementation": "eager", "output_loading_info": True, "dtype": torch.float32}
        module, report = cast(Any, AutoModelForCausalLM.from_pretrained(empty, config=config, **options))
    check_used(report["missing_keys"], _unused(module, header))
    # its weights are ordinary numbers by now, but transformers would refuse to save what it counts as quantised
    module.hf_quantizer, module.is_quantized, module._weight_conversions = None, False, None
    del module.config.quantization_config
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
        used = prefix != architecture or read.get(setting) or IMPLIED.fullmatch(setting)
        neutral = value is not False and value in NEUTRAL or setting == "rope.dimension_count" and rotated == {value}
        beyond = setting.endswith(BOUNDS) and value >= longest  # no text is that long
        if not (used or neutral or beyond):
            found.add(f"{name} = {value}")
    return found
