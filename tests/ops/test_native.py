"""What is particular to the native kernels of rows: layouts, dtypes, sizes, threads, instructions.

test_cpu has what they share with torch's kernels. The truth is ``maths`` in float64.
"""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeights, Target, sum_dtype
from softmax_torch.ops import native
from softmax_torch.ops.native import calls, library

pytestmark = pytest.mark.usefixtures("native_library", "stale_memory")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OUTSIDE = 77.0
"""What lies around a result, and has to stay there."""

dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def assert_near(found, truth, dtype: torch.dtype) -> None:
    """Assert equality up to a few roundings of the arithmetic, and one to half precision.

    Infinities and NaN are equal.
    """
    for x, t in zip(found, truth, strict=True):
        assert (x is None) == (t is None)
        if x is None:
            continue
        eps = torch.finfo(sum_dtype(dtype)).eps
        size = max([1.0, *t[t.isfinite()].abs().tolist()])
        rtol, atol = 40 * eps, 4 * eps * size
        if x.dtype in (torch.float16, torch.bfloat16):
            rtol, atol = (
                torch.finfo(x.dtype).eps,
                atol + torch.finfo(x.dtype).smallest_normal / 1024,
            )
        torch.testing.assert_close(x.double(), t, rtol=rtol, atol=atol, equal_nan=True)


def double(*arguments):
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in arguments]


def by_maths(z: Tensor, target: Target, weights: RowWeights) -> list[Tensor | None]:
    """Return ``results`` by maths in float64."""
    z, y, u = double(z, *target)
    weights = RowWeights(*double(*weights))
    dz = torch.full_like(z, torch.nan)
    total = maths.weighted_total(z, Target(y, u), weights, dz)
    rows = z.shape[:1] + z.shape[2:]
    gradients = [None if w is None else torch.as_tensor(w).expand(rows) for w in weights]
    return [
        *maths.row_values(z, Target(y, u), True),
        maths.row_vjp(z, Target(y, u), RowValues(*gradients)),
        total,
        dz,
    ]


def results(
    z: Tensor, target: Target, weights: RowWeights, memory: Callable[[], Tensor] | None = None
) -> list[Tensor | None]:
    """Return row numbers, the gradient of their weighted sum, the weighted total, its gradient.

    ``memory`` makes the memory of a gradient.
    """
    memory = memory or (lambda: torch.empty_like(z))
    dtype, rows = sum_dtype(z.dtype), z.shape[:1] + z.shape[2:]
    gradients = [
        None if w is None else torch.as_tensor(w, dtype=dtype).expand(rows) for w in weights
    ]
    dz = memory()
    total = native.weighted_total(z, target, weights, dz)
    return [
        *native.row_values(z, target, True),
        native.row_vjp(z, target, RowValues(*gradients), memory()),
        total,
        dz,
    ]


def problem(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Target, RowWeights]:
    """Return logits, class indices with a vector a row, and weights of all three numbers."""
    generator = torch.Generator().manual_seed(sum(shape))
    rows, real = shape[:1] + shape[2:], sum_dtype(dtype)
    z = (3 * torch.randn(shape, generator=generator)).to(dtype)
    y = torch.randint(shape[1], rows, generator=generator)
    u = torch.rand(shape, generator=generator).to(dtype)
    weights = [torch.rand(rows, generator=generator).to(real) for _ in range(3)]
    return z, Target(y, u), RowWeights(*weights)


# Layouts.


def negative(x: Tensor) -> Tensor:
    """Return x as a view with the negative bit: its memory holds -x."""
    flipped = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert flipped.is_neg()
    return flipped


