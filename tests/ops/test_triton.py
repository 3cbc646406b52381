"""The GPU kernels without a GPU: run by Triton's interpreter, and compiled for devices.

Each runs in a process of its own, since Triton reads TRITON_INTERPRET when a kernel is defined.
"""

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def run(*arguments: str, **environment: str) -> str:
    """Return the output of a process of this Python; it must exit with 0."""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def version_of(package: str) -> tuple[int, ...]:
    """Return major and minor version of a package; (0, 0) where it is not installed."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return 0, 0
    return tuple(int(part) for part in version.split(".")[:2])


# Triton 3.6 calls int() on an array of one element to get the end of a range.
loops = pytest.mark.skipif(
    version_of("triton") < (3, 7) and version_of("numpy") >= (2, 4),
    reason="Triton's interpreter before 3.7 cannot loop with this numpy",
)

SPILLED = 0 if version_of("triton") >= (3, 9) else 24
"""Bytes of local memory that a kernel may use. Triton 3.6 spills up to 24 bytes in 11 of 106 cuts,
one or two registers in ten of them."""


INTERPRETED_FILES = {path.name for path in HERE.glob("test_gpu_*.py")} - {"test_gpu_host.py"}
KERNELS = {"test_gpu_kernels.py"}


# In two halves, which two workers of pytest-xdist share.
@loops
@pytest.mark.slow
@pytest.mark.parametrize("files", [KERNELS, INTERPRETED_FILES - KERNELS], ids=["rows", "losses"])
def test_every_kernel_in_the_interpreter(files):
    paths = [str(HERE / name) for name in sorted(files)]
    out = run("-m", "pytest", "-q", *paths, TRITON_INTERPRET="1")
    passed = re.search(r"(\d+) passed", out)
    assert passed is not None, out
    assert int(passed[1]) > 300


@pytest.mark.slow
def test_every_kernel_compiles_for_a100_and_h100():
    out = run(str(HERE / "compiled.py"), TRITON_INTERPRET="0", TRITON_DEFAULT_FP_FUSION="1")
    lines = out.splitlines()
    assert [line for line in lines if "sm_80" in line]
    assert [line for line in lines if "sm_90" in line]
    for line in lines:  # registers that do not suffice spill into local memory
        spilled = re.search(r"(\d+) bytes of local memory", line)
        assert spilled is None or int(spilled[1]) <= SPILLED, line
    # Adjacent numbers are loaded 16 bytes per thread and instruction, in rows of 1000 bfloat16 too.
    wide = [
        line for line in lines if re.search(r"(index_loss|gradients) (bf16|fp32) \d{4,} ", line)
    ]
    assert len(wide) > 10
    assert [line for line in wide if "16 bytes" not in line] == []
    # A narrow row has a thread to itself, in few registers.
    narrow = [int(re.search(r"(\d+) registers", line)[1]) for line in lines if "narrow" in line]
    assert 0 < max(narrow) <= 128


@loops
@pytest.mark.slow
def test_the_check_of_a_gpu_runs_from_end_to_end(tmp_path):
    result = tmp_path / "results" / "cpu.json"
    out = run("benchmarks/gpu_check.py", "--interpret", "--json", str(result), TRITON_INTERPRET="1")
    phases = json.loads(result.read_text())
    assert {name for name, phase in phases.items() if phase["error"]} == set()
    for name, phase in phases.items():
        assert phase["figures"], name
        assert f"| {name} | {phase['figures'][0]['name']} |" in out
        assert not [figure for figure in phase["figures"] if figure["reached"] is False]
    assert len([f for f in phases["peers"]["figures"] if "softmax_torch" in f["name"]]) == 4
