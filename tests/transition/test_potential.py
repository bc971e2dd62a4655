"""Wells, barriers and forces against known shapes."""

import numpy as np
import pytest
from toys import Direct, recorded

from phantomlib.transition import potential


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


def test_force_is_the_derivative_of_the_gap():
    s = np.linspace(0, 3, 31)
    run = recorded(np.zeros((1, 1, 31)), logit_gap=np.expm1(s)[None, None] - 2)
    run = run.assign_coords(learning_rate=(("context", "rate"), [[0.1]]))
    found = potential.force(run)
    assert found.force.values.ravel() == pytest.approx(found.gap.values.ravel() + 3, rel=1e-3)  # Δ' = Δ + 3
    assert found.weakest.item() == pytest.approx(1) and found.crossed.item()
    run["logit_gap"] = run.logit_gap - 100
    assert not potential.force(run).crossed.item()


def test_the_profile_ends_where_the_run_goes(jumping):
    model, contexts, recipe, run, first = jumping
    found = potential.potential_profile(Direct(), model, contexts, first, recipe)
    for name in ("cross_entropy", "logit_gap", "phi"):
        values = run[name].isel(rate=0, seed=0)
        assert found[name].sel(fraction=0).values == pytest.approx(values[:, 2].values)
        assert found[name].sel(fraction=1).values == pytest.approx(values[:, 3].values)
