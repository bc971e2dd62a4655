"""The loop of an edit, on notebooks of the repository and on toys; the tutorial as a newcomer follows it."""

import re
import shutil
import sys
from pathlib import Path

import jupytext
import nbformat
import pytest
import yaml
from jupytext.config import load_jupytext_config

from phantombook import build, edit, notebook, plan, project
from phantomlib.errors import BookError, ParameterError

ROOT = Path(__file__).parents[2]


def saved(path: Path) -> str:
    """The notebook as JupyterLab writes it, if nothing was edited."""
    config = load_jupytext_config(str(path))
    return jupytext.writes(jupytext.read(path, fmt="py:percent", config=config), fmt="py:percent", config=config)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_notebook_comes_back_as_it_is(path):
    assert saved(path) == path.read_text(encoding="utf-8")


def edited_by(monkeypatch, code):
    """JupyterLab is some other Python code, which finds the notebook's path and what it would find in its environment."""
    monkeypatch.setattr(edit.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(edit, "lab", lambda root, source: [sys.executable, "-c", f"path = {str(source)!r}\n{code}"])


SAVES = """
import jupytext, jupytext.config, json, os, pathlib
[settings] = pathlib.Path(os.environ["JUPYTER_CONFIG_PATH"]).glob("labconfig/*.json")
assert "Jupytext Notebook" in json.dumps(json.loads(settings.read_text())) and os.environ["PHANTOM_EDIT"] == "zoo"
config = jupytext.config.load_jupytext_config(path)
content = jupytext.read(path, config=config)
content.cells[3].source = content.cells[3].source.replace("print(", "print('edited', ")
jupytext.write(content, path, fmt="py:percent", config=config)
"""


def test_what_is_saved_is_the_notebook_with_its_own_header(toy_book, monkeypatch):
    source = toy_book / "notebooks/01_toy.py"
    shutil.copy(ROOT / "notebooks/jupytext.toml", toy_book / "notebooks")
    header = edit.TEMPLATE.read_text().split("# %%")[0].removesuffix("# ---\n\n")
    before = f"{header}#   phantom:\n#     after: all\n# ---\n\n{source.read_text()}"
    source.write_text(before)
    edited_by(monkeypatch, SAVES)
    assert edit.open_in_lab(toy_book, "01", "zoo") == source
    assert source.read_text() == before.replace("print(steps", "print('edited', steps")
    assert not list(toy_book.rglob("*.ipynb"))


def test_a_jupyterlab_that_does_not_start_is_no_success(toy_book, monkeypatch):
    before = (toy_book / "notebooks/01_toy.py").read_text()
    edited_by(monkeypatch, "raise SystemExit(3)")
    with pytest.raises(BookError, match="code 3"):
        edit.open_in_lab(toy_book, "01", "zoo")
    with pytest.raises(ParameterError, match="'zooo'"):
        edit.open_in_lab(toy_book, "01", "zooo")
    monkeypatch.setattr(edit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BookError, match=r"pip install -e '\.\[edit\]'"):
        edit.open_in_lab(toy_book, "01", "zoo")
    assert (toy_book / "notebooks/01_toy.py").read_text() == before


def test_in_jupyterlab_the_parameters_are_those_of_the_profile(toy_book, monkeypatch):
    session = {"In": ["steps: int = 3"], "steps": 3}
    monkeypatch.setitem(sys.modules, "__main__", type("Main", (), {})())
    vars(sys.modules["__main__"]).update(session)
    monkeypatch.setenv(notebook.EDITED, "zoo")
    monkeypatch.chdir(toy_book / "notebooks")
    said = []
    monkeypatch.setattr(notebook, "say", said.append)
    assert notebook._edited("01_toy") == {"steps": 5, "rates": [1e-3]}
    assert vars(sys.modules["__main__"])["steps"] == 5 and Path.cwd() == toy_book
    assert "steps=5" in said[0] and "zoo" in said[0]


@pytest.mark.parametrize("name", ["My question", "a-b", "", "1a", "_a", "toy"])
def test_names_that_no_chapter_can_have(toy_book, name):
    before = sorted(toy_book.rglob("*"))
    with pytest.raises(ParameterError):
        edit.new_chapter(toy_book, name)
    assert sorted(toy_book.rglob("*")) == before


# ------------------------------------------------------------------------------------------- the tutorial

TUTORIAL = (ROOT / "book/tutorial.md").read_text(encoding="utf-8")


def block(kind: str, number: int) -> str:
    return re.findall(rf"^```{kind}\n(.*?)^```", TUTORIAL, re.MULTILINE | re.DOTALL)[number]


def test_the_tutorial(tmp_path):
    """New chapter, changed plot, another model, a claim: each as the page says it, and the notebook runs."""
    for name in ("_toc.yml", "notebooks", "tests/two_contexts.yaml"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    source = edit.new_chapter(tmp_path, "my_question")
    assert source.stem in project.pages_to_generate(tmp_path)
    contents = yaml.safe_load((tmp_path / "_toc.yml").read_text())
    parts = {part["caption"]: [page["file"] for page in part["chapters"]] for part in contents["parts"]}
    assert parts["Appendix"][1] == f"book/generated/{source.stem}"

    text = source.read_text()
    before, after, models, claim = (block("python", number) for number in range(4))
    assert text.count(before) == 1
    text = text.replace(before, after)
    old = next(line for line in text.splitlines(keepends=True) if line.startswith("models:"))
    text = text.replace(old, models)
    source.write_text(f"{text}\n# %%\n{claim}")
    (tmp_path / "my_claims.yaml").write_text(block("yaml", 0).replace('"24"', f'"{source.name[:2]}"'))
    assert saved(source) == source.read_text()

    job = plan.make_job(tmp_path, "my_question", {}, tmp_path / "try.ipynb", project.load_profile(tmp_path, "smoke"))
    build.run_jobs([job])
    made = nbformat.read(job.output, as_version=4)
    said = [output.get("text", "") for cell in made.cells for output in cell.get("outputs", ())]
    assert any(line.strip() in ("reproduced", "not reproduced") for line in said), said
    assert "image/svg+xml" in nbformat.writes(made) and "llama-s" in nbformat.writes(made)
