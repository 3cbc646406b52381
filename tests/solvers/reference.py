"""Independent float64 reference of softmax regression: objective, lower bound, minimum, separation.

    F(W, b) = 1/S sum_i w_i nll_i  +  1/(C S) ((1 - l1_ratio)/2 ||W||^2 + l1_ratio ||W||_1)

It is written in numpy and scipy and shares no code with softmax_torch. It is accurate rather than
fast: columns are centred and scaled, equal samples are merged, the Hessian is dense (see
``reference_newton``).

``lower_bound`` proves a lower bound on F. For any class probabilities q_i and logits z_i

    nll_i  >=  H(q_i) - (e_{y_i} - q_i) . z_i          H(q) = -sum_k q_k log q_k

so that with V = 1/S sum_i w_i (e_{y_i} - q_i) [x_i, 1]^T and the penalty of each column,
l2_j/2 W_kj^2 + l1_j |W_kj|, for all coefficients

    F  >=  D(q)  =  1/S sum_i w_i H(q_i)  -  sum_kj max(|V_kj| - l1_j, 0)^2 / (2 l2_j)

where columns with l2_j = 0 require |V_kj| <= l1_j; for the bias and without a penalty V_kj = 0.
The class probabilities p_i of a model are one choice of q_i. If theta + d is a (proximal) Newton
step, a better choice is

    q_i = p_i (1 + eps_i),     eps_ik = d_k . x_i - sum_l p_il d_l . x_i

for which F - D(q) is half the Newton decrement, g . H^-1 g / 2, to leading order.

>>> X, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
>>> found = minimum(X, y, C=1.0)
>>> found.value - found.bound < 1e-12
True
>>> separation(X, y), separation(X, np.array([0, 0, 1, 1]))
(False, True)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from reference_newton import (
    Array,
    Problem,
    dense,
    entropy,
    exact_product,
    line_search,
    logits_of,
    merged,
    newton_step,
    residuals,
    scaled,
    separates_along,
    softmax,
    value_of,
    weights_of,
    with_best_bias,
)
from scipy import optimize, sparse

__all__ = [
    "Minimum",
    "column_separates",
    "lower_bound",
    "minimum",
    "objective",
    "rounding",
    "separation",
]

REACH = 1e4
"""Size of coefficients up to which a bound holds although V_kj exceeds its limit a little. REACH
times the excess is subtracted from the bound: for the bias and without a penalty, where columns are
centred and orthonormal and coefficients are about as large as logits, and elsewhere if the excess
is rounding."""

ROUNDING = 1e-12
"""Share of the sum of absolute values of its terms up to which an excess of V_kj is rounding."""

DAMPING = 1e-6, 0.1
"""The least and the largest curvature that is added to a sample's, in units of its residuals. F is
almost linear, and Newton steps are too long, if a sample's own class has almost no probability."""

LONG = 20
"""Difference of two logits of a step above which the largest damping is tried too."""


class Minimum(NamedTuple):
    """The result of ``minimum``.

    Attributes:
        value: F at weight and bias; an upper bound on the minimum.
        bound: a lower bound on F; -inf if there is none.
        weight: (K, D).
        bias: (K,).
        step: largest change of a difference of two logits in the last Newton step. It tends to 0 if
            and only if there is a minimum.
        separates: whether the last step proves that there is no minimum.
        iterations: number of Newton steps.
    """

    value: float
    bound: float
    weight: Array
    bias: Array
    step: float
    separates: bool
    iterations: int


def objective(
    X: Any,
    y: Any,
    W: Array,
    b: Array,
    C: float = math.inf,
    l1_ratio: float = 0.0,
    sample_weight: Any = None,
) -> float:
    """Return F of W (K, D) and b (K,) on X (n, D), dense or sparse, with the digits of float64.

    Logits are computed from centred columns, so that a column with a large mean loses no digits.
    """
    X, w = dense(X), weights_of(y, sample_weight)
    nll = -np.take_along_axis(softmax(logits_of(X, W, b))[1], np.asarray(y)[:, None], 1)[:, 0]
    total = math.fsum(w)
    l2, l1 = (0.0, 0.0) if math.isinf(C) else ((1 - l1_ratio) / C, l1_ratio / C)
    return math.fsum([*(w * nll), l2 / 2 * float((W**2).sum()), l1 * float(abs(W).sum())]) / total


