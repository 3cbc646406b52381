"""What every preprocessing has in common."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor

__all__ = ["Preprocessing", "same"]


class Preprocessing(ABC):
    """How raw inputs become x (n, ...), and what the classes are called.

    Attributes:
        kind: a word for what raw inputs are, by which a saved one is known.
        class_names: a name for each class index.
        feature_names: a name for each of the D numbers of a sample, where they have some.
        image_shape: (H, W), or (3, H, W) in colour, where a sample is an image.
    """

    kind: ClassVar[str]
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] | None = None
    image_shape: tuple[int, ...] | None = None

    @property
    @abstractmethod
    def in_features(self) -> int:
        """D, the numbers of a sample."""

    @abstractmethod
    def tensor(self, raw: Any) -> Tensor:
        """Raw inputs in memory as x (n, ...), floating point, as a model takes them."""

    @abstractmethod
    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """Raw inputs from a file or folder, at most so many at once: names (n,) and x (n, ...).

        Raises:
            FileNotFoundError, ValueError: there is nothing, or something that cannot be read.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What it takes to make it again: numbers, strings, lists and dicts, with its ``kind``."""

    @classmethod
    @abstractmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The one that was saved."""


def same(a: Any, b: Any) -> bool:
    """Whether two states are alike; means may differ by the rounding of another machine."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return bool(a == b)
