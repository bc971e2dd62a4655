"""Phantoms: jumps and tests against closed forms, toy potentials, and plain torch loops."""

import copy

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
import xarray as xr

from phantomlib.errors import ParameterError
from phantomlib.ledger import scoreboard
from phantomlib.ledger.claims import load_claims
from phantomlib.measure.finetune import finetune
from phantomlib.measure.recipe import Recipe
from phantomlib.transition import branches, double_well, examine, frozen_readout, jumps, potential, refinement, slowing

C5 = next(claim for claim in load_claims() if claim.id == "C5")


class Direct:
    """A store that keeps nothing."""

    def run(self, model, contexts, learning_rates, recipe, **options):
        options.pop("progress", None)
        dataset = finetune(model, contexts, learning_rates, recipe, **options)
        dataset.attrs["run_id"] = "direct"
        return dataset


class Logistic(double_well.DoubleWell):
    """Two tokens of one softmax: a loss without barrier, whose descent crosses zero smoothly."""

    energy = staticmethod(lambda gap: np.logaddexp(0, -gap))
    slope = staticmethod(lambda gap: -1 / (1 + np.exp(gap)))


def recorded(phi, *, overlap=0.6, contexts=("a",), **fields) -> xr.Dataset:
    """Runs with given Φ (C, rates, T + 1), one seed."""
    phi = np.asarray(phi, dtype=float)[:, :, None]
    dims = ("context", "rate", "seed", "step")
    readout = 0.9 * np.diff(phi, prepend=np.nan)
    values = {
        "phi": phi,
        "phi_readout_part": readout,
        "phi_geometry_part": readout / 9,
        "overlap": np.full_like(phi, overlap),
        "readout_drift": np.zeros_like(phi),
        "logit_gap": np.zeros_like(phi),
        "cross_entropy": -phi,
    } | {name: np.asarray(v, dtype=float)[:, :, None] for name, v in fields.items()}
    coords = {"context": list(contexts), "seed": [0], "step": np.arange(phi.shape[-1])}
    rates = (("context", "rate"), np.tile(np.arange(1.0, phi.shape[1] + 1), (len(phi), 1)))
    return xr.Dataset({name: (dims, v) for name, v in values.items()}, coords | {"learning_rate": rates})


# steps of 0.001, one of them replaced; the bound at overlap 0.6 is 0.8
@pytest.mark.parametrize(
    ("step", "factors", "expected"),
    [
        (0.081, {}, 1),
        (0.079, {}, 0),
        (-0.2, {}, 1),
        (0.081, {"median_factor": 100}, 0),
        (0.079, {"size_factor": 0.09}, 1),
        (np.nan, {}, 0),
    ],
)
def test_a_jump_is_large_against_the_bound_and_against_the_median(step, factors, expected):
    changes = np.full(20, 0.001)
    changes[6] = step
    table = jumps.find_jumps(recorded(np.cumsum([0, *changes])[None, None]), **factors)
    assert len(table) == expected
    if expected:
        row = table.iloc[0]
        assert row.loss_change == pytest.approx(-step)
        assert (
            row.step == 7
            and row["size"] == pytest.approx(step)
            and row.share_of_bound == pytest.approx(abs(step) / 0.8)
        )
        assert row.readout_part + row.geometry_part == pytest.approx(
            row["size"]
        ) and row.readout_share == pytest.approx(0.9)


def test_a_run_of_equal_large_steps_has_no_jump():
    assert jumps.find_jumps(recorded(np.linspace(-0.5, 0.5, 6)[None, None])).empty


def test_first_jumps_and_counts():
    phi = np.zeros((2, 2, 12))
    phi[0, 1, 3:], phi[0, 1, 8:], phi[1, 1, 5:] = 0.2, 0.5, -0.3
    table = jumps.find_jumps(recorded(phi, contexts=("a", "b")))
    assert jumps.jumping_contexts(table, 2) == [0, 2]
    assert jumps.first_jumps(table, 1)["step"].to_dict() == {"a": 3, "b": 5}
    assert jumps.first_jumps(table, 0).empty
    found = jumps.geometry_at_jumps(table)
    assert found.n == 3 and found.median_share == pytest.approx(0.1) and found.high_drift == 0


