"""Names of features and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softmax_torch.solvers.conversion import column_names

__all__ = ["INTERCEPT", "class_names_of", "feature_names_of"]

INTERCEPT = "intercept"
"""Name of the last column of coefficients."""


def feature_names_of(X: Any, feature_names: Sequence[Any] | None, d: int) -> tuple[str, ...]:
    """Return the given names of the features (D,), or those of a frame's columns, or x0, x1, ..."""
    names = column_names(X) if feature_names is None else feature_names
    if names is None:
        return tuple(f"x{j}" for j in range(d))
    return _names("feature_names", names, d)


def class_names_of(class_names: Sequence[Any] | None, classes: int) -> tuple[str, ...]:
    """Return the given names of the classes (K,), or their indices."""
    names = range(classes) if class_names is None else class_names
    return _names("class_names", names, classes)


def _names(argument: str, names: Sequence[Any], count: int) -> tuple[str, ...]:
    found = tuple(map(str, names))
    if len(found) != count:
        raise ValueError(f"{argument}: expected {count} names, got {len(found)}")
    if len(set(found)) != count:
        twice = next(name for i, name in enumerate(found) if name in found[:i])
        raise ValueError(f"{argument}: expected different names, got {twice!r} twice")
    return found
