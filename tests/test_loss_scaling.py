"""float16 gradients of a scaled loss: no further from float64 than torch's, at any scale.

Mixed precision in float16 multiplies the loss by a scale up to 2^24 before the backward pass, so
that small gradients do not underflow: numbers below 2^-24 = 6e-8 are 0 in float16.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support import need_library
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy, route_of
from softmax_torch.ops import backends, budgets

SCALES = [
    pytest.param(2.0**k, marks=[pytest.mark.slow] if k in (8, 20) else [], id=f"scale 2^{k}")
    for k in (0, 8, 16, 20, 24)
]
SHAPES = [(64, 64, 10), (256, 8, 2000)]  # N, D, C; with one block of logits, and with 32

scales = pytest.mark.parametrize("scale", SCALES)
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest):
    if request.param == "native":
        need_library()
    with backends.cpu_kernels(request.param):
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 8 * 2000 * x.element_size())


def gradients(f: Callable[..., Tensor], *leaves: Tensor, scale: float) -> list[Tensor]:
    leaves = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    return list(torch.autograd.grad(f(*leaves) * scale, leaves))


def error(found: Tensor, truth: Tensor) -> float:
    """Return the relative error; infinite if the scale was too large for the dtype."""
    if not found.isfinite().all():
        return torch.inf
    return float((found.double() - truth).norm() / truth.norm())


def assert_as_good(ours: list[Tensor], theirs: list[Tensor], truth: list[Tensor]) -> None:
    for own, other, true in zip(ours, theirs, truth, strict=True):
        assert own.dtype == other.dtype
        # torch's own error differs by a third between two sets of random numbers
        assert error(own, true) <= 1.35 * error(other, true)


def problem(N: int, D: int, C: int) -> tuple[list[Tensor], Tensor]:
    """Return x, W and b, exact in float16, and targets among the first half of the classes."""
    generator = torch.Generator().manual_seed(N + C)
    sizes = [(N, D), (C, D), (C,)]
    layer = [torch.randn(size, generator=generator) / 4 for size in sizes]
    y = torch.randint(0, C // 2, (N,), generator=generator)
    return [t.half().float() for t in layer], y


def of_layer(y: Tensor, **options) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    def theirs(x, W, b):
        return F.cross_entropy(F.linear(x, W, b), y, **options)

    def ours(x, W, b):
        return linear_cross_entropy(x, W, y, linear_bias=b, **options)

    return ours, theirs


@scales
@shapes
@pytest.mark.parametrize("mode", ["autocast", "half"])
def test_layers(shape, scale: float, mode: str, kernels: None, small_blocks: None) -> None:
    layer, y = problem(*shape)
    ours, theirs = of_layer(y)
    truth = gradients(theirs, *[t.double() for t in layer], scale=scale)
    found = []
    for f in (ours, theirs):
        leaves = [t.half() for t in layer] if mode == "half" else layer
        if mode == "half" and scale >= 2**16:
            return  # the loss itself overflows
        with torch.autocast("cpu", torch.float16, enabled=mode == "autocast"):
            found.append(gradients(f, *leaves, scale=scale))
    assert_as_good(*found, truth)
    others = [[g[len(g) // 2 :] for g in grads[1:]] for grads in (*found, truth)]
    assert_as_good(*others)  # of the classes without a sample, whose gradients are small


@scales
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"z_loss": 0.1}], ids=str)
def test_options_of_layers(options, scale: float, small_blocks: None) -> None:
    layer, y = problem(*SHAPES[1])
    z_loss = options.get("z_loss", 0.0)
    ours, _ = of_layer(y, **options)
    kept = {k: v for k, v in options.items() if k != "z_loss"}

    def theirs(x, W, b):
        z = F.linear(x, W, b)
        return F.cross_entropy(z, y, **kept) + z_loss * z.float().logsumexp(-1).square().mean()

    truth = gradients(theirs, *[t.double() for t in layer], scale=scale)
    with torch.autocast("cpu", torch.float16):
        found = [gradients(f, *layer, scale=scale) for f in (ours, theirs)]
    assert_as_good(*found, truth)


@scales
@pytest.mark.parametrize("shape", [(128, 10), (256, 4000), (16, 100, 8)], ids=str)
def test_logits(shape: tuple[int, ...], scale: float, kernels: None) -> None:
    z = torch.randn(shape, generator=torch.Generator().manual_seed(3)).half()
    y = torch.zeros((shape[0], *shape[2:]), dtype=torch.long)
    truth = gradients(lambda z: F.cross_entropy(z, y), z.double(), scale=scale)
    both = (cross_entropy, F.cross_entropy)
    # float32 losses, as under autocast: a float16 loss would overflow
    found = [gradients(lambda z, f=f: f(z.float(), y), z, scale=scale) for f in both]
    assert_as_good(*found, truth)
    if scale <= 2**8:
        found = [gradients(lambda z, f=f: f(z, y), z, scale=scale) for f in both]
        assert_as_good(*found, truth)


def test_only_float16_waits_for_the_scale() -> None:
    y = torch.zeros(4, dtype=torch.long)
    for dtype, rule in ((torch.float16, "row values"), (torch.bfloat16, "weighted total")):
        z = torch.zeros(4, 3, dtype=dtype, requires_grad=True)
        assert route_of(cross_entropy, z, y).rule == rule
        with torch.no_grad():
            assert route_of(cross_entropy, z, y).rule == "weighted total"
        x, W = torch.zeros(4, 2, dtype=dtype), torch.zeros(3, 2, dtype=dtype, requires_grad=True)
        assert route_of(linear_cross_entropy, x, W, y).rule == rule