def test_sizes_are_measured_against_the_bound_before_the_step():
    run = recorded([[[0, 0.1, 0.4]]])
    run["overlap"][..., 1] = 0.8
    assert jumps.step_sizes(run).values.ravel() == pytest.approx([0.1 / 0.8, 0.3 / 0.6])


@pytest.mark.parametrize(("nu", "slope"), [(0.5, None), (1.0, None), (0.0, -1.0)])
def test_slowing_finds_the_exponent_of_a_power_law(nu, slope):
    multiple = np.array([1.02, 1.06, 1.2, 1.5, 3.0, 10.0])
    step = 20 / multiple if slope else 20 * (multiple - 1) ** -nu
    times = xr.Dataset(
        {"step": (("context", "multiple"), step[None]), "consumed": (("context", "multiple"), (step * multiple)[None])},
        {"multiple": multiple},
    )
    found = slowing.slowing_down(times)
    if slope:
        assert found.slope[0] == pytest.approx(-1) and found.spread[0] == pytest.approx(1)
        assert 0 < found.exponent[0] < 0.15  # regular: what is left is the range fitted
    else:
        assert found.exponent[0] == pytest.approx(nu)


def test_slowing_is_nan_without_a_crossing():
    times = xr.Dataset(
        {name: (("context", "multiple"), [[np.nan, 20, 15, 10]]) for name in ("step", "consumed")},
        {"multiple": [0.25, 1.02, 1.2, 1.5]},
    )
    found = slowing.slowing_down(times)
    assert np.isnan(found.spread[0]) and np.isnan(found.slope[0]) and np.isfinite(found.exponent[0])


@pytest.mark.parametrize(
    ("loss", "wells", "barrier", "convex"),
    [
        (lambda x: (x - 1) ** 2, 1, 0, 1),
        (lambda x: np.exp(-3 * x), 1, 0, 1),
        (lambda x: np.cos(4 * np.pi * x / 1.5) + 1, 3, 1.25, None),
        (lambda x: np.exp(-x) + 1e-4 * np.cos(40 * x), 1, 0, None),  # ripples below the noise
        (lambda x: -(x**2), 1, 0, 0),
    ],
)
def test_shape_of_a_loss_on_a_line(loss, wells, barrier, convex):
    x = np.linspace(0, 1.5, 61)
    found = potential._shape(x, loss(x))
    inside = loss(x)[x <= 1]
    brute = max(inside[j] - inside[i] for j in range(len(inside)) for i in range(j + 1))
    if barrier == 1.25:  # minima at 3/8 and 9/8 between the ends' maxima: two wells, one ridge, brute-force barrier
        wells, barrier = 2, brute
    assert found[0] == wells and found[1] == pytest.approx(brute) and found[1] == pytest.approx(barrier, abs=1e-3)
    assert convex is None or found[2] == convex


def test_regular_exponent_is_that_of_a_constant_product():
    multiple = np.array([0.25, 1.02, 1.06, 1.2, 1.5, 3.0])
    times = xr.Dataset({n: (("context", "multiple"), (20 / multiple)[None]) for n in ("step", "consumed")})
    found = slowing.slowing_down(times.assign_coords(multiple=multiple))
    assert slowing.regular_exponent(multiple) == pytest.approx(found.exponent[0])


@pytest.mark.parametrize("slope", [-1.0, 0.0, -0.5])
def test_refinement_slope_of_a_power_law(slope):
    n = np.array([1, 8, 16, 32])
    largest = xr.DataArray([0.3 * n**slope], {"context": ["a"], "refinement": n}, ["context", "refinement"])
    assert refinement.refinement_slopes(largest).values == pytest.approx([slope])


