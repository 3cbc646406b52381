"""Benchmark of the full-batch solvers against scikit-learn's: distance to the optimum against time.

    python benchmarks/solvers.py [--root DATA] [--only l2|path|l1|small|dummies]
                                 [--threads 2] [--repeats 3] [--device cpu] [--quick]
                                 [--json FILE] [--markdown FILE] [--plot FILE]

MNIST, pixels / 255, 60000 x 784, ten classes, is downloaded to DATA or read from there. All solvers
solve the same problem in one process, one after the other. They are compared by the objective of
the coefficients that they return, which this script computes in float64:

    F(W, b) = mean nll + 1/(C n) ((1 - l1_ratio)/2 ||W||^2 + l1_ratio ||W||_1)

Our objective is checked first: it must be what our solver reports, and within 1e-6 of the lowest
one of all solvers. scikit-learn's solvers report no progress, so each point of their curves is a
fit of its own with a limited number of iterations. Our times are medians of whole fits: the checks
and the conversion of the data, all iterations and the certificate. --quick leaves out the fits that
take minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from sklearn import config_context, datasets
from sklearn.linear_model import LogisticRegression
from solver_mnist import L1_C, PATH, C, mnist, timed
from torch import Tensor

from softmax_torch import solvers

ITERATE = "iterate"
"""The setting of a point that is an iterate of a fit, not a whole fit."""


class Point(NamedTuple):
    """The time and the objective of a fit, or of an iterate of a fit."""

    name: str
    setting: str
    seconds: float
    objective: float


class Problem(NamedTuple):
    """Samples, classes and the penalty."""

    X: Tensor
    y: Tensor
    C: float
    l1_ratio: float = 0.0

    def objective(self, W: Any, b: Any) -> float:
        """Return F of W and b in float64."""
        W, b = (torch.as_tensor(v, dtype=torch.float64, device=self.X.device) for v in (W, b))
        nll = 0.0
        for x, y in zip(self.X.split(8192), self.y.split(8192), strict=True):
            z = x.double() @ W.T + b
            nll += float((z.logsumexp(1) - z.gather(1, y.unsqueeze(1)).squeeze(1)).sum())
        norms = (1 - self.l1_ratio) / 2 * W.square().sum() + self.l1_ratio * W.abs().sum()
        return (nll + float(norms) / self.C) / len(self.y)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="folder of MNIST; data by default")
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="device of our solvers")
    parser.add_argument("--quick", action="store_true", help="leave out fits that take minutes")
    parser.add_argument("--json", type=Path, help="write all points to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    parser.add_argument("--plot", type=Path, help="draw gap against time to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.threads} threads, ours on {options.device}")
    X, y = mnist(options.root, options.device)
    tables: list[str] = []
    points: dict[str, list[Point]] = {}
    for name, part in PARTS.items():
        if options.only in (None, name):
            table, points[name] = part(X, y, options)
            print(f"\n{table}", flush=True)
            tables.append(table)
            # after each part, since some take many minutes
            if options.json:
                found = {name: [p._asdict() for p in part] for name, part in points.items()}
                options.json.write_text(json.dumps(found, indent=2) + "\n")
            if options.markdown:
                options.markdown.write_text("\n\n".join(tables) + "\n")
    if options.plot and points.get("l2"):
        draw(points["l2"], options.plot)


def l2(X: Tensor, y: Tensor, options: argparse.Namespace) -> tuple[str, list[Point]]:
    """Compare all solvers with an L2 penalty."""
    problem = Problem(X, y, C)
    points = ours(problem, "lbfgs", options.repeats) + ours(problem, "newton", 1)
    host = problem._replace(X=X.cpu(), y=y.cpu())
    points += scikit(host, "lbfgs", [25, 50, 100, 400], 1e-7)
    points += scikit(host, "newton-cg", [4, 8, 100], 1e-6)
    if not options.quick:
        points += scikit(host, "newton-cholesky", [5, 100], 1e-6)
        points += scikit(host, "saga", [3, 10, 30], 1e-6)
    if options.device != "cpu":
        points += array_api(problem) + cuml(problem)
    return table(f"MNIST, L2, C = {C:g}", points), points


def l1(X: Tensor, y: Tensor, options: argparse.Namespace) -> tuple[str, list[Point]]:
    """Compare with saga, the only solver of scikit-learn with an L1 penalty for many classes."""
    problem = Problem(X, y, L1_C, 1.0)
    points = ours(problem, "auto", options.repeats)
    if not options.quick:
        host = problem._replace(X=X.cpu(), y=y.cpu())
        points += scikit(host, "saga", [10, 1000], 1e-4)
    return table(f"MNIST, L1, C = {L1_C:g}", points), points


def path(X: Tensor, y: Tensor, options: argparse.Namespace) -> tuple[str, list[Point]]:
    """Compare a path of twenty strengths over four decades with one fit."""
    one, sweep, by_hand = [], [], []
    for _ in range(options.repeats):
        seconds, single = timed(lambda: solvers.fit(X, y, C=1.0))
        one.append(seconds)
        seconds, found = timed(lambda: solvers.path(X, y, PATH))
        sweep.append(seconds)
        assert all(s.converged for s in found)
        assert abs(found[-1].objective - single.objective) < 2e-6 * single.objective
    if not options.quick:
        seconds, _ = timed(lambda: [solvers.fit(X, y, C=C) for C in PATH])
        by_hand.append(seconds)
    rows = [
        ("one fit, C = 1", one),
        ("path of 20, C = 1e-4 to 1", sweep),
        *([("20 fits", by_hand)] if by_hand else []),
    ]
    base = statistics.median(one)
    lines = ["MNIST, 20 values of C", "", "| | s | / one fit |", "| --- | ---: | ---: |"]
    for name, times in rows:
        lines.append(
            f"| {name} | {statistics.median(times):.2f} | {statistics.median(times) / base:.1f} |"
        )
    return "\n".join(lines), []


def small(X: Tensor, y: Tensor, options: argparse.Namespace) -> tuple[str, list[Point]]:
    """Compare on scikit-learn's own data sets, to the last digits."""
    lines = [
        "scikit-learn's data sets, C = 1: distance to its optimum, and times",
        "",
        "| data | F - F(scikit-learn) | ms | newton-cg ms |",
        "| --- | ---: | ---: | ---: |",
    ]
    for load in (datasets.load_digits, datasets.load_iris, datasets.load_wine):
        a, b = load(return_X_y=True)
        problem = Problem(torch.from_numpy(a), torch.from_numpy(b), 1.0)
        times = [timed(lambda a=a, b=b: solvers.fit(a, b)) for _ in range(5)]
        peer = [timed(lambda p=problem: peer_fit(p, "newton-cg", 10**4, 1e-4)) for _ in range(3)]
        solution = solvers.fit(a, b, tol=1e-10)
        best = peer_fit(problem, "newton-cholesky", 10**4, 1e-12)
        gap = solution.objective - problem.objective(best.coef_, best.intercept_)
        assert gap < 1e-8, f"{load.__name__}: {gap} above scikit-learn's optimum"
        ms, peer_ms = (1e3 * statistics.median(t for t, _ in runs) for runs in (times, peer))
        lines.append(f"| {load.__name__[5:]} | {gap:.0e} | {ms:.1f} | {peer_ms:.1f} |")
    return "\n".join(lines), []


