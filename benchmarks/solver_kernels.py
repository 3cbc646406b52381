"""Benchmark of the full-batch solvers with native kernels of a CPU and with torch's.

    python benchmarks/solver_kernels.py [--root DATA] [--threads 2] [--turns 5] [--long_turns 2]
                                        [--markdown FILE]

MNIST, pixels / 255, 60000 x 784, ten classes, is downloaded to DATA or read from there. Whole fits
and single passes take turns in one process. The script checks that both kernels reach the same
objective, within their certified gaps, and the passes against float64. --turns is for the fit with
C = 1 and for the passes, --long_turns for the other fits.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from solver_mnist import L1_C, PATH, C, mnist, timed
from torch import Tensor

from softmax_torch import solvers
from softmax_torch.ops import backends
from softmax_torch.ops.native import library
from softmax_torch.solvers.inputs import as_samples
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.samples import DenseSamples, SparseSamples

KERNELS = ("native", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of MNIST; data by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5, help="of the fit with C = 1, and of passes")
    parser.add_argument("--long_turns", type=int, default=2, help="of long fits; 0: none")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    options = parser.parse_args()
    if library.load() is None:
        raise SystemExit(f"No comparison of kernels: {library.reason()}")
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    X, y = mnist(options.root, "cpu")
    tables = f"{whole_fits(X, y, options)}\n\n{single_passes(X, y, options.turns)}"
    print(f"\n{tables}")
    if options.markdown:
        options.markdown.write_text(tables + "\n")


def whole_fits(X: Tensor, y: Tensor, options: argparse.Namespace) -> str:
    """Return a table of whole fits on MNIST with native and with torch kernels."""

    def fit(**settings: Any) -> Callable[[], list[solvers.Solution]]:
        return lambda: [solvers.fit(X, y, **settings)]

    cases: dict[str, tuple[int, Callable[[], list[solvers.Solution]]]] = {
        f"L2, C = {C:g}": (options.turns, fit(C=C)),
        "L2, C = 1000": (options.long_turns, fit(C=1e3)),
        f"L1, C = {L1_C:g}": (options.long_turns, fit(C=L1_C, l1_ratio=1.0)),
        "path of 20, C = 1e-4 to 1": (options.long_turns, lambda: solvers.path(X, y, PATH)),
    }
    lines = [
        f"MNIST to the optimum, {options.threads} threads, kernels in turns",
        "",
        "| fit | turns | native, s | torch, s | native / torch | passes, native | passes, torch "
        "| relative gap, native | relative gap, torch |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, (turns, run) in cases.items():
        if turns == 0:
            continue
        seconds: dict[str, list[float]] = {kind: [] for kind in KERNELS}
        found: dict[str, list[solvers.Solution]] = {}
        for _ in range(turns):
            for kind in KERNELS:
                with backends.cpu_kernels(kind):
                    took, found[kind] = timed(run)
                seconds[kind].append(took)
                assert all(s.converged for s in found[kind]), (name, kind)
        for a, b in zip(*found.values(), strict=True):
            # each is within its certified gap of the same optimum
            assert abs(a.objective - b.objective) <= max(a.duality_gap, b.duality_gap), name
        native, torchs = (statistics.median(seconds[kind]) for kind in KERNELS)
        # the solutions of a path count all passes up to them
        passes = [f"{max(s.passes for s in found[kind]):.1f}" for kind in KERNELS]
        gaps = [max(s.duality_gap / s.objective for s in found[kind]) for kind in KERNELS]
        lines.append(
            f"| {name} | {turns} | {native:.2f} | {torchs:.2f} | {native / torchs:.2f} "
            f"| {' | '.join(passes)} | {' | '.join(f'{gap:.0e}' for gap in gaps)} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def single_passes(X: Tensor, y: Tensor, turns: int) -> str:
    """Return a table of single float32 passes over MNIST, beside a copy of as many bytes."""
    entries = as_samples(X, None, None)
    assert isinstance(entries, SparseSamples), "MNIST is mostly zeros"
    entry_bytes = sum(p.x.values.numel() * (4 + p.x.values.element_size()) for p in entries.parts)
    torch.manual_seed(0)
    theta, v = 0.01 * torch.randn(2, 10, X.shape[1] + 1, dtype=torch.float64)
    penalty = Penalty(0.0)
    lines = [
        "One pass over MNIST, 60000 x 784, ten classes, float32; a copy reads and writes as many",
        "bytes as X has",
        "",
        "| pass | native, ms | torch, ms | native / torch | copy, ms | native / copy |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for form, samples, size in (
        ("dense", DenseSamples(X), X.numel() * X.element_size()),
        ("sparse", entries, entry_bytes),
    ):
        F = Objective(samples, y, 10)
        p = F.probabilities(theta, torch.float32)
        source, copied = (torch.ones(size // 8) for _ in range(2))

        def value(F: Objective = F, dtype: torch.dtype = torch.float32) -> Tensor:
            found = F.evaluate(theta, penalty, dtype)
            return torch.cat([found.gradient.flatten(), found.gradient.new_tensor([found.value])])

        def product(F: Objective = F, p: Tensor = p) -> Tensor:
            return F.hessian_product(p, v, penalty)

        def copy(copied: Tensor = copied, source: Tensor = source) -> Tensor:
            return copied.copy_(source)

        with backends.cpu_kernels("torch"):
            double = F.probabilities(theta, torch.float64)
            truths = {
                "value and gradient": value(dtype=torch.float64),
                "Hessian product": product(p=double),
            }
        for name, run in (("value and gradient", value), ("Hessian product", product)):
            seconds: dict[str, list[float]] = {kind: [] for kind in (*KERNELS, "copy")}
            for kind in KERNELS:
                with backends.cpu_kernels(kind):
                    error = float((run() - truths[name]).norm() / truths[name].norm())
                assert error < 1e-5, f"{name}, {form}, {kind}: relative error {error:.1e}"
            for _ in range(3 * turns):
                for kind in KERNELS:
                    with backends.cpu_kernels(kind):
                        run()  # not timed: the turn before has emptied the caches
                        seconds[kind].append(timed(run)[0])
                copy()
                seconds["copy"].append(timed(copy)[0])
            native, torchs, copies = (1e3 * statistics.median(took) for took in seconds.values())
            lines.append(
                f"| {name}, {form} | {native:.2f} | {torchs:.2f} | {native / torchs:.2f} "
                f"| {copies:.2f} | {native / copies:.2f} |"
            )
            print(lines[-1], flush=True)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
