"""The tests behind a counted claim: which pass, and what is shown."""

import dataclasses

import pytest
from toys import STARTS, examined

from phantombook.ledger.claims import load_claims
from phantomlib.errors import ParameterError
from phantomlib.transition import double_well, examine

C5 = next(claim for claim in load_claims() if claim.id == "C5")


def test_the_board_shows_every_criterion_and_a_changed_threshold_changes_a_verdict():
    measured = examine.summarise_tests([examined(double_well.DoubleWell(STARTS), 1.5)])
    table = C5.scoreboard({"control": measured})
    assert len(table) == sum(map(len, C5.tests.values())) and table.iloc[0].threshold == "≤ 0.1"
    bounds = C5.tests["refinement"]
    stricter = bounds | {"median_slope": dataclasses.replace(bounds["median_slope"], threshold=-2)}
    strict = dataclasses.replace(C5, tests=C5.tests | {"refinement": stricter})
    passed = [claim.passed_tests(measured)["refinement"] for claim in (C5, strict)]
    assert passed == [True, False]
    with pytest.raises(ParameterError, match="median_geometry_share"):
        C5.passed_tests({"geometry": {}})
