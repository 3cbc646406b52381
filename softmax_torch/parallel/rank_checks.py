"""Whether all ranks can go on with a call: none has an error, and all were given the same.

A call begins with a reduction of 24 bytes, by which a mistake on one rank becomes an error on all,
and none waits for another. On a GPU that waits for the device, once a call.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from softmax_torch.loss import arguments as checks
from softmax_torch.loss.weights import Options
from softmax_torch.ops import backends
from softmax_torch.ops.linear_rows import Linear
from softmax_torch.parallel.shards import ClassShard

__all__ = ["agreed"]


def agreed(
    linear: Linear,
    target: Tensor,
    shard: ClassShard,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
) -> bool:
    """Whether ``target`` holds class probabilities, once all ranks' arguments fit.

    Raises:
        What this or another rank's arguments come to, on all ranks.
    """
    error: Exception | None = None
    try:
        soft = _checked(linear, target, shard, weight, sample_weight, options)
    except Exception as e:
        soft, error = False, e
    described = _described(linear, target, weight, sample_weight, options, soft)
    _agree(error, described, shard, linear.x)
    return soft


def _checked(
    linear: Linear,
    target: Tensor,
    shard: ClassShard,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
) -> bool:
    """Whether ``target`` holds class probabilities, once this rank's arguments fit."""
    checks.options(options.reduction, options.label_smoothing, options.z_loss)
    checks.linear_shapes(*linear)
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
        whole = target.new_zeros(()).expand(*rows, shard.classes)  # as the whole would be checked
    soft = checks.linear_target_shapes(
        x, shard.classes, whole, weight, options.ignore_index, sample_weight
    )
    if not soft:
        checks.class_indices(target, shard.classes, options.ignore_index)
    return soft


def _described(
    linear: Linear,
    target: Tensor,
    weight: Tensor | None,
    sample_weight: Tensor | None,
    options: Options,
    soft: bool,
) -> dict[str, str]:
    """What ranks have to have alike, by name."""

    def kind(x: object) -> str:
        if not isinstance(x, Tensor):
            return "None" if x is None else type(x).__name__
        grad = " requires grad" if x.requires_grad and torch.is_grad_enabled() else ""
        return f"{x.dtype} {tuple(x.shape)}{grad}"

    found = {
        "input": kind(linear.x),
        "features and type of linear_weight": kind(linear.weight[:0]),
        "linear_bias": "None" if linear.bias is None else kind(linear.bias[:0]),
        "weight": kind(weight),
        "sample_weight": kind(sample_weight),
        **{name: str(value) for name, value in options._asdict().items()},
    }
    if soft:
        found["target"] = f"{target.dtype}, class probabilities"
    else:
        found["target"] = kind(target)
        if isinstance(target, Tensor) and backends.values_at_hand(target):
            y = target.flatten().to(torch.int64)
            places = torch.arange(1, len(y) + 1)
            found["checksum of target"] = str(int((y * places).sum()))
    return found


def _agree(
    error: Exception | None, described: dict[str, str], shard: ClassShard, input: Tensor
) -> None:
    """Go on only if no rank has an error and all have the same arguments; else raise on all."""
    digest = hashlib.sha256(repr(described).encode()).digest()
    number = int.from_bytes(digest[:7])
    device = input.device if isinstance(input, Tensor) else None
    worst = torch.tensor([int(error is not None), number, -number], device=device)
    dist.all_reduce(worst, dist.ReduceOp.MAX, group=shard.group)
    failed, most, least = worst.tolist()
    if not failed and most == -least:
        return
    own = (None if error is None else (type(error), str(error)), described)
    found: list[Any] = [None] * shard.group.size()
    dist.all_gather_object(found, own, group=shard.group)
    for rank, (wrong, _) in enumerate(found):
        if wrong is not None:
            kind, message = wrong
            raise kind(f"rank {rank}: {message}") from error
    for name in dict.fromkeys(name for _, names in found for name in names):
        values = [names.get(name, "none") for _, names in found]
        if len(set(values)) > 1:
            listed = "; ".join(f"{value} on rank {rank}" for rank, value in enumerate(values))
            raise ValueError(f"{name}: expected the same on all ranks, got {listed}")
