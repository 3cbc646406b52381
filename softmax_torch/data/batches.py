"""The in-memory loader: a data set held as tensors, cut into batches.

    order = permutation of the rows drawn from (seed, epoch), or the rows as they stand
    rank r of R visits order[r], order[r + R], order[r + 2 R], ... in batches of batch_size

The order is a function of the seed and the epoch and of nothing else, so that iterating changes no
state: iterating twice gives the same batches, and a run that goes on at epoch e needs no history.

>>> import torch
>>> data = Batches(torch.arange(5.0).unsqueeze(1), torch.arange(5), batch_size=2)
>>> [y.tolist() for _, y in data]
[[0, 1], [2, 3], [4]]
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batches"]


class Batches:
    """An iterable over batches (x, y) of tensors.

    A batch is gathered by one index per tensor: 256 rows of 784 bytes take 30 us, where a Dataset
    of single samples and its collate function take milliseconds.

    Args:
        x: inputs (N, ...), of any dtype. They are kept as they come and made floating point batch
            by batch: images stay bytes, a quarter of float32.
        y: targets (N, ...).
        batch_size: samples of a batch on one rank; None for all of them in one batch, as full-batch
            gradient descent wants it.
        shuffle: whether each epoch has an order of its own.
        seed: seed of the order.
        scale: factor applied to x when it is made floating point (1 / 255 for bytes).
        rank, world_size: which of how many processes this one is. When shuffling, every rank gets
            the same number of rows, the first of the order being visited twice if they do not
            divide evenly, since the ranks of a training step wait for each other. Otherwise, which
            is to say in evaluation, every row is visited exactly once.
    """

    batch_sampler = None
    """Lightning looks for it where there is a ``sampler``."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        scale: float = 1.0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(x) != len(y):
            raise ValueError(f"x and y: expected the same length, got {len(x)} and {len(y)}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 or None, got {batch_size}")
        if seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected a number in [0, {world_size}), got {rank}")
        self.x, self.y = x, y
        self.shuffle, self.seed, self.scale = shuffle, seed, scale
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        rows = len(x) - rank if not shuffle else len(x)
        self.rows = math.ceil(max(rows, 0) / world_size)
        self.batch_size = max(1, self.rows if batch_size is None else min(batch_size, self.rows))
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def sampler(self) -> Batches:
        """Itself: Lightning calls ``loader.sampler.set_epoch(epoch)`` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the rows."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(self.rows / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if len(self) == 1 and self.world_size == 1:
            # The order within a batch does not matter: one batch is made once and kept.
            if self._whole is None:
                self._whole = self._floating(self.x), self.y
            yield self._whole
            return
        order = self._order()
        for start in range(0, self.rows, self.batch_size):
            rows = order[start : start + self.batch_size]
            yield self._floating(self.x[rows]), self.y[rows]

    def _order(self) -> Tensor:
        """The rows that this rank visits."""
        n = len(self.x)
        if not self.shuffle:
            return torch.arange(self.rank, n, self.world_size)
        # One seed out of two: torch's generator looks at 32 bits only, and with seed + epoch
        # neighbouring seeds would share their orders.
        mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        generator = torch.Generator().manual_seed(int(mixed[0]))
        order = torch.randperm(n, generator=generator)
        if self.rows * self.world_size > n:
            order = torch.cat([order, order[: self.rows * self.world_size - n]])
        return order[self.rank :: self.world_size]

    def _floating(self, x: Tensor) -> Tensor:
        """A batch of inputs as the model wants them."""
        if x.is_floating_point():
            return x if self.scale == 1.0 else x * self.scale
        return x.to(torch.get_default_dtype()).mul_(self.scale)
