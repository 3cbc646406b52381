"""Samples without some of their columns, in whatever form they are held; nothing is copied.

A product with the kept columns is one with all columns, where the others have coefficients of 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from softmax_torch.solvers.block import Block
from softmax_torch.solvers.objective import Objective
from softmax_torch.solvers.samples import Samples

__all__ = ["ColumnSubset", "without_columns"]


class ColumnSubset:
    """The columns ``kept`` (d,), ascending indices, of other samples."""

    def __init__(self, samples: Samples, kept: Tensor) -> None:
        self.samples, self.kept = samples, kept
        self.n, self.d = samples.n, len(kept)
        self.device, self.dtype = samples.device, samples.dtype

    def blocks(self, columns: int | None = None) -> Iterator[tuple[slice, Block]]:
        for at, block in self.samples.blocks():
            yield at, _SubsetBlock(block, self.kept)

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.samples.rows(index, dtype)[:, self.kept]

    def shifted(self, offset: Tensor) -> Samples:
        whole = offset.new_zeros(self.samples.d)
        whole[self.kept] = offset
        return ColumnSubset(self.samples.shifted(whole), self.kept)


class _SubsetBlock(Block):
    """Some columns of a block; passes are two matrix products."""

    def __init__(self, block: Block, kept: Tensor) -> None:
        self.block, self.kept, self.d = block, kept, len(kept)

    def dot(self, W: Tensor, squared: bool = False) -> Tensor:
        whole = W.new_zeros(len(W), self.block.d)
        whole[:, self.kept] = W
        return self.block.dot(whole, squared)

    def transposed_dot(self, r: Tensor, squared: bool = False) -> Tensor:
        return self.block.transposed_dot(r, squared)[:, self.kept]

    def dense(self) -> Tensor:
        return self.block.dense()[:, self.kept]

    def group_ranges(self, group: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        least, most = self.block.group_ranges(group, groups)
        return least[:, self.kept], most[:, self.kept]


def without_columns(objective: Objective, dropped: list[int]) -> tuple[Objective, Tensor]:
    """Return the objective of the other columns, at least one, and their indices.

    Its samples are those of ``objective``: centred, if these are.
    """
    gone = set(dropped)
    kept = torch.tensor(
        [j for j in range(objective.samples.d) if j not in gone], device=objective.samples.device
    )
    other = Objective(
        ColumnSubset(objective.samples, kept),
        objective.y,
        objective.classes,
        None if objective.weight is None else objective.weight * objective.unit,
        objective.bias,
        objective.processes,
    )
    return other, kept
