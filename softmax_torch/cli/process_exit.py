"""End processes in order: after a signal, children with their parent, a gloo group before Python.

Nothing here imports torch before it is needed, so that the handlers of signals come first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

__all__ = ["end_on_signals", "end_with_parent", "leave_group"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)

PARENT, PR_SET_PDEATHSIG = "SOFTMAX_TORCH_PARENT", 1
"""Environment variable with the id of the parent process; an option from <linux/prctl.h>."""


def end_on_signals() -> None:
    """End the program on SIGTERM with status 143 and on SIGINT with 130, at any time.

    Without handlers, SIGINT prints a traceback, and Lightning exits with status 0 or 1. While a run
    can be resumed, ``training.run_checkpoint`` writes a checkpoint first.
    """
    for signum in SIGNALS:
        signal.signal(signum, end)


def end(signum: int, frame: FrameType | None) -> None:
    """Print which signal ends the program, in the first of several processes, and exit."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        # Not print: the signal may come while the program prints.
        os.write(2, f"stopped by {signal.Signals(signum).name}\n".encode())
    sys.exit(128 + signum)


def end_with_parent() -> None:
    """Make the processes that Lightning starts for other devices end with this one (Linux only).

    If the first process is killed, the others would wait for it: for the rendezvous half an hour,
    in a collective of NCCL ten minutes, with the memory of their GPUs.
    """
    if os.environ.get(PARENT) == str(os.getppid()):
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ[PARENT] = str(os.getpid())


def leave_group() -> None:
    """End this process at once with status 0 if it belongs to a group of processes.

    Lightning leaves gloo groups alive. While Python shuts down, one of their threads may abort the
    process after all work is done (https://github.com/pytorch/pytorch/issues/190489).
    """
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
