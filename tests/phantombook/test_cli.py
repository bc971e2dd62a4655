"""The command line: what it refuses and how it says so."""

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from phantombook.cli import app
from phantomlib.errors import ParameterError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def book(toy_book, monkeypatch):
    """A toy book, which is the working folder."""
    monkeypatch.chdir(toy_book)
    return toy_book


def phantom(*arguments):
    return CliRunner().invoke(app, list(arguments))


def refused(result, *words):
    """Exit code 1, one message that holds ``words``, no traceback."""
    assert result.exit_code == 1
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.output
    for word in words:
        assert word in result.stderr
    return result


def test_help_and_the_public_face_answer_without_heavy_imports():
    code = """
import sys, phantombook.cli, phantomlib
assert set(phantomlib.__all__) <= set(dir(phantomlib))
print(sorted({"torch", "numpy", "transformers", "papermill", "xarray"} & set(sys.modules)))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


@pytest.mark.parametrize(  # more of them in tests/test_bad_input.py
    "arguments, words",
    [
        (["run", "01", "-p", "rates="], ["rates is ''", "list[float]"]),
        (["run", "7"], ["'7'", "01_toy"]),
        (["run", "01", "-o", "/"], ["'/' cannot be a notebook"]),
        (["run", "01", "-o", "notebooks/01_toy.py"], ["01_toy.py' cannot be a notebook", ".ipynb"]),
        (["book", "--only", "09"], ["'09'", "01_toy"]),
        (["book", "--held-out", "zoo:llama-s"], ["go with --models"]),
    ],
)
def test_refusals(book, arguments, words):
    before = sorted(book.rglob("*"))
    refused(phantom(*arguments), *words)
    assert sorted(book.rglob("*")) == before


def test_options_of_several_words(book, monkeypatch):
    taken = []
    monkeypatch.setattr("phantombook.own_book.build_own_book", lambda **given: taken.append(given["models"]))
    monkeypatch.setattr("phantombook.build.run_jobs", lambda jobs: taken.append(jobs[0].parameters))
    phantom("book", "--models", "a", "b", "--jobs", "2", "--models", "c")
    phantom("run", "01", "-p", "label", "-x", "--parameter", "steps=7", "-p", "rates", "[-1]")
    assert taken == [["a", "b", "c"], {"label": "-x", "steps": 7, "rates": [-1.0]}]


def test_a_contexts_file_that_is_missing_is_refused_before_a_kernel_starts(book, monkeypatch):
    source = book / "notebooks/01_toy.py"
    common = 'models: list[str] = ["zoo:gpt2-s"]  # models\ncontexts: str = "default"  # sentences\n'
    source.write_text(source.read_text().replace("label: str", f"{common}label: str"))
    monkeypatch.setattr("phantombook.build.run_jobs", None)
    arguments = ["run", "01", "-p", "contexts", "fitting:nowhere.yaml"]
    refused(phantom(*arguments), "nowhere.yaml")


@pytest.mark.parametrize("jobs", ["abc", "0", "-1", "1.5", "²", "", "9" * 5000])
def test_a_number_of_jobs_that_is_none(jobs, monkeypatch):
    monkeypatch.setenv("PHANTOM_JOBS", jobs)
    assert len(refused(phantom("claims"), "PHANTOM_JOBS", repr(jobs)[:20]).stderr) < 500


def test_claims_before_anything_was_measured(book):
    told = phantom("claims")
    assert told.exit_code == 0 and "run 'phantom book --profile zoo' first" in told.stderr


def test_outside_a_book(tmp_path, monkeypatch):
    # an editable installation knows its own checkout, so only the case without one can fail
    monkeypatch.setattr("phantomlib.__file__", str(tmp_path / "site-packages" / "phantomlib" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    refused(phantom("run", "01"), "_toc.yml", "clone")
    told = phantom("doctor")
    assert told.exit_code == 0 and "BAD" not in told.stdout and "none here" in told.stdout
    assert told.stdout.splitlines()[-1] == "Ready: run 'phantom diagnose', or 'phantom book' in a clone."


def test_debug_shows_where_an_error_came_from(book):
    assert isinstance(phantom("--debug", "run", "7").exception, ParameterError)


NOT_HERE = [
    ("models", '["my/modl.gguf"]', "modl.gguf"),
    ("models", '["zoo:gpt-s"]', "gpt2-s"),
    ("device", "hpu", "hpu"),
]


@pytest.mark.parametrize("name, value, words", NOT_HERE)
def test_what_a_notebook_would_refuse_starts_no_kernel(name, value, words, monkeypatch):
    monkeypatch.setattr("phantombook.build.run_jobs", lambda jobs: pytest.fail("a kernel would start"))
    refused(phantom("run", "02", "-p", name, value), words)


def test_run_writes_where_it_is_told(book):
    result = phantom("run", "1", "-p", "label", "1e5", "-p", "rates", "[1, 2e-3]", "-o", "out/mine.ipynb")
    assert result.exit_code == 0, result.output
    [written] = (book / "out").iterdir()
    assert written.name == "mine.ipynb"
    assert "3 [1.0, 0.002] 1e5" in written.read_text()  # text stays text, whole numbers become floats


def test_paths_are_those_of_the_user(tmp_path, monkeypatch):
    from phantombook.parameters import typed_paths

    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "default").touch()
    models = ["model", "zoo:gpt2-s", "owner/name", "~nobody/x"]
    given = {"models": models, "contexts": "mine.yaml", "store": "new", "steps": 3}
    found = typed_paths(given)
    assert found["models"] == [str(tmp_path / "model"), *models[1:]]
    assert found["contexts"] == str(tmp_path / "mine.yaml") and found["store"] == str(tmp_path / "new")
    assert typed_paths({"contexts": "fitting:mine.yaml"})["contexts"] == f"fitting:{tmp_path / 'mine.yaml'}"
    assert typed_paths({"contexts": "default"}) == {"contexts": "default"}
    below = typed_paths(given, tmp_path / "root")  # a page names no machine's folders
    assert below["models"] == ["../model", *models[1:]]
    assert (below["contexts"], below["store"], below["steps"]) == ("../mine.yaml", "../new", 3)
    odd = {"models": {"a": "b"}, "contexts": ["mine.yaml", ["model"]], "held_out": ""}  # of the wrong type: told later
    assert typed_paths(odd, tmp_path) == odd


def test_doctor_names_what_is_wrong(book, monkeypatch):
    from phantomlib.models import zoo_models

    monkeypatch.setattr(zoo_models, "verify", lambda: [])
    assert phantom("doctor").exit_code == 0
    monkeypatch.setattr(zoo_models, "verify", lambda: ["gpt2-s/model.safetensors is missing; run `phantom zoo train`."])
    (book / "requirements.txt").write_text("no-such-package==1.0\n")
    result = phantom("doctor")
    assert result.exit_code == 1
    assert "no-such-package" in result.stdout and "model.safetensors is missing" in result.stdout
    assert "Packages, Zoo" in result.stderr
    refused(phantom("zoo", "verify"), "model.safetensors is missing")


def test_zoo_weights_that_cannot_be_replaced_are_told_beforehand(tmp_path, monkeypatch):
    from phantomlib.models import zoo_models
    from zoo import training

    (tmp_path / "file").touch()
    monkeypatch.setattr(zoo_models, "WEIGHTS", tmp_path / "file" / "weights")
    monkeypatch.setattr(training, "train", None)
    refused(phantom("zoo", "train", "--model", "gpt2-s"), "weights")


def test_what_the_system_refuses_is_one_message(monkeypatch):
    from phantombook import doctor

    def full():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/somewhere")

    monkeypatch.setattr(doctor, "findings", full)
    refused(phantom("doctor"), "No space left on device '/somewhere'")


# ------------------------------------------------------------------------------------------- what the texts promise


def commands(path: Path) -> list[str]:
    """Lines of the bash blocks of a Markdown file, without comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.split("  #")[0].strip() for line in lines if line.strip()]


