"""Learning rates of chapters are multiples of what a model needs, never numbers of their own."""

import ast
import re

import pytest

from phantombook.ledger.claims import load_claims
from phantombook.parameters import declared
from phantombook.plan import make_jobs
from phantombook.project import find_root, load_profile, notebooks, read_notebook

ROOT = find_root()
CHAPTERS = sorted(notebooks(ROOT).values())
PROFILES = sorted(path.stem for path in (ROOT / "notebooks/profiles").glob("*.yaml"))
SMALLEST = 0.05  # of the multiples; the rates at which small models learn lie below, those of Adam far below


def absolute_parameters(values):
    """Parameters, a mapping, that are learning rates by their name, or lists of numbers as small as learning rates are."""
    named = {name for name in values if re.search(r"(^|_)(lr|rates?)(_|$)", name)}
    lists = {name: value for name, value in values.items() if isinstance(value, list)}
    return named | {
        name for name, value in lists.items() if any(isinstance(x, float) and 0 < x < SMALLEST for x in value)
    }


def absolute_runs(source, parameters):
    """Lines that ask a store for runs at rates which are numbers and parameters only, so in units of nothing computed."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(ast.Attribute(attr="run"), arguments, keywords):
                rates = [word.value for word in keywords if word.arg == "learning_rates"] or arguments[2:3]
                names = {inner.id for rate in rates for inner in ast.walk(rate) if isinstance(inner, ast.Name)}
                if rates and not names - {*parameters, "np", "numpy"}:
                    lines.append(rates[0].lineno)
    return lines


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_fits_the_notebooks_and_holds_no_absolute_learning_rate(profile):
    for job in make_jobs(ROOT, load_profile(ROOT, profile)):  # refuses what a notebook does not have
        assert not absolute_parameters(job.all_parameters), job.name


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_chapter_holds_one(path):
    parameters = {name: parameter.default for name, parameter in declared(read_notebook(path)).items()}
    assert not absolute_parameters(parameters)
    assert not absolute_runs(path.read_text(encoding="utf-8"), parameters)


def test_one_would_be_found():
    assert absolute_parameters({"sgd_learning_rates": [0.1]}) and absolute_parameters({"lr": 1.0})
    assert absolute_parameters({"multiples": [0.7, 1e-3]}) == {"multiples"}
    assert not absolute_parameters({"multiples": [0.1, 1.5], "tolerance": 0.005, "iterated": 1, "models": ["x"]})
    for rates in ("[1e-4]", "numbers", "np.array(numbers) * 1e-4", "learning_rates=[1e-4, 1e-3]"):
        assert absolute_runs(f"nb.store.run(model, contexts, {rates})", {"numbers"}) == [1]
    assert not absolute_runs(
        "store.run(model, contexts, critical[:, None] * numbers)\nsubprocess.run('x')", {"numbers"}
    )


@pytest.mark.parametrize("profile", PROFILES)
def test_silent_failures_are_counted_on_one_grid(profile):
    grids = {job.name[:2]: job.all_parameters.get("multiples") for job in make_jobs(ROOT, load_profile(ROOT, profile))}
    assert grids["02"] == grids["04"] == grids["11"]


def test_it_is_the_grid_that_the_ledger_declares():
    claim = next(claim for claim in load_claims() if claim.id == "C1")
    grid = re.search(r"\((.+) times each context's predicted critical rate", claim.criteria[0].quantity)[1]
    (job,) = [job for job in make_jobs(ROOT, load_profile(ROOT, "zoo")) if job.name.startswith("02")]
    assert job.all_parameters["multiples"] == [float(number) for number in re.split(", | and ", grid)]
