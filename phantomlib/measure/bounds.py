"""What a run would cost, by arithmetic, before it starts."""

import psutil

from phantomlib.errors import ParameterError
from phantomlib.measure.recorder import RECORDED

COPIES = 3  # of what is recorded: as written, as labelled, as written to a file
LONGEST = 24 * 3600  # seconds that a check may take


def check_memory(replicas: int, steps: int, itemsize: int, extra: int = 0) -> None:
    """Refuse runs whose recordings would not fit the free memory of this machine.

    Args:
        replicas: contexts × learning rates × seeds.
        steps: T of each.
        itemsize: bytes of a recorded number.
        extra: quantities recorded besides ``RECORDED``.

    Raises:
        ParameterError: naming what would be needed and what is there.
    """
    needed = COPIES * replicas * (steps + 1) * (len(RECORDED) + extra) * itemsize
    free = psutil.virtual_memory().available
    if needed > free:
        raise ParameterError(
            f"{replicas:,} runs of {steps:,} steps would record {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB of memory "
            "are free. Ask for fewer steps, or for fewer learning rates at a time."
        )


def check_time(seconds_per_step: float, steps: int, runs: int) -> None:
    """Refuse runs that would take more than a day, at the pace that was measured.

    Raises:
        ParameterError: naming how long it would take.
    """
    needed = seconds_per_step * steps * runs
    if needed > LONGEST:
        raise ParameterError(
            f"About {runs} runs of {steps:,} steps would take {needed / 86400:,.0f} days at {1000 * seconds_per_step:.3g} ms "
            "a step. Ask for fewer steps; only learning rate times steps matters, so a larger learning rate does as much."
        )
