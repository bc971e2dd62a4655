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
from phantombook.doctor import pins

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = (
    "dask", "distributed", "netCDF4", "matplotlib", "seaborn", "tabulate", "papermill", "jupytext", "IPython",
)  # fmt: skip


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


def test_every_requirement_is_pinned_at_the_minor_version_of_its_lower_bound():
    """No other was tried. JupyterLab is no part of the book, so its pin stands in pyproject.toml."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = {canonicalize_name(name): version for name, version in pins(text).items()}
    assert len([line for line in text.splitlines() if line.split("#")[0].strip()]) == len(pinned)
    assert not any("+" in version for version in pinned.values())
    extras = dict(PROJECT["project"]["optional-dependencies"])
    assert [[one.operator for one in Requirement(text).specifier] for text in extras.pop("edit")] == [["=="]]
    wanted = map(
        Requirement, [*PROJECT["project"]["dependencies"], *(one for texts in extras.values() for one in texts)]
    )
    for one in (one for one in wanted if one.name != "phantom-companion"):
        version, bounds = pinned[canonicalize_name(one.name)], [b.version for b in one.specifier if b.operator == ">="]
        assert version in one.specifier and bounds and f"{version}.".startswith(f"{bounds[0]}."), one


def test_the_wheel_leaves_out_what_only_a_clone_needs():
    found = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert found == ["phantomlib*", "phantombook*"] and (ROOT / "zoo" / "weights" / "gpt2-s-mix1").is_dir()
