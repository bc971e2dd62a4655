"""The builder, on a toy book; the real book's configuration; the real book in the smoke profile."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from phantombook import build
from phantombook.cli import app
from phantombook.project import notebooks, pages_to_generate
from phantomlib.errors import BookError, ContextError, ParameterError

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------- a book


def test_a_book_is_built_and_reused(toy_book, capsys):
    index = build.build_book(root=toy_book)
    said = capsys.readouterr().out
    pages = len(list((toy_book / "_build/html").rglob("*.html")))
    assert f"Written: 2 of 2 notebooks to '{toy_book / 'book/generated'}', {pages} pages" in said
    assert index == toy_book / "_build/html/index.html" and index.is_file()
    generated = toy_book / "book/generated"
    made = [generated / f"{name}.ipynb" for name in ("01_toy", "02_after")]
    assert "5 [0.001] x" in made[0].read_text()
    times = json.loads((generated / "run_times.json").read_text())
    assert set(times) == {"01_toy", "02_after"} and times["01_toy"]["zoo"] > 0
    assert "| `01_toy` | `zoo` |" in (generated / "run_times.md").read_text()
    stamps = [os.stat(path).st_mtime_ns for path in made]
    # a page of an earlier build must not survive
    (toy_book / "_build/html/stale.html").touch()
    capsys.readouterr()
    build.build_book(root=toy_book)
    said = capsys.readouterr().out
    assert "up to date" in said and "Written: 0 of 2 notebooks" in said
    assert stamps == [os.stat(path).st_mtime_ns for path in made]
    assert not (toy_book / "_build/html/stale.html").exists()


def test_missing_failed_and_mixed_notebooks_are_not_built(toy_book, monkeypatch):
    monkeypatch.setattr(build, "build_pages", lambda root: root)
    with pytest.raises(BookError, match="02_after has not been run"):
        build.build_book(root=toy_book, only="01")
    assert (toy_book / "book/generated/01_toy.ipynb").exists()
    profiles = toy_book / "notebooks/profiles"
    (profiles / "other.yaml").write_text('"01": {label: bug}')
    with pytest.raises(BookError, match="ZeroDivisionError"):
        build.build_book("other", root=toy_book)
    with pytest.raises(BookError, match="01_toy failed"):
        build.build_book("other", only="02", root=toy_book)
    (profiles / "other.yaml").write_text("{}")
    build.build_book(root=toy_book)
    with pytest.raises(BookError, match="run with profile 'zoo'"):
        build.build_book("other", only="01", root=toy_book)


WITH_MODELS = """\
# %% tags=["parameters"]
models: list[str] = ["zoo:gpt2-s"]  # models
contexts: str = "default"  # contexts
device: str = "cpu"  # device
dtype: str = "float32"  # precision

# %%
if contexts == "unusable":
    from phantomlib.errors import ContextError
    raise ContextError("None of the contexts fits.")
