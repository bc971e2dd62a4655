"""What is counted beforehand against what a process really takes; refusals before the work starts."""

import gc
import json
import os
import subprocess
import sys
import weakref
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest
import tiny
import torch

from phantomlib import progress
from phantomlib.critical import step_zero
from phantomlib.critical.predictors import VECTORS, predict_critical_rates
from phantomlib.engine import memory
from phantomlib.engine.finetune import chunk_size, finetune
from phantomlib.engine.recipe import Recipe
from phantomlib.errors import ParameterError
from phantomlib.runs.store import Store

GIB = 2**30
SIZE = "random:4x256x16384"  # 7 million parameters, more than half of them in the readout
SHARE = 0.57

# task -> peak beyond the model, in units of the parameters, that its count allows for. The embedding is tied, so a
# gradient of it is summed from two parts: twice its share.
BOUNDS = {
    "run, SGD": 3 + 2 * SHARE,
    "run, Adam": 4 + 2 * SHARE,
    "two runs together, Adam": 7 + 2 * SHARE,
    "two runs together, LoRA": 1.5,
    "run with spectra, Adam": 4 + 2 * SHARE,
    "velocity": 2 + 2 * SHARE,
    "sharpness, Adam": step_zero.LANCZOS + 2 * SHARE,
    "predictors, SGD": VECTORS + 2 * SHARE,
    "predictors, Adam": VECTORS + 2 * SHARE,
    "overlaps of all pairs": 2.0,
}
OVERHEAD = 1.0  # modules imported on the way, and blocks: 30 MB in the same units
NO_GAPS = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}  # tensors above 1 MiB are counted only while they are there


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is asked of Linux")
@pytest.mark.parametrize("task", BOUNDS)
def test_peak_memory_stays_within_what_is_counted(task):
    command, root = [sys.executable, "-m", "benchmarks.needs", SIZE, task, "cpu"], Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=os.environ | NO_GAPS)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])["beyond it (parameters)"]
    assert found <= BOUNDS[task] + OVERHEAD


def with_memory(monkeypatch, available, total=24 * GIB, own=GIB, jobs=None):
    """A machine with so many bytes."""
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=available, total=total))
    monkeypatch.setattr(memory.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=own)))
    monkeypatch.setattr(memory, "OWN_CGROUPS", Path("/no/such/file"))
    monkeypatch.delenv(progress.JOBS, raising=False)
    if jobs:
        monkeypatch.setenv(progress.JOBS, str(jobs))


@pytest.mark.parametrize("available, jobs, expected", [(10, None, 10), (20, 2, 11), (20, 3, 7), (5, 3, 5), (1, 48, 0)])
def test_a_process_takes_its_share_of_what_is_free(monkeypatch, available, jobs, expected):
    with_memory(monkeypatch, available * GIB, jobs=jobs)
    assert memory.free(torch.device("cpu")) == int(memory.USABLE * expected * GIB)


def group(folder, version, limit, used, droppable):
    """A control group with a limit of memory, as the kernel shows it."""
    most, taken, cached = memory.CGROUP_FILES["memory" if version == 1 else ""]
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in {most: limit, taken: used, "memory.stat": f"anon 1\n{cached} {droppable}\nslab 2"}.items():
        (folder / name).write_text(f"{value}\n")


