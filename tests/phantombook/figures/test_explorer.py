"""The explorer holds the numbers of the runs, and nothing that could end its own script."""

import json
import re

import numpy as np
import pytest
import tiny

from phantombook.figures import explorer
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe


@pytest.fixture(scope="module")
def run():
    model = tiny.model("GPT2")
    return finetune(model, tiny.contexts(model), [1e-3, 1e300], Recipe(optimizer="sgd", steps=4))


def data_of(page: str) -> dict:
    """The JSON between the page's marker and the end of its statement, as a browser would read it."""
    start = page.index('{"multiples"')
    return json.JSONDecoder().raw_decode(page[start:])[0]


def test_the_page_holds_the_numbers_of_the_runs(run):
    data = data_of(explorer.page({"tiny": {"full": run}}, [1.0, 2.0]))
    shown = data["runs"]["tiny"]["full"]["c0"]
    assert data["multiples"] == [1.0, 2.0] and data["series"] == list(explorer.SHOWN)
    for name, series in zip(explorer.SHOWN, shown["series"], strict=True):
        wanted = run[name].sel(context="c0").isel(seed=0, rate=0).values
        np.testing.assert_allclose(np.array(series[0], dtype=float), wanted, rtol=1e-3)
    assert shown["words"] == ["right0", "wrong0"]
    np.testing.assert_allclose(shown["rates"], run.learning_rate.sel(context="c0").values, rtol=1e-3)


def test_a_diverged_run_is_shown_as_far_as_it_went(run):
    data = data_of(explorer.page({"tiny": {"full": run}}, [1.0, 2.0]))
    gap = data["runs"]["tiny"]["full"]["c0"]["series"][list(explorer.SHOWN).index("logit_gap")][1]
    alive = np.isfinite(run.logit_gap.sel(context="c0").isel(seed=0, rate=1).values)
    assert [value is not None for value in gap] == alive.tolist() and None in gap


def test_no_name_ends_the_script_it_stands_in(run):
    hostile = run.assign_coords(correct=("context", ["</script><b>", "right1"]))
    page = explorer.page({"tiny": {"full": hostile}}, [1.0, 2.0])
    before, after = (
        len(re.findall("</script", explorer.page({"tiny": {"full": r}}, [1.0, 2.0]))) for r in (run, hostile)
    )
    assert before == after and data_of(page)["runs"]["tiny"]["full"]["c0"]["words"][0] == "</script><b>"


@pytest.mark.parametrize("word", ["<!--<script>", "</SCRIPT >", "/*FIGURE*/", "/*PLOTLY*/", "*/", "`${1}`", "\u2028"])
def test_words_are_data_whatever_they_hold(run, word):
    hostile = run.assign_coords(correct=("context", [word, "right1"]))
    page, plain = (explorer.page({"tiny": {"full": r}}, [1.0, 2.0]) for r in (hostile, run))
    assert data_of(page)["runs"]["tiny"]["full"]["c0"]["words"][0] == word
    for mark in ("<script", "</script", "<!--", "Plotly.react"):
        assert page.lower().count(mark.lower()) == plain.lower().count(mark.lower())


def test_runs_are_parsed_as_data_so_that_no_name_is_special(run):
    """As a literal of JavaScript, a key ``__proto__`` would not be a key."""
    page = explorer.page({"__proto__": {"full": run}}, [1.0, 2.0])
    assert '<script type="application/json" class="explorer-runs">{"multiples"' in page
    assert "__proto__" in data_of(page)["runs"]
