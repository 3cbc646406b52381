"""The native kernels of rows in every layout and dtype, at sizes around vectors and tiles.

test_cpu has what they share with torch's kernels. The truth is ``maths`` in float64.
"""

import pytest
import torch
from native_rows import (
    MATRICES,
    OUTSIDE,
    POSITIONS,
    assert_near,
    by_maths,
    laid_out,
    problem,
    results,
)
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import RowWeights, Target
from softmax_torch.ops import native

pytestmark = pytest.mark.usefixtures("native_library", "stale_memory")

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

dtypes = pytest.mark.parametrize("dtype", FLOATS, ids=str)


# Layouts.


def negative(x: Tensor) -> Tensor:
    """Return x as a view with the negative bit: its memory holds -x."""
    flipped = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert flipped.is_neg()
    return flipped


CASES = [
    *(((*shape,), layout) for shape in ((9, 10), (20, 3), (9, 70)) for layout in MATRICES),
    *(((*shape,), layout) for shape in ((3, 5, 18), (2, 70, 9)) for layout in POSITIONS),
]


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


KINDS_OF_SUMS = [torch.float32, torch.float64, torch.bfloat16]


@pytest.mark.parametrize(
    "third", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", KINDS_OF_SUMS, ids=str)
@pytest.mark.parametrize("C", WIDTHS)
def test_numbers_of_classes_and_rows(C, dtype, third):
    """The quick third has every pair of numbers in one of the dtypes, and the slow ones in all."""
    first = (C + KINDS_OF_SUMS.index(dtype) + third) % 3
    for N in (COUNTS if C < 1000 else COUNTS[:4])[first::3]:
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