def rounding(X: Any, y: Any, W: Array, b: Array, sample_weight: Any = None) -> float:
    """Return how much F changes, to first order, if each product in a logit is rounded once.

    It is 1/S sum_i w_i sum_k |p_ik - [k = y_i]| e (sum_j |W_kj x_ij| + |b_k|), e the machine
    epsilon: the accuracy of F in float64 for coefficients and columns as they were given.
    """
    X, w = dense(X), weights_of(y, sample_weight)
    p = softmax(logits_of(X, W, b))[0]
    p[np.arange(len(p)), y] -= 1
    size = abs(X) @ abs(W).T + abs(b)
    return float(np.finfo(float).eps * (w @ (abs(p) * size).sum(1)) / w.sum())


def lower_bound(
    X: Any,
    y: Any,
    W: Array,
    b: Array,
    C: float = math.inf,
    l1_ratio: float = 0.0,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    newton: bool = True,
) -> float:
    """Return a lower bound on F, which is the tighter the nearer W and b are to the minimum.

    Args:
        newton: whether to use a Newton step too, which needs the Hessian. Without a penalty the
            bound is useless otherwise.
    """
    problem = merged(X, y, C, l1_ratio, fit_intercept, sample_weight)
    theta = with_best_bias(problem, scaled(problem, W, b))
    p = softmax(problem.X @ theta.T)[0]
    bound = _dual(problem, p)
    if newton:
        bound = max(bound, _dual(problem, _moved(problem, p, newton_step(problem, theta, p))))
    return bound


def minimum(
    X: Any,
    y: Any,
    C: float = math.inf,
    l1_ratio: float = 0.0,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    start: tuple[Array, Array] | None = None,
    tol: float | None = None,
    max_iter: int = 300,
) -> Minimum:
    """Return the minimum of F by (proximal) Newton steps with the exact Hessian.

    Args:
        start: W and b to start from; zeros by default.
        tol: stop when value - bound <= tol value; by default 1e-12, or 1e-10 with an L1 term. If
            rounding prevents that, stop when steps no longer lower F.
    """
    problem = merged(X, y, C, l1_ratio, fit_intercept, sample_weight)
    if tol is None:
        tol = 1e-10 if problem.l1.any() else 1e-12
    K, P = problem.T.shape[1], problem.X.shape[1]
    theta = np.zeros((K, P)) if start is None else scaled(problem, *start)
    theta = with_best_bias(problem, theta)
    value, bound, span, damping = value_of(problem, theta), -math.inf, math.inf, 0.0
    idle, iteration, separates = 0, 0, False
    while iteration < max_iter and idle < 5 and value - bound > tol * value and not separates:
        iteration += 1
        p = softmax(problem.X @ theta.T)[0]
        bound = max(bound, _dual(problem, p))
        d = newton_step(problem, theta, p, damping)
        bound = max(bound, _dual(problem, _moved(problem, p, d)))
        after, now, length = line_search(problem, theta, d, value)
        span = float(np.ptp(problem.X @ d.T, 1).max())
        if length < 0.2 and span > 1:
            damping = min(max(10 * damping, DAMPING[0]), DAMPING[1])
        elif length > 0.4:
            damping = damping / 10 if damping > DAMPING[0] else 0.0
        if span > LONG:
            e = newton_step(problem, theta, p, DAMPING[1])
            other = line_search(problem, theta, e, value)
            after, now, _ = min((after, now, length), other, key=lambda found: found[1])
        idle = 0 if now < value * (1 - 1e-14) else idle + 1
        theta, value = after, min(value, now)
        separates = not problem.l1.any() and not problem.l2.any() and separates_along(problem, d)
    weight = theta[:, : len(problem.back)] @ problem.back / problem.scale
    if not fit_intercept:
        return Minimum(value, bound, weight, np.zeros(K), span, separates, iteration)
    bias = theta[:, -1] - exact_product(weight, problem.centre)
    return Minimum(value, bound, weight, bias.astype(float), span, separates, iteration)


