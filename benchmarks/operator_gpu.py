"""The operator on a GPU: correctness, and speed relative to memory and matrix products.

    python benchmarks/operator_gpu.py [--json FILE] [--markdown FILE] [--interpret]

Each case is first compared with torch in float64 on a few of its rows, loss and gradients; a
difference stops the program. Then the contestants take turns in this process. Times are medians of
single calls between CUDA events, each after a write to more memory than the L2 cache holds. The
result is given relative to a limit measured in the same run: for logits, the least bytes that a
loss and its gradient move (read N C, write N C) over the bandwidth of a copy; for a linear layer,
the time of its bare matrix products. Memory is the peak beyond the memory held before, gradients
included. A peer that cannot be imported, or fails, is named and left out.

--interpret runs tiny sizes in Triton's interpreter from end to end, without a GPU. Its times mean
nothing.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy

INTERPRET = "--interpret" in sys.argv
Step = Callable[[], Any]
DEVICE = "cpu" if INTERPRET else "cuda"
FLUSH = 256 << 20  # bytes; the L2 of an H200 has 50 MiB

LOGITS = [
    (8192, 128256, torch.bfloat16, 0.90),
    (16384, 32000, torch.bfloat16, 0.90),
    (1_000_000, 10, torch.float32, 0.70),
]
# N, D, C, dtype, frozen input, the highest allowed ratio to the bare products
HEADS = [
    (4096, 4096, 128256, torch.bfloat16, False, 1.10),
    (60000, 784, 10, torch.float32, True, 1.30),
]
if INTERPRET:
    LOGITS = [(5, 40, torch.bfloat16, 0.90), (300, 10, torch.float32, 0.70)]
    HEADS = [(6, 5, 40, torch.bfloat16, False, 1.10), (50, 12, 10, torch.float32, True, 1.30)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--markdown", type=Path, help="write a table of them to this file")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes without a GPU")
    options = parser.parse_args()
    if INTERPRET:
        interpret()
    elif not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device, found none; --interpret runs without one")
    device = "interpreter, no figure here means anything" if INTERPRET else gpu_name()
    print(f"torch {torch.__version__}, {device}")
    torch.manual_seed(0)
    figures = [logits_case(*case) for case in LOGITS] + [head_case(*case) for case in HEADS]
    result = {"torch": torch.__version__, "device": device, "cases": figures}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(result))


def interpret() -> None:
    """Replace the CPU kernels by the GPU kernels, run by the interpreter."""
    os.environ["TRITON_INTERPRET"] = "1"
    from softmax_torch.loss import route, shortcuts
    from softmax_torch.ops import backends, gpu

    backends.kernels = lambda z: gpu
    backends.layer_kernels = lambda x, weight: None
    backends._scaled_one_ = gpu.scale_
    backends.index_kernels = lambda z: gpu
    shortcuts.is_mean_nll = lambda *args: False
    route.FEW = 0


def gpu_name() -> str:
    import triton

    return f"triton {triton.__version__}, {torch.cuda.get_device_name()}"


def logits_case(N: int, C: int, dtype: torch.dtype, bar: float) -> dict[str, Any]:
    z = torch.randn(N, C, device=DEVICE, dtype=dtype).requires_grad_()
    y = torch.randint(C, (N,), device=DEVICE)
    name = f"cross_entropy {N} x {C} {str(dtype)[6:]}"
    check(name, lambda z, y: cross_entropy(z, y), F.cross_entropy, [z], y)
    contestants: dict[str, Step] = {"softmax_torch": lambda: cross_entropy(z, y)}
    contestants["F.cross_entropy"] = lambda: F.cross_entropy(z, y)
    if not INTERPRET:
        compiled = torch.compile(F.cross_entropy, dynamic=False)
        contestants["torch.compile(F.cross_entropy)"] = lambda: compiled(z, y)
    liger = peer("liger_kernel.transformers.functional", "liger_cross_entropy")
    if liger is not None:
        # After its first turn all contestants get its gradient as logits: as many bytes.
        contestants["Liger (overwrites the logits)"] = lambda: first(liger(z, y))
    quack = peer("quack", "cross_entropy")
    if quack is not None:
        contestants["QuACK"] = lambda: quack(z, y, reduction="mean")
    source, out = z.detach(), torch.empty_like(z)
    copy = median_times({"copy": lambda: out.copy_(source)})["copy"]
    figure = race(name, contestants, [z])
    # A copy reads and writes as many bytes as a loss and its gradient must.
    figure |= {"limit": "copy", "limit_ms": copy * 1e3, "bar": f">= {bar:.0%} of copy bandwidth"}
    figure["reached"] = copy * 1e3 / figure["contestants"]["softmax_torch"]["ms"]
    return printed(figure)


def head_case(
    N: int, D: int, C: int, dtype: torch.dtype, frozen: bool, bar: float
) -> dict[str, Any]:
    x = torch.randn(N, D, device=DEVICE, dtype=dtype).requires_grad_(not frozen)
    W = (torch.randn(C, D, device=DEVICE) / D**0.5).to(dtype).requires_grad_()
    y = torch.randint(C, (N,), device=DEVICE)
    leaves = [W] if frozen else [W, x]
    name = f"linear {N} x {D} x {C} {str(dtype)[6:]}" + (", frozen input" if frozen else "")

    def ours(W: Tensor, *more: Tensor) -> Tensor:
        *leaf, target = more
        given = leaf[0] if leaf else x.detach()[: len(target)]
        return linear_cross_entropy(given, W, target)

    def torchs(W: Tensor, *more: Tensor) -> Tensor:
        *leaf, target = more
        given = leaf[0] if leaf else x.detach()[: len(target)].to(W.dtype)
        return F.cross_entropy(F.linear(given, W), target)

    check(name, ours, torchs, leaves, y)
    contestants: dict[str, Step] = {"softmax_torch": lambda: linear_cross_entropy(x, W, y)}
    contestants["F.linear + F.cross_entropy"] = lambda: F.cross_entropy(F.linear(x, W), y)
    chunks = getattr(torch.nn, "LinearCrossEntropyOptions", None) or getattr(
        F, "LinearCrossEntropyOptions", None
    )
    if not INTERPRET:
        compiled = torch.compile(lambda x, W: F.cross_entropy(F.linear(x, W), y), dynamic=False)
        contestants["torch.compile of it"] = lambda: compiled(x, W)
        if chunks is not None and C > D:  # with C < D it takes one row at a time
            contestants["F.linear_cross_entropy(options)"] = lambda: F.linear_cross_entropy(
                x, W, y, options=chunks()
            )
    liger = peer("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy")
    if liger is not None:
        contestants["Liger"] = lambda: first(liger(x, W, y))
    cce = peer("cut_cross_entropy", "linear_cross_entropy")
    if cce is not None:
        contestants["CCE"] = lambda: cce(x, W, y)
        contestants["CCE, every gradient"] = lambda: cce(x, W, y, filter_eps=None)
    X, V = x.detach(), W.detach()
    Z = X @ V.t()
    products: dict[str, Step] = {"z": lambda: X @ V.t(), "dW": lambda: Z.t() @ X}
    if not frozen:
        products["dx"] = lambda: Z @ V
    bare = sum(median_times(products).values())
    products.clear()
    Z = Z.new_empty(0)  # free it: the race measures memory
    figure = race(name, contestants, leaves)
    figure |= {"limit": f"{2 if frozen else 3} products", "limit_ms": bare * 1e3}
    ours_ms = figure["contestants"]["softmax_torch"]["ms"]
    figure |= {"bar": f"<= {bar:.2f} x the bare products", "reached": ours_ms / (bare * 1e3)}
    figure["matmul_tflops"] = 2 * N * D * C * (2 if frozen else 3) / bare / 1e12
    return printed(figure)


def first(value: Any) -> Tensor:
    return value[0] if isinstance(value, tuple) else value


def peer(module: str, name: str) -> Callable[..., Any] | None:
    """Return a function of another library, or None if it cannot be imported or has no GPU."""
    if INTERPRET:
        return None
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        print(f"{module}.{name}: not raced, {error}")
        return None


def check(
    name: str,
    ours: Callable[..., Tensor],
    torchs: Callable[..., Tensor],
    leaves: list[Tensor],
    y: Tensor,
) -> None:
    """Stop unless loss and every gradient equal torch's in float64 on the first rows."""
    few = min(64, len(y))
    mine = [leaf.detach()[:few] if len(leaf) == len(y) else leaf.detach() for leaf in leaves]
    results = []
    for f, dtype in ((ours, mine[0].dtype), (torchs, torch.float64)):
        inputs = [leaf.to(dtype).requires_grad_() for leaf in mine]
        loss = f(*inputs, y[:few])
        results.append([loss.detach(), *torch.autograd.grad(loss, inputs)])
    most = 1e-5 if mine[0].dtype == torch.float32 else 2e-2
    for got, truth in zip(*results, strict=True):
        error = ((got.double() - truth).abs().max() / truth.abs().max()).item()
        if not error < most:
            raise SystemExit(f"{name}: relative error {error:.1e} against float64, not timed")


