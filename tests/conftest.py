"""Data that tests share: the real MNIST where it is at hand, and a generated one like it."""

import os
from pathlib import Path

import pytest
from mnist_files import write_mnist


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """A root with generated images in the files of MNIST."""
    return write_mnist(tmp_path / "data")


@pytest.fixture
def real_mnist_root() -> Path:
    """A root with the real MNIST: that of SOFTMAX_TORCH_DATA, or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("SOFTMAX_TORCH_DATA", beside))
    if not (root / "MNIST" / "raw").is_dir():
        pytest.skip(f"the real MNIST is not in {root} (see SOFTMAX_TORCH_DATA)")
    return root