def test_refinement_slope_needs_enough_refinements():
    largest = xr.DataArray([[1.0, 2.0]], {"context": ["a"], "refinement": [1, 2]}, ["context", "refinement"])
    with pytest.raises(ParameterError, match="at least as many"):
        refinement.refinement_slopes(largest)


def test_force_is_the_derivative_of_the_gap():
    s = np.linspace(0, 3, 31)
    run = recorded(np.zeros((1, 1, 31)), logit_gap=np.expm1(s)[None, None] - 2)
    run = run.assign_coords(learning_rate=(("context", "rate"), [[0.1]]))
    found = potential.force(run)
    assert found.force.values.ravel() == pytest.approx(found.gap.values.ravel() + 3, rel=1e-3)  # Δ' = Δ + 3
    assert found.weakest.item() == pytest.approx(1) and found.crossed.item()
    run["logit_gap"] = run.logit_gap - 100
    assert not potential.force(run).crossed.item()


def test_onset_places_runs_on_the_edge_of_stability():
    phi = np.zeros((2, 2, 12))
    phi[0, 1, 3:] = 0.2
    run = recorded(phi, contexts=("a", "b"))  # learning rates 1 and 2
    table = jumps.onset(jumps.find_jumps(run), run, [0.5, 1.0], pd.Series({"a": 3.0}))
    assert table.edge.tolist() == [1.5, 3.0] and table.critical_edge.tolist() == [3.0, 3.0]
    assert table.jumped.tolist() == [False, True] and table.largest.tolist() == pytest.approx([0, 0.2 / 0.8])


def test_contexts_without_critical_rate_are_left_out():
    found = xr.Dataset({"critical_rate": ("context", [0.1, np.nan, 0.4])})
    contexts, rates = jumps.with_critical_rate(["a", "b", "c"], found)
    assert contexts == ["a", "c"] and rates.tolist() == [0.1, 0.4]
    assert jumps.geometric_mean(found.critical_rate) == pytest.approx(0.2)


def test_nearest_multiple_and_clearest_context():
    assert jumps.nearest_multiple([0.7, 3, 30], 1.5) == 1
    phi = np.zeros((2, 1, 12))
    phi[0, 0, 3:], phi[1, 0, 3:] = 0.2, -0.4
    assert jumps.clearest_jump(jumps.find_jumps(recorded(phi, contexts=("a", "b")))) == "b"
    assert jumps.clearest_jump(jumps.find_jumps(recorded(phi[:, :, :2], contexts=("a", "b")))) is None


def test_interval_of_a_median_covers_it():
    values = np.random.default_rng(1).normal(size=200)
    low, high = jumps.median_interval(values)
    assert low < np.median(values) < high and high - low == pytest.approx(2 * 1.96 * np.sqrt(np.pi / 2 / 200), rel=0.4)
    assert jumps.median_interval([0.5]) == (0.5, 0.5)


def test_jumps_count_as_frozen_only_if_every_step_is_unchanged():
    phi = np.zeros((2, 1, 12))
    phi[:, 0, 3:] = 0.2
    run = recorded(phi, contexts=("a", "b"), readout_unchanged=np.ones((2, 1, 12)))
    run["diverged_step"] = run.phi.isel(step=0, drop=True) - 1
    run["readout_unchanged"][1, 0, 0, 9] = 0
    table = jumps.find_jumps(run)
    found = frozen_readout.frozen_jumps([run], [table])
    assert found.sentences == ["a"] and found.changed_steps == 1 and found.runs == 2
    assert frozen_readout.contexts_by_seed(table, [0, 1]) == [2, 0]


# ------------------------------------------------------------------------------------------- the tests as a whole


def examined(toy, high):
    rates = toy.critical_rates()
    recipe = Recipe(optimizer="sgd", steps=20)
    return examine.examine(toy, None, toy.contexts(), rates, recipe, multiples=(0.5, high), counted=(high,))


