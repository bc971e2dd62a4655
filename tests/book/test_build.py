"""The runner and the builder, on a toy book; the real book's configuration; the real book in the smoke profile."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from phantomlib.book import build, jobs
from phantomlib.book.parameters import parse_value
from phantomlib.book.worker import Worker, execute, run_notebook
from phantomlib.errors import BookError, ContextError, ParameterError

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3),
        ("08", 8),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("-2.", -2.0),
        ("true", True),
        ("on", "on"),
        ("2026-01-01", "2026-01-01"),
        ("1:30", "1:30"),
        ("zoo:gpt2-s", "zoo:gpt2-s"),
        ('["a", 1e-3]', ["a", 1e-3]),
        ("", None),
    ],
)
def test_values_typed_by_a_user(text, value):
    found = parse_value(text)
    assert found == value and type(found) is type(value)


def test_a_parameter_papermill_overlooks_is_an_error(toy_book):
    path = toy_book / "notebooks/01_toy.py"
    path.write_text(path.read_text().replace("# how many", "# how many, steps = budget"))
    with pytest.raises(BookError, match="'steps'"):
        run_notebook("01", {}, toy_book / "out.ipynb", root=toy_book)


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_every_notebook_declares_the_common_parameters(path):
    from phantomlib.book.parameters import declared

    known = declared(jobs.read_notebook(path))
    wanted = {"models": "list[str]", "contexts": "str", "device": "str", "dtype": "str", "store": "str", "seed": "int"}
    assert wanted.items() <= {name: p.type for name, p in known.items()}.items()
    assert all(p.help for p in known.values()), "every parameter needs its comment"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks/profiles").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_profile_fits_the_notebooks(path):
    assert build.make_plan(ROOT, build.load_profile(ROOT, path.stem))


# ------------------------------------------------------------------------------------------- one notebook


def test_a_run_gives_the_same_file_twice(toy_book):
    first = run_notebook("01", {"steps": 4}, toy_book / "a/01.ipynb", root=toy_book).read_bytes()
    reports = []
    second = run_notebook(
        "01", {"steps": 4}, toy_book / "b/01.ipynb", root=toy_book, on_progress=reports.append
    ).read_bytes()
    assert first == second
    content = json.loads(first)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    tags = [cell["metadata"].get("tags", []) for cell in content["cells"]]
    assert ["hide-input", "injected-parameters"] in tags and ["hide-input", "parameters"] in tags
    assert reports and {"cell", "of", "heading"} <= set(reports[-1])


def test_a_failed_notebook_is_kept_and_named(toy_book):
    with pytest.raises(BookError, match="ZeroDivisionError: division by zero") as caught:
        run_notebook("01", {"label": "bug"}, toy_book / "01_toy.ipynb", root=toy_book)
    assert str(toy_book / "01_toy.failed.ipynb") in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert not (toy_book / "01_toy.ipynb").exists() and not (toy_book / "01_toy.partial.ipynb").exists()
    assert '"text/plain"' in (toy_book / "01_toy.failed.ipynb").read_text()  # what it did before it failed
    run_notebook("01", {}, toy_book / "01_toy.ipynb", root=toy_book)
    assert not (toy_book / "01_toy.failed.ipynb").exists()


def test_an_error_on_purpose_keeps_its_kind_and_leaves_nothing(toy_book):
    with pytest.raises(ContextError, match=r"^The word is two tokens. Choose another.$"):
        run_notebook("01", {"label": "purposely"}, toy_book / "01_toy.ipynb", root=toy_book)
    assert not list(toy_book.glob("*.ipynb"))


def test_a_dead_kernel_is_reported(toy_book):
    with pytest.raises(BookError, match="kernel died"):
        run_notebook("01", {"label": "kill"}, toy_book / "01_toy.ipynb", root=toy_book)
    assert (toy_book / "01_toy.failed.ipynb").exists()


def test_forked_kernels_do_what_fresh_ones_do(toy_book, tmp_path):
    values = build.load_profile(ROOT, "smoke").values("03") | {"store": str(tmp_path / "runs")}
    source = jobs.find_notebook(ROOT, "03")
    plain, *forked = [
        jobs.Job(source, tmp_path / f"{place}/03.ipynb", ROOT, values) for place in ("plain", "first", "second")
    ]
    execute(plain)
    killing = jobs.Job(toy_book / "notebooks/01_toy.py", toy_book / "01_toy.ipynb", toy_book, {"label": "kill"})
    with contextlib.closing(Worker(ROOT, preload=True)) as worker:
        for job in forked:
            worker.execute(job)
        with pytest.raises(BookError, match="kernel died"):
            worker.execute(killing)
    shown = [[cell.get("outputs") for cell in json.loads(job.output.read_text())["cells"]] for job in (plain, *forked)]
    assert "image/svg+xml" in json.dumps(shown[0]) and "download=" in json.dumps(shown[0])
    assert shown[0] == shown[1] == shown[2]


def test_an_output_that_cannot_be_written(toy_book):
    with pytest.raises(BookError, match="is a folder"):
        run_notebook("01", {}, toy_book, root=toy_book)
    (toy_book / "file").touch()
    with pytest.raises(BookError, match="Cannot write"):
        run_notebook("01", {}, toy_book / "file/01.ipynb", root=toy_book)


# ------------------------------------------------------------------------------------------- a book


@pytest.fixture(autouse=True)
def unchanging_package(monkeypatch):
    """Someone may edit the package while the tests run; that is not what they are about."""
    monkeypatch.setattr(build, "hash_package", lambda: "package")


def test_a_book_is_built_and_reused(toy_book, capsys):
    index = build.build_book(root=toy_book)
    assert index == toy_book / "_build/html/index.html" and index.is_file()
    generated = toy_book / "book/generated"
    order = [json.loads((generated / f"{name}.ipynb").read_text()) for name in ("01_toy", "02_after")]
    assert "5 [0.001] x" in json.dumps(order[0])
    times = json.loads((generated / "run_times.json").read_text())
    assert set(times) == {"01_toy", "02_after"} and times["01_toy"]["zoo"] > 0
    stamps = [os.stat(generated / f"{name}.ipynb").st_mtime_ns for name in ("01_toy", "02_after")]
    # a page of an earlier build must not survive
    (toy_book / "_build/html/stale.html").touch()
    capsys.readouterr()
    build.build_book(root=toy_book)
    assert "up to date" in capsys.readouterr().out
    assert stamps == [os.stat(generated / f"{name}.ipynb").st_mtime_ns for name in ("01_toy", "02_after")]
    assert not (toy_book / "_build/html/stale.html").exists()


def test_what_makes_a_notebook_run_again(toy_book):
    def keys():
        return {job.name: job.key for job in build.make_plan(toy_book, build.load_profile(toy_book, "zoo"))}

    before = keys()
    assert keys() == before
    source = toy_book / "notebooks/01_toy.py"
    source.write_text(source.read_text() + "\n# %%\n1\n")
    changed = keys()
    # the second comes after all others, so it is made again with them
    assert changed["01_toy"] != before["01_toy"] and changed["02_after"] != before["02_after"]
    (toy_book / "notebooks/profiles/zoo.yaml").write_text('"01": {steps: 6}')
    assert keys()["01_toy"] != changed["01_toy"]


def test_contexts_files_count_by_content(toy_book):
    source = toy_book / "notebooks/01_toy.py"
    (toy_book / "mine.yaml").write_text("one")
    first = build.hash_inputs(source, {"contexts": "mine.yaml"}, "zoo", "", toy_book)
    (toy_book / "mine.yaml").write_text("two")
    assert build.hash_inputs(source, {"contexts": "mine.yaml"}, "zoo", "", toy_book) != first


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


def test_warnings_are_errors(toy_book):
    (toy_book / "_toc.yml").write_text("format: jb-book\nroot: book/intro\n")
    (toy_book / "book/intro.md").write_text("# Toy\n\n[](absent.md)\n")
    with pytest.raises(BookError, match="absent.md"):
        build.build_pages(toy_book)


def test_two_builders_do_not_meet(toy_book):
    from filelock import FileLock

    (toy_book / "book/generated").mkdir()
    with FileLock(toy_book / "book/generated/.lock"), pytest.raises(BookError, match="Another 'phantom book'"):
        build.build_book(root=toy_book)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interruption_leaves_no_process_and_what_is_finished(toy_book, how):
    (toy_book / "notebooks/profiles/slow.yaml").write_text('"01": {label: slow}')
    header = (toy_book / "notebooks/02_after.py").read_text().replace("after: all", "after: []")
    for name in ("02_after", "03_after"):  # more notebooks than jobs: the kernels are forked
        (toy_book / f"notebooks/{name}.py").write_text(header)
    with open(toy_book / "_toc.yml", "a") as contents:
        contents.write("  - file: book/generated/03_after\n")
    command = [sys.executable, "-m", "phantomlib.cli", "book", "--profile", "slow", "--jobs", "2"]
    running = subprocess.Popen(
        command,
        cwd=toy_book,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )
    for line in running.stderr:
        if line.startswith("03_after: done"):
            break
    running.send_signal(how)
    said = running.stderr.read()
    running.wait(timeout=60)
    assert "Traceback" not in said
    if how == signal.SIGINT:
        assert running.returncode == 130 and "2 of 3 notebooks are done" in said
    # the kernels run in the root of this book, so whoever still does is a survivor
    for _ in range(300):
        survivors = [p for p in Path("/proc").glob("[0-9]*/cwd") if _points_to(p, toy_book)]
        if not survivors:
            break
        time.sleep(0.2)
    assert not survivors
    assert (toy_book / "book/generated/02_after.ipynb").exists()
    assert not (toy_book / "book/generated/01_toy.ipynb").exists()


def _points_to(link: Path, folder: Path) -> bool:
    try:
        return os.readlink(link) == str(folder)
    except OSError:
        return False


def test_durations():
    assert [build.duration(s) for s in (7.6, 125, 4200)] == ["8 s", "2 min 05 s", "1 h 10 min"]


# ------------------------------------------------------------------------------------------- the real book


def test_every_page_of_the_contents_exists():
    generated = build.pages_to_generate(ROOT)
    assert set(generated) <= {path.stem for path in jobs.notebooks(ROOT).values()}
    listed = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
    for page in listed:
        assert (ROOT / f"{page}.md").is_file() or Path(page).name in generated, page
    assert {path.stem for path in (ROOT / "book").glob("*.md")} <= {Path(page).stem for page in listed}


def test_the_reference_covers_every_module():
    covered = set(re.findall(r"automodule:: phantomlib\.([\w.]+)", (ROOT / "book/api.md").read_text()))
    files = [path.relative_to(ROOT / "phantomlib") for path in (ROOT / "phantomlib").rglob("[a-z]*.py")]
    modules = {".".join(path.with_suffix("").parts) for path in files}
    assert modules - covered <= {"cli", "doctor", "zoo.lexicon"}


def test_the_configuration_asks_for_nothing_outside():
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    assert config["execute"]["execute_notebooks"] == "off"
    assert "sphinx_thebe" not in config["sphinx"]["config"]["extensions"]
    assert not re.search(r"https?://", (ROOT / "_config.yml").read_text())


def test_jobs_must_be_positive():
    with pytest.raises(ParameterError, match="jobs is -1"):
        build.build_book(jobs=-1, root=ROOT)


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
    for name in ("book", "notebooks", "tests"):
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
    assert "mathjax/tex-chtml.js" in definitions and (site / "_static/mathjax/tex-chtml.js").is_file()
    for name in build.pages_to_generate(copy):
        page = (site / f"book/generated/{name}.html").read_text()
        assert "How this was made" in page and "phantom run" in page, name
        assert not re.search(r"<img(?![^>]*\balt=\"[^\"]+\")[^>]*>", page), f"{name}: an image without alt text"
        assert str(tmp_path) not in page, f"{name} shows a folder of this machine"
