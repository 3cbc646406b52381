"""The host's part of a GPU's steps, with a CUDA whose kernels do nothing: launches and waits.

``benchmarks/no_op_cuda.c`` stands for CUDA's runtime and driver, so that torch and Triton run their
own code of a GPU. The process is one of its own.
"""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from test_triton import run

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_host

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux"
        or torch.version.cuda is None
        or torch.cuda.is_available()
        or importlib.util.find_spec("triton") is None
        or gpu_host.compiler() is None
        or not gpu_host.headers(),
        reason="needs Linux, a C compiler, Triton, and torch for CUDA on a machine without a GPU",
    ),
]


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The counts of every case of ``gpu_host``."""
    path = tmp_path_factory.mktemp("counts") / "counts.json"
    run("benchmarks/gpu_host.py", "--counts", "--json", str(path))
    return json.loads(path.read_text())


def test_launches_of_a_step(figures):
    """Besides its own, a step has the launch that makes the gradient of the loss, a 1."""
    ours = {name: figure["ours"]["launches"] for name, figure in figures.items()}
    assert ours["128 x 10"] == ours["1000 x 10"] == 3
    assert ours["1000 x 10, weights, smoothing, z-loss"] == 3
    assert ours["2000 x 10"] == ours["512 x 1000, bfloat16"] == 5
    # A layer in blocks has logits, a gradient and products of each block; torch has one of each.
    assert ours["linear 16384 x 64 x 128256, bfloat16, in 4 blocks"] <= 4 * 14
    for name, figure in figures.items():
        if "torch" in figure and not name.endswith(("one loss per row", "blocks", "compiled")):
            assert ours[name] < figure["torch"]["launches"], name


def test_compiled_steps_have_one_launch_more_than_those_of_torch(figures):
    """One kernel computes a factor of each row's gradient; none touches all logits once more."""
    for name in ("128 x 10, compiled", "8192 x 1000, compiled"):
        assert figures[name]["ours"]["launches"] <= figures[name]["torch"]["launches"] + 1 == 5


def test_no_step_waits_for_the_device(figures):
    assert len(figures) > 8
    for name, figure in figures.items():
        assert figure["ours"]["waits"] == figure["ours"]["copies_to_host"] == 0, name


def test_batches_of_an_epoch_are_copied_from_pinned_memory(figures):
    found = figures["an epoch of 10 batches from memory"]["ours"]
    assert found["copies_to_device"] == 10  # of two batches each, inputs and targets
    assert found["pageable_copies"] == 0


def test_the_gradient_of_a_training_step_has_fewer_launches_than_a_bare_loop(figures):
    found = figures["gradient of a training step, 128 x 784 x 10"]
    assert found["ours"]["launches"] <= 4 < found["torch"]["launches"]


def test_kernels_are_launched_on_the_device_of_their_tensors(figures):
    devices = {name: figure["ours"]["last_device"] for name, figure in figures.items()}
    assert devices.pop("1000 x 10 on the other device") == 1
    assert set(devices.values()) == {0}


def test_a_wait_is_counted(tmp_path):
    path = tmp_path / "counts.json"
    command = ("benchmarks/gpu_host.py", "--counts", "--only", "128 x 10", "--json", str(path))
    run(*command, SOFTMAX_TORCH_CHECKS="1")
    found = json.loads(path.read_text())["128 x 10"]["ours"]
    assert found["copies_to_host"] > 0
    assert found["waits"] > 0
