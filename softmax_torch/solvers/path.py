"""Solutions for many strengths of the penalty in one sweep, and cross-validation over them.

The sweep begins with the strongest penalty. As a function of log C the solution is smooth, so each
warm start is predicted by the polynomial through the last three solutions. Over four decades in 20
steps on MNIST, F is then within 3e-5 of its minimum at the start, and 4 to 8 steps of L-BFGS
finish. Neighbouring strengths share the sketch of the Hessian, which does not depend on C, and
its inverse, which hardly does (one inverse for five strengths: 5.2 s for the sweep; one for each:
6.6 s).

Neighbours also share passes where more columns make a pass little more expensive: for dense rows
(1.6 times the time for 5 times the columns), and for streamed rows. Sparse rows take 4.5 times the
time, so their fits run one after the other, with better predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softmax_torch import metrics
from softmax_torch.solvers.certificate import estimated_gap
from softmax_torch.solvers.fit import Solution, minimize
from softmax_torch.solvers.lbfgs import LBFGS, PreconditionedLBFGS
from softmax_torch.solvers.line_search import SHORTEST
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.preconditioner import Preconditioner, sketch
from softmax_torch.solvers.problem import (
    check_fit_options,
    make_solver,
    objective_of,
    solver_class,
    theta_of,
)
from softmax_torch.solvers.samples import SparseSamples
from softmax_torch.solvers.solver import Solver
from softmax_torch.solvers.stopping_criterion import MARGIN

__all__ = ["CrossValidation", "cross_validate", "path", "predicted"]

GROUP = 5
"""Neighbouring strengths that share a preconditioner and passes."""

JOINT_ITERATIONS = 30
"""Joint iterations, after which each strength continues alone and renews its preconditioner."""


def path(
    X: Any,
    y: Any,
    Cs: Sequence[float],
    *,
    l1_ratio: float = 0.0,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    class_weight: Any = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    distributed: bool = False,
) -> list[Solution]:
    """Return the solution for each C, in the order of ``Cs``; see ``fit`` for other arguments.

    Raises:
        ValueError, TypeError: as ``fit``; ``Cs`` is empty or holds inf.
    """
    Cs, l1_ratio, tol, max_iter = _check_strengths(Cs, l1_ratio, tol, max_iter)
    objective = objective_of(
        X, y, fit_intercept, sample_weight, class_weight, device, dtype, distributed
    )
    with objective.threads():
        return _sweep(objective, Cs, l1_ratio, tol, max_iter)


@dataclass(frozen=True)
class CrossValidation:
    """Held-out figures for each strength, and the solution for the best one.

    Attributes:
        Cs: the strengths, as given.
        nll: mean negative log-likelihood of the held-out samples (folds, len(Cs)), float64.
        accuracy: accuracy on the held-out samples (folds, len(Cs)), float64.
        best: the C with the least NLL over all folds.
        solution: the solution for ``best`` on all samples.
    """

    Cs: list[float]
    nll: Tensor
    accuracy: Tensor
    best: float
    solution: Solution


def cross_validate(
    X: Any,
    y: Any,
    Cs: Sequence[float],
    *,
    folds: int = 5,
    seed: int = 0,
    l1_ratio: float = 0.0,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    class_weight: Any = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    distributed: bool = False,
) -> CrossValidation:
    """Choose C by the negative log-likelihood of held-out samples.

    The samples of each class with weight > 0 are dealt to the folds evenly and at random. A fold is
    held out by weights of 0, so that X is in memory once. Fits without it start from the solutions
    on all samples.

    Args:
        folds: number of folds; each is held out once.
        seed: seed of the random dealing.

    The other arguments are those of ``fit``. Weights count in ``nll`` and ``accuracy`` too.

    Raises:
        ValueError, TypeError: as ``fit``; fewer than 2 folds, or more folds than some class has
            samples of weight > 0.
    """
    Cs, l1_ratio, tol, max_iter = _check_strengths(Cs, l1_ratio, tol, max_iter)
    objective = objective_of(
        X, y, fit_intercept, sample_weight, class_weight, device, dtype, distributed
    )
    weight = objective.weights
    # Several processes deal as one process with all samples would.
    processes = objective.processes
    all_y, all_weight = processes.concatenated(objective.y), processes.concatenated(weight)
    own_rows, _ = processes.rows(objective.samples.n, weight.device)
    part = _assign_folds(all_y, all_weight, folds, seed)[own_rows]
    training = [objective.reweighted(weight * (part != fold)) for fold in range(folds)]
    for C in Cs:  # raises before any fit if a penalty cannot be computed
        for total in (objective.total, *(fold.total for fold in training)):
            Penalty.of_strength(C, l1_ratio, total)
    with objective.threads():
        whole = _sweep(objective, Cs, l1_ratio, tol, max_iter)
        starts = [theta_of(solution, objective) for solution in whole]
        nll = torch.empty(folds, len(Cs), dtype=torch.float64)
        accuracy = torch.empty_like(nll)
        for fold in range(folds):
            solutions = _sweep(training[fold], Cs, l1_ratio, tol, max_iter, starts)
            held_out = objective.reweighted(weight * (part == fold))
            for i, solution in enumerate(solutions):
                nll[fold, i], accuracy[fold, i] = _nll_and_accuracy(
                    held_out, theta_of(solution, objective)
                )
    best = int(nll.mean(0).argmin())
    return CrossValidation(list(Cs), nll, accuracy, Cs[best], whole[best])


def _check_strengths(
    Cs: Sequence[float], l1_ratio: float, tol: float, max_iter: int
) -> tuple[list[float], float, float, int]:
    """Return the strengths and the other options as Python numbers."""
    options = [check_fit_options(C, l1_ratio, tol, max_iter, "auto") for C in Cs]
    if not options:
        raise ValueError("Cs: expected at least one strength, got none")
    strengths = [each.C for each in options]
    if math.inf in strengths:
        raise ValueError("Cs: expected finite numbers, got inf")
    return strengths, *options[0][1:]


def _sweep(
    objective: Objective,
    Cs: list[float],
    l1_ratio: float,
    tol: float,
    max_iter: int,
    starts: list[Tensor] | None = None,
) -> list[Solution]:
    """Return the solution for each C, from these warm starts or else from predicted ones."""
    order = sorted(range(len(Cs)), key=Cs.__getitem__)
    penalties = [Penalty.of_strength(C, l1_ratio, objective.total) for C in Cs]
    by_lbfgs = solver_class("auto", penalties[0]) is PreconditionedLBFGS
    jointly = by_lbfgs and not isinstance(objective.samples, SparseSamples)
    solutions: dict[int, Solution] = {}
    solved: list[tuple[float, Tensor]] = []
    inverse, age = None, GROUP
    for group in _groups(order, GROUP if jointly else 1):
        if starts is None:
            begin = [predicted(solved, math.log(Cs[i]), objective) for i in group]
        else:
            begin = [starts[i] for i in group]
        own = [penalties[i] for i in group]
        if by_lbfgs:
            # The first solutions differ from each other more than later ones.
            if inverse is None or age >= GROUP or len(solved) < 2:
                sketched = sketch(objective, begin[len(group) // 2], seed=len(solved))
                inverse, age = sketched.inverse(own[len(group) // 2].l2), 0
            age += len(group)
            solvers = _joint_iterations(objective, own, begin, inverse, tol)
        else:
            solvers = [
                make_solver("auto", objective, penalty, theta)
                for penalty, theta in zip(own, begin, strict=True)
            ]
        for i, solver in zip(group, solvers, strict=True):
            solutions[i] = minimize(solver, tol, max_iter)
            solved.append((math.log(Cs[i]), theta_of(solutions[i], objective)))
    return [solutions[i] for i in range(len(Cs))]


def _groups(order: list[int], size: int) -> list[list[int]]:
    """Return groups of strengths that share passes. The first two, not predicted, are alone."""
    first = min(2, len(order))
    return [[i] for i in order[:first]] + [
        order[i : i + size] for i in range(first, len(order), size)
    ]


def _joint_iterations(
    objective: Objective,
    penalties: list[Penalty],
    begin: list[Tensor],
    inverse: Preconditioner,
    tol: float,
) -> list[Solver]:
    """Return solvers that have made their first iterations on shared passes."""
    dtype = objective.samples.dtype
    begin = [theta - theta.mean(0) for theta in begin]
    at_begin = objective.evaluate_many(begin, penalties, dtype)
    members = [LBFGS(theta, at, inverse) for theta, at in zip(begin, at_begin, strict=True)]

    def unfinished() -> list[int]:
        return [
            j
            for j, (member, penalty) in enumerate(zip(members, penalties, strict=True))
            if estimated_gap(objective, member.theta, member.gradient, penalty)
            > MARGIN * tol * member.value
            and member.steps < JOINT_ITERATIONS
            and member.step > SHORTEST
        ]

    while left := unfinished():
        trials = [members[j].trial for j in left]
        results = objective.evaluate_many(trials, [penalties[j] for j in left], dtype)
        for j, result in zip(left, results, strict=True):
            members[j].tell(result)
    return [
        PreconditionedLBFGS.continuing(member, objective, penalty, dtype)
        for member, penalty in zip(members, penalties, strict=True)
    ]


def predicted(solved: list[tuple[float, Tensor]], at: float, objective: Objective) -> Tensor:
    """Return theta at log C = ``at`` by the polynomial through the last three (Lagrange).

    Args:
        solved: pairs of log C and the theta of its solution; zeros are returned if it is empty.
    """
    known = solved[-3:]
    theta = objective.zeros()
    for i, (x_i, theta_i) in enumerate(known):
        others = [x for j, (x, _) in enumerate(known) if j != i]
        if x_i not in others:  # the same C twice
            theta += math.prod((at - x) / (x_i - x) for x in others) * theta_i
    return theta


def _assign_folds(y: Tensor, weight: Tensor, folds: int, seed: int) -> Tensor:
    """Return the fold of each sample (n,).

    The samples of each class are dealt to the folds in turn, in random order. Samples of weight 0
    are dealt last, so that every fold has samples of weight > 0 of every class.
    """
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, got {folds}")
    counts = torch.bincount(y[weight > 0])
    if int(counts.min()) < folds:
        raise ValueError(
            f"folds: expected at most the {int(counts.min())} samples of class "
            f"{int(counts.argmin())} with weight > 0, got {folds}"
        )
    shuffled = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed)).to(y.device)
    turn = torch.where(weight > 0, y, len(counts))[shuffled]
    dealt = shuffled[turn.sort(stable=True).indices]
    part = torch.empty_like(y)
    part[dealt] = torch.arange(len(y), device=y.device) % folds
    return part


def _nll_and_accuracy(objective: Objective, theta: Tensor) -> tuple[float, float]:
    """Return the weighted mean NLL and the weighted accuracy at theta."""
    z, y, weight = objective.logits(theta, torch.float64), objective.y, objective.weights
    nll, correct = metrics.nll(z, y), metrics.correct(z, y).double()
    sums = objective.summed(torch.stack([weight @ nll, weight @ correct])) / objective.divisor
    return float(sums[0]), float(sums[1])
