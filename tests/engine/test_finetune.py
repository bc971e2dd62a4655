"""The batched engine against a plain loop with torch.optim, one fresh copy of the model per replica."""

import copy
import dataclasses
import math
from unittest.mock import patch

import numpy as np
import pytest
import tiny
import torch
import xarray as xr
from plain import gradient_norm, training
from refused import refused

from phantomlib.contexts import Context
from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe, check_contexts, check_learning_rates
from phantomlib.engine.recorder import RECORDED, recorded
from phantomlib.errors import ContextError, ParameterError

GPT2 = tiny.model("GPT2")
CONTEXTS = tiny.contexts(GPT2)
OPTIMIZERS = {
    "sgd": ([0.02, 0.3], {}),
    "adam": ([1e-3, 0.02], {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}),
    "adamw": ([1e-3, 0.02], {"weight_decay": 0.3}),
}


def geometry(E, c, k, exponent):
    """h_i = g_ci^n - g_ki^n, g_ck, and the projectors on c and k, one row of the readout at a time."""
    e = np.stack([row / np.sqrt(row @ row) for row in E.double().cpu().numpy()])
    return e, (e @ e[c]) ** exponent - (e @ e[k]) ** exponent, float(e[c] @ e[k])


def plain_loop(model, context, rates, recipe: Recipe, seed: int) -> dict[str, list[float]]:
    """Every quantity by its definition, before each update of a plain training at ``rates`` (T,) and after the last."""
    c, k, E_0, before = context.correct_id, context.competitor_id, None, None
    values = {name: [] for name in [*recorded(recipe), "spectrum"]}
    for module, z, loss in training(model, context, rates, recipe, seed=seed):
        source = module.get_output_embeddings() if recipe.geometry == "readout" else module.get_input_embeddings()
        weight = source.weight.detach().clone()
        E_0 = weight if E_0 is None else E_0
        p = z.double().softmax(0).cpu().numpy()
        e, h, g_ck = geometry(weight, c, k, recipe.exponent)
        E = weight.double().cpu().numpy()
        axis, middle = E[c] - E[k], (E[c] + E[k]) / 2
        rho = sum(p_i * np.outer(e_i, e_i) for p_i, e_i in zip(p, e, strict=True))
        trace = np.trace(rho @ (np.outer(e[c], e[c]) - np.outer(e[k], e[k])))
        now = {
            "cross_entropy": -float(z.log_softmax(0)[c]),
            "logit_gap": float(z[c] - z[k]),
            "p_correct": p[c],
            "p_competitor": p[k],
            "rank_correct": 1 + int((z > z[c]).sum()),
            "phi": trace if recipe.exponent == 2 else p @ h,
            "signal": (p[c] - p[k]) * (1 - g_ck**recipe.exponent),
            "drag": sum(p[i] * h[i] for i in range(len(p)) if i not in (c, k)),
            "overlap": g_ck,
            "m": 2 * axis @ (p @ E - middle) / (axis @ axis),
            "m_drag": sum(2 * p[i] * axis @ (E[i] - middle) / (axis @ axis) for i in range(len(p)) if i not in (c, k)),
            "readout_drift": float((weight - E_0).norm() / E_0.norm()),
            "readout_unchanged": int(torch.equal(weight, E_0)),
            "gradient_norm": gradient_norm(module),
            "phi_readout_part": math.nan if before is None else (p - before[0]) @ (h + before[1]) / 2,
            "phi_geometry_part": math.nan if before is None else (p + before[0]) @ (h - before[1]) / 2,
            "spectrum": np.linalg.eigvalsh(rho)[::-1] if np.isfinite(rho).all() else np.full(len(rho), np.nan),
        }
        if recipe.loss != "cross-entropy":
            now["loss"] = loss
        for name, value in now.items():
            values[name].append(value)
        before = p, h
    values["gradient_norm"][-1] = math.nan
    return values


def check(model, recipe, rates, *, contexts=None, seeds=(0,), tolerance=1e-10, **options) -> xr.Dataset:
    """A run of the engine, whose every recorded number was compared with the plain loop."""
    contexts = contexts or tiny.contexts(model)
    run = finetune(model, contexts, rates, recipe, seeds=seeds, **options)
    for c, r, s in np.ndindex(len(contexts), run.sizes["rate"], len(seeds)):
        schedule = np.broadcast_to(rates[c][r] if np.ndim(rates) == 3 else rates[r], recipe.steps)
        expected = plain_loop(model, contexts[c], schedule, recipe, seeds[s])
        for name in recorded(recipe):
            ours = run[name].values[c, r, s].astype(float)
            np.testing.assert_allclose(ours, expected[name], rtol=0, atol=tolerance, err_msg=name)
    assert float(run.logit_gap.max() - run.logit_gap.min()) > 0.05  # something happened
    return run


