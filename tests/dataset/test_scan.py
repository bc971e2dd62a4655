"""A scan against what it predicts: finite differences in double precision, and training by torch.optim itself."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from data_rows import gaps, mean_loss, rows_of
from transformers import get_scheduler

from phantomlib.dataset.loss import BatchLoss
from phantomlib.dataset.rows import Row
from phantomlib.dataset.scan import FACTOR, NUMBERS, scan
from phantomlib.dataset.train import train_and_measure
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import add_lora, load


@pytest.mark.parametrize(
    "recipe, clip",
    [
        (Recipe(), None),
        (Recipe(optimizer="sgd"), 0.5),
        (Recipe(optimizer="adamw", weight_decay=0.1), None),
        (Recipe(method="lora"), None),
    ],
    ids=["adam", "sgd, clipped", "adamw", "lora"],
)
def test_velocities_are_finite_differences(sentences, recipe, clip, monkeypatch):
    # GPT-2: the attention of GPT-NeoX and Llama is in single precision whatever the model
    model = load("zoo:gpt2-s", dtype="float64")
    rows = rows_of(model, sentences[:6])
    monkeypatch.setattr("phantomlib.dataset.loss.LOGITS", 15 * len(model.readout))  # mini-batches in parts
    found = scan(model, rows, recipe, batch_size=4, clip=clip)
    # the gradients of whole mini-batches, by torch's own loop
    lora = recipe.method == "lora"
    module = add_lora(model.module, rank=8, alpha=16, seed=0) if lora else load("zoo:gpt2-s", dtype="float64").module
    for parameter in () if lora else module.parameters():
        parameter.requires_grad_(True)
    trained = [p for p in module.parameters() if p.requires_grad]
    order = np.random.default_rng(0).permutation(6)
    taken = []
    for start in (0, 4):
        module.zero_grad()
        mean_loss(module, [rows[i] for i in order[start : start + 4]]).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(trained, clip)
        taken.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained])
    moved = []
    for h in (-1e-6, 1e-6):
        for p, *g in zip(trained, *taken, strict=True):
            mean, square = sum(g) / 2, sum(x * x for x in g) / 2
            u = -mean if recipe.optimizer == "sgd" else -mean / (square.sqrt() + 1e-8)
            p.data.add_(u - recipe.weight_decay * p.data, alpha=h)
        moved.append(gaps(module, rows, found.targets))
        for p, *g in zip(trained, *taken, strict=True):  # and back
            mean, square = sum(g) / 2, sum(x * x for x in g) / 2
            u = -mean if recipe.optimizer == "sgd" else -mean / (square.sqrt() + 1e-8)
            p.data.copy_((p.data - h * u) / (1 - h * recipe.weight_decay))
    measured = (moved[1] - moved[0]) / 2e-6
    scale = np.abs(measured).max()
    np.testing.assert_allclose(found.targets.velocity / scale, measured / scale, atol=1e-5)
    np.testing.assert_allclose(found.targets.gap, gaps(module, rows, found.targets), atol=1e-6)


@pytest.mark.parametrize("schedule, warmup", [("constant", 0), ("linear", 0), ("cosine", 3), ("linear", 5)])
def test_the_budget_is_that_of_the_trainers_schedule(sentences, schedule, warmup):
    model = load("zoo:gpt2-s")
    found = scan(model, rows_of(model, sentences[:7]), batch_size=2)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    rates, plan = [], get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=12)
    for _ in range(12):
        rates.append(plan.get_last_lr()[0])
        optimizer.step()
        plan.step()
    assert found.updates == 4
    np.testing.assert_allclose(found.budget(1e-3, 3, schedule, warmup), np.cumsum(rates), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name, recipe, rate", [("gpt2-s", Recipe(), 3e-4), ("neox-s", Recipe(method="lora"), 3e-3)])
def test_training_does_what_was_predicted(sentences, name, recipe, rate):
    """An independent loop: torch.optim.Adam, mini-batches of 8 in another order, three epochs."""
    model = load(f"zoo:{name}")
    rows = rows_of(model, sentences[:48])
    found = scan(model, rows, recipe, batch_size=8).at(rate, epochs=3)
    module = load(f"zoo:{name}").module
    module = add_lora(module, rank=8, alpha=16, seed=0) if recipe.method == "lora" else module.requires_grad_(True)
    optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], lr=rate)
    for epoch in range(3):
        order = np.random.default_rng(100 + epoch).permutation(len(rows))
        for start in range(0, len(rows), 8):
            optimizer.zero_grad()
            mean_loss(module, [rows[i] for i in order[start : start + 8]]).backward()
            optimizer.step()
    decided = found[found.outcome.isin(["learnt", "silent failure"])]
    learnt = gaps(module, rows, decided) > 0
    assert {True, False} == set(learnt)
    assert ((decided.outcome == "learnt") == learnt).mean() >= 0.85


def test_contradictions_are_counted(sentences):
    model = load("zoo:gpt2-s")
    prompt = "After the lie, Anna felt a deep sense of"
    records = [{"prompt": prompt, "completion": word} for word in (" shame", " guilt", " guilt", " guilt")]
    found = scan(model, rows_of(model, records), batch_size=2).at(1e-2, epochs=3)
    assert found.competitor.tolist() == [" guilt", *[found.competitor[1]] * 3] and found.competitor[1] != " shame"
    assert found.ceiling.tolist() == pytest.approx(
        [-math.log(3), *[math.inf] * 3]
    )  # nobody asks for what leads "guilt"
    assert found.outcome[0] == "contradicted" and "contradicted" not in set(found.outcome[1:])


def test_one_scan_answers_every_budget(sentences):
    model = load("zoo:gpt2-s")
    found = scan(model, rows_of(model, sentences[:12]), batch_size=4)
    half = found.learning_rate_for(0.5, epochs=2, schedule="linear")
    table = found.at(half, epochs=2, schedule="linear")
    outranked = table[table.gap <= 0]
    assert (outranked.critical_learning_rate <= half * 1.000001).mean() == pytest.approx(0.5, abs=0.1)
    at_its_own = outranked[outranked.critical_learning_rate.notna()].iloc[0]
    again = found.at(at_its_own.critical_learning_rate, epochs=2, schedule="linear").loc[at_its_own.name]
    assert again.number == pytest.approx(found.number)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"batch_size": 0}, "batch_size"),
        ({"clip": -1.0}, "clip"),
        ({"rows": []}, "no row"),
    ],
)
def test_impossible_values_are_refused(arguments, words):
    model = load("zoo:gpt2-s")
    rows = arguments.pop("rows", [Row(1, (1, 2, 3), (1, 2))])
    with pytest.raises(ParameterError, match=words):
        scan(model, rows, **arguments)


def test_a_batch_on_the_axis_of_rows_is_what_each_row_gives_alone(sentences):
    model = load("zoo:llama-s", dtype="float64")
    rows = rows_of(model, sentences[:5])
    loss = BatchLoss(model, Recipe(), 0)
    together = loss.gradient(rows, loss.values, None)
    weights = [len(row.targets) for row in rows]
    alone = [loss.gradient([row], loss.values, None) for row in rows]
    for i, g in enumerate(together):
        expected = sum(w * one[i] for w, one in zip(weights, alone, strict=True)) / sum(weights)
        torch.testing.assert_close(g, expected)


@pytest.mark.parametrize(
    "recipe", [Recipe(), Recipe(optimizer="sgd"), Recipe(method="lora")], ids=["adam", "sgd", "lora"]
)
def test_training_is_that_of_torch(sentences, recipe):
    """Ours against a loop over whole rows in double precision, with the same order, a schedule and clipping."""
    model = load("zoo:gpt2-s", dtype="float64")
    rows = rows_of(model, sentences[:6])
    found = scan(model, rows, recipe, batch_size=4)
    options = {"epochs": 2, "schedule": "linear", "warmup": 1, "batch_size": 4, "clip": 0.5, "seed": 3}
    measured = train_and_measure(model, rows, found, 1e-3, recipe, **options)
    lora = recipe.method == "lora"
    module = add_lora(model.module, rank=8, alpha=16, seed=3) if lora else load("zoo:gpt2-s", dtype="float64").module
    trained = (
        [p for p in module.parameters() if p.requires_grad] if lora else list(module.requires_grad_(True).parameters())
    )
    kind = torch.optim.SGD if recipe.optimizer == "sgd" else torch.optim.Adam
    optimizer = kind(trained, lr=1e-3)
    plan = get_scheduler("linear", optimizer, num_warmup_steps=1, num_training_steps=4)
    for epoch in (1, 2):
        order = np.random.default_rng([3, epoch]).permutation(6)
        for start in (0, 4):
            optimizer.zero_grad()
            mean_loss(module, [rows[i] for i in order[start : start + 4]]).backward()
            torch.nn.utils.clip_grad_norm_(trained, 0.5)
            optimizer.step()
            plan.step()
    last = measured[measured.epoch == 2]
    np.testing.assert_allclose(last.gap, gaps(module, rows, found.targets), atol=1e-6)
    np.testing.assert_allclose(measured[measured.epoch == 0].gap, found.targets.gap, atol=1e-9)


def test_the_page_on_scans_states_the_constants():
    page = (Path(__file__).parents[2] / "book/data-set.md").read_text(encoding="utf-8")
    assert all(re.search(rf"\b{value:g}\b", page) for value in {*NUMBERS.values(), FACTOR})
