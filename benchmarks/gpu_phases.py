"""The phases of ``gpu_check.py``, which runs each in a process of its own.

    python benchmarks/gpu_phases.py FIGURES PHASE [--interpret]

A figure is appended to the file FIGURES as soon as it is known.
"""

from __future__ import annotations

import concurrent.futures
import importlib.util
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import operator_gpu as race
import torch
import torch.nn.functional as F
from operator_gpu import DEVICE, INTERPRET, median_times
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy

ROOT = Path(__file__).parents[1]
FIGURES: Path


def figure(name: str, value: object, goal: str = "", reached: bool | None = None) -> None:
    """Print a figure, and append it to the file."""
    if INTERPRET and reached is False and "against float64" not in goal:
        reached = None  # times mean nothing
    print(f"   {name}: {value}  {goal} {'' if reached is None else reached}", flush=True)
    with FIGURES.open("a") as file:
        line = {"name": name, "value": value, "goal": goal, "reached": reached}
        file.write(json.dumps(line) + "\n")


def tiny(size: int, small: int) -> int:
    """Return the size, or the small one in the interpreter."""
    return small if INTERPRET else size


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


WIDTHS = [*range(1, 131), 1000, 1024, 4096, 8192, 16384, 16385, 32000, 50257, 128256]


def widths() -> None:
    """Compare every width with float64, in several processes, which compile at the same time."""
    wanted = [1, 3, 10, 37] if INTERPRET else WIDTHS
    workers = tiny(min(12, os.cpu_count() or 1), 1)
    shares = [wanted[i::workers] for i in range(workers)]
    if workers == 1:
        wrong = [worst_errors(shares[0])]
    else:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(workers, spawn) as pool:
            wrong = list(pool.map(worst_errors, shares))
    for dtype, most in (("float32", 1e-5), ("bfloat16", 2e-2)):
        worst = max((errors[dtype] for errors in wrong), key=lambda found: found[0])
        goal = f"<= {most:g} against float64"
        name = f"{len(wanted)} widths, {dtype}: worst relative error"
        figure(name, f"{worst[0]:.1e} at C = {worst[1]}", goal, worst[0] <= most)
    edges()


def worst_errors(widths: list[int]) -> dict[str, tuple[float, int]]:
    """Return the largest relative error of loss and gradient, and its width, for each dtype."""
    if INTERPRET:
        race.interpret()
    worst = {"float32": (0.0, 0), "bfloat16": (0.0, 0)}
    for C in widths:
        for name, (error, _) in list(worst.items()):
            torch.manual_seed(C)
            z = (torch.randn(tiny(257, 5), C, device=DEVICE) * 3).to(getattr(torch, name))
            y = torch.randint(C, (len(z),), device=DEVICE)
            y[0] = -100
            w = torch.rand(C, device=DEVICE) + 0.5
            for options in ({}, {"label_smoothing": 0.1, "weight": w, "z_loss": 1e-3}):
                found = relative_error(z, y, options)
                # The loss has the dtype of the logits, so that NaN or a rounding of it counts too.
                if not found <= error:
                    error = found
                    worst[name] = (found, C)
    return worst


def relative_error(z: Tensor, y: Tensor, options: dict) -> float:
    """Return the largest error of loss and gradient, relative to the largest true number."""
    ours = z.detach().requires_grad_()
    loss = cross_entropy(ours, y, **options)
    loss.backward()
    true = z.detach().double().requires_grad_()
    more = dict(options)
    zeta = more.pop("z_loss", 0.0)
    if "weight" in more:
        more["weight"] = more["weight"].double()
    truth = F.cross_entropy(true, y, **more)
    truth = truth + zeta * true.logsumexp(1).square()[y != -100].mean()
    truth.backward()
    errors = [
        (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-30)
        for a, b in ((loss.detach(), truth.detach()), (ours.grad, true.grad))
        if b.abs().max() > 1e-9  # one class: everything is 0
    ]
    return max([0.0, *(float(error) for error in errors)])


def edges() -> None:
    """Check a CUDA graph, deterministic mode, a bad index, no rows, and more than 2^31 logits."""
    z = torch.randn(tiny(300, 6), 10, device=DEVICE).requires_grad_()
    y = torch.randint(10, (len(z),), device=DEVICE)
    cross_entropy(z, y).backward()
    expected = z.grad.clone()
    if not INTERPRET:
        z.grad = None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            cross_entropy(z, y).backward()
        z.grad.zero_()
        graph.replay()
        figure("CUDA graph: the same gradient", bool(torch.equal(z.grad, expected)), "True",
               torch.equal(z.grad, expected))  # fmt: skip
    torch.use_deterministic_algorithms(True)
    z.grad = None
    cross_entropy(z, y).backward()
    same = torch.equal(z.grad, expected)
    torch.use_deterministic_algorithms(False)
    figure("deterministic mode: the same gradient", same, "True", same)
    bad = y.clone()
    bad[0] = 10
    z.grad = None
    loss = cross_entropy(z, bad)
    loss.backward()
    right = bool(loss.isnan() and z.grad[0].isnan().all() and z.grad[1:].isfinite().all())
    figure("an index out of range: NaN in its row", right, "True", right)
    nothing = cross_entropy(z[:0], y[:0])
    figure("no rows: NaN, as in torch", bool(nothing.isnan()), "True", bool(nothing.isnan()))
    N, C = tiny(70_000, 7), tiny(32_000, 40)
    many = torch.zeros(N, C, dtype=torch.bfloat16, device=DEVICE).requires_grad_()
    y = torch.full((N,), C - 1, device=DEVICE)
    cross_entropy(many, y).backward()
    last = many.grad[-1, -1].item()
    right = abs(last * N - (1 / C - 1)) < 0.02 and many.grad[-1, 0].item() > 0
    figure(f"{N * C} logits: the last gradient", right, "True", right)


