"""A launch that is like an earlier one skips Triton: which are alike, and what they pass on."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")
from softmax_torch.ops import triton_launch

ON_A_CPU = -1  # what torch calls its device


class Kernel:
    """A Triton kernel that notes which launches it compiles, and which run what was compiled."""

    def __init__(self) -> None:
        self.compiled: list[tuple] = []
        self.runs: list[tuple] = []

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*args, num_warps: int) -> SimpleNamespace:
            self.compiled.append((grid, args, num_warps))
            return SimpleNamespace(
                run=lambda *args: self.runs.append(args), function="code", packed_metadata="data"
            )

        return launch


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel that is launched on a CPU, as if that were the current device."""
    streams = SimpleNamespace(get_current_stream=lambda device: f"stream of {device}")
    monkeypatch.setattr(triton_launch, "JITFunction", Kernel)
    monkeypatch.setattr(triton_launch, "driver", SimpleNamespace(active=streams))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: ON_A_CPU)
    monkeypatch.setattr(triton_launch, "_compiled", {})
    return Kernel()


def test_a_like_launch_runs_what_was_compiled(kernel):
    x, y, other = torch.zeros(3, 8).unbind()
    triton_launch.launch(kernel, 2, (x, None), (7, 0.5), 8)
    assert kernel.compiled == [((2,), (x, None, 7, 0.5), 8)]
    triton_launch.launch(kernel, 3, (y, None), (7, 0.5), 8)
    assert kernel.runs == [
        (3, 1, 1, f"stream of {ON_A_CPU}", "code", "data", None, None, None, y, None, 7, 0.5)
    ]
    triton_launch.launch(Kernel(), 3, (other, None), (7, 0.5), 8)
    assert len(kernel.compiled) == len(kernel.runs) == 1


@pytest.mark.parametrize(
    "unlike",
    [
        {"tensors": (torch.zeros(8), None)},
        {"tensors": (torch.zeros(8).double(), torch.zeros(8))},
        {"tensors": (torch.zeros(9)[1:], torch.zeros(8))},  # begins at no multiple of 16 bytes
        {"others": (8, 0.5)},
        {"others": (7, 0.25)},
        {"warps": 8},
    ],
    ids=["a tensor left out", "dtype", "address", "number", "float", "warps"],
)
def test_a_launch_unlike_others_is_compiled(unlike, kernel):
    like = {"tensors": (torch.zeros(8), torch.zeros(8)), "others": (7, 0.5), "warps": 4}
    for arguments in (like, like | unlike, like, like | unlike):
        triton_launch.launch(kernel, 2, **arguments)
    assert len(kernel.compiled) == len(kernel.runs) == 2


def test_no_more_launches_are_remembered_than_fit(kernel, monkeypatch):
    monkeypatch.setattr(triton_launch, "MOST", 2)
    for number in range(5):
        triton_launch.launch(kernel, 1, (torch.zeros(8),), (number,))
        assert len(triton_launch._compiled) <= 2
