"""The ledger's table and list: one row for each criterion, and what came out on real models beside each claim; what was changed."""

import re

import pytest
from typer.testing import CliRunner

from phantombook import ledger_page
from phantombook.cli import app
from phantombook.ledger import claims
from phantombook.ledger.claims import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, Verdict, load_claims
from phantombook.ledger.measurements import Measurement
from phantombook.project import find_root

CLAIMS = {claim.id: claim for claim in load_claims()}


def pair(name, status, value=None):
    claim = CLAIMS[name]
    values = {criterion.name: value for criterion in claim.criteria}
    measured = None if value is None else Measurement(values, None, {}, ("run",), {})
    return Verdict(claim, "adam", status, "", measured), Verdict(claim, "sgd", NOT_TESTED, "", None)


def test_real_models_stand_beside_the_claim_that_they_repeat():
    pairs = [pair("C2", REPRODUCED, 1e-13), pair("C11", NOT_REPRODUCED, 0.02), pair("C8", REPRODUCED, 0.02)]
    table = ledger_page.verdict_table(pairs, [pair("R8", NOT_REPRODUCED, 0.2), pair("R2", REPRODUCED, 1e-14)])
    assert list(table)[:2] == ["claim", "verdict"]  # a narrow screen shows both
    column = table["on real models"].tolist()
    assert len(CLAIMS["C2"].criteria) == 2 and table.claim.tolist()[1] == ""
    assert [cell.endswith("**reproduced**") for cell in column] == [True, False, False, False]
    assert column[1] == column[2] == "" and column[3].endswith("**not reproduced**") and "R8" in column[3]


def test_without_measurements_of_real_models_there_is_no_column():
    table = ledger_page.verdict_table([pair("C8", REPRODUCED, 0.02)], [pair("R8", NOT_TESTED)])
    assert "on real models" not in table
    assert "real models" not in ledger_page.miniature([pair("C8", REPRODUCED, 0.02)], [pair("R8", NOT_TESTED)])


def test_the_short_list_marks_both():
    [line] = ledger_page.miniature([pair("C8", REPRODUCED, 0.02)], [pair("R8", NOT_REPRODUCED, 0.2)]).split("\n")
    assert line.count('class="verdict') == 2 and "✓ reproduced" in line and "✗ not reproduced" in line
    assert "(#fig-real-numbers)" in line and "(under SGD: not tested)" in line


def test_the_first_page_says_how_many_fail_and_takes_the_range_of_rates_from_its_chapter():
    told = ledger_page.headline([pair("C1", REPRODUCED, 10)], 10)
    glued = re.findall(r"\{glue:text\}`generated/(\w+)\.ipynb::(\w+):g`", told)
    assert glued == [("02_silent_failure", "least_multiple"), ("02_silent_failure", "largest_multiple")]
    assert told.startswith("On every architecture, all ten sentences fail silently at one or more learning rates from ")
    assert "at least five of ten sentences" in ledger_page.headline([pair("C1", REPRODUCED, 5)], 10)
    chapter = (find_root() / "notebooks/02_silent_failure.py").read_text(encoding="utf-8")
    assert all(f'nb.glue("{name}", ' in chapter for _, name in glued) and "1.5" not in told


def test_what_was_changed_reads_as_sentences():
    change = claims.Change("the bound", "1 May", "at least 2", "at least 3", "2 says nothing.")
    told = ledger_page.change_sentences(change)
    assert told == "Changed on 1 May: the bound. Before: at least 2. Now: at least 3. Reason: 2 says nothing."


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim.changes])
def test_changes_of_the_ledger_can_be_told(name):
    for change in CLAIMS[name].changes:
        told = ledger_page.change_sentences(change)
        assert all(part in told for part in vars(change).values())
        assert not any(mark in told for mark in ("{", "}", "..", "\n"))


SMALL, ELSEWHERE = "meets the threshold; 1 of 5 architectures", "misses the threshold; 1 of 5 architectures"


def too_small(name="C8"):
    """A claim whose sample is too small under both optimisers."""
    adam, sgd = pair(name, NOT_TESTED, 0.04)
    measured = adam.measurement
    return (
        Verdict(adam.claim, "adam", NOT_TESTED, "a reason", measured, SMALL),
        Verdict(sgd.claim, "sgd", NOT_TESTED, "a reason", measured, ELSEWHERE),
    )


def test_a_table_says_what_a_small_sample_says():
    table = ledger_page.verdict_table([too_small()], [too_small("R8")])
    assert table.verdict[0] == f"**{SMALL}**" and table["under SGD"][0] == f"0.04: {ELSEWHERE}"
    assert table["on real models"][0].endswith(f": **{SMALL}**")


def test_the_short_list_does_too():
    line = ledger_page.miniature([too_small()], [too_small("R8")])
    assert line.count(f'<span class="verdict not-tested">– {SMALL}</span>') == 2
    assert f"(under SGD: {ELSEWHERE})" in line
    same = too_small()[0]
    assert "under SGD" not in ledger_page.miniature([(same, same)])


@pytest.mark.parametrize("words, found", [((), f"C8   {SMALL} "), (("--json",), f'"shown": "{SMALL}"')])
def test_the_command_does_too(monkeypatch, words, found):
    monkeypatch.setattr(claims, "verdicts", lambda *_, group="paper": [too_small()] if group == "paper" else [])
    told = CliRunner().invoke(app, ["claims", *words])
    assert told.exit_code == 0, told.output
    assert found in told.stdout
    if not words:
        assert f"sgd: {ELSEWHERE} (a reason)" in told.stdout
