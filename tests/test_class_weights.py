"""Class weights that are negative, or whose sum in a mean is 0, as torch has them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support import in_everything, in_group, reference, results
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy
from softmax_torch.loss import route
from softmax_torch.parallel import ClassShard
from softmax_torch.parallel import linear_cross_entropy as sharded_cross_entropy

N, C, D = 6, 5, 4
NEGATIVE = torch.tensor([-1.5, 0.5, 2.0, -0.25, 0.0], dtype=torch.float64)


def tensors(soft: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, the weight of a layer, and a target of every class, in float64."""
    torch.manual_seed(0)
    x, W = torch.randn(N, D, dtype=torch.float64), torch.randn(C, D, dtype=torch.float64)
    target = torch.randn(N, C, dtype=torch.float64).softmax(1) if soft else torch.arange(N) % C
    return x, W, target


each_option = [
    pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"]),
    pytest.mark.parametrize("reduction", ["mean", "sum", "none"]),
    pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0]),
]


def every_option(test: Any) -> Any:
    for mark in each_option:
        test = mark(test)
    return test


@every_option
def test_negative_weights_of_logits(soft: bool, reduction: str, smoothing: float) -> None:
    x, W, target = tensors(soft)
    given = {"weight": NEGATIVE, "reduction": reduction, "label_smoothing": smoothing}
    for shape in ((N, C), (1, C, N)):
        z, t = F.linear(x, W), target
        if len(shape) == 3:
            z, t = z.t().unsqueeze(0), (t.t() if soft else t).unsqueeze(0)
        ours, torchs = (
            results(lambda z, f=f, t=t: f(z, t, **given), z)
            for f in (cross_entropy, F.cross_entropy)
        )
        torch.testing.assert_close(ours, torchs)


@every_option
@pytest.mark.parametrize("few", [0, 1 << 20])
def test_negative_weights_of_a_linear_layer(
    soft: bool, reduction: str, smoothing: float, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "FEW", few)
    x, W, target = tensors(soft)
    given = {"weight": NEGATIVE, "reduction": reduction, "label_smoothing": smoothing}
    ours = results(lambda x, W: linear_cross_entropy(x, W, target, **given), x, W)
    torchs = results(lambda x, W: F.cross_entropy(F.linear(x, W), target, **given), x, W)
    torch.testing.assert_close(ours, torchs)


@every_option
def test_derivatives_with_negative_weights(soft: bool, reduction: str, smoothing: float) -> None:
    """First and second, also in the weights, with sample weights and a z-loss."""
    x, W, target = tensors(soft)
    given = {"reduction": reduction, "label_smoothing": smoothing, "z_loss": 0.1}
    tensor_options = {"weight": NEGATIVE, "sample_weight": torch.linspace(0, 2, N).double()}
    z = F.linear(x, W)
    ours, expected = (
        in_everything(lambda z, f=f, **o: f(z, target, **o), z, **given, **tensor_options)
        for f in (cross_entropy, reference)
    )
    torch.testing.assert_close(ours, expected)
    assert torch.autograd.gradgradcheck(
        lambda z: cross_entropy(z, target, **given, **tensor_options), z.requires_grad_()
    )
    for transform in (torch.func.hessian, lambda f: torch.func.jacfwd(torch.func.jacfwd(f))):
        found, truth = (
            transform(lambda z, f=f: f(z, target, **given, **tensor_options).sum())(z.detach())
            for f in (cross_entropy, reference)
        )
        torch.testing.assert_close(found, truth)


@pytest.mark.slow
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_compiled_with_negative_weights(soft: bool) -> None:
    torch.compiler.reset()
    x, W, target = tensors(soft)

    def loss(x: Tensor, W: Tensor) -> Tensor:
        return linear_cross_entropy(x, W, target, weight=NEGATIVE, label_smoothing=0.3)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(compiled, x, W), results(loss, x, W))
    torch.compiler.reset()