1
"""


def with_models(root, count):
    """A toy book whose notebooks have the common parameters."""
    contents = "format: jb-book\nroot: book/intro\nchapters:\n"
    for number in range(1, count + 1):
        name = f"{number:02d}_toy"
        (root / f"notebooks/{name}.py").write_text(f"# %% [markdown]\n# # Toy {number}\n\n{WITH_MODELS}")
        contents += f"  - file: book/generated/{name}\n"
    (root / "_toc.yml").write_text(contents)
    return root


def test_what_every_notebook_would_refuse_is_refused_before_they_start(toy_book, monkeypatch):
    root = with_models(toy_book, 4)
    (root / "notebooks/profiles/bad.yaml").write_text("common: {contexts: 'fitting:nowhere.yaml'}")
    monkeypatch.setattr(build, "run_jobs", None)
    before = sorted(root.rglob("*"))
    with pytest.raises(ContextError, match="nowhere.yaml"):
        build.build_book("bad", root=root)
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize(
    "models, held_out, kind, said",
    [
        ("my/model", "", ParameterError, "held_out"),
        ("my/model", "my/other", BookError, "has not been run"),
        ("zoo:gpt2-s", "", BookError, "has not been run"),
    ],
)
def test_a_profile_of_ones_own_models_must_name_the_held_out_one(toy_book, monkeypatch, models, held_out, kind, said):
    root = with_models(toy_book, 1)
    notebook = root / "notebooks/01_toy.py"
    notebook.write_text(notebook.read_text().replace("\n\n# %%\nif", '\nheld_out: str = ""  # predicted\n\n# %%\nif'))
    (root / "notebooks/profiles/mine.yaml").write_text(f"common: {{models: [{models}], held_out: '{held_out}'}}")
    monkeypatch.setattr(build, "run_jobs", lambda *_: None)
    with pytest.raises(kind, match=said):
        build.build_book("mine", root=root)


def test_what_two_notebooks_refuse_the_others_are_spared(toy_book, monkeypatch, capsys):
    monkeypatch.setattr(build, "check_todo", lambda todo, root: None)
    root = with_models(toy_book, 5)
    (root / "notebooks/profiles/bad.yaml").write_text("common: {contexts: unusable}")
    with pytest.raises(ContextError, match="^None of the contexts fits.$"):
        build.build_book("bad", jobs=1, root=root)
    assert capsys.readouterr().err.count("failed after") == 2


def test_notebooks_that_wait_for_each_other(toy_book):
    for name, other in (("01_toy", "02"), ("02_after", "01")):
        path = toy_book / f"notebooks/{name}.py"
        text = path.read_text().split("# ---\n\n")[-1]
        path.write_text(f'# ---\n# jupyter:\n#   phantom:\n#     after: ["{other}"]\n# ---\n\n{text}')
    with pytest.raises(BookError, match="wait for each other"):
        build.build_book(root=toy_book)


def test_a_checkout_that_cannot_be_written(toy_book, monkeypatch):
    (toy_book / "book/generated").touch()  # a file where the folder is wanted: even root cannot write below it
    monkeypatch.chdir(toy_book)
    result = CliRunner().invoke(app, ["book"])
    assert result.exit_code == 1 and "book/generated" in result.stderr and "Traceback" not in result.output
    assert result.stderr.startswith("error: ") and isinstance(result.exception, SystemExit)


def test_warnings_are_errors_and_brackets_in_the_name_of_a_folder_are_not(tmp_path):
    root = tmp_path / "a [1]*"
    (root / "book/generated").mkdir(parents=True)
    (root / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    left_out = yaml.safe_load((ROOT / "_config.yml").read_text())["exclude_patterns"]
    config = {"title": "Toy", "only_build_toc_files": True, "exclude_patterns": left_out}
    (root / "_config.yml").write_text(yaml.safe_dump(config))
    (root / "book/intro.md").write_text("# Toy\n\n[](absent.md)\n\n:::{include} generated/run_times.md\n:::\n")
    (root / "book/generated/run_times.md").write_text("| a |\n|---|\n")
    with pytest.raises(BookError) as caught:
        build.build_pages(root)
    (warning,) = [line for line in str(caught.value).splitlines() if "WARNING" in line]
    assert "absent.md" in warning


def test_two_builders_do_not_meet(toy_book):
    from filelock import FileLock

    (toy_book / "book/generated").mkdir()
    with FileLock(toy_book / "book/generated/.lock"), pytest.raises(BookError, match="Another 'phantom book'"):
        build.build_book(root=toy_book)


# ------------------------------------------------------------------------------------------- the real book


def test_every_page_of_the_contents_exists():
    generated = pages_to_generate(ROOT)
    assert set(generated) == {path.stem for path in notebooks(ROOT).values()}
    listed = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    for page in listed:
        assert (ROOT / f"{page}.md").is_file() or Path(page).name in generated, page
    assert {path.stem for path in (ROOT / "book").glob("*.md")} <= {Path(page).stem for page in listed}


def test_the_reference_has_a_page_for_every_module(tmp_path):
    """Its pages are written by autosummary, which walks through the packages; the oracle is the list of files."""
    code = "import sys; from sphinx.ext.autosummary.generate import main; main(sys.argv[1:])"
    words = ["-o", str(tmp_path), "-t", "book/_templates", "book/api.md"]
    subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, check=True, capture_output=True)
    pages = {path.stem for path in tmp_path.glob("*.rst")}
    files = [path for root in ("phantomlib", "phantombook", "zoo") for path in (ROOT / root).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert pages == modules - {"phantombook.cli"}  # which `phantom --help` describes


def test_the_configuration_asks_for_nothing_outside():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["execute"]["execute_notebooks"] == "off"
    assert "sphinx_thebe" not in config["sphinx"]["config"]["extensions"]
    assert not re.search(r"https?://", (ROOT / "_config.yml").read_text())


LOADED = re.compile(  # what a browser fetches by itself: not <a href>, which a reader follows
    r"""<(?:script|img|iframe|source|audio|video|embed|track)\b[^>]*?\b(?:src|srcset|data-src)\s*=\s*["']?\s*(?:https?:)?//
      | <link\b[^>]*?\bhref\s*=\s*["']?\s*(?:https?:)?//
      | url\(\s*["']?\s*(?:https?:)?//
      | @import\s+["'](?:https?:)?//
      | \b(?:fetch|importScripts|import)\(\s*["'](?:https?:)?//""",
    re.VERBOSE | re.IGNORECASE,
)


@pytest.mark.parametrize(
    "text, found",
    [
        ('<script src="https://cdn.example/x.js">', True),
        ("<link rel='stylesheet' href='//cdn.example/x.css'>", True),
        ("@font-face { src: url(https://cdn.example/x.woff2) }", True),
        ('<a href="https://example.org">', False),
        ('<img src="../_images/x.svg">', False),
    ],
)
def test_the_scan_finds_what_it_should(text, found):
    assert bool(LOADED.search(text)) is found


@pytest.mark.slow
def test_the_smoke_book(tmp_path):
    """Every notebook through papermill, the pages with warnings as errors, and no request to the outside."""
    copy = tmp_path / "book-root"
    copy.mkdir()
    for name in ("_config.yml", "_toc.yml", "requirements.txt"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("book", "notebooks", "tests", "benchmarks", "zoo", "results"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("generated", "__pycache__"))
    index = build.build_book("smoke", root=copy)
    site = index.parent
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 10
    outside = [
        f"{path.relative_to(site)}: {match.group(0)}"
        for path in [*pages, *site.rglob("*.css")]
        for match in LOADED.finditer(path.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not outside
    definitions = (site / "book/definitions.html").read_text()
    assert "mathjax/startup.js" in definitions and (site / "_static/mathjax/output/chtml.js").is_file()
    for name in pages_to_generate(copy):
        page = (site / f"book/generated/{name}.html").read_text()
        assert "How this was made" in page and "phantom run" in page, name
        assert not re.search(r"<img(?![^>]*\balt=\"[^\"]+\")[^>]*>", page), f"{name}: an image without alt text"
        assert str(tmp_path) not in page, f"{name} shows a folder of this machine"
