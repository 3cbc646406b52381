"""The one place that asks where a computation runs: device, transforms, compiling."""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from typing import Protocol, cast

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeight
from softmax_torch.ops import cpu

__all__ = [
    "Kernels",
    "autocast",
    "final",
    "input_budget",
    "kernels",
    "logits_budget",
    "plain",
    "scaled_",
    "traced",
    "values_at_hand",
]


class Kernels(Protocol):
    """What a backend offers; ``maths`` says what each function computes."""

    def row_values(
        self, z: Tensor, y: Tensor | None, u: Tensor | None, lse: bool = False
    ) -> RowValues: ...

    def row_vjp(
        self,
        z: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        g_nll: Tensor | None,
        g_smooth: Tensor | None,
        g_lse: Tensor | None,
        dz: Tensor | None = None,
    ) -> Tensor: ...

    def weighted_total(
        self,
        z: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        a: RowWeight,
        b: RowWeight,
        c: RowWeight,
        dz: Tensor | None = None,
    ) -> Tensor: ...


class GPUKernels(Kernels, Protocol):
    """What that of a GPU offers besides."""

    def scale_(self, x: Tensor, factor: Tensor) -> Tensor: ...


def kernels(z: Tensor) -> Kernels:
    """The kernels for logits z: blocked ones on a CPU, Triton's on a GPU, else the formulas."""
    if z.device.type == "cpu":
        return cpu
    if z.device.type == "cuda":
        return _gpu() or maths
    return maths


@functools.cache
def _gpu() -> GPUKernels | None:
    """The kernels of a GPU, imported when the first is asked for; None without Triton."""
    try:
        return cast(GPUKernels, importlib.import_module("softmax_torch.ops.gpu"))
    except ModuleNotFoundError as missing:
        if (missing.name or "").split(".")[0] != "triton":
            raise
        warnings.warn(
            "triton is not installed: cross-entropy on a GPU is computed by torch's own operations,"
            " which read and write the logits several times",
            stacklevel=2,
        )
        return None


def traced() -> bool:
    """Whether something looks into every operation, so that only plain torch will do.

    That is torch.compile and torch.export, and forward-mode AD. An autograd Function could have a
    jvp, but torch runs it with forward AD switched off: the jvp of a jvp through it loses its
    second tangent without a word (``jacfwd(jacfwd(f))``, torch 2.15).

    A dispatch mode looks into every operation too, that of fake tensors, which have no values.
    """
    return (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
    )


def plain() -> bool:
    """Whether this is plain eager code: nothing traced, and no torch.func transform.

    A kernel writes into plain memory, where batches and tangents would be lost: elsewhere only the
    autograd rule that knows how to fold a batch, or the formulas, may run.
    """
    return not (torch._C._are_functorch_transforms_active() or traced())


def final(*gradients: Tensor | None) -> bool:
    """Whether a backward pass is handed plain numbers and nobody differentiates what it returns.

    ``torch.autograd.grad(..., is_grads_batched=True)`` hides a batch in its gradients.
    """
    if torch.is_grad_enabled() or not plain():
        return False
    for g in gradients:  # noqa: SIM110 a generator would cost 1 us of some 100 a step
        if g is not None and is_legacy_batchedtensor(g):
            return False
    return True


def scaled_(gradient: Tensor, scale: Tensor) -> Tensor:
    """gradient times the 0-dimensional scale, in place; a scale of 1 costs nothing.

    A GPU looks at the scale itself, so that nobody waits for it.
    """
    if scale.device.type == "cpu" and scale.item() == 1:
        return gradient
    if gradient.device.type == "cuda" and scale.device == gradient.device:
        gpu = _gpu()
        if gpu is not None:
            return gpu.scale_(gradient, scale)
    return gradient.mul_(scale)


def autocast(x: Tensor) -> bool:
    """Whether autocast is on for the device of x; the meta device has none."""
    # ``torch.amp.is_autocast_available`` would say so, and break the graph of a compiler in 2.11.
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def values_at_hand(x: Tensor) -> bool:
    """Whether looking at the values of x waits for no device and breaks no trace or batch."""
    return x.device.type == "cpu" and plain()


def logits_budget(x: Tensor) -> int:
    """Bytes of logits that a blocked linear layer with input x may hold at a time.

    32 MiB on a CPU: at (N, D, C) = (2048, 512, 32000) blocks of 16, 32 and 64 MiB take 1390, 1260
    and 1190 ms, and two of 32 MiB are all that it holds beyond the gradients. 1 GiB on a GPU, where
    the 4096 x 128256 bfloat16 logits of a large head are one block, whose weight gradient needs no
    float32 sum, twice the size of the weight.
    """
    return (32 if x.device.type == "cpu" else 1024) << 20


def input_budget(x: Tensor) -> int:
    """Bytes of its input that a blocked linear layer takes at a time.

    12 MiB on a CPU, so that the product for the gradient finds in cache what the product for the
    logits has read: at (60000, 784, 10) blocks of 6, 12 and 50 MiB and the whole take 42, 41, 48
    and 52 ms. A GPU is not kept waiting by its memory there.
    """
    return 12 << 20 if x.device.type == "cpu" else sys.maxsize
