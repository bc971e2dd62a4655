"""The loop of an edit, on notebooks of the repository and on toys; the tutorial as a newcomer follows it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import yaml

from phantombook import edit, plan, project, worker
from phantomlib.errors import BookError, ParameterError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_notebook_comes_back_as_it_is(path):
    opened = edit._as_ipynb(ROOT, path, "smoke")
    assert "Profile smoke, for this session only" in opened
    assert (
        "jupytext" not in nbformat.reads(opened, as_version=4).metadata
    )  # with it, JupyterLab refuses to open the file
    assert edit._as_py(path, opened) == path.read_text(encoding="utf-8")


SAVES = """
import json, sys
path = next(a for a in sys.argv if a.endswith(".ipynb"))
content = json.load(open(path))
for cell in content["cells"]:
    text = "".join(cell["source"])
    if "print(steps" in text:
        cell["source"] = text.replace("print(", "print('edited', ")
        cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "edited"}]
        cell["execution_count"] = 3
content["metadata"]["language_info"] = {"name": "python", "version": "3.11"}
json.dump(content, open(path, "w"))
"""


def test_what_is_saved_is_written_back(toy_book):
    source = toy_book / "notebooks/01_toy.py"
    before = source.read_text()
    (toy_book / "notebooks/profiles/smoke.yaml").write_text('"01": {steps: 1}')
    assert edit.open_in_lab(toy_book, "01", command=[sys.executable, "-c", SAVES]) == source
    assert source.read_text() == before.replace("print(steps", "print('edited', steps")
    assert not list(toy_book.glob("*.ipynb"))


def test_a_rename_and_a_half_written_notebook_are_waited_for(toy_book):
    source = toy_book / "notebooks/01_toy.py"
    before = source.read_text()
    (toy_book / "notebooks/profiles/smoke.yaml").write_text("common: {}")
    trouble = (
        "import os, sys, time\n"
        "path = next(a for a in sys.argv if a.endswith('.ipynb'))\n"
        "whole = open(path).read()\n"
        "os.rename(path, path + '.aside'); time.sleep(1.2); os.rename(path + '.aside', path)\n"
        "open(path, 'w').write(whole[:-20]); time.sleep(1.2); open(path, 'w').write(whole)\n"
    )
    edit.open_in_lab(toy_book, "01", command=[sys.executable, "-c", trouble + SAVES])
    assert source.read_text() == before.replace("print(steps", "print('edited', steps")


@pytest.mark.parametrize("last", ["os.rename(path, path + '.ipynb')", "open(path, 'w').write('{')"])
def test_what_was_renamed_or_damaged_in_the_end_is_kept(toy_book, last):
    source = toy_book / "notebooks/01_toy.py"
    before = source.read_text()
    (toy_book / "notebooks/profiles/smoke.yaml").write_text("common: {}")
    script = f"import os, sys; path = next(a for a in sys.argv if a.endswith('.ipynb')); {last}"
    with pytest.raises(BookError, match="renamed or damaged.*jupytext --to py:percent"):
        edit.open_in_lab(toy_book, "01", command=[sys.executable, "-c", script])
    assert source.read_text() == before and len(list(toy_book.glob("*.ipynb"))) == 1


def test_jupyterlab_does_not_outlive_a_failure(toy_book, monkeypatch):
    def full(path, text):
        if path.suffix == ".py":
            raise OSError(28, "No space left on device")
        write(path, text)

    def popen(*arguments, **options):
        started.append(subprocess.Popen(*arguments, **options))
        return started[0]

    write, started = edit.write_text, []
    monkeypatch.setattr(edit, "write_text", full)
    monkeypatch.setattr(edit, "subprocess", SimpleNamespace(Popen=popen))
    (toy_book / "notebooks/profiles/smoke.yaml").write_text("common: {}")
    with pytest.raises(OSError, match="No space left"):
        edit.open_in_lab(toy_book, "01", command=[sys.executable, "-c", SAVES + "import time; time.sleep(600)"])
    assert started[0].poll() is not None


def test_a_jupyterlab_that_does_not_start_is_no_success(toy_book):
    (toy_book / "notebooks/profiles/smoke.yaml").write_text("common: {}")
    source = toy_book / "notebooks/01_toy.py"
    before = source.read_text()
    with pytest.raises(BookError, match="code 3.*Nothing was changed"):
        edit.open_in_lab(toy_book, "01", command=[sys.executable, "-c", "raise SystemExit(3)"])
    assert source.read_text() == before and not list(toy_book.glob("*.ipynb"))


def test_nothing_is_lost_when_two_edit(toy_book):
    (toy_book / "notebooks/profiles/smoke.yaml").write_text("common: {}")
    source = toy_book / "notebooks/01_toy.py"
    other = f"open({str(source)!r}, 'a').write('# by another')\n"
    with pytest.raises(BookError, match="changed by another program"):
        edit.open_in_lab(toy_book, "01", command=[sys.executable, "-c", other + SAVES])
    assert source.read_text().endswith("# by another")
    assert "edited" in (toy_book / "01_toy.edit.ipynb").read_text()
    with pytest.raises(BookError, match="left from an earlier edit"):
        edit.open_in_lab(toy_book, "01", command=[sys.executable, "-c", ""])


def test_without_jupyterlab(toy_book, monkeypatch):
    monkeypatch.setattr(edit.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BookError, match=r"pip install -e '\.\[edit\]'"):
        edit.open_in_lab(toy_book, "01", profile="zoo")
    assert not list(toy_book.glob("*.ipynb"))


def test_check_reports_what_would_go_wrong(toy_book):
    source = toy_book / "notebooks/01_toy.py"
    (toy_book / "notebooks/profiles/smoke.yaml").write_text('"01": {steps: 1}')
    edit.check(toy_book, "01")
    (toy_book / "notebooks/profiles/smoke.yaml").write_text('"01": {label: bug}')
    with pytest.raises(BookError, match="ZeroDivisionError"):
        edit.check(toy_book, "01")
    (toy_book / "notebooks/profiles/smoke.yaml").write_text("common: {}")
    source.write_text(source.read_text() + "\n\n\n# %%   \n1")
    with pytest.raises(BookError, match="does not come back"):
        edit.check(toy_book, "01")


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
    """New chapter, changed plot, another model, a claim: each as the page says it, and the notebook runs after each."""
    for name in ("_toc.yml", "notebooks", "tests/two_contexts.yaml"):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    source = edit.new_chapter(tmp_path, "my_question")
    assert source.stem in project.pages_to_generate(tmp_path)
    contents = yaml.safe_load((tmp_path / "_toc.yml").read_text())
    parts = {part["caption"]: [page["file"] for page in part["chapters"]] for part in contents["parts"]}
    assert parts["Appendix"][1] == f"book/generated/{source.stem}"
    assert plan.make_plan(tmp_path, project.load_profile(tmp_path, "smoke"))

    text = source.read_text()
    before, after, models, claim = (block("python", number) for number in range(4))
    assert text.count(before) == 1
    text = text.replace(before, after)
    old = next(line for line in text.splitlines(keepends=True) if line.startswith("models:"))
    text = text.replace(old, models)
    source.write_text(f"{text}\n# %%\n{claim}")
    (tmp_path / "my_claims.yaml").write_text(block("yaml", 0).replace('"24"', f'"{source.name[:2]}"'))
    edit.check(tmp_path, "my_question")

    job = plan.make_job(tmp_path, "my_question", {}, tmp_path / "try.ipynb", project.load_profile(tmp_path, "smoke"))
    worker.execute(job)
    made = nbformat.read(job.output, as_version=4)
    said = [output.get("text", "") for cell in made.cells for output in cell.get("outputs", ())]
    assert any(line.strip() in ("reproduced", "not reproduced") for line in said), said
    assert "image/svg+xml" in nbformat.writes(made) and "llama-s" in nbformat.writes(made)
    assert {path.stem for path in project.notebooks(tmp_path).values()} >= {source.stem, "02_silent_failure"}
