"""The kernels of a CPU, native and torch's, against their twins of ``maths`` in float64.

Torch's run on every path through a block. What is particular to native ones is in test_native,
test_native_bad_rows and test_native_threads.
"""

import itertools

import pytest
import torch
from support import OTHER_KERNELS, assert_close, double, largest, need_library
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeights, Target
from softmax_torch.ops import cpu, native

pytestmark = pytest.mark.usefixtures("stale_memory")

SHAPES = [(1, 1), (6, 1), (7, 10), (40, 64), (1030, 3), (40, 65), (3, 2000), (4, 3, 6), (2, 70, 33)]

# Logits that are hard in different ways.
KINDS = {
    "unshifted": lambda z, y: z,
    "far from zero": lambda z, y: z + 50,
    "far apart": lambda z, y: 100 * z,
    "logits of 1e4": lambda z, y: z + 1e4,
    "certain": lambda z, y: at_target(z, y, 28.0),
    "rare": lambda z, y: at_target(z, y, -75.0),
    "underflow at the target": lambda z, y: at_target(z, y, -300.0),
    "masked": lambda z, y: at_target(torch.where(z > 0.5, -torch.inf, z), y, 0.5),
    "only the target is left": lambda z, y: at_target(torch.full_like(z, -torch.inf), y, 0.5),
    "one huge logit": lambda z, y: last_row(z, 1e3),
    "a row that overflows": lambda z, y: last_row(z, torch.full_like(z[-1], 90)),
    "a row that underflows": lambda z, y: last_row(z, z[-1] - 200),
}

shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@pytest.fixture(
    params=[
        "native",
        pytest.param("torch, one block", marks=OTHER_KERNELS),
        "torch, many blocks",
    ]
)
def ops(request, monkeypatch):
    """The kernels: native ones, and those of torch with all rows in one block or in many."""
    if request.param == "native":
        need_library()
        return native
    if request.param == "torch, many blocks":
        monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", 100)
        monkeypatch.setattr(cpu, "ROW_LIMITS", (8, 16))
    return cpu


def at_target(z: Tensor, y: Tensor, value: float) -> Tensor:
    """Return z with this logit at the target of every other row."""
    changed = z.scatter(1, y.unsqueeze(1), value)
    odd = (torch.arange(len(z)) % 2 == 1).view(-1, *(1 for _ in z.shape[1:]))
    return torch.where(odd, z.scatter(1, y.unsqueeze(1), 0.5), changed)


def last_row(z: Tensor, value: Tensor | float) -> Tensor:
    """Return z with other logits in its last row, or at the first class of that row."""
    z = z.clone()
    if isinstance(value, Tensor):
        z[-1] = value
    else:
        z[-1, 0] = value
    return z


def problem(shape: tuple[int, ...], kind=KINDS["unshifted"], dtype=torch.float32):
    """Return logits, targets, and one positive number per row."""
    torch.manual_seed(0)
    rows = shape[:1] + shape[2:]
    y = torch.randint(shape[1], rows)
    return kind(torch.randn(shape), y).to(dtype), y, torch.rand(rows) + 0.5


def assert_near(ours, truth) -> None:
    """Assert equality up to a few float32 roundings; the truth is in float64."""
    for x, t in zip(ours, truth, strict=True):
        assert (x is None) == (t is None)
        if x is not None:
            size = largest(t, at_least=1.0)
            assert_close(x.double(), t, rtol=1e-5, atol=3e-7 * size)


@kinds
@shapes
def test_nll_and_its_gradient(shape, kind, ops):
    z, y, g = problem(shape, kind)
    nll = ops.row_values(z, Target(y)).nll
    dz = ops.row_vjp(z, Target(y), RowValues(g))
    z, y, g = double(z, y, g)
    assert_near(
        [nll, dz], [maths.row_values(z, Target(y)).nll, maths.row_vjp(z, Target(y), RowValues(g))]
    )


@kinds
@shapes
def test_total_and_its_gradient(shape, kind, ops):
    z, y, a = problem(shape, kind)
    for weight in (0.25, torch.tensor(0.25), a):
        dz, truth = torch.empty_like(z), torch.empty_like(z, dtype=torch.float64)
        total = ops.weighted_total(z, Target(y), RowWeights(weight), dz)
        z64, _, a64 = double(z, y, weight)
        assert_near(
            [total, dz], [maths.weighted_total(z64, Target(y), RowWeights(a64), truth), truth]
        )


