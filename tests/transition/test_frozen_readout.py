"""What counts as a jump with an unchanged readout."""

import numpy as np
import tiny
from toys import recorded

from phantomlib.engine.finetune import finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.transition import frozen_readout, jumps, refinement


def test_jumps_count_as_frozen_only_if_every_step_is_unchanged():
    phi = np.zeros((2, 1, 12))
    phi[:, 0, 3:] = 0.2
    run = recorded(phi, contexts=("a", "b"), readout_unchanged=np.ones((2, 1, 12)))
    run["diverged_step"] = run.phi.isel(step=0, drop=True) - 1
    run["readout_unchanged"][1, 0, 0, 9] = 0
    table = jumps.find_jumps(run)
    found = frozen_readout.frozen_jumps([run], [table])
    assert found.sentences == ["a"] and found.changed_steps == 1 and found.runs == 2
    assert frozen_readout.contexts_by_seed(table, [0, 1]) == [2, 0]


def test_lora_leaves_the_readout_alone_and_full_training_does_not():
    model = tiny.model("GPT2")
    contexts = tiny.contexts(model)
    lora = finetune(model, contexts, [0.1], Recipe(method="lora", steps=4, rank=2))
    full = finetune(model, contexts, [0.01], Recipe(steps=4))
    assert refinement.changed_steps(lora) == 0 and refinement.changed_steps(full) == 8
    assert (lora.phi_geometry_part.isel(step=slice(1, None)) == 0).all()
