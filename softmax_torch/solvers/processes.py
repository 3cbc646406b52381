"""Sums over the processes that share a fit, each of which holds some of the samples."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Processes"]


class Processes:
    """All processes of the default group of ``torch.distributed``, or this one alone."""

    def __init__(self, distributed: bool = False) -> None:
        if distributed and not dist.is_initialized():
            raise ValueError(
                "distributed=True: expected a process group (torch.distributed."
                "init_process_group), got none"
            )
        self.distributed = distributed

    def summed(self, x: Tensor) -> Tensor:
        """Add x up over the processes, in place, and return it."""
        if self.distributed:
            dist.all_reduce(x)
        return x

    def largest(self, x: Tensor) -> Tensor:
        """Replace x by its largest value over the processes, in place, and return it."""
        if self.distributed:
            dist.all_reduce(x, dist.ReduceOp.MAX)
        return x

    def concatenated(self, x: Tensor) -> Tensor:
        """Return the rows x of all processes, in order of rank."""
        if not self.distributed:
            return x
        own, total = self.rows(len(x), x.device)
        rows = x.new_zeros(total, *x.shape[1:])
        rows[own] = x
        return self.summed(rows)

    def rows(self, n: int, device: torch.device) -> tuple[slice, int]:
        """Return the slice of the n rows of this process among all rows, and how many all are."""
        if not self.distributed:
            return slice(0, n), n
        rank = dist.get_rank()
        counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
        counts[rank] = n
        ends = self.summed(counts).cumsum(0).tolist()
        return slice(ends[rank] - n, ends[rank]), ends[-1]
