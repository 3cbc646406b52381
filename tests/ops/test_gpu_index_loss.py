"""The whole loss of class indices on a GPU: every width and option, derivatives, launches."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from gpu_cases import INTERPRETED, gpu_marks, on_a_device, rows_of_two_programs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from softmax_torch import cross_entropy, linear_cross_entropy
from softmax_torch.loss import route
from softmax_torch.loss.route import route_of
from softmax_torch.ops import backends, budgets, modes

pytestmark = gpu_marks

OPTIONS = {
    "none": {},
    "sum": {"reduction": "sum"},
    "weight": {"weight": True},
    "smoothing": {"label_smoothing": 0.2},
    "weighted smoothing": {"label_smoothing": 0.2, "weight": True},
    "z-loss": {"z_loss": 0.1},
    "every": {"label_smoothing": 1.0, "weight": True, "z_loss": 0.1, "reduction": "sum"},
    "a class is ignored": {"ignore_index": 0, "weight": True, "z_loss": 0.1},
}


def given(name: str, C: int, device: str) -> dict:
    """Return options by their name, with a weight of each class."""
    chosen = dict(OPTIONS[name])
    if chosen.get("weight"):
        chosen["weight"] = (torch.arange(C) % 3 + 0.5).to(device)
    return chosen


def truth(z: Tensor, y: Tensor, chosen: dict) -> tuple[Tensor, Tensor]:
    """Return loss and gradient in float64, with torch's own cross-entropy."""
    z = z.detach().cpu().double().requires_grad_()
    y, chosen = y.cpu(), dict(chosen)
    zeta, mean = chosen.pop("z_loss", 0.0), chosen.get("reduction") != "sum"
    if "weight" in chosen:
        chosen["weight"] = chosen["weight"].cpu().double()
    loss = F.cross_entropy(z, y, **chosen)
    counted = y != chosen.get("ignore_index", -100)
    squares = z.logsumexp(1).square()[counted].sum()
    loss = loss + zeta * (squares / counted.sum() if mean else squares)
    (dz,) = torch.autograd.grad(loss, z)
    return loss.detach(), dz


def problem(
    N: int, C: int, device: str, dtype=torch.float32, name: str = "none"
) -> tuple[Tensor, Tensor]:
    """Return logits and targets; the options of this name ignore one of the rows."""
    torch.manual_seed(N * C)
    y = torch.randint(C, (N,))
    y[N // 2] = OPTIONS[name].get("ignore_index", -100)
    return (torch.randn(N, C) * 3).to(device, dtype).requires_grad_(), y.to(device)


def assert_right(z: Tensor, y: Tensor, chosen: dict, eps: float = 5e-7) -> None:
    loss = cross_entropy(z, y, **chosen)
    (dz,) = torch.autograd.grad(loss, z)
    true_loss, true_dz = truth(z, y, chosen)
    assert dz.dtype == z.dtype
    size = true_dz.abs().max().item()
    torch.testing.assert_close(loss.double().cpu(), true_loss, rtol=10 * eps, atol=1e-6)
    torch.testing.assert_close(dz.double().cpu(), true_dz, rtol=10 * eps, atol=eps * max(size, 1))


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("N", "C"), [(3, 10), (300, 3), (3, 37), (2, 130)], ids=str)
def test_every_option(N, C, name, gpu_kernels, device):
    z, y = problem(N, C, device, name=name)
    assert route_of(cross_entropy, z, y, **given(name, C, device)).rule == "index loss"
    assert_right(z, y, given(name, C, device))


@pytest.mark.parametrize("widths", [range(1, 33), range(33, 131)], ids=["to 32", "to 130"])
def test_every_width(widths, device):
    for C, name in zip(widths, itertools.cycle(OPTIONS), strict=False):
        if C > 1 or "ignored" not in name:
            z, y = problem(5, C, device, name=name)
            assert_right(z, y, given(name, C, device))


