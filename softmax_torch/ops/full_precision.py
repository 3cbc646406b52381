"""Matrix products in float32 proper, whatever the user allows for the rest of a program.

``torch.set_float32_matmul_precision("high")`` lets a GPU round the factors of float32 products to
TF32, of 11 bits, and "medium" lets some CPUs round them to bfloat16; autocast lowers products to
half precision. Training hardly notices. A solver does: its passes would end at a relative gradient
of 1e-3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["full_precision"]

BACKENDS = (
    torch.backends.cuda.matmul,
    torch.backends.mkldnn.matmul,  # type: ignore[attr-defined] # by an object in its place
)


@contextlib.contextmanager
def full_precision(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Within a ``with`` block, make float32 products on this device without rounding the factors.

    The settings belong to the process: products of other threads are unrounded for the time too.
    Products in other dtypes are never rounded, and nothing is done for them.
    """
    if dtype != torch.float32:
        yield
        return
    before = [backend.fp32_precision for backend in BACKENDS]
    try:
        for backend in BACKENDS:
            backend.fp32_precision = "ieee"
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = precision
