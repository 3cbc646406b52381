"""Refuse weights that are NaN or infinite, which would predict NaN without a word."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["check_finite"]


def check_finite(
    state_dict: Mapping[str, Tensor], parameters: Collection[str], path: str | Path
) -> None:
    """Raise ValueError if a parameter is NaN or infinite, or another tensor has a NaN.

    Buffers of a net may be infinite, such as the mask of an attention.

    Args:
        state_dict: tensors by name.
        parameters: the names of those that are parameters.
        path: the file with these tensors, for the message.
    """
    for name, tensor in state_dict.items():
        if not tensor.is_floating_point():
            continue
        bad = ~tensor.isfinite() if name in parameters else tensor.isnan()
        if bad.any():
            at = torch.nonzero(bad)[0].tolist()
            value = float(tensor[tuple(at)])
            raise ValueError(
                f"{path}: expected finite weights, got {value} in {name}{at if at else ''} "
                f"({int(bad.sum())} of {bad.numel()} values)"
            )
