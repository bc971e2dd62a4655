"""What a notebook reaches is what it imports, and its key changes with that code and with nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from phantomlib.ledger import sources

NOTEBOOKS = sorted(Path(__file__).parents[2].glob("notebooks/[0-9]*.py"))


def reached(code):
    return {name.removeprefix("phantomlib.") for name in sources.reached(code)}


@pytest.mark.parametrize(
    "code",
    [
        "from phantomlib.transition.jumps import find_jumps",
        "from phantomlib.transition import jumps",
        "import phantomlib.transition.jumps",
        "import phantomlib as ph\nph.transition.jumps.find_jumps",
        "import phantomlib\nphantomlib.transition.jumps.find_jumps",
        "def f():\n    from phantomlib.transition import jumps",
        "from phantomlib import transition\ntransition.jumps.find_jumps()",
        "import importlib\nimportlib.import_module('phantomlib.transition.jumps')",
    ],
)
def test_every_way_to_import_is_seen(code):
    assert "transition.jumps" in reached(code)
    assert "transition.branches" not in reached(code)


@pytest.mark.parametrize(
    "code",
    [
        "import phantomlib as ph\nph.finetune(1)",
        "from phantomlib import finetune",
        "import phantomlib\nphantomlib.finetune",
        "from phantomlib import *",
    ],
)
def test_the_public_face_leads_to_where_a_name_is_at_home(code):
    assert "measure.finetune" in reached(code) and "measure.replicas" in reached(code)
    assert ("advise.diagnosis" in reached(code)) == ("*" in code)


def test_text_cells_and_comments_do_not_count():
    code = '# %% [markdown]\n# import phantomlib.cli\n# %%\n"""from phantomlib.zoo import recipe"""\nimport numpy\n'
    assert sources.reached(code) == ()
    assert sources.key(code) == sources.key("import numpy  # fast\n\n")
    assert sources.key(code) != sources.key("import numpy as np")


LOADED = """
import ast, json, sys
for path in sys.argv[1:]:
    for name in [name for name in sys.modules if name.startswith("phantomlib.")]:
        del sys.modules[name]
    nodes = [n for n in ast.walk(ast.parse(open(path).read())) if isinstance(n, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(nodes, []), "cells", "exec"), {})
    print(path, *[name for name in sys.modules if name.startswith("phantomlib.")])
"""


def test_nothing_is_loaded_that_was_not_foreseen():
    """The oracle is Python: the imports of each notebook's cells are carried out, and its modules are looked up."""
    command = [sys.executable, "-c", LOADED, *map(str, NOTEBOOKS)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=NOTEBOOKS[0].parents[1]).stdout
    for path, *loaded in map(str.split, told.splitlines()):
        assert len(loaded) > 5
        machinery = {name for name in loaded if name.startswith("phantomlib.book.")} - set(sources.ON_THE_PAGE)
        assert set(loaded) - machinery - set(sources.WITHOUT_INFLUENCE) <= set(sources.reached(Path(path)))


def test_the_machinery_has_no_part():
    for path in NOTEBOOKS:
        names = sources.reached(path)
        assert "phantomlib.book.notebook" in names
        assert not {name for name in names if name.startswith("phantomlib.book.")} - set(sources.ON_THE_PAGE)
        assert not set(names) & set(sources.WITHOUT_INFLUENCE)


def test_only_those_who_draw_reach_the_colours():
    start = "from phantomlib.book import notebook\nnb = notebook.start('x')"
    assert {"measure.finetune", "figures.style"} <= reached(start)
    assert not {"figures.palette", "ledger.claims"} & reached(start)
    assert "figures.palette" in reached(start + "\nfrom phantomlib.figures.jumps import jump_trajectories")


def test_a_colour_makes_stale_what_draws_with_it(package):
    before = {path.stem: sources.key(path) for path in NOTEBOOKS}
    palette = package / "figures/palette.py"
    palette.write_text(palette.read_text().replace("#0072B2", "#0072B3"))
    stale = {path.stem for path in NOTEBOOKS if sources.key(path) != before[path.stem]}
    assert stale == {path.stem for path in NOTEBOOKS if "phantomlib.figures.palette" in sources.reached(path)}
    assert "10_ledger" not in stale and "04_catapult_jumps" in stale


@pytest.mark.parametrize(
    "name, old, new, changes",
    [
        ("transition/jumps.py", "def ", "def _", True),
        ("transition/jumps.py", "\n\n\ndef ", "\n\n\n# a comment\n\n\ndef ", False),
        ("transition/jumps.py", '"""', '"""More. ', False),
        ("measure/recipe.py", "steps: int = ", "steps: int = 1 + ", True),
        ("measure/contexts.yaml", "prompt", "prompts", True),
        ("zoo/weights/checksums.json", "{}", "{ }", True),
        ("ledger/claims.yaml", "threshold", "thresholds", False),
        ("ledger/claims.py", "def ", "def _", False),
        ("cli.py", "def ", "def _", False),
        ("book/build.py", "def ", "def _", False),
        ("book/notebook.py", "return ", "return 1 + ", True),
        ("transition/branches.py", "def ", "def _", False),
    ],
)
def test_what_changes_a_key(package, name, old, new, changes):
    code = "from phantomlib.book import notebook\nfrom phantomlib.transition import jumps\nfrom phantomlib.zoo import shipped"
    before, path = sources.key(code), package / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert (sources.key(code) != before) == changes


def test_thresholds_count_for_those_who_read_them(package):
    code = "from phantomlib.ledger.claims import load_claims"
    before, path = sources.key(code), package / "ledger/claims.yaml"
    path.write_text(path.read_text() + "\n")
    assert sources.key(code) != before


@pytest.mark.parametrize(
    "one, other", [("x = 0", "x = False"), ("x = 0", "x = 0.0"), ("x = ''", "x = None"), ("f()", "f(0)")]
)
def test_constants_that_are_nearly_the_same_differ(one, other):
    assert sources.key(one) != sources.key(other)


def test_commands_of_ipython_are_no_obstacle():
    code = "%matplotlib inline\nif 1:\n    !ls\nfrom phantomlib.transition import jumps"
    assert "transition.jumps" in reached(code)
    assert sources.key(code) != sources.key(code.replace("ls", "rm"))
    with pytest.raises(SyntaxError):
        sources.key("def f(:")


def test_modules_of_the_project_count(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "mine.py").write_text("from phantomlib.transition import branches")
    notebook = tmp_path / "notebooks/01_x.py"
    notebook.write_text("import mine, numpy")
    assert {"mine", "phantomlib.transition.branches"} <= set(sources.reached(notebook))
    before = sources.key(notebook)
    (tmp_path / "mine.py").write_text("from phantomlib.transition import branches\nx = 1")
    assert sources.key(notebook) != before


def test_every_data_file_of_the_package_belongs_to_a_module():
    named = {one for path in sources.PACKAGE.rglob("*.py") for one in sources._data(path)}
    data = {
        path
        for path in sources.PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in (".py", ".typed") and "__pycache__" not in path.parts
    }
    assert {path for path in data if not named & {path, *path.parents}} == set()
