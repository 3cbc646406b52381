"""The in-memory loader: a data set held as tensors, cut into batches.

    order = permutation of the rows drawn from (seed, epoch), or the rows as they stand

In training batch g is the rows order[g B : (g + 1) B] for any number of processes, of which rank r
of R takes every R-th, from the r-th on: no row is dropped or doubled, and the steps are those of a
single process. In evaluation rank r visits the rows r, r + R, r + 2 R, ...

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
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch", "Batches", "Steps"]


GATHERED = 1 << 14
"""Rows of a block that are read together."""


class Batch(NamedTuple):
    """What a process sees of a batch of training.

    ``x`` (b, ...) and ``y`` (b,) are its own rows, which may be none; ``whole`` (B,) are the
    targets of the batch in all processes, by which a mean is normalized.
    """

    x: Tensor
    y: Tensor
    whole: Tensor


class Batches:
    """An iterable over batches (x, y) of tensors.

    A batch is gathered by one call per tensor: 128 rows of 784 bytes take 18 us by ``index_select``
    and 130 by ``x[rows]``, where a Dataset of single samples and its collate function take
    milliseconds. All rows of many steps at once would take longer: they do not stay in cache.

    Args:
        x: inputs (N, ...), of any dtype. They are kept as they come and made floating point batch
            by batch: images stay bytes, a quarter of float32.
        y: targets (N, ...).
        batch_size: samples of a batch, in training over all processes, in evaluation on each; None
            for all of them in one batch, as full-batch gradient descent wants it.
        shuffle: whether each epoch has an order of its own.
        seed: seed of the order.
        scale: factor applied to x when it is made floating point (1 / 255 for bytes).
        rank, world_size: which of how many processes this one is.
        steps: None for evaluation, and for loops that want single pairs (x, y); otherwise an
            iteration yields ``Steps``, so many batches of training on end. Where pairs are shuffled
            every process gets as many as the others, since the steps of training wait for each
            other; so at most R - 1 rows come twice.
        device: where batches are wanted; None for where x is.
        rows: numbers of the rows of x (n,) that are iterated over, of which y has the targets
            (n, ...), where x is too large for a copy of them; None for all.
        ahead: whether x is too large for the device or for memory (a memory map): then the rows of
            the next ``steps`` batches are gathered at once by a thread, in ascending order, while
            those at hand are in use. A batch of everything is x itself where that can be.
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
        steps: int | None = None,
        rows: Tensor | None = None,
        device: torch.device | None = None,
        ahead: bool = False,
    ) -> None:
        n = len(x) if rows is None else len(rows)
        if n != len(y):
            raise ValueError(f"x and y: expected the same length, got {n} and {len(y)}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 or None, got {batch_size}")
        if steps is not None and steps < 1:
            raise ValueError(f"steps: expected at least 1 or None, got {steps}")
        if seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {seed}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected a number in [0, {world_size}), got {rank}")
        self.x, self.y = x, y
        self.shuffle, self.seed, self.scale = shuffle, seed, scale
        self.rank, self.world_size = rank, world_size
        self.steps, self.device, self.ahead = steps, device or x.device, ahead
        self.together = x.device == y.device
        self.at = None if rows is None else rows.to(y.device)
        # Whether a batch of everything is x itself; the order within a batch does not matter.
        self.itself = world_size == 1 and rows is None and x.device == self.device
        self.epoch = 0
        self.rows = n  # that this iterates over, in batches of ``batch_size``
        if steps is None:
            self.rows = len(range(0 if shuffle else rank, n, world_size))
            if shuffle and batch_size is not None:
                batch_size = math.ceil(batch_size / world_size)
        self.batch_size = max(1, self.rows if batch_size is None else min(batch_size, self.rows))
        self.batches = math.ceil(self.rows / self.batch_size)
        self.position = 0  # batches that were handed out in this epoch
        self._start = 0  # the batch that the next epoch begins at, after a resumption
        self._whole: tuple[Tensor, Tensor] | None = None

    @property
    def sampler(self) -> Batches:
        """Itself: Lightning calls ``loader.sampler.set_epoch(epoch)`` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the rows."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Where in an epoch it is."""
        return {"position": self.position, "batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch there; at its start, if that was the end of one.

        Raises:
            ValueError: that was within an epoch, and of batches of another size.
        """
        batches = state.get("batches", self.batches)
        self._start = state["position"] % max(1, batches)
        if self._start and batches != self.batches:
            raise ValueError(
                f"batch_size: expected {batches} batches, as in the epoch that the checkpoint is "
                f"from within, got {self.batches}"
            )

    def __len__(self) -> int:
        """How often it yields."""
        return math.ceil(self.batches / (self.steps or 1))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Steps]:
        start, self._start = self._start, 0
        order = self._order()
        size = self.batch_size
        if self.steps is None:
            for first in range(0, self.rows, size):
                yield self._gathered(order[first : first + size])
            return
        pieces = [
            range(first, min(first + self.steps, self.batches))
            for first in range(start, self.batches, self.steps)
        ]
        for piece, steps in zip(pieces, self._read(order, pieces), strict=True):
            self.position = piece.stop
            yield steps

    def _read(self, order: Tensor, pieces: list[range]) -> Iterator[Steps]:
        """The steps of each piece; what is not at hand is read one piece ahead."""
        if not self.ahead or (self.itself and self.batches == 1):
            yield from (Steps(self, order, piece) for piece in pieces)
            return
        with ThreadPoolExecutor(1) as pool:
            coming: Future[Tensor] | None = None
            for i, piece in enumerate(pieces):
                block = self._block(order, piece) if coming is None else coming.result()
                if i + 1 < len(pieces):
                    coming = pool.submit(self._block, order, pieces[i + 1])
                yield Steps(self, order, piece, block.to(self.device, non_blocking=True))

    def _block(self, order: Tensor, piece: range) -> Tensor:
        """The own rows of some batches, one after the other; pinned where that helps."""
        rows = torch.cat([self._mine(self._batch(order, g)) for g in piece])
        ascending, place = self._placed(rows).sort()
        block = torch.empty(
            (len(rows), *self.x.shape[1:]),
            dtype=self.x.dtype,
            device=self.x.device,
            pin_memory=self.device.type == "cuda" and self.x.device.type == "cpu",
        )
        # Some rows at a time: a block may be most of what memory holds.
        pieces = torch.split(place, GATHERED), torch.split(ascending, GATHERED)
        for to, of in zip(*pieces, strict=True):
            block.index_copy_(0, to, self.x.index_select(0, of))
        return block

    def _batch(self, order: Tensor, g: int) -> Tensor:
        """The rows of batch g, in all processes."""
        return order[g * self.batch_size : (g + 1) * self.batch_size]

    def _mine(self, batch: Tensor) -> Tensor:
        return batch if self.world_size == 1 else batch[self.rank :: self.world_size]

    def _order(self) -> Tensor:
        """The rows to be visited, where y is."""
        n = len(self.y)
        if not self.shuffle:
            order = torch.arange(n) if self.steps else torch.arange(self.rank, n, self.world_size)
        else:
            # One seed out of two: torch's generator looks at 32 bits only, and with seed + epoch
            # neighbouring seeds would share their orders.
            mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
            generator = torch.Generator().manual_seed(int(mixed[0]))
            order = torch.randperm(n, generator=generator)
            if self.steps is None:
                order = torch.cat([order, order[: self.rows * self.world_size - n]])
                order = order[self.rank :: self.world_size]
        return order.to(self.y.device)

    def _gathered(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The samples at these rows."""
        if len(rows) == len(self.y) and self.itself:
            if self._whole is None:  # made once and kept
                self._whole = self._floating(self.x), self.y
            return self._whole
        return self._floating(self._rows(rows)), self.y.index_select(0, rows)

    def _rows(self, rows: Tensor) -> Tensor:
        return self.x.index_select(0, self._placed(rows))

    def _placed(self, rows: Tensor) -> Tensor:
        """The numbers in x of rows of y."""
        rows = rows if self.at is None else self.at[rows]
        return rows if self.together else rows.to(self.x.device)

    def _targets(self, rows: Tensor) -> Tensor:
        return self.y.index_select(0, rows).to(self.device)

    def _floating(self, x: Tensor) -> Tensor:
        """A batch of inputs as the model wants them."""
        if x.dtype in (torch.float16, torch.bfloat16):  # how features are kept, not what they are
            x = x.float()
        if x.is_floating_point():
            return x if self.scale == 1.0 else x * self.scale
        return x * self.scale  # of the default type


class Steps:
    """Batches of training on end, gathered one by one as they are iterated over."""

    def __init__(
        self, batches: Batches, order: Tensor, piece: range, block: Tensor | None = None
    ) -> None:
        self.batches, self.order, self.piece, self.block = batches, order, piece, block

    def __len__(self) -> int:
        return len(self.piece)

    def __iter__(self) -> Iterator[Batch]:
        source, start = self.batches, 0
        for g in self.piece:
            rows = source._batch(self.order, g)
            mine = source._mine(rows)
            if self.block is None:
                x, y = source._gathered(mine)
            else:
                end = start + len(mine)
                x, y = source._floating(self.block[start:end]), source._targets(mine)
                start = end
            yield Batch(x, y, y if source.world_size == 1 else source._targets(rows))
