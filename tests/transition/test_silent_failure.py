"""Failure modes on hand-made runs whose class is plain to see."""

from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from chapter import chapter

from phantomlib.transition import silent_failure


def run(loss, gap, drag=(0.0, 0.0, 0.0), diverged=-1):
    """A dataset with one replica and three recorded steps."""
    dims = ("context", "rate", "seed", "step")
    series = {"cross_entropy": loss, "logit_gap": gap, "drag": drag, "signal": (-0.1, -0.05, -0.01)}
    series |= {"p_correct": (0.1, 0.2, 0.3), "p_competitor": (0.3, 0.3, 0.4), "overlap": (0.7, 0.7, 0.7)}
    series["phi"] = np.add(series["signal"], drag)
    data = {name: (dims, np.array(values, dtype=float).reshape(1, 1, 1, 3)) for name, values in series.items()}
    data["diverged_step"] = (dims[:3], np.array([[[diverged]]]))
    coords = {"context": ["a"], "seed": [0], "learning_rate": (("context", "rate"), [[1e-3]])}
    return xr.Dataset(data, coords)


FALLING, BEHIND = (3.0, 2.0, 1.0), (-2.0, -1.0, -0.5)


@pytest.mark.parametrize(
    "made, mode",
    [
        (run(FALLING, BEHIND), "kinematic"),
        (run(FALLING, BEHIND, drag=(0.0, 0.0, -0.009)), "kinematic"),  # Φ_0 is -0.1
        (run(FALLING, BEHIND, drag=(0.0, 0.0, -0.011)), "structural"),
        (run(FALLING, BEHIND, drag=(0.1, 0.0, 0.001)), "kinematic"),  # Φ_0 is 0: a large fall, and it still helps
        (run(FALLING, BEHIND, drag=(0.01, 0.0, -0.001)), "structural"),  # Φ_0 is -0.09, the fall 0.011
        (run(FALLING, BEHIND, drag=(-0.02, 0.0, -0.031)), "kinematic"),  # Φ_0 is -0.12, the fall 0.011
        (run(FALLING, BEHIND, drag=(0.0, 0.0, 0.1)), "kinematic"),
        (run(FALLING, (-2.0, 0.1, -0.5)), "overtakes"),  # it need not stay ahead
        (run((3.0, 3.1, 1.0), BEHIND), "other"),
        (run((3.0, 3.000001, 1.0), BEHIND), "kinematic"),  # a rise within rounding
        (run(FALLING, (-2.0, -1.0, 0.0)), "kinematic"),  # a draw is not overtaking
        (run((3.0, np.nan, np.nan), (-2.0, np.nan, np.nan), diverged=1), "diverged"),
    ],
)
def test_mode(made, mode):
    assert silent_failure.failure_mode(made).item() == mode
    assert silent_failure.failure_table(made)["mode"].tolist() == [mode]


def test_the_first_definition_asks_for_a_fall_alone():
    for end, mode in ((0.0491, "kinematic"), (0.0489, "structural")):
        made = run(FALLING, BEHIND, drag=(0.05, 0.05, end))
        assert silent_failure.failure_mode(made, silent_failure.drag_falls).item() == mode
        assert silent_failure.failure_mode(made).item() == "kinematic"


def test_fall_must_be_large_enough_to_count():
    made = run((3.0, 2.97, 2.95), BEHIND)
    assert silent_failure.silent(made).item() and not silent_failure.silent(made, 0.1).item()
    runs = {"m": made, "n": run(FALLING, BEHIND)}
    tally = chapter("02", runs=SimpleNamespace(sel=lambda optimizer: runs), least_fall=0.1).tally
    counts = {"failed silently": 1, "overtook": 0, "fell by too little to count": 1, "rose at some step or diverged": 0}
    assert tally("adam").to_dict() == counts


def test_drag_factors_multiply_to_the_drag():
    made = run(FALLING, BEHIND, drag=(0.03, 0.0, -0.06))
    row = silent_failure.failure_table(made).iloc[0]
    assert row.bulk_mass_start * row.contrast_start == pytest.approx(0.03)
    assert row.bulk_mass_end * row.contrast_end == pytest.approx(-0.06)
    assert row.drag_fall == pytest.approx(0.09)