@pytest.mark.parametrize(
    "version, line, where, limit, jobs, expected",
    [
        (2, "0::/", "", 8 * GIB, None, 6 * GIB),  # in a container
        (2, "0::/", "", 8 * GIB, 4, GIB),  # whose processes share what it has
        (2, "0::/a/b", "a", 8 * GIB, None, 6 * GIB),  # a limit of the group around its own
        (2, "0::/a/b", "a/b", "max", None, 20 * GIB),
        (2, "0::/../elsewhere", "other", 8 * GIB, None, 20 * GIB),
        (1, "5:cpu,cpuacct:/a\n4:memory:/a\n0::/", "memory/a", 8 * GIB, None, 6 * GIB),
        (1, "4:memory:/of/the/machine", "memory", 8 * GIB, None, 6 * GIB),
        (1, "4:memory:/a", "memory/a", 9223372036854771712, None, 20 * GIB),
    ],
)
def test_the_limit_of_a_container_counts(monkeypatch, tmp_path, version, line, where, limit, jobs, expected):
    with_memory(monkeypatch, 20 * GIB, jobs=jobs)
    (tmp_path / "own").write_text(line + "\n")
    monkeypatch.setattr(memory, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    group(tmp_path / "groups" / where, version, limit, used=3 * GIB, droppable=GIB)
    assert memory.free(torch.device("cpu")) == int(memory.USABLE * expected)


@pytest.mark.parametrize("needed, times", [(2 * GIB, 1), (GIB // 2, 0)])
def test_memory_of_earlier_work_is_given_back_before_large_work(monkeypatch, needed, times):
    with_memory(monkeypatch, 20 * GIB)
    calls = Mock()
    calls.free.return_value = 20 * GIB
    monkeypatch.setattr(memory, "give_back", calls.give_back)
    monkeypatch.setattr(memory, "free", calls.free)
    memory.refuse_if_too_large("This", needed, torch.device("cpu"))
    assert [name for name, *_ in calls.mock_calls] == ["give_back"] * times + ["free"]


@pytest.fixture
def no_collector():
    """Without the collector of cycles: between two replicas it need not run."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_what_only_a_cycle_refers_to_is_freed(no_collector):
    held = type("Held", (), {})()
    held.itself, alive = held, weakref.ref(held)
    del held
    assert alive()
    memory.give_back()
    assert not alive()


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_no_weights_of_a_replica_outlive_its_run(method, interrupted, no_collector):
    stop = Mock(side_effect=KeyboardInterrupt if interrupted else None)
    model = tiny.model("GPT2")
    contexts = tiny.contexts(model)[:1]
    recipe, options = Recipe(method=method, steps=1), {"engine": "batch axis", "chunk": 1}
    finetune(model, contexts, [1e-3], recipe, **options)  # what is kept once for all
    gc.collect()
    before = tensors()
    with suppress(KeyboardInterrupt):
        finetune(model, contexts, [1e-3, 2e-3], recipe, progress=stop, **options)
    assert tensors() <= before


def tensors() -> int:
    return sum(type(x) is torch.Tensor and x.dim() > 1 for x in gc.get_objects())


PEAK = """
import psutil, sys, torch
sys.modules["resource"] = None  # not every system has it (psutil asks for it on Linux only)
from phantomlib.engine import memory
before = memory.peak(torch.device("cpu"))
bytearray(b"x" * (300 * 2**20))
print((memory.peak(torch.device("cpu")) - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is asked of Linux")
def test_the_peak_is_of_this_process_and_stays_when_memory_is_freed():
    own = bytearray(b"x" * 2**20 * 1000)  # a child's own peak has nothing to do with it
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 550 < int(done.stdout) < 650 and len(own)  # what is multiplied out, and its copy


FRAGMENTS = """
import re
from phantomlib.engine import memory
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024
bytes(2 * 2**20)  # freed, and from now on glibc keeps what is smaller
start, held, above = resident(), [], []
for _ in range(400):
    held.append(bytearray(2**20))
    above.append(bytearray(2000))
    held[-1][::4096] = b"x" * 256
del held
left = resident() - start
memory.give_back()
print(left, resident() - start)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(psutil, "heap_trim"), reason="this allocator is not glibc's")
def test_fragments_go_back_to_the_system():
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FRAGMENTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=plain)
    before, after = map(int, done.stdout.split())
    assert before > 300 and after < 50


def test_a_refusal_says_how_much_and_what_to_do(monkeypatch):
    with_memory(monkeypatch, 20 * GIB, jobs=3)
    memory.refuse_if_too_large("This", 6 * GIB, torch.device("cpu"))
    with pytest.raises(ParameterError) as error:
        memory.refuse_if_too_large("This", 9 * GIB, torch.device("cpu"), "a smaller chunk")
    assert str(error.value) == (
        "This needs about 9 GiB beside the model, 6.3 are free for each of 3 processes: use --jobs 1, a smaller chunk, "
        "a smaller model or a machine with more memory."
    )


def test_what_cannot_fit_is_refused_before_it_starts(monkeypatch, tmp_path):
    model, started = tiny.model("GPT2", "float32"), []
    contexts = tiny.contexts(model)
    with_memory(monkeypatch, 20_000)
    for work in (
        lambda: finetune(model, contexts, [0.1], Recipe(steps=1), progress=started.append),
        lambda: step_zero.velocity(model, contexts),
        lambda: step_zero.sharpness(model, contexts),
        lambda: predict_critical_rates(Store(tmp_path), model, contexts, Recipe(steps=1)),
    ):
        with pytest.raises(ParameterError, match="GiB beside the model"):
            work()
    assert not started and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("optimizer, moments", [("sgd", 2), ("adam", 3)])
def test_replicas_advance_together_as_memory_allows(monkeypatch, optimizer, moments):
    model = tiny.model("GPT2", "float32")
    contexts, recipe = tiny.contexts(model), Recipe(optimizer=optimizer, steps=1)
    shared, each = memory.of_replicas(model.module, model.module.parameters(), recipe, tokens=7)
    assert each > moments * 4 * model.n_parameters
    with_memory(monkeypatch, 20 * GIB)
    assert chunk_size(model, contexts, recipe) == 64
    with_memory(monkeypatch, (shared + 5.5 * each) / memory.USABLE)
    assert chunk_size(model, contexts, recipe) == 5
    with pytest.raises(ParameterError, match="a smaller chunk"):
        chunk_size(model, contexts, recipe, wanted=6)