def tests() -> None:
    """Run the tests of the kernels on the device."""
    if importlib.util.find_spec("pytest") is None:
        figure("tests", "pytest is not installed")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(tiny(min(12, os.cpu_count() or 1), 0))]
    files = sorted((ROOT / "tests" / "ops").glob("test_gpu_*.py"))
    command += ["-k", "test_bfloat16"] if INTERPRET else []
    done = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, cwd=ROOT)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "no output"
    figure("tests of the kernels", summary, "none fails", done.returncode == 0)


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
        counts = kernels_of(ours), kernels_of(torchs)
        figure(f"{N} x 10: launches, ours and torch's", f"{counts[0]}, {counts[1]}", "<= 4",
               counts[0] <= 4)  # fmt: skip
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
    if INTERPRET:
        return 0
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
    from softmax_torch.ops import backends

    N, D, C = tiny(4096, 6), tiny(4096, 5), tiny(128256, 40)
    for blocks, bar in ((1, 1.10), (4, 1.25)):
        budget = N * C * 2 // blocks
        backends.logits_budget = lambda x, budget=budget: budget
        head(N, D, C, torch.bfloat16, False, f"{blocks} block{'s' * (blocks > 1)}", bar)
    backends.logits_budget = lambda x: 1 << 30
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


def training() -> None:
    """Measure an epoch of MNIST against a bare loop on the device."""
    root = mnist_root()
    if INTERPRET or root is None or importlib.util.find_spec("lightning") is None:
        figure("training", "left out: it needs a GPU, MNIST and Lightning")
        return
    command = [sys.executable, "benchmarks/training.py", "--root", root, "--parts", "epochs"]
    command += ["--quick", "--device", DEVICE]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout, done.stderr[-2000:], flush=True)
    for line in done.stdout.splitlines():
        if re.search(r"\d", line):
            figure("an epoch of MNIST", line.strip(), "native no slower than bare")
    if done.returncode:
        raise SystemExit(f"training.py: exit status {done.returncode}")


def mnist_root() -> str | None:
    """Return the folder that has MNIST, or None."""
    roots = [os.environ.get("SOFTMAX_TORCH_DATA"), "data", "shared/data", "../shared/data"]
    found = [root for root in roots if root and (ROOT / root / "MNIST" / "raw").is_dir()]
    return str((ROOT / found[0]).resolve()) if found else None


def solver() -> None:
    """Fit MNIST, or random samples of its size, to the optimum on the device."""
    from softmax_torch.solvers import fit

    root = mnist_root()
    if root is not None and not INTERPRET:
        from torchvision.datasets import MNIST

        data = MNIST(root, download=False)
        x, y, name = data.data.flatten(1).float() / 255, data.targets, "MNIST"
    else:
        x, y = torch.randn(tiny(60000, 40), tiny(784, 5)), torch.randint(10, (tiny(60000, 40),))
        name = "random samples"
    x, y = x.to(DEVICE), y.to(DEVICE)
    fit(x[:1000], y[:1000], C=1.0)  # compiles what is compiled
    synchronize()
    start = time.perf_counter()
    solution = fit(x, y, C=1.0)
    synchronize()
    seconds = time.perf_counter() - start
    gap = solution.duality_gap / solution.objective
    value = f"{seconds:.2f} s, objective {solution.objective:.7f}, relative gap {gap:.1e}"
    figure(f"{name} to the optimum, C = 1", value, "gap <= 1e-6", gap <= 1e-6)


def peers() -> None:
    """Race torch.compile, Liger and CCE, and QuACK's kernel of cross-entropy."""
    for case in race.LOGITS:
        contestants(race.logits_case(*case))
    for case in race.HEADS:
        contestants(race.head_case(*case))
    for name in ("liger_kernel", "cut_cross_entropy", "quack"):
        if importlib.util.find_spec(name) is None:
            figure(name, "not installed, not raced")


def contestants(result: dict) -> None:
    """Record a race."""
    for who, row in result["contestants"].items():
        value = f"{row['ms']:.3f} ms, ours / it {row['ours_to_this']:.2f}"
        figure(f"{result['case']}: {who}", value)


PHASES = {
    f.__name__: f for f in (ceilings, widths, tests, small, logits, heads, training, solver, peers)
}


if __name__ == "__main__":
    FIGURES = Path(sys.argv[1])
    if INTERPRET:
        race.interpret()
    PHASES[sys.argv[2]]()
