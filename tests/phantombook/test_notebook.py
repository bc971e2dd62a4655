"""What a notebook shows: figures and tables with their origin, sentences with their numbers."""

import base64
import html
import io
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from markdown_it import MarkdownIt

from phantombook import notebook
from phantombook.notebook import Notebook
from phantombook.plan import Job
from phantomlib.contexts import Context, load_contexts
from phantomlib.errors import ContextError, ParameterError
from phantomlib.models.language_model import load


@pytest.fixture
def shown(monkeypatch):
    """The texts that were displayed, by MIME type; Markdown objects as they are shown in the book."""
    bundles = []

    def display(thing, **_):
        bundles.append(thing if isinstance(thing, dict) else {"text/markdown": thing.data})

    monkeypatch.setattr("IPython.display.display", display)
    return bundles


@pytest.fixture
def book():
    return Notebook("01_x", {"models": ["m"]}, [], None)


def downloads(bundle):
    links = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', bundle["text/html"])
    return {name: pd.read_csv(io.BytesIO(base64.b64decode(data))) for name, data in links}


def test_a_figure_is_numbered_described_and_led_back_to_its_data(book, shown):
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4])
    book.caption("fig-x", "One\n  line of $x$.", alt='A "rising" line.')
    book.figure(axes, "fig-x", runs=["abc"])
    picture, origin = shown
    narrow, wide = picture["text/markdown"].split("\n\n", 1)
    assert narrow.startswith("```{image} data:image/svg") and ':alt: A "rising" line.\n:class: only-narrow' in narrow
    lines = wide.splitlines()
    options = [":name: fig-x", ':alt: A "rising" line.', ":class: only-wide", ":width: 100%"]
    assert lines[1:] == [*options, "", "One line of $x$.", "::::"]
    kind, data = lines[0].split(";base64,")
    assert kind == "::::{figure} data:image/svg+xml" and b"</svg>" in base64.b64decode(data)
    assert 'alt="A &quot;rising&quot; line."' in picture["text/html"]
    assert "phantom run 01" in origin["text/html"]
    assert downloads(origin)["01_x-fig-x-runs.csv"].run.tolist() == ["abc"]
    assert downloads(origin)["01_x-fig-x.csv"].y.tolist() == [3, 4]
    assert not plt.fignum_exists(figure.number)  # or it would be shown twice
    book.figure(plt.figure(), "fig-x", data=pd.DataFrame({"model": ["a"], "gap": [-1.23456789]}))
    assert downloads(shown[3])["01_x-fig-x.csv"].gap[0] == pytest.approx(-1.234568)


def test_a_long_table_shows_its_top_and_has_the_rest_in_its_file(book, shown):
    table = pd.DataFrame({"n": range(30), "x": [np.nan, *np.linspace(0, 1, 29)]})
    book.table(table, digits=1, top=3)
    book.table(table.head(2), top=3)
    top, told = shown[0]["text/markdown"].split("\n\n")
    assert top.count("\n") == 4 and "first 3 of 30 rows" in told  # header and rule before the rows
    assert "–" in top and "nan" not in top
    assert "The first" not in shown[2]["text/markdown"]
    files = downloads(shown[1]) | downloads(shown[3])
    assert {name: len(file) for name, file in files.items()} == {"01_x-table-1.csv": 30, "01_x-table-2.csv": 2}


def test_sentences_take_their_numbers_and_name_undefined_ones(book, shown):
    book.say("A spread of {spread:.1%} in $g_{{ck}}$, {other:.2f} elsewhere.", spread=0.0512, other=np.float64("nan"))
    book.say("No numbers, so $g_{ck}$ stays.")
    assert shown[0]["text/markdown"] == "A spread of 5.1 % in $g_{ck}$, undefined elsewhere."
    assert shown[1]["text/markdown"] == "No numbers, so $g_{ck}$ stays."


