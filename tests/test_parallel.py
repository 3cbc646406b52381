"""Classes split over gloo ranks give what one process gives: losses, derivatives, errors, state."""

import doctest
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from support import OURS, TORCHS, options
from torch import Tensor

from softmax_torch import SoftmaxRegression, parallel
from softmax_torch.functional import linear_cross_entropy as plain
from softmax_torch.parallel import ClassShard, ShardedSoftmaxRegression, linear_cross_entropy

N, D, C = 23, 5, 11
CASES = (
    TORCHS
    | OURS
    | {
        "ignored": {"ignore_index": 3, "label_smoothing": 0.2},
        "ignored, none": {"ignore_index": 3, "reduction": "none"},
    }
)
SIZES = {1: [11], 2: [4, 7], 4: [2, 0, 5, 4]}  # uneven on purpose, one is empty


def derivatives(loss: Any, leaves: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
    """Value, gradients, and the derivatives of their product with vectors."""
    value = loss(*leaves)
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view(value.shape)
    first = torch.autograd.grad(value, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(value, leaves, upstream, create_graph=True)
    second = torch.autograd.grad(again, leaves, vectors)
    return [value.detach(), *first, *(g.detach() for g in again), *second]


def compare(size: int, dtype: torch.dtype) -> None:
    shard = ClassShard.of(SIZES[size][dist.get_rank()])
    for soft in (False, True):
        for name, chosen in CASES.items():
            if soft and "ignore_index" in chosen:
                continue
            compare_one(shard, dtype, soft, name, chosen)


def compare_one(
    shard: ClassShard, dtype: torch.dtype, soft: bool, name: str, chosen: dict[str, Any]
) -> None:
    part = slice(shard.start, shard.stop)
    torch.manual_seed(0)
    x = torch.randn(N, D, dtype=dtype)
    W, b = torch.randn(C, D, dtype=dtype), torch.randn(C, dtype=dtype)
    target = torch.rand(N, C, dtype=dtype).softmax(1) if soft else torch.randint(C, (N,))
    given = options(chosen, C, (N,), dtype)
    tensors = {k: v for k, v in given.items() if isinstance(v, Tensor)}
    numbers = {k: v for k, v in given.items() if k not in tensors}
    whole = [x, W, b, *tensors.values(), *([target] if soft else [])]
    local = [x, W[part], b[part], *tensors.values(), *([target[:, part]] if soft else [])]
    cut = [False, True, True, *(False for _ in tensors), True]

    def loss(one: bool, leaves: list[Tensor]) -> Tensor:
        x, W, b, *rest = leaves
        t = rest[len(tensors)] if soft else target
        more = dict(zip(tensors, rest, strict=False)) | numbers
        if one:
            return plain(x, W, t, linear_bias=b, **more)
        return linear_cross_entropy(x, W, t, linear_bias=b, shard=shard, **more)

    vectors = [torch.randn_like(t) for t in whole]

    def own(t: Tensor, i: int) -> Tensor:
        return t if not cut[i] else t[:, part] if i > 2 else t[part]

    expected = derivatives(
        lambda *t: loss(True, list(t)), [t.clone().requires_grad_() for t in whole], vectors
    )
    found = derivatives(
        lambda *t: loss(False, list(t)),
        [t.clone().requires_grad_() for t in local],
        [own(v, i) for i, v in enumerate(vectors)],
    )
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    for i, (a, e) in enumerate(zip(found, expected, strict=True)):
        e = e if i == 0 else own(e, (i - 1) % len(whole))
        close = torch.allclose(a, e, rtol=tolerance, atol=tolerance)
        assert close, f"{name}, soft {soft}, result {i}: {a} for {e}"


def extremes(size: int) -> None:
    """Logits around 1e4, and certain predictions, keep their digits."""
    shard = ClassShard.of(SIZES[size][dist.get_rank()])
    part = slice(shard.start, shard.stop)
    z = torch.full((2, C), 1e4)
    z[0, 2], z[1, 9] = 1e4 + 0.0009765625 * 7, 1e4 + 40
    W, x, y = z.t().contiguous(), torch.eye(2), torch.tensor([2, 9])
    kept = {"reduction": "none"}
    loss = linear_cross_entropy(x, W[part], y, shard=shard, **kept)
    exact = plain(x.double(), W.double(), y, **kept)
    assert torch.allclose(loss.double(), exact, rtol=1e-6, atol=0), (loss, exact)
    low = linear_cross_entropy(x, -W[part], y, shard=shard, label_smoothing=0.5, **kept)
    exact = plain(x.double(), -W.double(), y, label_smoothing=0.5, **kept)
    assert torch.allclose(low.double(), exact, rtol=1e-5, atol=0)


def error_of(call: Any) -> str:
    try:
        call()
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return "none"


def errors(size: int) -> list[str]:
    """What each rank raises for mistakes of the last one."""
    last = dist.get_rank() == size - 1
    shard = ClassShard.of(SIZES[size][dist.get_rank()])
    W = torch.randn(shard.stop - shard.start, D)
    x, y = torch.randn(N, D), torch.zeros(N, dtype=torch.int64)
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
        call(x, y, weight=-torch.ones(C) if last else torch.ones(C)),
    ]


def module(size: int, folder: str) -> None:
    """Initial values, training, gathering, and a checkpoint."""
    torch.manual_seed(3)
    one = SoftmaxRegression(D, C)
    torch.manual_seed(3)
    split = ShardedSoftmaxRegression(D, C)
    assert isinstance(split.bias, Tensor)
    per = -(-C // size)
    held = split.weight.to_local()
    assert held.numel() <= per * D  # bytes a rank: 1 / ranks, rounded up to a class
    assert split.weight.full_tensor().equal(one.linear.weight)
    assert split.bias.full_tensor().equal(one.linear.bias)
    x, y = torch.randn(2, 7, D), torch.randint(C, (2, 7))
    pair = [torch.optim.SGD(m.parameters(), lr=0.5, momentum=0.9) for m in (one, split)]
    for _ in range(5):
        for model, optimizer in zip((one, split), pair, strict=True):
            optimizer.zero_grad()
            model.loss(x, y, label_smoothing=0.1).backward()
            optimizer.step()
    torch.testing.assert_close(split.weight.full_tensor(), one.linear.weight)
    torch.testing.assert_close(split.logits(x, gather=True), one.logits(x))
    part = slice(split.shard.start, split.shard.stop)
    torch.testing.assert_close(split(x), one(x)[..., part])
    assert split.predict(x).equal(one.predict(x))
    for f, g in ((lambda t: split.logits(t, True), one.logits), (split, one)):
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = f(leaf)
        (out.square().sum()).backward()
        reference = g(other).square()
        reference.sum().backward()
        torch.testing.assert_close(leaf.grad, other.grad)
    with torch.no_grad():
        split.weight.zero_()
        split.bias.zero_()
    assert split.predict(x).equal(torch.zeros(2, 7, dtype=torch.int64))  # the first of equals
    split.zero_grad()
    split.loss(x[:, :0], y[:, :0], reduction="sum").backward()  # no rows ask for no change
    assert split.weight.grad is not None
    assert split.weight.grad.to_local().equal(torch.zeros_like(held))
    with torch.autocast("cpu", torch.bfloat16):
        low = split.loss(x, y)
    torch.testing.assert_close(low, torch.tensor(float(C)).log())


def checkpoint(size: int, folder: str) -> None:
    """Load what each other number of ranks saved, if it is there, and save."""
    torch.manual_seed(size)
    split = ShardedSoftmaxRegression(D, C, dtype=torch.float64)
    state = {"model": split.state_dict()}
    for other in SIZES:
        if Path(folder, f"from{other}").exists():
            dcp.load(state, checkpoint_id=f"{folder}/from{other}")
            split.load_state_dict(state["model"])
            torch.manual_seed(other)
            expected = SoftmaxRegression(D, C, dtype=torch.float64)
            assert split.weight.full_tensor().equal(expected.linear.weight)
            assert split.bias.full_tensor().equal(expected.linear.bias)
    torch.manual_seed(size)
    split.reset_parameters()
    dist.barrier()
    dcp.save({"model": split.state_dict()}, checkpoint_id=f"{folder}/from{size}")


def work(rank: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet{size}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    compare(size, torch.float64)
    if size == 2:
        compare(size, torch.float32)
    extremes(size)
    module(size, folder)
    checkpoint(size, folder)
    torch.save(errors(size), f"{folder}/errors{size}-{rank}.pt")
    dist.destroy_process_group()


def test_ranks_do_what_one_process_does(tmp_path: Path) -> None:
    for size in (2, 4, 1):
        mp.spawn(work, (size, str(tmp_path)), nprocs=size)
        if size == 1:
            continue
        found = [torch.load(tmp_path / f"errors{size}-{rank}.pt") for rank in range(size)]
        assert all(errors == found[0] for errors in found)
        out_of_range, rows, reduction, values, shape, negative = found[0]
        at = f"rank {size - 1}: "
        assert out_of_range.startswith(f"IndexError: {at}target: expected class indices in [0, 11)")
        assert rows.startswith("ValueError: input: expected the same on all ranks, got torch.float")
        assert f"(21, 5) on rank {size - 1}" in rows
        assert reduction.startswith("ValueError: reduction: expected the same on all ranks")
        assert values.startswith("ValueError: checksum of target: expected the same on all ranks")
        assert shape.startswith("RuntimeError: rank 0: target: expected probabilities of the shard")
        assert negative.startswith(f"ValueError: {at}weight: expected numbers >= 0, got -1.0")


def test_without_a_group_it_is_refused() -> None:
    for call in (lambda: ClassShard.of(3), lambda: ShardedSoftmaxRegression(2, 3)):
        with pytest.raises(
            ValueError, match=r"group: expected a process group of torch.distributed"
        ):
            call()


def test_the_example() -> None:
    found = doctest.testmod(parallel)
    assert found.attempted > 5
    assert found.failed == 0
