"""Parts of a data set drawn at random, each with its share of every class.

Of n_c samples of class c, the part gets about fraction * n_c, and at least 1 and at most n_c - 1:

    take_c = min(max(floor(fraction * n_c), 1), n_c - 1)

and one more goes to the classes that are furthest below fraction * n_c, until the part has
round(fraction * n) samples.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["TEST_SEED", "enough", "stratified"]

TEST_SEED = 0
"""Seed of a test set that is drawn: nothing changes it, or with another one a sample that was
trained on would be tested."""


def stratified(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two parts of a data set, in each of which every class is found.

    Args:
        y: class indices (N,), an integer type.
        fraction: share of the second part, in (0, 1).
        seed: seed of the draw.

    Returns:
        Row numbers of the rest and of the part, int64, ascending.

    Raises:
        ValueError: a fraction outside (0, 1), or a class with one sample only.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected a number in (0, 1), got {fraction}")
    enough(y, 2)
    count = torch.bincount(y)
    exact = count.double() * fraction
    take = torch.minimum(exact.floor().long().clamp(min=1), count - 1).clamp(min=0)
    more = max(0, round(len(y) * fraction) - int(take.sum()))
    below = torch.where(take < count - 1, exact - take, -torch.inf)
    furthest = below.argsort(descending=True, stable=True)[:more]
    take[furthest[below[furthest] > 0]] += 1
    # All samples in an order drawn at random, class by class; the part is the first take_c of each.
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order].argsort(stable=True)]
    place = torch.arange(len(y)) - (count.cumsum(0) - count)[y[order]]
    part = place < take[y[order]]
    return order[~part].sort().values, order[part].sort().values


def enough(y: Tensor, parts: int, class_names: Sequence[str] | None = None) -> None:
    """Whether every class that occurs has a sample for each of so many parts; ValueError if not."""
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
