"""The phases of ``gpu_check.py`` that check: every width, the edges, the kernels' own tests."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import multiprocessing
import os
import subprocess
import sys

import operator_gpu as race
import torch
import torch.nn.functional as F
from gpu_figures import ROOT, figure, tiny
from operator_gpu import DEVICE, INTERPRET
from torch import Tensor

from softmax_torch import cross_entropy

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
