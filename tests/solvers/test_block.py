"""The passes of a block, native and by matrix products, against their formulas in float64."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from softmax_torch.ops import backends
from softmax_torch.ops.sample_rows import MOST_COLUMNS, CsrRows
from softmax_torch.solvers import inputs, samples
from softmax_torch.solvers.block import Block, DenseBlock, SparseBlock
from softmax_torch.solvers.csr import csr_of_dense, csr_part
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.samples import DenseSamples, Samples, SparseSamples, StreamedSamples

pytestmark = pytest.mark.slow  # a thousand cases; the fits of the quick tests make all passes too

D, K, J = 13, 3, 4
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}
"""Error relative to the sum of magnitudes; features are multiples of 1/8, which float16 holds."""


@pytest.fixture(params=["native", "torch"], autouse=True)
def kernels(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run each test with both kinds of passes."""
    with backends.cpu_kernels("auto"):
        there = backends.passes(torch.device("cpu")) is not None
    if request.param == "native" and not there:
        pytest.skip("there are no native kernels")
    with backends.cpu_kernels(request.param):
        yield request.param


def features(n: int) -> Tensor:
    """Return multiples of 1/8 with zeros, an empty column and, from n = 4 on, an empty row."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randint(0, 24, (n, D), generator=generator).double() / 8
    x[torch.rand(n, D, generator=generator) < 0.7] = 0
    x[3:4] = 0
    x[:, 5] = 0
    return x


def dense(dtype: torch.dtype) -> Callable[[Tensor], Samples]:
    return lambda x: DenseSamples(x.to(dtype))


def with_offset(x: Tensor) -> Samples:
    """Return x from which an offset is subtracted that float32 cannot hold."""
    offset = torch.arange(D, dtype=torch.float64) * (1 + 2**-30)
    X = x + offset
    return DenseSamples(X, (X - offset).float(), offset)


def sparse(dtype: torch.dtype, parts: int = 1) -> Callable[[Tensor], Samples]:
    def samples(x: Tensor) -> Samples:
        pieces = torch.split(x.to(dtype), -(-len(x) // parts))
        return SparseSamples([csr_of_dense(piece) for piece in pieces], dtype)

    return samples


def repeated(x: Tensor) -> Samples:
    """Return rows in CSR that store some entries in two parts, which add up."""
    rows = csr_of_dense(x)
    twice = torch.stack([rows.values - 1, torch.ones_like(rows.values)], 1).flatten()
    return SparseSamples(
        [CsrRows(2 * rows.crow, rows.col.repeat_interleave(2), twice, D)], torch.float64
    )


def from_the_middle(x: Tensor) -> Samples:
    """Return rows in CSR whose first entry is not the first that is stored."""
    rows = csr_of_dense(torch.cat([torch.ones(2, D, dtype=x.dtype), x]))
    return SparseSamples([rows._replace(crow=rows.crow[2:])], torch.float64)


def streamed(x: Tensor) -> Samples:
    blocks = list(torch.split(x.float(), 100))
    return StreamedSamples(
        lambda: iter(blocks), [len(b) for b in blocks], D, x.device, torch.float32
    )


EIGHTHS: dict[str, Callable[[Tensor], Samples]] = {
    "float64": dense(torch.float64),
    "float32": dense(torch.float32),
    "bfloat16": dense(torch.bfloat16),
    "float16": dense(torch.float16),
    "rows apart": lambda x: DenseSamples(torch.cat([x, x], 1)[:, :D]),
    "Fortran order": lambda x: DenseSamples(x.T.contiguous().T),
    "offset": with_offset,
    "CSR float64": sparse(torch.float64),
    "CSR float32": sparse(torch.float32),
    "CSR in parts": sparse(torch.float64, 3),
    "CSR from the middle": from_the_middle,
    "streamed": streamed,
}
WHOLE = {"uint8": lambda x: DenseSamples((8 * x).to(torch.uint8))}
FORMS = EIGHTHS | WHOLE


def made(form: str, n: int) -> tuple[Samples, Tensor]:
    """Return samples of a form, and the same in float64."""
    x = features(n)
    return FORMS[form](x), 8 * x if form in WHOLE else x


def with_ones(x: Tensor, bias: bool) -> Tensor:
    return torch.cat([x, x.new_ones(len(x), 1)], 1) if bias else x


def assert_near(got: Tensor, expected: Tensor, sizes: Tensor, dtype: torch.dtype) -> None:
    """Check for an error within the tolerance, relative to sums of magnitudes."""
    assert got.shape == expected.shape
    assert float(((got - expected).abs() / (sizes + 1e-300)).max()) <= TOLERANCE[dtype]


def blocks(samples: Any, columns: int | None, kernels: str) -> list[tuple[slice, Block]]:
    """Return the blocks of samples, which are native if they can be."""
    found = list(samples.blocks(columns))
    readable = not (isinstance(samples, DenseSamples) and samples.X.stride(1) != 1)
    assert all(block.native == (kernels == "native" and readable) for _, block in found)
    assert [at.start for at, _ in found] == [0, *(at.stop for at, _ in found[:-1])]
    assert found[-1][0].stop == samples.n
    if found[0][1].native:  # a pass reads all rows that are in memory
        sizes = [samples.n] if isinstance(samples, DenseSamples) else samples.sizes
        assert [at.stop - at.start for at, _ in found] == sizes
    return found


ROWS = [1, 131, 3001]
CASES = [
    pytest.mark.parametrize("form", FORMS),
    pytest.mark.parametrize("n", ROWS),
    pytest.mark.parametrize("dtype", [torch.float32, torch.float64]),
]


def each_case(test: Callable[..., None]) -> Callable[..., None]:
    for case in CASES:
        test = case(test)
    return test


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut rows into several blocks where matrix products are made; seed the coefficients."""
    monkeypatch.setattr(samples, "SPARSE_ROWS", 64)
    monkeypatch.setattr(samples, "DENSE_ROWS", 64)
    torch.manual_seed(0)