def dummies(X: Tensor, y: Tensor, options: argparse.Namespace) -> tuple[str, list[Point]]:
    """Fit four categorical columns as 605 sparse dummies, mostly rare, with weak penalties."""
    rng = np.random.default_rng(0)
    n, levels = 60_000, (300, 200, 100, 5)
    parts = []
    for count in levels:
        p = np.arange(1, count + 1) ** -1.5
        column = rng.choice(count, n, p=p / p.sum())
        parts.append(sparse.csr_array((np.ones(n), (np.arange(n), column)), shape=(n, count)))
    a = sparse.hstack(parts).tocsr()
    b = (a @ rng.normal(size=(sum(levels), 10)) + rng.gumbel(size=(n, 10))).argmax(1)
    lines = [
        "60000 x 605 dummies, 10 classes",
        "",
        "| C | iterations | passes | relative gap | s | / C = 1 |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    base = None
    for strength in (1.0, 1e3, 1e4, 1e6):
        runs = [timed(lambda C=strength: solvers.fit(a, b, C=C)) for _ in range(options.repeats)]
        seconds, solution = statistics.median(t for t, _ in runs), runs[-1][1]
        assert solution.converged
        assert solution.duality_gap <= 1e-6 * solution.objective
        base = base or seconds
        lines.append(
            f"| {strength:g} | {solution.iterations} | {solution.passes:.1f} "
            f"| {solution.duality_gap / solution.objective:.0e} "
            f"| {seconds:.2f} | {seconds / base:.1f} |"
        )
    return "\n".join(lines), []


PARTS = {
    "l2": l2,
    "path": path,
    "l1": l1,
    "small": small,
    "dummies": dummies,
}


def ours(problem: Problem, solver: str, repeats: int) -> list[Point]:
    """Return the iterates of our last fit, and the median time of whole fits."""
    times, curve = [], []
    name = f"softmax_torch {'proximal_newton' if problem.l1_ratio else solver}"
    for _ in range(repeats):
        curve.clear()
        began = time.perf_counter()
        solution = solvers.fit(
            problem.X,
            problem.y,
            C=problem.C,
            l1_ratio=problem.l1_ratio,
            solver=solver,
            callback=lambda now, began=began: curve.append(
                Point(name, ITERATE, time.perf_counter() - began, now.objective)
            ),
        )
        times.append(time.perf_counter() - began)
    assert solution.converged
    objective = problem.objective(solution.weight, solution.bias)
    assert abs(objective - solution.objective) < 1e-9, (objective, solution.objective)
    setting = f"certified gap {solution.duality_gap / objective:.0e}"
    nonzero = int(solution.weight.count_nonzero())
    zeros = f", {nonzero} weights" if problem.l1_ratio else ""
    return [*curve, Point(name, setting + zeros, statistics.median(times), objective)]


def scikit(problem: Problem, solver: str, iterations: list[int], tol: float) -> list[Point]:
    """Return fits by scikit-learn's solver, one for each of these limits on its iterations."""
    points = []
    for most in iterations:
        seconds, model = timed(lambda most=most: peer_fit(problem, solver, most, tol))
        objective = problem.objective(model.coef_, model.intercept_)
        done = int(np.max(model.n_iter_))
        points.append(Point(f"scikit-learn {solver}", f"{done} iterations", seconds, objective))
        print(
            f"{points[-1].name}: {done} iterations, {seconds:.1f} s, F {objective:.9f}", flush=True
        )
        if done < most:
            break
    return points


def peer_fit(problem: Problem, solver: str, most: int, tol: float) -> LogisticRegression:
    """Return a model fitted by scikit-learn, without its warnings."""
    model = LogisticRegression(
        C=problem.C,
        l1_ratio=problem.l1_ratio,
        solver=solver,
        max_iter=most,
        tol=tol,
        random_state=0,
    )
    # All solvers but saga convert to double precision anyway.
    X = problem.X.numpy() if solver == "saga" else problem.X.double().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, problem.y.numpy())


