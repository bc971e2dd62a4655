"""Notebook kernels that need not import torch: the standard library's fork server, which has imported it, forks each.

A kernel is told by the runner what it works for, not by an environment variable that anybody could set, and it ends when
the runner does. Jupyter finds :class:`Preloaded` by its entry point (``jupyter_client.kernel_provisioners``).
"""

import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from contextvars import ContextVar
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest.mock import patch

from jupyter_client.provisioning import KernelProvisionerFactory, LocalProvisioner

from phantombook.plan import Job

NAME = "phantom-preloaded"  # of the entry point
PRELOAD = [
    "phantombook.ends_with_parent",
    *("ipykernel.ipkernel", "ipykernel.kernelapp", "peft", "phantomlib.critical.blind", "phantomlib.transition.jumps"),
    *("phantombook.figures.style", "transformers.trainer"),
    *(f"transformers.models.auto.{name}_auto" for name in ("modeling", "tokenization")),
    *(f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "gpt_neox")),
]
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # whatever the user has set: figures belong on the page
    # ipywidgets is left out on purpose (see requirements.txt); tqdm would complain
    "PYTHONWARNINGS": ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"])),
    # glibc: keep memory that tensors gave back, but do not let that of really large ones lie in pieces
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
}
_ORDER: ContextVar[tuple[Job, Path, dict[str, str]]] = ContextVar("_ORDER")


class Kernel(ForkServerProcess):
    """A process with the methods of :class:`subprocess.Popen` that a provisioner calls."""

    stdin = stdout = stderr = None
    wait = ForkServerProcess.join

    def poll(self) -> int | None:
        return self.exitcode

    def send_signal(self, number: int) -> None:
        # Jupyter interrupts a kernel before it asks it to end, which an idle kernel would report as an error
        if self.pid and number != signal.SIGINT and self.is_alive():
            os.kill(self.pid, number)


class Preloaded(LocalProvisioner):
    """Starts a kernel by a fork; needs the fork server (:func:`start_server`) and an :func:`order`."""

    async def launch_kernel(self, cmd, **options):
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        kernel = Kernel(target=_serve, args=(arguments, dict(options["env"]), *_ORDER.get()))
        kernel.start()
        self.process, self.pid = kernel, kernel.pid  # type: ignore[assignment]
        return self.connection_info


def start_server() -> None:
    """Start the fork server unless it runs, and wait until it is ready; before any thread that reads the environment."""
    # Its socket lies in there; with a name of 32 characters the path may have 107.
    if len(tempfile.gettempdir()) > 75:
        with patch.object(tempfile, "tempdir", "/tmp"):
            util.get_temp_dir()
    with patch.dict(os.environ, SETTINGS):  # the packages and glibc read them when they start
        forkserver.set_forkserver_preload(PRELOAD)
        first = Kernel(target=int)  # a child that does nothing comes once all is imported
        first.start()
        first.join()


def order(job: Job, scratch: Path, further: dict[str, str]) -> None:
    """The next kernel of this thread is for ``job``, makes the folder ``scratch``, and has ``further`` environment variables."""
    KernelProvisionerFactory.instance().default_provisioner_name = NAME
    _ORDER.set((job, scratch, further))


def _serve(arguments: list[str], environment: dict[str, str], job: Job, scratch: Path, further: dict[str, str]) -> None:
    from ipykernel.kernelapp import IPKernelApp

    from phantombook import notebook

    os.setsid()  # Ctrl-C reaches only the runner, which ends its kernels
    scratch.mkdir()
    threading.Thread(target=_end_with_runner, args=(scratch,), daemon=True).start()
    os.environ.clear()
    os.environ.update(environment | SETTINGS | further)
    os.chdir(job.root)
    notebook.JOB, notebook.SCRATCH = job, scratch
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])  # else it prints advice


def _end_with_runner(scratch: Path) -> None:
    if runner := multiprocessing.parent_process():
        runner.join()
    shutil.rmtree(scratch.parent, ignore_errors=True)  # the runner's own; it was killed, and could not
    os._exit(1)
