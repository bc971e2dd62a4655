"""What one installs and imports: little for the core, the same version everywhere, every name of the public face."""

import doctest
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import phantomlib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = ("dask", "distributed", "netCDF4", "matplotlib", "seaborn", "tabulate", "papermill", "jupytext", "IPython")


def loaded(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after some code."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_large():
    assert not loaded("import phantomlib") & {"torch", "transformers", "xarray", "pandas", "numpy", "yaml", *EXTRAS}


@pytest.mark.slow
def test_the_core_needs_no_extra():
    """Diagnose, fine-tune and watch with the packages of the extras made unimportable."""
    code = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None
import phantomlib as ph
model = ph.load("zoo:gpt2-s")
context = ph.resolve(ph.load_contexts()[0], model.tokenizer)
ph.diagnose(model, context, ph.Recipe(steps=5), 1e-5)
ph.finetune(model, [context], [1e-4], ph.Recipe(steps=2))
ph.PhantomCallback([context.context], tokenizer=model.tokenizer)
"""
    assert "torch" in loaded(code)


@pytest.mark.parametrize("name", phantomlib.__all__)
def test_every_public_name_is_there_with_an_example_that_is_true(name):
    assert getattr(phantomlib, name).__module__ == f"phantomlib.{phantomlib._HOMES[name]}"
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(phantomlib, name), name, globs={})
    assert example.examples, f"{name} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=said.append)
    assert result.failed == 0, "".join(said)


def test_the_citation_names_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == phantomlib.__version__


def test_lower_bounds_are_what_was_tried():
    """The minor version of each pin: no other was."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pinned = (Requirement(line.split("#")[0]) for line in lines if "==" in line)
    pins = {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in pinned}
    extras = PROJECT["project"]["optional-dependencies"]
    optional = [one for name in extras if name != "edit" for one in extras[name]]
    for wanted in map(Requirement, [*PROJECT["project"]["dependencies"], *optional]):
        for bound in wanted.specifier:
            if bound.operator == ">=":
                assert f"{pins[canonicalize_name(wanted.name)]}.".startswith(f"{bound.version}."), wanted


def test_the_wheel_leaves_out_what_only_a_clone_needs():
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert found == ["phantomlib*", "phantombook*"] and (ROOT / "zoo" / "weights" / "gpt2-s-mix1").is_dir()
