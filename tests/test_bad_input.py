"""Bad input over the whole command line: exit code not 0, one clear message, soon, no traceback, no file left behind.

What a room refuses by itself is in its tests; here is what comes through the command line, mistakes and hostile values.
"""

import functools
import io
import os
import resource
import subprocess
import sys

import pytest
from refusals import SECONDS, refuse

from phantombook import cli
from phantomlib.models import language_model

LIE = "After the lie, Anna felt a deep sense of"
CONTEXT = "- {id: a, prompt: 'She felt a deep sense of', correct: shame, competitor: guilt}\n"

FILES = {  # what lies in the folder from which the commands are given
    "good.yaml": CONTEXT.encode(),
    "steps-twice.yaml": b"steps: 3\nsteps: 4\n",
    "list.yaml": b"- steps\n",
    "empty/.keep": b"",
    "taken": b"a file where a folder is wanted",
}

zoo = ["diagnose", "-m", "zoo:neox-s"]
shame = [*zoo, "--context", "shame"]
own = [*zoo, "--prompt", LIE, "--correct", "shame", "--competitor", "guilt"]

DIAGNOSE = {
    "no model": (["diagnose", "--context", "shame"], "--model"),
    "folder without a model": (["diagnose", "-m", "empty", "--context", "shame"], "config.json"),
    "a file as a model": (["diagnose", "-m", "taken", "--context", "shame"], "taken"),
    "unknown context": ([*zoo, "--context", "shme"], "nearest: 'shame'"),
    "context of another file": ([*zoo, "--contexts", "good.yaml", "--context", "shame"], "It has a"),
    "no contexts file": ([*shame, "--contexts", "taken"], "non-empty YAML list"),
    "a pipe of contexts": ([*shame, "--contexts", "pipe.yaml"], "No contexts file"),
    "an unknown sign": ([*zoo, "--prompt", "Note: she felt", "--correct", "glad"], "does not know ':'"),
    "an endless prompt": ([*zoo, "--prompt", "Anna felt " * 20_000, "--correct", "glad"], "reads no more than 64"),
    "an endless word": ([*zoo, "--prompt", "x" * 50_000, "--correct", "glad"], "reads no more than 64"),
    "a zero": ([*zoo, "--prompt", "Anna\0felt", "--correct", "glad"], "or NUL"),
    "one word twice": ([*own[:-1], " shame"], "two different words"),
    "a word of blanks": ([*own[:-3], " ", *own[-2:]], "--correct WORD"),
    "the special token": ([*own[:-3], "<|endoftext|>", *own[-2:]], "correct word|already prefers|does not fit"),
    "an endless model": (["diagnose", "-m", "x" * 5000, "--context", "shame"], "A model is named by zoo:NAME"),
    "a model that is a device": (["diagnose", "-m", "/dev/null", "--context", "shame"], "no config.json|cannot be read"),
    "a model of the hub while offline": (["diagnose", "-m", "<b>/x", "--context", "shame"], "no connection to the hub"),
    "nothing to learn": (zoo, "--context ID"),
    "context and prompt": ([*shame, "--prompt", "Hello"], "not both"),
    "prompt without a word": ([*zoo, "--prompt", LIE], "--correct WORD"),
    "blank prompt": ([*zoo, "--prompt", " ", "--correct", "shame"], "--context ID"),
    "unknown competitor": ([*own[:-1], "zyzzÿva"], "competitor word 'zyzzÿva'"),
    "words the wrong way round": (
        [*zoo, "--prompt", LIE, "--correct", "guilt", "--competitor", "shame"], "already prefers"
    ),
    "half a step": ([*shame, "--steps", "2.5"], "valid integer"),
    "absent device": ([*shame, "--device", "cuda:99"], "device 'cuda:99'"),
    "figure as a folder": ([*shame, "--plot", "empty"], "end it with .png"),
    "unknown option": ([*shame, "--rate", "1"], "--rate"),
}  # fmt: skip

