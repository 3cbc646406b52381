"""Names of features and classes, and class labels of any kind.

Labels are numbers, booleans or strings. Their sorted distinct values, as of ``numpy.unique``, are
the classes. The name of a class is its label as text, unless the caller gives names in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from softmax_torch.solvers.conversion import column_names, has_missing, refuse_masked

__all__ = [
    "FIRST",
    "INTERCEPT",
    "Classes",
    "class_index",
    "class_names_of",
    "classes_of",
    "feature_index",
    "feature_indices",
    "feature_names_of",
    "frame_columns",
]

INTERCEPT = "intercept"
"""Name of the last column of coefficients."""

LISTED = 10
"""Labels that an error lists, at most."""


class _First:
    """The default reference: the first class."""

    def __repr__(self) -> str:
        return "<first class>"


FIRST: Final = _First()


class Classes(NamedTuple):
    """Class indices of the samples (n,), int64 on the CPU, and the labels (K,), sorted."""

    target: Tensor
    labels: list[Any]


def classes_of(y: Any, distributed: bool = False, name: str = "y", item: str = "label") -> Classes:
    """Return class indices for labels y (n,); processes share the labels of all of them.

    ``name`` and ``item`` are the words of error messages.

    Raises:
        TypeError: labels are fractions, or of types that cannot be sorted.
        ValueError: y is not 1-dimensional, or labels are missing.
    """
    import numpy as np

    if isinstance(y, Tensor):
        y = y.detach().cpu().to(torch.float64 if y.is_floating_point() else y.dtype).numpy()
    refuse_masked(name, y)
    array = np.asarray(y)
    if array.ndim != 1:
        raise ValueError(f"{name}: expected shape (n,), a {item} for each row, got {array.shape}")
    if has_missing(y) or (array.dtype.kind in "Of" and (array != array).any()):
        raise ValueError(f"{name}: expected no missing {item}s, got some")
    try:
        values, index = np.unique(array, return_inverse=True)
    except TypeError:
        raise _unsortable(name, item, array.tolist()) from None
    labels = values.tolist()
    for label in labels:
        if isinstance(label, float) and not label.is_integer():
            raise TypeError(
                f"{name}: expected {item}s that are whole numbers or strings, got {label}"
            )
    target = torch.from_numpy(index.astype(np.int64, copy=False))
    if not distributed or not dist.is_initialized():
        return Classes(target, labels)
    everywhere: list[list[Any]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, labels)
    try:
        shared = sorted(set().union(*everywhere))
    except TypeError:
        raise _unsortable(name, item, [each for part in everywhere for each in part]) from None
    own = torch.tensor([shared.index(label) for label in labels], dtype=torch.int64)
    return Classes(own[target], shared)


def _plain(x: Any) -> Any:
    """Return a number of numpy or torch as one of Python, and all else as it is."""
    return x.item() if getattr(x, "ndim", None) == 0 else x


def _unsortable(name: str, item: str, labels: list[Any]) -> TypeError:
    types = {type(label).__name__ for label in labels}
    if "NoneType" in types:
        return TypeError(f"{name}: expected no missing {item}s, got None")
    return TypeError(f"{name}: expected {item}s of one type, got {', '.join(sorted(types))}")


def class_index(reference: Any, labels: list[Any], names: Sequence[str]) -> int | None:
    """Return the index of the reference class; None for None.

    It may be given as a label, as a name, or, if labels are not numbers, as an index.

    Raises:
        ValueError: it is none of these.
    """
    if reference is None:
        return None
    if reference is FIRST:
        return 0
    reference = _plain(reference)
    for known in (labels, list(names)):
        if reference in known:
            return known.index(reference)
    K = len(labels)
    counted = labels == list(range(K))
    if type(reference) is int and isinstance(labels[0], str) and 0 <= reference < K:
        return reference
    shown = [repr(label) for label in labels[:LISTED]] + ["..."] * (K > LISTED)
    expected = f"a class in [0, {K})" if counted else f"one of {', '.join(shown)}"
    raise ValueError(f"reference: expected {expected} or None, got {reference!r}")


def frame_columns(X: Any) -> list[Any] | None:
    """Return the column names of a frame, or of the first one of a list of frames, or None."""
    if isinstance(X, (list, tuple)) and X:
        X = X[0]  # blocks of rows
    return column_names(X)


def feature_names_of(given: Sequence[Any] | None, d: int) -> tuple[str, ...]:
    """Return the names of the features (D,): those given, or x0, x1, ..."""
    if given is None:
        return tuple(f"x{j}" for j in range(d))
    return _distinct("feature_names", given, d)


def class_names_of(class_names: Sequence[Any] | None, labels: list[Any]) -> tuple[str, ...]:
    """Return the names of the classes (K,): those given, or the labels as text."""
    return _distinct("class_names", labels if class_names is None else class_names, len(labels))


def feature_indices(features: Any, names: Sequence[str], argument: str = "features") -> list[int]:
    """Return the ascending indices of features that are given by name or by index, or of one.

    Raises:
        ValueError: there is no such feature.
    """
    features = _plain(features)
    if isinstance(features, str) or not isinstance(features, Iterable):
        features = [features]
    return sorted({feature_index(feature, names, argument) for feature in features})


def feature_index(feature: Any, names: Sequence[str], argument: str = "features") -> int:
    """Return the index of a feature that is given by its name or its index.

    ``argument`` names it in errors.

    Raises:
        ValueError: there is no such feature.
    """
    D, feature = len(names), _plain(feature)
    if isinstance(feature, str) and feature in names:
        return names.index(feature)
    if type(feature) is int and 0 <= feature < D:
        return feature
    raise ValueError(
        f"{argument}: expected names ({', '.join(names[:10])}{', ...' * (D > 10)}) or indices in "
        f"[0, {D}), got {feature!r}"
    )


def _distinct(argument: str, names: Sequence[Any], count: int) -> tuple[str, ...]:
    """Return names as text, after checking that they are so many and all different."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise TypeError(
            f"{argument}: expected a sequence of names, got {type(names).__name__} {names!r}"
        )
    found = tuple(map(str, names))
    if len(found) != count:
        raise ValueError(f"{argument}: expected {count} names, got {len(found)}")
    if len(set(found)) != count:
        twice = next(name for i, name in enumerate(found) if name in found[:i])
        raise ValueError(f"{argument}: expected different names, got {twice!r} twice")
    return found
