"""Further recorded quantities: recorded like the others, and part of a run's name."""

import pytest
import torch
from tiny import contexts, model

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe, check_learning_rates
from phantomlib.errors import ParameterError
from phantomlib.order_parameter import density_matrix, normalise, order_parameter_by_trace
from phantomlib.runs.store import Store, specification


def by_trace(p, E, c, k):
    """Φ from the density matrix itself"""
    e, rows = normalise(E), torch.arange(len(c))
    return order_parameter_by_trace(density_matrix(p, E), e[rows, c], e[rows, k])


def p_c(p, E, c, k):
    return p.gather(1, c[:, None])[:, 0]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_further_quantity_sees_the_state_of_its_step(method):
    plain = model("Llama")
    extra = {"phi_by_trace": by_trace, "again": p_c}
    run = finetune(plain, contexts(plain), [1e-3, 1e-2], Recipe(method=method, steps=3), extra=extra)
    assert run.phi_by_trace.values == pytest.approx(run.phi.values, abs=1e-12)
    assert run.again.identical(run.p_correct.rename("again").assign_attrs(run.again.attrs))
    assert run.phi_by_trace.attrs["long_name"] == "Φ from the density matrix itself"
    plainly = finetune(plain, contexts(plain), [1e-3, 1e-2], Recipe(method=method, steps=3))
    assert run.drop_vars(extra).identical(plainly)


def test_it_is_stored_and_its_text_is_in_the_name_of_the_run(tmp_path):
    plain, recipe, store = model("GPT2"), Recipe(steps=2), Store(tmp_path)
    first = store.run(plain, contexts(plain), [1e-3], recipe, extra={"again": p_c})
    assert store.run(plain, contexts(plain), [1e-3], recipe, extra={"again": p_c}).identical(first)
    assert store.run(plain, contexts(plain), [1e-3], recipe).attrs["run_id"] != first.attrs["run_id"]
    rates = check_learning_rates([1e-3], 2)
    keys = [specification(plain, contexts(plain), rates, recipe, (0,), extra) for extra in (None, {}, {"a": p_c})]
    assert keys[0] == keys[1] and "extra" not in keys[0] and keys[2]["extra"]["a"].startswith("def p_c(")


@pytest.mark.parametrize("extra", [{"phi": p_c}, {"two words": p_c}, {"x": 3}, {3: p_c}])
def test_bad_quantities(extra, tmp_path):
    plain = model("GPT2")
    for run in (finetune, Store(tmp_path).run):
        with pytest.raises(ParameterError, match="extra"):
            run(plain, contexts(plain), [1e-3], Recipe(steps=1), extra=extra)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "wrong", [lambda p, E, c, k: -(p * p.log()).sum(), lambda p, E, c, k: p, lambda p, E, c, k: 1.0]
)
def test_one_number_for_each_replica_is_asked_for(wrong):
    plain = model("GPT2")
    with pytest.raises(ParameterError, match="'entropy' gives .* one number for each of 2 replicas"):
        finetune(plain, contexts(plain)[:1], [1e-3, 1e-2], Recipe(steps=2), extra={"entropy": wrong})
