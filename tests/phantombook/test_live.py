"""The model that trains in a reader's browser gives the engine's numbers."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import phantomlib as ph
from phantomlib.critical.step_zero import velocity
from phantomlib.models.zoo_models import path

GPT2 = Path(__file__).parents[2] / "book/_static/live/gpt2.js"
SCRIPT = """
const fs = require("fs"), {readSafetensors, Problem} = require(process.argv[1]);
const file = fs.readFileSync(process.argv[2]), asked = JSON.parse(process.argv[3]);
const tensors = readSafetensors(file.buffer.slice(file.byteOffset, file.byteOffset + file.length));
const problem = new Problem(tensors, asked.heads, asked.ids, asked.correct, asked.competitor);
console.log(JSON.stringify({steps: problem.train(asked.optimizer, asked.rate, 20), first: problem.velocity(asked.optimizer)}));
"""
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js to run the script with")


@pytest.mark.parametrize("optimizer, rate", [("adam", 2e-5), ("adam", 1e-3), ("sgd", 2e-2)])
def test_twenty_steps_are_those_of_the_engine(optimizer, rate):
    model = ph.load("zoo:gpt2-s")
    context, recipe = ph.resolve(ph.load_contexts()[4], model.tokenizer), ph.Recipe(optimizer=optimizer, steps=20)
    asked = {"heads": model.module.config.n_head, "ids": context.prompt_ids, "optimizer": optimizer, "rate": rate}
    asked |= {"correct": context.correct_id, "competitor": context.competitor_id}
    command = ["node", "-e", SCRIPT, str(GPT2), str(path("gpt2-s") / "model.safetensors"), json.dumps(asked)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    run = ph.finetune(model, [context], [rate], recipe).isel(context=0, rate=0, seed=0)
    names = {
        "gap": "logit_gap",
        "loss": "cross_entropy",
        "pCorrect": "p_correct",
        "pCompetitor": "p_competitor",
        "phi": "phi",
    }
    for ours, recorded in names.items():
        np.testing.assert_allclose([step[ours] for step in told["steps"]], run[recorded], atol=1e-4)
    assert told["first"]["velocity"] == pytest.approx(float(velocity(model, [context], recipe).velocity[0]), rel=0.01)
