"""Shared fixtures: the real MNIST where it exists, and a generated one. Settings of hypothesis."""

import os
from collections.abc import Iterator
from pathlib import Path

# Workers of pytest-xdist share the cores. Threads that wait for each other make them slower, and
# the processes that tests start take their number of threads from the environment.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
# Lightning 2.6 calls jsonargparse 4.53 by names that it deprecates.
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import pytest
import torch
from mnist_files import write_mnist
from support import OTHER_KERNELS, need_library

from softmax_torch.ops import backends
from softmax_torch.ops.interfaces import CPUKernels

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # a machine with a GPU may have no more than the tests of kernels need
    pass
else:
    # The same examples everywhere, however slow and busy the machine is. The fixtures of a test,
    # such as the kernels, are the same for all of its examples.
    settings.register_profile(
        "anywhere",
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.load_profile("anywhere")


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Give a test the same random numbers whichever tests ran in its process before it."""
    torch.manual_seed(0)


@pytest.fixture(params=["native", pytest.param("torch", marks=OTHER_KERNELS)])
def kernels(request: pytest.FixtureRequest) -> Iterator[CPUKernels]:
    """Run a test with both kernels of a CPU; native ones are skipped where there is no library.

    The tests of operators use it. These run once, with the kernels that are chosen:

    - gradcheck of first and second derivatives: minutes, and what it adds to the first derivatives,
      which test_cross_entropy compares with torch's, is made of formulas;
    - transforms of torch.func of the first kind (test_transforms): forward mode and every higher
      derivative are formulas. What reaches kernels, vmap and gradients of samples, runs twice;
    - precision under forward-mode tangents: formulas.
    """
    if request.param == "native":
        need_library()
    with backends.cpu_kernels(request.param):
        yield backends.cpu_backend()


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """A root with generated images in the files of MNIST."""
    return write_mnist(tmp_path / "data")


@pytest.fixture
def real_mnist_root() -> Path:
    """A root with the real MNIST, named by SOFTMAX_TORCH_DATA or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("SOFTMAX_TORCH_DATA", beside))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"the real MNIST is not in {root} (see SOFTMAX_TORCH_DATA)")
    return root
