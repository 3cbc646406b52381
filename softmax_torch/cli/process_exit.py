"""End processes in order: children with their parent, and a gloo group before Python."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress

import torch.distributed as dist

__all__ = ["end_with_parent", "leave_group"]

PARENT, PR_SET_PDEATHSIG = "SOFTMAX_TORCH_PARENT", 1
"""Environment variable with the id of the parent process; an option from <linux/prctl.h>."""


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
    if not (dist.is_available() and dist.is_initialized()):
        return
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