@pytest.mark.parametrize("shared", [True, False], ids=["class vector", "vector a row"])
@pytest.mark.parametrize("targets", [True, False], ids=["indices", "no indices"])
@pytest.mark.parametrize("lse", [True, False], ids=["lse", "no lse"])
@pytest.mark.parametrize("name", ["unshifted", "far from zero", "far apart"])
@shapes
def test_every_term_and_its_gradient(shape, name, lse, targets, shared, ops):
    z, y, a = problem(shape, KINDS[name])
    u = torch.rand(shape[1]) if shared else torch.rand(shape)
    y, a = (y, a) if targets else (None, None)
    b, c = torch.rand(z[:, 0].shape), (torch.rand(z[:, 0].shape) if lse else None)
    values = ops.row_values(z, Target(y, u), lse)
    dz = ops.row_vjp(z, Target(y, u), RowValues(a, b, c))
    total_dz = torch.empty_like(z)
    total = ops.weighted_total(z, Target(y, u), RowWeights(a, b, c), total_dz)

    z, y, u, a, b, c = double(z, y, u, a, b, c)
    assert_near(
        [*values, dz],
        [
            *maths.row_values(z, Target(y, u), lse),
            maths.row_vjp(z, Target(y, u), RowValues(a, b, c)),
        ],
    )
    truth = torch.empty_like(z)
    assert_near(
        [total, total_dz],
        [maths.weighted_total(z, Target(y, u), RowWeights(a, b, c), truth), truth],
    )


LAYOUTS = {
    "transposed": lambda z: z.transpose(0, 1).contiguous().transpose(0, 1),
    "classes last": lambda z: z.movedim(1, -1).contiguous().movedim(-1, 1),
    "every other row": lambda z: z.repeat_interleave(2, 0)[::2],
    "every other class": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "one row for all": lambda z: z[:1].expand_as(z),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("shape", [(7, 10), (40, 65), (4, 3, 6)], ids=str)
def test_layouts(shape, layout, ops):
    z, y, a = problem(shape)
    z = layout(z)
    assert shape == (4, 3, 6) or layout is LAYOUTS["classes last"] or not z.is_contiguous()
    plain = z.contiguous()
    dz = torch.empty_like(z)
    ours = (
        *ops.row_values(z, Target(y, a.new_ones(shape[1])), True),
        ops.weighted_total(z, Target(y), RowWeights(a, None, 0.1), dz),
    )
    truth_dz = torch.empty_like(plain)
    truth = (
        *maths.row_values(plain, Target(y, a.new_ones(shape[1])), True),
        maths.weighted_total(plain, Target(y), RowWeights(a, None, 0.1), truth_dz),
    )
    torch.testing.assert_close(ours, truth)
    torch.testing.assert_close(dz, truth_dz)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(7, 10), (40, 65), (4, 3, 6)], ids=str)
def test_dtypes(shape, dtype, ops):
    z, y, a = problem(shape, dtype=dtype)
    a = a.to(torch.promote_types(dtype, torch.float32))
    dz, truth_dz = torch.empty_like(z), torch.empty_like(z)
    total = ops.weighted_total(z, Target(y), RowWeights(a), dz)
    truth = maths.weighted_total(z, Target(y), RowWeights(a), truth_dz)
    assert total.dtype == truth.dtype
    torch.testing.assert_close(total, truth)
    torch.testing.assert_close(dz, truth_dz)
    torch.testing.assert_close(ops.row_vjp(z, Target(y), RowValues(a)), truth_dz)


@kinds
@pytest.mark.parametrize("shape", [(7, 10), (40, 65), (4, 3, 6)], ids=str)
def test_gradient_in_place_of_the_logits(shape, kind, ops):
    z, y, a = problem(shape, kind)
    dz = torch.empty_like(z)
    total = ops.weighted_total(z, Target(y), RowWeights(a), dz)
    same = z.clone()
    torch.testing.assert_close(ops.weighted_total(same, Target(y), RowWeights(a), same), total)
    torch.testing.assert_close(same, dz)


