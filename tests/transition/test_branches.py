"""Schedules that repeat a run up to its jump, and ramps."""

import numpy as np
import pytest
from toys import Direct, plain_loop, recorded

from phantomlib.engine.recipe import Recipe
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


class ByHand:
    """Two steps along either order of the rates 1 and 3: (context, order, step)."""

    phi = (
        ((0, 0.4, 0.4), (0, 0, 0.4)),  # the rise is at s = 0..1 one way, at 3..4 the other
        ((0, 0.4, 0), (0, 0.4, 0)),  # tops at s = 1 and 3: the paths cross at 2
        ((0, 0.1, 0.4), (0, 0.3, 0.4)),  # both on one line
    )

    def run(self, model, contexts, learning_rates, recipe):
        assert learning_rates[:, 0].tolist() == [[1, 3]] * 3 and learning_rates[:, 1].tolist() == [[3, 1]] * 3
        return recorded(self.phi, overlap=0.6, contexts=contexts)


def test_the_area_of_a_loop_done_by_hand():
    found = branches.run_ramps(ByHand(), None, ["a", "b", "c"], np.ones(3), Recipe(steps=2), low=1, high=3)
    # a trapezoid of sides 4 and 2; four triangles of base 1 and height 2/3 of the top; nothing. Mean over s, bound 0.8
    expected = [0.4 * (4 + 2) / 2 / 4 / 0.8, 4 * (0.4 * 2 / 3) / 2 / 4 / 0.8, 0]
    assert found.area.values == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_nothing_to_follow_without_jumps(jumping):
    model, contexts, recipe, _, first = jumping
    assert branches.follow_branches(Direct(), model, contexts, first.iloc[:0], recipe) is None
    assert potential.potential_profile(Direct(), model, contexts, first.iloc[:0], recipe) is None