def recipe_of(name, method, **more):
    return Recipe(optimizer=name, method=method, steps=4, rank=2, alpha=4.0, **OPTIMIZERS[name][1], **more)


FAMILIES, METHODS = ("GPT2", "GPTNeoX", "Llama"), ("full", "lora")
MATRIX = [(a, m, o) for a in FAMILIES for m in METHODS for o in OPTIMIZERS]
OTHERS = [a for a in tiny.ARCHITECTURES if a not in FAMILIES]
CASES = [  # architecture, method, optimiser, dtype, tolerance, engine, what is updated together
    *((*case, "float64", 1e-10, "auto", 300) for case in MATRIX),
    *((*case, "float32", 2e-4, "auto", 2**17) for case in MATRIX),
    *(("GPTNeoX", m, o, "float64", 1e-10, "vmap", 300) for m in METHODS for o in OPTIMIZERS),
    *((a, m, "adam", "float64", 1e-8, "auto", 300) for a in OTHERS for m in METHODS),  # some compute norms in float32
    *((a, "full", o, "float32", 1e-3, "auto", 300) for a in tiny.SINGLE_PRECISION for o in OPTIMIZERS),
    *(("Phi3-longrope", m, "adam", "float64", 1e-8, engine, 300) for m in METHODS for engine in ("auto", "vmap")),
]


def check_case(architecture, method, name, dtype, tolerance, engine, small, device="cpu"):
    model, seeds = tiny.model(architecture, dtype, device=device), (0, 3) if method == "lora" else (0,)
    with patch("phantomlib.engine.optimizer.SMALL", small):  # parameters of up to so many numbers are updated together
        options = {"seeds": seeds, "tolerance": tolerance, "engine": engine}
        return check(model, recipe_of(name, method), OPTIMIZERS[name][0], **options)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batched_equals_torch_optim(case):
    run, apart = check_case(*case), case[0] == "Phi3-longrope"  # it reads by length, so equal lengths are batched
    together = (4 if case[1] == "lora" else 2) * (1 if apart else 2)  # rates and seeds, of one of the contexts or both
    assert (run.attrs["equal_lengths_only"], run.attrs["replicas_together"]) == (apart, together)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", MATRIX, ids=str)