STARTS = {f"start {x:.1f}": x for x in (-2.2, -2.0, -1.8)}


def test_a_double_well_fails_what_looks_for_a_second_branch():
    measured = examine.summarise_tests([examined(double_well.DoubleWell(STARTS), 1.5)])
    failed = {test for test, ok in scoreboard.passed_tests(C5, measured).items() if not ok}
    assert failed == {"bistability", "slowing", "potential"}
    assert measured["bistability"]["same_branch_share"] == 0 and measured["bistability"]["ramp_same_branch_share"] == 0


def test_a_convex_loss_passes_all_tests(monkeypatch):
    toy = Logistic(STARTS)
    # the time of gradient descent to zero: ∫ (1 + e^Δ) dΔ from Δ_0 to 0
    rates = np.array([(-x + 1 - np.exp(x)) / 20 for x in STARTS.values()])
    monkeypatch.setattr(Logistic, "critical_rates", lambda self: rates)
    found = examined(toy, 30.0)
    measured = examine.summarise_tests([found])
    assert all(scoreboard.passed_tests(C5, measured).values()), measured
    assert len(found.first) == 3 and found.profile.barrier.max() == 0
    crossing = found.times.consumed.sel(multiple=0.25)  # small steps: the exact time
    assert crossing.values == pytest.approx(1, rel=0.02)


def test_without_jumps_quantities_of_jumps_are_nan_and_fail():
    toy = double_well.DoubleWell(STARTS)
    measured = examine.summarise_tests([examined(toy, 0.02)])
    assert np.isnan(measured["geometry"]["median_geometry_share"]) and np.isnan(measured["refinement"]["median_slope"])
    verdicts = scoreboard.passed_tests(C5, measured)
    assert not verdicts["geometry"] and not verdicts["refinement"]


def test_a_quantity_that_was_not_measured_is_an_error():
    with pytest.raises(ParameterError, match="median_geometry_share"):
        scoreboard.passed_tests(C5, {"geometry": {}})


def test_the_board_shows_every_criterion():
    measured = examine.summarise_tests([examined(double_well.DoubleWell(STARTS), 1.5)])
    table = scoreboard.scoreboard(C5, {"control": measured})
    assert len(table) == sum(map(len, C5.tests.values())) and table.iloc[0].threshold == "≤ 0.1"


def test_a_changed_threshold_changes_a_verdict():
    measured = examine.summarise_tests([examined(double_well.DoubleWell(STARTS), 1.5)])
    strict = copy.deepcopy(C5)
    strict.tests["refinement"]["median_slope"]["threshold"] = -2
    assert (
        scoreboard.passed_tests(C5, measured)["refinement"]
        and not scoreboard.passed_tests(strict, measured)["refinement"]
    )


# ------------------------------------------------------------------------------------------- on models


def plain_loop(model, context, schedule, optimizer):
    """Logit gaps of an ordinary torch.optim loop whose learning rate changes at every step."""
    module = copy.deepcopy(model.module).requires_grad_()
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    stepper = kind(module.parameters(), lr=1.0)
    ids, gaps = torch.tensor([context.prompt_ids]), []
    for rate in [*schedule, None]:
        logits = module(ids, use_cache=False).logits[0, -1]
        gaps.append((logits[context.correct_id] - logits[context.competitor_id]).item())
        if rate is not None:
            stepper.param_groups[0]["lr"] = rate
            stepper.zero_grad()
            F.cross_entropy(logits, torch.tensor(context.correct_id)).backward()
            stepper.step()
    return gaps


