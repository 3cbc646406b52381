"""Choose the kernels for a device.

A CPU has two backends, ``ops.native`` and ``ops.cpu``. The environment variable
SOFTMAX_TORCH_KERNELS chooses, and ``cpu_kernels`` within a program:

    auto    native kernels where their library was built and fits, else torch's (the default)
    native  native kernels; an error where there are none
    torch   kernels made of torch's operations; the library is not even looked for
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from softmax_torch import maths
from softmax_torch.ops import cpu, modes
from softmax_torch.ops.interfaces import CPUKernels, GPUKernels, Kernels, LayerKernels, Passes

__all__ = [
    "cpu_backend",
    "cpu_choice",
    "cpu_kernels",
    "index_kernels",
    "kernels",
    "layer_kernels",
    "passes",
    "scaled_",
    "values_readable",
]

CHECKS = os.environ.get("SOFTMAX_TORCH_CHECKS") == "1"
"""Whether values on a GPU are checked too: a class index out of range raises IndexError."""


def _checked(choice: str, name: str) -> str:
    if choice not in ("auto", "native", "torch"):
        raise ValueError(f"{name}: expected auto, native or torch, got {choice!r}")
    return choice


_choice = _checked(os.environ.get("SOFTMAX_TORCH_KERNELS") or "auto", "SOFTMAX_TORCH_KERNELS")


def kernels(z: Tensor) -> Kernels:
    """Return the kernels for logits z: of a CPU, ``ops.gpu``, or ``maths`` elsewhere.

    Raises:
        RuntimeError: if native kernels are chosen for a CPU and there are none.
    """
    if z.device.type == "cpu":
        return _cpu(_choice)
    if z.device.type == "cuda":
        return _gpu() or maths
    return maths


def cpu_choice() -> str:
    """Return which kernels a CPU is to have: "auto", "native" or "torch"."""
    return _choice


@contextlib.contextmanager
def cpu_kernels(choice: str) -> Iterator[None]:
    """Choose the kernels of a CPU within a ``with`` block, in all threads.

    Raises:
        ValueError: for a choice other than "auto", "native" and "torch".
        RuntimeError: for "native" if there are no native kernels.
    """
    global _choice
    before = _choice
    _cpu(_checked(choice, "cpu_kernels"))
    _choice = choice
    try:
        yield
    finally:
        _choice = before


def cpu_backend() -> CPUKernels:
    """Return the kernels that are chosen for a CPU: ``ops.native`` or ``ops.cpu``."""
    return _cpu(_choice)


@functools.cache
def _cpu(choice: str) -> CPUKernels:
    """Return the kernels of a choice; load the native ones on first use."""
    if choice == "torch":
        return cpu
    from softmax_torch.ops.native import library

    if library.load() is not None:
        return cast(CPUKernels, importlib.import_module("softmax_torch.ops.native"))
    if choice == "native":
        raise RuntimeError(f"SOFTMAX_TORCH_KERNELS=native: no native kernels: {library.reason()}")
    return cpu


def layer_kernels(x: Tensor, weight: Tensor) -> LayerKernels | None:
    """Return the kernels that compute a layer in one pass; None where matrix products do it."""
    if not x.is_cpu or not weight.is_cpu:
        return None
    native = _native_layer(_choice)
    return native if native is not None and native.applies(x, weight) else None


@functools.cache
def _native_layer(choice: str) -> LayerKernels | None:
    if _cpu(choice) is cpu:
        return None
    return cast(LayerKernels, importlib.import_module("softmax_torch.ops.native.linear"))


def passes(device: torch.device) -> Passes | None:
    """Return the native passes over samples; None where matrix products make them.

    Raises:
        RuntimeError: if native kernels are chosen for a CPU and there are none.
    """
    if device.type != "cpu" or _cpu(_choice) is cpu:
        return None
    return cast(Passes, importlib.import_module("softmax_torch.ops.native.passes"))


def index_kernels(z: Tensor) -> GPUKernels | None:
    """Return the kernels of a whole loss of class indices; None where there are none.

    None too where class indices have to be checked first; see ``values_readable``.
    """
    return None if CHECKS or not z.is_cuda else _gpu()


@functools.cache
def _gpu() -> GPUKernels | None:
    """Import the GPU kernels on first use, and try one; warn and return None if it fails.

    Triton needs a C compiler on first use, and may not know the device.
    """
    try:
        gpu = cast(GPUKernels, importlib.import_module("softmax_torch.ops.gpu"))
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] != "triton":
            raise
        reason = "triton is not installed"
    else:
        try:
            gpu.check()
        except Exception as error:  # Triton and its compiler raise errors of any type
            reason = f"Triton compiles no kernels here ({type(error).__name__}: {error})"
        else:
            return gpu
    warnings.warn(
        f"{reason}: cross-entropy on a GPU is computed by torch's own operations, which read and "
        "write the logits several times",
        stacklevel=2,
    )
    return None


def scaled_(scale: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Multiply gradients by the 0-dimensional scale, in place; a scale of 1 costs nothing.

    On a GPU a kernel reads the scale, so that the host need not wait for it.
    """
    if scale.is_cpu and scale.item() == 1:
        return gradients
    return tuple(None if g is None else _scaled_one_(g, scale) for g in gradients)


def _scaled_one_(gradient: Tensor, scale: Tensor) -> Tensor:
    if gradient.device.type == "cuda" and scale.device == gradient.device:
        gpu = _gpu()
        if gpu is not None:
            return gpu.scale_(gradient, scale)
    return gradient.mul_(scale)


def values_readable(x: Tensor) -> bool:
    """Return whether the values of x may be read, which breaks a trace or batch.

    Reading those on a GPU waits for it, and is done only where the user asks for checks.
    """
    return (x.is_cpu or CHECKS) and modes.plain()
