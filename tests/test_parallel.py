"""Classes split over gloo ranks against one process: losses, derivatives, checkpoints."""

import doctest
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from shards import SIZES, C, D, N, own_shard
from support import OURS, TORCHS, in_group, options
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from softmax_torch import SoftmaxRegression, parallel
from softmax_torch.functional import linear_cross_entropy as plain
from softmax_torch.parallel import (
    ClassShard,
    ShardedSoftmaxRegression,
    linear_cross_entropy,
    modules,
)

CASES = (
    TORCHS
    | OURS
    | {
        "ignored": {"ignore_index": 3, "label_smoothing": 0.2},
        "ignored, none": {"ignore_index": 3, "reduction": "none"},
    }
)


def derivatives(loss: Any, leaves: list[Tensor], vectors: list[Tensor]) -> list[Tensor]:
    """Return value, gradients, and the derivatives of their product with vectors."""
    value = loss(*leaves)
    upstream = torch.linspace(0.5, 2, value.numel(), dtype=value.dtype).view(value.shape)
    first = torch.autograd.grad(value, leaves, upstream, retain_graph=True)
    again = torch.autograd.grad(value, leaves, upstream, create_graph=True)
    second = torch.autograd.grad(again, leaves, vectors)
    return [value.detach(), *first, *(g.detach() for g in again), *second]


def compare(size: int, dtype: torch.dtype) -> None:
    shard = own_shard(size)
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
    tensors = {k: v for k, v in given.items() if isinstance(v, Tensor) and v.is_floating_point()}
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
    # Relative to the largest magnitude, or to 1 if that is smaller: both sides round.
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for i, (a, e) in enumerate(zip(found, expected, strict=True)):
        largest = max(1.0, float(e.abs().max()))
        e = e if i == 0 else own(e, (i - 1) % len(whole))
        close = torch.allclose(a, e, rtol=0, atol=tolerance * largest)
        assert close, f"{name}, soft {soft}, result {i}: {a} for {e}"


def extremes(size: int) -> None:
    """Check that logits around 1e4 and certain predictions keep their digits."""
    shard = own_shard(size)
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
    alone = torch.full((C,), -torch.inf)  # except one class, which is certain
    alone[2] = 0.0
    leaf = x.clone().requires_grad_()
    given = {"linear_bias": alone[part], "shard": shard}
    certain = linear_cross_entropy(leaf, W[part] / 1e4, torch.tensor([2, 2]), **given)
    certain.backward()
    assert certain == 0
    assert leaf.grad.equal(torch.zeros_like(x))
    coarse = torch.rand(2, C).softmax(1).bfloat16()  # probabilities whose sum has more digits
    loss = linear_cross_entropy(x, W[part] / 1e4, coarse[:, part], shard=shard, **kept)
    exact = plain(x.double(), W.double() / 1e4, coarse.double(), **kept)
    assert torch.allclose(loss.double(), exact, rtol=1e-6, atol=0), (loss, exact)


