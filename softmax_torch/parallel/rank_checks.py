"""Check that no rank of a sharded loss has an error and that all ranks have the same arguments.

The first call in a group begins with an all-reduce of 24 bytes. It turns a mistake on one rank into
an error on all, so that no rank waits for one that has stopped. On a GPU this waits for the device.
After a call in which the ranks of a group had the same arguments, later calls compare nothing: each
rank checks its own arguments alone.
"""

from __future__ import annotations

import hashlib
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softmax_torch.loss import arguments
from softmax_torch.loss.arguments import Options, Problem
from softmax_torch.ops import backends
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.parallel.shards import ClassShard

__all__ = ["parse_on_all_ranks"]

COMPARED: weakref.WeakSet[dist.ProcessGroup] = weakref.WeakSet()
"""Groups whose ranks had the same arguments in one call."""


def parse_on_all_ranks(
    linear: Linear, target: Tensor, shard: ClassShard, options: Options
) -> Problem:
    """Parse the arguments of every rank; ``classes`` of the problem counts all shards' classes.

    Raises:
        Exception: this rank's arguments do not fit. Up to the first call in a group in which the
            arguments of all ranks fit, all ranks raise the error of the first that has one.
        ValueError: in the same calls, ranks were given different arguments.
    """
    if shard.group in COMPARED:
        return _parse(linear, target, shard, options)
    error: Exception | None = None
    problem: Problem | None = None
    try:
        problem = _parse(linear, target, shard, options)
    except Exception as e:
        error = e
    soft = problem is not None and problem.soft
    description = _description(linear, target, options, soft)
    _compare(error, description, shard, linear.x)
    assert problem is not None, "an error is raised on all ranks"
    COMPARED.add(shard.group)
    return problem


def _parse(linear: Linear, target: Tensor, shard: ClassShard, options: Options) -> Problem:
    """Check and parse this rank's arguments."""
    arguments.check_options(options)
    arguments.check_linear(linear)
    x, C_r = linear.x, shard.stop - shard.start
    if linear.weight.dim() != 2 or len(linear.weight) != C_r:
        raise RuntimeError(
            f"linear_weight: expected shape ({C_r}, {x.shape[-1]}), as the shard has {C_r} classes,"
            f" got {tuple(linear.weight.shape)}"
        )
    rows = x.shape[:-1]
    whole = target
    if isinstance(target, Tensor) and target.dim() == x.dim() and target.is_floating_point():
        if target.shape != (*rows, C_r):
            raise RuntimeError(
                f"target: expected probabilities of the shard's classes of shape "
                f"{(*rows, C_r)}, got {tuple(target.shape)}"
            )
        whole = target.new_zeros(()).expand(*rows, shard.classes)  # of the shape that is checked
    return arguments.linear_problem(linear, target, options, shard.classes, whole)


def _description(linear: Linear, target: Tensor, options: Options, soft: bool) -> dict[str, str]:
    """Return the properties of the arguments that must be the same on all ranks, by name."""

    def kind(x: object) -> str:
        if not isinstance(x, Tensor):
            return "None" if x is None else type(x).__name__
        grad = " requires grad" if x.requires_grad and torch.is_grad_enabled() else ""
        return f"{x.dtype} {tuple(x.shape)}{grad}"

    found = {
        "input": kind(linear.x),
        "features and type of linear_weight": kind(linear.weight[:0]),
        "linear_bias": "None" if linear.bias is None else kind(linear.bias[:0]),
        **{n: kind(v) if isinstance(v, Tensor) else str(v) for n, v in options._asdict().items()},
    }
    if soft:
        found["target"] = f"{target.dtype}, class probabilities"
    else:
        found["target"] = kind(target)
        if isinstance(target, Tensor) and backends.values_readable(target):
            y = target.flatten().to(torch.int64)
            places = torch.arange(1, len(y) + 1)
            found["checksum of target"] = str(int((y * places).sum()))
    return found


def _compare(
    error: Exception | None, description: dict[str, str], shard: ClassShard, input: Tensor
) -> None:
    """Raise on all ranks if one has an error or the descriptions differ."""
    digest = hashlib.sha256(repr(description).encode()).digest()
    number = int.from_bytes(digest[:7])
    device = input.device if isinstance(input, Tensor) else None
    worst = torch.tensor([int(error is not None), number, -number], device=device)
    dist.all_reduce(worst, dist.ReduceOp.MAX, group=shard.group)
    failed, most, least = worst.tolist()
    if not failed and most == -least:
        return
    own = (None if error is None else (type(error), str(error)), description)
    of_ranks: list[Any] = [None] * shard.group.size()
    dist.all_gather_object(of_ranks, own, group=shard.group)
    for rank, (wrong, _) in enumerate(of_ranks):
        if wrong is not None:
            kind, message = wrong
            raise kind(f"rank {rank}: {message}") from error
    for name in dict.fromkeys(name for _, names in of_ranks for name in names):
        values = [names.get(name, "none") for _, names in of_ranks]
        if len(set(values)) > 1:
            listed = "; ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ValueError(f"{name}: expected the same on all ranks, got {listed}")