@pytest.mark.parametrize(("optimizer", "scale"), [("sgd", 0.05), ("adam", 0.01)])
def test_a_schedule_is_a_plain_loop_with_changing_rates(optimizer, scale):
    model = tiny.model("GPT2")
    contexts = tiny.contexts(model)
    schedules = scale * np.random.default_rng(0).uniform(0.1, 2, (2, 3, 6))
    run = finetune(model, contexts, schedules, Recipe(optimizer=optimizer, steps=6))
    for c, context in enumerate(contexts):
        for r in range(3):
            oracle = plain_loop(model, context, schedules[c, r].tolist(), optimizer)
            assert run.logit_gap.values[c, r, 0] == pytest.approx(oracle, abs=1e-9)
    assert run.learning_rate.values == pytest.approx(schedules.max(-1))
    assert run.schedule.values[..., :-1] == pytest.approx(schedules) and np.isnan(run.schedule.values[..., -1]).all()


@pytest.mark.parametrize("shape", [(2, 3, 5), (1, 3, 6), (2, 3, 6, 1)])
def test_schedules_of_a_wrong_shape_are_refused(shape):
    model = tiny.model("GPT2")
    with pytest.raises(ParameterError):
        finetune(model, tiny.contexts(model), np.full(shape, 0.1), Recipe(optimizer="sgd", steps=6))


@pytest.fixture(scope="module")
def jumping():
    """A tiny model, its contexts, a run, and a "jump" declared at step 3 of every context."""
    model, recipe = tiny.model("GPTNeoX"), Recipe(optimizer="adam", steps=6)
    contexts = tiny.contexts(model)
    run = finetune(model, contexts, [0.01], recipe)
    table = jumps.find_jumps(run, size_factor=0, median_factor=0)
    first = table[table["step"] == 3].drop_duplicates("context").set_index("context")
    return model, contexts, recipe, run, first


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


def test_the_profile_ends_where_the_run_goes(jumping):
    model, contexts, recipe, run, first = jumping
    found = potential.potential_profile(Direct(), model, contexts, first, recipe)
    for name in ("cross_entropy", "logit_gap", "phi"):
        values = run[name].isel(rate=0, seed=0)
        assert found[name].sel(fraction=0).values == pytest.approx(values[:, 2].values)
        assert found[name].sel(fraction=1).values == pytest.approx(values[:, 3].values)


def test_ramps_consume_the_same_sum_in_both_orders(jumping):
    model, contexts, recipe, *_ = jumping
    found = branches.run_ramps(Direct(), model, contexts, np.array([1e-3, 2e-3]), recipe, low=0.5, high=2)
    assert found.consumed[0, -1].item() == pytest.approx(found.consumed[1, -1].item())
    assert found.schedule.sel(order="up").values[0, :-1] == pytest.approx(
        found.schedule.sel(order="down").values[0, -2::-1]
    )
    assert found.schedule.max("step", skipna=True).values == pytest.approx(np.array([[2e-3] * 2, [4e-3] * 2]))
    assert ((found.area >= 0) & (found.area < 1)).all()


def test_refinement_of_sgd_approaches_gradient_flow(jumping):
    model, contexts, *_ = jumping
    refined = refinement.refine_jumps(
        Direct(), model, contexts, [0.05, 0.05], Recipe(optimizer="sgd", steps=3), (1, 8, 16, 32)
    )
    slopes = refinement.refinement_slopes(refinement.largest_steps(refined))
    assert slopes.values == pytest.approx([-1, -1], abs=0.1)


def test_lora_leaves_the_readout_alone_and_full_training_does_not():
    model = tiny.model("GPT2")
    contexts = tiny.contexts(model)
    lora = finetune(model, contexts, [0.1], Recipe(method="lora", steps=4, rank=2))
    full = finetune(model, contexts, [0.01], Recipe(steps=4))
    assert refinement.changed_steps(lora) == 0 and refinement.changed_steps(full) == 8
    assert (lora.phi_geometry_part.isel(step=slice(1, None)) == 0).all()


def test_nothing_to_follow_without_jumps(jumping):
    model, contexts, recipe, _, first = jumping
    assert branches.follow_branches(Direct(), model, contexts, first.iloc[:0], recipe) is None
    assert potential.potential_profile(Direct(), model, contexts, first.iloc[:0], recipe) is None