@each_case
@pytest.mark.parametrize(("bias", "squared"), [(True, False), (False, False), (True, True)])
def test_logits_and_transposed(
    form: str, n: int, dtype: torch.dtype, bias: bool, squared: bool, kernels: str
) -> None:
    own, x = made(form, n)
    x = with_ones(x.square() if squared else x, bias)
    theta = torch.randn(K, x.shape[1]).to(dtype)
    r = torch.randn(n, 2 * K).to(dtype)[:, :K]  # rows apart
    found = blocks(own, K, kernels)
    z = torch.cat([block.logits(theta, bias, squared) for _, block in found])
    assert z.dtype == dtype
    assert_near(z, x @ theta.double().T, x.abs() @ theta.double().abs().T, dtype)
    sums = sum(block.transposed(r[at], bias, squared) for at, block in found)
    assert isinstance(sums, Tensor)
    assert sums.dtype == torch.float64
    assert_near(sums, r.double().T @ x, r.double().abs().T @ x.abs(), dtype)


@each_case
@pytest.mark.parametrize(("bias", "weighted", "sets"), [(True, True, 1), (False, False, J)])
def test_loss_and_gradient(
    form: str, n: int, dtype: torch.dtype, bias: bool, weighted: bool, sets: int, kernels: str
) -> None:
    own, x = made(form, n)
    x = with_ones(x, bias)
    theta = (torch.randn(sets * K, x.shape[1]) / (1 + x.abs().sum(1).max())).to(dtype)
    y = torch.randint(K, (n,))
    w = torch.rand(n, dtype=torch.float64) + 0.1 if weighted else None
    values, gradient = torch.zeros(sets).double(), torch.zeros(theta.shape).double()
    for at, block in blocks(own, K, kernels):
        value, g = block.loss_and_gradient(theta, y[at], None if w is None else w[at], K, bias)
        values += value
        gradient += g
    ones = torch.ones(n, dtype=torch.float64) if w is None else w
    for j in range(sets):
        mine = slice(j * K, (j + 1) * K)
        log_p = (x @ theta[mine].double().T).log_softmax(1)
        own_class = torch.nn.functional.one_hot(y, K)
        nll = -(log_p * own_class).sum(1)
        assert_near(values[j], ones @ nll, ones @ (nll + 1), dtype)
        r = (log_p.exp() - own_class) * ones.unsqueeze(1)
        assert_near(gradient[mine], r.T @ x, r.abs().T @ x.abs(), dtype)


@each_case
@pytest.mark.parametrize(("bias", "weighted"), [(True, False), (False, True)])
def test_hessian_product(
    form: str, n: int, dtype: torch.dtype, bias: bool, weighted: bool, kernels: str
) -> None:
    own, x = made(form, n)
    x = with_ones(x, bias)
    v, p = torch.randn(K, x.shape[1]).to(dtype), torch.randn(n, K).softmax(1).to(dtype)
    w = torch.rand(n, dtype=torch.float64) if weighted else None
    got = torch.zeros(v.shape).double()
    for at, block in blocks(own, K, kernels):
        got += block.hessian_product(v, p[at], None if w is None else w[at], bias)
    q, ones = p.double(), torch.ones(n, dtype=torch.float64) if w is None else w
    z = x @ v.double().T
    r = q * (z - (q * z).sum(1, keepdim=True)) * ones.unsqueeze(1)
    size = (q * (x.abs() @ v.double().abs().T + 1) * ones.unsqueeze(1)).sum(1)
    assert_near(got, r.T @ x, (size @ x.abs()).expand_as(got), dtype)


