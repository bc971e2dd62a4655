"""A table of hostile inputs: each is refused in one paragraph, soon, without a traceback, and leaves nothing behind.

Most rows run in this process. ``tests/test_bad_input.py`` has what people get wrong; here is what nobody types by accident.
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

zoo = ["diagnose", "-m", "zoo:neox-s"]
LIE = "After the lie, Anna felt a deep sense of"


def entry(**changes):
    words = {"id": "a", "prompt": f"'{LIE}'", "correct": "shame", "competitor": "guilt"} | changes
    return "- {" + ", ".join(f"{key}: {value}" for key, value in words.items()) + "}\n"


BOMB = "".join(f"- &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

CONTEXTS = {  # content of a contexts file -> what must be said
    "nothing": ("", "non-empty YAML list"),
    "null": ("null", "non-empty YAML list"),
    "a number": ("3", "non-empty YAML list"),
    "a number without end": ("9" * 5000, "not valid YAML"),
    "a float that is none": ("!!float abc", "not valid YAML"),
    "an integer that is none": ("!!int abc", "not valid YAML"),
    "a truth that is none": ("!!bool abc", "not valid YAML"),
    "a time that is none": ("!!timestamp abc", "not valid YAML"),
    "bytes that are none": ("!!binary é", "not valid YAML"),
    "a set": ("!!set {a, b}", "non-empty YAML list"),
    "pairs": ("!!omap [a: 1]", "Entry 1"),
    "pairs that are none": ("!!omap 3", "not valid YAML"),
    "an object of Python": ("!!python/object/apply:os.system [exit]", "not valid YAML"),
    "a name of Python": ("!!python/name:os.system", "not valid YAML"),
    "a module of Python": ("- !!python/module:os", "not valid YAML"),
    "an unknown tag": ("- !secret x", "not valid YAML"),
    "a tag without end": ("- !" + "x" * 50_000 + " a", "not valid YAML"),
    "an unknown alias": ("- *nothing", "not valid YAML"),
    "a bomb": ("- &a [x, x, x, x, x, x, x, x, x]\n" + BOMB, "write it out"),
    "a bomb in an entry": (entry(kind="{x: &x [y, y], z: [*x, *x]}"), "write it out"),
    "itself in itself": ("- &a [*a]", "write it out"),
    "itself as a mapping": ("- &a {x: *a}", "write it out"),
    "merged entries": ("- &a {id: a}\n- {<<: *a}", "write it out"),
    "merged with itself": ("- &a {<<: *a}", "write it out"),
    "brackets": ("[" * 100_000, "not valid YAML"),
    "braces": ("{" * 100_000, "not valid YAML"),
    "dashes": ("- " * 100_000, "not valid YAML"),
    "questions": ("? " * 20_000, "not valid YAML"),
    "larger than a book": (entry() * 4000, "larger than 300 kB"),
    "a comment larger than a book": ("#" * 400_000, "larger than 300 kB"),
    "blanks without end": (" " * 400_000, "larger than 300 kB"),
    "two documents": (f"{entry()}---\n{entry()}", "not valid YAML"),
    "a bell": ("- {id: \x07}", "not valid YAML"),
    "a zero": ("- {id: \x00}", "not valid YAML"),
    "half a character": (b"- \xff\xfe", "not valid YAML"),
    "UTF-16": (entry().encode("utf-16"), "not valid YAML"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "not valid YAML"),
    "a key that is a list": ("- {[a]: b}", "not valid YAML"),
    "a key that is a mapping": ("- {{a: b}: c}", "not valid YAML"),
    "a key twice": ("- {id: a, prompt: x, correct: y, competitor: z, correct: shame}", "given twice"),
    "a key twice, once quoted": ("- {id: a, 'id': b, prompt: x, correct: y, competitor: z}", "given twice"),
    "an entry that is a number": ("- 3", "Entry 1"),
    "an entry that is endless text": (f"- {'x' * 200_000}", "Entry 1"),
    "an entry of endless text": ("- [" + "x, " * 50_000 + "]", "Entry 1"),
    "an endless key": (f"- {{{'k' * 100_000}: 1}}", "not valid YAML|Entry 1"),
    "many keys": ("- {" + ", ".join(f"k{i}: {i}" for i in range(10_000)) + "}", "Entry 1"),
    "many wrong entries": ("- 3\n" * 5000, "5000 problems of the 5000 entries"),
    "an id that is markup": (entry(id="<script>alert(1)</script>"), "id is '<script>"),
    "an id that is an image": (entry(id="'<img src=x onerror=alert(1)>'"), "id is"),
    "an id that ends a script": (entry(id="</script>"), "id is"),
    "an id that leads up": (entry(id="../../etc/passwd"), "id is"),
    "an id with a blank": (entry(id="a b"), "id is"),
    "an id with a line end": (entry(id='"a\\nb"'), "id is"),
    "an id that is a formula": (entry(id="'=1+1'"), "id is"),
    "an id with a colon": (entry(id="'a:b'"), "id is"),
    "an id with a bar": (entry(id="'a|b'"), "id is"),
    "an endless id": (entry(id="'" + "a b" * 30_000 + "'"), "id is"),
    "an id that is a number": (entry(id="7"), "id is 7"),
    "an id that is nothing": (entry(id="''"), "id is ''"),
    "an id twice": (entry() * 3, "'a' 3 times"),
    "words alike but for blanks": (entry(correct="' guilt '"), "two different words"),
    "a word that is a list": (entry(correct="[shame]"), "correct is ['shame']"),
    "a word that is nothing": (entry(correct="~"), "correct is None"),
    "a word that is not a number": (entry(correct=".nan"), "correct is nan"),
    "a prompt that is a mapping": (entry(prompt="{a: b}"), "prompt is {'a': 'b'}"),
    "a prompt of blanks": (entry(prompt="'  \t '"), "prompt is"),
    "a date that is none": (entry(id="2024-13-45"), "not valid YAML"),
    "only a comment": ("# nothing", "non-empty YAML list"),
    "a mapping": (entry()[2:], "non-empty YAML list"),
    "tabs": ("-\tid: a\n\tprompt: b", "not valid YAML"),
    "an entry that is empty": (f"{entry()}-\n", "Entry 2"),
    "an entry without competitor": ("- {id: a, prompt: b, correct: c}", "Entry 1"),
    "an entry with more": (entry(wrong="e"), "wrong"),
    "a number as a key": (entry().replace("}", ", 3: e}"), "'3'"),
    "YAML's yes": (entry(correct="yes"), "correct is True"),
    "a number as kind": (entry(kind="1"), "kind is 1"),
    "endless kinds": (entry(kind="[" + "x, " * 50_000 + "]"), "kind is"),
    "an id of 250 characters": (entry(id="a" * 250), "at most 100 letters"),
}

PROMPTS = {  # prompt, and words, after which --context a is asked for -> what must be said
    "quotes": ('Anna said "no" and felt', "does not know '\"'"),
    "curly quotes": ("Anna said “no” and felt", "does not know '“', '”'"),
    "digits": ("Anna had 12 dogs and felt", "does not know '12'"),
    "a question": ("Was it Anna? She felt", "does not know '?'"),
    "an exclamation": ("Oh! She felt", "does not know"),
    "a colon": ("Note: she felt", "does not know ':'"),
    "a semicolon": ("Anna came; she felt", "does not know ';'"),
    "brackets": ("Anna (Peter) felt", "does not know '(', ')'"),
    "square brackets": ("Anna [x] felt", "does not know '['"),
    "an umlaut": ("Ärger is what Anna felt", "does not know 'ä'"),
    "an accent": ("At the café Anna felt", "does not know 'é'"),
    "a composed accent": ("At the cafe\u0301 Anna felt", "does not know"),
    "a smile": ("Anna 🙂 felt", "does not know '🙂'"),
    "a family": ("Anna 👨‍👩‍👧 felt", "does not know"),
    "Chinese": ("安娜 felt", "does not know '安娜'"),
    "Arabic": ("آنا felt", "does not know"),
    "right to left": ("Anna \u202efelt", "does not know"),
    "no width": ("An\u200bna felt", "does not know"),
    "a soft hyphen": ("An\u00adna felt", "does not know"),
    "a mark of order": ("\ufeffAnna felt", "does not know"),
    "a tab": ("Anna\tfelt", "does not know '\\t'"),
    "a line end": ("Anna\nfelt", "does not know '\\n'"),
    "an escape": ("Anna \x1b[31m felt", "does not know"),
    "a zero": ("Anna\x00felt", "holds NUL"),
    "markup": ("Anna <b>felt</b>", "does not know '<'"),
    "a formula": ("=HYPERLINK(0) Anna felt", "does not know"),
    "mathematics": ("Anna $\\frac$ felt", "does not know"),
    "half a character": ("Anna \udc80 felt", "half a character"),
    "longer than the model reads": ("Anna " * 200 + "felt", "reads no more than 64"),
    "longer than anyone reads": ("Anna felt " * 20_000, "reads no more than 64"),
    "long, and unknown at its end": ("Anna felt " * 5000 + "?", "does not know '?'"),
    "one endless word": ("x" * 50_000, "reads no more than 64"),
}

WORDS = {  # correct and competitor -> what must be said
    "an unknown word": (("zyzzyva", "guilt"), "correct word 'zyzzyva'"),
    "two unknown words": (("zyzzyva", "qqqq"), "competitor word 'qqqq'"),
    "a phrase": (("deep shame", "guilt"), "correct word 'deep shame' is 2 tokens"),
    "a word with an accent": (("shamé", "guilt"), "correct word 'shamé'"),
    "a digit": (("7", "guilt"), "correct word '7'"),
    "a sign": (("?", "guilt"), "correct word '?'"),
    "a smile": (("🙂", "guilt"), "correct word '🙂'"),
    "markup": (("<script>", "guilt"), "correct word '<script>'"),
    "the special token": (("<|endoftext|>", "guilt"), "correct word '<|endoftext|>'|already prefers|does not fit"),
    "an endless word": (("x" * 50_000, "guilt"), "correct word"),
    "a line end": (("sha\nme", "guilt"), "correct word"),
    "a zero": (("sha\x00me", "guilt"), "holds NUL"),
    "one word twice": (("guilt", " guilt"), "two different words"),
    "the favourite": (("guilt", "shame"), "already prefers"),
    "nothing": (("", "guilt"), "--correct WORD"),
    "blanks": ((" ", "guilt"), "--correct WORD"),
}

NUMBERS = {  # further options of a diagnosis -> what must be said
    "a rate below zero": (["--learning-rate", "-1"], "positive, finite"),
    "a rate of minus zero": (["--learning-rate", "-0.0"], "positive, finite"),
    "a rate below anything": (["--learning-rate", "1e-400"], "positive, finite"),
    "a rate beyond anything": (["--learning-rate", "1e400"], "positive, finite"),
    "a rate of nan": (["--learning-rate", "-nan"], "positive, finite"),
    "a rate of infinity": (["--learning-rate", "Infinity"], "positive, finite"),
    "a rate of words": (["--learning-rate", "1e-3.5"], "valid number"),
    "a rate of digits": (["--learning-rate", "9" * 5000], "positive, finite"),
    "no steps": (["--steps", "0"], "steps is 0"),
    "less than no steps": (["--steps", "-1"], "steps is -1"),
    "steps without end": (["--steps", "1" + "0" * 30], "less than or equal to 1000000000"),
    "steps of 400 digits": (["--steps", "9" * 400], "less than or equal to 1000000000"),
    "steps of 5,000 digits": (["--steps", "9" * 5000], "integer|at most"),
    "steps that would fill the memory": (["--steps", "1000000000", "--check"], "fewer steps|would take"),
    "steps that would take a year": (["--steps", "20000000", "--check"], "would take|fewer steps"),
    "steps of nan": (["--steps", "nan"], "valid integer"),
    "steps in hexadecimal": (["--steps", "0x10"], "valid integer"),
    "an unknown optimizer": (["--optimizer", "<b>"], "choose one of sgd, adam"),
    "an endless optimizer": (["--optimizer", "x" * 100_000], "choose one of sgd, adam"),
    "an unknown method": (["--method", "lora "], "choose one of full, lora"),
    "a device that is none": (["--device", "cpu:-1"], "cannot be used here|device"),
    "an endless device": (["--device", "x" * 10_000], "cannot be used here"),
    "a device of another world": (["--device", "meta"], "device 'meta'"),
    "a device that nobody has": (["--device", "hpu"], "device 'hpu'"),
    "a device for private use": (["--device", "privateuseone"], "device 'privateuseone'"),
    "a device with a zero": (["--device", "cuda\x00"], "cannot be used here"),
    "half precision": (["--dtype", "float16"], "float32, float64"),
    "an endless precision": (["--dtype", "x" * 100_000], "float32, float64"),
    "a figure of no kind": (["--plot", "out.exe"], "end it with .png"),
    "a figure without a name": (["--plot", ".png"], "end it with .png"),
    "a figure below a file": (["--plot", "taken/out.png"], "folder that exists"),
    "a figure in no folder": (["--plot", "no/such/out.png"], "folder that exists"),
    "a figure with a zero": (["--plot", "a\x00.png"], "cannot be written|null|folder that exists"),
    "a figure with an endless name": (["--plot", "x" * 5000 + ".png"], "cannot be written|could not be written"),
    "a store that is a file": (["--check", "--store", "taken"], "cannot be written"),
    "a store below a file": (["--check", "--store", "taken/runs"], "cannot be written"),
    "a store with a zero": (["--check", "--store", "a\x00"], "cannot be written|null byte"),
    "a store with an endless name": (["--check", "--store", "x" * 5000], "cannot be written"),
    "a store in nothing": (["--check", "--store", "/proc/nothing"], "cannot be written"),
    "a store that is a device": (["--check", "--store", "/dev/null"], "cannot be written"),
}

FILES = {  # what --contexts names -> what must be said
    "no file": ("nowhere.yaml", "No contexts file"),
    "a folder": (".", "No contexts file"),
    "a device": ("/dev/zero", "No contexts file"),
    "what /proc makes up": ("/proc/self/mem", "non-empty YAML list"),
    "a pipe": ("pipe.yaml", "No contexts file"),
    "a name with a zero": ("a\x00b", "No contexts file"),
    "an endless name": ("x" * 5000, "No contexts file"),
    "a name with a line end": ("a\nb", "No contexts file"),
    "a program": (sys.executable, "larger than 300 kB|not valid YAML"),
    "a link to itself": ("loop.yaml", "No contexts file"),
}

REFS = {  # a model that is no folder -> what must be said
    "a zoo model that leads up": ("zoo:../../etc", "zoo has no model"),
    "a zoo model without a name": ("zoo:", "zoo has no model"),
    "a long zoo model": ("zoo:" + "x" * 4000, "zoo has no model"),
    "an endless zoo model": ("zoo:" + "x" * 50_000, "A model is named by zoo:NAME"),
    "a zoo model with a zero": ("zoo:gpt2-s\x00", "zoo has no model"),
    "blanks": ("  ", "A model is named by zoo:NAME"),
    "a folder that is a device": ("/dev/null", "cannot be read|no config.json"),
    "a folder that is none": ("/no/such", "No model folder"),
    "a user who is none": ("~nobody-there/x", "No model folder"),
    "an address": ("https://example.org/model", "No model folder"),
    "a hub id with markup": ("<b>/x", "no connection to the hub"),
    "a hub id with a zero": ("a\x00b", "no connection to the hub"),
    "an endless hub id": ("x" * 5000, "A model is named by zoo:NAME"),
    "a hub id with a line end": ("a\nb", "no connection to the hub"),
    "a hub id while offline": ("nobody/nothing", "no connection to the hub"),
}


PARAMETERS = {  # parameters of a chapter of a toy book (steps: int, rates: list[float], label: str) -> what must be said
    "no number": (["steps", "9" * 5000], "steps"),
    "beyond whole numbers": (["steps", "10**400"], "steps"),
    "an infinite number of steps": (["steps", ".inf"], "steps"),
    "an octal number": (["steps", "0o10"], "steps"),
    "a list of steps": (["steps", "[1]"], "steps"),
    "brackets": (["rates", "[" * 10_000], "rates|not valid YAML"),
    "rates of nothing": (["rates", "[~]"], "rates"),
    "rates of nan": (["rates", "[.nan]"], "rates"),
    "rates of infinity": (["rates", "[.inf]"], "rates"),
    "rates of markup": (["rates", "['<b>']"], "rates"),
    "rates in rates": (["rates", "[[1]]"], "rates"),
    "a mapping": (["rates", "{a: 1}"], "rates"),
    "a bomb": (["rates", "[&a [x, x], &b [*a, *a], [*b, *b]]"], "rates|write it out"),
    "an object of Python": (["rates", "[!!python/object/apply:os.getcwd []]"], "not valid YAML"),
    "an integer that is none": (["rates", "[!!int abc]"], "rates|not valid YAML"),
    "an unknown name": (["__class__", "3"], "no parameter"),
    "an endless name": (["x" * 50_000, "3"], "no parameter"),
    "a name that is markup": (["<b>", "3"], "no parameter"),
}

# ------------------------------------------------------------------------------------------------------------ checks


@pytest.fixture(scope="module", autouse=True)
def each_model_once():
    """The zoo model of the rows is loaded once; everything else each time."""
    load, known = language_model.load, functools.cache(language_model.load)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(language_model, "load", lambda ref, **o: (known if ref == "zoo:neox-s" else load)(ref, **o))
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder."""
    (tmp_path / "taken").write_text("a file where a folder is wanted")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("content, words", CONTEXTS.values(), ids=CONTEXTS)