Layout = Callable[[tuple[int, ...]], tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]
MATRICES: dict[str, Layout] = {
    "adjacent": lambda s: ((s[0] + 2, s[1]), lambda m: m[1:-1]),
    "rows with gaps": lambda s: ((2 * s[0] + 2, s[1] + 3), lambda m: m[1:-1:2, 2:-1]),
    "classes with gaps": lambda s: ((s[0] + 2, 2 * s[1] + 2), lambda m: m[1:-1, 1:-1:2]),
    "transposed": lambda s: ((s[1] + 2, s[0] + 3), lambda m: m.t()[1:-2, 1:-1]),
}
POSITIONS: dict[str, Layout] = {
    "positions, adjacent": lambda s: ((s[0] + 2, *s[1:]), lambda m: m[1:-1]),
    "classes last": lambda s: (
        (s[0] + 2, s[2], s[1] + 2),
        lambda m: m[1:-1, :, 1:-1].movedim(-1, 1),
    ),
    "positions with gaps": lambda s: (
        (s[0] + 2, s[1], 2 * s[2] + 2),
        lambda m: m[1:-1, :, 1:-1:2],
    ),
    "samples last": lambda s: ((s[1], s[2], s[0] + 2), lambda m: m.permute(2, 0, 1)[1:-1]),
}
CASES = [
    *(((*shape,), layout) for shape in ((9, 10), (20, 3), (9, 70)) for layout in MATRICES),
    *(((*shape,), layout) for shape in ((3, 5, 18), (2, 70, 9)) for layout in POSITIONS),
]


def laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return memory full of OUTSIDE, and a view of this shape and layout in it."""
    size, view = (MATRICES | POSITIONS)[layout](shape)
    memory = torch.full(size, OUTSIDE, dtype=dtype)
    assert view(memory).shape == shape
    return memory, view(memory)


@dtypes
@pytest.mark.parametrize(("shape", "layout"), CASES, ids=str)
def test_every_dtype_and_layout_and_nothing_is_written_outside(shape, layout, dtype):
    z, (y, u), weights = problem(shape, dtype)
    truth = by_maths(z, Target(y, u), weights)
    made = []

    def place(values: Tensor | float) -> Tensor:
        memory, view = laid_out(shape, layout, dtype)
        made.append((memory, view))
        return view.copy_(values) if isinstance(values, Tensor) else view.fill_(values)

    found = results(place(z), Target(y, place(u)), weights, lambda: place(torch.nan))
    assert_near(found, truth, dtype)
    for memory, view in made:
        view.fill_(OUTSIDE)
        assert (memory == OUTSIDE).all()


@dtypes
@pytest.mark.parametrize("shape", [(9, 10), (9, 70), (3, 5, 18)], ids=str)
def test_one_row_or_one_position_for_all(shape, dtype):
    z, (y, u), weights = problem(shape, dtype)
    for dim in {0, len(shape) - 1} - {1}:
        z_1, u_1 = (t.narrow(dim, 0, 1).expand(shape) for t in (z, u))
        truth = by_maths(z_1, Target(y, u_1), weights)
        found = results(z_1, Target(y, u_1), weights, lambda: torch.empty(shape, dtype=dtype))
        assert_near(found, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(9, 10), (9, 70), (3, 5, 18), (1, 4)], ids=str)
def test_the_negative_bit_of_every_argument(shape, dtype):
    z, (y, u), weights = problem(shape, dtype)
    truth = by_maths(z, Target(y, u), weights)
    minus = RowWeights(*(negative(w) for w in weights))
    found = results(negative(z), Target(y, negative(u)), minus, lambda: torch.empty_like(z))
    assert_near(found, truth, dtype)
    truth = by_maths(z, Target(y, u.flatten()[: shape[1]]), weights)
    vector = negative(u.flatten()[: shape[1]])
    assert_near(results(z, Target(y, vector), weights), truth, dtype)
    if len(shape) == 2 and dtype == torch.float32:
        assert_near(native.mean_nll(negative(z), y), mean_nll_by_maths(z, y), dtype)


def mean_nll_by_maths(z: Tensor, y: Tensor) -> list[Tensor]:
    z = z.double()
    dz = torch.full_like(z, torch.nan)
    return [maths.weighted_total(z, Target(y), RowWeights(1 / len(z)), dz), dz]


@pytest.mark.parametrize("shape", [(9, 10), (20, 3), (9, 70)], ids=str)
@pytest.mark.parametrize("layout", MATRICES)
def test_mean_nll_in_every_layout(layout, shape):
    z, (y, _), _ = problem(shape)
    view = laid_out(shape, layout, torch.float32)[1].copy_(z)
    spread = y.repeat_interleave(2)[::2]
    assert_near(native.mean_nll(view, spread), mean_nll_by_maths(z, y), torch.float32)


# Sizes around the width of vectors and tiles.

WIDTHS = [*range(1, 36), *range(62, 67), *range(126, 131), 1023, 1024, 1025]
COUNTS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("C", WIDTHS)
def test_numbers_of_classes_and_rows(C, dtype):
    for N in COUNTS if C < 1000 else COUNTS[:4]:
        z, (y, u), weights = problem((N, C), dtype)
        for target, chosen in (
            (Target(y), RowWeights(weights.a)),
            (Target(y, u[0]), weights),
            (Target(y, u), weights),
            (Target(None, u), RowWeights(None, weights.b)),
        ):
            found, truth = results(z, target, chosen), by_maths(z, target, chosen)
            assert_near(found, truth, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("M", [*range(1, 19), 31, 32, 33, 34])
def test_numbers_of_positions(M, dtype):
    for N, C in ((1, 1), (2, 3), (3, 70)):
        z, (y, u), weights = problem((N, C, M), dtype)
        for target in (Target(y), Target(y, u[0, :, 0]), Target(y, u)):
            chosen = weights if target.u is not None else RowWeights(weights.a)
            found, truth = results(z, target, chosen), by_maths(z, target, chosen)
            assert_near(found, truth, dtype)


@pytest.mark.parametrize("shape", [(0, 3), (0, 70), (2, 3, 0), (0, 3, 4)], ids=str)
def test_no_rows(shape):
    z, target, weights = problem(shape)
    found = results(z, target, weights)
    assert [x.shape for x in found[:3]] == [shape[:1] + shape[2:]] * 3
    assert found[4] == 0


# Class probabilities and weights.


@dtypes
@pytest.mark.parametrize("of_u", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(9, 10), (9, 70), (3, 5, 18)], ids=str)
def test_class_probabilities_of_any_dtype(shape, of_u, dtype):
    z, (y, u), weights = problem(shape, dtype)
    u = u.to(of_u)
    for vector in (u, u.transpose(0, 1)[:, 0].flatten()[: shape[1]]):
        found = results(z, Target(y, vector), weights)
        assert_near(found, by_maths(z, Target(y, vector), weights), dtype)


WEIGHTS = {
    "a number": lambda w: 0.25,
    "zero": lambda w: 0.0,
    "none": lambda w: None,
    "a tensor without dimensions": lambda w: torch.tensor(0.25, dtype=w.dtype),
    "in double": lambda w: w.double(),
    "in half precision": lambda w: w.bfloat16(),
    "one for all rows": lambda w: w.flatten()[0].expand(w.shape),
    "with gaps": lambda w: torch.stack([w, w], -1)[..., 0],
    "one is 0": lambda w: w.index_fill(0, torch.tensor([0]), 0.0),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("place", range(3), ids=["a", "b", "c"])
@pytest.mark.parametrize("shape", [(9, 10), (9, 70), (3, 5, 18)], ids=str)
def test_weights(shape, place, weight):
    z, target, weights = problem(shape)
    changed = list(weights)
    changed[place] = weight(weights[place])
    chosen = RowWeights(*changed)
    assert_near(results(z, target, chosen), by_maths(z, target, chosen), torch.float32)


# Logits that are not finite.

WHERE = {
    "at the true class": lambda row, y: row.__setitem__(y, True),
    "at the first class": lambda row, y: row.__setitem__(0, True),
    "at the last class": lambda row, y: row.__setitem__(-1, True),
    "everywhere else": lambda row, y: (row.fill_(True), row.__setitem__(y, False)),
    "everywhere": lambda row, y: row.fill_(True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize(
    "shape", [(9, 2), (9, 10), (20, 33), (9, 70), (9, 200), (9, 5, 18)], ids=str
)
def test_logits_that_are_not_finite(shape, where, value, dtype):
    """Numbers and gradients are those of maths, NaN and infinities too, and other rows' are not.

    So they are where the row has a weight of 0, which leaves its numbers out of the total.
    """
    z, (y, u), weights = problem(shape, dtype)
    at = (3,) if len(shape) == 2 else (3, slice(None), 7)
    mask = torch.zeros(shape[1], dtype=torch.bool)
    where(mask, y[3] if len(shape) == 2 else y[3, 7])
    z[at] = torch.where(mask, torch.tensor(value, dtype=dtype), z[at])
    for weight in (1.0, 0.0):
        for w in weights:
            w[(3,) if len(shape) == 2 else (3, 7)] = weight
        for target, chosen in (
            (Target(y), RowWeights(weights.a)),
            (Target(y), RowWeights(weights.a, None, weights.c)),
            (Target(y, u), weights),
        ):
            found, truth = results(z, target, chosen), by_maths(z, target, chosen)
            assert_near(found, truth, dtype)
            assert weight or found[4].isfinite()


# Class indices out of range.

INDICES = [-1, -100, 10**9, 2**31, 2**32, 2**32 + 1, -(2**32), 2**63 - 1, -(2**63)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("index", [*INDICES, "C"])
@pytest.mark.parametrize("shape", [(9, 10), (41, 33), (9, 70), (3, 5, 18)], ids=str)
def test_an_index_out_of_range_is_named(shape, index, dtype):
    z, (y, _), weights = problem(shape, dtype)
    layout = "rows with gaps" if len(shape) == 2 else "positions with gaps"
    index = shape[1] if index == "C" else index
    for row in {0, 5, y.numel() - 1}:
        wrong = y.clone()
        wrong.view(-1)[row] = index
        message = rf"target: expected class indices in \[0, {shape[1]}\), got {index}$"
        memory, dz = laid_out(shape, layout, dtype)
        with pytest.raises(IndexError, match=message):
            native.weighted_total(z, Target(wrong), RowWeights(weights.a), dz)
        with pytest.raises(IndexError, match=message):
            native.row_vjp(z, Target(wrong), RowValues(weights.a), dz)
        with pytest.raises(IndexError, match=message):
            native.row_values(z, Target(wrong))
        dz.fill_(OUTSIDE)
        assert (memory == OUTSIDE).all()
        if len(shape) == 2 and dtype == torch.float32:
            with pytest.raises(IndexError):
                native.mean_nll(z, wrong)


@pytest.mark.parametrize("shape", [(20000, 10), (4000, 100)], ids=str)
def test_the_first_wrong_index_of_many_rows_is_named(shape, set_threads):
    set_threads(2)
    z, (y, _), weights = problem(shape)
    y[[1234, 3999]] = torch.tensor([-7, 999])
    for _ in range(20):
        with pytest.raises(IndexError, match="got -7"):
            native.weighted_total(z, Target(y), RowWeights(weights.a), torch.empty_like(z))


# Threads.


BIG = [(70000, 3), (5000, 30), (300, 1000), (2, 300_000), (40, 20, 200)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", BIG, ids=str)
def test_the_same_bits_on_any_number_of_threads_and_each_time(shape, dtype, set_threads):
    z, target, weights = problem(shape, dtype)
    assert calls.threads_for(z.numel()) == torch.get_num_threads()
    set_threads(1)
    expected = results(z, target, weights)
    truth = by_maths(z, target, weights)
    assert_near([expected[4]], [truth[4]], torch.float32)
    for threads in (1, 2, 3, 3):
        set_threads(threads)
        for x, first in zip(results(z, target, weights), expected, strict=True):
            assert torch.equal(x, first)


def test_large_calls_from_several_threads_of_python(set_threads):
    """Each call has its own scratch memory and team of threads; ctypes releases the GIL."""
    set_threads(2)
    assert not isinstance(library.load().functions, ctypes.PyDLL)
    problems = [problem(shape) for shape in BIG]
    expected = [results(*p) for p in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for found, first in zip(
                pool.map(lambda p: results(*p), problems), expected, strict=True
            ):
                assert all(torch.equal(x, t) for x, t in zip(found, first, strict=True))


# The library.


def test_structures_have_the_sizes_of_the_library():
    """Every field has 8 bytes: equal sizes are equal offsets."""
    structures = [calls.Weight, calls.Array, calls.Rows, calls.Samples, calls.Pass]
    sizes = (ctypes.c_int64 * len(structures))()
    library.load().functions.softmax_torch_sizes(sizes)
    assert list(sizes) == [ctypes.sizeof(s) for s in structures]


@pytest.mark.slow
def test_these_tests_with_every_instruction_set():
    """The processor's best set runs in the tests themselves."""
    files = [
        __file__,
        *(str(Path(__file__).with_name(n)) for n in ("test_layers.py", "test_cpu.py")),
    ]
    for isa in library.load().isas[1:]:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files],
            capture_output=True,
            text=True,
            env=os.environ | {"SOFTMAX_TORCH_ISA": isa},
            cwd=Path(__file__).parents[2],
        )
        assert done.returncode == 0, f"{isa}: {done.stdout}"
