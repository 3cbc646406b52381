"""Show the versions in use and the kernels that each device gets, for bug reports.

``loss.route.route_of`` shows how a single call is computed.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from softmax_torch.ops import backends

__all__ = ["show_config"]


def show_config() -> None:
    """Print the versions of the package, torch and Python, and the kernels of each device."""
    from softmax_torch import __version__

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        cuda = f"{_kernel_name('cuda')} on {name}, Triton {_version('triton')}"
    else:
        cuda = f"no device that this torch (CUDA {torch.version.cuda}) can use"
    lines = (
        f"softmax_torch {__version__}, torch {torch.__version__}, Python {sys.version.split()[0]}",
        f"platform: {platform.platform()}, {torch.get_num_threads()} threads",
        f"cpu: {_kernel_name('cpu')}",
        f"cuda: {cuda}",
        f"other devices: {_kernel_name('meta')}",
        "traced code and forward-mode AD: softmax_torch.maths",
    )
    print("\n".join(lines))  # noqa: T201 to print is its purpose


def _kernel_name(device: str) -> str:
    """Return the name of the kernels that logits on this device get."""
    return backends.kernels(torch.empty(0, device=device)).__name__


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
