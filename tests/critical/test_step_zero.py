"""Velocity, derivatives, LoRA's growth and sharpness against finite differences and dense matrices in float64."""

import copy
import dataclasses

import pytest
import tiny
import torch
import transformers
from plain import gap_of, trained_copy

from phantomlib.critical.step_zero import Problem, derivatives, gradients, hessian, sharpness, velocity, velocity_growth
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.models.language_model import LanguageModel, fingerprint


def flat(vector):
    """One tensor (P,) from a vector, (n, P) from a list of n."""
    if isinstance(vector[0], list):
        return torch.stack([flat(one) for one in vector])
    return torch.cat([piece.detach().reshape(-1) for piece in vector])


def split(problem, x):
    """The inverse of ``flat``."""
    shapes = problem.values.values()
    return [piece.view_as(v) for piece, v in zip(x.split([v.numel() for v in shapes]), shapes, strict=True)]


METHODS = [("sgd", "full"), ("adam", "full"), ("sgd", "lora"), ("adam", "lora")]


@pytest.mark.parametrize(
    "architecture, loss, weight",
    [(name, "cross-entropy", 1.0) for name in ("GPT2", "GPTNeoX", "Llama")]
    + [("GPT2", *loss) for loss in (("margin", 2.0), ("unlikelihood", 5.0), ("gap", 1.0))],
)
@pytest.mark.parametrize("optimizer, method", METHODS)
def test_velocity_is_the_slope_of_one_real_step(architecture, loss, weight, optimizer, method):
    model, h = tiny.model(architecture), 5e-5
    recipe = Recipe(optimizer=optimizer, method=method, steps=1, rank=2, loss=loss, weight=weight)
    contexts = tiny.contexts(model)
    first = velocity(model, contexts, recipe)
    run = finetune(model, contexts, [h, 2 * h], recipe).isel(seed=0)
    gap = torch.tensor(run.logit_gap.values)  # (C, rate, step)
    slope = (4 * gap[:, 0, 1] - gap[:, 1, 1] - 3 * gap[:, 0, 0]) / (2 * h)  # exact up to h²
    torch.testing.assert_close(slope, first.velocity, rtol=2e-3, atol=5e-3)  # norms and softmax compute in float32
    recorded = run.isel(rate=0, step=0)
    for name, field in {"gap": "logit_gap", "gradient_norm": "gradient_norm", "cross_entropy": "cross_entropy"}.items():
        torch.testing.assert_close(getattr(first, name), torch.tensor(recorded[field].values))
    if loss != "cross-entropy":
        plain = velocity(model, contexts, dataclasses.replace(recipe, loss="cross-entropy", weight=1.0))
        assert not torch.isclose(first.velocity, plain.velocity, rtol=5e-3).any()


def test_readout_share_is_the_velocity_with_all_else_frozen():
    model = tiny.model("GPTNeoX", tied=False)
    contexts = tiny.contexts(model)
    problem = Problem(model, contexts[0], Recipe(optimizer="sgd"))
    leaves = problem.leaves()
    logits = problem.logits(leaves)
    readout = [leaves[problem.readout]]
    of_loss, of_gap = (
        torch.autograd.grad(f, readout, retain_graph=True)[0] for f in (problem.loss(logits), problem.gap(logits))
    )
    first, through = velocity(model, contexts, Recipe(optimizer="sgd")), -float((of_loss * of_gap).sum())
    assert float(first.readout_share[0] * first.velocity[0]) == pytest.approx(through, rel=1e-9)
    assert velocity(model, contexts, Recipe(method="lora")).readout_share.tolist() == [0.0, 0.0]


def test_the_lumped_rest_makes_three_logits_exact():
    model = tiny.model()
    problem = Problem(model, tiny.contexts(model)[0])
    logits = problem.logits(problem.values)
    p, c, k = logits.softmax(0), problem.context.correct_id, problem.context.competitor_id
    expected = torch.stack([p[c], p[k], 1 - p[c] - p[k]])
    torch.testing.assert_close(problem.three(logits).softmax(0), expected)


@pytest.mark.parametrize(
    "architecture, method, h, tolerance",
    [
        ("GPT2", "full", 1e-3, {"rtol": 1e-3, "atol": 1e-4}),
        *(
            (*case, 0.02, {"rtol": 0.02, "atol": 5e-3}) for case in (("Llama", "full"), ("GPTNeoX", "lora"))
        ),  # in float32
    ],
)
def test_derivatives_are_differences_of_lower_ones(architecture, method, h, tolerance):
    model = tiny.model(architecture)
    context, recipe = tiny.contexts(model)[0], Recipe(method=method, rank=2)
    problem = Problem(model, context, recipe, seed=1)
    size = len(flat(list(problem.values.values())))
    direction = torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for name, piece in zip(problem.values, split(problem, direction), strict=True):
        if "embed" in name:
            piece[0] = 0  # the row of the padding token is never trained
    direction /= direction.norm()
    d = split(problem, direction)

    def logits(step):
        return problem.three(problem.logits(problem.leaves(d, step))).detach()

    def changes(step):
        moved = Problem(model, context, recipe, seed=1)
        moved.values = {name: value.detach() for name, value in problem.leaves(d, step).items()}
        return flat(derivatives(moved, d, 2)[1])

    D = torch.stack([flat(rows) for rows in derivatives(problem, d, 3, reach=10 * h)])
    torch.testing.assert_close(flat(gradients(problem)), D[0])
    slopes, bends, third = ((lower(h) - lower(-h)) / (2 * h) for lower in (
        logits, lambda step: flat(gradients(problem, d, step)), changes
    ))  # fmt: skip
    torch.testing.assert_close(slopes, D[0] @ direction, **tolerance)
    torch.testing.assert_close(bends, D[1], **tolerance)
    torch.testing.assert_close(third, D[2], **tolerance)


