"""What a notebook shows: figures and tables with their origin, sentences with their numbers."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from phantomlib.book.notebook import Notebook


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
    return Notebook("01_x", ["m"], [], None, "cpu", "float32", 0)


def downloads(bundle):
    links = re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8;base64,([^"]+)"', bundle["text/html"])
    return {name: pd.read_csv(io.BytesIO(base64.b64decode(data))) for name, data in links}


def test_a_figure_is_numbered_described_and_led_back_to_its_data(book, shown):
    figure, axes = plt.subplots()
    axes.plot([1, 2], [3, 4])
    book.figure(axes, "fig-x", caption="One\n  line of $x$.", alt='A "rising" line.', runs=["abc"])
    picture, origin = shown
    lines = picture["text/markdown"].splitlines()
    assert lines[1:] == [":name: fig-x", ':alt: A "rising" line.', ":width: 100%", "", "One line of $x$.", "::::"]
    kind, data = lines[0].split(";base64,")
    assert kind == "::::{figure} data:image/svg+xml" and b"</svg>" in base64.b64decode(data)
    assert 'alt="A &quot;rising&quot; line."' in picture["text/html"]
    assert "<code>abc</code>" in origin["text/html"] and "phantom run 01" in origin["text/html"]
    assert downloads(origin)["01_x-fig-x.csv"].y.tolist() == [3, 4]
    assert not plt.fignum_exists(figure.number)  # or it would be shown twice


def test_the_table_that_a_figure_draws_is_its_download(book, shown):
    table = pd.DataFrame({"model": ["a"], "gap": [-1.23456789]})
    book.figure(plt.figure(), "fig-x", caption="c", alt="a", data=table)
    assert downloads(shown[1])["01_x-fig-x.csv"].gap[0] == pytest.approx(-1.234568)


def test_a_long_table_shows_its_top_and_folds_the_rest(book, shown):
    table = pd.DataFrame({"n": range(30), "x": [np.nan, *np.linspace(0, 1, 29)]})
    book.table(table, digits=1, top=3)
    book.table(table.head(2), top=3)
    top, folded = shown[0]["text/markdown"].split(":::{dropdown} All 30 rows")
    assert top.count("\n|") == 4 and folded.count("\n|") == 32  # header and rule before the rows
    assert "–" in top and "nan" not in top
    assert "dropdown" not in shown[2]["text/markdown"]
    assert list(downloads(shown[1])) == ["01_x-table-1.csv"] and list(downloads(shown[3])) == ["01_x-table-2.csv"]


def test_sentences_take_their_numbers_and_name_undefined_ones(book, shown):
    book.say("A spread of {spread:.1%} in $g_{{ck}}$, {other:.2f} elsewhere.", spread=0.0512, other=np.float64("nan"))
    book.say("No numbers, so $g_{ck}$ stays.")
    assert shown[0]["text/markdown"] == "A spread of 5.1% in $g_{ck}$, undefined elsewhere."
    assert shown[1]["text/markdown"] == "No numbers, so $g_{ck}$ stays."


def test_words_of_others_are_text(book, shown):
    word = "<b>|=1"
    book.say("The word “{word}”.", word=word)
    book.table(pd.DataFrame({"word": [word, "=1+1"]}))
    for bundle in shown[:2]:
        assert "&lt;b&gt;\\|=1" in bundle["text/markdown"] and "<b>" not in bundle["text/markdown"]
    assert downloads(shown[2])["01_x-table-1.csv"].word.tolist() == [word, "'=1+1"]


def test_runs_are_named_by_datasets_searches_and_tables(book, shown):
    run, search = xr.Dataset(attrs={"run_id": "one"}), xr.Dataset(attrs={"run_ids": "two three"})
    table = pd.DataFrame({"x": [1]})
    table.attrs["run_ids"] = ["four"]
    book.table(table, runs={"a": run, "b": [search, table, run]})
    assert re.findall(r"<code>(one|two|three|four)</code>", shown[1]["text/html"]) == ["one", "two", "three", "four"]
