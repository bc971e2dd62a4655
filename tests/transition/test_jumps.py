"""Jumps against recordings made by hand, and what counts as one with an unchanged readout."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import xarray as xr
from chapter import chapter
from toys import recorded

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.transition import jumps


# steps of 0.001, one of them replaced; the bound at overlap 0.6 is 0.8
@pytest.mark.parametrize(
    ("step", "factors", "expected"),
    [
        *((0.081, {}, 1), (0.079, {}, 0), (-0.2, {}, 1), (np.nan, {}, 0)),
        *((0.081, {"median_factor": 100}, 0), (0.079, {"size_factor": 0.09}, 1)),
    ],
)
def test_a_jump_is_large_against_the_bound_and_against_the_median(step, factors, expected):
    changes = np.full(20, 0.001)
    changes[6] = step
    table = jumps.find_jumps(recorded(np.cumsum([0, *changes])[None, None]), **factors)
    assert len(table) == expected
    for row in table.to_dict("records"):
        assert row["step"] == 7 and row["size"] == pytest.approx(step) and row["loss_change"] == pytest.approx(-step)
        assert row["share_of_bound"] == pytest.approx(abs(step) / 0.8) and row["readout_share"] == pytest.approx(0.9)
        assert row["readout_part"] + row["geometry_part"] == pytest.approx(row["size"])
    assert jumps.find_jumps(recorded(np.linspace(-0.5, 0.5, 6)[None, None])).empty  # equal large steps


def test_first_jumps_and_the_clearest():
    phi = np.zeros((2, 2, 12))
    phi[0, 1, 3:], phi[0, 1, 8:], phi[1, 1, 5:] = 0.2, 0.5, -0.4
    table = jumps.find_jumps(recorded(phi, contexts=("a", "b")))
    assert jumps.first_jumps(table, 1, 0)["step"].to_dict() == {"a": 3, "b": 5}
    assert jumps.first_jumps(table, 0, 0).empty
    assert jumps.first_jumps(table.assign(seed=1), 1, 0).empty  # another seed's jumps are not those of this one
    assert jumps.clearest_jump(table) == "b" and jumps.clearest_jump(table[:0]) is None


def test_sizes_are_measured_against_the_bound_before_the_step():
    run = recorded([[[0, 0.1, 0.4]]])
    run["overlap"][..., 1] = 0.8
    assert jumps.step_sizes(run).values.ravel() == pytest.approx([0.1 / 0.8, 0.3 / 0.6])


def test_onset_places_runs_on_the_edge_of_stability():
    phi = np.zeros((2, 2, 12))
    phi[0, 1, 3:] = 0.2
    run = recorded(phi, contexts=("a", "b"))  # learning rates 1 and 2
    case, critical = ("adam", "m"), xr.Dataset({"critical_rate": ("context", [1.0, 1.0])})
    five = chapter(
        "05",
        nb=SimpleNamespace(fitting_contexts=lambda model: [SimpleNamespace(id=name) for name in "ab"]),
        critical={case: critical},
        sharpness_contexts=1,
        sharpness=lambda *given: torch.tensor([3.0]),
        runs={case: run},
        jumps={case: jumps.find_jumps(run)},
        multiples=[0.5, 1.0],
    )
    table = five.edge_of_stability(SimpleNamespace(name="m"), "adam")
    assert table.context.tolist() == ["a", "a"] and table.multiple.tolist() == [0.5, 1.0]
    assert table.edge.tolist() == [1.5, 3.0] and table.critical_edge.tolist() == [3.0, 3.0]
    assert table.jumped.tolist() == [False, True] and table.largest.tolist() == pytest.approx([0, 0.2 / 0.8])


def test_contexts_without_critical_rate_are_left_out():
    found = xr.Dataset({"critical_rate": ("context", [0.1, np.nan, 0.4])})
    contexts, rates = jumps.with_critical_rate(["a", "b", "c"], found)
    assert contexts == ["a", "c"] and rates.tolist() == [0.1, 0.4]


def test_interval_of_a_median_covers_it():
    values = np.random.default_rng(1).normal(size=200)
    low, high = jumps.median_interval(values)
    assert low < np.median(values) < high and high - low == pytest.approx(2 * 1.96 * np.sqrt(np.pi / 2 / 200), rel=0.4)
    assert jumps.median_interval([0.5]) == (0.5, 0.5)
    assert np.isnan(jumps.median_interval([])).all()


def test_jumps_count_as_frozen_only_if_every_step_is_unchanged():
    phi = np.zeros((2, 1, 12))
    phi[:, 0, 3:] = 0.2
    run = recorded(phi, contexts=("a", "b"), readout_unchanged=np.ones((2, 1, 12)))
    run["diverged_step"] = run.phi.isel(step=0, drop=True) - 1
    run["readout_unchanged"][1, 0, 0, 9] = 0
    found = jumps.frozen_jumps([run], [jumps.find_jumps(run)])
    assert found.sentences == ["a"] and found.changed_steps == 1 and found.runs == 2


def test_lora_leaves_the_readout_alone_and_full_training_does_not():
    model = tiny.model("GPT2")
    contexts = tiny.contexts(model)
    lora = finetune(model, contexts, [0.1], Recipe(method="lora", steps=4, rank=2))
    full = finetune(model, contexts, [0.01], Recipe(steps=4))
    none = pd.DataFrame()
    assert jumps.frozen_jumps([lora], [none]).changed_steps == 0
    assert jumps.frozen_jumps([full], [none]).changed_steps == 8
    assert (lora.phi_geometry_part.isel(step=slice(1, None)) == 0).all()