def test_a_gpu_gives_the_numbers_of_the_cpu(case):
    one, other = (check_case(*case, "float64", 1e-9, "auto", 300, device) for device in ("cpu", "cuda"))
    xr.testing.assert_allclose(one, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("replicas", [1, 4])
@pytest.mark.parametrize("engine", ["batch axis", "vmap", "auto"])
@pytest.mark.parametrize("name", ["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss, weight", [("margin", 3.0), ("unlikelihood", 5.0), ("gap", 2.0)])
def test_every_loss_equals_torch_optim(loss, weight, method, name, engine, replicas):
    recipe, model, rates = recipe_of(name, method, loss=loss, weight=weight), tiny.model("GPTNeoX"), OPTIMIZERS[name][0]
    contexts, rates = (tiny.contexts(model), rates) if replicas == 4 else (tiny.contexts(model)[:1], rates[-1:])
    run = check(model, recipe, rates, contexts=contexts, engine=engine)
    assert float(abs(run.loss - run.cross_entropy).max()) > 0.1  # the two are kept apart
    assert (run.attrs["recipe_loss"], run.attrs["recipe_weight"]) == (loss, weight)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("changes", [{"exponent": 1}, {"geometry": "input"}], ids=str)
def test_other_definitions_of_the_order_parameter(tied, changes):
    check(tiny.model("GPT2", tied=tied), Recipe(steps=3, **changes), [0.01])


# on the batch axis, and as a plain model
@pytest.mark.parametrize("small, large", [(0, 0), (300, 0), (2**17, 0), (0, 2**23), (300, 2**23)])
@pytest.mark.parametrize("architecture, method, name", MATRIX)
def test_one_replica_equals_torch_optim(architecture, method, name, small, large, monkeypatch):
    monkeypatch.setattr("phantomlib.engine.optimizer.SMALL", small)
    monkeypatch.setattr("phantomlib.engine.optimizer.PART", 100)  # a few rows at a time
    monkeypatch.setattr("phantomlib.engine.replicas.LARGE", large)
    monkeypatch.setattr("phantomlib.engine.recorder.READ_AT_ONCE", 100)
    model, rates = tiny.model(architecture), OPTIMIZERS[name][0]
    check(model, recipe_of(name, method), rates[-1:], contexts=tiny.contexts(model)[:1])


def small_run(rates=(0.01, 0.03), *, model=GPT2, seeds=(0,), engine="auto", chunk=None, **recipe):
    recipe = Recipe(**{"steps": 4, "rank": 2} | recipe)
    return finetune(model, tiny.contexts(model), list(rates), recipe, seeds=seeds, engine=engine, chunk=chunk)


@pytest.mark.parametrize("method, seeds", [("full", (0,)), ("lora", (0, 1))])
def test_neither_engine_nor_chunk_matters_and_both_are_recorded(method, seeds):
    reference, n = small_run(method=method, seeds=seeds), 4 * len(seeds)
    assert (reference.attrs["engine"], reference.attrs["replicas_together"]) == ("batch axis", n)
    for options, engine, together in (
        ({"engine": "vmap"}, "vmap", n),
        ({"engine": "one by one"}, "one by one", n),
        ({"chunk": 1}, "one by one", 1),
        ({"chunk": 3}, "batch axis" if method == "lora" else "batch axis, one by one", 3),
        ({"chunk": 99}, "batch axis", n),
    ):
        other = small_run(method=method, seeds=seeds, **options)
        xr.testing.assert_allclose(other, reference, rtol=0, atol=1e-12)
        assert (other.attrs["engine"], other.attrs["replicas_together"]) == (engine, together)


def test_a_run_repeats_bit_for_bit_and_leaves_the_model_alone():
    model = tiny.model("Llama")
    before, state = copy.deepcopy(model.module.state_dict()), torch.random.get_rng_state()
    for method in ("full", "lora"):
        assert small_run(model=model, method=method).identical(small_run(model=model, method=method))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.module.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(p.requires_grad or p.grad is not None for p in model.module.parameters())


@pytest.mark.parametrize("architecture", ["GPT2", "GPTNeoX", "Llama", "OPT"])
def test_lora_leaves_the_readout_bit_for_bit_and_full_training_does_not(architecture):
    model = tiny.model(architecture, "float32")
    lora, full = (small_run([1e-2], model=model, method=method) for method in ("lora", "full"))
    assert (lora.readout_unchanged == 1).all() and (lora.readout_drift == 0).all()
    assert (lora.phi_geometry_part[..., 1:] == 0).all() and (lora.overlap == lora.overlap[..., 0]).all()
    assert abs(float((lora.logit_gap[..., -1] - lora.logit_gap[..., 0]).min())) > 0.01
    assert (full.readout_unchanged[..., 0] == 1).all() and (full.readout_unchanged[..., 1:] == 0).all()
    assert (full.readout_drift[..., 0] == 0).all() and (full.readout_drift[..., 1:] > 0).all()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_parts_add_up(method):
    run = small_run([0.01, 0.1], method=method)
    parts = (run.phi_readout_part + run.phi_geometry_part)[..., 1:]
    assert np.allclose(parts, run.phi.diff("step"), rtol=0, atol=1e-14)
    assert np.allclose(run.phi, run.signal + run.drag, rtol=0, atol=1e-15)
    assert (np.abs(run.phi) <= np.sqrt(1 - run.overlap**2)).all()
    assert np.allclose(run.cross_entropy, -np.log(run.p_correct), rtol=0, atol=1e-13)
    assert np.allclose(run.logit_gap, np.log(run.p_correct / run.p_competitor), rtol=0, atol=1e-12)


def test_labels():
    run = small_run([0.01, 0.03, 0.1], seeds=(4, 9), method="lora", optimizer="sgd")
    assert run.sizes == {"context": 2, "rate": 3, "seed": 2, "step": 5}
    assert list(run.context.values) == ["c0", "c1"] and list(run.seed.values) == [4, 9]
    assert run.learning_rate.values.tolist() == [[0.01, 0.03, 0.1]] * 2
    assert list(run.correct.values) == ["right0", "right1"] and list(run.competitor.values) == ["wrong0", "wrong1"]
    assert all(run[name].attrs["units"] and run[name].attrs["long_name"] for name in RECORDED)
    assert (run.attrs["recipe_optimizer"], run.attrs["recipe_method"], run.attrs["recipe_steps"]) == ("sgd", "lora", 4)
    # cross-entropy goes without saying, as in runs made before there was a choice
    assert "loss" not in run and not {"recipe_loss", "recipe_weight"} & run.attrs.keys()
    assert not {"loss", "weight"} & Recipe().settings().keys()


def test_progress_counts_every_replica_step():
    done = []
    finetune(GPT2, CONTEXTS, [0.01] * 5, Recipe(steps=3), chunk=4, progress=done.append)
    assert sum(done) == 2 * 5 * 3 and len(done) > 3


def test_seeds_are_of_lora_only():
    lora = small_run(method="lora", seeds=(0, 1, 0)).drop_vars("seed")
    assert lora.isel(seed=0).identical(lora.isel(seed=2))
    assert (lora.phi.isel(seed=0) == lora.phi.isel(seed=1))[..., :1].all()
    assert (lora.phi.isel(seed=0) != lora.phi.isel(seed=1))[..., 2:].all()
    full = [small_run(seeds=(seed,)).drop_vars("seed") for seed in (0, 5)]
    assert full[0].identical(full[1])
    with pytest.raises(ParameterError, match="full fine-tuning draws nothing"):
        small_run(seeds=(0, 1))


def test_each_context_may_have_its_own_rates():
    own = small_run([[0.01, 0.03], [0.1, 0.2]])
    assert own.learning_rate.values.tolist() == [[0.01, 0.03], [0.1, 0.2]]
    for c, rates in enumerate([[0.01, 0.03], [0.1, 0.2]]):
        alone = small_run(rates).isel(context=c)
        assert np.allclose(alone.phi, own.phi.isel(context=c), rtol=0, atol=1e-13)


@pytest.mark.parametrize("optimizer, scale", [("sgd", 0.05), ("adam", 0.01)])
def test_a_schedule_gives_every_update_its_rate(optimizer, scale):
    model, recipe = tiny.model("GPTNeoX"), Recipe(optimizer=optimizer, steps=3)
    schedules = scale * np.random.default_rng(0).uniform(0.1, 2, (2, 3, 3))
    run = check(model, recipe, schedules)
    assert run.learning_rate.values == pytest.approx(schedules.max(-1))
    assert (run.schedule.values[..., :-1] == schedules).all() and np.isnan(run.schedule.values[..., -1]).all()


@pytest.mark.parametrize("engine", ["batch axis", "vmap"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_diverged_replica_ends_at_its_step_and_disturbs_nobody(method, engine):
    calm, wild = [0.01] * 6, [0.01, 0.01, 1e300, 0.01, 0.01, 0.01]
    options = {"optimizer": "adam", "method": method, "steps": 6, "engine": engine, "snapshots": (0, 6)}
    beside = small_run([[calm, wild, calm], [wild, calm, calm]], **options)
    alone = small_run([[calm], [calm]], **options)
    expected = plain_loop(GPT2, CONTEXTS[0], wild, Recipe(method=method, steps=6, rank=2), 0)
    step = int(np.argmin(np.isfinite(expected["cross_entropy"])))
    assert step == 3
    assert beside.diverged_step.values[..., 0].tolist() == [[-1, step, -1], [step, -1, -1]]
    for c, others in ((0, (0, 2)), (1, (1, 2))):
        for r in others:
            here = beside.isel(context=c, rate=r)
            xr.testing.assert_allclose(here, alone.isel(context=c, rate=0), rtol=0, atol=1e-13)
    lost = beside.isel(context=0, rate=1, seed=0)
    assert np.allclose(lost.cross_entropy[:step], expected["cross_entropy"][:step], rtol=0, atol=1e-12)
    for name in RECORDED:
        after = lost[name][step:]
        assert (after == 0).all() if name in ("rank_correct", "readout_unchanged") else after.isnull().all(), name
    assert lost.spectrum[0].notnull().all() and lost.spectrum[1].isnull().all() and lost.phi_trace[1].isnull()


def test_snapshots_hold_the_spectrum_of_the_density_matrix():
    for method in ("full", "lora"):
        model, recipe = tiny.model("Llama"), Recipe(method=method, steps=4, rank=2, snapshots=(4, 0, 2))
        contexts = tiny.contexts(model)
        run = finetune(model, contexts, [0.01], recipe)
        assert list(run.snapshot.values) == [4, 0, 2] and run.sizes["component"] == 16
        for c, context in enumerate(contexts):
            expected = plain_loop(model, context, [0.01] * 4, recipe, 0)
            for n, step in enumerate(recipe.snapshots):
                assert np.allclose(run.spectrum[c, 0, 0, n], expected["spectrum"][step], rtol=0, atol=1e-10)
                assert abs(float(run.phi_trace[c, 0, 0, n]) - expected["phi"][step]) < 1e-10


BAD_RECIPES = {  # changes -> what the message must name
    f"{name}={value!r}": ({name: value}, name)
    for name, values in {
        "steps": (0, -1, 1.5, 3.0, "3", True, None, math.nan, [3]),
        "rank": (0, -2, 2.5, "8", True, None),
        "alpha": (-1.0, math.nan, math.inf, "16", True, None),
        "beta1": (-0.1, 1.0, math.nan, "0.9"),
        "beta2": (1.0, 2, None),
        "epsilon": (-1e-8, math.inf, "small"),
        "weight_decay": (-0.1, math.nan, math.inf, "0", 0.1),  # 0.1 needs adamw
        "optimizer": ("Adam", "lion", "", None, 1, ["adam"]),
        "method": ("LoRA", "frozen", None),
        "exponent": (0, 3, -2, "2", 1.5),
        "geometry": ("output", None),
        "loss": ("hinge", 3, None),
        "weight": (0.0, -1.0, "2", math.nan, 2.0),  # 2.0 needs a loss that looks at the competitor
        "snapshots": ((31,), (-1,), (0.5,), ("0",), (True,), (2, 2), 5, "all", None),
    }.items()
    for value in values
}


@pytest.mark.parametrize("changes, named", BAD_RECIPES.values(), ids=BAD_RECIPES)
def test_bad_recipes_are_refused(changes, named):
    [value] = changes.values()
    with refused(ParameterError, named) as said:
        Recipe(**changes)
    assert str(value) in said[0] or f"snapshots[0] is {value[0]!r}" in said[0]


def test_recipes_are_values():
    assert Recipe(snapshots=[1, 2]) == Recipe(snapshots=(1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().steps = 3


BAD_RATES = (
    *([1e-3, -1e-3], [0.0], [1e-3, math.nan], [math.inf], [10**400], ["1e-3"], "fast", 1e-3, [True], np.array([True])),
    *([1e-3 + 0j], np.array([1e-3 + 1j]), None, [None], {"rate": 1e-3}, {1e-3}, [], [[], []], [[1e-3], [1e-3, 1e-2]]),
    *([[1e-3, 1e-2], 1e-3], [[1e-3]] * 3, [[[1e-3] * 3]] * 2, [[[1e-3] * 4]], np.full((2, 1, 4, 1), 1e-3)),
)


@pytest.mark.parametrize("rates", BAD_RATES, ids=repr)
def test_bad_learning_rates_are_refused(rates):
    with refused(ParameterError, "learning rates"):
        finetune(GPT2, CONTEXTS, rates, Recipe(steps=4))


GOOD_RATES = [[1e-3, 1], (1e-3, 1), np.array([1e-3, 1]), np.float32([1e-3, 1]), range(1, 3)]


@pytest.mark.parametrize("rates", GOOD_RATES, ids=repr)
def test_any_sequence_of_numbers_is_a_list_of_learning_rates(rates):
    checked = check_learning_rates(rates, 3)
    assert checked.shape == (3, 2) and checked.dtype == float and np.allclose(checked, list(rates))


def swapped(context):
    return dataclasses.replace(context, correct_id=context.competitor_id, competitor_id=context.correct_id)


FIRST, SECOND = CONTEXTS
CLOSE = dataclasses.replace(tiny.contexts(GPT2, (4,), place=2)[0], context=Context("hope", "x", "won", "lost"))
LONG, BEYOND = dataclasses.replace(FIRST, prompt_ids=(1,) * 65), dataclasses.replace(SECOND, correct_id=tiny.V)
BAD_CONTEXTS = {  # what the message must name -> contexts
    "no context": [],
    "'hope'.*already prefers 'won' to 'lost'.*nats": [swapped(CLOSE)],
    "'c1'.*vocabulary": [BEYOND],
    "'c0'.*vocabulary": [dataclasses.replace(FIRST, competitor_id=50_000)],
    "'c0'.* the 41 of the vocabulary": [dataclasses.replace(FIRST, prompt_ids=(1, tiny.V, 2))],
    "'c0'.*65 tokens": [LONG],
    "2 problems.*'c0'.*'c1'": [swapped(FIRST), swapped(SECOND)],
    "2 problems.*65 tokens.*vocabulary": [LONG, BEYOND],
    "no context in a model's ids.*ph.resolve": [FIRST, FIRST.context],
    "{.*'id': 'c0'.*no context in a model's ids": [dataclasses.asdict(FIRST.context)],
    "Resolved.*no context in a model's ids; give a list": FIRST,
}


@pytest.mark.parametrize("named", BAD_CONTEXTS)
def test_contexts_that_do_not_fit_the_model_are_refused(named):
    with refused(ContextError, named):
        finetune(GPT2, BAD_CONTEXTS[named], [1e-3])


BAD_SEEDS = [(), (0.5,), (True,), ("1",), (-1,), (None,), 3, None, (2**63,), (2**64,), (0, 10**400)]
BAD_OPTIONS = [("seeds.*below 2\\*\\*63", {"seeds": seeds}) for seeds in BAD_SEEDS]
BAD_OPTIONS += [("engine", {"engine": "fast"}), *(("chunk", {"chunk": chunk}) for chunk in (0, -1, 1.5))]


@pytest.mark.parametrize("named, options", BAD_OPTIONS, ids=range(len(BAD_OPTIONS)))
def test_seeds_engines_and_chunks_that_are_none_are_refused(named, options):
    with refused(ParameterError, named, longest=300):
        small_run(method="lora", **options)


def test_contexts_are_checked_once_and_refused_every_time():
    check_contexts(GPT2, [*CONTEXTS, CLOSE])
    with patch("phantomlib.engine.recipe.next_token_logits", side_effect=AssertionError("a forward pass")):
        check_contexts(GPT2, CONTEXTS)
    for _ in range(2):
        with pytest.raises(ContextError, match="already prefers"):
            check_contexts(GPT2, [*CONTEXTS, swapped(FIRST)])


def with_readout(plain, change):
    """The model with another readout: ``change`` alters E (V, d) in place."""
    module = copy.deepcopy(plain.module)
    change(module.get_output_embeddings().weight)
    return dataclasses.replace(plain, module=module)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_what_is_recorded_of_a_readout_far_from_one_is_exact(scale):
    """In single precision, against the definition in double precision."""
    plain = tiny.model("GPT2", "float32", tied=False)
    model, (context,) = with_readout(plain, lambda E: E.mul_(scale)), tiny.contexts(plain, (4,))
    run = finetune(model, [context], [1e-30], Recipe(optimizer="sgd", steps=1)).isel(context=0, rate=0, seed=0, step=0)
    z = model.module(torch.tensor([context.prompt_ids])).logits[0, -1].double()
    e = torch.nn.functional.normalize(plain.readout.double())
    g, c, k = e @ e.T, context.correct_id, context.competitor_id
    assert float(run.phi) == pytest.approx(float(z.softmax(0) @ (g[c] ** 2 - g[k] ** 2)), abs=1e-5)
    assert float(run.overlap) == pytest.approx(float(g[c, k]), abs=1e-5)
    assert float(run.phi) == pytest.approx(float(run.signal + run.drag), abs=1e-6)
    assert np.isfinite(float(run.readout_drift))


def test_a_readout_row_of_zero_keeps_the_recorded_split_exact():
    plain = tiny.model("GPT2", tied=False)
    (context,) = tiny.contexts(plain, (4,))
    model = with_readout(plain, lambda E: E[context.correct_id].zero_())
    run = finetune(model, [context], [1e-3], Recipe(optimizer="sgd", steps=3, snapshots=(0, 2)))
    by_trace, phi = run.phi_trace.values, run.phi.sel(step=run.snapshot.values).values
    assert abs(by_trace - phi).max() < 1e-12 and (phi != 0).all()


def test_runs_that_no_memory_would_hold_are_refused_before_they_start():
    with pytest.raises(
        ParameterError, match="Recording 4 runs of 1,000,000,000 steps needs about .* GiB.* fewer steps"
    ):
        finetune(GPT2, CONTEXTS, [1e-3, 2e-3], Recipe(steps=10**9))
    for steps in (10**10, 10**400):
        with pytest.raises(ParameterError, match="less than or equal to 1000000000"):
            Recipe(steps=steps)


def test_a_tie_is_called_a_tie():
    plain = tiny.model("GPT2", tied=False)
    (context,) = tiny.contexts(plain, (4,))
    model = with_readout(plain, lambda E: E[context.correct_id].copy_(E[context.competitor_id]))
    with pytest.raises(ContextError, match="the same logit before training, a tie") as error:
        check_contexts(model, [context])
    assert "already prefers" not in str(error.value) and "+0.00" not in str(error.value)