@pytest.mark.parametrize("name", ["unshifted", "far apart"])
@shapes
def test_a_total_alone_writes_nothing_and_equals_that_of_the_gradient_pass(shape, name, ops):
    z, y, a = problem(shape, KINDS[name])
    before = z.clone()
    alone = ops.weighted_total(z, Target(y), RowWeights(a))
    torch.testing.assert_close(
        alone, ops.weighted_total(z, Target(y), RowWeights(a), torch.empty_like(z))
    )
    assert torch.equal(z, before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("shape", [(7, 10), (40, 65), (4, 3, 6)], ids=str)
def test_a_row_of_weight_0_is_left_out_even_if_not_finite(shape, bad, ops):
    z, y, a = problem(shape)
    a[0] = 0
    dz, truth_dz = torch.empty_like(z), torch.empty_like(z)
    truth = ops.weighted_total(z, Target(y), RowWeights(a), truth_dz)
    z[0] = bad
    torch.testing.assert_close(ops.weighted_total(z, Target(y), RowWeights(a), dz), truth)
    torch.testing.assert_close(dz[1:], truth_dz[1:])


def every_result(ops, z: Tensor, y: Tensor, a: Tensor) -> list[Tensor]:
    u = torch.linspace(0.5, 1, z.shape[1])
    dz, plain_dz = torch.empty_like(z), torch.empty_like(z)
    total = ops.weighted_total(z, Target(y, u), RowWeights(a, 0.1, 0.2), dz)
    plain = ops.weighted_total(z, Target(y), RowWeights(a), plain_dz)
    values = ops.row_values(z, Target(y, u), True)
    return [total, dz, plain, plain_dz, *values, ops.row_vjp(z, Target(y, u), RowValues(a, a, a))]


DIVISIONS = [(1, (1, 1)), (100, (3, 7)), (5000, (128, 256)), (1 << 20, (8192, 65536))]


QUICK_CASES = {("unshifted", (140, 10)), ("logits of 1e4", (7, 5, 60)), ("far apart", (40, 200))}
"""One of each kind of logits and of each shape; the others, of a second each, are slow tests."""


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        pytest.param(
            *case, id="{}, {}".format(*case), marks=[] if case in QUICK_CASES else pytest.mark.slow
        )
        for case in itertools.product(
            ["unshifted", "logits of 1e4", "far apart"], [(140, 10), (40, 200), (7, 5, 60)]
        )
    ],
)
def test_results_do_not_depend_on_blocks_and_threads(shape, name, set_threads, monkeypatch):
    arguments = problem(shape, KINDS[name])
    expected = every_result(cpu, *arguments)
    for threads in (1, 2):
        set_threads(threads)
        for block, block_rows in DIVISIONS:
            monkeypatch.setattr(cpu, "BLOCK_ELEMENTS", block)
            monkeypatch.setattr(cpu, "ROW_LIMITS", block_rows)
            torch.testing.assert_close(
                every_result(cpu, *arguments), expected, rtol=1e-6, atol=1e-6
            )


@kinds
@pytest.mark.parametrize("shape", [(70000, 3), (300, 200), (7, 5, 60)], ids=str)
def test_the_same_call_gives_the_same_bits(shape, kind, kernels):
    z, y, a = problem(shape, kind)
    for first, second in zip(*(every_result(kernels, z, y, a) for _ in range(2)), strict=True):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())


@pytest.mark.parametrize(
    ("name", "shape", "softmax"),
    [
        ("unshifted", (40, 10), False),
        ("unshifted", (40, 200), True),
        ("far from zero", (40, 10), False),
        ("far apart", (40, 10), False),
    ],
)
def test_narrow_logits_take_exp2_and_wide_ones_softmax(name, shape, softmax, monkeypatch):
    calls, softmax_of_torch = [], torch.softmax
    monkeypatch.setattr(
        torch, "softmax", lambda *args, **kw: calls.append(0) or softmax_of_torch(*args, **kw)
    )
    z, y, _ = problem(shape, KINDS[name])
    cpu.row_values(z, Target(y))
    assert bool(calls) == softmax


@pytest.mark.parametrize("shape", [(40, 10), (3, 2000), (5000, 12), (7, 1)], ids=str)
@pytest.mark.parametrize("name", ["unshifted", "far from zero", "certain", "rare", "masked"])
def test_mean_nll_is_the_total_at_equal_weights(shape, name, kernels):
    """Few logits, which have a path of their own, are among the shapes."""
    z, y, _ = problem(shape, KINDS[name])
    total, dz = kernels.mean_nll(z, y)
    z64, truth = z.double(), torch.empty_like(z, dtype=torch.float64)
    value = maths.weighted_total(z64, Target(y), RowWeights(1 / len(z)), truth)
    torch.testing.assert_close(total.double(), value, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(dz.double() * len(z), truth * len(z), rtol=3e-5, atol=3e-7)


@pytest.mark.parametrize("shape", [(40, 10), (5000, 12)], ids=str)
@pytest.mark.parametrize("index", [-100, -1, 12])
def test_mean_nll_refuses_an_index_out_of_range(shape, index, kernels):
    z, y, _ = problem(shape)
    y[7] = index
    with pytest.raises((IndexError, RuntimeError)):
        kernels.mean_nll(z, y)