def test_runs_are_named_by_datasets_searches_and_tables(book, shown):
    run, search = xr.Dataset(attrs={"run_id": "one"}), xr.Dataset(attrs={"run_ids": "two three"})
    table = pd.DataFrame({"x": [1]})
    table.attrs["run_ids"] = ["four"]
    book.table(table, runs={"a": run, "b": [search, table, run]})
    assert downloads(shown[1])["01_x-table-1-runs.csv"].run.tolist() == ["one", "two", "three", "four"]
    with pytest.raises(ParameterError, match="names no run"):
        book.table(table, runs=xr.Dataset())


def test_only_the_runner_records(book, shown):
    book.record("C8", 0.04, optimizer="adam", n={"architectures": 5, "contexts": 10}, runs=["abc"])
    assert "C8 is not recorded" in shown[0]["text/markdown"]
    assert book._measured["C8", "adam"].runs == ("abc",)


def test_a_notebook_starts_under_its_own_name(monkeypatch, tmp_path):
    job = Job(tmp_path / "24_copy.py", tmp_path / "out.ipynb", tmp_path, {}, {}, "phantom run 24", "", (), 0)
    monkeypatch.setattr(notebook, "JOB", job)
    with pytest.raises(ParameterError, match="This is 24_copy.py, but it starts as '08_x'"):
        notebook.start("08_x")


def test_text_for_a_list_leads_to_the_right_option(monkeypatch):
    main = type("Main", (), {"In": ["models: list[str] = []"], "models": '["zoo:gpt2-s"]'})
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(ParameterError, match="Use -y"):
        notebook.declared_here()


HOSTILE = ["<script>alert(1)</script>", "a\n\n```{raw} html\n<b>\n```", "<!--", "x</td>", "<b>|=1"]


@pytest.mark.parametrize("word", HOSTILE)
def test_words_of_other_people_are_shown_and_not_obeyed(word, book, shown):
    book.say("The word is {word}, **once**.", word=word)
    book.table(pd.DataFrame({"prompt": [word], "gap": [1.5]}))
    sentence, table = shown[0]["text/markdown"], shown[1]["text/markdown"]
    assert "**once**" in sentence and len(sentence.splitlines()) == 1
    assert len(table.splitlines()) == 3 and "1.500" in table
    for text in (sentence, table):
        assert "<" not in text and ">" not in text
    page = MarkdownIt("commonmark").render(sentence)
    assert page.count("<strong>") == 1 and " ".join(word.split()) in html.unescape(page)


@pytest.mark.parametrize("word", ["=HYPERLINK(0)", "+1", "@x", "-a"])
def test_a_download_holds_no_formula(word, book, shown):
    book.table(pd.DataFrame({"word": [word], "gap": [-1.5]}))
    back = downloads(shown[1])["01_x-table-1.csv"]
    assert back.word[0] == f"'{word}" and back.gap[0] == -1.5


def test_contexts_that_do_not_fit_are_named_at_once_or_left_out_in_plain_text(shown):
    loaded = load("zoo:gpt2-s")
    good = load_contexts()[0]
    bad = [
        Context("one", "Anna <b>felt</b> very", "glad", "happy"),
        Context("two", "Anna was very", "<script>", "happy"),
        Context("three", "When the news came, Anna was very", "happy", "glad"),
    ]
    strict, lenient = (Notebook("01_x", {"contexts": c}, [good, *bad], None) for c in ("default", "fitting:default"))
    with pytest.raises(ContextError, match="3 problems in the 4 contexts for 'gpt2-s'.*'one'.*'two'.*'three'"):
        strict.fitting_contexts(loaded)
    assert [c.id for c in lenient.fitting_contexts(loaded)] == ["shame"]
    said = [bundle["text/markdown"] for bundle in shown]
    assert len(said) == 3 and all(line.startswith("> Left out for gpt2-s: Context") for line in said)
    assert not any("<" in line for line in said) and "&lt;script&gt;" in said[1]
