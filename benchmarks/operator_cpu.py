"""The operator on a CPU against torch's: correctness, time and memory.

    python benchmarks/operator_cpu.py [--threads 2] [--repeats 15] [--only cross_entropy]
                                      [--json FILE] [--markdown FILE]

Each case is first compared with torch in float64, loss and gradients; a difference stops the
program. Each case prints the route that our call takes. Times are medians of loss + backward in one
process, the contestants taking turns. A turn is as many calls as fill 20 ms, since a training step
follows another one too. Memory is the peak of torch's allocator during one call beyond what it
held before, gradients included. "Bandwidth" is the least number of bytes that a loss and its
gradient move (read the logits, write the gradient) over the time, as a share of the bandwidth of a
copy of the same size in the same run.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

# Set before torch is imported, or its profiler prints the libraries that it could not find.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import cross_entropy, linear_cross_entropy, route_of, show_config

Step = Callable[[], Any]


class Case(NamedTuple):
    """A shape, its contestants (each takes the leaf tensors and the target) and its leaves."""

    name: str
    contestants: dict[str, Callable[..., Tensor]]
    leaves: list[Tensor]
    target: Tensor
    moved: int | None  # the least bytes read and written, where memory is the limit
    route: str  # of our call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=["cross_entropy", "linear_cross_entropy"])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--markdown", type=Path, help="write a table of the ratios to this file")
    options = parser.parse_args()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    show_config()
    print(f"{torch.get_num_threads()} threads, {cpu_name()}, float32")
    head = f"{'ms':>9s} {'ours/':>7s} {'extra MB':>9s} {'bandwidth':>9s}"
    print(f"{'case':38s} {'contestant':34s} {head}")

    figures = []
    for make, sizes in (
        (cross_entropy_case, [(128, 10), (60000, 10), (8192, 1000), (4096, 32000)]),
        (
            linear_case,
            [(128, 784, 10), (60000, 784, 10), (4096, 512, 1000), (2048, 512, 32000)],
        ),
    ):
        if options.only and not make.__name__.startswith(options.only.split("_")[0]):
            continue
        for size in sizes:
            case = make(*size)
            check(case)
            figures.append(measure(case, options.repeats))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.markdown:
        options.markdown.write_text(markdown(figures))


def cross_entropy_case(N: int, C: int) -> Case:
    z, y = torch.randn(N, C), torch.randint(C, (N,))
    compiled = torch.compile(F.cross_entropy)
    contestants = {
        "softmax_torch": cross_entropy,
        "F.cross_entropy": F.cross_entropy,
        "torch.compile(F.cross_entropy)": compiled,
    }
    route = str(route_of(cross_entropy, z.clone().requires_grad_(), y))
    return Case(f"cross_entropy {N} x {C}", contestants, [z], y, 2 * z.numel() * 4, route)


def linear_case(N: int, D: int, C: int) -> Case:
    x, y = torch.randn(N, D), torch.randint(C, (N,))
    weight, bias = torch.randn(C, D) / D**0.5, torch.zeros(C)
    frozen = N == 60000  # a data set, whose gradient is not needed

    def ours(weight: Tensor, bias: Tensor, *x_leaf: Tensor, target: Tensor) -> Tensor:
        (inputs,) = x_leaf or (x,)
        return linear_cross_entropy(inputs, weight, target, linear_bias=bias)

    def torchs(weight: Tensor, bias: Tensor, *x_leaf: Tensor, target: Tensor) -> Tensor:
        (inputs,) = x_leaf or (x.to(weight.dtype),)
        return F.cross_entropy(F.linear(inputs, weight, bias), target)

    contestants: dict[str, Callable[..., Tensor]] = {
        "softmax_torch": ours,
        "F.linear + F.cross_entropy": torchs,
        "torch.compile of it": torch.compile(torchs),
    }
    chunked = torch_chunked(x)
    # With fewer classes than features torch 2.15 takes one row at a time: minutes at 60000 rows.
    if chunked is not None and not frozen:
        contestants["F.linear_cross_entropy(options)"] = chunked
    name = f"linear {N} x {D} x {C}" + (", frozen input" if frozen else "")
    trained = weight.clone().requires_grad_()
    route = str(route_of(linear_cross_entropy, x, trained, y, linear_bias=bias))
    return Case(name, contestants, [weight, bias] + ([] if frozen else [x]), y, None, route)


def torch_chunked(x: Tensor) -> Callable[..., Tensor] | None:
    """Return torch's own chunked form, or None if this torch has none."""
    options = getattr(F, "LinearCrossEntropyOptions", None)
    if options is None:
        options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None or not hasattr(F, "linear_cross_entropy"):
        return None

    def chunked(weight: Tensor, bias: Tensor, *x_leaf: Tensor, target: Tensor) -> Tensor:
        (inputs,) = x_leaf or (x,)
        return F.linear_cross_entropy(inputs, weight, target, linear_bias=bias, options=options())

    return chunked


