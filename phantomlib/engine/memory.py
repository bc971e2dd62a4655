"""What a piece of work takes of the memory, what is free for it, and a refusal before it starts.

Everything is counted in bytes beyond what the model itself takes, which is there already.
"""

import gc
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor

from phantomlib.engine.recipe import Recipe
from phantomlib.engine.recorder import READ_AT_ONCE_ON_DEVICE
from phantomlib.errors import ParameterError
from phantomlib.models.language_model import CausalLM
from phantomlib.progress import jobs

CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CGROUP_FILES = {  # of version 2 and version 1: the limit, what is used, and what of this is cached files, to be dropped
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
MUCH = 2**30  # bytes; before work that needs more, what earlier work left behind is given back
USABLE = 0.9  # share of what is free that is counted on: allocators leave gaps


def free(device: torch.device) -> int:
    """Bytes that this process may still take: what is unused, and no more than its share among the jobs of a book."""
    if device.type == "cuda":
        unused, total = torch.cuda.mem_get_info(device)
        own = torch.cuda.memory_allocated(device)
        unused += torch.cuda.memory_reserved(device) - own
    else:
        machine, (unused, total) = psutil.virtual_memory(), _left_by_cgroups()
        unused, total = min(machine.available, unused), min(machine.total, total)
        own = psutil.Process().memory_info().rss
    return max(0, int(USABLE * min(unused, total // jobs() - own)))


def _left_by_cgroups() -> tuple[int, int]:
    """Bytes that the control groups of this process, such as a container's, leave unused and give in all."""
    unused = total = sys.maxsize
    for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.exists() else ():
        _, controllers, path = line.split(":", 2)
        for controller in CGROUP_FILES.keys() & controllers.split(","):
            most, used, droppable = CGROUP_FILES[controller]
            top = CGROUPS / controller
            own = top / path.lstrip("/")  # in a container perhaps the machine's path: then only its parents exist
            for group in (group for group in (own, *own.parents) if group.is_relative_to(top)):
                with suppress(OSError, ValueError):  # no such group, or "max": no limit
                    limit = int((group / most).read_text())
                    statistics = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                    taken = int((group / used).read_text()) - int(statistics.get(droppable, 0))
                    unused, total = min(unused, limit - taken), min(total, limit)
    return unused, total


def peak(device: torch.device) -> int:
    """Most bytes that this process has held so far; on a GPU, that it has held there since its peak was reset."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # what getrusage says counts the process too that started this one
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def of_vectors(count: int, trained: Iterable[Tensor]) -> int:
    """Of ``count`` vectors of parameter space, and a gradient of the largest tensor that is summed from two parts."""
    sizes = [p.nbytes for p in trained]
    return count * sum(sizes) + 2 * max(sizes)


def of_replicas(module: CausalLM, trained: Iterable[Tensor], recipe: Recipe, tokens: int) -> tuple[int, int]:
    """Of the engine, with prompts of up to ``tokens``: what does not depend on the number of replicas, and what each takes."""
    trained = list(trained)
    readout = module.get_output_embeddings().weight
    frozen = not any(p is readout for p in trained)  # then what it was before is kept beside it
    moments = 0 if recipe.optimizer == "sgd" else 2
    # weights, and the moments or, in the self-test before there are moments, a gradient
    state = (1 + max(1, moments)) * sum(p.nbytes for p in trained)
    layers = [m.weight for m in module.modules() if getattr(m, "weight", None) is not None]
    activations = 2 * tokens * sum(sum(w.shape) for w in layers if w.dim() == 2 and len(w) != len(readout))
    vocabulary = 14 * len(readout)  # logits, probabilities, overlaps, places on the axis, and those of the step before
    each = state + (activations + vocabulary) * readout.element_size()
    shared = of_vectors(1, trained) + readout.nbytes * frozen
    if readout.device.type != "cpu":  # whole tensors at a time there: a gradient and what a step of Adam makes of it
        each += moments * max(p.nbytes for p in trained)
        shared += 3 * READ_AT_ONCE_ON_DEVICE * readout.element_size()
    return shared, each


def give_back() -> None:
    """Free what only cycles refer to, and give the system back what the allocator keeps of earlier work."""
    gc.collect()
    # glibc keeps freed tensors below 32 MB wherever something above them is still in use: gigabytes, after runs of a model
    # with a hundred million parameters
    if hasattr(psutil, "heap_trim"):
        psutil.heap_trim()


def refuse_if_too_large(what: str, needed: int, device: torch.device, advice: str = "") -> None:
    """Raise ParameterError if ``needed`` bytes are not free; ``advice`` is what else could be tried."""
    if needed > MUCH:
        give_back()
    if needed <= (here := free(device)):
        return
    several = jobs() > 1
    ways = ["--jobs 1"] * several + [advice] * bool(advice) + ["a smaller model"]
    needs, has = (f"{gib:.2g}" if gib < 10 else f"{gib:.0f}" for gib in (needed / 2**30, here / 2**30))
    each = f" for each of {jobs()} processes" * several
    said = f"{what} needs about {needs} GiB beside the model, {has} are free{each}"
    raise ParameterError(f"{said}: use {', '.join(ways)} or a machine with more memory.")
