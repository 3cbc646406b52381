"""Show the versions in use and the kernels that each device gets, for bug reports.

``loss.route.route_of`` shows how a single call is computed.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from softmax_torch.ops import backends

__all__ = ["show_config"]


def show_config() -> None:
    """Print versions, the kernels of each device, their instruction set and their threads.

    ``python -m softmax_torch info`` prints the same.
    """
    from softmax_torch import __version__

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        cuda = f"{_kernel_name('cuda')} on {name}, Triton {_version('triton')}"
    else:
        cuda = f"no device that this torch (CUDA {torch.version.cuda}) can use"
    threads = torch.get_num_threads()
    lines = (
        f"softmax_torch {__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}",
        f"platform: {platform.platform()}, {threads} thread{'s' * (threads > 1)}",
        *_cpu_lines(),
        f"cuda: {cuda}",
        f"other devices: {_kernel_name('meta')}",
        "traced code and forward-mode AD: softmax_torch.maths",
    )
    print("\n".join(lines))  # noqa: T201 to print is its purpose


def _cpu_lines() -> list[str]:
    """Return the kernels of the CPU, and what the native ones run on or why they do not run."""
    from softmax_torch.ops.native import library

    try:
        lines = [f"cpu: {_kernel_name('cpu')}"]
    except RuntimeError as error:
        return [f"cpu: none: {error}"]
    if backends.cpu_choice() == "torch":
        return [*lines, "native kernels: switched off by SOFTMAX_TORCH_KERNELS or cpu_kernels"]
    found = library.load()
    if found is None:
        return [*lines, f"native kernels: {library.reason()}"]
    threads = (
        f"torch's, of {library.pool(found)}"
        if found.parallel is not None
        else "the calling one alone, for this torch exports no GOMP_parallel"
    )
    return [
        *lines,
        f"native kernels: {found.isa} (available: {', '.join(found.isas)})",
        f"native threads: {threads}",
        f"transparent huge pages: {_huge_pages()}",
    ]


def _huge_pages() -> str:
    """Return when the kernel gives memory in huge pages: "always", "madvise" or "never"."""
    try:
        said = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return "unknown"
    return said.partition("[")[2].partition("]")[0]


def _kernel_name(device: str) -> str:
    """Return the name of the kernels that logits on this device get."""
    return backends.kernels(torch.empty(0, device=device)).__name__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
