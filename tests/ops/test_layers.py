"""Native layers and passes over samples, at sizes around vectors and tiles; maths is the truth.

tests/solvers/test_block.py has passes as the solvers call them.
"""

import itertools

import pytest
import torch
from native_rows import OUTSIDE
from support import assert_close, largest
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import RowWeights, Target
from softmax_torch.ops.native import calls, linear, passes
from softmax_torch.ops.sample_rows import CsrRows, DenseRows

pytestmark = pytest.mark.usefixtures("native_library", "stale_memory")

WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63, 64, 65, 100]
COLUMNS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 20, 31, 33, 63, 64]
ROWS = [1, 3, 5, 16, 17, 65, 300]

reals = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) * len(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def within(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return memory full of OUTSIDE, and a contiguous tensor of NaN in the middle of it."""
    size = torch.Size(shape).numel()
    memory = torch.full((size + 128,), OUTSIDE, dtype=dtype)
    return memory, memory[64 : 64 + size].view(shape).fill_(torch.nan)


def assert_near(found: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Assert equality up to roundings of dtype, relative to the largest number.

    Gradients that cancel each other have roundings of their terms: at least 0.1 in these tests.
    """
    eps = torch.finfo(dtype).eps
    size = largest(truth, at_least=0.1)
    assert_close(found.double(), truth.double(), rtol=0, atol=64 * eps * size, equal_nan=True)


# Layers.


def layer(N: int, D: int, C: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    W, b = random(C, D, dtype=dtype) / D**0.5, random(C, dtype=dtype)
    y = torch.arange(N) * 7 % C
    return random(N, D, dtype=dtype), W, b, y


def by_maths(
    x: Tensor, W: Tensor, b: Tensor | None, target: Target, weights: RowWeights
) -> tuple[Tensor, ...]:
    """Return total, dx, dW and db in float64."""
    x, W = x.double(), W.double()
    z = x @ W.t() + (0 if b is None else b.double())
    dz = torch.full_like(z, torch.nan)
    u = None if target.u is None else target.u.double()
    weights = RowWeights(*(w.double() if isinstance(w, Tensor) else w for w in weights))
    total = maths.weighted_total(z, Target(target.y, u), weights, dz)
    return total, dz @ W, dz.t() @ x, dz.sum(0)


@pytest.mark.parametrize("half", [0, pytest.param(1, marks=pytest.mark.slow)])
@reals
@pytest.mark.parametrize("C", COLUMNS)
def test_sizes_of_a_layer(C, dtype, half):
    """The quick half has all three sizes in one of two dtypes, and the slow half in the other."""
    even = int(dtype == torch.float32)
    for (i, N), (j, D) in itertools.product(enumerate(ROWS), enumerate(WIDTHS)):
        if (i + j + even + half) % 2 or N * D * C > 300_000:
            continue
        x, W, b, y = layer(N, D, C, dtype)
        target, weights = Target(y), RowWeights(random(N, dtype=dtype).abs())
        total, gradients = linear.total_and_gradients(x, W, b, target, weights, (True,) * 3)
        for found, truth in zip(
            (total, *gradients), by_maths(x, W, b, target, weights), strict=True
        ):
            assert_near(found, truth, dtype)


@reals
@pytest.mark.parametrize("vector", ["no vector", "class vector", "vector a row"])
@pytest.mark.parametrize("indices", [True, False])
def test_every_term_of_a_layer(indices, vector, dtype):
    N, D, C = 70, 9, 11
    x, W, b, y = layer(N, D, C, dtype)
    u = {
        "no vector": None,
        "class vector": random(C, dtype=dtype).abs(),
        "vector a row": random(N, C).abs().double(),
    }[vector]
    target = Target(y if indices else None, u)
    weights = RowWeights(0.5 if indices else None, 0.25 if u is not None else None, random(N).abs())
    for bias in (b, None):
        total, gradients = linear.total_and_gradients(x, W, bias, target, weights, (True,) * 3)
        truth = by_maths(x, W, bias, target, weights)
        assert (gradients[2] is None) == (bias is None)
        for found, true in zip((total, *gradients), truth, strict=True):
            if found is not None:
                assert_near(found, true, dtype)


LAYOUTS = {
    "rows with gaps": lambda t: t.repeat_interleave(2, 0)[::2],
    "columns with gaps": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "part of wider rows": lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
    "transposed": lambda t: t.t().contiguous().t(),
    "one row for all": lambda t: t[:1].expand(t.shape),
    "the negative bit": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
}


@reals
@pytest.mark.parametrize("D", [8, 9])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_a_layer(layout, D, dtype):
    x, W, b, y = layer(20, D, 11, dtype)
    x, W, b = layout(x), layout(W), layout(b.unsqueeze(1).expand(11, 2))[:, 0]
    weights = RowWeights(0.5)
    total, gradients = linear.total_and_gradients(x, W, b, Target(y), weights, (True,) * 3)
    for found, truth in zip(
        (total, *gradients), by_maths(x, W, b, Target(y), weights), strict=True
    ):
        assert_near(found, truth, dtype)


@pytest.mark.parametrize("C", [1, 3, 10, 64])
@pytest.mark.parametrize("D", [1, 7, 8, 33, 64])
def test_the_mean_nll_of_a_layer_writes_its_results_alone(D, C):
    for N in (1, 5, 65):
        x, W, b, y = layer(N, D, C, torch.float32)
        truth = dict(
            zip(
                ("mean", "dx", "dW", "db"),
                by_maths(x, W, b, Target(y), RowWeights(1 / N)),
                strict=True,
            )
        )
        truth["z"] = x.double() @ W.double().t() + b.double()
        made = {
            name: within(shape, torch.float32)
            for name, shape in {"dW": (C, D), "db": (C,), "dx": (N, D), "z": (N, C)}.items()
        }
        mean = linear.mean_nll(x, W, b, y, *(view for _, view in made.values()))
        assert_near(mean, truth["mean"], torch.float32)
        for name, (memory, view) in made.items():
            assert_near(view, truth[name], torch.float32)
            view.fill_(OUTSIDE)
            assert (memory == OUTSIDE).all()


@pytest.mark.parametrize("index", [-1, 11, 2**32])
@pytest.mark.parametrize("N", [20, 5000])
def test_an_index_out_of_range_of_a_layer(N, index):
    x, W, b, y = layer(N, 9, 11, torch.float32)
    y[N - 3] = index
    message = rf"target: expected class indices in \[0, 11\), got {index}$"
    with pytest.raises(IndexError, match=message):
        linear.total_and_gradients(x, W, b, Target(y), RowWeights(1.0), (True,) * 3)
    memory, dW = within((11, 9), torch.float32)
    with pytest.raises(IndexError):
        linear.mean_nll(x, W, b, y, dW)
    assert dW.isnan().all()  # the gradient is left as it was
    assert (memory[:64] == OUTSIDE).all()
    assert (memory[-64:] == OUTSIDE).all()


def test_the_first_of_several_wrong_indices_of_a_layer_is_named():
    """Several threads find them, each in its own rows."""
    x, W, b, y = layer(8192, 64, 10, torch.float32)
    y[torch.tensor([500, 3000, 7000])] = torch.tensor([11, 12, 13])
    with pytest.raises(IndexError, match=r"class indices in \[0, 10\), got 11"):
        linear.total_and_gradients(x, W, b, Target(y), RowWeights(1.0), (False, True, True))


@reals
@pytest.mark.parametrize("C", [3, 10, 40])
def test_a_layer_has_the_same_bits_on_any_number_of_threads(C, dtype, set_threads):
    x, W, b, y = layer(9000, 50, C, dtype)
    assert calls.threads_for(x.numel() * C // 16) == torch.get_num_threads()

    def bits() -> list[Tensor]:
        total, gradients = linear.total_and_gradients(
            x, W, b, Target(y), RowWeights(1 / len(x)), (True,) * 3
        )
        return [total, *gradients]

    set_threads(1)
    expected = bits()
    truth = by_maths(x, W, b, Target(y), RowWeights(1 / len(x)))
    for found, true in zip(expected, truth, strict=True):
        assert_near(found, true, dtype)
    for threads in (1, 2, 3, 3):
        set_threads(threads)
        assert all(torch.equal(t, e) for t, e in zip(bits(), expected, strict=True))


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_features_that_are_not_finite_make_results_that_are_not(value):
    """Where those of matrix products are not: rows beside it keep their dx."""
    x, W, b, y = layer(20, 9, 11, torch.float32)
    x[3, 4] = value
    _, (dx, dW, db) = linear.total_and_gradients(x, W, b, Target(y), RowWeights(1.0), (True,) * 3)
    _, *truth = by_maths(x, W, b, Target(y), RowWeights(1.0))
    for found, true in zip((dx, dW, db), truth, strict=True):
        assert_near(found, true, torch.float32)


# Passes.


STORED = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8]


def samples(n: int, d: int, stored: torch.dtype) -> Tensor:
    """Return multiples of 1/8 with many zeros, or whole numbers of one byte."""
    generator = torch.Generator().manual_seed(n * d)
    x = torch.randint(0, 24, (n, d), generator=generator)
    x[torch.rand(n, d, generator=generator) < 0.6] = 0
    return x.to(stored) if stored == torch.uint8 else (x.double() / 8).to(stored)


def every_pass(x, theta: Tensor, y: Tensor, bias: bool, squared: bool) -> list[Tensor]:
    """Return the results of all four passes over samples x."""
    n, M = len(y), len(theta)
    weight = (torch.arange(n) % 5 / 4).to(theta.dtype)
    r, p = random(n, M, dtype=theta.dtype), random(n, M).softmax(1).to(theta.dtype)
    found = [passes.logits(x, theta, bias, squared), passes.transposed(x, r, bias, squared)]
    if not squared:
        K = M if M % 2 else M // 2
        found += passes.loss_and_gradient(x, theta, y % K, weight, K, bias)
        found.append(passes.hessian_product(x, theta, p, weight, bias))
    return found


def by_products(x: Tensor, theta: Tensor, y: Tensor, bias: bool, squared: bool) -> list[Tensor]:
    """Return ``every_pass`` by matrix products in float64."""
    n, M = len(y), len(theta)
    weight = torch.arange(n) % 5 / 4
    r, p = (
        random(n, M, dtype=theta.dtype).double(),
        random(n, M).softmax(1).to(theta.dtype).double(),
    )
    theta, X = theta.double(), x.double()
    X = X * X if squared else X
    X = torch.cat([X, X.new_ones(n, 1)], 1) if bias else X
    found = [X @ theta.t(), r.t() @ X]
    if not squared:
        K = M if M % 2 else M // 2
        values, gradients = [], []
        for part in theta.split(K):
            z, a = X @ part.t(), weight.double()
            dz = torch.full_like(z, torch.nan)
            values.append(maths.weighted_total(z, Target(y % K), RowWeights(a), dz))
            gradients.append(dz.t() @ X)
        product = p * (X @ theta.t())
        product = weight.unsqueeze(1) * (product - p * product.sum(1, keepdim=True))
        found += [torch.stack(values), torch.cat(gradients), product.t() @ X]
    return found


def assert_passes(x, dense: Tensor, M: int, bias: bool, squared: bool, dtype: torch.dtype) -> None:
    n, d = dense.shape
    theta, y = random(M, d + bias, dtype=dtype) / max(d, 1) ** 0.5, torch.arange(n) * 5
    found = every_pass(x, theta, y, bias, squared)
    for result, truth in zip(found, by_products(dense, theta, y, bias, squared), strict=True):
        assert_near(result, truth, dtype)


@reals
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("d", WIDTHS)
def test_passes_over_dense_rows(d, stored, dtype):
    for (n, M), bias in zip(
        ((1, 1), (17, 2), (65, 5), (300, 7), (30, 16), (30, 64)), itertools.cycle((True, False))
    ):
        dense = samples(n, d, stored)
        gaps = torch.cat([dense, dense], 1)[:, :d]
        for squared in (False, True):
            assert_passes(DenseRows(gaps), dense, M, bias, squared, dtype)


@reals
@pytest.mark.parametrize("stored", [torch.float32, torch.float64, torch.uint8], ids=str)
@pytest.mark.parametrize("d", [1, 7, 8, 33])
def test_passes_with_an_offset(d, stored, dtype):
    x, offset = samples(65, d, stored), torch.arange(d, dtype=torch.float64) * (1 + 2**-30)
    for squared in (False, True):
        assert_passes(DenseRows(x, offset), x.double() - offset, 5, True, squared, dtype)


@pytest.mark.parametrize("stored", [torch.float32, torch.float64], ids=str)
def test_an_offset_keeps_its_digits(stored):
    """In float32, Unix times are multiples of 128, and so would be the distances from a mean."""
    times, mean = 1.6e9 + 128 * torch.arange(3.0, dtype=torch.float64), 1.6e9 + 37.5
    x = DenseRows(times.to(stored).unsqueeze(1), torch.tensor([mean], dtype=torch.float64))
    assert passes.logits(x, torch.ones(1, 1), False).flatten().tolist() == [-37.5, 90.5, 218.5]


@reals
@pytest.mark.parametrize("stored", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("M", COLUMNS)
def test_passes_over_rows_in_csr(M, stored, dtype):
    for (n, d), bias in zip(((1, 1), (17, 9), (300, 33)), itertools.cycle((True, False))):
        dense = samples(n, d, stored)
        x = passes.csr_of_dense(dense)
        assert x.values.dtype == stored
        for squared in (False, True):
            assert_passes(x, dense, M, bias, squared, dtype)
        part = CsrRows(x.crow[n // 3 :], x.col, x.values, d)
        assert_passes(part, dense[n // 3 :], M, bias, False, dtype)


@pytest.mark.parametrize("stored", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (7, 5), (3, 0), (900, 700)], ids=str)
def test_csr_of_dense(shape, stored, set_threads):
    x = samples(*shape, stored)
    x[x == 0.125] = -0.0
    rows, columns = x.nonzero(as_tuple=True)
    crow = torch.cat([rows.new_zeros(1), (x != 0).sum(1).cumsum(0)])
    for threads in (1, 2, 3):
        set_threads(threads)
        found = passes.csr_of_dense(torch.cat([x, x], 1)[:, : shape[1]])
        assert found.d == shape[1]
        assert torch.equal(found.crow, crow)
        assert torch.equal(found.col.long(), columns)
        assert torch.equal(found.values, x[rows, columns])


@reals
def test_rows_without_features(dtype):
    for bias in (True, False):
        x = torch.zeros(5, 0, dtype=dtype)
        if bias:
            assert_passes(DenseRows(x), x, 3, bias, False, dtype)
        theta = random(3, int(bias), dtype=dtype)
        assert passes.transposed(DenseRows(x), random(5, 3, dtype=dtype), bias).shape == theta.shape


@reals
def test_no_rows(dtype):
    x = torch.zeros(0, 9, dtype=dtype)
    assert_passes(DenseRows(x), x, 3, True, False, dtype)
    assert_passes(passes.csr_of_dense(x), x, 3, True, False, dtype)


@reals
@pytest.mark.parametrize("kind", ["dense", "bytes", "csr"])
def test_passes_have_the_same_bits_on_any_number_of_threads(kind, dtype, set_threads):
    dense = samples(9000, 60, torch.uint8 if kind == "bytes" else torch.float32)
    x = passes.csr_of_dense(dense) if kind == "csr" else DenseRows(dense)
    theta, y = random(12, 61, dtype=dtype) / 8, torch.arange(9000)
    set_threads(1)
    expected = every_pass(x, theta, y, True, False)
    for found, truth in zip(expected, by_products(dense, theta, y, True, False), strict=True):
        assert_near(found, truth, dtype)
    for threads in (1, 2, 3, 3):
        set_threads(threads)
        found = every_pass(x, theta, y, True, False)
        assert all(torch.equal(t, e) for t, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["dense", "csr"])
def test_more_columns_than_a_pass_takes_are_refused(kind):
    x = torch.ones(3, 2)
    rows = DenseRows(x) if kind == "dense" else passes.csr_of_dense(x)
    with pytest.raises(ValueError, match="expected at most 64 columns in a pass, got 65"):
        passes.logits(rows, torch.zeros(65, 2), False)


def test_an_index_out_of_range_of_a_pass_is_named():
    x, y = DenseRows(torch.ones(500, 4)), torch.zeros(500, dtype=torch.long)
    y[[77, 400]] = torch.tensor([3, 9])
    with pytest.raises(IndexError, match=r"class indices in \[0, 3\), got 3"):
        passes.loss_and_gradient(x, torch.zeros(6, 4), y, None, 3, False)
