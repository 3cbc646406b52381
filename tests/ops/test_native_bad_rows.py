"""Native kernels: logits that are not finite, and class indices that are out of range."""

import pytest
import torch
from native_rows import OUTSIDE, assert_near, by_maths, laid_out, problem, results

from softmax_torch.maths import RowValues, RowWeights, Target
from softmax_torch.ops import native

pytestmark = pytest.mark.usefixtures("native_library", "stale_memory")

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
