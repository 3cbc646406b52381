"""Splits of a data set: inputs with class indices, checked, and drawn at random.

A stratified draw takes a share of every class. Of n_c samples of class c it takes about
fraction * n_c, and at least 1 and at most n_c - 1:

    take_c = min(max(floor(fraction * n_c), 1), n_c - 1)

One more sample is taken of the classes that are furthest below fraction * n_c, until
round(fraction * n) samples are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "TEST_SEED",
    "Split",
    "check_class_counts",
    "check_split",
    "draw_splits",
    "random_split",
    "stratified",
]

TEST_SEED = 0
"""Seed of every test set that is drawn. No argument changes it: with another seed, samples that a
model was trained on could be in the test set."""

CHECKED_ROWS = 8192
"""Rows that are checked together: x may be mapped and larger than memory."""


MAX_FLOAT32 = torch.finfo(torch.float32).max


class Split(NamedTuple):
    """Inputs x (N, ...) and class indices y (N,) of one part of a data set."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Return the number of samples; the length of the tuple would be 2."""
        return len(self.y)

    def rows(self, index: Tensor) -> Split:
        """Return the samples at these rows."""
        return Split(self.x[index], self.y[index])


def check_split(data: Split, name: str, in_features: int, num_classes: int) -> None:
    """Raise an error unless a model of these sizes can be fitted to the data.

    Args:
        data: the samples.
        name: name of the split or its file for messages.
        in_features: D.
        num_classes: C.

    Raises:
        ValueError: no samples, sizes that do not match, NaN or infinity (the first such row is
            named).
        IndexError: a class index outside [0, C).
    """
    x, y = data
    if len(x) != len(y):
        raise ValueError(f"{name}: expected a label for each of {len(x)} samples, got {len(y)}")
    if len(y) == 0:
        raise ValueError(f"{name}: expected at least one sample, got none")
    if math.prod(x.shape[1:]) != in_features:
        raise ValueError(
            f"{name}: expected {in_features} features a sample, got shape {tuple(x.shape[1:])}"
        )
    if x.is_floating_point():
        parts = torch.split(x, CHECKED_ROWS)
        if x.dtype.itemsize == 1:  # torch has no isfinite for 8-bit floats
            parts = tuple(part.half() for part in parts)
        bad = torch.cat([~part.flatten(1).isfinite().all(1) for part in parts])
        if bad.any():
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity in {int(bad.sum())} "
                f"rows, the first of them row {int(bad.nonzero()[0])}"
            )
    if x.dtype == torch.float64:  # it becomes float32 in batches
        large = torch.cat([part.flatten(1).abs().amax(1) > MAX_FLOAT32 for part in parts])
        if large.any():
            row = int(large.nonzero()[0])
            raise ValueError(
                f"{name}: expected numbers within float32's range, up to {MAX_FLOAT32:.2g}, got "
                f"{float(x[row].abs().max()):.2g} in row {row}"
            )
    bad = (y < 0) | (y >= num_classes)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise IndexError(
            f"{name}: expected labels in [0, {num_classes}), got {int(y[row])} in row {row}"
        )


def random_split(data: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Draw a fraction of the samples at random; return the rest, then the drawn samples.

    Raises:
        ValueError: one of the two would be empty.
    """
    n = len(data)
    drawn = round(n * fraction)
    if not 0 < drawn < n:
        raise ValueError(
            f"expected both parts of a split to have samples, got {n - drawn} + {drawn}"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return data.rows(order[drawn:]), data.rows(order[:drawn])


def draw_splits(
    y: Tensor, draws: Mapping[str, tuple[float, int]], class_names: Sequence[str], source: object
) -> dict[str, Tensor]:
    """Draw splits from training samples, class by class; the rest is the split "train".

    Args:
        y: class indices (N,) of the samples.
        draws: fraction and seed of each split, in the order in which they are drawn.
        class_names: names of the classes for messages.
        source: file or folder of the samples for messages.

    Returns:
        Row numbers of each split, int64, ascending.

    Raises:
        ValueError: a class has too few samples for all splits.
    """
    try:
        check_class_counts(y, 1 + len(draws), class_names)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    rows = {"train": torch.arange(len(y))}
    for name, (fraction, seed) in draws.items():
        rest, drawn = stratified(y[rows["train"]], fraction, seed)
        rows[name], rows["train"] = rows["train"][drawn], rows["train"][rest]
    return rows


def stratified(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a share of every class at random, so that every class stays in both parts.

    Args:
        y: class indices (N,), an integer type.
        fraction: share of the drawn part, in (0, 1).
        seed: seed of the draw.

    Returns:
        Row numbers of the rest and of the drawn part, int64, ascending.

    Raises:
        ValueError: the fraction is outside (0, 1), or a class has one sample only.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number in (0, 1), got {fraction}")
    check_class_counts(y, 2)
    count = torch.bincount(y)
    exact = count.double() * fraction
    take = torch.minimum(exact.floor().long().clamp(min=1), count - 1).clamp(min=0)
    more = max(0, round(len(y) * fraction) - int(take.sum()))
    below = torch.where(take < count - 1, exact - take, -torch.inf)
    furthest = below.argsort(descending=True, stable=True)[:more]
    take[furthest[below[furthest] > 0]] += 1
    # All samples in random order, sorted by class; the first take_c of each class are drawn.
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order].argsort(stable=True)]
    rank_in_class = torch.arange(len(y)) - (count.cumsum(0) - count)[y[order]]
    drawn = rank_in_class < take[y[order]]
    return order[~drawn].sort().values, order[drawn].sort().values


def check_class_counts(y: Tensor, parts: int, class_names: Sequence[str] | None = None) -> None:
    """Raise ValueError unless every class that occurs has a sample for each of ``parts`` parts."""
    count = torch.bincount(y)
    few = ((count > 0) & (count < parts)).nonzero().flatten().tolist()
    if few:
        shown = ", ".join(
            f"{int(count[c])} of class {c if class_names is None else class_names[c]}"
            for c in few[:10]
        )
        more = f" and {len(few) - 10} other classes" if len(few) > 10 else ""
        raise ValueError(
            f"expected at least {parts} samples of each class, one for each part of the data, got "
            f"{shown}{more}"
        )
