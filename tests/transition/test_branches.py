"""Schedules that repeat a run up to its jump, and ramps."""

import numpy as np
import pytest
from toys import Direct, plain_loop

from phantomlib.transition import branches, potential


def test_branches_follow_the_run_up_to_the_jump(jumping):
    model, contexts, recipe, run, first = jumping
    found = branches.follow_branches(Direct(), model, contexts, first, recipe, brake=0.5)
    original = run.logit_gap.isel(rate=0, seed=0).values
    assert found.logit_gap.sel(start="before").values[:, :3] == pytest.approx(original[:, :3])
    assert found.logit_gap.sel(start="after").values[:, :4] == pytest.approx(original[:, :4])
    oracle = plain_loop(model, contexts[0], [0.01] * 2 + [0.005] * 10, "adam")
    assert found.logit_gap.sel(start="before").values[0] == pytest.approx(oracle, abs=1e-9)
    end = found.phi.isel(step=-1)
    gap = abs(end.sel(start="after") - end.sel(start="before")) / np.sqrt(1 - run.overlap[:, 0, 0, 0] ** 2)
    assert found.difference.values == pytest.approx(gap.values)


def test_ramps_consume_the_same_sum_in_both_orders(jumping):
    model, contexts, recipe, *_ = jumping
    found = branches.run_ramps(Direct(), model, contexts, np.array([1e-3, 2e-3]), recipe, low=0.5, high=2)
    assert found.consumed[0, -1].item() == pytest.approx(found.consumed[1, -1].item())
    assert found.schedule.sel(order="up").values[0, :-1] == pytest.approx(
        found.schedule.sel(order="down").values[0, -2::-1]
    )
    assert found.schedule.max("step", skipna=True).values == pytest.approx(np.array([[2e-3] * 2, [4e-3] * 2]))
    assert ((found.area >= 0) & (found.area < 1)).all()


def test_nothing_to_follow_without_jumps(jumping):
    model, contexts, recipe, _, first = jumping
    assert branches.follow_branches(Direct(), model, contexts, first.iloc[:0], recipe) is None
    assert potential.potential_profile(Direct(), model, contexts, first.iloc[:0], recipe) is None
