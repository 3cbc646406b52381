"""The split of classes over ranks, and differentiable sums over ranks.

A tensor is either replicated, the same on all ranks, or partial, different on each rank.
``to_shards`` turns a replicated tensor into a partial one, ``from_shards`` sums a partial one into
a replicated one. Each is the gradient of the other, so both can be differentiated any number of
times. A replicated tensor has the same, whole gradient on every rank; a partial one its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.tensor import DTensor, Shard

from softmax_torch.maths import upcast

__all__ = ["ClassShard", "from_shards", "initialised", "reduced", "to_shards"]


class ClassShard(NamedTuple):
    """The classes [start, stop) of this rank, out of ``classes``, and the group that has all."""

    group: dist.ProcessGroup
    start: int
    stop: int
    classes: int

    @classmethod
    def of(
        cls,
        size: int,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ) -> ClassShard:
        """Return the shard of a rank with ``size`` classes, numbered after those of lower ranks.

        A collective call, made once: ranks exchange their sizes, which may differ and be 0.
        ``device`` is the device on which the group communicates, a CPU by default.
        """
        group = initialised(group)
        sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(group.size())]
        own = torch.tensor([size], dtype=torch.int64, device=device)
        dist.all_gather(sizes, own, group=group)
        counts = [int(s) for s in sizes]
        start = sum(counts[: group.rank()])
        return cls(group, start, start + size, sum(counts))

    @classmethod
    def even(cls, classes: int, group: dist.ProcessGroup | None = None) -> ClassShard:
        """Return this rank's shard if classes are split as ``torch.chunk`` and DTensor do."""
        group = initialised(group)
        size = -(-classes // group.size())
        start = min(group.rank() * size, classes)
        return cls(group, start, min(start + size, classes), classes)

    @classmethod
    def of_parameter(cls, weight: DTensor, name: str) -> ClassShard:
        """Return the shard of a DTensor (C, ...); raise ValueError unless it is split by class."""
        mesh = weight.device_mesh
        if tuple(weight.placements) != (Shard(0),):
            raise ValueError(
                f"{name}: expected a DTensor with placements (Shard(dim=0),) on a mesh of one "
                f"dimension, got {tuple(weight.placements)}"
            )
        return cls.even(weight.shape[0], mesh.get_group())


def initialised(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """Return the group, by default of all ranks; raise ValueError unless this rank is in it."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(
            "group: expected a process group of torch.distributed "
            "(torch.distributed.init_process_group, torchrun), got none that is initialised"
        )
    found = dist.group.WORLD if group is None else group
    if not isinstance(found, dist.ProcessGroup) or dist.get_rank(found) < 0:
        raise ValueError(
            f"group: expected a process group that this rank ({dist.get_rank()}) is in, got {found}"
        )
    return found


def reduced(x: Tensor, op: Any, *groups: dist.ProcessGroup) -> Tensor:
    """Return the reduction of x over the ranks of groups, without a gradient."""
    total = x.detach().clone(memory_format=torch.contiguous_format)
    for group in groups:
        dist.all_reduce(total, op, group=group)
    return total


class _ToShards(Function):
    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return from_shards(upcast(g), ctx.group).to(g.dtype), None


class _FromShards(Function):
    @staticmethod
    def forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
        return reduced(x, dist.ReduceOp.SUM, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return to_shards(g, ctx.group), None


def to_shards(x: Tensor, *groups: dist.ProcessGroup) -> Tensor:
    """Return the replicated x for partial results: the ranks' gradients of it are summed.

    Several groups are the dimensions of one mesh.
    """
    for group in groups:
        x = _ToShards.apply(x, group)
    return x


def from_shards(x: Tensor, *groups: dist.ProcessGroup) -> Tensor:
    """Return the sum over ranks of the partial x, a replicated tensor."""
    for group in groups:
        x = _FromShards.apply(x, group)
    return x
