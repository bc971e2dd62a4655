"""Sweeps on a Dask cluster: every chunk of replicas is a task for some worker.

A store that was handed :func:`runner` sends its chunks there, if the environment variable :data:`ENVIRONMENT` (set by
``phantom book --scheduler``) names a scheduler. Workers load the model themselves, by its reference. Only the process that
asked writes to the store; the chunks of a worker that dies go to others. Chunks are cut as they are without a cluster, so
the numbers are the same. Who can reach a scheduler can run code on its workers: see the page "On a cluster" for TLS.
"""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np

from phantomlib import files
from phantomlib.engine.finetune import ENGINE_VERSION, advance
from phantomlib.errors import BookError, ModelError, shown
from phantomlib.models import language_model

ENVIRONMENT = "PHANTOM_SCHEDULER"
TIMEOUT = 4  # seconds to find the scheduler
RETRIES = 3  # further attempts at a chunk whose worker raised; lost workers are counted by the scheduler itself


def runner() -> Callable | None:
    """:func:`run_there` if this process was told a scheduler, else None."""
    return run_there if os.environ.get(ENVIRONMENT) else None


def connect(address: str):
    """A new client of a scheduler, to be closed by whoever asked for it; BookError if nobody answers or has workers."""
    from distributed import Client

    worker = f"dask worker {address} --host 127.0.0.1 --nthreads 1"
    try:
        with ThreadPoolExecutor(1) as aside:  # a notebook's own event loop runs in this thread
            aside.submit(asyncio.run, _knock(address)).result()
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except Exception as error:  # whoever listens there may answer anything
        reason = " ".join(str(error).split())[:200] or "no answer in time"
        way_out = (
            f"Start 'dask scheduler --host 127.0.0.1' and '{worker}'; for several machines see the page 'On a cluster'."
        )
        raise BookError(f"No Dask scheduler answers at '{address}' ({reason}). {way_out}") from None
    if not client.scheduler_info(n_workers=-1)["workers"]:
        client.close()
        raise BookError(f"The scheduler at '{address}' has no workers. Start some: '{worker}'.")
    return client


async def _knock(address: str) -> None:
    """Say hello as Dask does; unlike a client, this gives up in time."""
    from distributed import Security
    from distributed.comm import connect as open_connection

    options = Security().get_connection_args("client")
    connection = await asyncio.wait_for(open_connection(address, timeout=TIMEOUT, **options), TIMEOUT)
    await connection.close()


def run_there(model, chunks, recipe, engine, extra, progress) -> list[dict[str, np.ndarray]]:
    """All chunks on the workers of the scheduler; BookError: none, or one chunk has cost several workers their lives."""
    from distributed import KilledWorker, as_completed

    which = {
        "ref": os.path.abspath(model.ref) if os.path.exists(model.ref) else model.ref,
        "dtype": str(model.readout.dtype).removeprefix("torch."),
        "device": str(model.device),
        "revision": model.revision or None,
    }
    asked = {**code_version(), "model": model.fingerprint}
    with connect(os.environ[ENVIRONMENT]) as client:
        futures = {
            client.submit(_advance_there, which, asked, chunk, recipe, engine, extra, pure=False, retries=RETRIES): i
            for i, chunk in enumerate(chunks)
        }  # fmt: skip
        parts: list = [None] * len(chunks)
        try:
            for future, part in as_completed(futures, loop=client.loop, with_results=True):
                parts[futures[future]] = part
                progress(len(chunks[futures[future]]) * recipe.steps)
        except KilledWorker as error:
            said = f"A chunk of {len(chunks[0])} replicas of '{model.name}' has cost {error.allowed_failures + 1} workers their lives"
            raise BookError(f"{said}. Give them more memory, or use a smaller model; finished runs are kept.") from None
        finally:  # after an error on a worker, or Ctrl-C, the rest is not wanted any more
            client.cancel(list(futures))
    return parts


@lru_cache(maxsize=1)  # what this process has loaded stays the same
def code_version() -> dict[str, str]:
    """The engine's version, and a hash over the text of all modules of this package: workers must have the same."""
    package = Path(__file__).parents[1]
    modules = {p.relative_to(package).as_posix(): files.file_digest(p) for p in package.rglob("*.py")}
    return {"engine": str(ENGINE_VERSION), "code": files.digest(modules)[:12]}


def _advance_there(which, asked, chunk, recipe, engine, extra):
    here = code_version()
    if not isinstance(asked, dict) or not here.items() <= asked.items():  # older code sends the fingerprint alone
        said = f"A worker runs other code than the process that asked: {here} there, {shown(asked)} here"
        raise BookError(f"{said}. Give all machines the same checkout, and start the workers again.")
    model = _load(**which)
    if model.fingerprint != asked["model"]:
        said = f"'{which['ref']}' on a worker is not the model that was asked for"
        raise ModelError(f"{said}. Give all machines the same folder and the same packages.")
    return advance(model, chunk, recipe, engine, extra, lambda done: None)


_load = lru_cache(maxsize=1)(language_model.load)
