"""Benchmark of standard errors: 60000 samples, 784 features, ten classes; and statsmodels beside.

    python benchmarks/inference.py [--root DATA] [--threads 2] [--turns 3] [--markdown FILE]

First it checks coefficients and standard errors against statsmodels' MNLogit, on a size that
MNLogit can do. There both take turns in one process. Then it measures one large case: the pixels of
MNIST, each column shuffled for itself, so that no class can be separated; columns with entries in
less than 1% of the samples are replaced by dummies of 2%. Classes are drawn from a model. No
penalty. Steps are timed alone, too: the fit, the information and its inverse. The error of the
information is that of its diagonal blocks of one pair of classes against one product.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from solver_mnist import mnist
from statsmodels.discrete.discrete_model import MNLogit
from torch import Tensor

from softmax_torch.solvers import inference
from softmax_torch.solvers.inference.collinearity import refuse_collinear
from softmax_torch.solvers.inference.information import information, inverse
from softmax_torch.solvers.inference.model import fit_model
from softmax_torch.solvers.problem import objective_of

AGREE = 1e-6
"""Relative difference of standard errors from statsmodels' that stops the script."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of MNIST; data by default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads")
    lines = ["| case | step | seconds |", "| --- | --- | ---: |"]
    lines += beside_statsmodels(options.turns)
    lines += large(mnist(options.root, "cpu")[0])
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


def beside_statsmodels(turns: int) -> list[str]:
    """Return rows for 5000 x 30 with 4 classes, after checking that both agree."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(5000, 30, generator=generator, dtype=torch.float64)
    y = drawn_classes(X, 4, generator)
    with_ones = np.column_stack([X.numpy(), np.ones(len(X))])

    def peer() -> Tensor:
        fitted = MNLogit(y.numpy(), with_ones).fit(method="newton", disp=0, tol=1e-12)
        return torch.tensor(fitted.bse.T)

    def ours() -> Tensor:
        return inference(X, y).standard_errors

    difference = float((ours() / peer() - 1).abs().max())
    if difference > AGREE:
        raise SystemExit(f"standard errors differ from statsmodels' by {difference:.1e}")
    times: dict[str, list[float]] = {"ours": [], "statsmodels": []}
    for _ in range(turns):
        times["ours"].append(seconds(ours))
        times["statsmodels"].append(seconds(peer))
    found = {name: statistics.median(values) for name, values in times.items()}
    case = "5000 x 30, 4 classes"
    return [
        *(f"| {case} | {name} | {value:.3f} |" for name, value in found.items()),
        f"| {case} | ratio, ours / statsmodels | {found['ours'] / found['statsmodels']:.2f} |",
    ]


def large(pixels: Tensor) -> list[str]:
    """Return rows for 60000 x 784 with ten classes."""
    generator = torch.Generator().manual_seed(0)
    X = pixels.double()
    for j in range(X.shape[1]):
        X[:, j] = X[torch.randperm(len(X), generator=generator), j]
        if int((X[:, j] != 0).sum()) < len(X) // 100:
            X[:, j] = (torch.rand(len(X), generator=generator) < 0.02).double()
    X = X.float()
    y = drawn_classes(X.double(), 10, generator)
    case = f"{len(X)} x {X.shape[1]}, 10 classes"
    whole = seconds(lambda: inference(X, y).standard_errors)
    objective = objective_of(X, y, True, None, None, None, None)
    began = time.perf_counter()
    refuse_collinear(objective)
    model = fit_model(objective, "none")
    fit = time.perf_counter() - began
    began = time.perf_counter()
    H = information(objective, model.theta, 0)
    information_time = time.perf_counter() - began
    p = objective.probabilities(model.theta, torch.float64)
    x = torch.cat([X.double(), torch.ones(len(X), 1).double()], 1)
    block = -(x * (p[:, 1] * p[:, 2]).unsqueeze(1)).T @ x
    P = x.shape[1]
    error = float((H[:P, P : 2 * P] - block).abs().max() / block.abs().max())
    if error > 1e-12:
        raise SystemExit(f"a block of the information is wrong by {error:.1e}")
    inverse_time = seconds(lambda: inverse(H))
    return [
        f"| {case} | standard errors, in all | {whole:.1f} |",
        f"| {case} | fit | {fit:.1f} |",
        f"| {case} | information | {information_time:.1f} |",
        f"| {case} | inverse | {inverse_time:.1f} |",
    ]


def drawn_classes(X: Tensor, K: int, generator: torch.Generator) -> Tensor:
    """Return classes (n,) drawn from a model of the standardised columns."""
    z = (X - X.mean(0)) / X.std(0) / X.shape[1] ** 0.5
    z = z @ torch.randn(X.shape[1], K, generator=generator, dtype=torch.float64)
    return torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)


def seconds(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
