"""Bad input over the whole command line: exit code not 0, one clear message, no traceback, no file left behind."""

import os

import pytest
from refusals import refuse

LIE = "After the lie, Anna felt a deep sense of"
CONTEXT = "- {id: a, prompt: 'She felt a deep sense of', correct: shame, competitor: guilt}\n"

FILES = {  # what lies in the folder from which the commands are given
    "binary.yaml": bytes(range(256)),
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
    "nothing to learn": (zoo, "--context ID"),
    "context and prompt": ([*shame, "--prompt", "Hello"], "not both"),
    "prompt without a word": ([*zoo, "--prompt", LIE], "--correct WORD"),
    "blank prompt": ([*zoo, "--prompt", " ", "--correct", "shame"], "--context ID"),
    "unknown competitor": ([*own[:-1], "zyzzyva"], "competitor word 'zyzzyva'"),
    "words the wrong way round": (
        [*zoo, "--prompt", LIE, "--correct", "guilt", "--competitor", "shame"], "already prefers"
    ),
    "learning rate zero": ([*shame, "--learning-rate", "0"], "positive, finite"),
    "learning rate a word": ([*shame, "--learning-rate", "small"], "valid number"),
    "half a step": ([*shame, "--steps", "2.5"], "valid integer"),
    "unknown optimizer": ([*shame, "--optimizer", "adamm"], "choose one of sgd, adam"),
    "unknown device": ([*shame, "--device", "gpu"], "device 'gpu'"),
    "absent device": ([*shame, "--device", "cuda:99"], "device 'cuda:99'"),
    "figure as a folder": ([*shame, "--plot", "empty"], "end it with .png"),
    "unknown option": ([*shame, "--rate", "1"], "--rate"),
}  # fmt: skip

RUN = {
    "unknown notebook": (["run", "77"], "There is no notebook '77'"),
    "misspelt notebook": (["run", "01_silent_failur"], "nearest: '02_silent_failure'"),
    "unknown parameter": (["run", "02", "-p", "step", "3"], "nearest: 'steps'"),
    "parameter without value": (["run", "02", "-p", "steps"], "-p"),
    "steps as text": (["run", "02", "-p", "steps", "many"], "needs int"),
    "steps as a fraction": (["run", "02", "-p", "steps", "2.5"], "needs int"),
    "steps true": (["run", "02", "-p", "steps", "true"], "needs int"),
    "one rate, no list": (["run", "02", "-p", "multiples", "0.5"], "[0.5]"),
    "rates of text": (["run", "02", "-p", "multiples", '["a"]'], "list[float]"),
    "models without a list": (["run", "02", "-p", "models", "zoo:gpt2-s"], "list[str]"),
    "value that is no YAML": (["run", "02", "-p", "multiples", "[1, "], "not valid YAML"),
    "parameter file missing": (["run", "02", "-f", "nowhere.yaml"], "nowhere.yaml"),
    "parameter file a list": (["run", "02", "-f", "list.yaml"], "mapping"),
    "parameter file says it twice": (["run", "02", "-f", "steps-twice.yaml"], "twice"),
    "parameter file a pipe": (["run", "02", "-f", "pipe.yaml"], "no ordinary file"),
    "parameter file not text": (["run", "02", "-f", "binary.yaml"], "not valid YAML"),
    "unknown profile": (["run", "02", "--profile", "zooo"], "nearest: 'zoo'"),
    "output a folder": (["run", "02", "-o", "empty"], "cannot be a notebook"),
    "output below a file": (["run", "02", "-o", "taken/out.ipynb"], "Cannot write"),
}

# These start a kernel: what only the notebook itself can judge.
IN_THE_KERNEL = {
    "negative multiple": (["-p", "multiples", "[0.5, -0.5]"], "multiples is [0.5, -0.5]"),
    "no multiples": (["-p", "multiples", "[]"], "positive, finite"),
    "no models": (["-p", "models", "[]"], "at least one model"),
    "misspelt model and file": (["-p", "models", '["zoo:gpt-s"]'], "gpt2-s"),
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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files above, which is the working folder."""
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments, words", DIAGNOSE.values(), ids=DIAGNOSE)
def test_diagnose(arguments, words, folder):
    refuse(arguments, words, folder)


@pytest.mark.parametrize("arguments, words", RUN.values(), ids=RUN)
def test_run(arguments, words, folder):
    refuse(arguments, words, folder)


@pytest.mark.parametrize("arguments, words", IN_THE_KERNEL.values(), ids=IN_THE_KERNEL)
def test_run_in_the_kernel(arguments, words, folder):
    refuse(["run", "02", "-p", "store", "runs", *arguments, "-o", "out.ipynb"], words, folder)


@pytest.mark.parametrize("arguments, words", BOOK.values(), ids=BOOK)
def test_book_and_the_rest(arguments, words, toy_book, folder):
    refuse(arguments, words, toy_book)


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("command", ["book", "run"])
def test_profiles(name, command, toy_book, monkeypatch):
    text, words = PROFILES[name]
    (toy_book / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(toy_book)
    arguments = ["book"] if command == "book" else ["run", "01", "-o", "out.ipynb"]
    refuse([*arguments, "--profile", name], words, toy_book)


def test_contents_that_name_no_notebook(toy_book, monkeypatch):
    monkeypatch.chdir(toy_book)
    toc = toy_book / "_toc.yml"
    toc.write_text(toc.read_text().replace("02_after", "03_gone"))
    refuse(["book"], "03_gone", toy_book)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(folder):
    (folder / "empty").chmod(0o500)
    refuse([*shame, "--plot", "empty/out.png"], "folder that exists", folder)


def test_there_are_enough():
    assert len(DIAGNOSE) + len(RUN) + len(IN_THE_KERNEL) + len(BOOK) + 2 * len(PROFILES) >= 40
