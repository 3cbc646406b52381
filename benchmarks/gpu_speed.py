"""The phases of ``gpu_check.py`` that measure the operators, and what the device can do."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from gpu_figures import figure, tiny
from operator_gpu import DEVICE, INTERPRET, median_times
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy


def copy_bandwidth(elements: int, dtype: torch.dtype) -> float:
    """Return bytes a second of a copy: read and written."""
    source = torch.empty(elements, dtype=dtype, device=DEVICE)
    target = torch.empty_like(source)
    seconds = median_times({"copy": lambda: target.copy_(source)}, 1.0)["copy"]
    return 2 * source.numel() * source.element_size() / seconds


def ceilings() -> None:
    """Measure the limits of the device."""
    if not INTERPRET:
        import triton

        properties = torch.cuda.get_device_properties(0)
        figure("device", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
        figure("versions", f"torch {torch.__version__}, triton {triton.__version__}")
    bandwidth = copy_bandwidth(tiny(1 << 30, 100), torch.bfloat16)
    figure("copy of 2 GiB", f"{bandwidth / 1e12:.3f} TB/s")
    n = tiny(8192, 8)
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    seconds = median_times({"product": lambda: a @ b}, 1.0)["product"]
    figure(f"bfloat16 product {n}", f"{2 * n**3 / seconds / 1e12:.0f} TFLOP/s")
    x = torch.zeros(1, device=DEVICE)
    figure("host time of a launch", f"{host_seconds(lambda: x.add_(1)) * 1e6:.1f} us")


def host_seconds(f: Callable[[], object], calls: int = 200) -> float:
    """Return the seconds that the host needs for a call, without waiting for the device."""
    calls = tiny(calls, 2)
    best = float("inf")
    for _ in range(tiny(5, 1)):
        f()
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            f()
        best = min(best, (time.perf_counter() - start) / calls)
        synchronize()
    return best


def synchronize() -> None:
    if not INTERPRET:
        torch.cuda.synchronize()


def small() -> None:
    """Measure the sizes that the host limits."""
    for N in (tiny(128, 5), tiny(1_000_000, 200)):
        z = torch.randn(N, 10, device=DEVICE).requires_grad_()
        y = torch.randint(10, (N,), device=DEVICE)

        def ours(z: Tensor = z, y: Tensor = y) -> None:
            z.grad = None
            cross_entropy(z, y).backward()

        def torchs(z: Tensor = z, y: Tensor = y) -> None:
            z.grad = None
            F.cross_entropy(z, y).backward()

        ours(), torchs()
        if not INTERPRET:
            counts = kernels_of(ours), kernels_of(torchs)
            figure(
                f"{N} x 10: launches, ours and torch's",
                f"{counts[0]}, {counts[1]}",
                "<= 4",
                counts[0] <= 4,
            )
        times = host_seconds(ours), host_seconds(torchs)
        ratio = times[0] / times[1]
        figure(f"{N} x 10: host time", f"{times[0] * 1e6:.0f} us, / torch {ratio:.2f}", "<= 1.3",
               ratio <= 1.3)  # fmt: skip
        times = median_times({"ours": ours, "torch": torchs}, 2.0)
        share = (2 * z.numel() * z.element_size() / copy_bandwidth(z.numel(), z.dtype)) / times[
            "ours"
        ]
        goal = ("", None) if N < 1000 else (">= 70% of copy bandwidth", share >= 0.7)
        figure(f"{N} x 10: device time",
               f"{times['ours'] * 1e6:.0f} us, / torch {times['ours'] / times['torch']:.2f}, "
               f"{share:.0%} of a copy", *goal)  # fmt: skip


def kernels_of(f: Callable[[], None]) -> int:
    """Return the number of kernels that a call launches."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        f()
        synchronize()
    return sum(
        1 for e in found.events() if e.device_type == torch.autograd.DeviceType.CUDA
        and "memcpy" not in e.name.lower()
    )  # fmt: skip


