"""Preprocessing of samples that are vectors already, such as features of a frozen backbone.

    x = scale * raw

Files are mapped into memory; only the rows that are used are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from softmax_torch.preprocessing.interface import Preprocessing
from softmax_torch.readers.tensor_files import read_inputs

__all__ = ["FeaturesPreprocessing"]


class FeaturesPreprocessing(Preprocessing):
    """Vectors of D numbers, multiplied by a constant.

    Args:
        in_features: D.
        class_names: one name for each class.
        scale: factor from raw numbers to the numbers that the model sees.
    """

    kind = "features"

    def __init__(self, in_features: int, class_names: Sequence[str], scale: float = 1.0) -> None:
        self.width, self.class_names, self.scale = in_features, tuple(class_names), scale

    @property
    def in_features(self) -> int:
        return self.width

    def tensor(self, raw: Any) -> Tensor:
        """Return an array or tensor of numbers (n, ...) as scaled floats of the same shape.

        Raises:
            ValueError: a sample does not have D numbers, or a row has NaN or infinity (the first
                such row is named).
        """
        x = torch.as_tensor(raw)
        if x.dim() < 2 or math.prod(x.shape[1:]) != self.width:
            raise ValueError(
                f"inputs: expected shape (n, {self.width}), or (n, ...) with {self.width} numbers "
                f"a sample, got {tuple(x.shape)}"
            )
        x = x.to(torch.get_default_dtype()) * self.scale
        finite = x.flatten(1).isfinite().all(1)
        if not finite.all():
            raise ValueError(
                "inputs: expected finite numbers, got NaN or infinity in row "
                f"{int((~finite).nonzero()[0])}"
            )
        return x

    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """Yield the rows of the array in a .npy file, or of x in a .pt or .safetensors file."""
        yield from self.read_rows(read_inputs(path), rows, path)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "in_features": self.width,
            "class_names": list(self.class_names),
            "scale": self.scale,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        return cls(state["in_features"], state["class_names"], state["scale"])
