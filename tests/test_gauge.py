"""One vector added to all rows of a readout of its own changes no prediction at any step of training."""

import copy

import pytest
import tiny
import torch

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel

ARCHITECTURES = ("GPTNeoX", "Llama")  # LayerNorm and RMSNorm, parallel and sequential; both untied
RATES = {("full", "adam"): 3e-2, ("full", "sgd"): 1.0, ("lora", "adam"): 1e-1, ("lora", "sgd"): 3.0}
STEPS = 12


def log_p(token):
    """A function for ``extra``: log-probability of one token, whichever replica."""
    return lambda p, E, c, k: p[:, token].log()


def row_sum(component):
    return lambda p, E, c, k: E.sum(-2)[:, component]


EVERY = {f"log_p_{token}": log_p(token) for token in range(tiny.V)}


def shifted(model, a):
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.get_output_embeddings().weight += a
    return LanguageModel(f"{model.name}-shifted", model.ref, module, None)


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    found = tiny.model(request.param, tied=False)
    assert not found.tied
    return found


def vectors(model):
    E = model.readout
    torch.manual_seed(3)
    return {"centred": -E.mean(0), "far": 5 * E.norm(dim=-1).mean() * torch.randn(E.shape[1], dtype=E.dtype)}


@pytest.mark.parametrize("method, optimizer", RATES)
def test_no_prediction_sees_a_shift(model, method, optimizer):
    def train(one):
        recipe = Recipe(optimizer=optimizer, method=method, steps=STEPS)
        return finetune(one, tiny.contexts(model), [RATES[method, optimizer]], recipe, extra=EVERY)

    as_it_is = train(model)
    moved = as_it_is.cross_entropy.isel(step=0) - as_it_is.cross_entropy.isel(step=-1)
    assert float(moved.min()) > 0.3  # nats: there was something to see
    for name, a in vectors(model).items():
        runs = train(shifted(model, a))
        for seen in (*EVERY, "logit_gap", "m"):
            assert float(abs(runs[seen] - as_it_is[seen]).max()) < 1e-9, (name, seen)
        assert float(abs(runs.phi - as_it_is.phi).max()) > 1e-3  # the order parameter is another


def test_sgd_conserves_the_sum_of_all_rows_and_adam_does_not(model):
    sums = {f"sum_{i}": row_sum(i) for i in range(model.readout.shape[1])}
    for optimizer, conserved in (("sgd", True), ("adam", False)):
        recipe = Recipe(optimizer=optimizer, steps=STEPS)
        runs = finetune(model, tiny.contexts(model), [RATES["full", optimizer]], recipe, extra=sums)
        change = max(float(abs(runs[name] - runs[name].isel(step=0)).max()) for name in sums)
        assert (change < 1e-12) == conserved and (conserved or change > 1e-3)
        assert float(runs.readout_drift.isel(step=-1).min()) > 1e-2  # the rows themselves have moved


def test_with_opposite_rows_the_order_parameter_says_nothing(model):
    (context, _) = tiny.contexts(model)
    blank = shifted(model, -model.readout[[context.correct_id, context.competitor_id]].mean(0))
    recipe = Recipe(optimizer="adam", method="lora", steps=STEPS)  # no row moves
    runs = finetune(blank, [context], [RATES["lora", "adam"]], recipe)
    assert float(abs(runs.phi).max()) < 1e-12 and float(abs(runs.m.diff("step")).max()) > 1e-2
