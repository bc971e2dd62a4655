"""What every chapter keeps to, so that it can be read and edited."""

import ast
import re

import pytest
from typer.testing import CliRunner

from phantombook.cli import app
from phantombook.project import find_root, notebooks, read_notebook
from phantomlib.models import zoo_models

ROOT = find_root()
CHAPTERS = sorted(notebooks(ROOT).items())


@pytest.mark.parametrize("number, path", CHAPTERS)
def test_a_chapter_can_be_read_and_edited(number, path):
    cells = read_notebook(path).cells
    head = cells[0].source.splitlines()
    assert head[0].startswith(f"# {number} · ")
    assert (
        "**Question.**" in cells[0].source and f"```{{glue:md}} answer_{number}\n:format: myst\n```" in cells[0].source
    )
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert sum("nb.answer(" in cell.source for cell in code) == 1
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120
    assert not any("mystnb" in cell.metadata for cell in cells)  # captions stand in nb.caption


FOLDED = {"parameters", "hide-cell", "hide-input", "remove-cell"}
PRESENTS = re.compile(r"\bnb\.(caption|figure|table|say|answer|record|glue)\(")
ON_THE_COMPANION = {"21", "22"}  # chapters that show how one presents


@pytest.mark.parametrize("number, path", CHAPTERS)
def test_what_a_chapter_shows_is_the_experiment(number, path):
    """Load, run, reduce, look: with names of the library. What only presents is folded."""
    code = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
    shown = [cell.source for cell in code if not FOLDED & set(cell.metadata.get("tags", ()))]
    too_wide = [line for source in shown for line in source.splitlines() if len(line) > 88]
    assert too_wide == []
    if number not in ON_THE_COMPANION:
        assert [found[0] for found in map(PRESENTS.search, shown) if found] == []
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if re.match(r"phantom(lib|book(?!\.figures))|benchmarks", node.module)]
    library = {alias.name for node in ours for alias in node.names} - {"notebook"}
    assert any(library & set(re.findall(r"\w+", source)) or "nb.store" in source for source in shown)


@pytest.mark.parametrize("number, path", CHAPTERS)
def test_its_links_lead_somewhere(number, path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(((?:\.\./)?[\w-]+\.(?:ipynb|md))(?:#([\w-]+))?\)", text)
    for target, anchor in targets:
        known = ROOT / ("notebooks" if target.endswith(".ipynb") else "book") / target.removeprefix("../")
        file = known.with_suffix(".py") if target.endswith(".ipynb") else known
        assert file.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, anchor
    assert not re.search(r"(?:later|next|previous) chapter|chapter on", text)  # a link instead
    names = re.findall(r'nb\.caption\(\s*"(fig-[\w-]+)",', text)
    assert len(names) == len(set(names)) and all(text.count(f'"{name}"') > 1 for name in names)  # each caption is used


PLACED = re.compile(r"\b(Left|Right|Top|Bottom)\b[:,]|\((left|right|top|bottom)\)|\b(left|right|top|bottom) panel\b")


@pytest.mark.parametrize("path", [*notebooks(ROOT).values(), ROOT / "book/intro.md"], ids=lambda path: path.stem)
def test_no_panel_is_called_by_its_place(path):
    """A phone shows panels one below the other; they have letters."""
    text = path.read_text(encoding="utf-8")
    assert [found[0] for found in PLACED.finditer(text)] == []


TERMS = {
    "silent failure": "silent-failure",
    "critical (learning )?rate": "critical-learning-rate",
    "order parameter": "order-parameter-signal-and-drag",
    "kinematic number": "kinematic-number",
    "bulk coherence": "bulk-coherence",
}


@pytest.mark.parametrize("number, path", [chapter for chapter in CHAPTERS if chapter[0] not in ("00", "23")])
def test_its_terms_lead_to_their_definitions(number, path):
    """The ledger quotes claims, and the chapter on speed is about none of the terms."""
    paragraphs = [
        paragraph
        for cell in read_notebook(path).cells
        if cell.cell_type == "markdown"
        for paragraph in cell.source.split("\n\n")
        if not paragraph.startswith(("#", "**Question", "|", "-")) and "```" not in paragraph
    ]
    prose = " ".join("\n\n".join(paragraphs).split())
    for term, anchor in TERMS.items():
        if re.search(rf"\b{term}", prose, re.IGNORECASE):
            assert f"definitions.md#{anchor})" in prose, term


def test_a_blind_prediction_with_ones_own_models_asks_for_the_held_out_one(tmp_path):
    own, output = zoo_models.path("gpt2-s"), tmp_path / "out.ipynb"
    command = ["run", "10", "-p", "models", f'["{own}", "zoo:neox-s"]', "-p", "store", str(tmp_path / "runs")]
    told = CliRunner().invoke(app, [*command, "-o", str(output)])
    assert told.exit_code == 1 and "-p held_out" in told.stderr
    assert list(tmp_path.iterdir()) == []  # no store, and no notebook that failed half-way
