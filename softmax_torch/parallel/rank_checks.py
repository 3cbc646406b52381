"""Check that no rank of a sharded loss has an error and that all ranks have the same arguments.

The first call in a group begins with an all-reduce of 24 bytes. It turns a mistake on one rank into
an error on all, so that no rank waits for one that has stopped. On a GPU this waits for the device.
After a call in which the ranks of a group had the same arguments, later calls compare nothing: each
rank checks its own arguments alone.
"""

from __future__ import annotations

import hashlib
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softmax_torch.loss import arguments, checks
from softmax_torch.loss.arguments import Problem
from softmax_torch.loss.checks import Options
from softmax_torch.maths import upcast
from softmax_torch.ops import backends
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.parallel.shards import ClassShard, reduced

__all__ = ["COMPARED", "parse_on_all_ranks", "parsed_on_all_ranks", "properties", "same_values"]

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
    device = linear.x.device if isinstance(linear.x, Tensor) else None
    problem = parsed_on_all_ranks(
        lambda: _parse(linear, target, shard, options),
        lambda problem: _description(linear, target, options, problem is not None and problem.soft),
        (shard.group,),
        device,
    )
    COMPARED.add(shard.group)
    return problem


def parsed_on_all_ranks(
    parse: Callable[[], Problem],
    describe: Callable[[Problem | None], dict[str, str]],
    groups: Sequence[dist.ProcessGroup],
    device: torch.device | None,
    hint: str = "",
) -> Problem:
    """Return the problem that ``parse`` returns, or raise on all ranks of the groups.

    ``describe`` is given the problem, or None after an error, and returns the properties that must
    be the same on all ranks, by name. Ranks are numbered by their place in the groups, of which the
    last varies fastest. ``hint`` is added to the error of different descriptions.

    Raises:
        Exception: the error of the first rank whose ``parse`` failed.
        ValueError: the descriptions differ.
    """
    error: Exception | None = None
    problem: Problem | None = None
    try:
        problem = parse()
    except Exception as e:
        error = e
    _compare(error, describe(problem), groups, device, hint)
    assert problem is not None, "an error is raised on all ranks"
    return problem


def _parse(linear: Linear, target: Tensor, shard: ClassShard, options: Options) -> Problem:
    """Check and parse this rank's arguments."""
    checks.check_options(options)
    checks.check_linear(linear)
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


def properties(**values: object) -> dict[str, str]:
    """Return what must be the same on all ranks of tensors and other arguments, by name."""
    found = {}
    for name, x in values.items():
        if not isinstance(x, Tensor):
            found[name] = str(x)
            continue
        placements = getattr(x, "placements", None)
        split = "" if placements is None else f" {placements}"
        grad = " requires grad" if x.requires_grad and torch.is_grad_enabled() else ""
        found[name] = f"{x.dtype} {tuple(x.shape)}{split}{grad}"
        if placements is None and not x.is_floating_point() and backends.values_readable(x):
            y = x.flatten().to(torch.int64)
            places = torch.arange(1, len(y) + 1)
            found[f"checksum of {name}"] = str(int((y * places).sum()))
    return found


def _description(linear: Linear, target: Tensor, options: Options, soft: bool) -> dict[str, str]:
    """Return the properties of the arguments of this rank."""
    bias = None if linear.bias is None else linear.bias[:0]
    found = properties(
        input=linear.x, target=target, weight_rows=linear.weight[:0], linear_bias=bias
    )
    found["features and type of linear_weight"] = found.pop("weight_rows")
    if soft:
        found["target"] = f"{target.dtype}, class probabilities"
    return found | properties(**options._asdict())


def same_values(tensors: dict[str, Tensor], groups: Sequence[dist.ProcessGroup], hint: str) -> None:
    """Raise ValueError on all ranks unless floating-point tensors have the same values on all.

    Three random-like projections of a tensor are compared, up to the square root of its precision
    times its norm: ranks may round differently. The tensors have the same shapes on all ranks.
    """
    found = [number for x in tensors.values() for number in _projections(x)]
    if not found:
        return
    own = torch.stack(found).double().nan_to_num(0.0, 0.0, 0.0)
    most, least = reduced(torch.stack([own, -own]), dist.ReduceOp.MAX, *groups)
    differences = (most + least).view(len(tensors), 4)[:, :3].amax(1).tolist()
    norms = most.view(len(tensors), 4)[:, 3].tolist()
    for (name, x), difference, norm in zip(tensors.items(), differences, norms, strict=True):
        if difference > math.sqrt(torch.finfo(x.dtype).eps) * norm:
            raise ValueError(
                f"{name}: expected the same values on all ranks, got values that differ. {hint}"
            )


@torch.no_grad()
def _projections(x: Tensor) -> list[Tensor]:
    """Return three linear functions of x, and its norm."""
    x = upcast(x.detach()).reshape(-1, x.shape[-1] if x.dim() > 0 else 1)
    rows, columns = (torch.arange(1, n + 1, dtype=x.dtype, device=x.device) for n in x.shape)
    turns = torch.tensor([1.0, 2.0, 3.0], dtype=x.dtype, device=x.device)
    projected = (rows.unsqueeze(1) * turns).cos() * (x @ (columns.unsqueeze(1) * turns).cos())
    return [*projected.sum(0), x.norm()]


def _compare(
    error: Exception | None,
    description: dict[str, str],
    groups: Sequence[dist.ProcessGroup],
    device: torch.device | None,
    hint: str,
) -> None:
    """Raise on all ranks if one has an error or the descriptions differ."""
    digest = hashlib.sha256(repr(description).encode()).digest()
    number = int.from_bytes(digest[:7])
    worst = torch.tensor([int(error is not None), number, -number], device=device)
    failed, most, least = reduced(worst, dist.ReduceOp.MAX, *groups).tolist()
    if not failed and most == -least:
        return
    of_ranks: list[Any] = [(None if error is None else (type(error), str(error)), description)]
    for group in reversed(groups):
        parts: list[Any] = [None] * group.size()
        dist.all_gather_object(parts, of_ranks, group=group)
        of_ranks = [own for part in parts for own in part]
    for rank, (wrong, _) in enumerate(of_ranks):
        if wrong is not None:
            kind, message = wrong
            raise kind(f"rank {rank}: {message}") from error
    for name in dict.fromkeys(name for _, names in of_ranks for name in names):
        values = [names.get(name, "none") for _, names in of_ranks]
        if len(set(values)) > 1:
            listed = "; ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ValueError(f"{name}: expected the same on all ranks, got {listed}{hint}")
