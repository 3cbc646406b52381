"""Check and measure everything on a GPU by one command, in under nine minutes.

    python benchmarks/gpu_check.py [--json FILE] [--only PHASE ...] [--root DATA] [--interpret]

It needs torch and Triton alone, and no network. Each phase (``gpu_phases.py``) is a process of its
own with a time limit: one that fails or hangs costs its own figures, and the others go on. The
phases come in the order of what they tell:

    ceilings   bandwidth of a copy, speed of a product: the limits of everything below
    widths     every number of classes against float64; CUDA graphs, deterministic mode, bad input
    tests      the tests of the kernels, if pytest is there
    small      128 x 10 and 1000000 x 10: launches, host time and device time
    logits     large vocabularies, as a share of the copy's bandwidth
    heads      layers, as a multiple of their bare products
    training   an epoch of MNIST against a bare loop on the device, if MNIST is there
    solver     MNIST to the optimum, with its certificate
    peers      torch.compile, Liger, CCE and QuACK, as far as they can be imported

A table ends the output; --json has the same figures. --interpret runs tiny sizes on a CPU in
Triton's interpreter, to test the program itself: no time there means anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent

LIMITS = {
    "ceilings": 40,
    "widths": 110,
    "tests": 120,
    "small": 45,
    "logits": 60,
    "heads": 60,
    "training": 60,
    "solver": 30,
    "peers": 100,
}
"""Most seconds of each phase."""

TOTAL = 520
"""Most seconds of the whole; phases that would begin later are left out."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--only", nargs="+", choices=LIMITS, default=list(LIMITS))
    parser.add_argument("--root", help="where MNIST is; by default SOFTMAX_TORCH_DATA")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes without a GPU")
    options = parser.parse_args()
    if not options.interpret:
        require_device()
    start, results = time.monotonic(), {}
    for phase in options.only:
        remaining = TOTAL - (time.monotonic() - start)
        if remaining < 10:
            results[phase] = {"seconds": 0.0, "error": "left out: no time remains", "figures": []}
            continue
        results[phase] = run_phase(phase, min(remaining, LIMITS[phase]), options)
        if options.json:  # what is known so far survives a machine that is taken away
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    print("\n" + table(results))
    if any(result["error"] for result in results.values()):
        sys.exit(1)


def require_device() -> None:
    """Stop the program with a message unless there is a CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device, found none; --interpret runs without one")


def run_phase(phase: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a phase in a process of its own; return its figures, and the error that ended it."""
    print(f"== {phase} (at most {seconds:.0f} s)", flush=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    if options.interpret:
        environment["TRITON_INTERPRET"] = "1"
    if options.root:
        environment["SOFTMAX_TORCH_DATA"] = options.root
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.jsonl"
        arguments = [str(path), phase, *["--interpret"] * options.interpret]
        try:
            done = subprocess.run(
                [sys.executable, str(HERE / "gpu_phases.py"), *arguments],
                env=environment,
                cwd=ROOT,
                timeout=seconds,
                stderr=subprocess.PIPE,
                text=True,
            )
            error = "" if done.returncode == 0 else last_line(done.stderr, done.returncode)
        except subprocess.TimeoutExpired:
            error = f"stopped after {seconds:.0f} s"
        lines = path.read_text().splitlines() if path.exists() else []
    if error:
        print(f"   {phase} failed: {error}", flush=True)
    figures = [json.loads(line) for line in lines]
    return {"seconds": time.monotonic() - start, "error": error, "figures": figures}


def last_line(text: str, status: int) -> str:
    """Return the last line of an error output, and print all of it."""
    print(text, flush=True)
    return (text.strip().splitlines() or [f"exit status {status}"])[-1]


def table(results: dict[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    lines = ["| phase | figure | value | goal | reached |", "| --- | --- | ---: | --- | --- |"]
    for phase, result in results.items():
        for figure in result["figures"]:
            reached = {None: "", True: "yes", False: "NO"}[figure["reached"]]
            cells = phase, figure["name"], figure["value"], figure["goal"], reached
            lines.append(f"| {' | '.join(map(str, cells))} |")
        if result["error"]:
            lines.append(f"| {phase} | failed | {result['error'][:120]} | | NO |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