OPTIONS = {  # of a diagnosis -> what must be said
    "a rate below zero": (["--learning-rate", "-1"], "positive, finite"),
    "a rate below anything": (["--learning-rate", "1e-400"], "positive, finite"),
    "a rate beyond anything": (["--learning-rate", "1e400"], "positive, finite"),
    "a rate of nan": (["--learning-rate", "-nan"], "positive, finite"),
    "a rate of words": (["--learning-rate", "1e-3.5"], "valid number"),
    "a rate of digits": (["--learning-rate", "9" * 5000], "positive, finite"),
    "no steps": (["--steps", "0"], "steps is 0"),
    "steps without end": (["--steps", "1" + "0" * 30], "less than or equal to 1000000000"),
    "steps of 5,000 digits": (["--steps", "9" * 5000], "integer|at most"),
    "steps that would fill the memory": (["--steps", "1000000000", "--check"], "fewer steps|would take"),
    "steps that would take a year": (["--steps", "20000000", "--check"], "would take|fewer steps"),
    "steps of nan": (["--steps", "nan"], "valid integer"),
    "an endless optimizer": (["--optimizer", "x" * 100_000], "choose one of sgd, adam"),
    "an unknown method": (["--method", "lora "], "choose one of full, lora"),
    "a device that is none": (["--device", "cpu:-1"], "cannot be used here|device"),
    "an endless device": (["--device", "x" * 10_000], "cannot be used here"),
    "a device with a zero": (["--device", "cuda\x00"], "cannot be used here"),
    "half precision": (["--dtype", "float16"], "float32, float64"),
    "an endless precision": (["--dtype", "x" * 100_000], "float32, float64"),
    "a figure without a name": (["--plot", ".png"], "end it with .png"),
    "a figure below a file": (["--plot", "taken/out.png"], "folder that exists"),
    "a figure in no folder": (["--plot", "no/such/out.png"], "folder that exists"),
    "a figure with a zero": (["--plot", "a\x00.png"], "cannot be written|null|folder that exists"),
    "a figure with an endless name": (["--plot", "x" * 5000 + ".png"], "cannot be written|could not be written"),
    "a store that is a file": (["--check", "--store", "taken"], "cannot be written"),
    "a store with a zero": (["--check", "--store", "a\x00"], "cannot be written|null byte"),
    "a store with an endless name": (["--check", "--store", "x" * 5000], "cannot be written"),
    "a store in nothing": (["--check", "--store", "/proc/nothing"], "cannot be written"),
    "a store that is a device": (["--check", "--store", "/dev/null"], "cannot be written"),
}

RUN = {
    "unknown notebook": (["run", "77"], "There is no notebook '77'"),
    "misspelt notebook": (["run", "01_silent_failur"], "nearest: '02_silent_failure'"),
    "unknown parameter": (["run", "02", "-p", "step", "3"], "nearest: 'steps'"),
    "parameter without value": (["run", "02", "-p", "steps"], "-p"),
    "steps as text": (["run", "02", "-p", "steps", "many"], "needs int"),
    "one rate, no list": (["run", "02", "-p", "multiples", "0.5"], "[0.5]"),
    "rates of text": (["run", "02", "-p", "multiples", '["a"]'], "list[float]"),
    "models without a list": (["run", "02", "-p", "models", "zoo:gpt2-s"], "list[str]"),
    "value that is no YAML": (["run", "02", "-p", "multiples", "[1, "], "not valid YAML"),
    "parameter file missing": (["run", "02", "-f", "nowhere.yaml"], "nowhere.yaml"),
    "parameter file a list": (["run", "02", "-f", "list.yaml"], "mapping"),
    "parameter file says it twice": (["run", "02", "-f", "steps-twice.yaml"], "twice"),
    "parameter file a pipe": (["run", "02", "-f", "pipe.yaml"], "not a regular file"),
    "unknown profile": (["run", "02", "--profile", "zooo"], "nearest: 'zoo'"),
    "output a folder": (["run", "02", "-o", "empty"], "cannot be a notebook"),
    "output below a file": (["run", "02", "-o", "taken/out.ipynb"], "Cannot write"),
}

PARAMETERS = {  # parameters of a chapter of a toy book (steps: int, rates: list[float], label: str) -> what must be said
    "an infinite number of steps": (["steps", ".inf"], "steps"),
    "a list of steps": (["steps", "[1]"], "steps"),
    "rates of markup": (["rates", "['<b>']"], "rates"),
    "rates in rates": (["rates", "[[1]]"], "rates"),
    "a mapping": (["rates", "{a: 1}"], "rates"),
    "a bomb": (["rates", "[&a [x, x], &b [*a, *a], [*b, *b]]"], "rates|write it out"),
    "an unknown name": (["__class__", "3"], "no parameter"),
    "a name that is markup": (["<b>", "3"], "no parameter"),
}

# These start a kernel: what only the notebook itself can judge.
IN_THE_KERNEL = {
    "negative multiple": (["-p", "multiples", "[0.5, -0.5]"], "multiples is [0.5, -0.5]"),
    "no multiples": (["-p", "multiples", "[]"], "positive, finite"),
    "no models": (["-p", "models", "[]"], "at least one model"),
    "misspelt model and file": (["-p", "models", '["zoo:gpt-s"]'], "gpt2-s"),
    "a GGUF file that is not there": (
        ["-p", "models", '["my/modl.gguf"]'],
        "No model folder or GGUF file at 'my/modl.gguf'",
    ),
    "contexts that do not fit": (["-p", "contexts", "good.yaml", "-p", "steps", "0"], "steps"),
    "store below a file": (["-p", "store", "taken/runs"], "cannot be written"),
}

PROFILES = {
    "not-yaml": ("common: [\n", "not valid YAML"),
    "list": ("- common\n", "mapping"),
    "unknown-section": ('"77": {steps: 3}\n', "section '77'"),
    "section-no-mapping": ('"01": 3\n', "Section '01'"),
    "unknown-parameter": ('"01": {step: 3}\n', "nearest: 'steps'"),
    "wrong-type": ('"01": {steps: many}\n', "steps is 'many'"),
    "common-unknown": ("common: {model: x}\n", "no parameter 'model'"),
    "twice": ('"01": {steps: 3, steps: 4}\n', "twice"),
}

