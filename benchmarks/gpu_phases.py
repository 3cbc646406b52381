"""The phases of ``gpu_check.py``, which runs each in a process of its own.

    python benchmarks/gpu_phases.py FIGURES PHASE [--interpret]

A figure is appended to the file FIGURES as soon as it is known.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gpu_figures
import operator_gpu as race
import torch
from gpu_correctness import tests, widths
from gpu_figures import ROOT, figure, tiny
from gpu_speed import ceilings, heads, logits, small, synchronize
from operator_gpu import DEVICE, INTERPRET


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
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(tiny(60000, 40), tiny(784, 5), generator=generator)
        y = torch.arange(len(x)) % 10  # every class has samples, which a fit demands
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
    gpu_figures.file = Path(sys.argv[1])
    if INTERPRET:
        race.interpret()
    PHASES[sys.argv[2]]()
