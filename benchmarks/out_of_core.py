"""Fit a matrix that is larger than the memory the process may use.

    python benchmarks/out_of_core.py [--gigabytes 6] [--limit 2] [--folder DIR]

Writes a file of float32 numbers, eight classes of Gaussian noise, in parts. A second process, whose
data segment (private memory; pages of the file do not count) the operating system limits, fits the
mapped file. It first shows that the limit holds: reading the whole file must fail. The solution is
checked by its certificate, and against the coefficients that generated the classes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

FEATURES, CLASSES = 512, 8
ROWS = 20_000  # written together


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=6.0, help="size of the file")
    parser.add_argument("--limit", type=float, default=2.0, help="memory for the fit, in 1e9 bytes")
    parser.add_argument("--folder", type=Path, help="folder for the temporary file")
    parser.add_argument("--fit", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.fit:
        fit(options.fit, options.limit)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        n = int(options.gigabytes * 1e9 / (4 * FEATURES))
        began = time.perf_counter()
        write(Path(folder), n)
        print(f"wrote {n} x {FEATURES} float32 in {time.perf_counter() - began:.0f} s", flush=True)
        again = [sys.executable, __file__, "--limit", str(options.limit), "--fit", folder]
        raise SystemExit(subprocess.run(again).returncode)


def means() -> np.ndarray:
    """Return the means of the classes (K, D)."""
    return np.random.default_rng(0).normal(size=(CLASSES, FEATURES)).astype(np.float32) / 12


def write(folder: Path, n: int) -> None:
    """Write x.bin and y.npy."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, CLASSES, n)
    np.save(folder / "y.npy", y)
    with (folder / "x.bin").open("wb") as file:
        for start in range(0, n, ROWS):
            part = y[start : start + ROWS]
            x = rng.standard_normal((len(part), FEATURES), dtype=np.float32) + means()[part]
            file.write(x.tobytes())


def fit(folder: Path, limit: float) -> None:
    """Fit the file within the memory limit, and check the solution."""
    from softmax_torch import solvers

    resource.setrlimit(resource.RLIMIT_DATA, (int(limit * 1e9), int(limit * 1e9)))
    X = np.memmap(folder / "x.bin", dtype=np.float32, mode="r").reshape(-1, FEATURES)
    y = np.load(folder / "y.npy")
    try:
        np.array(X)
    except MemoryError:
        print(f"reading the whole file: MemoryError at {limit:g} GB, as expected", flush=True)
    else:
        raise SystemExit(f"the limit of {limit:g} GB does not hold")
    began = time.perf_counter()
    solution = solvers.fit(X, y)
    seconds = time.perf_counter() - began
    gap = solution.duality_gap / solution.objective
    assert solution.converged
    assert gap <= 1e-6
    # For noise of variance 1 the best coefficients are the means, up to one vector common to all.
    expected = torch.from_numpy(means()).double()
    expected -= expected.mean(0)
    error = float((solution.weight - expected).norm() / expected.norm())
    assert error < 0.05, error
    with Path("/proc/self/status").open() as status:
        lines = dict(line.split(":", 1) for line in status)
    print(
        f"{X.nbytes / 1e9:.1f} GB fitted in {seconds:.0f} s, {solution.passes:g} passes, relative "
        f"gap {gap:.0e}, weights {error:.1%} from the means; private memory now "
        f"{int(lines['RssAnon'].split()[0]) / 1e6:.2f} GB, limit {limit:g} GB"
    )


if __name__ == "__main__":
    main()
