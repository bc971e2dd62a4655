"""A whole book for other models, in a folder of its own: the same chapters, run on them.

The folder is a small project: copies of the pages and notebooks, a profile named ``own``, its own runs. So everything that
works in the repository works there too.
"""

import json
import os
import re
import shutil
from pathlib import Path

from phantomlib.book.build import GENERATED, build_book, load_profile
from phantomlib.book.jobs import find_root
from phantomlib.errors import BookError, ParameterError
from phantomlib.measure.models import find, short_name

PROFILE = "own"
COPIED = ("_toc.yml", "_config.yml", "book", "notebooks")
LONGEST_NAME = 60  # characters


def build_own_book(
    models: list[str],
    *,
    contexts: str = "default",
    held_out: str = "",
    device: str = "cpu",
    dtype: str = "float32",
    profile: str = "zoo",
    output: Path | None = None,
    only: str | None = None,
    jobs: int | None = None,
    root: Path | None = None,
) -> Path:
    """Make the book for ``models``.

    Args:
        models: references (``zoo:NAME``, ``pretrained:NAME``, absolute folders or GGUF files, hub ids).
        contexts: ``default`` or the absolute path of a contexts file. Those that do not fit a model are left out, and its
            pages say so.
        held_out: a further model, for the chapter on blind prediction; without it, or with one model only, that chapter is left out.
        device, dtype: where and in which precision.
        profile: whose learning rates and numbers of steps to take.
        output: the book's folder; ``books/NAMES`` in the repository if None.
        only, jobs, root: as in :func:`phantomlib.book.build.build_book`.

    Returns:
        the page to open.

    Raises:
        ParameterError, ModelError: a model is named twice or is not there; the folder holds something else.
        BookError: see :func:`phantomlib.book.build.build_book`.
    """
    root = root or find_root()
    for ref in [*models, *([held_out] if held_out else [])]:
        find(ref)
    for ref in models:
        if models.count(ref) > 1 or ref == held_out:
            raise ParameterError(f"The model '{ref}' is given twice; give each once, and a held-out one only as such.")
    base = load_profile(root, profile)
    names = [_name(ref) for ref in models]
    output = Path(os.path.abspath(output or root / "books" / "+".join(names)[:LONGEST_NAME]))
    _prepare(root, output)
    common = {
        "models": models,
        "contexts": contexts if contexts.startswith("fitting:") else f"fitting:{contexts}",
        "device": device,
        "dtype": dtype,
        "store": "runs",
        "seed": base.common.get("seed", 0),
    }
    own = {number: {k: v for k, v in values.items() if k != "models"} for number, values in base.own.items()}
    blind = bool(held_out) and len(models) > 1  # errors are calibrated on some models to predict another
    own.setdefault("07", {})["held_out"] = held_out
    own.setdefault("09", {})["charted"] = models[-1:]  # the boundary comes from the others
    text = json.dumps({"common": common} | own, indent=2, ensure_ascii=False)  # JSON is YAML, and quotes the numbers
    folder = output / "notebooks" / "profiles"
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / f"{PROFILE}.yaml").write_text(text, encoding="utf-8")
    if not blind:
        toc = output / "_toc.yml"
        lines = toc.read_text(encoding="utf-8").splitlines(keepends=True)
        toc.write_text("".join(line for line in lines if "/07_" not in line), encoding="utf-8")
    _say_which(output / "book" / "intro.md", names, contexts, blind)
    return build_book(PROFILE, only, jobs, output)


def _name(ref: str) -> str:
    return re.sub(r"[^\w.-]", "-", short_name(ref))


def _prepare(root: Path, output: Path) -> None:
    """Copy pages and notebooks; what was made from earlier copies stays."""
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / "_toc.yml").is_file())):
        raise ParameterError(f"'{output}' holds something that is no book; give another folder with --output.")
    if output == root:
        raise ParameterError(f"'{output}' is the repository itself; give another folder with --output.")
    try:
        for name in COPIED:
            source, target = root / name, output / name
            if source.is_dir():
                ignored = shutil.ignore_patterns(GENERATED.name, "__pycache__", "*.ipynb", ".ipynb_checkpoints")
                shutil.copytree(source, target, ignore=ignored, dirs_exist_ok=True)
            else:
                output.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    except OSError as error:
        raise BookError(
            f"'{output}' cannot be written ({error.strerror}). Give another folder with --output."
        ) from None


def _say_which(intro: Path, names: list[str], contexts: str, blind: bool) -> None:
    """Put a note below the title of the front page."""
    sentences = (
        "the ten sentences of the companion" if contexts == "default" else f"the sentences in `{Path(contexts).name}`"
    )
    title, _, rest = intro.read_text(encoding="utf-8").partition("\n")
    note = (
        f"This copy of the book was made for {', '.join(f'`{name}`' for name in names)} with {sentences}. Where its prose "
        "speaks of the zoo or of five architectures, it describes the original; the numbers, tables and figures are those "
        "of these models."
    )
    if not blind:
        note += " The chapter on blind prediction is left out: it needs a held-out model (`--held-out`) and two others."
    intro.write_text(f"{title}\n\n:::{{note}}\n{note}\n:::\n{rest}", encoding="utf-8")
