"""Properties of all logits, targets, layouts and options; hypothesis looks for exceptions."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy

pytestmark = pytest.mark.usefixtures("kernels")  # every test, with both kernels

quickly = settings(max_examples=150)


@st.composite
def problems(draw: st.DrawFn, dtypes=(torch.float32, torch.float64, torch.bfloat16)):
    """Draw logits in some layout, a target, and options."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    C, N = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    shape = (N, C, *draw(st.lists(st.integers(1, 4), max_size=2)))
    dtype = draw(st.sampled_from(dtypes))
    z = (torch.randn(shape) * draw(st.sampled_from([0.1, 1.0, 10.0, 300.0]))).to(dtype)
    z = z + draw(st.sampled_from([0.0, -50.0, 1000.0]))
    order = draw(st.permutations(range(z.dim())))  # strides in another order
    z = z.permute(order).contiguous().permute([order.index(i) for i in range(z.dim())])
    if draw(st.booleans()):  # with gaps
        z = z.repeat_interleave(2, -1)[..., ::2]
    if draw(st.booleans()):  # one sample for all
        z = z[:1].expand(shape)
    rows = shape[:1] + shape[2:]
    soft = draw(st.booleans())
    target = torch.randn(shape).softmax(1).to(dtype) if soft else torch.randint(C, rows)
    options = {
        "reduction": draw(st.sampled_from(["mean", "sum", "none"])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "z_loss": draw(st.sampled_from([0.0, 1e-3])),
    }
    if draw(st.booleans()):
        options["weight"] = (torch.rand(C) + 0.1).to(dtype)
    if draw(st.booleans()):
        options["sample_weight"] = torch.rand(rows).to(dtype)
    if not soft and draw(st.booleans()):
        ignored = torch.rand(rows) < 0.3
        ignored.view(-1)[0] = False  # a mean over no rows is NaN
        target = torch.where(ignored, -100, target)
    return z, target, options


def double(value):
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if is_float else value


def value_and_gradient(f, z: Tensor, target: Tensor, options: dict) -> list[Tensor]:
    z = z.detach().requires_grad_()
    value = f(z, target, **options)
    return [value.detach(), *torch.autograd.grad(value.sum(), z)]


@quickly
@given(problems(dtypes=(torch.float32, torch.bfloat16)))
def test_ours_is_no_further_from_the_truth_than_plain_torch(problem) -> None:
    z, target, options = problem
    ours = value_and_gradient(cross_entropy, z, target, options)
    plain = value_and_gradient(reference, z, target, options)
    doubles = {name: double(value) for name, value in options.items()}
    truths = value_and_gradient(reference, double(z), double(target), doubles)
    for x, other, truth in zip(ours, plain, truths, strict=True):
        assert x.dtype == z.dtype
        x, other, truth = (t.double() for t in (x, other, truth))
        # one rounding of a probability, if the truth is 0
        row = 1 / (z.numel() // z.shape[1]) if options["reduction"] == "mean" else 1.0
        size = max(row, truth.abs().max().item())
        error, others = ((t - truth).abs().max().item() for t in (x, other))
        assert error <= 1.5 * others + 8 * torch.finfo(z.dtype).eps * size


@quickly
@given(problems(dtypes=(torch.float64,)))
def test_rows_of_the_gradient_sum_to_zero(problem) -> None:
    """Adding a constant to a row of logits does not change the loss."""
    z, target, options = problem
    options = options | {"z_loss": 0.0}
    value, gradient = value_and_gradient(cross_entropy, z, target, options)
    size = gradient.abs().max().item()
    assert gradient.sum(1).abs().max().item() <= 1e-11 * size + 1e-15
    shifted = cross_entropy(z + 7, target, **options)
    torch.testing.assert_close(shifted, value, rtol=1e-9, atol=1e-9)


@quickly
@given(problems(dtypes=(torch.float64,)))
def test_the_loss_is_not_negative(problem) -> None:
    z, target, options = problem
    loss = cross_entropy(z, target, **options)
    assert (loss >= -1e-14).all()  # up to rounding, where it is 0


@quickly
@given(problems(dtypes=(torch.float64,)), st.integers(1, 80))
def test_a_linear_layer_is_its_logits(problem, features: int) -> None:
    z, target, options = problem
    N, C = z.shape[:2]
    if z.dim() > 2:
        target = target[(slice(None),) * (target.dim() - z.dim() + 2) + (0,) * (z.dim() - 2)]
    if "sample_weight" in options:
        options["sample_weight"] = options["sample_weight"].reshape(N, -1)[:, 0]
    x, W = torch.randn(N, features).double(), torch.randn(C, features).double()
    ours = linear_cross_entropy(x, W, target, **options)
    torch.testing.assert_close(ours, reference(F.linear(x, W), target, **options))
