"""The tests of native kernels with every instruction set that the processor has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from softmax_torch.ops.native import library

FILES = [
    "test_cpu.py",
    "test_layers.py",
    "test_native.py",
    "test_native_bad_rows.py",
    "test_native_statistics.py",
    "test_native_threads.py",
]


@pytest.mark.slow
@pytest.mark.usefixtures("native_library")
@pytest.mark.parametrize("isa", ["avx2", "baseline"])
def test_every_instruction_set(isa):
    """The processor's best set runs in the tests themselves."""
    others = library.load().isas[1:]
    if isa not in others:
        pytest.skip(f"another than the best set of this processor is one of {others}")
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *files],
        capture_output=True,
        text=True,
        env=os.environ | {"SOFTMAX_TORCH_ISA": isa},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout
