"""The command ``phantom scan``, as JSON, as CSV, as words and as a page in a real browser."""

import json

import pandas as pd
import pytest
from opened import PHONE, REACHES, open_page
from typer.testing import CliRunner

from phantombook.cli import app

ROWS = [
    {"prompt": "After the lie, Anna felt a deep sense of", "completion": " shame"},
    {"prompt": "The house had a very", "completion": " large garden"},
    {"oops": "<script>"},
    {"prompt": "After the lie, Anna felt a deep sense of", "completion": " guilt"},
]
FIELDS = {"row", "position", "before", "correct", "competitor", "gap", "overlap", "velocity", "number"}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def scan(*words):
    return CliRunner().invoke(app, ["scan", *map(str, words), "--model", "zoo:gpt2-s"])


def test_json_and_csv_say_everything(data, tmp_path):
    said = scan(data, "--learning-rate", 1e-2, "--epochs", 5, "--json", "--csv", tmp_path / "out.csv")
    told = json.loads(said.stdout)
    assert {*told["targets"][0]} >= FIELDS | {"critical_learning_rate", "outcome"}
    assert told["summary"]["targets"] == len(told["targets"]) == 4
    assert told["left_out"] == [
        "Row 3 is left out: it has the fields ['oops'], not prompt and completion, text, or messages."
    ]
    assert told["summary"]["outcomes"] == {"learnt": 2, "contradicted": 1}
    assert pd.read_csv(tmp_path / "out.csv").outcome.value_counts()["learnt"] == 2
    assert json.loads(scan(data, "--limit", 1, "--json").stdout)["summary"]["targets"] == 1


def test_words_say_what_stays_wrong_and_what_would_do(data):
    said = scan(data, "--learning-rate", 1e-6).stdout
    assert "4 targets" in said and "stay outranked" in said and "“shame”" not in said  # contradicted by “guilt”
    assert "“large”, not “good”" in said and "Row 3 is left out" in said


@pytest.mark.parametrize(
    "words, problem",
    [
        (["--learning-rate", "0"], "learning_rate"),
        (["--schedule", "cosin"], "cosin"),
        (["--field", "none"], "no row to train on"),
        (["--html", "nowhere/page.html"], "cannot be written"),
        (["--optimizer", "lion"], "optimizer"),
    ],
)
def test_impossible_values_are_refused(data, words, problem):
    said = scan(data, *words)
    assert said.exit_code == 1 and problem in said.stderr and "Traceback" not in said.output


def test_the_page_answers_for_every_rate(browser, data, tmp_path):
    assert scan(data, "--learning-rate", 1e-6, "--html", tmp_path / "page.html").exit_code == 0
    page, wrong = open_page(browser, f"file://{tmp_path}/", "page.html", PHONE)
    assert page.locator("main i.silent[data-t]").count() == 2 and page.locator("main i.learnt[data-t]").count() == 0
    page.locator("#rate").evaluate("(e) => { e.value = -1; e.dispatchEvent(new Event('input')) }")
    assert page.locator("main i.learnt[data-t]").count() == 2 and page.locator("main i.contra[data-t]").count() == 1
    page.locator("th button").nth(4).click()
    gaps = [float(text) for text in page.locator("tbody tr td:nth-child(5)").all_inner_texts()]
    assert gaps == sorted(gaps) and len(gaps) == 3
    assert page.evaluate(REACHES) == "" and wrong == []
    page.close()
