"""The interface that all preprocessings have, and the comparison of two states."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

from softmax_torch.preprocessing.standardization import Standardization

__all__ = ["Preprocessing", "same"]


class Preprocessing(ABC):
    """Fitted state that turns raw inputs into x (n, ...), with the names of the classes.

    Attributes:
        kind: name of the kind of raw inputs, which selects the class when a state is loaded.
        class_names: one name for each class index.
        feature_names: one name for each of the D features of a sample; None if they have none.
        image_shape: (H, W), or (3, H, W) in colour; None unless samples are images.
        standardization: of the pixels of images; None for other samples, and where there is none.
    """

    kind: ClassVar[str]
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None
    standardization: Standardization | None = None

    @property
    @abstractmethod
    def in_features(self) -> int:
        """D, the number of values in a sample."""

    @abstractmethod
    def tensor(self, raw: Any) -> Tensor:
        """Return raw inputs in memory as x (n, ...), floating point, as a model takes them."""

    @abstractmethod
    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """Yield names (n,) and x (n, ...) of the raw inputs in a file or folder.

        Args:
            path: the file or folder.
            rows: largest number of samples to yield together.

        Raises:
            FileNotFoundError, ValueError: the path does not exist or cannot be read.
        """

    def read_rows(self, raw: Tensor, rows: int, path: Path) -> Iterator[tuple[list[str], Tensor]]:
        """Yield the rows of a file's array as ``read`` does; ValueError with file and row."""
        for first in range(0, len(raw), rows):
            part = raw[first : first + rows]
            names = [str(row) for row in range(first, first + len(part))]
            try:
                yield names, self.tensor(part)
            except ValueError as error:
                raise ValueError(f"{path}, rows from {first}: {error}") from None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return serializable state, with its ``kind``; the inverse of ``from_state_dict``."""

    @classmethod
    @abstractmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Rebuild the preprocessing from its state."""


def same(a: Any, b: Any) -> bool:
    """Return whether two states are equal, up to float rounding that varies between machines."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return bool(a == b)
