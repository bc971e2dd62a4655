"""A whole book for other models, in a folder of its own: the same chapters, run on them.

The folder is a small project: copies of the pages and notebooks, a profile named ``own``, its own runs. So everything that
works in the repository works there too.
"""

import json
import os
import re
import shutil
from pathlib import Path

from phantombook.build import build_book, check_todo, choose
from phantombook.parameters import FITTING
from phantombook.plan import make_jobs
from phantombook.project import GENERATED, Profile, find_root, load_profile
from phantomlib.critical.blind import FEWEST_FITTED
from phantomlib.errors import BookError, ParameterError
from phantomlib.files import write_text
from phantomlib.models.language_model import short_name

PROFILE = "own"
MARKER = ".phantom-own-book"  # says that the folder is ours, and that its pages may be replaced
COPIED = ("_toc.yml", "_config.yml", "book", "notebooks", "benchmarks", "zoo")
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
    """Make the book for ``models``; ``only``, ``jobs``, ``root``, what is returned and BookError are those of ``build_book``.

    Args:
        models: references (``zoo:NAME``, ``pretrained:NAME``, absolute folders or GGUF files, hub ids).
        contexts: ``default`` or the absolute path of a contexts file. Those that do not fit a model are left out, and its
            pages say so.
        held_out: a further model, for the chapter on blind prediction; without it, or with fewer than three models, that
            chapter is left out.
        device, dtype: where and in which precision.
        profile: whose multiples of critical rates and numbers of steps to take.
        output: the book's folder, new, empty or made by this function before; ``books/NAMES`` in the repository if None.

    Raises:
        PhantomError: something given cannot be used, or the folder holds something else: before anything is touched.
    """
    root = root or find_root()
    base = load_profile(root, profile)
    common = {"models": models, "contexts": FITTING + contexts.removeprefix(FITTING), "device": device, "dtype": dtype}
    common |= {"store": "runs", "seed": base.common.get("seed", "0")}
    own = {number: {k: v for k, v in values.items() if k != "models"} for number, values in base.own.items()}
    own.setdefault("10", {})["held_out"] = held_out
    own.setdefault("12", {})["charted"] = models[-1:]  # the boundary comes from the others
    plan = make_jobs(root, Profile(PROFILE, common, own))
    choose(plan, root, only, 1 if jobs is None else jobs)
    names = [re.sub(r"[^\w.-]", "-", short_name(ref)) for ref in models]
    output = Path(os.path.abspath(output or root / "books" / "+".join(names)[:LONGEST_NAME]))
    if output == root:
        raise ParameterError(f"'{output}' is the repository itself; give another folder with --output.")
    if output.exists() and not (output / MARKER).is_file() and (not output.is_dir() or any(output.iterdir())):
        held = f"'{output}' holds something that 'phantom book --models' did not make (it has no {MARKER})"
        raise ParameterError(f"{held}; give another folder with --output.")
    check_todo([job for job in plan if job.all_parameters.get("held_out") != ""], root)
    blind = bool(held_out) and len(models) >= FEWEST_FITTED
    # chapters on published runs are about the companion's own real models, whose constants come from the zoo
    about_others = [job.name[:2] for job in plan if "published" in job.defaults]
    try:
        _copy_project(root, output)
        text = json.dumps({"common": common} | own, indent=2, ensure_ascii=False)  # JSON is YAML
        write_text(output / "notebooks" / "profiles" / f"{PROFILE}.yaml", text)
        for number in about_others if blind else [*about_others, "10"]:
            _leave_out(number, output)
        _say_which(output / "book" / "intro.md", names, contexts, blind)
    except OSError as error:
        reason = error.strerror or error
        raise BookError(f"'{output}' cannot be written ({reason}). Give another folder with --output.") from None
    return build_book(PROFILE, only, jobs, output)


def _copy_project(root: Path, output: Path) -> None:
    """Copy pages and notebooks, but no profile and no figures of speed; what was made from earlier copies stays."""
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / MARKER, "Made by 'phantom book --models', which replaces the pages and notebooks here.\n")
    ignored = shutil.ignore_patterns(GENERATED.name, "profiles", "results", "__pycache__", "*.ipynb", ".ipynb_*")
    for name in COPIED:
        if (root / name).is_dir():
            shutil.copytree(root / name, output / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(root / name, output / name)
    (output / "notebooks" / "profiles").mkdir(exist_ok=True)


def _leave_out(number: str, output: Path) -> None:
    """Take a chapter out of the contents, and what leads to it out of the other pages; their words stay."""
    contents = output / "_toc.yml"
    lines = contents.read_text(encoding="utf-8").splitlines(keepends=True)
    write_text(contents, "".join(line for line in lines if f"/{number}_" not in line))
    link = re.compile(rf"\[([^\]]+)\]\((?:generated/)?{number}_\w+\.ipynb(?:#[\w-]+)?\)")
    for page in [*output.glob("book/*.md"), *output.glob("notebooks/*.py")]:
        write_text(page, link.sub(r"\1", page.read_text(encoding="utf-8")))


def _say_which(intro: Path, names: list[str], contexts: str, blind: bool) -> None:
    """Put a note below the title of the front page."""
    sentences = "the ten of the companion" if contexts == "default" else f"those in `{Path(contexts).name}`"
    no_blind = "The chapter on blind prediction is left out: it needs a held-out model (`--held-out`) and three others."
    title, _, rest = intro.read_text(encoding="utf-8").partition("\n")
    note = f"""\
This copy of the book was made for {", ".join(f"`{name}`" for name in names)}; its sentences are {sentences}. Where its prose
speaks of the zoo or of five architectures, it describes the original; the numbers, tables and figures are those of these
models. What is about two real models in particular is left out, and what is said of them below holds for the original.
{"" if blind else no_blind}"""
    write_text(intro, f"{title}\n\n:::{{note}}\n{note}\n:::\n{rest}")