def race(name: str, contestants: dict[str, Step], leaves: list[Tensor]) -> dict[str, Any]:
    """Return the milliseconds of loss + backward, their ratios to ours, and peak memory."""

    def step(f: Step) -> Step:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            f().backward()

        return run

    steps = {}
    for peer_name, f in contestants.items():
        try:
            step(f)()
            steps[peer_name] = step(f)
        except Exception as error:
            if peer_name == "softmax_torch":
                raise
            print(f"{name}: {peer_name} not raced, {type(error).__name__}: {str(error)[:100]}")
    times = median_times(steps)
    peaks = {peer_name: peak_bytes(run, leaves) for peer_name, run in steps.items()}
    gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    return {
        "case": name,
        "gradient_bytes": gradients,
        "contestants": {
            who: {
                "ms": seconds * 1e3,
                "ours_to_this": times["softmax_torch"] / seconds,
                "peak_extra_bytes": peaks[who],
            }
            for who, seconds in times.items()
        },
    }


def median_times(steps: dict[str, Step], seconds: float = 4.0) -> dict[str, float]:
    """Return the median seconds of a call, in turns, each from a cold L2."""
    flush = torch.empty(1 if INTERPRET else FLUSH, dtype=torch.uint8, device=DEVICE)
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for run in steps.values():
        run()
    end = time.perf_counter() + (0 if INTERPRET else seconds)
    while len(next(iter(samples.values()))) < (2 if INTERPRET else 10) or (
        time.perf_counter() < end and len(next(iter(samples.values()))) < 50
    ):
        for name, run in steps.items():
            flush.zero_()
            samples[name].append(timed(run))
    return {name: statistics.median(sample) for name, sample in samples.items()}


