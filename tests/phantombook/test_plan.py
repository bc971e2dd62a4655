"""Jobs and their keys: what a notebook is run with, and what makes it run again."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from phantombook import build
from phantombook.cli import app
from phantombook.plan import hash_inputs, make_job, make_plan
from phantombook.project import load_profile, notebooks
from phantomlib.errors import BookError

ROOT = Path(__file__).parents[2]


def test_values_of_a_profile_and_of_the_user(toy_book):
    job = make_job(toy_book, "1", {"steps": "4"}, profile=load_profile(toy_book, "zoo"))
    assert job.parameters == {"steps": 4, "rates": [1e-3]} and job.all_parameters == job.parameters | {"label": "x"}
    assert job.command == "phantom run 01 --profile zoo -p steps 4"
    assert make_job(toy_book, "01_toy", {}).command == "phantom run 01"


@pytest.mark.parametrize("label", ["plain", "two words", "it's", "#1", "a;b $HOME", "1e5", "", "-x", "a=b"])
def test_the_command_gives_the_same_values_again(toy_book, label, monkeypatch):
    done = []
    monkeypatch.setattr(build, "run_jobs", lambda jobs, *_: done.extend(jobs))
    monkeypatch.chdir(toy_book)
    values = {"label": label, "rates": [1.0, 1e-7]}
    job = make_job(toy_book, "01", values)
    result = CliRunner().invoke(app, shlex.split(job.command)[1:])
    assert result.exit_code == 0, result.output
    assert done[0].parameters == job.parameters == values


def keys(root):
    return {job.name: job.key for job in make_plan(root, load_profile(root, "zoo"))}


def test_what_makes_a_notebook_run_again(toy_book):
    before = keys(toy_book)
    assert keys(toy_book) == before
    source = toy_book / "notebooks/01_toy.py"
    source.write_text(source.read_text() + "\n# %%\n1\n")
    changed = keys(toy_book)
    # the second comes after all others, so it is made again with them
    assert changed["01_toy"] != before["01_toy"] and changed["02_after"] != before["02_after"]
    source.write_text(source.read_text().replace("# # A toy", "# # A toy, explained"))  # its own page
    explained = keys(toy_book)["01_toy"]
    (toy_book / "notebooks/profiles/zoo.yaml").write_text('"01": {steps: 6}')
    assert len({before["01_toy"], changed["01_toy"], explained, keys(toy_book)["01_toy"]}) == 4


@pytest.mark.parametrize("given", [True, False])
def test_files_count_by_content(toy_book, given):
    source = toy_book / "notebooks/01_toy.py"
    source.write_text(source.read_text().replace('label: str = "x"', 'label: str = "mine.yaml"'))
    job = make_job(toy_book, "01", {"label": "fitting:mine.yaml"} if given else {})
    (toy_book / "mine.yaml").write_text("one")
    first = hash_inputs(job)
    (toy_book / "mine.yaml").write_text("two")
    assert hash_inputs(job) != first


@pytest.mark.parametrize("text", ["", "fitting:", "x" * 300, "a\0b"])
def test_text_that_names_no_file_is_only_text(toy_book, text):
    job = make_job(toy_book, "01", {"label": text})
    first = hash_inputs(job)
    (toy_book / "another_file_in_the_root").write_text("")
    assert hash_inputs(job) == first != hash_inputs(make_job(toy_book, "01", {"label": text + "y"}))


def test_a_notebook_that_is_no_python_is_named(toy_book):
    with open(toy_book / "notebooks/01_toy.py", "a") as file:
        file.write("\n# %%\nx = (\n")
    with pytest.raises(BookError, match="01_toy is not Python.*line"):
        keys(toy_book)


def test_a_notebook_after_none_is_refused(toy_book):
    source = toy_book / "notebooks/02_after.py"
    source.write_text(source.read_text().replace("after: all", 'after: ["07"]'))
    with pytest.raises(BookError, match="02_after comes after .'07'"):
        keys(toy_book)


# ------------------------------------------------------------------------------------------- the real notebooks


def test_a_notebook_runs_again_with_the_modules_that_it_reaches(package):
    """A colour re-runs those that draw with it, and not the ledger, which comes after all; an optimizer re-runs all."""
    before = keys(ROOT)
    palette = package / "phantombook/figures/palette.py"
    text = palette.read_text()
    palette.write_text(re.sub(r"#[0-9A-Fa-f]{6}", "#123456", text, count=1))
    assert palette.read_text() != text
    # counted in another way: those whose figures are drawn by a module that mentions the palette
    figures = (package / "phantombook/figures").glob("*.py")
    with_colours = {path.stem for path in figures if "palette" in path.read_text()} | {"palette"}
    drawing = {
        path.stem
        for path in notebooks(ROOT).values()
        if with_colours & set(re.findall(r"phantombook\.figures(?:\.| import )(\w+)", path.read_text()))
    }
    assert {name for name, key in keys(ROOT).items() if key != before[name]} == drawing
    assert 0 < len(drawing) < len(before)
    palette.write_text(text)
    for name in ("phantombook/build.py", "phantombook/cli.py", "phantombook/edit.py"):
        with open(package / name, "a") as file:
            file.write("\nMORE = 1\n")
    with open(package / "phantomlib/engine/optimizer.py", "a") as file:
        file.write("\n# a remark\n")
    assert keys(ROOT) == before
    with open(package / "phantomlib/engine/optimizer.py", "a") as file:
        file.write("\nDECAY = 1\n")
    assert not keys(ROOT).items() & before.items()
