"""A book for other models: its own folder, its own profile, the repository's book untouched."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from phantombook import build, own_book
from phantombook.cli import app
from phantombook.plan import make_plan
from phantombook.project import load_profile, pages_to_generate
from phantomlib.errors import BookError, ContextError, ModelError, ParameterError
from phantomlib.models import zoo_models

ROOT = Path(__file__).parents[2]


@pytest.fixture
def built(monkeypatch):
    """What would have been built: the arguments of :func:`phantombook.build.build_book`."""
    calls = []
    monkeypatch.setattr(
        own_book, "build_book", lambda *arguments: calls.append(arguments) or arguments[-1] / "index.html"
    )
    return calls


def test_a_folder_with_everything_a_book_needs(tmp_path, built):
    output = tmp_path / "mine"
    index = own_book.build_own_book(
        ["zoo:gpt2-m", "zoo:neox-m", "zoo:gpt2-s"], held_out="zoo:llama-s", output=output, root=ROOT, only="10", jobs=3
    )
    assert built == [("own", "10", 3, output)] and index.parent == output
    for name in ("_toc.yml", "_config.yml", "book/intro.md", "notebooks/02_silent_failure.py"):
        assert (output / name).is_file()
    assert not list(output.rglob("*.ipynb")) and not (output / "runs").exists()
    profile = yaml.safe_load((output / "notebooks/profiles/own.yaml").read_text())
    assert (
        profile["common"]["models"] == ["zoo:gpt2-m", "zoo:neox-m", "zoo:gpt2-s"]
        and profile["common"]["contexts"] == "fitting:default"
    )
    assert profile["10"]["held_out"] == "zoo:llama-s"
    assert all("models" not in values for number, values in profile.items() if number != "common")
    assert "`gpt2-m`" in (output / "book/intro.md").read_text()
    plan = make_plan(output, load_profile(output, "own"))  # every notebook takes what the profile gives
    left_out = set(pages_to_generate(ROOT)) - {job.name for job in plan}
    about_others = {path.stem for path in (ROOT / "notebooks").glob("*.py") if "\npublished: " in path.read_text()}
    assert left_out == about_others != set()  # they are about other models


@pytest.mark.parametrize(
    "models, held_out",
    [(["zoo:gpt2-s", "zoo:neox-s"], "zoo:llama-s"), (["zoo:gpt2-s", "zoo:neox-s", "zoo:gpt2-m"], "")],
)
def test_without_what_a_blind_prediction_needs_its_chapter_is_left_out(models, held_out, tmp_path, built):
    own_book.build_own_book(models, held_out=held_out, output=tmp_path, root=ROOT)
    left = [job.name for job in make_plan(tmp_path, load_profile(tmp_path, "own"))]
    assert "08_dimensionless_numbers" in left and "10_blind_prediction" not in left
    for page in [*tmp_path.glob("book/*.md"), *(tmp_path / f"notebooks/{name}.py" for name in left)]:
        linked = re.findall(r"\]\((?:generated/)?(\d\d_\w+)\.ipynb", page.read_text())
        assert set(linked) <= set(left), page.name  # a link to a chapter that is not there would fail the build
    assert "For the claim about blind prediction the order" in (tmp_path / "book/verdicts.md").read_text()
    assert "is left out" in (tmp_path / "book/intro.md").read_text()


def test_a_model_of_ones_own_needs_no_held_out_one_for_the_other_chapters(tmp_path, built):
    own_book.build_own_book(
        [str(zoo_models.path("gpt2-s")), str(zoo_models.path("neox-s"))], output=tmp_path, root=ROOT
    )
    assert built and "10_blind_prediction" not in pages_to_generate(tmp_path)


def test_it_can_be_made_again(tmp_path, built):
    for _ in range(2):
        own_book.build_own_book(["zoo:gpt2-s"], output=tmp_path / "mine", root=ROOT)
    assert (tmp_path / "mine/book/intro.md").read_text().count(":::{note}") == 1


def test_what_is_refused(tmp_path, built):
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("mine")
    with pytest.raises(ParameterError, match="did not make"):
        own_book.build_own_book(["zoo:gpt2-s"], output=occupied, root=ROOT)
    assert [path.name for path in occupied.iterdir()] == ["thesis.txt"]
    with pytest.raises(ParameterError, match="given twice"):
        own_book.build_own_book(["zoo:gpt2-s", "zoo:gpt2-s"], output=tmp_path / "a", root=ROOT)
    with pytest.raises(ParameterError, match="given twice"):
        own_book.build_own_book(["zoo:gpt2-s"], held_out="zoo:gpt2-s", output=tmp_path / "a", root=ROOT)
    mine = tmp_path / "gpt2-s"
    mine.symlink_to(zoo_models.path("neox-s"), target_is_directory=True)
    for models, held_out in [(["zoo:gpt2-s", str(mine)], ""), (["zoo:neox-m", "zoo:gpt2-s"], str(mine))]:
        with pytest.raises(ParameterError, match="both be called 'gpt2-s'. Rename"):
            own_book.build_own_book(models, held_out=held_out, output=tmp_path / "a", root=ROOT)
    with pytest.raises(ModelError, match="no model"):
        own_book.build_own_book(["zoo:gpt2-q"], output=tmp_path / "a", root=ROOT)
    with pytest.raises(ParameterError, match="repository itself"):
        own_book.build_own_book(["zoo:gpt2-s"], output=ROOT, root=ROOT)
    assert not (tmp_path / "a").exists() and built == []


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", ["a book of someone else", "a copy of the repository", "a file"])
def test_what_others_made_is_not_touched(what, tmp_path, toy_book, built):
    output = tmp_path / "theirs"
    if what == "a file":
        output.write_text("mine")
    else:
        shutil.copytree(toy_book, output, ignore=shutil.ignore_patterns("theirs"))
    before = files(tmp_path)
    with pytest.raises(ParameterError, match="theirs' holds something .* --output"):
        own_book.build_own_book(["zoo:gpt2-s"], output=output, root=ROOT)
    assert files(tmp_path) == before and built == []


REFUSED = {
    "no such model": ({"models": ["zoo:gpt2-q"]}, ModelError),
    "no such folder": ({"models": ["./nowhere"]}, ModelError),
    "no such held-out model": ({"held_out": "zoo:llama-q"}, ModelError),
    "no such contexts": ({"contexts": "nowhere.yaml"}, ContextError),
    "contexts that are none": ({"contexts": str(ROOT / "_toc.yml")}, ContextError),
    "no such device": ({"device": "abacus"}, ParameterError),
    "no such precision": ({"dtype": "float16"}, ParameterError),
    "no such profile": ({"profile": "zooo"}, ParameterError),
    "no such notebook": ({"only": "77"}, ParameterError),
    "no jobs": ({"jobs": 0}, ParameterError),
}


@pytest.mark.parametrize("options, kind", REFUSED.values(), ids=REFUSED)
def test_everything_is_checked_before_anything_is_touched(options, kind, tmp_path, built):
    first = {"models": ["zoo:gpt2-s"], "output": tmp_path / "mine", "root": ROOT}
    own_book.build_own_book(**first)
    before = files(tmp_path)
    with pytest.raises(kind):
        own_book.build_own_book(**(first | options))
    assert files(tmp_path) == before and len(built) == 1
    with pytest.raises(kind):
        own_book.build_own_book(**(first | options | {"output": tmp_path / "new"}))
    assert not (tmp_path / "new").exists() and len(built) == 1


def test_a_contexts_file_that_is_missing_is_refused_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "run_jobs", None)  # no notebook is started
    command = ["book", "--models", "zoo:gpt2-s", "--contexts", "nowhere.yaml", "--output", "mine"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and result.stderr.count("nowhere.yaml") == 1 and not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path, built):
    (tmp_path / "file").touch()
    with pytest.raises(BookError, match="cannot be written .* --output"):
        own_book.build_own_book(["zoo:gpt2-s"], output=tmp_path / "file" / "mine", root=ROOT)
    assert built == []