@pytest.mark.parametrize("name", ["weighted smoothing", "z-loss"])
@pytest.mark.parametrize("N", [200, 1024, 3000])
def test_many_rows_are_counted_at_once_or_in_parts(N, name, device):
    z, y = problem(N, 4, device)
    y[::3] = -100
    y[: N * 3 // 10] = -100  # of the first part few count
    assert_right(z, y, given(name, 4, device))


def test_class_weights_may_need_a_gradient(device):
    z, y = problem(6, 5, device)
    w = (torch.arange(5.0) + 0.5).to(device).requires_grad_()
    assert route_of(cross_entropy, z, y, weight=w).rule == "row values"
    (ours,) = torch.autograd.grad(cross_entropy(z, y, weight=w), w)
    w64 = w.detach().cpu().double().requires_grad_()
    picked = y.cpu()[y.cpu() != -100]
    nll = F.cross_entropy(z.detach().cpu().double(), y.cpu(), reduction="none")[y.cpu() != -100]
    (true,) = torch.autograd.grad((w64[picked] * nll).sum() / w64[picked].sum(), w64)
    torch.testing.assert_close(ours.cpu().double(), true, rtol=1e-5, atol=1e-6)


def test_a_layer_with_more_logits_than_it_may_hold_goes_in_blocks(device, monkeypatch):
    monkeypatch.setattr(route, "FEW", 0)
    monkeypatch.setattr(budgets, "logits_budget", lambda x: 4 * 9 * x.element_size())
    x, W = torch.randn(6, 5, device=device), torch.randn(9, 5, device=device).requires_grad_()
    _, y = problem(6, 9, device)
    assert route_of(linear_cross_entropy, x, W, y).logits == "in blocks"
    assert route_of(linear_cross_entropy, x[:4], W, y[:4]).rule == "index loss"


@pytest.mark.parametrize("C", [10, 40])
def test_bfloat16(C, gpu_kernels, device):
    z, y = problem(6, C, device, torch.bfloat16)
    assert cross_entropy(z, y).dtype == torch.bfloat16
    loss = cross_entropy(z.float(), y)  # the same numbers, rounded at their end alone
    torch.testing.assert_close(cross_entropy(z, y), loss.bfloat16())
    (dz,) = torch.autograd.grad(cross_entropy(z, y), z)
    torch.testing.assert_close(dz.double().cpu(), truth(z, y, {})[1], rtol=8e-3, atol=1e-9)


def test_ignored_rows_may_hold_anything(gpu_kernels, device):
    for name in OPTIONS:
        z, y = problem(3, 9, device, name=name)
        bad = z.detach().clone()
        bad[y == OPTIONS[name].get("ignore_index", -100)] = torch.nan
        bad.requires_grad_()
        chosen = given(name, 9, device)
        loss, expected = cross_entropy(bad, y, **chosen), cross_entropy(z, y, **chosen)
        assert torch.equal(loss, expected)
        (dz,), (true,) = (torch.autograd.grad(f, x) for f, x in ((loss, bad), (expected, z)))
        assert torch.equal(dz, true)


def test_a_mean_over_no_rows_is_nan_with_a_gradient_of_0(gpu_kernels, device):
    for N in (1, rows_of_two_programs(gpu_kernels, 9)):
        z, _ = problem(N, 9, device)
        loss = cross_entropy(z, torch.full((N,), -100, device=device), z_loss=0.1)
        (dz,) = torch.autograd.grad(loss, z)
        assert loss.isnan()
        assert (dz == 0).all()


def test_an_index_out_of_range_makes_its_row_nan(gpu_kernels, device):
    for name in ("none", "weight", "every"):
        z, y = problem(4, 9, device)
        y[0] = 9
        loss = cross_entropy(z, y, **given(name, 9, device))
        (dz,) = torch.autograd.grad(loss, z)
        assert loss.isnan()
        assert dz[0].isnan().all()
        assert dz[1:].isfinite().all()


def test_an_index_out_of_range_is_an_error_where_checks_are_wanted(device, monkeypatch):
    monkeypatch.setattr(backends, "CHECKS", True)
    monkeypatch.setattr(backends, "values_readable", lambda x: True)
    if INTERPRETED:
        monkeypatch.setattr(backends, "index_kernels", lambda z: None)
    z, y = problem(4, 9, device)
    y[0] = 9
    with pytest.raises(IndexError, match=r"expected class indices in \[0, 9\).*got 9"):
        cross_entropy(z, y)


@pytest.mark.parametrize("name", ["none", "every"])
def test_a_layer_and_its_gradients(name, gpu_kernels, device):
    torch.manual_seed(0)
    x, W, b = (torch.randn(s, device=device).requires_grad_() for s in ((6, 5), (9, 5), (9,)))
    _, y = problem(6, 9, device)
    chosen = given(name, 9, device)
    assert route_of(linear_cross_entropy, x, W, y, linear_bias=b, **chosen).rule == "index loss"
    loss = linear_cross_entropy(x, W, y, linear_bias=b, **chosen)
    gradients = torch.autograd.grad(loss, (x, W, b))
    expected = torch.autograd.grad(cross_entropy(F.linear(x, W, b), y, **chosen), (x, W, b))
    for ours, true in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, true, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(x, W, y, linear_bias=b, **chosen), loss)


def test_a_second_backward_pass_and_derivatives_of_the_gradient(gpu_kernels, device):
    z, y = problem(4, 6, device)
    chosen = given("every", 6, device)
    loss = cross_entropy(z, y, **chosen)
    (first,) = torch.autograd.grad(loss, z, torch.tensor(3.0, device=device), retain_graph=True)
    (second,) = torch.autograd.grad(loss, z, retain_graph=True)
    torch.testing.assert_close(first, 3 * second)
    (third,) = torch.autograd.grad(loss, z, create_graph=True)
    torch.testing.assert_close(third, second)
    v = torch.randn_like(z)
    (ours,) = torch.autograd.grad((third * v).sum(), z)
    with backends_of_formulas():
        z2 = z.detach().clone().requires_grad_()
        (dz,) = torch.autograd.grad(
            cross_entropy(z2, y, reduction="none", **without_reduction(chosen)).sum(),
            z2,
            create_graph=True,
        )
        (true,) = torch.autograd.grad((dz * v).sum(), z2)
    torch.testing.assert_close(ours, true)
    W, x = torch.randn(6, 3, device=device).requires_grad_(), torch.randn(4, 3, device=device)
    (dW,) = torch.autograd.grad(linear_cross_entropy(x, W, y), W, create_graph=True)
    (twice,) = torch.autograd.grad(dW.sum(), W)
    (of_logits,) = torch.autograd.grad(cross_entropy(x @ W.t(), y), W, create_graph=True)
    (true,) = torch.autograd.grad(of_logits.sum(), W)
    torch.testing.assert_close(twice, true)