def array_api(problem: Problem) -> list[Point]:
    """Return fits by scikit-learn's lbfgs on tensors of the device."""
    os.environ.setdefault("SCIPY_ARRAY_API", "1")
    points = []
    for most in (100, 1000):
        model = LogisticRegression(C=problem.C, solver="lbfgs", max_iter=most, tol=1e-7)
        with config_context(array_api_dispatch=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            seconds, model = timed(lambda model=model: model.fit(problem.X, problem.y))
        objective = problem.objective(model.coef_, model.intercept_)
        points.append(Point("scikit-learn lbfgs, array API", f"{most}", seconds, objective))
    return points


def cuml(problem: Problem) -> list[Point]:
    """Return fits by cuML, if it is installed."""
    try:
        from cuml.linear_model import LogisticRegression as CumlRegression
    except ImportError:
        print("cuML is not installed")
        return []
    points = []
    for most in (100, 1000):
        model = CumlRegression(C=problem.C, max_iter=most, tol=1e-7)
        seconds, model = timed(lambda model=model: model.fit(problem.X, problem.y))
        objective = problem.objective(model.coef_, model.intercept_)
        points.append(Point("cuML", f"{most} iterations", seconds, objective))
    return points


def table(title: str, points: list[Point]) -> str:
    """Return a table with a line for each whole fit, and the ratio of our time to it."""
    whole = [p for p in points if p.setting != ITERATE]
    best = min(p.objective for p in whole)
    first = whole[0]
    assert first.objective - best < 1e-6 * best, "ours is not at the optimum"
    lines = [
        f"{title}: F* = {best:.9f}",
        "",
        "| solver | | s | above F*, relative | ours, whole / it | ours to its F, s | / it |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for p in whole:
        gap = max(p.objective - best, 0.0) / best
        when = reached(first.name, p.objective, points)
        lines.append(
            f"| {p.name} | {p.setting} | {p.seconds:.2f} | {gap:.0e} "
            f"| {first.seconds / p.seconds:.3f} | {when:.2f} | {when / p.seconds:.3f} |"
        )
    return "\n".join(lines)


def reached(name: str, objective: float, points: list[Point]) -> float:
    """Return the time of the first iterate of a solver at or below an objective, or of its fit."""
    curve = [p for p in points if p.name == name]
    return min((p.seconds for p in curve if p.objective <= objective), default=curve[-1].seconds)


def draw(points: list[Point], file: Path) -> None:
    """Draw the relative distance to the optimum against time, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # F of iterates comes from passes in float32, whose rounding may be below the minimum.
    best = min(p.objective for p in points if p.setting != ITERATE)
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    for name in dict.fromkeys(p.name for p in points):
        curve = [p for p in points if p.name == name]
        gaps = [max((p.objective - best) / best, 1e-9) for p in curve]
        own = name.startswith("softmax_torch")
        axes.plot(
            [p.seconds for p in curve],
            gaps,
            marker="." if own else "o",
            lw=2 if own else 1,
            label=name,
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="seconds",
        ylabel="(F - F*) / F*",
        title=f"MNIST, L2 penalty, C = {C:g}",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    main()
