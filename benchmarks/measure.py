"""Timing: contenders in turn, medians, and what the machine can do at best."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from phantomlib.runs.store import commit

PACKAGES = ("torch", "transformers", "peft", "numpy")


def in_turn(contenders: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender, ``repeats`` times, one after the other in every round.

    A machine that is slow for a while is then slow for all. One round before goes uncounted, to warm up.
    """
    seconds = {name: [] for name in contenders}
    for round_ in range(repeats + 1):
        for name, function in contenders.items():
            wait_for_device()
            started = time.perf_counter()
            function()
            wait_for_device()
            if round_:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def wait_for_device() -> None:
    """Until a GPU, if there is one, has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def middle(values: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)


def ratio(ours: list[float], others: list[float]) -> tuple[float, float, float]:
    """Median, least and greatest of how many times longer the others took, round by round."""
    return middle([b / a for a, b in zip(ours, others, strict=True)])


def machine(device: torch.device) -> dict:
    """What the figures were measured on."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        hardware = {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        hardware = {"device": _processor(), "memory_gib": round(memory / 2**30, 1)}
    return hardware | {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "commit": commit(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def peak(device: torch.device, seconds: float = 1.0) -> dict[str, float]:
    """Measured best of the machine with this number of threads: FLOP/s of a large product, bytes/s of a large addition."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    x, y = (torch.randn(2**26, device=device) for _ in range(2))  # 256 MiB each, beyond any cache
    flops = 2 * size**3 / _best(lambda: a @ b, seconds)
    traffic = 3 * x.numel() * x.element_size() / _best(lambda: torch.add(x, y, out=x), seconds)
    return {"flops": flops, "bytes": traffic}


def _best(function: Callable, seconds: float) -> float:
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 3:
        wait_for_device()
        started = time.perf_counter()
        function()
        wait_for_device()
        times.append(time.perf_counter() - started)
    return min(times)