TEXTS = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]
PROMISED = sorted({line for path in TEXTS for line in commands(path)})


@pytest.mark.parametrize("line", [line for line in PROMISED if line.startswith("make ")])
def test_promised_make_targets_exist(line):
    dry = subprocess.run(["make", "-n", *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


@pytest.mark.parametrize("line", [line for line in PROMISED if line.startswith("phantom ")])
def test_promised_commands_are_understood(line):
    command = typer.main.get_command(app)
    arguments = shlex.split(line)[1:]
    while hasattr(command, "commands"):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(line, arguments)  # raises on an unknown option or a missing argument


def test_the_transcript_is_what_the_command_prints():
    transcript = (ROOT / "book/diagnosis.txt").read_text(encoding="utf-8")
    assert f"```console\n{transcript}```" in (ROOT / "README.md").read_text(encoding="utf-8")
    typed, _, said = transcript.replace("\\\n", " ").partition("\n")
    result = phantom(*shlex.split(typed.removeprefix("$ phantom ")))
    assert result.exit_code == 0, result.output
    number = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")  # their last digits depend on the machine
    assert number.sub("#", result.stdout) == number.sub("#", said)
    assert [float(n) for n in number.findall(result.stdout)] == pytest.approx(
        [float(n) for n in number.findall(said)], rel=0.01, abs=0.001
    )


def test_python_in_the_readme_runs():
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    names = {}
    exec(block, names)
    runs = names["runs"]
    assert runs.sizes["step"] == 21 and runs.sizes["rate"] == 2
    assert float(abs(runs.phi - runs.signal - runs.drag).max()) < 1e-6
    lines = block.strip().splitlines()
    assert len(lines) <= 10 and all("phantomlib" not in line for line in lines[1:])  # the public face suffices


def test_an_unknown_name_of_the_public_face_says_what_there_is():
    import phantomlib

    with pytest.raises(AttributeError, match="critical_rates"):
        phantomlib.__getattr__("critical_rate")