def without_reduction(chosen: dict) -> dict:
    return {name: value for name, value in chosen.items() if name != "reduction"}


class backends_of_formulas:  # noqa: N801 read as a phrase where it is used
    """Within it, autograd derives what ``maths`` computes: plain torch, without our rules."""

    def __enter__(self) -> None:
        self.traced, modes.traced = modes.traced, lambda: True

    def __exit__(self, *error: object) -> None:
        modes.traced = self.traced


def test_autocast_gives_a_float32_loss_of_bfloat16_logits(device):
    z, y = problem(6, 10, device, torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        loss = cross_entropy(z, y)
        W, x = torch.randn(10, 3, device=device).requires_grad_(), torch.randn(6, 3, device=device)
        of_layer = linear_cross_entropy(x, W, y)
        expected = F.cross_entropy(F.linear(x, W), y)
    assert loss.dtype == of_layer.dtype == torch.float32
    torch.testing.assert_close(loss.double().cpu(), truth(z, y, {})[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(of_layer, expected, rtol=2e-2, atol=1e-3)
    for ours, true in zip(
        torch.autograd.grad(of_layer, W), torch.autograd.grad(expected, W), strict=True
    ):
        torch.testing.assert_close(ours, true, rtol=2e-2, atol=2e-2)


# Operations that launch nothing on a GPU.
NO_LAUNCH = {
    "aten::empty.memory_format",
    "aten::empty_like",
    "aten::new_empty",
    "aten::detach",
    "aten::view",
    "aten::t",
    "aten::alias",
    "aten::fill_.Scalar",  # of the fixture stale_memory
}


class Launches(TorchDispatchMode):
    """The launches within a block: torch's operations, and Triton kernels, which are not run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        from softmax_torch.ops import triton_index_loss, triton_kernels

        self.names: list[str] = []
        monkeypatch.setattr(modes, "plain", lambda: True)
        monkeypatch.setattr(backends, "scaled_", scaled)
        for module, name in (
            (triton_index_loss, "count_rows"),
            (triton_index_loss, "index_loss"),
            (triton_index_loss, "narrow_index_loss"),
            (triton_index_loss, "add_totals"),
            (triton_kernels, "scale"),
        ):
            monkeypatch.setattr(module, name, Counter(self.names, name))

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.name() not in NO_LAUNCH:
            self.names.append(operation.name())
        return operation(*args, **(kwargs or {}))


def scaled(scale: Tensor, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Do what ``backends.scaled_`` does on a GPU; on a CPU it reads the scale first."""
    return tuple(None if g is None else backends._scaled_one_(g, scale) for g in gradients)


class Counter:
    """A Triton kernel that only notes that it was launched."""

    def __init__(self, names: list[str], name: str) -> None:
        self.names, self.name = names, name

    def __getitem__(self, grid: tuple[int, ...]):
        return lambda *args, **options: self.names.append(self.name)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("N", "forward"), [(128, 1), (1024, 1), (1025, 3)])
def test_launches_of_a_step(N, forward, name, device, monkeypatch):
    torch.manual_seed(0)
    z, y = torch.randn(N, 10, device=device).requires_grad_(), torch.randint(10, (N,)).to(device)
    chosen, one = given(name, 10, device), torch.ones((), device=device)
    with Launches(monkeypatch) as launches:
        loss = cross_entropy(z, y, **chosen)
        assert len(launches.names) == forward, launches.names
        torch.autograd.grad(loss, z, one)
    assert launches.names[forward:] == ["aten::mul_.Tensor"]


def test_launches_of_a_step_of_a_layer(device, monkeypatch):
    x, W, b = (torch.randn(s, device=device) for s in ((128, 20), (10, 20), (10,)))
    y, one = torch.randint(10, (128,)).to(device), torch.ones((), device=device)
    W.requires_grad_(), b.requires_grad_()
    with Launches(monkeypatch) as launches:
        loss = linear_cross_entropy(x, W, y, linear_bias=b)
        torch.autograd.grad(loss, (W, b), one)
    assert launches.names == [
        "aten::addmm.out",
        "narrow_index_loss",
        "aten::mm",
        "aten::sum.dim_IntList",
        "aten::mul_.Tensor",
        "aten::mul_.Tensor",
    ]


@on_a_device
def test_nothing_waits_for_the_device(device):
    z, y = problem(300, 10, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        cross_entropy(z, y, label_smoothing=0.1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
