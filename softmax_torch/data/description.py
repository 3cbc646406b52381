"""What a data set holds, counted: for a program that shows it before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.data.splits import Split

__all__ = ["ColumnCounts", "DataDescription", "count_classes"]


class ColumnCounts(NamedTuple):
    """The columns of a table.

    Attributes:
        numeric, categorical: columns of each kind.
        one_hot: features that the categorical columns become.
        ignored: columns that are left out.
        missing: missing values in the training samples, by column; columns without any are left
            out.
    """

    numeric: int
    categorical: int
    one_hot: int
    ignored: int
    missing: Mapping[str, int]


class DataDescription(NamedTuple):
    """What a data set holds.

    Attributes:
        samples: number of samples in each split.
        in_features: D, number of values in a sample.
        class_names: one name for each class.
        class_counts: number of samples of each class in all splits, int64 (C,).
        image_shape: (H, W), or (3, H, W) in colour; None unless samples are images.
        columns: the columns of a table; None unless samples are rows of one.
    """

    samples: Mapping[str, int]
    in_features: int
    class_names: Sequence[str]
    class_counts: Tensor
    image_shape: tuple[int, ...] | None = None
    columns: ColumnCounts | None = None


def count_classes(splits: Mapping[str, Split], classes: int) -> Tensor:
    """Return the number of samples of each class in all splits, int64 (classes,)."""
    counts = torch.zeros(classes, dtype=torch.int64)
    for split in splits.values():
        counts += torch.bincount(split.y.cpu(), minlength=classes)
    return counts