@pytest.mark.parametrize("architecture", ["GPT2", "Llama"])
def test_velocity_growth_is_a_finite_difference_of_the_velocity(architecture):
    """B takes one small step, and A moves by the sign of its gradient there; float64."""
    model, recipe, h = tiny.model(architecture), Recipe(method="lora", rank=2), 1e-4
    contexts = tiny.contexts(model)
    for context, growth in zip(contexts, velocity_growth(model, contexts, recipe, seed=1), strict=True):
        problem = Problem(model, context, recipe, seed=1)

        def slopes(of, direction, step, problem=problem):
            moved = {n: v + step * direction.get(n, 0 * v) for n, v in problem.values.items()}
            leaves = {n: v.requires_grad_() for n, v in moved.items()}
            of(problem.logits(leaves)).backward()
            return {n: leaf.grad for n, leaf in leaves.items()}

        u_B = {n: -g / (g.abs() + recipe.epsilon) for n, g in slopes(problem.loss, {}, 0).items() if "lora_B" in n}
        u_A = {n: -g.sign() for n, g in slopes(problem.loss, u_B, 1e-6).items() if "lora_A" in n}
        before, at, after = (slopes(problem.gap, u_A, step) for step in (-h, 0, h))
        behind, v, ahead = (float(sum((of[n] * u_B[n]).sum() for n in u_B)) for of in (before, at, after))
        assert float(growth) == pytest.approx((ahead - behind) / (2 * h) / v, rel=1e-4)
        assert v == pytest.approx(float(velocity(model, [context], recipe, seed=1).velocity), rel=1e-9)
    for still in (Recipe(method="lora", optimizer="sgd"), Recipe(method="full")):
        assert velocity_growth(model, contexts, still).tolist() == [0, 0]


@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "Llama"])
def test_a_gap_under_lora_closes_as_its_law_says(architecture):
    """Against plain torch.optim at a rate so small that nothing else bends the path: with A frozen, and with both."""
    model, recipe, steps = tiny.model(architecture), Recipe(method="lora", rank=2), 20
    context = tiny.contexts(model)[0]
    v, growth = velocity(model, [context], recipe).velocity.item(), velocity_growth(model, [context], recipe).item()
    rate = 1e-3 / abs(growth) / steps  # by the end A has changed the velocity by a thousandth

    def closed(only):
        return gap_of(trained_copy(model, context, rate, recipe, steps, only), context) - gap_of(model.module, context)

    frozen, both = closed("lora_B"), closed("")
    assert frozen / (rate * steps * v) == pytest.approx(1, abs=0.01)  # N alone
    assert (both / frozen - 1) / (rate * (steps - 1) * growth) == pytest.approx(1, abs=0.15)  # Adam starts A slowly


def minute(tied: bool = True) -> LanguageModel:
    """A model of a few hundred parameters, whose Hessian can be written down."""
    sizes = {"vocab_size": 9, "n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 8}
    config = transformers.GPT2Config(**sizes, attn_implementation="eager", tie_word_embeddings=tied)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float64)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(torch.randn_like(p), alpha=0.3)
    return LanguageModel("minute", "minute", module.eval().requires_grad_(False), None, fingerprint(module))


def few_contexts(model):
    return [
        c.__class__(c.context, tuple(i % 9 for i in c.prompt_ids[:4]), 3 + n, n)
        for n, c in enumerate(tiny.contexts(tiny.model()))
    ]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sharpness_is_the_largest_eigenvalue_of_the_dense_hessian(optimizer, tied):
    model = minute(tied)
    recipe, contexts = Recipe(optimizer=optimizer, epsilon=1e-3), few_contexts(model)
    found = sharpness(model, contexts, recipe, tolerance=1e-10, iterations=500)
    for number, context in enumerate(contexts):
        problem = Problem(model, context, recipe)
        vector = flat(list(problem.values.values()))

        def loss(flat, problem=problem):
            return problem.loss(problem.logits(dict(zip(problem.values, split(problem, flat), strict=True))))

        dense = torch.autograd.functional.hessian(loss, vector)
        gradient = torch.autograd.functional.jacobian(loss, vector)
        if optimizer == "adam":
            scale = (gradient.abs() + recipe.epsilon).rsqrt()
            dense = scale[:, None] * dense * scale
        assert float(found[number]) == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)
        operator, start = hessian(problem)
        update = -gradient if optimizer == "sgd" else -gradient / (gradient.abs() + recipe.epsilon)
        torch.testing.assert_close(torch.from_numpy(start), update)
        probe = torch.randn(len(vector), dtype=vector.dtype)
        torch.testing.assert_close(torch.from_numpy(operator @ probe.numpy()), dense @ probe)


def test_a_sharpness_that_did_not_converge_says_so():
    model = minute()
    contexts = few_contexts(model)[:1]
    assert sharpness(model, contexts, tolerance=1e-12, iterations=1).isnan().all()
    broken = dataclasses.replace(model, module=copy.deepcopy(model.module))
    broken.module.get_output_embeddings().weight.fill_(torch.nan)
    assert sharpness(broken, contexts).isnan().all()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sharpness_in_single_precision_is_that_in_double(optimizer):
    double, recipe = tiny.model("Llama"), Recipe(optimizer=optimizer, epsilon=1e-3)
    single = dataclasses.replace(double, module=copy.deepcopy(double.module).float())
    one, other = (sharpness(model, tiny.contexts(double), recipe, tolerance=1e-3) for model in (single, double))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=0)
