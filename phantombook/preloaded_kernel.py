"""Notebook kernels that need not import torch: they are forked from a process that has.

Importing torch, transformers and the plotting packages takes longer than many a notebook runs. A book's workers import
them once, in the standard library's fork server, a process that does nothing else, and fork from it one kernel for each
notebook. Jupyter finds :class:`Preloaded` by its entry point (``jupyter_client.kernel_provisioners``).
"""

import multiprocessing
import os
import threading
from multiprocessing.context import ForkServerProcess

from jupyter_client.provisioning import LocalProvisioner

NAME = "phantom-preloaded"  # of the entry point
PRELOAD = [
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "peft",
    "phantomlib.critical.blind",
    "phantombook.figures.style",
    "phantomlib.transition.jumps",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.gpt_neox.modeling_gpt_neox",
    "transformers.trainer",
]


class _Kernel(ForkServerProcess):
    """A process with the methods of :class:`subprocess.Popen` that a provisioner calls."""

    stdin = stdout = stderr = None

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self) -> int | None:
        self.join()
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.pid:
            os.kill(self.pid, number)


class Preloaded(LocalProvisioner):
    """Starts a kernel by a fork."""

    async def launch_kernel(self, cmd, **options):
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        arguments = cmd[cmd.index("ipykernel_launcher") + 1 :]
        kernel = _Kernel(target=_serve, args=(arguments, dict(options["env"]), options.get("cwd") or os.getcwd()))
        kernel.start()
        self.process, self.pid = kernel, kernel.pid  # type: ignore[assignment]
        return self.connection_info


def _serve(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    from ipykernel.kernelapp import IPKernelApp

    threading.Thread(target=_end_with_caller, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])  # else it prints advice


def _end_with_caller() -> None:
    if caller := multiprocessing.parent_process():
        caller.join()
    os._exit(1)
