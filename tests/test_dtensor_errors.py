"""What cannot be computed with DTensors raises the same error on all ranks, and none waits."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dtensor_cases import split
from support import in_group
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Shard

from softmax_torch import cross_entropy, cross_entropy_outputs, linear_cross_entropy


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def errors(mesh: DeviceMesh) -> dict[str, str]:
    """Return the errors of this rank, by the pattern that is expected of them."""
    last = mesh.get_rank() == mesh.size() - 1
    torch.manual_seed(0)
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    x, W, b = torch.randn(4, 5), torch.randn(3, 5), torch.randn(3)
    rows, classes = split(z, mesh, (0,)), split(z, mesh, (1,))
    W_0, W_1, W_all = split(W, mesh, (0,)), split(W, mesh, (1,)), split(W, mesh, (None,))
    wrong = torch.tensor([0, 1, 2, 7])
    unsummed = DTensor.from_local(z, mesh, (Partial(),))
    flat = init_device_mesh("cpu", (1, 2))
    uneven = DTensor.from_local(
        z[: 1 if last else 3], mesh, (Shard(0),), run_check=False, shape=z.shape, stride=(3, 1)
    )
    negative = split(torch.tensor([1.0, 1, 1, -2]), mesh, (0,))
    own = x + 1 if last else x

    def layer(*arguments: Any, **given: Any) -> Callable[[], Tensor]:
        return lambda: linear_cross_entropy(*arguments, **given)

    def logits(*arguments: Any, **given: Any) -> Callable[[], Tensor]:
        return lambda: cross_entropy(*arguments, **given)

    calls = {
        "IndexError: rank 1: target: .* got 7": logits(rows, split(wrong, mesh, (0,))),
        r"IndexError: rank 0: target: expected class indices in \[0, 3\)": logits(classes, wrong),
        "ValueError: checksum of target: expected the same": logits(rows, y.flip(0) if last else y),
        r"ValueError: rank 0: target: .* of shape \(4,\)": logits(rows, y[:2]),
        "RuntimeError: input: expected a DTensor with placements Shard or R": logits(unsummed, y),
        r"RuntimeError: target: .* placements \(Replicate\(\),\), as": logits(
            classes, split(y, mesh, (0,))
        ),
        r"RuntimeError: target: .* placements \(Shard\(dim=0\),\), as": logits(rows, classes),
        "RuntimeError: input: expected a DTensor as target": logits(z, split(y, mesh, (0,))),
        "RuntimeError: weight: .* or replicated": logits(rows, y, split(b, mesh, (0,))),
        "RuntimeError: target: expected a DTensor on the mesh": logits(
            rows, split(y, flat, (None, 0))
        ),
        "ValueError: rank 0: input: expected a local part": logits(uneven, y),
        "ValueError: rank 1: sample_weight: .* got -2": logits(rows, y, sample_weight=negative),
        "ValueError: rank 0: reduction: expected": logits(rows, y, reduction="median"),
        "RuntimeError: expected plain tensors, got a DTensor": lambda: (
            cross_entropy_outputs(rows, y, outputs=("lse",)).loss
        ),
        "ValueError: weight: expected the same values": logits(rows, y, own[:3, 0].contiguous()),
        "ValueError: input: expected the same on all ranks": logits(
            rows.detach().requires_grad_(last), y
        ),
        "TypeError: rank 1: target: expected a Tensor": logits(rows, None if last else y),
        "RuntimeError: linear_weight: expected a DTensor as": layer(split(x, mesh, (0,)), W, y),
        "RuntimeError: input: .* replicated where classes .* FSDP2": layer(
            split(x, mesh, (0,)), W_0, y
        ),
        "RuntimeError: input: .* whole features": layer(split(x, mesh, (1,)), W_all, y),
        r"RuntimeError: linear_weight: .* \(C, D\)": layer(x, W_1, y),
        "ValueError: input: expected the same values .* FSDP2": layer(own, W_0, y),
        "ValueError: input: .* that differ. With": layer(own, W_all, y),
        "RuntimeError: linear_bias: expected a DTensor as": layer(x, W_0, y, linear_bias=b),
        r"RuntimeError: linear_bias: .* placements \(Shard\(dim=0\),\) as": layer(
            x, W_0, y, linear_bias=split(b, mesh, (None,))
        ),
        "RuntimeError: rank 0: input: expected 5 features": layer(x[:, 1:], W_0, y),
        "RuntimeError: expected plain eager code with DTensors": lambda: torch.func.grad(
            lambda z: cross_entropy(z, y)
        )(rows),
        "none": logits(rows, y),
    }
    return {pattern: error_of(call) for pattern, call in calls.items()}


def of_rank(rank: int, folder: str) -> None:
    torch.save(errors(init_device_mesh("cpu", (2,))), f"{folder}/{rank}.pt")


@pytest.mark.slow
def test_errors_of_two_ranks(tmp_path: Path) -> None:
    in_group(of_rank, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first == second  # the same error on all ranks
    for pattern, error in first.items():
        assert re.match(pattern, error), f"{pattern}: {error}"
