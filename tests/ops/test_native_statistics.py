"""The statistics of rows by native kernels: every layout, dtype, size and thread number."""

import pytest
import torch
from native_rows import MATRICES, POSITIONS
from torch import Tensor

from softmax_torch import maths
from softmax_torch.ops import cpu, native

pytestmark = pytest.mark.usefixtures("native_library", "stale_memory")

# 4, 8 and 16 lanes of float, and sums of 128 vectors that are added up in double
SIZES = [1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 65, 511, 513, 2048, 2049, 5000]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def logits(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return logits with equal ones and -inf, and class indices of which some are best."""
    torch.manual_seed(0)
    z = (4 * torch.randn(shape)).to(dtype)
    if shape[1] > 2:
        z[0, shape[1] // 2] = z[0, -1] = z[0].max()
        z[1, 0] = -torch.inf
    y = torch.randint(shape[1], shape[:1] + shape[2:])
    y[0] = z[0].argmax(0)
    if shape[1] > 2:
        y[2] = shape[1] - 1
    return z, y


def assert_right(z: Tensor, y: Tensor | None, kernels=native) -> None:
    found, truth = kernels.row_statistics(z, y), maths.row_statistics(z.double(), y)
    torch.testing.assert_close(found.lse.double(), truth.lse, rtol=3e-7, atol=1e-6)
    torch.testing.assert_close(found.entropy.double(), truth.entropy, rtol=2e-6, atol=1e-30)
    assert torch.equal(found.argmax, truth.argmax)
    assert (found.rank is None) == (y is None)
    if found.rank is not None:
        assert torch.equal(found.rank, truth.rank)


@dtypes
@pytest.mark.parametrize("C", SIZES)
def test_sizes(C, dtype):
    z, y = logits((5, C), dtype)
    assert_right(z, y)
    assert_right(z, None)


@dtypes
@pytest.mark.parametrize("layout", MATRICES | POSITIONS)
def test_layouts(layout, dtype):
    shape = (6, 21) if layout in MATRICES else (6, 21, 5)
    whole, part = (MATRICES | POSITIONS)[layout](shape)
    z, y = logits(shape, dtype)
    memory = torch.full(whole, torch.nan, dtype=dtype)
    part(memory).copy_(z)
    assert_right(part(memory), y)


@pytest.mark.parametrize("shape", [(70000, 3), (300, 1000), (3, 200_000), (40, 20, 200)], ids=str)
def test_the_same_bits_on_any_number_of_threads(shape, set_threads):
    z, y = logits(shape, torch.float32)
    set_threads(1)
    expected = native.row_statistics(z, y)
    for threads in (2, 3):
        set_threads(threads)
        for x, first in zip(native.row_statistics(z, y), expected, strict=True):
            assert torch.equal(x, first)
    assert_right(z, y)


def test_the_true_place_among_many_equals():
    z = torch.zeros(3, 100)
    found = native.row_statistics(z, torch.tensor([0, 50, 99]))
    assert found.argmax.tolist() == [0, 0, 0]
    assert found.rank.tolist() == [0, 50, 99]


@pytest.mark.parametrize("index", [-1, 10, 2**32 + 1, -(2**63)])
def test_an_index_out_of_range_reads_nothing(index):
    found = native.row_statistics(torch.zeros(2, 10), torch.tensor([3, index]))
    assert found.rank.tolist() == [3, 10]


@pytest.mark.parametrize("C", [3, 10, 70])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("everywhere", [False, True])
def test_logits_that_are_not_finite(value, everywhere, C):
    z, y = logits((5, C), torch.float32)
    z[2, 0 if everywhere else C - 2 :] = value
    found, truth = native.row_statistics(z, y), maths.row_statistics(z, y)
    assert torch.equal(found.argmax, z.argmax(1))
    assert torch.equal(found.rank, truth.rank)
    torch.testing.assert_close(found.lse, truth.lse, equal_nan=True)
    torch.testing.assert_close(found.entropy, truth.entropy, equal_nan=True)


@pytest.mark.parametrize("shape", [(9, 10), (5000, 300), (4, 20, 600)], ids=str)
def test_torchs_kernels_in_blocks(shape):
    assert_right(*logits(shape, torch.float32), cpu)
