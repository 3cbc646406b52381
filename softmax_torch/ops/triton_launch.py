"""Launch a Triton kernel, in half of Triton's own time where a like launch came before.

Triton binds, classifies and hashes all arguments at every launch: 16 us on the host for 19 of them,
of which the launch itself takes 2. It chooses the compiled kernel by what is compared here at once:
numbers and constants by value, tensors by dtype and by whether their address is a multiple of 16
bytes. Hooks into Triton's launches see the first of its like alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver
from triton.runtime.jit import JITFunction

__all__ = ["launch"]

MOST = 4096
"""Launches that are remembered. Sizes that are new in every step would fill the memory."""

_compiled: dict[tuple[Any, ...], tuple[Any, ...]] = {}


def launch(
    kernel: Any,
    programs: int,
    tensors: tuple[Tensor | None, ...],
    others: tuple[Any, ...],
    warps: int = 4,
) -> None:
    """Launch ``programs`` programs of a kernel on the device of its tensors.

    Args:
        kernel: a Triton kernel, whose first parameters are tensors.
        programs: size of the grid.
        tensors: its tensors, all on one device; None for one that is left out, but not the first.
        others: its other arguments: numbers and constants. In one place there may not be a bool in
            one launch and an int or a float in another, which compare as equal.
        warps: of a program.
    """
    if not isinstance(kernel, JITFunction):  # the interpreter
        kernel[(programs,)](*tensors, *others, num_warps=warps)
        return
    assert tensors[0] is not None
    device = tensors[0].get_device()
    if device != torch.cuda.current_device():
        with torch.cuda.device(device):
            launch(kernel, programs, tensors, others, warps)
        return
    kinds = [None if t is None else (t.dtype, t.data_ptr() % 16) for t in tensors]
    like = (id(kernel), warps, device, others, *kinds)
    found = _compiled.get(like)
    if found is None:
        if len(_compiled) >= MOST:
            _compiled.clear()
        compiled = kernel[(programs,)](*tensors, *others, num_warps=warps)
        stream_of = driver.active.get_current_stream
        _compiled[like] = compiled.run, compiled.function, compiled.packed_metadata, stream_of
        return
    run, function, metadata, stream_of = found
    stream = stream_of(device)
    run(programs, 1, 1, stream, function, metadata, None, None, None, *tensors, *others)
