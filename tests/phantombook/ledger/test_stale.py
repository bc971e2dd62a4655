"""What a notebook reaches is what it imports, and its key changes with that code and with nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from phantombook import stale

NOTEBOOKS = sorted(Path(__file__).parents[3].glob("notebooks/[0-9]*.py"))


def reached(code):
    return set(stale.reached(code))


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
    assert "phantomlib.transition.jumps" in reached(code)
    assert "phantomlib.transition.double_well" not in reached(code)


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
    assert "phantomlib.engine.finetune" in reached(code) and "phantomlib.engine.replicas" in reached(code)
    assert ("phantomlib.diagnosis" in reached(code)) == ("*" in code)


def test_text_cells_and_comments_do_not_count():
    code = '# %% [markdown]\n# import phantombook.cli\n# %%\n"""from zoo import recipe"""\nimport numpy\n'
    assert stale.reached(code) == {}
    assert stale.key(code) == stale.key("import numpy  # fast\n\n")
    assert stale.key(code) != stale.key("import numpy as np")


LOADED = """
import ast, json, sys
for path in sys.argv[1:]:
    for name in [name for name in sys.modules if name.split(".")[0] in ("phantomlib", "phantombook")]:
        del sys.modules[name]
    nodes = [n for n in ast.walk(ast.parse(open(path).read())) if isinstance(n, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(nodes, []), "cells", "exec"), {})
    print(path, *[name for name in sys.modules if name.startswith(("phantomlib.", "phantombook."))])
"""


def machinery_of(names):
    rooms = ("phantombook.figures", "phantombook.ledger")
    return {n for n in names if n.startswith("phantombook.") and not n.startswith(rooms)} - set(stale.ON_THE_PAGE)


def test_nothing_is_loaded_that_was_not_foreseen():
    """The oracle is Python: the imports of each notebook's cells are carried out, and its modules are looked up."""
    command = [sys.executable, "-c", LOADED, *map(str, NOTEBOOKS)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=NOTEBOOKS[0].parents[1]).stdout
    for path, *loaded in map(str.split, told.splitlines()):
        names = set(stale.reached(Path(path)))
        assert len(loaded) > 5 and set(loaded) - machinery_of(loaded) <= names
        assert "phantombook.notebook" in names and not machinery_of(names)  # the machinery has no part


def test_only_those_who_draw_reach_the_colours():
    start = "from phantombook import notebook\nnb = notebook.start('x')"
    assert {"phantomlib.engine.finetune", "phantombook.figures.style"} <= reached(start)
    assert not {"phantombook.figures.palette", "phantombook.ledger.claims"} & reached(start)
    assert "phantombook.figures.palette" in reached(start + "\nfrom phantombook.figures.charts import jump_panels")


@pytest.mark.parametrize(
    "name, old, new, changes",
    [
        ("phantomlib/transition/jumps.py", "def ", "def _", True),
        ("phantomlib/transition/jumps.py", "\n\n\ndef ", "\n\n\n# a comment\n\n\ndef ", False),
        ("phantomlib/transition/jumps.py", '"""', '"""More. ', False),
        ("phantomlib/engine/recipe.py", "steps: Whole = ", "steps: Whole = 1 + ", True),
        ("phantomlib/contexts.yaml", "prompt", "prompts", True),
        ("phantomlib/models/weights/checksums.json", "{}", "{ }", True),
        ("phantombook/ledger/claims.yaml", "threshold", "thresholds", False),
        ("phantombook/ledger/claims.py", "def ", "def _", False),
        ("phantombook/cli.py", "def ", "def _", False),
        ("phantombook/build.py", "def ", "def _", False),
        ("phantombook/execution.py", "def ", "def _", True),
        ("phantombook/parameters.py", "def ", "def _", True),
        ("phantomlib/progress.py", "def ", "def _", True),
        ("phantomlib/engine/cluster.py", "def ", "def _", True),
        ("phantomlib/__init__.py", "__version__ = ", "__version__ = 1 and ", True),
        ("phantombook/notebook.py", "return ", "return 1 + ", True),
        ("phantomlib/transition/double_well.py", "def ", "def _", False),
    ],
)
def test_what_changes_a_key(package, name, old, new, changes):
    code = "from phantombook import notebook\nfrom phantomlib.transition import jumps\nfrom phantomlib.models import zoo_models"
    reads, path = "from phantombook.ledger.claims import load_claims", package / name
    before, before_those_who_read = stale.key(code), stale.key(reads)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert (stale.key(code) != before) == changes
    if name.startswith("phantombook/ledger"):  # thresholds count for those who read them
        assert stale.key(reads) != before_those_who_read


@pytest.mark.parametrize(
    "one, other", [("x = 0", "x = False"), ("x = 0", "x = 0.0"), ("x = ''", "x = None"), ("f()", "f(0)")]
)
def test_constants_that_are_nearly_the_same_differ(one, other):
    assert stale.key(one) != stale.key(other)


def test_commands_of_ipython_are_no_obstacle():
    code = "%matplotlib inline\nif 1:\n    !ls\nfrom phantomlib.transition import jumps"
    assert "phantomlib.transition.jumps" in reached(code)
    assert stale.key(code) != stale.key(code.replace("ls", "rm"))
    with pytest.raises(SyntaxError):
        stale.key("def f(:")


def test_modules_of_the_project_count(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "mine.py").write_text("from phantomlib.transition import double_well")
    notebook = tmp_path / "notebooks/01_x.py"
    notebook.write_text("import mine, numpy")
    assert {"mine", "phantomlib.transition.double_well"} <= set(stale.reached(notebook))
    before = stale.key(notebook)
    (tmp_path / "mine.py").write_text("from phantomlib.transition import double_well\nx = 1")
    assert stale.key(notebook) != before


def test_every_data_file_of_the_package_belongs_to_a_module():
    packages = [stale.HOME / name for name in stale.PACKAGES]
    named = {one for package in packages for path in package.rglob("*.py") for one in stale.data_of(path)}
    data = {
        path
        for package in packages
        for path in package.rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".typed")
        and "__pycache__" not in path.parts
        and "zoo/weights" not in path.as_posix()  # each run of these models is named by their fingerprint
    }
    assert {path for path in data if not named & {path, *path.parents}} == set()
