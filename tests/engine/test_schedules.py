"""Learning rates that change at every step, against a plain loop."""

import numpy as np
import pytest
import tiny
from toys import plain_loop

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError


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
