"""The search against closed forms, the brackets against real runs."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import xarray as xr

from phantomlib.critical import search
from phantomlib.critical.search import critical_rates, crossing_step
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.runs.store import Store

INF, NAN = np.inf, np.nan
T, CLOSED = 20, SimpleNamespace(name="closed")


@pytest.mark.parametrize(
    "gap, crossed, step",
    [
        ([-1, -0.5, 0.5], True, 1.5),
        ([-1, 1, -1], True, 0.5),  # falling back later does not undo a crossing
        ([-1, -0.5, -0.25], False, 3.0),
        ([-1, -1.5, -2], False, INF),
        ([-1, NAN, NAN], False, INF),
        ([-1, 1, NAN], True, 0.5),
        ([-1, 0, 1], True, 1.0),
        ([-1, -0.5, 0], False, 2.0),  # level is not yet above
    ],
)
def test_crossing_step(gap, crossed, step):
    assert crossing_step(np.array(gap, dtype=float)) == (crossed, pytest.approx(step))


class ClosedForm:
    """A store whose runs follow formulas ``gap(η, t)``, one per context; counts what is asked of it."""

    def __init__(self, **formulas):
        self.formulas, self.requests = formulas, []

    def run(self, model, contexts, rates, recipe, *, seeds=(0,)):
        rates = np.broadcast_to(np.asarray(rates, dtype=float), (len(contexts), np.shape(rates)[-1]))
        steps = np.arange(recipe.steps + 1.0)
        self.requests.append(rates)
        rows = zip(contexts, rates, strict=True)
        gaps = np.stack([[self.formulas[c.id](r, steps) for r in row] for c, row in rows])[:, :, None]
        coordinates = {"context": [c.id for c in contexts], "learning_rate": (("context", "rate"), rates)}
        finite = np.isfinite(gaps)
        diverged = np.where(finite.all(-1), -1, finite.argmin(-1))
        over = ("context", "rate", "seed")
        variables = {"logit_gap": ((*over, "step"), gaps), "diverged_step": (over, diverged)}
        return xr.Dataset(variables, coordinates, {"run_id": f"run{len(self.requests)}"})

    def remember(self, kind, key, model, contexts, recipe, compute, **options):
        return compute()

    def search(self):
        return critical_rates(self, CLOSED, self.contexts, Recipe(steps=T))

    @property
    def contexts(self):
        return [SimpleNamespace(id=name) for name in self.formulas]


@pytest.fixture
def starts(monkeypatch):
    """Let the search start where a velocity of 1 nat per unit rate (or a given one) sends it."""

    def given(*velocities):
        first = SimpleNamespace(velocity=torch.tensor(velocities).double(), gap=-torch.ones(len(velocities)).double())
        monkeypatch.setattr(search, "velocity", lambda *_, **__: first)

    return given


# name -> (gap of rate and step, critical rate); the first velocity predicts 1 / T = 0.05 in all
FORMULAS = {
    "straight": (lambda r, t: r * t - 1, 1 / T),
    "saturating": (lambda r, t: 2 * (1 - np.exp(-0.5 * r * t)) - 1, 2 * np.log(2) / T),
    "accelerating": (lambda r, t: (np.exp(2 * r * t) - 1) / 2 - 1, np.log(3) / 2 / T),
    "late": (lambda r, t: (r * t) ** 3 / 8 - 1, 2 / T),
    "far": (lambda r, t: r * t / 500 - 1, 500 / T),
    "near": (lambda r, t: r * t * 300 - 1, 1 / 300 / T),
    "falls back": (lambda r, t: 1.2 * np.sin(np.pi / 2 * r * t) - 1, 2 / np.pi * np.arcsin(1 / 1.2) / T),
    "diverges soon": (lambda r, t: np.where(r * t > 1.9, NAN, r * t / 1.5 - 1), 1.5 / T),
    "falls first": (lambda r, t: (r * t) ** 2 - r * t / 2 - 1, (0.25 + np.sqrt(0.0625 + 1)) / T),
    "a step": (lambda r, t: np.where(r * t > 1.234, 1.0, -1.0), 1.234 / T),
}


def test_the_search_encloses_known_boundaries(starts):
    starts(*[1.0] * len(FORMULAS))
    store = ClosedForm(**{name: formula for name, (formula, _) in FORMULAS.items()})
    found = store.search()
    truth = np.array([rate for _, rate in FORMULAS.values()])
    assert found.converged.all() and found.crossed.all() and (found.reentries == 0).all()
    assert (found.lower.values <= truth * (1 + 1e-6)).all() and (truth * (1 - 1e-6) <= found.upper.values).all()
    assert (found.upper / found.lower <= 1.005).all()
    smooth = found.sel(context=["straight", "saturating", "accelerating"])
    assert (smooth.n_runs <= 4).all() and (found.replica_steps == T * found.n_runs).all()
    assert found.attrs["run_ids"].split() == [f"run{n + 1}" for n in range(len(store.requests))]


@pytest.mark.parametrize("velocity", [-1.0, 0.0, NAN])
def test_without_a_usable_velocity_the_search_starts_elsewhere_and_says_so(starts, velocity):
    starts(velocity)
    found = ClosedForm(straight=FORMULAS["straight"][0]).search()
    assert not found.predicted_start.item() and found.converged.item()
    assert found.critical_rate.item() == pytest.approx(1 / T, rel=0.005)


def test_what_never_crosses_is_reported_and_not_dropped(starts):
    starts(1.0, 1.0)
    never = lambda r, t: np.where(r * t > 50, NAN, -1 - 0.1 * t)  # noqa: E731
    found = ClosedForm(never=never, straight=FORMULAS["straight"][0]).search()
    assert found.crossed.values.tolist() == [False, True] and found.converged.values.tolist() == [False, True]
    assert np.isnan(found.critical_rate[0]) and np.isinf(found.upper[0]) and found.diverged[0] > 0


def test_a_bracket_beside_an_island_is_still_a_bracket(starts):
    starts(1.0)

    def islands(r, t):  # crosses for r T in (0.8, 0.9) and above 2
        return np.where(t == 0, -1.0, np.where((r * T > 0.8) & (r * T < 0.9), 0.5, r * t - 2))

    found = ClosedForm(islands=islands).search()
    assert found.converged.item() and found.reentries.item() == 0  # a search can miss an island,
    assert found.critical_rate.item() == pytest.approx(2 / T, rel=0.005)
    seen = search._Search(0.0, T, 0.005)  # which one that comes across it counts
    for rate in (3.0, 0.85, 0.7, 1.5):
        seen.add(rate / T, islands(rate / T, np.arange(T + 1.0)))
    assert seen.reentries() == 1 and np.exp([seen.lower, seen.upper]) * T == pytest.approx([0.7, 0.85])


@pytest.mark.parametrize("optimizer, method", [("sgd", "full"), ("adam", "full"), ("adam", "lora")])
def test_real_runs_confirm_both_ends_of_the_bracket(tmp_path, optimizer, method):
    model, store = tiny.model("GPT2"), Store(tmp_path)
    contexts = tiny.contexts(model, place=3)
    recipe = Recipe(optimizer=optimizer, method=method, steps=6, rank=2)
    seeds = (0, 1) if method == "lora" else (0,)
    found = critical_rates(store, model, contexts, recipe, seeds=seeds)
    assert found.converged.all()
    for seed in seeds:
        one = found.sel(seed=seed) if method == "lora" else found
        ends = np.stack([one.lower.values, one.upper.values], 1)
        check = store.run(model, contexts, ends, recipe, seeds=(seed,)).isel(seed=0)
        assert (check.logit_gap > 0).any("step").values.tolist() == [[False, True]] * len(contexts)
    made = len(list(tmp_path.glob("*.nc")))
    xr.testing.assert_identical(critical_rates(store, model, contexts, recipe, seeds=seeds), found)
    assert len(list(tmp_path.glob("*.nc"))) == made and all(store.has(run) for run in found.attrs["run_ids"].split())


@pytest.mark.parametrize("tolerance", [0, -1, 2, "x", True, NAN])
def test_impossible_tolerances_are_refused(tolerance):
    with pytest.raises(ParameterError, match="tolerance"):
        critical_rates(None, None, [], Recipe(), tolerance=tolerance)
