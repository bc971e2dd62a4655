"""The ladder against torch.optim, real runs and closed forms."""

import dataclasses
import math

import numpy as np
import pytest
import tiny
import torch
from plain import gap_of, trained_copy

from phantomlib.critical import predictors
from phantomlib.critical.predictors import (
    LADDER,
    STEP_0,
    _Path,
    _sample,
    contexts_with_rates,
    first_steps,
    predict_critical_rates,
    predicted_gaps,
)
from phantomlib.critical.search import critical_rates
from phantomlib.critical.step_zero import velocity
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ContextError, ParameterError
from phantomlib.runs.store import Store

OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}


def surrogate(size=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    z = torch.tensor([0.3, 1.1, 2.0], dtype=torch.float64)
    return z, torch.randn(1, 3, size, generator=generator, dtype=torch.float64)


def pieces(D, cut=7):
    """A tensor (..., P) as nested lists of vectors, each of two tensors."""
    return [D[:cut], D[cut:]] if D.dim() == 1 else [pieces(part, cut) for part in D]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_frozen_gradients_are_followed_as_torch_optim_does_to_a_gap_of_zero(optimizer):
    z, D = surrogate()
    recipe, rate = Recipe(optimizer=optimizer, steps=12, epsilon=1e-6), 2e-3
    path = _Path(z, pieces(D), pieces(D[0, 0]), recipe)
    x = torch.zeros(D.shape[-1], dtype=torch.float64, requires_grad=True)
    options = {} if optimizer == "sgd" else {"eps": 1e-6}
    oracle = OPTIMIZERS[optimizer]([x], lr=rate, **options)
    passed = [z]
    for _ in range(12):
        oracle.zero_grad()
        torch.nn.functional.cross_entropy(z + D[0] @ x, torch.tensor(0)).backward()
        oracle.step()
        passed.append((z + D[0] @ x).detach())
    gaps = [float(logits[0] - logits[1]) for logits in passed]
    assert path.final_gap(rate, 1) == pytest.approx(gaps[-1], rel=1e-9)
    np.testing.assert_allclose(path.gaps(rate), gaps, rtol=1e-9)
    torch.testing.assert_close(torch.cat(path.displacement(rate, pieces(D))), x.detach(), rtol=1e-8, atol=1e-12)
    assert path.final_gap(path.critical_rate(1e-3), 1) == pytest.approx(0, abs=1e-3)
    backwards = pieces(D * torch.tensor([[[-1.0], [1.0], [1.0]]]))
    assert math.isnan(_Path(z, backwards, pieces(D[0, 0]), Recipe(steps=3)).critical_rate(1e-9))


def test_sgd_does_not_mind_the_rotation():
    z, D = surrogate(size=50)
    D = torch.cat([D, 0.3 * torch.randn(2, 3, 50, dtype=torch.float64)])
    d = torch.randn(50, dtype=torch.float64)
    d /= d.norm()
    path = _Path(z, pieces(D), pieces(d), Recipe(optimizer="sgd", steps=7))
    position, logits, along = torch.zeros(50, dtype=torch.float64), z, 0.0
    for _ in range(7):
        residual = logits.softmax(0) - torch.tensor([1.0, 0, 0], dtype=torch.float64)
        position = position - 0.01 * residual @ (D[0] + along * D[1] + along**2 / 2 * D[2])
        along = float(d @ position)
        logits = z + (D[0] + along / 2 * D[1] + along**2 / 6 * D[2]) @ position
    assert path.final_gap(0.01, 3) == pytest.approx(float(logits[0] - logits[1]), rel=1e-9)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("order", [1, 2, 3], ids=["three gradients", "second order", "third order and quadrature"])
def test_a_step_never_waits_for_the_device(optimizer, order):
    """It runs on a device that holds no numbers, where ``item`` and ``cpu`` raise."""
    D = torch.randn(order, 3, 20)
    path = _Path(torch.zeros(3), pieces(D), pieces(D[0, 0]), Recipe(optimizer, steps=2))
    assert path.follow(0.1).isfinite().all()
    path.z, path.rows, path.weighted = (tensor.to("meta") for tensor in (path.z, path.rows, path.weighted))
    z = path.follow(0.1)
    assert z.device.type == "meta" and z.shape == (3,) and len(path.factors) == 2
    with pytest.raises(RuntimeError, match="meta"):  # which is how it would fail
        path.final_gap(0.1)


def test_a_sample_is_exact_where_it_is_calibrated_and_close_elsewhere():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 50_000, generator=generator, dtype=torch.float64) ** 3
    rows[-1] = expected = torch.sign(rows[0]) + 0.1
    sampled, weights = _sample(pieces(rows, 20_000), 5_000)
    chosen = (rows[0] == sampled[0][:, None]).nonzero()[:, 1]  # no value occurs twice
    assert len(chosen) == pytest.approx(5_000, rel=0.01) and len(chosen.unique()) == len(chosen)
    assert torch.equal(rows[:, chosen], sampled)
    torch.testing.assert_close((sampled * weights) @ expected[chosen], rows @ expected, rtol=1e-8, atol=1e-6)
    other = expected * (1 + 0.3 * torch.rand(50_000, generator=generator, dtype=torch.float64))
    exact, estimate = rows @ other, (sampled * weights) @ other[chosen]
    assert float(estimate[0] / exact[0]) == pytest.approx(1, abs=0.005)
    everything, ones = _sample(pieces(rows[:, :100]), 5_000)
    assert torch.equal(everything, rows[:, :100]) and (ones == 1).all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "Llama"])
