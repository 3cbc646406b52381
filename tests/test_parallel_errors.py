"""Classes split over gloo ranks: a mistake of one rank is the same error on all ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from shards import C, D, N, own_shard
from support import in_group
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate

from softmax_torch.parallel import (
    ClassShard,
    ShardedSoftmaxRegression,
    linear_cross_entropy,
    rank_checks,
)


def error_of(call: Any) -> str:
    rank_checks.COMPARED.clear()
    try:
        call()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def later_errors(size: int) -> tuple[str, int]:
    """Return this rank's error after a call that was right on all ranks, and the messages sent."""
    shard = own_shard(size)
    W, x, y = torch.randn(shard.stop - shard.start, D), torch.randn(N, D), torch.arange(N) % C
    linear_cross_entropy(x, W, y, shard=shard)
    with torch.profiler.profile() as profile:
        linear_cross_entropy(x, W, y, shard=shard)
    sent = sum(event.name == "gloo:all_reduce" for event in profile.events())
    with pytest.raises(IndexError) as raised:
        linear_cross_entropy(x, W, y + C, shard=shard)
    return str(raised.value), sent


def errors(size: int) -> list[str]:
    """Return the errors that this rank raises for mistakes of the last rank in a first call."""
    last = dist.get_rank() == size - 1
    shard = own_shard(size)
    W = torch.randn(shard.stop - shard.start, D)
    x, y = torch.randn(N, D), torch.zeros(N, dtype=torch.int64)
    turned = torch.arange(N) % C  # the same sum in any order
    wrong = y.clone()
    wrong[7] = C

    def call(x: Tensor, y: Tensor, **more: Any) -> str:
        return error_of(lambda: linear_cross_entropy(x, W, y, shard=shard, **more))

    return [
        call(x, wrong if last else y),
        call(x[: N - 2] if last else x, y[: N - 2] if last else y),
        call(x, y, reduction="sum" if last else "mean"),
        call(x, torch.ones_like(y) if last else y),
        call(x, torch.ones(N, C + 1)),
        call(x, y, weight=torch.full((C,), torch.nan) if last else torch.ones(C)),
        call(x, y, sample_weight=torch.ones(N) if last else None),
        call(x, y, weight=torch.ones(C) if last else None),
        call(x, turned.flip(0) if last else turned),
        call(x, y, linear_bias=torch.zeros(len(W)) if last else None),
        call(x.clone().requires_grad_(last), y),
        call(x, torch.ones(N, len(W)) if last else y),
        call(x, y.int() if last else y),
        call(x, torch.ones(N, len(W), dtype=torch.float64 if last else None)),
        error_of(lambda: linear_cross_entropy(x, W[1:] if last else W, y, shard=shard)),
        call(x, torch.ones(N, C, dtype=torch.int64)),
        call(None if last else x, y),
        call(x[:, 1:], y),
        call(x, y, reduction="median"),
        call(x, y - 1, ignore_index=-1),
        error_of(lambda: ShardedSoftmaxRegression(D, C).loss(x, wrong if last else y)),
        call(x, y),
    ]


def refused(size: int) -> None:
    """Check mistakes of every rank: tensors, meshes and groups that do not fit."""
    rank = dist.get_rank()
    x, W, y = torch.randn(2, D), torch.randn(C, D), torch.tensor([1, 2])
    copied = DTensor.from_local(W, init_device_mesh("cpu", (size,)), [Replicate()])
    with pytest.raises(ValueError, match=r"expected a DTensor with placements \(Shard\(dim=0\),\)"):
        linear_cross_entropy(x, copied, y)
    with pytest.raises(ValueError, match="shard: expected a ClassShard with local tensors"):
        linear_cross_entropy(x, W, y)
    with pytest.raises(RuntimeError, match="expected plain eager code, got torch"):
        torch.func.grad(ShardedSoftmaxRegression(D, C).loss)(x, y)
    with pytest.raises(ValueError, match=r"input: expected shape \(..., 5\), got \(2, 4\)"):
        ShardedSoftmaxRegression(D, C).logits(x[:, 1:])
    alone = dist.new_group([0])
    if rank > 0:
        with pytest.raises(ValueError, match=rf"group that this rank \({rank}\) is in"):
            ClassShard.of(C, alone)


def work(rank: int, folder: str, size: int) -> None:
    refused(size)
    torch.save(errors(size), f"{folder}/errors{size}-{rank}.pt")
    error, sent = later_errors(size)
    assert error.startswith("target: expected class indices in [0, 11)")  # no rank is named
    assert sent == 2  # the largest logit of each row, and sums: arguments are compared once


@pytest.mark.parametrize("size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_every_rank_raises_the_error_of_one(size: int, tmp_path: Path) -> None:
    in_group(work, size, tmp_path, size)
    if size == 1:
        return
    found = [torch.load(tmp_path / f"errors{size}-{rank}.pt") for rank in range(size)]
    assert all(errors == found[0] for errors in found)
    out_of_range, rows, reduction, values, shape, nan, given, *more = found[0]
    weight, order, bias, gradient, soft, small, double, short, whole, *more = more
    missing, narrow, median, ignored, module, none = more
    at = f"rank {size - 1}: "
    assert out_of_range.startswith(f"IndexError: {at}target: expected class indices in [0, 11)")
    assert rows.startswith("ValueError: input: expected the same on all ranks, got torch.float")
    assert f"(21, 5) on rank {size - 1}" in rows
    assert reduction.startswith("ValueError: reduction: expected the same on all ranks")
    assert values.startswith("ValueError: checksum of target: expected the same on all ranks")
    assert shape.startswith("RuntimeError: rank 0: target: expected probabilities of the shard")
    assert nan.startswith(f"ValueError: {at}weight: expected numbers, got nan")
    assert given.startswith("ValueError: sample_weight: expected the same on all ranks, got No")
    for name, error in (
        ("weight", weight),
        ("checksum of target", order),
        ("linear_bias", bias),
        ("input", gradient),
        ("target", soft),
        ("target", small),
        ("target", double),
    ):
        assert error.startswith(f"ValueError: {name}: expected the same on all ranks, got ")
    assert short.startswith(f"RuntimeError: {at}linear_weight: expected shape (")
    assert whole.startswith("RuntimeError: rank 0: target: expected class probabilities in a f")
    assert missing.startswith(f"TypeError: {at}input: expected a Tensor, got NoneType")
    assert narrow.startswith("RuntimeError: rank 0: input: expected 5 features as linear_weig")
    assert median.startswith("ValueError: rank 0: reduction: expected")
    assert ignored == "none"
    assert module == out_of_range
    assert none == "none"  # after an error on all ranks, all can go on


def test_without_a_group_it_is_refused() -> None:
    for call in (lambda: ClassShard.of(3), lambda: ShardedSoftmaxRegression(2, 3)):
        with pytest.raises(
            ValueError, match=r"group: expected a process group of torch.distributed"
        ):
            call()
