"""Shared fixtures: the real MNIST where it exists, and a generated one. Settings of hypothesis."""

import os
from pathlib import Path

# Workers of pytest-xdist share the cores. Threads that wait for each other make them slower, and
# the processes that tests start take their number of threads from the environment.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import HealthCheck, settings
from mnist_files import write_mnist

# The same examples everywhere, however slow and busy the machine is.
settings.register_profile(
    "anywhere", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("anywhere")


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