def separation(
    X: Any,
    y: Any,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    most: float = math.inf,
) -> bool | None:
    """Return whether some coefficients make all margins >= 0 and at least one > 0.

    The margins are z_y - z_k of all samples of weight > 0 and all classes k other than y. Without
    a penalty F then has no minimum (Albert & Anderson 1984, Biometrika 71). A linear program
    maximizes the sum of margins in [0, 1], which is 0 or at least 1.

    Args:
        most: entries of the linear program above which None is returned.
    """
    problem = merged(X, y, math.inf, 0.0, fit_intercept, sample_weight)
    (_, K), P = problem.T.shape, problem.X.shape[1]
    rows, true = problem.T.nonzero()
    if 2 * P * (K - 1) * len(rows) > most:
        return None
    pairs = [
        (rows[true != k], true[true != k], np.full(int((true != k).sum()), k)) for k in range(K)
    ]
    row, plus, minus = (np.concatenate(part) for part in zip(*pairs, strict=True))
    x = problem.X[row]
    # The coefficients of class 0 are 0: adding the same to all classes changes no margin.
    at = np.arange(P)
    index = np.repeat(np.arange(len(row)), P)
    entries = sparse.coo_array(
        (
            np.concatenate([x.ravel(), -x.ravel()]),
            (
                np.concatenate([index, index]),
                np.concatenate([(c[:, None] * P + at).ravel() for c in (plus, minus)]),
            ),
        ),
        shape=(len(row), K * P),
    )
    A = entries.tocsc()[:, P:]
    # milp without integers: HiGHS as in linprog, which has no two-sided constraints.
    found = optimize.milp(
        -np.asarray(A.sum(0)).ravel(),
        constraints=optimize.LinearConstraint(A, 0, 1),
        bounds=optimize.Bounds(-np.inf, np.inf),
    )
    if found.x is None:
        raise ArithmeticError(f"linear program of a separation: {found.message}")
    margins = A @ found.x
    if not margins.max() > 0.5:
        return False
    if margins.min() < -1e-9 * margins.max():
        raise ArithmeticError(f"linear program of a separation: a margin of {margins.min():.1e}")
    return True


def _moved(problem: Problem, p: Array, d: Array) -> Array | None:
    """Return q = p (1 + eps) of a step d; None if an entry is below 0."""
    z = problem.X @ d.T
    eps = z - (p * z).sum(1, keepdims=True)
    if not eps.min() >= -1:
        return None
    return p * (1 + eps)


def _dual(problem: Problem, q: Array | None) -> float:
    """Return D(q); with an L1 term the best D on the line from the class frequencies to q.

    The residuals of (1 - s) T / t + s q, with t the row sums of T, are s times those of q.
    """
    if q is None:
        return -math.inf
    T, t = problem.T, problem.T.sum(1)
    V = abs(residuals(problem, q).T @ problem.X)
    noise = ROUNDING * (residuals(problem, q, 1).T @ abs(problem.X)).max(0)
    free = (problem.l1 == 0) & (problem.l2 == 0)

    def bound(s: float) -> float:
        mixed = q if s == 1 else (1 - s) * T / t[:, None] + s * q
        excess = np.maximum(s * V - problem.l1, 0)
        cost = np.full_like(V, np.inf)
        np.divide(excess**2, 2 * problem.l2, out=cost, where=problem.l2 > 0)
        near = REACH * excess
        cost = np.where(free | (excess <= noise), np.minimum(cost, near), cost)
        return float(t @ entropy(mixed) - cost.sum())

    if not problem.l1.any():
        return bound(1.0)
    over = (problem.l1 > 0) & (V > problem.l1)
    least = float(np.divide(problem.l1, V, out=np.ones_like(V), where=over).min())
    if least == 1:
        return bound(1.0)
    if not problem.l2.any():
        return max(bound(1.0), bound(least))
    # D is concave in s: golden section of 1 - s, in logarithms
    low, high, ratio = -36.0, max(-36.0, math.log1p(-least)), (math.sqrt(5) - 1) / 2
    best = bound(1.0)
    for _ in range(25):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        at_a, at_b = bound(-math.expm1(a)), bound(-math.expm1(b))
        best = max(best, at_a, at_b)
        low, high = (low, b) if at_a >= at_b else (a, high)
    return best


def column_separates(column: Any, y: Any, fit_intercept: bool, sample_weight: Any) -> bool:
    """Return whether some threshold on one column (n, 1) separates some classes from the others.

    It tries every value as the threshold, or 0 alone without an intercept.

    >>> column_separates(np.array([[1.0], [2.0], [2.0]]), np.array([0, 0, 1]), True, None)
    True
    >>> column_separates(np.array([[1.0], [2.0], [1.5]]), np.array([0, 0, 1]), True, None)
    False
    """
    x = np.asarray(column.todense() if sparse.issparse(column) else column, dtype=float)[:, 0]
    counted = np.ones(len(y), bool) if sample_weight is None else np.asarray(sample_weight) > 0
    x, y = x[counted], np.asarray(y)[counted]
    for t in np.unique(x) if fit_intercept else [0.0]:
        below, above = set(y[x < t]), set(y[x > t])
        # Classes with samples below t and classes with samples above t must be disjoint.
        groups = not below & above and set(y) - below and set(y) - above
        if groups and below | above:
            return True
    return False
