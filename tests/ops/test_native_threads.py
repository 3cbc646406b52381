"""Native kernels: the same bits on any number of threads, and calls from several threads."""

import ctypes
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from native_rows import assert_near, by_maths, problem, results

from softmax_torch.ops.native import calls, library

pytestmark = pytest.mark.usefixtures("native_library", "stale_memory")

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