BOOK = {
    "unknown profile": (["book", "--profile", "zooo"], "nearest: 'zoo'"),
    "no jobs": (["book", "--jobs", "0"], "jobs is 0"),
    "jobs as text": (["book", "--jobs", "two"], "valid integer"),
    "unknown notebook": (["book", "--only", "77"], "'77'"),
    "unknown option": (["book", "--profil", "zoo"], "--profil"),
    "unknown command": (["bok"], "bok"),
    "unknown ledger": (["claims", "--profile", "zooo"], "nearest: 'zoo'"),
    "unknown zoo model": (["zoo", "train", "--model", "gpt3-s"], "nearest: 'gpt2-s'"),
    "zoo on no device": (["zoo", "train", "--device", "gpu"], "device 'gpu'"),
}

out, runs = ["-o", "out.ipynb"], ["run", "02", "-p", "store", "runs"]
ANYWHERE = DIAGNOSE | RUN | {name: ([*shame, *given], words) for name, (given, words) in OPTIONS.items()}
ANYWHERE |= {name: ([*runs, *given, *out], words) for name, (given, words) in IN_THE_KERNEL.items()}
IN_A_BOOK = BOOK | {name: (["run", "01", "-p", *pair, *out], words) for name, (pair, words) in PARAMETERS.items()}
IN_A_BOOK |= {f"book: {name}": (["book", "--profile", name], words) for name, (_, words) in PROFILES.items()}
IN_A_BOOK |= {f"run: {name}": (["run", "01", "--profile", name, *out], words) for name, (_, words) in PROFILES.items()}


@pytest.fixture(scope="module", autouse=True)
def each_model_once():
    """The zoo model of the rows is loaded once; everything else each time."""
    load, known = language_model.load, functools.cache(language_model.load)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(language_model, "load", lambda ref, **o: (known if ref == "zoo:neox-s" else load)(ref, **o))
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files above, which is the working folder."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def book(toy_book, folder):
    """A toy book with profiles that are refused; it is the working folder."""
    for name, (text, _) in PROFILES.items():
        (toy_book / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)
    return toy_book


@pytest.mark.parametrize("arguments, words", ANYWHERE.values(), ids=ANYWHERE)
def test_what_is_refused_anywhere(arguments, words, folder):
    refuse(arguments, words, folder)


@pytest.mark.parametrize("arguments, words", IN_A_BOOK.values(), ids=IN_A_BOOK)
def test_what_is_refused_in_a_book(arguments, words, book):
    refuse(arguments, words, book)


def test_contents_that_name_no_notebook(book):
    toc = book / "_toc.yml"
    toc.write_text(toc.read_text().replace("02_after", "03_gone"))
    refuse(["book"], "03_gone", book)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(folder):
    (folder / "empty").chmod(0o500)
    refuse([*shame, "--plot", "empty/out.png"], "folder that exists", folder)


# ------------------------------------------------------------------------- what surrounds a command, in its own process


def phantom(arguments, cwd, before="pass", stdout=subprocess.PIPE, **environment):
    """One command in a process of its own; its time is that of the processor, since others may keep that busy."""
    code = f"import os, sys; {before}; sys.argv[1:] = {arguments}; from phantombook.cli import main; main()"
    started = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | environment,
        stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=200,
    )  # fmt: skip
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - started < SECONDS
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_a_terminal_that_lacks_letters_shows_question_marks(encoding, monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    monkeypatch.setenv("MPLBACKEND", "nosuch")
    cli.prepare_terminal()
    print("a “word” 🙂", flush=True)
    shown = sys.stdout.buffer.getvalue().decode(encoding)
    assert shown.startswith("a ") and "word" in shown and ("?" in shown) == (encoding != "utf-8")
    assert "MPLBACKEND" not in os.environ


@pytest.mark.slow
def test_neither_letters_nor_a_display_that_is_none_stop_a_diagnosis(tmp_path):
    around = {"PYTHONIOENCODING": "latin-1", "MPLBACKEND": "nosuch"}
    done = phantom([*shame, "--plot", "out.png"], tmp_path, **around)
    assert done.returncode == 0 and "?shame? overtakes ?guilt?" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [shame, ["--help"], ["diagnose", "--help"]], ids=" ".join)
def test_output_to_a_full_disk_is_one_message(arguments, tmp_path):
    with open("/dev/full", "w") as full:
        done = phantom(arguments, tmp_path, stdout=full)
    assert done.returncode != 0 and done.stderr.startswith("error: No space left on device")


@pytest.mark.parametrize("arguments", [shame, ["claims"], ["run", "01"], ["doctor"], ["book"]], ids=lambda a: a[0])
def test_a_working_folder_that_is_gone_is_one_message(arguments, tmp_path):
    (tmp_path / "gone").mkdir()
    done = phantom(arguments, tmp_path / "gone", before="os.rmdir(os.getcwd())")
    assert done.returncode == 1 and done.stderr.startswith("error: The working folder no longer exists")
    assert len(done.stderr.strip().splitlines()) == 1
