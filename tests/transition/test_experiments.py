"""The experiments of tests (ii) to (v): schedules against a plain loop, exponents, wells and slopes against known shapes."""

from functools import partial

import numpy as np
import pytest
import tiny
import xarray as xr
from plain import gap, training
from toys import Direct, recorded

from phantomlib.engine.recipe import Recipe
from phantomlib.transition import experiments, jumps

RECIPE = Recipe(optimizer="adam", steps=6)


@pytest.fixture(scope="module")
def jumping():
    """A source of runs, two contexts, one of their runs, and a "jump" declared at its step 3."""
    model = tiny.model("GPTNeoX")
    run, contexts = partial(Direct().run, model), tiny.contexts(model)
    original = run(contexts, [0.01], RECIPE)
    table = jumps.find_jumps(original, size_factor=0, median_factor=0)
    return run, contexts, original, table[table["step"] == 3].drop_duplicates("context").set_index("context")


def test_branches_follow_the_run_up_to_the_jump(jumping):
    run, contexts, original, first = jumping
    found = experiments.follow_branches(run, contexts, first, RECIPE, brake=0.5)
    gaps = original.logit_gap.isel(rate=0, seed=0).values
    assert found.logit_gap.sel(start="before").values[:, :3] == pytest.approx(gaps[:, :3])
    assert found.logit_gap.sel(start="after").values[:, :4] == pytest.approx(gaps[:, :4])
    plain = training(tiny.model("GPTNeoX"), contexts[0], [0.01] * 2 + [0.005] * 10, RECIPE)
    oracle = [gap(z, contexts[0]) for _, z, _ in plain]
    assert found.logit_gap.sel(start="before").values[0] == pytest.approx(oracle, abs=1e-9)
    end = found.phi.isel(step=-1)
    expected = abs(end.sel(start="after") - end.sel(start="before")) / np.sqrt(1 - original.overlap[:, 0, 0, 0] ** 2)
    assert found.difference.values == pytest.approx(expected.values)


def test_ramps_consume_the_same_sum_in_both_orders(jumping):
    run, contexts, *_ = jumping
    found = experiments.run_ramps(run, contexts, np.array([1e-3, 2e-3]), RECIPE, low=0.5, high=2)
    up, down = found.schedule.sel(order="up").values, found.schedule.sel(order="down").values
    assert found.consumed[0, -1].item() == pytest.approx(found.consumed[1, -1].item())
    assert up[0, :-1] == pytest.approx(down[0, -2::-1])
    assert found.schedule.max("step", skipna=True).values == pytest.approx(np.array([[2e-3] * 2, [4e-3] * 2]))
    assert ((found.area >= 0) & (found.area < 1)).all()


PHI = (  # two steps along either order of the rates 1 and 3: (context, order, step)
    ((0, 0.4, 0.4), (0, 0, 0.4)),  # the rise is at s = 0..1 one way, at 3..4 the other
    ((0, 0.4, 0), (0, 0.4, 0)),  # tops at s = 1 and 3: the paths cross at 2
    ((0, 0.1, 0.4), (0, 0.3, 0.4)),  # both on one line
)


def by_hand(contexts, learning_rates, recipe):
    assert learning_rates.tolist() == [[[1, 3], [3, 1]]] * 3
    return recorded(PHI, overlap=0.6, contexts=contexts)


def test_the_area_of_a_loop_done_by_hand():
    found = experiments.run_ramps(by_hand, ["a", "b", "c"], np.ones(3), Recipe(steps=2), low=1, high=3)
    # a trapezoid of sides 4 and 2; four triangles of base 1 and height 2/3 of the top; nothing. Mean over s, bound 0.8
    expected = [0.4 * (4 + 2) / 2 / 4 / 0.8, 4 * (0.4 * 2 / 3) / 2 / 4 / 0.8, 0]
    assert found.area.values == pytest.approx(expected, rel=1e-3, abs=1e-12)


