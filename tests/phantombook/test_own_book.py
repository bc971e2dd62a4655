"""A book for other models: its own folder, its own profile, the repository's book untouched."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from phantombook import build, own_book
from phantombook.cli import app
from phantombook.plan import make_jobs
from phantombook.project import load_profile, pages_to_generate
from phantomlib.errors import BookError, ContextError, ModelError, ParameterError
from phantomlib.models import zoo_models

ROOT = Path(__file__).parents[2]
PARAMETERS = """\
# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s"]
contexts: str = "default"
device: str = "cpu"
dtype: str = "float32"
store: str = "runs"
seed: int = 0
"""
CHAPTERS = {
    "01_toy": "",
    "10_blind_prediction": 'held_out: str = ""\n',
    "12_chart": "charted: list[str] = []\n",
    "13_real": 'published: str = "results"\n',
}


@pytest.fixture
def root(toy_book):
    """A repository with a chapter of each kind."""
    for name in ("benchmarks", "zoo"):
        (toy_book / name).mkdir()
    for name, more in CHAPTERS.items():
        (toy_book / f"notebooks/{name}.py").write_text(PARAMETERS + more)
    pages = "".join(f"  - file: book/generated/{name}\n" for name in CHAPTERS)
    (toy_book / "_toc.yml").write_text(f"format: jb-book\nroot: book/intro\nchapters:\n{pages}")
    (toy_book / "notebooks/profiles/zoo.yaml").write_text('common: {seed: 3}\n"10": {models: ["zoo:neox-s"]}')
    return toy_book


@pytest.fixture
def built(monkeypatch):
    """What would have been built: the arguments of :func:`phantombook.build.build_book`."""
    calls = []
    monkeypatch.setattr(
        own_book, "build_book", lambda *arguments: calls.append(arguments) or arguments[-1] / "index.html"
    )
    return calls


def test_a_folder_with_everything_a_book_needs(tmp_path, root, built):
    output = tmp_path / "mine"
    models = ["zoo:gpt2-m", "zoo:neox-m", "zoo:gpt2-s"]
    for _ in range(2):  # it can be made again
        index = own_book.build_own_book(models, held_out="zoo:llama-s", output=output, root=root, only="10", jobs=3)
    assert built == [("own", "10", 3, output)] * 2 and index.parent == output
    profile = yaml.safe_load((output / "notebooks/profiles/own.yaml").read_text())
    assert profile["common"]["models"] == models and profile["common"]["contexts"] == "fitting:default"
    assert profile["10"] == {"held_out": "zoo:llama-s"} and profile["12"] == {"charted": ["zoo:gpt2-s"]}
    note = (output / "book/intro.md").read_text()
    assert "`gpt2-m`" in note and note.count(":::{note}") == 1 and "`--held-out`" not in note
    plan = make_jobs(output, load_profile(output, "own"))  # every notebook takes what the profile gives
    assert [job.name for job in plan] == ["01_toy", "10_blind_prediction", "12_chart"]


def test_without_what_a_blind_prediction_needs_its_chapter_is_left_out(tmp_path, built):
    """On the real chapters: those about others are left out too, and no link leads to what is not there."""
    own_book.build_own_book(["zoo:gpt2-s", "zoo:neox-s"], held_out="zoo:llama-s", output=tmp_path, root=ROOT)
    for name in ("_toc.yml", "_config.yml", "book/intro.md", "notebooks/02_silent_failure.py", "benchmarks", "zoo"):
        assert (tmp_path / name).exists()
    assert not list(tmp_path.rglob("*.ipynb")) and not (tmp_path / "runs").exists()
    left, everything = set(pages_to_generate(tmp_path)), set(pages_to_generate(ROOT))
    about_others = {path.stem for path in (ROOT / "notebooks").glob("*.py") if "\npublished: " in path.read_text()}
    assert everything - left == about_others | {"10_blind_prediction"} and about_others
    for page in [*tmp_path.glob("book/*.md"), *(tmp_path / f"notebooks/{name}.py" for name in left)]:
        linked = re.findall(r"\]\((?:generated/)?(\d\d_\w+)\.ipynb", page.read_text())
        assert set(linked) <= left, page.name  # it would fail the build
    assert "The claim about blind prediction depends on" in (tmp_path / "book/verdicts.md").read_text()
    assert "`--held-out`" in (tmp_path / "book/intro.md").read_text()


def test_models_of_ones_own_need_no_held_out_one_for_the_other_chapters(tmp_path, root, built):
    models = [str(zoo_models.path(name)) for name in ("gpt2-s", "neox-s", "gpt2-m")]
    own_book.build_own_book(models, output=tmp_path / "mine", root=root)
    assert built and "10_blind_prediction" not in pages_to_generate(tmp_path / "mine")


def test_the_repository_itself_is_refused(root, built):
    with pytest.raises(ParameterError, match="repository itself"):
        own_book.build_own_book(["zoo:gpt2-s"], output=root, root=root)
    assert built == []


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["a text", "a copy of the repository", "a file"])
def test_what_others_made_is_not_touched(what, tmp_path, root, built):
    output = tmp_path / "theirs"
    if what == "a file":
        output.write_text("mine")
    elif what == "a text":
        output.mkdir()
        (output / "thesis.txt").write_text("mine")
    else:
        shutil.copytree(root, output, ignore=shutil.ignore_patterns("theirs"))
    before = files(tmp_path)
    with pytest.raises(ParameterError, match="theirs' holds something .* --output"):
        own_book.build_own_book(["zoo:gpt2-s"], output=output, root=root)
    assert files(tmp_path) == before and built == []


REFUSED = {
    "no such model": ({"models": ["zoo:gpt2-q"]}, ModelError, "gpt2-q"),
    "no such folder": ({"models": ["./nowhere"]}, ModelError, "nowhere"),
    "no such held-out model": ({"held_out": "zoo:llama-q"}, ModelError, "llama-q"),
    "no such contexts": ({"contexts": "nowhere.yaml"}, ContextError, "nowhere.yaml"),
    "contexts that are none": ({"contexts": str(ROOT / "_toc.yml")}, ContextError, "_toc.yml"),
    "no such device": ({"device": "abacus"}, ParameterError, "abacus"),
    "no such precision": ({"dtype": "float16"}, ParameterError, "float16"),
    "no such profile": ({"profile": "zooo"}, ParameterError, "zooo"),
    "no such notebook": ({"only": "77"}, ParameterError, "77"),
    "no jobs": ({"jobs": 0}, ParameterError, "jobs is 0"),
    "one model twice": ({"models": ["zoo:gpt2-s"] * 2}, ParameterError, "2 times"),
    "held out and not": ({"held_out": "zoo:gpt2-s"}, ParameterError, "is held out, so it cannot be among models"),
    "one name twice": ({"models": ["zoo:gpt2-s", "./gpt2-s"]}, ParameterError, "both be called 'gpt2-s'. Rename"),
    "one name held out": ({"held_out": "./gpt2-s"}, ParameterError, "both be called 'gpt2-s'. Rename"),
}


@pytest.mark.parametrize("options, kind, words", REFUSED.values(), ids=REFUSED)
def test_everything_is_checked_before_anything_is_touched(options, kind, words, tmp_path, root, built):
    (root / "gpt2-s").symlink_to(zoo_models.path("neox-s"), target_is_directory=True)
    first = {"models": ["zoo:gpt2-s"], "output": tmp_path / "mine", "root": root}
    own_book.build_own_book(**first)
    before = files(tmp_path)
    for output in (tmp_path / "mine", tmp_path / "new"):
        with pytest.raises(kind, match=words):
            own_book.build_own_book(**(first | options | {"output": output}))
    assert files(tmp_path) == before and not (tmp_path / "new").exists() and len(built) == 1


def test_a_contexts_file_that_is_missing_is_refused_once(tmp_path, root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.setattr(build, "run_jobs", None)  # no notebook is started
    command = ["book", "--models", "zoo:gpt2-s", "--contexts", "nowhere.yaml", "--output", "mine"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and result.stderr.count("nowhere.yaml") == 1 and not (root / "mine").exists()


def test_a_folder_that_cannot_be_written(tmp_path, root, built):
    (tmp_path / "file").touch()
    with pytest.raises(BookError, match="cannot be written .* --output"):
        own_book.build_own_book(["zoo:gpt2-s"], output=tmp_path / "file" / "mine", root=root)
    assert built == []
