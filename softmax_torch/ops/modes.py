"""The mode that torch runs in: tracing, transforms, backward passes, autocast.

No other file of the package reads torch's private state.
"""

from __future__ import annotations

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

__all__ = [
    "autocast",
    "in_backward_pass",
    "last_backward",
    "plain",
    "plain_autocast",
    "traced",
    "unwrapped",
]


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


def autocast(x: Tensor) -> bool:
    """Return whether autocast is on for the device of x; the meta device has none."""
    # ``torch.amp.is_autocast_available`` would tell, but breaks the compiler's graph in torch 2.11.
    device = x.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def plain_autocast(x: Tensor) -> bool:
    """Return ``autocast(x)`` in code that is not traced, in a fifth of the time."""
    return _is_any_autocast_enabled() and autocast(x)
