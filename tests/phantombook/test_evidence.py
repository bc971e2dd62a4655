"""From the command line: what happens to a published verdict when notebooks are tried, broken and run again."""

import json
import os
import subprocess
import sys
from contextlib import chdir

import jupytext
import nbformat
import pytest
from typer.testing import CliRunner

from phantombook.cli import app

NOTEBOOK = """\
# %% tags=["parameters"]
models: list[str] = ["zoo:neox-s"]  # model references
contexts: str = "default"  # contexts
device: str = "cpu"  # device
dtype: str = "float32"  # precision
store: str = "runs"  # runs
seed: int = 0  # seed
jumping: float = 3.0  # what is found

# %%
from phantombook import notebook
from phantomlib.engine.recipe import Recipe

nb = notebook.start("05_toy")
model = nb.load(nb.models[0])
run = nb.store.run(model, nb.fitting_contexts(model)[:1], [1e-4], Recipe(steps=1))

# %%
nb.record("C4", jumping, optimizer="adam", n={"architectures": 5, "contexts": 10}, runs=run)
"""


@pytest.fixture
def project(tmp_path):
    for name, text in {
        "_toc.yml": "format: jb-book\nroot: book/intro\n",
        "notebooks/05_toy.py": NOTEBOOK,
        "notebooks/profiles/zoo.yaml": "common:\n  models: [zoo:gpt2-s]\n  store: kept\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    with chdir(tmp_path):
        yield tmp_path


def run(*words):
    return CliRunner().invoke(app, ["run", "05", "--profile", "zoo", *words])


def verdict(identifier="C4"):
    told = CliRunner().invoke(app, ["claims", "--json"])
    assert told.exit_code == 0, told.output
    return next(entry for entry in json.loads(told.stdout) if entry["id"] == identifier and entry["decides"])


@pytest.mark.slow
def test_the_life_of_a_verdict(project):
    file = project / "notebooks/05_toy.py"
    assert verdict()["verdict"] == "not tested" and "run notebook 05" in verdict()["reason"]
    assert verdict("C5")["reason"] == "there is no notebook 06 here"

    assert run().exit_code == 0
    published = verdict()
    assert published["verdict"] == "reproduced" and published["criteria"][0]["measured"] == 3

    assert run("-p", "jumping", "0.0").exit_code == 0  # a private experiment
    assert verdict() == published

    file.write_text(NOTEBOOK.replace("jumping, optimizer", "jumping + 1, optimizer"))
    assert verdict()["verdict"] == "stale" and "run notebook 05 again" in verdict()["reason"]
    assert run().exit_code == 0
    assert verdict()["verdict"] == "reproduced" and verdict()["criteria"][0]["measured"] == 4

    for broken in (NOTEBOOK.replace("\nnb.record", "\n1 / 0\nnb.record"), f"{NOTEBOOK}\n# %%\n1 / 0\n"):
        file.write_text(broken)
        assert run().exit_code != 0
        file.write_text(NOTEBOOK)
        assert verdict()["verdict"] == "not tested"  # although its code is as it was when it recorded
        assert run().exit_code == 0

    assert verdict() == published
    file.write_text("".join(line for line in NOTEBOOK.splitlines(True) if "nb.record" not in line))
    assert run().exit_code == 0
    assert "no measurement with these parameters" in verdict()["reason"]
    file.write_text(NOTEBOOK)
    assert run().exit_code == 0
    [stored] = (project / "kept").glob("*.nc")
    stored.write_bytes(b"")
    assert verdict()["verdict"] == "not tested" and "damaged" in verdict()["reason"]


def test_a_copy_that_papermill_runs_shows_its_parameters_and_records_nothing(project):
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    content = jupytext.reads(f"{NOTEBOOK}\n# %%\nprint(nb.command)\n", fmt="py:percent")
    nbformat.write(content, elsewhere / "copy.ipynb")
    told = json.dumps({"command": "phantom run 05", "profile": "zoo", "parameters": {"jumping": 3.0}})
    words = ["-p", "jumping", "0.5", "-k", "python3", "--language", "python", "--no-progress-bar", "-y"]
    command = [sys.executable, "-m", "papermill", "copy.ipynb", "out.ipynb", *words, "models: [zoo:gpt2-s]"]
    subprocess.run(command, cwd=elsewhere, env=os.environ | {"PHANTOM_NOTEBOOK": told}, check=True)
    shown = (elsewhere / "out.ipynb").read_text()
    assert "-p jumping '0.5'" in shown and "zoo:gpt2-s" in shown
    assert "C4 is not recorded" in shown and not list(elsewhere.rglob("measurements"))