def check(case: Case) -> None:
    """Stop unless loss and every gradient equal torch's in float64 up to float32's rounding."""
    names = list(case.contestants)
    ours, torchs = case.contestants[names[0]], case.contestants[names[1]]
    got = value_and_gradients(ours, case.leaves, case.target)
    truth = value_and_gradients(torchs, [leaf.double() for leaf in case.leaves], case.target)
    for mine, true in zip(got, truth, strict=True):
        error = ((mine.double() - true).abs().max() / true.abs().max()).item()
        if not error < 1e-5:
            raise SystemExit(f"{case.name}: relative error {error:.1e} against float64, not timed")


def value_and_gradients(
    f: Callable[..., Tensor], leaves: list[Tensor], target: Tensor
) -> list[Tensor]:
    inputs = [leaf.detach().requires_grad_() for leaf in leaves]
    loss = f(*inputs, target=target)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def measure(case: Case, repeats: int) -> dict[str, Any]:
    inputs = [leaf.detach().requires_grad_() for leaf in case.leaves]

    def step(f: Callable[..., Tensor]) -> Step:
        def run() -> None:
            for leaf in inputs:
                leaf.grad = None
            f(*inputs, target=case.target).backward()

        return run

    steps = {name: step(f) for name, f in case.contestants.items()}
    times = median_times(steps, repeats)
    result: dict[str, Any] = {"case": case.name, "route": case.route, "contestants": {}}
    print(f"{case.name}: {case.route}")
    ours = times["softmax_torch"]
    gradient = sum(leaf.numel() * leaf.element_size() for leaf in inputs)
    bandwidth = None if case.moved is None else copy_bandwidth(inputs[0].detach())
    for name, run in steps.items():
        for leaf in inputs:
            leaf.grad = None
        peak = peak_bytes(run)
        share = "" if bandwidth is None else f"{case.moved / times[name] / bandwidth:9.0%}"
        ratio = "" if name == "softmax_torch" else f"{ours / times[name]:6.2f}x"
        print(
            f"{case.name if not ratio else '':38s} {name:34s} {times[name] * 1e3:9.3f} {ratio:>7s} "
            f"{peak / 1e6:9.2f} {share}"
        )
        result["contestants"][name] = {
            "ms": times[name] * 1e3,
            "ours_to_this": ours / times[name],
            "peak_extra_bytes": peak,
            "gradient_bytes": gradient,
        }
    print(f"{'':38s} {'(the gradients alone)':34s} {'':9s} {'':7s} {gradient / 1e6:9.2f}")
    return result


def markdown(figures: list[dict[str, Any]]) -> str:
    """Return a table with a row for each case: our time and its ratio to each contestant's."""
    peers = ("torch", "torch.compile", "torch, in chunks")
    lines = [
        f"| case (N x [D x] C) | ms | {' | '.join(f'/ {peer}' for peer in peers)} | extra memory "
        "/ gradients |",
        f"| --- | ---: | {' | '.join('---:' for _ in peers)} | ---: |",
    ]
    for figure in figures:
        ours, *others = figure["contestants"].values()
        ratios = [f"{other['ours_to_this']:.2f}" for other in others]
        ratios += [""] * (len(peers) - len(ratios))
        memory = ours["peak_extra_bytes"] / ours["gradient_bytes"]
        lines.append(
            f"| {figure['case']} | {ours['ms']:.3g} | {' | '.join(ratios)} | {memory:.2f} |"
        )
    return "\n".join(lines) + "\n"


def median_times(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Return the median seconds of a call of each step; the steps take turns."""
    calls = {}
    for name, run in steps.items():
        for _ in range(3):
            run()
        start = time.perf_counter()
        run()
        calls[name] = max(1, int(0.02 / (time.perf_counter() - start)))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, run in steps.items():
            run()  # not timed: the turn before has emptied the caches
            start = time.perf_counter()
            for _ in range(calls[name]):
                run()
            samples[name].append((time.perf_counter() - start) / calls[name])
    return {name: statistics.median(sample) for name, sample in samples.items()}


def copy_bandwidth(z: Tensor) -> float:
    """Return the bytes that a copy of z reads and writes per second."""
    out = torch.empty_like(z)
    times = median_times({"copy": lambda: out.copy_(z)}, 15)
    return 2 * z.numel() * z.element_size() / times["copy"]


def peak_bytes(run: Step) -> int:
    """Return the peak bytes of torch's CPU allocator in a call, beyond what it held before."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    held = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*CUDA.*")
    main()