def slowing(multiple, step):
    multiple, step = np.array(multiple), np.array(step, dtype=float)
    columns = {"step": step, "consumed": step * multiple}
    times = {name: (("context", "multiple"), values[None]) for name, values in columns.items()}
    return experiments.slowing_down(xr.Dataset(times, {"multiple": multiple})).iloc[0]


@pytest.mark.parametrize("nu", [0.5, 1.0, None])
def test_slowing_finds_the_exponent_of_a_power_law(nu):
    multiple = np.array([1.02, 1.06, 1.2, 1.5, 3.0, 10.0])
    found = slowing(multiple, 20 / multiple if nu is None else 20 * (multiple - 1) ** -nu)
    if nu is None:  # regular: what is left is the range fitted
        assert found.slope == pytest.approx(-1) and found.spread == pytest.approx(1) and 0 < found.exponent < 0.15
    else:
        assert found.exponent == pytest.approx(nu)
    found = slowing([0.25, 1.02, 1.2, 1.5], [np.nan, 20, 15, 10])  # one does not cross
    assert np.isnan(found.spread) and np.isnan(found.slope) and np.isfinite(found.exponent)


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
    found = experiments._shape(x, loss(x))
    inside = loss(x)[x <= 1]
    brute = max(inside[j] - inside[i] for j in range(len(inside)) for i in range(j + 1))
    if barrier == 1.25:  # minima at 3/8 and 9/8 between the ends' maxima: two wells, one ridge, brute-force barrier
        wells, barrier = 2, brute
    assert found[0] == wells and found[1] == pytest.approx(brute) and found[1] == pytest.approx(barrier, abs=1e-3)
    assert convex is None or found[2] == convex


def test_a_deeper_well_one_point_behind_a_ridge_is_another():
    assert experiments._shape(np.array([0, 0.5, 1.0]), np.array([1.0, 2.0, 0.0]))[:2] == (2, 1.0)


def test_force_is_the_derivative_of_the_gap():
    s = np.linspace(0, 3, 31)
    run = recorded(np.zeros((1, 1, 31)), logit_gap=np.expm1(s)[None, None] - 2)
    run = run.assign_coords(learning_rate=(("context", "rate"), [[0.1]]))
    found = experiments.force(run)
    assert found.force.values.ravel() == pytest.approx(found.gap.values.ravel() + 3, rel=1e-3)  # Δ' = Δ + 3
    assert found.weakest.item() == pytest.approx(1) and found.crossed.item()
    run["logit_gap"] = run.logit_gap - 100
    assert not experiments.force(run).crossed.item()


def test_the_profile_ends_where_the_run_goes(jumping):
    run, contexts, original, first = jumping
    found = experiments.potential_profile(run, contexts, first, RECIPE)
    for name in ("cross_entropy", "logit_gap", "phi"):
        values = original[name].isel(rate=0, seed=0)
        assert found[name].sel(fraction=0).values == pytest.approx(values[:, 2].values)
        assert found[name].sel(fraction=1).values == pytest.approx(values[:, 3].values)


def test_refinement_slope_of_power_laws():
    n, powers = np.array([1, 8, 16, 32]), [-1.0, 0.0, -0.5]
    largest = [0.3 * n**power for power in powers]
    largest = xr.DataArray(largest, {"context": list("abc"), "refinement": n}, ["context", "refinement"])
    assert experiments.refinement_slopes(largest).values == pytest.approx(powers)


def test_refinement_of_sgd_approaches_gradient_flow(jumping):
    run, contexts, *_ = jumping
    recipe = Recipe(optimizer="sgd", steps=3)
    refined = experiments.refine_jumps(run, contexts, run(contexts, [0.05], recipe), recipe)
    slopes = experiments.refinement_slopes(experiments.largest_steps(refined))
    assert slopes.values == pytest.approx([-1, -1], abs=0.1)
