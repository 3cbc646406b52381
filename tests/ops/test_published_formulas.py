"""The operators against the formulas that others publish, in plain float64, gradients included.

    x = s a tanh(z / a)                                            softcap a, logit scale s
    row = (1 - eps) w_y (lse - x_y) + eps / C sum_c w_c (lse - x_c)
    dx = (1 - eps) w_y (p - [c = y]) + eps / C (p sum_c w_c - w)     p = softmax(x)

- Liger-Kernel, ops/cross_entropy.py (0.8.2): these rows, plus zeta lse^2. The mean divides the rows
  by the sum of w_y over the rows that count, the z-loss by their number.
- Gemma 2 (2024), section 2: the softcap, 30 for its last logits; 1 - tanh^2 in the gradient.
- PaLM (2022), section 5: the z-loss, with zeta = 1e-4; 2 zeta lse p in the gradient.
- Cut Cross-Entropy (2024), section 4 and its code (25.6.4): rows with ignore_index are taken out;
  the gradient in the capped logits is p (g + g_lse) - [c = y] g, with g_lse that of the lse.
- transformers, num_items_in_batch: the sum of all rows over a number of the caller.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from support import results
from torch import Tensor

from softmax_torch import functional
from softmax_torch.loss import route

N, C, D = 9, 7, 4
CASES = [
    pytest.param(*case, id="-".join(map(str, case)))
    for case in itertools.product(
        (None, 1.5, 30.0), (0.0, 0.1), (0.0, 0.02), (False, True), ("mean", "sum", "none")
    )
]
"""Softcap, label smoothing, z-loss, whether class weights, reduction."""

cases = pytest.mark.parametrize(("cap", "smoothing", "z_loss", "weighted", "reduction"), CASES)


def problem(weighted: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """Return x, W and bias of logits that reach the softcap, a target, and class weights."""
    generator = torch.Generator().manual_seed(0)
    x, W, b, w = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((N, D), (C, D), (C,), (C,))
    )
    target = torch.randint(C, (N,), generator=generator)
    target[[1, 5]] = -100
    return 2 * x, W, b, target, w.abs() + 0.1 if weighted else None


def published(
    z: Tensor, y: Tensor, cap, smoothing, z_loss, w, reduction, scale=1.0, normalizer=None
) -> list[Tensor]:
    """Return the loss, its gradient in the logits, and its gradient in the scale."""
    t = torch.zeros_like(z) if cap is None else torch.tanh(z / cap)
    capped = z if cap is None else cap * t
    x = scale * capped
    top = x.max(1, keepdim=True).values
    lse = (top + (x - top).exp().sum(1, keepdim=True).log())[:, 0]
    p = (x - lse[:, None]).exp()
    counts = (y != -100).double()
    hit = F.one_hot(y.clamp(min=0), C).double()
    w = torch.ones(C, dtype=z.dtype) if w is None else w
    w_y = counts * (hit @ w)
    eps = smoothing / C * counts
    row = (1 - smoothing) * w_y * (lse - (x * hit).sum(1))
    row = row + eps * (w * (lse[:, None] - x)).sum(1)
    dx = (1 - smoothing) * w_y[:, None] * (p - hit) + eps[:, None] * (p * w.sum() - w)
    z_row = z_loss * counts * lse.square()
    dz_row = (2 * z_loss * counts * lse)[:, None] * p
    by, z_by = (w_y.sum(), counts.sum()) if reduction == "mean" else (1.0, 1.0)
    if normalizer is not None:
        by = z_by = normalizer
    loss, dx = row / by + z_row / z_by, dx / by + dz_row / z_by
    loss = loss if reduction == "none" else loss.sum()
    dx = dx * torch.linspace(0.5, 2, loss.numel(), dtype=z.dtype)[:, None]  # as in ``results``
    return [loss, dx * scale * (1 - t.square()), (dx * capped).sum()]


def in_layer(dz: Tensor, x: Tensor, W: Tensor) -> list[Tensor]:
    """Return the gradients in x, W and bias, from that in the logits."""
    return [dz @ W, dz.T @ x, dz.sum(0)]


def assert_same(ours: list[Tensor], truth: list[Tensor]) -> None:
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-12)


@cases
def test_the_formulas_are_what_torch_composes(cap, smoothing, z_loss, weighted, reduction) -> None:
    x, W, b, y, w = problem(weighted)

    def composed(z: Tensor, scale: Tensor) -> Tensor:
        z = scale * (z if cap is None else cap * torch.tanh(z / cap))
        squares = z_loss * z.logsumexp(1).square() * (y != -100)
        squares = squares if reduction == "none" else squares.sum()
        squares = squares / (y != -100).sum() if reduction == "mean" else squares
        return F.cross_entropy(z, y, w, reduction=reduction, label_smoothing=smoothing) + squares

    z, scale = x @ W.T + b, torch.tensor(0.7, dtype=torch.float64)
    truth = published(z, y, cap, smoothing, z_loss, w, reduction, scale)
    assert_same(results(composed, z, scale), truth)


@cases
def test_both_operators(cap, smoothing, z_loss, weighted, reduction, kernels, monkeypatch) -> None:
    monkeypatch.setattr(route, "FEW", 0)
    x, W, b, y, w = problem(weighted)
    given = {"weight": w, "reduction": reduction, "label_smoothing": smoothing, "z_loss": z_loss}
    given |= {} if cap is None else {"softcap": cap}
    z = x @ W.T + b
    loss, dz, _ = published(z, y, cap, smoothing, z_loss, w, reduction)
    assert_same(results(lambda z: functional.cross_entropy(z, y, **given), z), [loss, dz])

    def head(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
        return functional.linear_cross_entropy(x, W, y, linear_bias=b, **given)

    assert_same(results(head, x, W, b), [loss, *in_layer(dz, x, W)])


@pytest.mark.parametrize("cap", [None, 1.5])
def test_logit_scale_and_a_divisor_of_the_caller(cap, kernels) -> None:
    x, W, b, y, w = problem(weighted=True)
    z, scale = x @ W.T + b, torch.tensor(0.7, dtype=torch.float64)
    given = {"weight": w, "label_smoothing": 0.1, "z_loss": 0.02, "normalizer": 31.0}

    def loss(z: Tensor, scale: Tensor) -> Tensor:
        return functional.cross_entropy(z, y, softcap=cap, logit_scale=scale, **given)

    assert_same(results(loss, z, scale), published(z, y, cap, 0.1, 0.02, w, "mean", scale, 31.0))


@pytest.mark.parametrize("cap", [None, 1.5, 30.0])
def test_the_lse_of_cut_cross_entropy(cap, kernels) -> None:
    x, W, b, y, _ = problem()
    kept = (y != -100).nonzero()[:, 0]  # CCE's valid rows: the others do not exist
    g, g_lse = 1 / len(kept), torch.linspace(-1, 1, len(kept), dtype=torch.float64)
    z = x[kept] @ W.T + b
    t = torch.zeros_like(z) if cap is None else torch.tanh(z / cap)
    capped = z if cap is None else cap * t
    lse = capped.exp().sum(1).log()
    loss = (lse - capped[range(len(kept)), y[kept]]).mean()
    dz = torch.zeros(N, C, dtype=torch.float64)
    p, hit = (capped - lse[:, None]).exp(), F.one_hot(y[kept], C).double()
    dz[kept] = (p * (g + g_lse)[:, None] - hit * g) * (1 - t.square())

    leaves = [v.clone().requires_grad_() for v in (x, W, b)]
    ours = functional.linear_cross_entropy_outputs(
        leaves[0], leaves[1], y, linear_bias=leaves[2], softcap=cap, outputs=("lse",)
    )
    gradients = torch.autograd.grad(ours.loss + (g_lse * ours.lse[kept]).sum(), leaves)
    assert_same([ours.loss, ours.lse[kept], *gradients], [loss, lse, *in_layer(dz, x, W)])
