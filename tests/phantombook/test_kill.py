"""Killed at random points, over and over: what is finished stays, the next start resumes, the end is the same."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import xarray as xr
from tiny import contexts, model

from phantombook import build
from phantomlib.engine.recipe import Recipe
from phantomlib.runs.store import Store

KILLS = 20
BOOKS = 30
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]


def fill(root):
    """What a notebook does: ask the store for one run after the other."""
    store, plain = Store(root), model("GPT2", "float32")
    for rate in RATES:
        store.run(plain, contexts(plain), [rate], Recipe(steps=5))


def numbers(root):
    return {path.name: xr.load_dataset(path).drop_attrs() for path in sorted(root.glob("*.nc"))}


def test_a_store_filled_by_killed_processes(tmp_path):
    fill(tmp_path / "undisturbed")
    expected = numbers(tmp_path / "undisturbed")
    chance, kills, rounds = random.Random(0), 0, 0
    fork = multiprocessing.get_context("fork")  # the children need not import torch again
    while kills < KILLS:
        root, patience, rounds = tmp_path / f"round{rounds}", 0.1, rounds + 1
        while True:
            process = fork.Process(target=fill, args=(root,))
            process.start()
            process.join(chance.uniform(0, patience))
            if not process.is_alive():
                assert process.exitcode == 0
                break
            process.kill()
            process.join()
            kills, patience = kills + 1, patience * 1.2  # a busy machine must get through in the end
        found = numbers(root)
        assert list(found) == list(expected) and all(found[name].identical(expected[name]) for name in found)
        assert {path.suffix for path in root.iterdir()} <= {".nc", ".lock", ".index"}  # nothing half written is left


@pytest.mark.parametrize("place", ["before the rename", "after the rename"])
def test_killed_while_a_run_is_put_in_its_place(place, tmp_path, monkeypatch):
    real = os.replace

    def replace(source, target):
        if place == "after the rename":
            real(source, target)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "replace", replace)
    process = multiprocessing.get_context("fork").Process(target=fill, args=(tmp_path / "killed",))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert len(numbers(tmp_path / "killed")) == (place == "after the rename")
    monkeypatch.undo()
    fill(tmp_path / "killed")
    fill(tmp_path / "undisturbed")
    expected = numbers(tmp_path / "undisturbed")
    assert all(one.identical(expected[name]) for name, one in numbers(tmp_path / "killed").items())
    assert not list((tmp_path / "killed").glob("*.tmp"))


# ------------------------------------------------------------------------------------------------- a whole book


LIGHT = """
from phantombook import preloaded_kernel
preloaded_kernel.PRELOAD = preloaded_kernel.PRELOAD[:2]  # the toys need no torch
from phantombook.cli import main
main()
"""


def start(root, *words):
    """``phantom`` in a session of its own, with a folder of its own for temporary files."""
    (root / "tmp").mkdir(exist_ok=True)
    environment = os.environ | {"TMPDIR": str(root / "tmp")}
    return subprocess.Popen(
        [sys.executable, "-c", LIGHT, *(words or ("book", "--jobs", "2"))],
        cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore Ctrl-C
    )  # fmt: skip


def finish(root):
    process = start(root)
    _, said = process.communicate()
    assert process.returncode == 0, said


def works_for(root, process):
    """Whether a process was started for the book in ``root``, by whomever."""
    with contextlib.suppress(psutil.Error):
        return process.environ().get("TMPDIR") == str(root / "tmp")


def nothing_is_left(root):
    """Neither processes nor files that are half done, five seconds after the book ended; a kernel may just be starting."""
    deadline = time.monotonic() + 5
    while True:
        processes = [process for process in psutil.process_iter() if works_for(root, process)]
        files = [*root.rglob("*.tmp"), *(root / "tmp").glob("*/*")]
        left = processes + [path for path in files if not path.is_socket()]  # that of Python's fork server
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    assert left == []


def hit(process, chance, root):
    """End the book itself, kindly or not, or kill one of the processes that work for it."""
    family = psutil.Process(process.pid).children(recursive=True)
    if family and chance.random() < 0.4:
        chance.choice(family).kill()  # a kernel, the fork server or the builder dies; the book must say so and end
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0 or "Traceback" not in said
    else:
        process.send_signal(chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
        process.communicate(timeout=120)
    nothing_is_left(root)


def executed(root):
    return {path.name: path.read_bytes() for path in sorted((root / "book/generated").glob("*.ipynb"))}


def pages(root):
    html = root / "_build/html"
    return sorted(path.relative_to(html) for path in html.rglob("*.html"))


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_runner_ends(toy_book, number, code):
    output = toy_book / "out" / "01.ipynb"
    process = start(toy_book, "run", "01", "-p", "label", "slow", "-o", str(output))
    while not list((toy_book / "tmp").glob("pymp-*/*/")):  # the kernel is there
        assert process.poll() is None
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    nothing_is_left(toy_book)
    assert family and list(output.parent.iterdir()) == []
    assert process.returncode == code and "Traceback" not in said


def test_the_builder_ends_with_its_caller():
    sleep = "import phantombook.ends_with_parent, os, time; print(os.getpid(), flush=True); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {sleep!r}]); input()"
    caller = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    builder = psutil.Process(int(caller.stdout.readline()))
    time.sleep(0.5)
    assert builder.status() != psutil.STATUS_ZOMBIE
    caller.kill()
    caller.communicate()
    assert not psutil.wait_procs([builder], timeout=5)[1]
    assert build.BUILDER.startswith("import phantombook.ends_with_parent;")


@pytest.mark.long
def test_a_book_killed_at_random_points(toy_book, tmp_path_factory):
    root = tmp_path_factory.mktemp("killed") / "book"
    shutil.copytree(toy_book, root)
    began = time.monotonic()
    finish(toy_book)
    usual = time.monotonic() - began
    assert set(executed(toy_book)) == {"01_toy.ipynb", "02_after.ipynb"}  # and nothing partial
    chance, kills = random.Random(1), 0
    while kills < BOOKS:
        process = start(root)
        try:
            process.wait(chance.uniform(0, 0.9) * usual)  # pages included
        except subprocess.TimeoutExpired:
            hit(process, chance, root)
            kills += 1
        else:  # it got through: begin again
            assert process.returncode == 0, process.stderr.read()
            assert executed(root) == executed(toy_book) and pages(root) == pages(toy_book)
            shutil.rmtree(root / "book/generated")
        process.stderr.close()
    finish(root)
    assert executed(root) == executed(toy_book) and pages(root) == pages(toy_book)
