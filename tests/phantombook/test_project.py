"""A project on disk: where it is, its notebooks, profiles and pages."""

from pathlib import Path

import pytest

from phantombook.plan import make_job
from phantombook.project import find_notebook, find_root, load_profile, notebooks, pages_to_generate
from phantomlib.errors import ParameterError

ROOT = Path(__file__).parents[2]


CHAPTERS_AT_THE_PAPERS_SIZE = ("01", "02", "03", "04", "05", "06", "07", "09", "10", "11", "12", "17", "18")


@pytest.mark.parametrize("number", CHAPTERS_AT_THE_PAPERS_SIZE)
def test_the_profile_of_the_papers_size_has_parameters_for_its_chapters(number):
    profile = load_profile(ROOT, "paper")
    values = make_job(ROOT, number, {}, profile=profile).all_parameters  # refuses what the notebook does not have
    others = [*values.get("charted", ()), *filter(None, [values.get("held_out")])]
    assert profile.own[number] and values["device"] == "cuda"
    assert not any(ref.startswith("zoo:") for ref in values["models"] + others)
    assert not set(others) & set(values["models"])  # what is predicted is no part of what predicts it
    assert not any("learning_rate" in name for name in profile.values(number))  # rates are multiples, in the notebooks


def test_the_root_is_found_from_below(toy_book):
    below = toy_book / "notebooks/profiles"
    assert find_root(below) == find_root(toy_book) == toy_book


@pytest.mark.parametrize("name", [1, "1", "01", "001", "01_toy", "notebooks/01_toy.py"])
def test_names_of_a_notebook(toy_book, name):
    assert find_notebook(toy_book, name) == toy_book / "notebooks/01_toy.py"


@pytest.mark.parametrize("name", ["", "0", "77", "9" * 5000, "x" * 5000, "01_tox/../..", "٣"])
def test_names_of_none(toy_book, name):
    with pytest.raises(ParameterError, match="There is no notebook") as caught:
        find_notebook(toy_book, name)
    assert len(str(caught.value)) < 500 + len(str(toy_book))


@pytest.mark.parametrize(
    "form", ["- file: {}", "- file: '{}'", '- file: "{}"', "-   file:  {}", "root: {}", "- file: {}.ipynb"]
)
def test_pages_of_the_contents(toy_book, form):
    contents = toy_book / "_toc.yml"
    page = "book/generated/01_toy"
    contents.write_text(contents.read_text().replace(f"- file: {page}", form.format(page)))
    assert set(pages_to_generate(toy_book)) == {"01_toy", "02_after"}


def test_notebooks_in_order(toy_book):
    (toy_book / "notebooks/00_first.py").touch()
    (toy_book / "notebooks/helper.py").touch()
    assert list(notebooks(toy_book)) == ["00", "01", "02"]


def test_numbers_of_sections_need_no_quotes(toy_book):
    (toy_book / "notebooks/profiles/mine.yaml").write_text("common: {label: x}\n01: {steps: 7}\n02:\n")
    profile = load_profile(toy_book, "mine")
    assert profile.values("01") == {"label": "x", "steps": "7"} and profile.values("02") == {"label": "x"}
