"""Choose the kernels for a device, and query the mode that torch runs in.

A CPU has two backends, ``ops.native`` and ``ops.cpu``. The environment variable
SOFTMAX_TORCH_KERNELS chooses, and ``cpu_kernels`` within a program:

    auto    native kernels where their library was built and fits, else torch's (the default)
    native  native kernels; an error where there are none
    torch   kernels made of torch's operations; the library is not even looked for

No other file of the package reads torch's private state.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _current_graph_task_id,
    _is_any_autocast_enabled,
    _len_torch_dispatch_stack,
)
from torch._C._functorch import (
    get_unwrapped,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
)
from torch.autograd import forward_ad
from torch.compiler import is_compiling

from softmax_torch import maths
from softmax_torch.maths import RowStatistics, RowValues, RowWeights, Target
from softmax_torch.ops import cpu
from softmax_torch.ops.index_loss import IndexLoss
from softmax_torch.ops.sample_rows import CsrRows, SampleRows

__all__ = [
    "CPUKernels",
    "Kernels",
    "LayerKernels",
    "Passes",
    "autocast",
    "cpu_backend",
    "cpu_choice",
    "cpu_kernels",
    "in_backward_pass",
    "index_kernels",
    "input_budget",
    "kernels",
    "last_backward",
    "layer_kernels",
    "logits_budget",
    "passes",
    "plain",
    "plain_autocast",
    "scaled_",
    "traced",
    "unwrapped",
    "values_readable",
]


class Kernels(Protocol):
    """The functions of a backend; the functions of the same names in ``maths`` define them.

    A backend is a module: ``ops.native``, ``ops.cpu``, ``ops.gpu``, or ``maths`` itself.
    """

    __name__: str

    def row_values(self, z: Tensor, target: Target, lse: bool = False) -> RowValues: ...

    def row_vjp(
        self, z: Tensor, target: Target, g: RowValues, dz: Tensor | None = None
    ) -> Tensor: ...

    def weighted_total(
        self, z: Tensor, target: Target, weights: RowWeights, dz: Tensor | None = None
    ) -> Tensor: ...

    def row_statistics(self, z: Tensor, y: Tensor | None = None) -> RowStatistics: ...


class CPUKernels(Kernels, Protocol):
    """The functions of the CPU backends, besides those of ``Kernels``; ``ops.cpu`` says more."""

    def mean_nll(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]: ...

    def gather_bytes(self, x: Tensor, rows: Tensor, scale: float) -> Tensor: ...


class Passes(Protocol):
    """The functions of ``ops.native.passes``, which documents them."""

    def logits(self, x: SampleRows, theta: Tensor, bias: bool, squared: bool = False) -> Tensor: ...

    def transposed(self, x: SampleRows, r: Tensor, bias: bool, squared: bool = False) -> Tensor: ...

    def loss_and_gradient(
        self,
        x: SampleRows,
        theta: Tensor,
        y: Tensor,
        weight: Tensor | None,
        classes: int,
        bias: bool,
    ) -> tuple[Tensor, Tensor]: ...

    def hessian_product(
        self, x: SampleRows, v: Tensor, p: Tensor, weight: Tensor | None, bias: bool
    ) -> Tensor: ...

    def csr_of_dense(self, x: Tensor) -> CsrRows: ...


class GPUKernels(Kernels, Protocol):
    """The functions of the GPU backend, besides those of ``Kernels``; ``ops.gpu`` says more."""

    def check(self) -> None: ...

    def index_loss(
        self, z: Tensor, y: Tensor, loss: IndexLoss, dz: Tensor | None = None
    ) -> Tensor: ...

    def scale_(self, x: Tensor, factor: Tensor) -> Tensor: ...


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


class LayerKernels(Protocol):
    """The functions that compute a linear layer and its loss in one pass: ``ops.native.linear``."""

    def applies(self, x: Tensor, weight: Tensor) -> bool: ...

    def mean_nll(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        dweight: Tensor | None = None,
        dbias: Tensor | None = None,
        dx: Tensor | None = None,
        z: Tensor | None = None,
    ) -> Tensor: ...

    def total_and_gradients(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Target,
        weights: RowWeights,
        needed: tuple[bool, ...],
        z: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]: ...


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


def traced() -> bool:
    """Return whether every operation must be plain torch: the call is traced or carries tangents.

    True under torch.compile, torch.export and forward-mode AD. An autograd Function could have a
    jvp, but torch runs it with forward AD switched off: the jvp of a jvp through it silently loses
    its second tangent (``jacfwd(jacfwd(f))``, torch 2.15).

    True under a dispatch mode too: fake tensors, for example, have no values.
    """
    return is_compiling() or forward_ad._current_level >= 0 or _len_torch_dispatch_stack() > 0


def in_backward_pass() -> bool:
    """Return whether this code runs within a backward pass, in whatever thread."""
    return _current_graph_task_id() != -1


def plain() -> bool:
    """Return whether this is plain eager code: not ``traced``, and no torch.func transform.

    A kernel writes into plain memory and would lose batches and tangents. In other code only the
    autograd rule with a vmap, or the formulas, may run.
    """
    return not (_are_functorch_transforms_active() or traced())


def unwrapped(values: tuple[object, ...]) -> tuple[object, ...]:
    """Return the values with the tensors that a torch.func transform hides in others."""
    if is_compiling() or not _are_functorch_transforms_active():
        return values
    return tuple(_unwrapped(value) for value in values)


def _unwrapped(value: object) -> object:
    while isinstance(value, Tensor) and is_functorch_wrapped_tensor(value):
        value = get_unwrapped(value)
    return value


def last_backward(*gradients: Tensor | None) -> bool:
    """Return whether a backward pass may use kernels: nothing differentiates or batches its result.

    ``torch.autograd.grad(..., is_grads_batched=True)`` hides a batch in the gradients.
    """
    if torch.is_grad_enabled() or not plain():
        return False
    for g in gradients:  # noqa: SIM110 a generator would cost 1 us of some 100 a step
        if g is not None and is_legacy_batchedtensor(g):
            return False
    return True


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


def autocast(x: Tensor) -> bool:
    """Return whether autocast is on for the device of x; the meta device has none."""
    # ``torch.amp.is_autocast_available`` would tell, but breaks the compiler's graph in torch 2.11.
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def plain_autocast(x: Tensor) -> bool:
    """Return ``autocast(x)`` in code that is not traced, in a fifth of the time."""
    return _is_any_autocast_enabled() and autocast(x)


def values_readable(x: Tensor) -> bool:
    """Return whether the values of x may be read, which breaks a trace or batch.

    Reading those on a GPU waits for it, and is done only where the user asks for checks.
    """
    return (x.is_cpu or CHECKS) and plain()


def logits_budget(x: Tensor) -> int:
    """Return the bytes of logits that a linear layer with input x may hold at a time.

    32 MiB on a CPU: at (N, D, C) = (2048, 512, 32000) blocks of 16, 32 and 64 MiB take 1390, 1260
    and 1190 ms, and two blocks of 32 MiB are all it holds beyond the gradients.

    1 GiB on a GPU: the 4096 x 128256 bfloat16 logits of a large head are one block, whose dW is
    written once. Each of several blocks reads and writes a float32 dW, 8 C D bytes. By the data
    sheet of an H200 (4.8e12 bytes and 989e12 operations a second) that is 275 / n of the time of
    its products, 6 n C D operations for n rows: 7% for 4096 rows, 27% for 1024.
    """
    return (32 if x.device.type == "cpu" else 1024) << 20


def input_budget(x: Tensor) -> int:
    """Return the bytes of its input x that a linear layer reads at a time.

    12 MiB on a CPU: the product for the gradient then finds in cache the input that the product for
    the logits has read. At (60000, 784, 10) blocks of 6, 12 and 50 MiB and the whole input take 42,
    41, 48 and 52 ms. A GPU has no such limit: its memory is fast enough.
    """
    return 12 << 20 if x.device.type == "cpu" else sys.maxsize