def test_contexts(content, words, folder):
    (folder / "mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refuse([*zoo, "--contexts", "mine.yaml", "--context", "a"], words, folder)


@pytest.mark.parametrize("prompt, words", PROMPTS.values(), ids=PROMPTS)
def test_prompts(prompt, words, folder):
    refuse([*zoo, "--prompt", prompt, "--correct", "glad"], words, folder)
    refuse([*zoo, "--prompt", prompt, "--correct", "glad", "--competitor", "happy"], words, folder)


@pytest.mark.parametrize("pair, words", WORDS.values(), ids=WORDS)
def test_words(pair, words, folder):
    refuse([*zoo, "--prompt", LIE, "--correct", pair[0], "--competitor", pair[1]], words, folder)


@pytest.mark.parametrize("options, words", NUMBERS.values(), ids=NUMBERS)
def test_options(options, words, folder):
    refuse([*zoo, "--context", "shame", *options], words, folder)


@pytest.mark.parametrize("name, words", FILES.values(), ids=FILES)
def test_files(name, words, folder):
    refuse([*zoo, "--context", "shame", "--contexts", name], words, folder)


@pytest.mark.parametrize("ref, words", REFS.values(), ids=REFS)
def test_references(ref, words, folder):
    refuse(["diagnose", "-m", ref, "--context", "shame"], words, folder)


@pytest.mark.parametrize("pair, words", PARAMETERS.values(), ids=PARAMETERS)
def test_parameters(pair, words, toy_book, monkeypatch):
    monkeypatch.chdir(toy_book)
    refuse(["run", "01", "-p", *pair, "-o", "out.ipynb"], words, toy_book)


# ------------------------------------------------------------------------- what surrounds a command, in its own process

DIAGNOSE = ["diagnose", "-m", "zoo:neox-s", "--context", "shame"]


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
    done = phantom([*DIAGNOSE, "--plot", "out.png"], tmp_path, **around)
    assert done.returncode == 0 and "?shame? overtakes ?guilt?" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
    assert (tmp_path / "out.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [DIAGNOSE, ["--help"], ["diagnose", "--help"]], ids=" ".join)
def test_output_to_a_full_disk_is_one_message(arguments, tmp_path):
    with open("/dev/full", "w") as full:
        done = phantom(arguments, tmp_path, stdout=full)
    assert done.returncode != 0 and done.stderr.startswith("error: No space left on device")


@pytest.mark.parametrize("arguments", [DIAGNOSE, ["claims"], ["run", "01"], ["doctor"], ["book"]], ids=lambda a: a[0])
def test_a_working_folder_that_is_gone_is_one_message(arguments, tmp_path):
    (tmp_path / "gone").mkdir()
    done = phantom(arguments, tmp_path / "gone", before="os.rmdir(os.getcwd())")
    assert done.returncode == 1 and done.stderr.startswith("error: The working folder no longer exists")
    assert len(done.stderr.strip().splitlines()) == 1


def test_there_are_enough():
    tables = (CONTEXTS, PROMPTS, WORDS, NUMBERS, FILES, REFS, PARAMETERS)
    assert sum(map(len, tables)) >= 190
