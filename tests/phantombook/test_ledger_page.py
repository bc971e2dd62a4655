"""The chapter on the ledger: its table, its list, the sentences of the first page, and what was changed in a claim."""

import re

import pytest
from chapter import chapter

from phantombook.ledger import claims
from phantombook.ledger.claims import NOT_REPRODUCED, NOT_TESTED, REPRODUCED, Verdict, load_claims
from phantombook.ledger.measurements import Measurement
from phantombook.project import find_root, notebooks

CLAIMS = {claim.id: claim for claim in load_claims()}
ROOT = find_root()
PAGE = chapter("00", root=ROOT, available=notebooks(ROOT), contents=(ROOT / "_toc.yml").read_text(encoding="utf-8"))
SMALL, ELSEWHERE = "meets the threshold; 1 of 5 architectures", "misses the threshold; 1 of 5 architectures"


def pair(name, status, value=None, outlooks=("", "")):
    claim = CLAIMS[name]
    values = {criterion.name: value for criterion in claim.criteria}
    measured = None if value is None else Measurement(values, None, {}, ("run",), {})
    return (
        Verdict(claim, "adam", status, "", measured, outlooks[0]),
        Verdict(claim, "sgd", NOT_TESTED, "", measured if outlooks[1] else None, outlooks[1]),
    )


def too_small(name="C8"):
    """A claim whose sample is too small under both optimisers."""
    return pair(name, NOT_TESTED, 0.04, (SMALL, ELSEWHERE))


def test_real_models_stand_beside_the_claim_that_they_repeat():
    pairs = [pair("C2", REPRODUCED, 1e-13), pair("C11", NOT_REPRODUCED, 0.02), pair("C8", REPRODUCED, 0.02)]
    table = PAGE.verdict_table(pairs, [pair("R8", NOT_REPRODUCED, 0.2), pair("R2", REPRODUCED, 1e-14)])
    assert list(table)[:2] == ["claim", "verdict"]  # a narrow screen shows both
    column = table["on real models"].tolist()
    assert len(CLAIMS["C2"].criteria) == 2 and table.claim.tolist()[1] == ""
    assert [cell.endswith("**reproduced**") for cell in column] == [True, False, False, False]
    assert column[1] == column[2] == "" and column[3].endswith("**not reproduced**") and "R8" in column[3]
    [line] = PAGE.miniature([pair("C8", REPRODUCED, 0.02)], [pair("R8", NOT_REPRODUCED, 0.2)]).split("\n")
    assert line.count('class="verdict') == 2 and "✓ reproduced" in line and "✗ not reproduced" in line
    assert "(#fig-real-numbers)" in line and "(under SGD: not tested)" in line


def test_what_it_takes_to_fail_stands_once_beside_each_claim_that_says_it():
    column = PAGE.verdict_table([pair("C2", REPRODUCED, 1e-13)])["what it takes to fail"].tolist()
    assert column == [CLAIMS["C2"].to_fail, ""] and "identity" in column[0]
    assert all(claim.to_fail for claim in CLAIMS.values() if claim.group != "ours")
    assert "what it takes to fail" not in PAGE.verdict_table([pair("O1", REPRODUCED, 4)])


def test_without_measurements_of_real_models_there_is_no_column():
    table = PAGE.verdict_table([pair("C8", REPRODUCED, 0.02)], [pair("R8", NOT_TESTED)])
    assert "on real models" not in table
    assert "real models" not in PAGE.miniature([pair("C8", REPRODUCED, 0.02)], [pair("R8", NOT_TESTED)])


def test_the_first_page_says_how_many_fail_and_takes_the_range_of_rates_from_its_chapter():
    told = PAGE.headline([pair("C1", REPRODUCED, 10)], 10)
    glued = re.findall(r"\{glue:text\}`generated/(\w+)\.ipynb::(\w+):g`", told)
    assert glued == [("02_silent_failure", "least_multiple"), ("02_silent_failure", "largest_multiple")]
    assert told.startswith("- **Silent failure is common.** All ten sentences fail on every architecture, at learning")
    assert "At least five of ten sentences" in PAGE.headline([pair("C1", REPRODUCED, 5)], 10)
    assert "makes 99.8 % of the change" in PAGE.headline([pair("C7", REPRODUCED, 0.9982)], 10)
    source = (ROOT / "notebooks/02_silent_failure.py").read_text(encoding="utf-8")
    assert all(f'nb.glue("{name}", ' in source for _, name in glued) and "1.5" not in told


def test_what_was_changed_reads_as_sentences():
    change = claims.Change("the bound", "1 May", "at least 2", "at least 3", "2 says nothing.")
    told = "Changed on 1 May: the bound. Before: at least 2. Now: at least 3. Reason: 2 says nothing."
    assert PAGE.told(change) == told


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if claim.changes])
def test_changes_of_the_ledger_can_be_told(name):
    for change in CLAIMS[name].changes:
        told = PAGE.told(change)
        assert all(part in told for part in vars(change).values())
        assert not any(mark in told for mark in ("{", "}", "..", "\n"))


def test_table_and_list_say_what_a_small_sample_says():
    table = PAGE.verdict_table([too_small()], [too_small("R8")])
    assert table.verdict[0] == f"**{SMALL}**" and table["under SGD"][0] == f"0.04: {ELSEWHERE}"
    assert table["on real models"][0].endswith(f": **{SMALL}**")
    line = PAGE.miniature([too_small()], [too_small("R8")])
    assert line.count(f'<span class="verdict not-tested">– {SMALL}</span>') == 2
    assert f"(under SGD: {ELSEWHERE})" in line
    same = too_small()[0]
    assert "under SGD" not in PAGE.miniature([(same, same)])