LOGITS = [
    (8192, 128256, torch.bfloat16, 0.9),
    (16384, 32000, torch.bfloat16, 0.9),
    (32768, 50257, torch.bfloat16, None),
    (262144, 1000, torch.bfloat16, None),
    (262144, 1000, torch.float32, None),
    (1 << 20, 100, torch.float32, None),
    (1 << 20, 33, torch.float32, None),
]


def logits() -> None:
    """Compare loss and gradient of given logits with a copy of as many bytes."""
    for N, C, dtype, bar in LOGITS if not INTERPRET else [(7, 40, torch.bfloat16, 0.9)]:
        z = torch.randn(N, C, device=DEVICE, dtype=dtype).requires_grad_()
        y = torch.randint(C, (N,), device=DEVICE)
        source, target = z.detach(), torch.empty_like(z)

        def step(f: Callable[..., Tensor], z: Tensor = z, y: Tensor = y) -> None:
            z.grad = None
            f(z, y).backward()

        times = median_times({
            "copy": lambda source=source, target=target: target.copy_(source),
            "ours": lambda step=step: step(cross_entropy),
            "torch": lambda step=step: step(F.cross_entropy),
        }, 3.0)  # fmt: skip
        share = times["copy"] / times["ours"]
        name = f"{N} x {C} {str(dtype)[6:]}"
        value = f"{times['ours'] * 1e3:.3f} ms, {share:.0%} of a copy, / torch "
        value += f"{times['ours'] / times['torch']:.2f}"
        goal = "" if bar is None else f">= {bar:.0%} of copy bandwidth"
        figure(name, value, goal, None if bar is None else share >= bar)
        del z, y, source, target


def heads() -> None:
    """Compare a layer and its loss with its bare products, in one block and in four."""
    from softmax_torch.ops import budgets

    N, D, C = tiny(4096, 6), tiny(4096, 5), tiny(128256, 40)
    for blocks, bar in ((1, 1.10), (4, 1.25)):
        budget = N * C * 2 // blocks
        budgets.logits_budget = lambda x, budget=budget: budget
        head(N, D, C, torch.bfloat16, False, f"{blocks} block{'s' * (blocks > 1)}", bar)
    budgets.logits_budget = lambda x: 1 << 30
    head(tiny(60000, 50), tiny(784, 12), 10, torch.float32, True, "frozen input", 1.30)


def head(N: int, D: int, C: int, dtype: torch.dtype, frozen: bool, name: str, bar: float) -> None:
    """Measure one layer."""
    x = torch.randn(N, D, device=DEVICE, dtype=dtype).requires_grad_(not frozen)
    W = (torch.randn(C, D, device=DEVICE) / D**0.5).to(dtype).requires_grad_()
    y = torch.randint(C, (N,), device=DEVICE)
    X, V = x.detach(), W.detach()
    Z = X @ V.t()

    def step(f: Callable[[], Tensor]) -> None:
        x.grad = W.grad = None
        f().backward()

    runs = {
        "ours": lambda: step(lambda: linear_cross_entropy(x, W, y)),
        "torch": lambda: step(lambda: F.cross_entropy(F.linear(x, W), y)),
        "z": lambda: X @ V.t(),
        "dW": lambda: Z.t() @ X,
    }
    if not frozen:
        runs["dx"] = lambda: Z @ V
    times = median_times(runs, 4.0)
    bare = times["z"] + times["dW"] + times.get("dx", 0.0)
    ratio = times["ours"] / bare
    value = f"{times['ours'] * 1e3:.2f} ms, {ratio:.2f} x its products, / torch "
    value += f"{times['ours'] / times['torch']:.2f}"
    title = f"{N} x {D} x {C} {str(dtype)[6:]}, {name}"
    figure(title, value, f"<= {bar:.2f} x its products", ratio <= bar)