def timed(run: Step) -> float:
    if INTERPRET:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    before.record()
    run()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def peak_bytes(run: Step, leaves: list[Tensor]) -> int | None:
    """Return the peak of device memory during a call, beyond the memory held before."""
    if INTERPRET:
        return None
    for leaf in leaves:
        leaf.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def printed(figure: dict[str, Any]) -> dict[str, Any]:
    print(f"{figure['case']}: {figure['limit']} {figure['limit_ms']:.3f} ms, bar {figure['bar']}")
    for name, row in figure["contestants"].items():
        peak = row["peak_extra_bytes"]
        memory = "" if peak is None else f"{peak / 2**20:10.0f} MiB"
        print(f"  {name:34s} {row['ms']:9.3f} ms  ours/ {row['ours_to_this']:6.2f} {memory}")
    print(f"  reached: {figure['reached']:.2f}")
    return figure


def markdown(result: dict[str, Any]) -> str:
    """Return a table with a row for each case and contestant."""
    lines = [
        f"{result['device']}, torch {result['torch']}",
        "",
        "| case | contestant | ms | ours / it | extra MiB | limit, ms | reached | bar |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for figure in result["cases"]:
        for who, row in figure["contestants"].items():
            own = who == "softmax_torch"
            peak = row["peak_extra_bytes"]
            cells = [
                figure["case"],
                who,
                f"{row['ms']:.3f}",
                f"{row['ours_to_this']:.2f}",
                "" if peak is None else f"{peak / 2**20:.0f}",
                f"{figure['limit_ms']:.3f}" if own else "",
                f"{figure['reached']:.2f}" if own else "",
                figure["bar"] if own else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
