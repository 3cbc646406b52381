"""The operator on a CPU against torch's: correctness, time and memory.

    python benchmarks/operator_cpu.py [--threads 2] [--repeats 25] [--seconds 12]
                                      [--cases 8192 bfloat16] [--json FILE] [--markdown FILE]

Contestants take turns in one process:

softmax_torch                  the native kernels; torch kernels if there are none
softmax_torch, torch kernels   the same calls with kernels made of torch's operations
softmax_torch, float32         for bfloat16 cases, the same logits in float32
softmax_torch, loss alone      for cases with accuracy and entropy, the call without them
torch                          F.cross_entropy, for a layer after F.linear
torch.compile                  the same, compiled anew for each case
torch, in chunks               F.linear_cross_entropy(options=...)
copy                           a copy of as many bytes as the case has to read and write at least

In cases with accuracy and entropy ours is one call, torch's are the separate calls, and torch in
chunks, which shows no logits, computes them again.

Each case is first compared with torch in float64, loss and gradients; a difference stops the
program. Each case prints the route that our call takes. A turn is as many calls of loss + backward
as fill 20 ms, since a training step follows another one too, and times are medians of the turns. A
case has --repeats turns, or fewer (but 5 at least) if they would take longer than --seconds.

Memory is the peak of torch's allocator during one call beyond what it held before, gradients
included. It does not see the scratch memory of the native kernels: a few rows per thread, and for a
layer in one pass at most 64 sums of its gradient in float64. The least number of bytes is one
reading of the logits, or of the layer and its input, and one writing of the gradients. "Of copy" is
the time of the copy over the contestant's time: the share of the bandwidth of a copy that the
contestant reaches. The files are written after each case.
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
from operator_cases import (
    CHUNKED,
    COMPILED,
    COPY,
    OURS,
    OURS_ALONE,
    OURS_FLOAT32,
    OURS_TORCH,
    TORCH,
    Case,
    Contestant,
    cases,
    size_of,
)
from torch import Tensor

from softmax_torch import show_config
from softmax_torch.ops import backends
from softmax_torch.ops.native import library

Step = Callable[[], Any]

COLUMNS = (TORCH, COMPILED, CHUNKED, OURS_TORCH, OURS_FLOAT32, OURS_ALONE, COPY)
"""What the table divides our time by."""

HEADINGS = {
    OURS_TORCH: "ours, torch kernels",
    OURS_FLOAT32: "ours, float32",
    OURS_ALONE: "ours, loss alone",
}

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2.0**-8}
"""Largest error of a result, relative to its largest entry; 2^-8 is a unit in bfloat16's last
place."""

TURN_SECONDS = 0.02
FEWEST_TURNS = 5


class Turn(NamedTuple):
    """Calls that are timed together, and the kernels that they run with on a CPU."""

    run: Step
    kernels: str = "auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=25, help="turns of a case, at most")
    parser.add_argument("--seconds", type=float, default=12, help="for the turns of a case")
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of the names of cases")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--markdown", type=Path, help="write a table of the ratios to this file")
    options = parser.parse_args()
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it misses CUDA
    torch.set_num_threads(options.threads)
    show_config()
    print(machine())

    figures = []
    for name, make in cases():
        if not any(part in name for part in options.cases):
            continue
        torch.manual_seed(0)
        torch.compiler.reset()  # or torch.compile would make one program for all shapes
        case = make(name)
        print(f"\n{name}: {case.route}")
        check(case)
        figures.append(measure(case, options.repeats, options.seconds))
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + "\n")
        if options.markdown:
            options.markdown.write_text(f"{machine()}\n\n{markdown(figures)}")
    if not figures:
        raise SystemExit(f"--cases: expected parts of {', '.join(name for name, _ in cases())}")
    print(f"\n{markdown(figures)}", end="")


def check(case: Case) -> None:
    """Stop unless our losses and gradients equal torch's in float64 up to the dtype's rounding."""
    plain = case.contestants[TORCH]
    wide = plain._replace(leaves=[leaf.double() for leaf in plain.leaves])
    truth = value_and_gradients(wide, case.target)
    for name in (OURS, OURS_TORCH, OURS_FLOAT32, OURS_ALONE, TORCH):
        contestant = case.contestants.get(name)
        if contestant is None:
            continue
        error = max(
            float(got.double().sub_(true).abs_().max() / true.abs().max())
            for got, true in zip(
                value_and_gradients(contestant, case.target),
                truth if name != OURS_ALONE else truth[:1] + truth[-len(contestant.leaves) :],
                strict=True,
            )
        )
        print(f"  {name}: relative error {error:.1e} against float64")
        if name != TORCH and not error < TOLERANCES[contestant.leaves[0].dtype]:
            raise SystemExit(f"{case.name}, {name}: wrong, not timed")


def value_and_gradients(contestant: Contestant, target: Tensor) -> list[Tensor]:
    inputs = [leaf.detach().requires_grad_() for leaf in contestant.leaves]
    with backends.cpu_kernels(contestant.kernels):
        loss, *others = results_of(contestant.f(*inputs, target=target))
        return [loss.detach(), *others, *torch.autograd.grad(loss, inputs)]


def results_of(found: Any) -> list[Tensor]:
    """Return the loss and further results as a list."""
    return [found] if isinstance(found, Tensor) else found


def step_of(contestant: Contestant, target: Tensor) -> Step:
    """Return a function that computes a contestant's loss and gradients."""
    inputs = [leaf.detach().requires_grad_() for leaf in contestant.leaves]

    def run() -> None:
        for leaf in inputs:
            leaf.grad = None
        results_of(contestant.f(*inputs, target=target))[0].backward()

    return run