def test_entries_stored_twice_add_up(kernels: str) -> None:
    x = features(131)
    theta = torch.randn(K, D, dtype=torch.float64)
    own = repeated(x)
    z = torch.cat([block.logits(theta, False) for _, block in blocks(own, K, kernels)])
    torch.testing.assert_close(z, x @ theta.T)
    assert own.rows(torch.arange(131)).equal(x)


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_block_without_rows_adds_nothing(form: str, kernels: str) -> None:
    x, on = features(4), kernels == "native"
    rows = csr_part(csr_of_dense(x), 2, 2)
    block = DenseBlock(x[:0], x[:0], None, on) if form == "dense" else SparseBlock(rows, on)
    theta, none = torch.randn(K, D + 1, dtype=torch.float64), torch.zeros(0, K).double()
    assert block.logits(theta, True).shape == (0, K)
    assert not block.transposed(none, True).any()
    values, gradient = block.loss_and_gradient(theta, none[:, 0].long(), None, K, True)
    assert not values.any()
    assert not gradient.any()
    assert not block.hessian_product(theta, none, None, True).any()


@pytest.mark.parametrize("classes", [1, 2, 31, MOST_COLUMNS, MOST_COLUMNS + 1])
def test_any_number_of_classes(classes: int, kernels: str) -> None:
    """More columns than a native pass takes are made by matrix products, in small blocks."""
    x, y = features(131), torch.arange(131) % classes
    own = sparse(torch.float64)(x)
    found = list(own.blocks(classes))
    assert len(found) == (1 if found[0][1].native else 3)
    assert found[0][1].native == (kernels == "native" and classes <= MOST_COLUMNS)
    objective = Objective(own, y, classes)
    theta = torch.randn(objective.shape, dtype=torch.float64).requires_grad_()
    expected = torch.nn.functional.cross_entropy(with_ones(x, True) @ theta.T, y)
    expected.backward()
    got = objective.evaluate(theta.detach(), Penalty(0.0), torch.float64)
    assert got.value == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(got.gradient, theta.grad, rtol=1e-10, atol=1e-13)


def test_sets_of_coefficients_share_one_reading(kernels: str) -> None:
    """Although they have more columns than a native pass takes."""
    x, y, readings = features(131), torch.arange(131) % 20, 0

    def read() -> Iterator[Tensor]:
        nonlocal readings
        readings += 1
        yield x

    own = StreamedSamples(read, [131], D, x.device, torch.float64)
    objective = Objective(own, y, 20)
    thetas = [torch.randn(objective.shape, dtype=torch.float64) for _ in range(5)]
    got = objective.evaluate_many(thetas, [Penalty(0.1)] * 5, torch.float64)
    assert readings == 1
    for theta, each in zip(thetas, got, strict=True):
        alone = objective.evaluate(theta, Penalty(0.1), torch.float64)
        assert each.value == pytest.approx(alone.value, rel=1e-13)
        torch.testing.assert_close(each.gradient, alone.gradient, rtol=1e-11, atol=1e-14)


def test_samples_serve_either_kind_of_pass(kernels: str) -> None:
    """Samples made for one serve the other too; transposes are made for matrix products alone."""
    x, y = features(131), torch.arange(131) % K
    own = sparse(torch.float64)(x)
    objective = Objective(own, y, K)
    theta = torch.randn(objective.shape, dtype=torch.float64)
    value, gradient = objective.evaluate(theta, Penalty(0.1), torch.float64)
    assert all("matrices" not in block.__dict__ for block in own.parts)
    with backends.cpu_kernels("torch" if kernels == "native" else "auto"):
        other = objective.evaluate(theta, Penalty(0.1), torch.float64)
    assert value == pytest.approx(other.value, rel=1e-13)
    torch.testing.assert_close(gradient, other.gradient, rtol=1e-11, atol=1e-14)


def test_bytes_are_read_as_they_are(kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "SMALL", 0)
    x = torch.arange(256).repeat(4).view(-1, 4).to(torch.uint8)
    for order in (x, x.T.contiguous().T):
        own = inputs.as_samples(order, None, None)
        assert isinstance(own, DenseSamples)
        assert own.dtype == torch.float32
        as_given = kernels == "native" and order is x
        assert own.X.dtype == (torch.uint8 if as_given else torch.float32)
        assert own.rows(torch.tensor([3, 255])).tolist() == x[[3, 255]].tolist()