def test_the_ladder_climbs_towards_real_runs(tmp_path, architecture, optimizer):
    model, store = tiny.model(architecture), Store(tmp_path)
    contexts, recipe = tiny.contexts(model, place=3), Recipe(optimizer=optimizer, steps=10)
    truth = critical_rates(store, model, contexts, recipe, tolerance=1e-4).critical_rate.values
    found = predict_critical_rates(store, model, contexts, recipe)
    error = {name: np.abs(np.log(found[name].values / truth)).max() for name in LADDER}
    assert error["third_order"] < 0.03 and error["third_order"] < error["three_gradients"]
    assert error["quadrature"] < 0.03
    assert error["second_order"] < max(error["three_gradients"], 0.03)
    first = velocity(model, contexts, recipe)
    np.testing.assert_allclose(found.velocity, (-first.gap / first.velocity / 10).numpy(), rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_predicted_gaps_are_those_of_a_run(tmp_path, optimizer):
    model, store = tiny.model(), Store(tmp_path)
    [context], recipe = tiny.contexts(model, place=3)[:1], Recipe(optimizer=optimizer, steps=10)
    critical = predict_critical_rates(store, model, [context], recipe).third_order.item()
    rates = np.array([0.5, 1, 1.5]) * critical
    predicted = predicted_gaps(model, context, recipe, rates)
    run = store.run(model, [context], rates[None], recipe).logit_gap.isel(context=0, seed=0)
    assert predicted.dims == ("rate", "step") and predicted[1, -1].item() == pytest.approx(0, abs=1e-2)
    np.testing.assert_allclose(predicted, run, atol=0.03 * abs(run[0, 0].item()))
    with pytest.raises(ParameterError, match="lora"):
        predicted_gaps(model, context, Recipe(method="lora"), rates)


def test_a_straight_line_with_curvature():
    nan = math.nan
    for *given, root in ((-1, 1, 0, 1), (-1, 0, 2, 1), (-1.5, 1, 1, 1), (-1, 1, -1, nan), (-1, -1, 0, nan)):
        assert predictors._quadratic(*given) == pytest.approx(root, nan_ok=True)


def test_predictions_are_kept_and_make_no_runs(tmp_path, monkeypatch):
    model, store, recipe = tiny.model(), Store(tmp_path), Recipe(steps=4)
    contexts = tiny.contexts(model, place=2)
    first = predict_critical_rates(store, model, contexts, recipe)
    monkeypatch.setattr(predictors, "_ladder", lambda *_: pytest.fail("computed twice"))
    assert predict_critical_rates(store, model, contexts, recipe).identical(first)
    assert not list(tmp_path.glob("*.nc"))
    with pytest.raises(pytest.fail.Exception):  # another budget is another prediction
        predict_critical_rates(store, model, contexts, Recipe(steps=5))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_gap_closes_between_multiples_on_both_sides_of_one(tmp_path, optimizer):
    model, recipe = tiny.model(), Recipe(optimizer=optimizer, steps=6)
    contexts, rates = contexts_with_rates(Store(tmp_path), model, tiny.contexts(model, place=3), recipe)
    assert len(contexts) == len(rates) == 2
    for context, rate in zip(contexts, rates, strict=True):
        below, above = (gap_of(trained_copy(model, context, x * rate, recipe, 6), context) for x in (0.9, 1.1))
        assert below < 0 < above


def test_the_highest_rung_with_a_value_gives_the_unit(tmp_path, monkeypatch):
    nan = math.nan
    columns = [[1.0, 2.0, 3.0, 4.0, 5.0], [nan] * 5, [1.0, 2.0, 3.0, nan, nan], [nan, nan, 7.0, nan, nan]]
    columns.append([9.0] + [nan] * 4)
    ladders = iter(dict(zip(STEP_0, column, strict=True)) | {"quadrature": 100.0, "gap": -1.0} for column in columns)
    monkeypatch.setattr(predictors, "Problem", lambda *_: None)
    monkeypatch.setattr(predictors, "_ladder", lambda *_: next(ladders))
    model = tiny.model()
    contexts = tiny.contexts(model, lengths=(7, 4, 5, 6, 3))
    chosen, rates = contexts_with_rates(Store(tmp_path), model, contexts, Recipe(steps=4))
    assert [c.id for c in chosen] == ["c0", "c2", "c3", "c4"] and rates.tolist() == [5.0, 3.0, 7.0, 9.0]
    monkeypatch.setattr(predictors, "_ladder", lambda *_: dict.fromkeys(LADDER, nan) | {"gap": -1.0})
    with pytest.raises(ParameterError, match="2 contexts.*no unit"):
        contexts_with_rates(Store(tmp_path), model, contexts[:2], Recipe(steps=4))


def test_a_gap_that_does_not_close_at_first_costs_the_other_contexts_nothing(tmp_path, monkeypatch):
    model, recipe = tiny.model(), Recipe(steps=6)
    contexts = tiny.contexts(model, lengths=(7, 4, 5), place=3)
    alone = first_steps(Store(tmp_path / "alone"), model, [contexts[0], contexts[2]], recipe)
    ladder = predictors._ladder
    without = iter([{}, {"velocity": math.nan}, {}] + 3 * [{"velocity": math.nan}])
    monkeypatch.setattr(predictors, "_ladder", lambda *problem: ladder(*problem) | next(without))
    found = first_steps(Store(tmp_path / "all"), model, contexts, recipe)
    assert np.isfinite(found.values).tolist() == [True, False, True]
    assert found.context.values.tolist() == ["c0", "c1", "c2"]
    np.testing.assert_array_equal(found.values[[0, 2]], alone.values)
    assert [p.name for p in (tmp_path / "all").glob("*.nc")] == [p.name for p in (tmp_path / "alone").glob("*.nc")]
    assert np.isnan(first_steps(Store(tmp_path / "none"), model, contexts, recipe)).all()
    assert not list((tmp_path / "none").glob("*.nc"))


def test_what_the_ladder_cannot_follow_is_refused(tmp_path):
    model = tiny.model()
    one, other = tiny.contexts(model)
    other = dataclasses.replace(other, correct_id=other.competitor_id, competitor_id=other.correct_id)
    for optimizer in OPTIMIZERS:
        with pytest.raises(ContextError, match="'c1'.*already prefers"):
            predict_critical_rates(Store(tmp_path), model, [one, other], Recipe(optimizer=optimizer, steps=4))
    for recipe in (Recipe(optimizer="adamw"), Recipe(method="lora"), Recipe(loss="margin")):
        with pytest.raises(ParameterError, match="critical_rates"):
            predict_critical_rates(Store(tmp_path), model, [], recipe)
    assert not list(tmp_path.rglob("*.json"))