ZERO_SUMS = {
    "all 0": ([0.0, 0.0, 1.0, 2.0, 3.0], [0, 1, 1, 0]),
    "one row": ([0.0, 1.0, 1.0, 2.0, 3.0], [0, -100, -100, -100]),
    "an ignored row": ([0.0, 0.0, 1.0, 2.0, 3.0], [0, -100, 1, 0]),
    "all ignored": ([0.0, 0.0, 1.0, 2.0, 3.0], [-100, -100, -100, -100]),
}


@pytest.mark.parametrize(
    "smoothing", [0.3, *(pytest.param(s, marks=pytest.mark.slow) for s in (0.0, 1.0))]
)
@pytest.mark.parametrize(("weight", "y"), ZERO_SUMS.values(), ids=ZERO_SUMS)
def test_weights_that_add_up_to_0(weight: list, y: list, smoothing: float) -> None:
    """The mean is NaN; its gradient is NaN in the rows that count, and 0 in ignored rows."""
    w, target = torch.tensor(weight, dtype=torch.float64), torch.tensor(y)
    x, W, _ = tensors(False)
    given = {"weight": w, "label_smoothing": smoothing}
    z = F.linear(x[:4], W)
    expected = results(lambda z: F.cross_entropy(z, target, **given), z)
    assert expected[0].isnan()
    compiled = torch.compile(cross_entropy, backend="eager", dynamic=False)
    for f in (
        lambda z: cross_entropy(z, target, **given),
        lambda z: cross_entropy(z, target, **given, sample_weight=torch.ones(4).double()),
        lambda z: cross_entropy(z.t()[None], target[None], **given),
        lambda z: compiled(z, target, **given),
        lambda z: linear_cross_entropy(z, torch.eye(C).double(), target, **given),
    ):
        torch.testing.assert_close(results(f, z), expected, equal_nan=True)
    torch.compiler.reset()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_of_both_signs_that_add_up_to_0(smoothing: float) -> None:
    """torch divides by 0, and so does this; which entries are NaN or infinite may differ."""
    w, y = torch.tensor([-1.0, 1.0, 1.0, 2.0, 3.0]).double(), torch.tensor([0, 1])
    x, W, _ = tensors(False)
    for f in (cross_entropy, F.cross_entropy):
        loss, dz = results(
            lambda z, f=f: f(z, y, weight=w, label_smoothing=smoothing), F.linear(x[:2], W)
        )
        assert not loss.isfinite()
        assert not dz.isfinite().any()


def test_sample_weights_of_0_leave_rows_out_of_such_a_mean() -> None:
    w, y = torch.tensor([0.0, 0.0, 1.0]).double(), torch.tensor([0, 1])
    z, s = torch.randn(2, 3).double(), torch.tensor([1.0, 0.0]).double()
    loss, dz = results(lambda z: cross_entropy(z, y, w, label_smoothing=0.1, sample_weight=s), z)
    assert loss.isnan()
    assert dz[0].isnan().all()
    assert dz[1].equal(torch.zeros(3).double())


def in_shards(rank: int, folder: str) -> None:
    shard = ClassShard.even(C, dist.group.WORLD)
    own = slice(shard.start, shard.stop)
    for soft in (False, True):
        x, W, target = tensors(soft)
        zero = torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0]).double()
        cases = [(NEGATIVE, target), (zero, torch.tensor([0, -100, 1, 0, 0, 1]))][: 2 - soft]
        for weight, t in cases:
            for reduction in ("mean", "sum", "none"):
                given = {"weight": weight, "reduction": reduction, "label_smoothing": 0.3}
                found = results(
                    lambda x, W, t=t, given=given: sharded_cross_entropy(
                        x, W, t[:, own] if t.is_floating_point() else t, shard=shard, **given
                    ),
                    x,
                    W[own],
                )
                truth = results(
                    lambda x, W, t=t, given=given: F.cross_entropy(F.linear(x, W), t, **given), x, W
                )
                truth[2] = truth[2][own]
                torch.testing.assert_close(found, truth, equal_nan=True)


def test_negative_weights_of_sharded_classes(tmp_path: Path) -> None:
    in_group(in_shards, 2, tmp_path)
