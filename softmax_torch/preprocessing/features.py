"""Samples that are numbers already: vectors, such as the features of a frozen backbone.

    x = scale * raw

Arrays that lie on disk are mapped into memory, and read as far as they are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from softmax_torch.preprocessing.base import Preprocessing
from softmax_torch.preprocessing.tensor_files import read_inputs

__all__ = ["FeaturesPreprocessing"]


class FeaturesPreprocessing(Preprocessing):
    """Vectors of D numbers.

    Args:
        in_features: D.
        class_names: a name for each class.
        scale: factor that takes raw numbers to those the model sees.
    """

    kind = "features"

    def __init__(self, in_features: int, class_names: Sequence[str], scale: float = 1.0) -> None:
        self.width, self.class_names, self.scale = in_features, tuple(class_names), scale

    @property
    def in_features(self) -> int:
        """D, the numbers of a sample."""
        return self.width

    def tensor(self, raw: Any) -> Tensor:
        """Numbers (n, ...), an array or a tensor, as floats of the same shape.

        Raises:
            ValueError: other sizes than the model has, or NaN or infinity (the first bad row).
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
        """The rows of an array in a .npy file, or of x in a .pt or .safetensors file.

        It is mapped into memory and never read as a whole.
        """
        raw = read_inputs(path)
        for first in range(0, len(raw), rows):
            part = raw[first : first + rows]
            names = [str(row) for row in range(first, first + len(part))]
            try:
                yield names, self.tensor(part)
            except ValueError as error:
                raise ValueError(f"{path}, rows from {first}: {error}") from None

    def state_dict(self) -> dict[str, Any]:
        """What it takes to make it again."""
        return {
            "kind": self.kind,
            "in_features": self.width,
            "class_names": list(self.class_names),
            "scale": self.scale,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The one that was saved."""
        return cls(state["in_features"], state["class_names"], state["scale"])
