"""Where the tests of a GPU run, and what they share: logits with weights, and a comparison.

The same tests run on a CUDA device, and on a CPU in Triton's interpreter (TRITON_INTERPRET=1), for
which ``test_triton`` starts a process of its own. There the GPU kernels replace the CPU's, values
are not readable, as on a GPU, and tiles are small, so that few numbers fill several tiles
(fixtures ``device`` and ``gpu_kernels``).
"""

import importlib.util
import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

gpu_marks = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None
        or not (INTERPRETED or torch.cuda.is_available()),
        reason="needs Triton and a CUDA device; on a CPU, test_triton runs it in the interpreter",
    ),
    pytest.mark.usefixtures("stale_memory"),
    # the interpreter uses numpy, which warns of inf - inf and the like
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]
on_a_device = pytest.mark.skipif(INTERPRETED, reason="needs a CUDA device")


TILES = {
    "one tile": {"NARROW": 0},
    "a thread a row": {"NARROW": 32},
    "many tiles": {"NARROW": 0, "ONE_TILE": 8, "TILE": 16, "POSITIONS": (8, 8)},
}


def problem(shape: tuple[int, ...], device: str, dtype=torch.float32):
    """Return logits, targets, and for each row number one positive weight per row."""
    torch.manual_seed(0)
    rows = shape[:1] + shape[2:]
    z, y = torch.randn(shape) * 3, torch.randint(shape[1], rows)
    weights = torch.rand(3, *rows).to(torch.promote_types(dtype, torch.float32)) + 0.5
    return z.to(device, dtype), y.to(device), weights.to(device)


def rows_of_two_programs(gpu_kernels, C: int) -> int:
    """Return how many rows of C classes one program has, and one more."""
    return gpu_kernels._tiling(torch.empty(1, C)).rows + 1


def assert_near(ours, truth, eps: float = 3e-7) -> None:
    """Assert equality up to a few roundings; the truth is in float64."""
    for x, t in zip(ours, truth, strict=True):
        assert (x is None) == (t is None)
        if x is not None:
            size = max([1.0, *t[t.isfinite()].abs().flatten().tolist()])
            torch.testing.assert_close(x.double(), t, rtol=30 * eps, atol=eps * size)
