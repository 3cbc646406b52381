"""The loader of a data set held as tensors: batches in an order that (seed, epoch) determines.

    order = a permutation of the rows, drawn from (seed, epoch); or the rows in order

In training, batch g consists of the rows order[g B : (g + 1) B], whatever the number of processes;
rank r of R takes every R-th of them, beginning with the r-th. No row is dropped or doubled, and the
steps are those of a single process. In evaluation, rank r visits the rows r, r + R, ...

The order depends on the seed and the epoch alone. Iterating changes no state: iterating twice gives
the same batches, and a run that resumes at epoch e needs no history.

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

from softmax_torch.ops import backends
from softmax_torch.preprocessing import Standardization

__all__ = ["Batch", "Batches", "Steps"]


ROWS_PER_READ = 1 << 14
"""Rows of a block that are copied together."""


class Batch(NamedTuple):
    """One process's share of a training batch.

    Attributes:
        x, y: inputs (b, ...) and targets (b,) of the process's own rows; b may be 0.
        whole: targets (B,) of the batch in all processes; a mean over the batch divides by their
            number, or by the sum of their class weights.
    """

    x: Tensor
    y: Tensor
    whole: Tensor


class Batches:
    """An iterable over batches (x, y) of tensors.

    A batch is gathered by one call per tensor: 128 rows of 784 bytes take 18 us with
    ``index_select`` and 130 with ``x[rows]``; a Dataset of single samples and its collate function
    take milliseconds. Gathering the rows of many steps at once takes longer, since they do not stay
    in the cache.

    Args:
        x: inputs (N, ...), of any dtype. They are stored unchanged and converted to floating point
            batch by batch: images stay bytes, a quarter of float32.
        y: targets (N, ...).
        batch_size: samples of a batch, in training over all processes, in evaluation on each; None
            for all samples in one batch (gradient descent).
        shuffle: whether each epoch has another order.
        seed: seed of the order.
        scale: factor that is applied to x on conversion to floating point (1 / 255 for bytes).
        standardization: applied to scaled images; None for none.
        rank, world_size: index of this process, and number of processes.
        steps: number of consecutive training batches in one item, a ``Steps``; None for evaluation
            and for loops that take single pairs (x, y). Shuffled pairs are padded so that every
            process gets the same number of them, since training steps wait for each other: at most
            R - 1 rows occur twice.
        device: device of the batches; None for the device of x.
        rows: numbers (n,) of the rows of x to iterate over, where x is too large to copy them;
            y (n, ...) has the targets of these rows. None for all rows.
        ahead: whether x is too large for the device or for memory (a memory map). A thread then
            gathers the rows of the next ``steps`` batches at once, in ascending order, while the
            current ones are in use. A batch of all rows is x itself where possible.
        keep_float64: whether inputs in float64 stay so, as a model in float64 needs them; otherwise
            they become float32.
    """

    batch_sampler = None
    """Lightning reads this attribute of a loader that has a ``sampler``."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
        scale: float = 1.0,
        standardization: Standardization | None = None,
        rank: int = 0,
        world_size: int = 1,
        steps: int | None = None,
        rows: Tensor | None = None,
        device: torch.device | None = None,
        ahead: bool = False,
        keep_float64: bool = True,
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
        if rows is not None and n and not 0 <= int(rows.min()) <= int(rows.max()) < len(x):
            raise ValueError(
                f"rows: expected row numbers in [0, {len(x)}), got {int(rows.min())} to "
                f"{int(rows.max())}"
            )
        self.x, self.y = x, y
        self.shuffle, self.seed, self.scale = shuffle, seed, scale
        self.standardization = standardization
        self.rank, self.world_size = rank, world_size
        self.steps, self.device, self.ahead = steps, device or x.device, ahead
        self.kept_dtypes = (torch.float32, torch.float64) if keep_float64 else (torch.float32,)
        self.xy_on_one_device = x.device == y.device
        # Bytes on a CPU are gathered and converted by one kernel.
        self.x_is_bytes = x.dtype == torch.uint8 and x.is_cpu and x.is_contiguous()
        self.row_numbers = None if rows is None else rows.to(y.device)
        # Whether a batch of all rows can be x itself; the order within a batch does not matter.
        self.yields_x = world_size == 1 and rows is None and x.device == self.device
        self.epoch = 0
        self.num_rows = n  # rows to iterate over
        if steps is None:
            self.num_rows = len(range(0 if shuffle else rank, n, world_size))
            if shuffle and batch_size is not None:
                batch_size = math.ceil(batch_size / world_size)
        self.batch_size = max(
            1, self.num_rows if batch_size is None else min(batch_size, self.num_rows)
        )
        self.num_batches = math.ceil(self.num_rows / self.batch_size)
        self.position = 0  # batches that were yielded in this epoch
        self._start = 0  # first batch of the next epoch; not 0 after ``load_state_dict``
        self._all_rows: tuple[Tensor, Tensor] | None = None

    @property
    def sampler(self) -> Batches:
        """The loader itself: Lightning calls ``loader.sampler.set_epoch`` before each epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the rows."""
        self.epoch = epoch

    def state_dict(self) -> dict[str, int]:
        """Return the position within the epoch."""
        return {"position": self.position, "batches": self.num_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Begin the next epoch at a saved position; the end of an epoch counts as the start.

        Raises:
            ValueError: the position is within an epoch whose batches had another size.
        """
        batches = state.get("batches", self.num_batches)
        self._start = state["position"] % max(1, batches)
        if self._start and batches != self.num_batches:
            raise ValueError(
                f"batch_size: expected {batches} batches, as in the epoch that the checkpoint "
                f"interrupted, got {self.num_batches}"
            )

    def __len__(self) -> int:
        """Return the number of items that an iteration yields."""
        return math.ceil(self.num_batches / (self.steps or 1))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | Steps]:
        start, self._start = self._start, 0
        order = self._order()
        size = self.batch_size
        if self.steps is None:
            for first in range(0, self.num_rows, size):
                yield self._gather(order[first : first + size])
            return
        groups = [
            range(first, min(first + self.steps, self.num_batches))
            for first in range(start, self.num_batches, self.steps)
        ]
        for group, steps in zip(groups, self._steps(order, groups), strict=True):
            self.position = group.stop
            yield steps

    def _steps(self, order: Tensor, groups: list[range]) -> Iterator[Steps]:
        """Yield the steps of each group of batches; read one group ahead if ``ahead``."""
        if not self.ahead or (self.yields_x and self.num_batches == 1):
            yield from (Steps(self, order, group) for group in groups)
            return
        with ThreadPoolExecutor(1) as pool:
            coming: Future[Tensor] | None = None
            for i, group in enumerate(groups):
                block = self._block(order, group) if coming is None else coming.result()
                if i + 1 < len(groups):
                    coming = pool.submit(self._block, order, groups[i + 1])
                yield Steps(self, order, group, block.to(self.device, non_blocking=True))

    def _block(self, order: Tensor, group: range) -> Tensor:
        """Return this process's rows of some batches, in order; pinned for copies to a GPU."""
        rows = torch.cat([self._own_rows(self._batch_rows(order, g)) for g in group])
        ascending, position = self._rows_in_x(rows).sort()
        block = torch.empty(
            (len(rows), *self.x.shape[1:]),
            dtype=self.x.dtype,
            device=self.x.device,
            pin_memory=self.device.type == "cuda" and self.x.device.type == "cpu",
        )
        # In parts, since a block may fill most of memory and each part is a copy.
        parts = torch.split(position, ROWS_PER_READ), torch.split(ascending, ROWS_PER_READ)
        for to, at in zip(*parts, strict=True):
            block.index_copy_(0, to, self.x.index_select(0, at))
        return block

    def _batch_rows(self, order: Tensor, g: int) -> Tensor:
        """Return the rows of batch g, of all processes."""
        return order[g * self.batch_size : (g + 1) * self.batch_size]

    def _own_rows(self, batch: Tensor) -> Tensor:
        """Return this process's rows of a batch."""
        return batch if self.world_size == 1 else batch[self.rank :: self.world_size]

    def _order(self) -> Tensor:
        """Return the rows of the epoch in order, on the device of y."""
        n = len(self.y)
        if not self.shuffle:
            order = torch.arange(n) if self.steps else torch.arange(self.rank, n, self.world_size)
        else:
            # Mix the two into one seed: torch's generator uses 32 bits only, and with seed + epoch
            # neighbouring seeds would share their orders.
            mixed = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
            generator = torch.Generator().manual_seed(int(mixed[0]))
            order = torch.randperm(n, generator=generator)
            if self.steps is None:
                order = torch.cat([order, order[: self.num_rows * self.world_size - n]])
                order = order[self.rank :: self.world_size]
        return order.to(self.y.device)

    def _gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the samples at these rows of y."""
        if self._takes_all(rows):
            return self._everything()
        return self._inputs(rows), self.y.index_select(0, rows)

    def _takes_all(self, rows: Tensor) -> bool:
        """Return whether x and y themselves, in their order, are the samples at these rows."""
        return self.yields_x and rows.shape[0] == self.num_rows

    def _everything(self) -> tuple[Tensor, Tensor]:
        """Return all samples in the order of x, converted once."""
        if self._all_rows is None:
            self._all_rows = self._to_float(self.x), self.y
        return self._all_rows

    def _inputs(self, rows: Tensor) -> Tensor:
        """Return the inputs at these rows of y."""
        rows = self._rows_in_x(rows)
        if self.x_is_bytes and torch.get_default_dtype() == torch.float32:
            return self._as_input(backends.cpu_backend().gather_bytes(self.x, rows, self.scale))
        return self._to_float(self.x.index_select(0, rows))

    def _rows_in_x(self, rows: Tensor) -> Tensor:
        """Return the row numbers in x of rows of y."""
        rows = rows if self.row_numbers is None else self.row_numbers[rows]
        return rows if self.xy_on_one_device else rows.to(self.x.device)

    def _targets(self, rows: Tensor) -> Tensor:
        """Return the targets of these rows on the device of batches, without waiting for it."""
        if self.device.type != "cuda" or self.y.device.type != "cpu":
            return self.y.index_select(0, rows).to(self.device)
        shape = (len(rows), *self.y.shape[1:])
        pinned = torch.empty(shape, dtype=self.y.dtype, pin_memory=True)
        torch.index_select(self.y, 0, rows, out=pinned)
        return pinned.to(self.device, non_blocking=True)

    def _to_float(self, x: Tensor) -> Tensor:
        """Return a batch of inputs as scaled floats, standardised if images are."""
        if x.is_floating_point():
            if x.dtype not in self.kept_dtypes:  # only the storage type of features
                x = x.float()
            if self.standardization is not None:
                return self._as_input(x * self.scale)
            return x if self.scale == 1.0 else x * self.scale
        if x.is_cpu:  # the same bits: 22 us for 128 x 784 bytes, in place of 28
            return self._as_input(x.to(torch.get_default_dtype()).mul_(self.scale))
        return self._as_input(x * self.scale)  # in the default dtype

    def _as_input(self, x: Tensor) -> Tensor:
        """Return scaled inputs as the model takes them; they are changed in place."""
        return x if self.standardization is None else self.standardization.apply_(x)


class Steps:
    """Consecutive training batches, each gathered when the iteration reaches it."""

    def __init__(
        self, source: Batches, order: Tensor, group: range, block: Tensor | None = None
    ) -> None:
        self.source, self.order, self.group, self.block = source, order, group, block

    def __len__(self) -> int:
        return len(self.group)

    def __iter__(self) -> Iterator[Batch]:
        source, start = self.source, 0
        size = source.batch_size
        order = self.order[self.group.start * size : self.group.stop * size]
        # The targets of all batches in one call: 8 us less for each of 128 samples.
        targets = torch.split(source._targets(order), size)
        for rows, whole in zip(torch.split(order, size), targets, strict=True):
            own = source._own_rows(rows)
            y = whole if source.world_size == 1 else source._targets(own)
            if self.block is not None:
                end = start + len(own)
                x = source._to_float(self.block[start:end])
                start = end
            elif source._takes_all(own):
                x, y = source._everything()
                whole = y
            else:
                x = source._inputs(own)
            yield Batch(x, y, whole)