def measure(case: Case, repeats: int, seconds: float) -> dict[str, Any]:
    """Print the time, the ratios and the memory of each contestant, and return them."""
    turns = {
        name: Turn(step_of(contestant, case.target), contestant.kernels)
        for name, contestant in case.contestants.items()
    }
    memory = {}
    for name, turn in turns.items():  # before the turns, in which tensors stay as gradients
        with backends.cpu_kernels(turn.kernels):
            turn.run()
            memory[name] = peak_bytes(step_of(case.contestants[name], case.target))
    source, copied = (torch.ones(case.moved // 8) for _ in range(2))  # half is read, half written
    turns[COPY] = Turn(lambda: copied.copy_(source))
    times, done = median_times(turns, repeats, seconds)

    gradient = size_of(case.contestants[OURS].leaves)
    result: dict[str, Any] = {
        "case": case.name,
        "route": case.route,
        "turns": done,
        "least_bytes_moved": case.moved,
        "gradient_bytes": gradient,
        "contestants": {},
    }
    print(f"  {'':30s} {'ms':>9s} {'ours /':>7s} {'of copy':>8s} {'extra MB':>9s}  ({done} turns)")
    for name, time_ in times.items():
        ratio, share = times[OURS] / time_, times[COPY] / time_
        peak = memory.get(name)
        shown = "" if peak is None else f"{peak / 1e6:.2f}"
        print(f"  {name:30s} {time_ * 1e3:9.3f} {ratio:7.2f} {share:8.0%} {shown:>9s}")
        result["contestants"][name] = {
            "ms": time_ * 1e3,
            "ours_to_this": ratio,
            "share_of_copy_bandwidth": share,
            "peak_extra_bytes": peak,
        }
    print(
        f"  {'(the gradients alone)':30s} {'':9s} {'':7s} {'':8s} {gradient / 1e6:9.2f}", flush=True
    )
    return result


def markdown(figures: list[dict[str, Any]]) -> str:
    """Return a table with a row for each case: our time, and its ratio to each contestant's."""
    heads = [f"/ {HEADINGS.get(name, name)}" for name in COLUMNS]
    lines = [
        f"| case (N x [D x] C) | ms | {' | '.join(heads)} | extra memory / gradients |",
        f"| --- | ---: | {' | '.join('---:' for _ in heads)} | ---: |",
    ]
    for figure in figures:
        found = figure["contestants"]
        ratios = [f"{found[n]['ours_to_this']:.2f}" if n in found else "" for n in COLUMNS]
        ours = found[OURS]
        memory = ours["peak_extra_bytes"] / figure["gradient_bytes"]
        ms = f"{ours['ms']:.3f}" if ours["ms"] < 1 else f"{ours['ms']:.4g}"
        lines.append(f"| {figure['case']} | {ms} | {' | '.join(ratios)} | {memory:.2f} |")
    return "\n".join(lines) + "\n"


def median_times(
    turns: dict[str, Turn], repeats: int, seconds: float
) -> tuple[dict[str, float], int]:
    """Return the median seconds of a call in each turn, and how many turns each had."""
    calls, longest = {}, 0.0
    for name, turn in turns.items():
        with backends.cpu_kernels(turn.kernels):
            took = timed(turn.run, 1)
            for _ in range(0 if took > 0.5 else 3):  # a short call may be slow at first
                took = timed(turn.run, 1)
        calls[name] = max(1, int(TURN_SECONDS / took))
        longest += (calls[name] + 1) * took
    repeats = min(repeats, max(FEWEST_TURNS, int(seconds / longest)))
    samples: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(repeats):
        for name, turn in turns.items():
            with backends.cpu_kernels(turn.kernels):
                if calls[name] > 1:
                    turn.run()  # not timed: the turn before has emptied the caches
                samples[name].append(timed(turn.run, calls[name]) / calls[name])
    return {name: statistics.median(sample) for name, sample in samples.items()}, repeats


def timed(run: Step, calls: int) -> float:
    """Return the seconds of some calls."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return time.perf_counter() - start


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


def machine() -> str:
    """Return a line about the machine and the kernels."""
    loaded = library.load()
    kernels = (
        f"no native kernels ({library.reason()})"
        if loaded is None
        else (f"native kernels for {loaded.isa}")
    )
    return (
        f"{torch.get_num_threads()} threads of {cpu_name()}, torch {torch.__version__}, {kernels}"
    )


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown processor"
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "?")


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*CUDA.*")
    main()