def module(size: int) -> None:
    """Check initial values, training, and gathered logits."""
    modules.DRAW_BLOCK = 3 * D  # blocks that begin and end within shards
    torch.manual_seed(3)
    one = SoftmaxRegression(D, C)
    torch.manual_seed(3)
    split = ShardedSoftmaxRegression(D, C)
    assert isinstance(split.bias, Tensor)
    per = -(-C // size)
    held = split.weight.to_local()
    assert (
        held.numel() <= per * D
    )  # numbers per rank: 1 / ranks of all, rounded up to whole classes
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
    kept = {
        "reduction": "none",
        "sample_weight": torch.rand(2, 7),
    }  # a target with one dimension less than x
    torch.testing.assert_close(split.loss(x, y, **kept), one.loss(x, y, **kept))
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
    split.loss(x[:, :0], y[:, :0], reduction="sum").backward()  # no rows, gradient 0
    assert split.weight.grad is not None
    assert split.weight.grad.to_local().equal(torch.zeros_like(held))
    with torch.autocast("cpu", torch.bfloat16):
        low = split.loss(x, y)
    torch.testing.assert_close(low, torch.tensor(float(C)).log())
    with torch.no_grad():  # numbers that bfloat16 rounds, in the layer and in the sum over classes
        one.linear.weight.zero_()[0] = 1 + 2**-7 + 2**-9
        one.linear.bias.zero_()
        split.weight.to_local().copy_(one.linear.weight[part])
    for ones in (torch.ones(2, D), torch.ones(2, D, dtype=torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            low, expected = (m.loss(ones, y[0, :2], label_smoothing=1.0) for m in (split, one))
        torch.testing.assert_close(low, expected)
    half = ShardedSoftmaxRegression(D, C, dtype=torch.bfloat16)
    assert half.loss(ones, y[0, :2]).dtype == torch.bfloat16
    with torch.no_grad():
        log_p = half.logits(ones, gather=True).float().log_softmax(-1)
        assert half(ones).equal(log_p[:, part].bfloat16())  # rounded once


def sums(size: int) -> None:
    """Check that sums follow a tensor's layout, in float32."""
    rank, world = dist.get_rank(), dist.group.WORLD
    matrix = torch.arange(6.0).view(2, 3)
    turned = matrix.t() if rank == 0 else matrix.t().contiguous()
    assert parallel.from_shards(turned, world).equal(size * matrix.t())
    leaf = torch.ones(size, dtype=torch.bfloat16, requires_grad=True)
    own = torch.where(torch.arange(size) == rank, 256.0, 0.5).bfloat16()
    (parallel.to_shards(leaf, world) * own).sum().backward()
    assert leaf.grad.equal(torch.full((size,), 256 + 0.5 * (size - 1)).bfloat16())


def few_classes(size: int) -> None:
    """Check ranks without a class: 5 classes on 4 ranks are split into 2, 2, 1 and 0."""
    for classes in (5, 1):  # a single class has no rivals
        x, y = torch.randn(7, D), torch.randint(classes, (7,))
        torch.manual_seed(4)
        one = SoftmaxRegression(D, classes)
        torch.manual_seed(4)
        split = ShardedSoftmaxRegression(D, classes)
        per = -(-classes // size)
        assert len(split.weight.to_local()) == max(0, min(per, classes - per * dist.get_rank()))
        assert split.predict(x).equal(one.predict(x))
        nothing = torch.full((1, D), torch.nan)
        assert split.predict(nothing).equal(one.predict(nothing))
        large, part = 1e3 * x, slice(split.shard.start, split.shard.stop)  # beyond what exp takes
        torch.testing.assert_close(split(large), one(large)[:, part])
        values = [model.loss(x, y, z_loss=0.1, label_smoothing=0.1) for model in (one, split)]
        torch.testing.assert_close(*values)
        for value in values:
            value.backward()
        assert split.weight.grad is not None
        torch.testing.assert_close(split.weight.grad.full_tensor(), one.linear.weight.grad)


def shares_of_rows() -> None:
    """Check 2 shares of the rows x 2 of the classes: gradients equal one process's on all rows."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "classes"))
    x, y = torch.randn(12, D), torch.randint(C, (12,))
    part = slice(6 * mesh.get_local_rank("data"), 6 * mesh.get_local_rank("data") + 6)
    torch.manual_seed(5)
    one = SoftmaxRegression(D, C)
    one.loss(x, y, label_smoothing=0.1).backward()
    for fsdp in (False, True):
        torch.manual_seed(5)
        split = ShardedSoftmaxRegression(D, C, mesh=mesh["classes"])
        if fsdp:  # splits the parameters over data ranks, and averages gradients by itself
            fully_shard(split, mesh=mesh["data"])
            register_fsdp_forward_method(split, "loss")
        split.loss(x[part], y[part], label_smoothing=0.1).backward()
        for parameter, whole in zip(split.parameters(), one.parameters(), strict=True):
            assert isinstance(parameter.grad, DTensor)
            if not fsdp:
                dist.all_reduce(parameter.grad.to_local(), group=mesh.get_group("data"))
                parameter.grad /= 2
            error = (parameter.grad.full_tensor() - whole.grad).abs().max()
            assert error <= 1e-6 * whole.grad.abs().max(), (fsdp, error)
        if not fsdp and mesh.get_local_rank("data") == 0:
            split.loss(x, y)  # the other share of the rows takes no part
    assert ClassShard.of(2, mesh.get_group("classes")).classes == 4
    with pytest.raises(ValueError, match="mesh: expected one dimension, got 2"):
        ShardedSoftmaxRegression(D, C, mesh=mesh)


def checkpoint(size: int, folder: str) -> None:
    """Load the checkpoints of other numbers of ranks and train on as they did; save one."""

    def trained(steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = split.loss(x, y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(6)
    x, y = torch.randn(N, D, dtype=torch.float64), torch.randint(C, (N,))
    for saved in [*(s for s in SIZES if Path(folder, f"losses{s}.pt").exists()), size]:
        torch.manual_seed(size)
        split = ShardedSoftmaxRegression(D, C, dtype=torch.float64)
        optimizer = torch.optim.SGD(split.parameters(), lr=0.5, momentum=0.9)
        if saved == size:
            trained(3)
        model, momentum = get_state_dict(split, optimizer)
        state = {"model": model, "optimizer": momentum}
        if saved == size:
            dcp.save(state, checkpoint_id=f"{folder}/from{size}")
            torch.save(trained(3), f"{folder}/losses{size}.pt")
            continue
        dcp.load(state, checkpoint_id=f"{folder}/from{saved}")
        set_state_dict(
            split, optimizer, model_state_dict=model, optim_state_dict=state["optimizer"]
        )
        buffer = optimizer.state[split.weight]["momentum_buffer"]
        assert buffer.to_local().shape == split.weight.to_local().shape
        expected = torch.load(f"{folder}/losses{saved}.pt")
        assert trained(3) == pytest.approx(expected, rel=1e-12)


def work(rank: int, folder: str, size: int) -> None:
    compare(size, torch.float64)
    if size > 1:
        compare(size, torch.float32)
    extremes(size)
    module(size)
    few_classes(size)
    sums(size)
    if size == 4:
        shares_of_rows()
    checkpoint(size, folder)


@pytest.mark.parametrize(
    "sizes", [(2, 1), pytest.param((2, 4, 1), marks=pytest.mark.slow)], ids=str
)
def test_ranks_equal_one_process(sizes: tuple[int, ...], tmp_path: Path) -> None:
    for size in sizes:
        in_group(work, size, tmp_path, size)


def test_the_example() -> None:
    found = doctest.testmod(parallel)
    assert found.attempted > 5
    assert found.failed == 0
