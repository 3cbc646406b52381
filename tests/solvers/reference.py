"""Independent float64 reference of softmax regression: objective, lower bound, minimum, separation.

    F(W, b) = 1/S sum_i w_i nll_i  +  1/(C S) ((1 - l1_ratio)/2 ||W||^2 + l1_ratio ||W||_1)

It is written in numpy and scipy and shares nothing with softmax_torch. It is exact rather than
fast: columns are centred and scaled, equal samples are merged, the Hessian is dense.

``lower_bound`` proves how low F can be. For any class probabilities q_i and logits z_i

    nll_i  >=  H(q_i) - (e_{y_i} - q_i) . z_i          H(q) = -sum_k q_k log q_k

so that with V = 1/S sum_i w_i (e_{y_i} - q_i) [x_i, 1]^T and the penalty of each column,
l2_j/2 W_kj^2 + l1_j |W_kj|, for all coefficients

    F  >=  D(q)  =  1/S sum_i w_i H(q_i)  -  sum_kj max(|V_kj| - l1_j, 0)^2 / (2 l2_j)

where columns with l2_j = 0 require |V_kj| <= l1_j; for the bias and without a penalty V_kj = 0.
The class probabilities p_i of a model are one choice of q_i. If d minimizes the quadratic model of
F there, that is if theta + d is a (proximal) Newton step, a better one is

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
from numpy.typing import NDArray
from scipy import linalg, optimize, sparse, special

__all__ = ["Minimum", "lower_bound", "minimum", "objective", "rounding", "separation"]

Array = NDArray[np.float64]

REACH = 1e4
"""Size of coefficients up to which a bound holds although V_kj is not exactly what it has to be. It
is subtracted REACH times the excess for the bias and without a penalty, where columns are centred
and orthonormal and coefficients are about as large as logits, and elsewhere if it is rounding.
"""

ROUNDING = 1e-12
"""Share of the sum of absolute values of its terms up to which an excess of V_kj is rounding."""

DAMPING = 1e-6, 0.1
"""The least and the largest curvature that is added to that of a sample, in units of its residuals.
Newton steps are too long where F is almost linear, as a sample has hardly any probability for its
class.
"""

LONG = 20
"""Difference of two logits of a step from which the largest damping is tried too."""

RANK = 1e-12
"""Singular values of the scaled columns below this share of the largest are 0."""

RIDGE = 1e-13
"""Added to the diagonal of a Hessian that is scaled to a diagonal of 1: collinear columns leave it
singular without a penalty, and it is singular in the sum of the biases."""


class Minimum(NamedTuple):
    """What ``minimum`` found.

    Attributes:
        value: F there; at least the minimum.
        bound: no coefficients have a lower F; -inf where that is not known.
        weight: (K, D).
        bias: (K,).
        step: largest change of a difference of two logits in the last Newton step. If there is a
            minimum it tends to 0, and where there is none it does not.
        separates: whether the last step shows that there is no minimum.
        iterations: Newton steps.
    """

    value: float
    bound: float
    weight: Array
    bias: Array
    step: float
    separates: bool
    iterations: int


class Problem(NamedTuple):
    """Merged samples in scaled columns. theta (K, P) has the bias as a last column, if any.

    Attributes:
        X: (m, P) distinct samples; with a bias they are centred and end with a 1.
        T: (m, K) the weight of each class among these samples, over S.
        l1, l2: (P,) the penalty of each column.
        centre, scale: (D,) column j was (X_j - centre_j) / scale_j.
        into, back: W scale = theta_W back, and theta_W = W scale into. Both are the identity with
            a penalty; without one the columns are made orthonormal.
        bias: whether there is one.
    """

    X: Array
    T: Array
    l1: Array
    l2: Array
    centre: NDArray[np.floating]
    scale: Array
    into: Array
    back: Array
    bias: bool


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
    X, w = _dense(X), _weights(y, sample_weight)
    nll = -np.take_along_axis(_softmax(_logits(X, W, b))[1], np.asarray(y)[:, None], 1)[:, 0]
    total = math.fsum(w)
    l2, l1 = (0.0, 0.0) if math.isinf(C) else ((1 - l1_ratio) / C, l1_ratio / C)
    return math.fsum([*(w * nll), l2 / 2 * float((W**2).sum()), l1 * float(abs(W).sum())]) / total


def rounding(X: Any, y: Any, W: Array, b: Array, sample_weight: Any = None) -> float:
    """Return how much F changes, to first order, if each product in a logit is rounded once.

    That is 1/S sum_i w_i sum_k |p_ik - [k = y_i]| e (sum_j |W_kj x_ij| + |b_k|), e the machine
    epsilon. It is what float64 cannot tell of coefficients and columns as they were given.
    """
    X, w = _dense(X), _weights(y, sample_weight)
    p = _softmax(_logits(X, W, b))[0]
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
    """Return a number that F is nowhere below, the closer the better W and b are.

    Args:
        newton: whether to use a Newton step too, which takes the Hessian. Without a penalty the
            bound is of no use otherwise.
    """
    problem = _problem(X, y, C, l1_ratio, fit_intercept, sample_weight)
    theta = _best_bias(problem, _scaled(problem, W, b))
    p = _softmax(problem.X @ theta.T)[0]
    bound = _dual(problem, p)
    if newton:
        bound = max(bound, _dual(problem, _moved(problem, p, _step(problem, theta, p))))
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
        start: W and b to begin at; zeros by default.
        tol: end where value - bound <= tol value; by default 1e-12, or 1e-10 with an L1 term. If
            rounding prevents that, end where steps do not lower F any more.
    """
    problem = _problem(X, y, C, l1_ratio, fit_intercept, sample_weight)
    if tol is None:
        tol = 1e-10 if problem.l1.any() else 1e-12
    K, P = problem.T.shape[1], problem.X.shape[1]
    theta = np.zeros((K, P)) if start is None else _scaled(problem, *start)
    theta = _best_bias(problem, theta)
    value, bound, span, damping = _value(problem, theta), -math.inf, math.inf, 0.0
    idle, iteration, separates = 0, 0, False
    while iteration < max_iter and idle < 5 and value - bound > tol * value and not separates:
        iteration += 1
        p = _softmax(problem.X @ theta.T)[0]
        bound = max(bound, _dual(problem, p))
        d = _step(problem, theta, p, damping)
        bound = max(bound, _dual(problem, _moved(problem, p, d)))
        after, now, length = _searched(problem, theta, d, value)
        span = float(np.ptp(problem.X @ d.T, 1).max())
        if length < 0.2 and span > 1:
            damping = min(max(10 * damping, DAMPING[0]), DAMPING[1])
        elif length > 0.4:
            damping = damping / 10 if damping > DAMPING[0] else 0.0
        if span > LONG:
            e = _step(problem, theta, p, DAMPING[1])
            other = _searched(problem, theta, e, value)
            after, now, _ = min((after, now, length), other, key=lambda found: found[1])
        idle = 0 if now < value * (1 - 1e-14) else idle + 1
        theta, value = after, min(value, now)
        separates = not problem.l1.any() and not problem.l2.any() and _separates(problem, d)
    weight = theta[:, : len(problem.back)] @ problem.back / problem.scale
    if not fit_intercept:
        return Minimum(value, bound, weight, np.zeros(K), span, separates, iteration)
    bias = theta[:, -1] - _product(weight, problem.centre)
    return Minimum(value, bound, weight, bias.astype(float), span, separates, iteration)


def separation(
    X: Any,
    y: Any,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    most: float = math.inf,
) -> bool | None:
    """Return whether some coefficients give all margins >= 0 and not all of them 0.

    The margins are z_y - z_k of all samples of weight > 0 and all classes k other than y. Without
    a penalty F then has no minimum (Albert & Anderson 1984, Biometrika 71). The sum of margins in
    [0, 1] is maximized by linear programming: it is 0, or at least 1.

    Args:
        most: entries of the linear program up to which it is solved; None is returned beyond.
    """
    problem = _problem(X, y, math.inf, 0.0, fit_intercept, sample_weight)
    (_, K), P = problem.T.shape, problem.X.shape[1]
    rows, true = problem.T.nonzero()
    if 2 * P * (K - 1) * len(rows) > most:
        return None
    pairs = [
        (rows[true != k], true[true != k], np.full(int((true != k).sum()), k)) for k in range(K)
    ]
    row, plus, minus = (np.concatenate(part) for part in zip(*pairs, strict=True))
    x = problem.X[row]
    # The coefficients of class 0 are 0: to add the same to all classes changes no margin.
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
    # HiGHS, as in linprog, which has no constraints with two sides. No variable is an integer.
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


def _dense(X: Any) -> Array:
    return np.asarray(X.toarray() if sparse.issparse(X) else X, dtype=np.float64)


def _weights(y: Any, sample_weight: Any) -> Array:
    if sample_weight is None:
        return np.ones(len(y))
    return np.asarray(sample_weight, dtype=np.float64)


def _product(W: Array, centre: NDArray[np.floating]) -> NDArray[np.longdouble]:
    """Return W @ centre, where most digits may cancel against the bias."""
    result: NDArray[np.longdouble] = W.astype(np.longdouble) @ centre.astype(np.longdouble)
    return result


def _logits(X: Array, W: Array, b: Array) -> Array:
    centre = X.mean(0)
    return (X - centre) @ W.T + (b + _product(W, centre)).astype(float)


def _problem(
    X: Any, y: Any, C: float, l1_ratio: float, fit_intercept: bool, sample_weight: Any
) -> Problem:
    X, y, w = _dense(X), np.asarray(y), _weights(y, sample_weight)
    K = int(y.max()) + 1
    X, y, w = X[w > 0], y[w > 0], w[w > 0]
    total = math.fsum(w)
    centre = X.mean(0) if fit_intercept else np.zeros(X.shape[1])
    constant = X.max(0) == X.min(0)
    if fit_intercept:
        centre[constant] = X[0, constant]  # a mean of equal numbers may be off by rounding
    X = X - centre
    scale = np.sqrt((X**2).mean(0))
    scale[scale == 0] = 1
    X /= scale
    if fit_intercept:
        # Columns that add up to a constant add up to 0 only once the rounding of the means is gone.
        rest = X.mean(0)
        X -= rest
        centre = centre + scale.astype(np.longdouble) * rest
    # Equal samples have equal projections; that equal projections are of equal samples is checked.
    projection = X @ np.random.default_rng(0).normal(size=X.shape[1])
    _, first, group = np.unique(projection, return_index=True, return_inverse=True)
    if not np.array_equal(X[first][group], X):
        first = group = np.arange(len(X))
    T = np.bincount(group * K + y, w / total, len(first) * K).reshape(-1, K)
    X = X[first]
    D = len(scale)
    into = back = np.eye(D)
    if math.isinf(C):
        _, singular, V = linalg.svd(X, full_matrices=False, check_finite=False)
        rank = max(1, int((singular > RANK * singular[0]).sum()))  # 1 where X is all zeros
        unit = np.where(singular > 0, singular / math.sqrt(len(X)), 1.0)[:rank]
        into, back = V[:rank].T * unit, V[:rank] / unit[:, None]
        X = X @ back.T
    l1, l2 = np.zeros(X.shape[1]), np.zeros(X.shape[1])
    if not math.isinf(C):
        l1 = l1_ratio / (C * total) / scale
        l2 = (1 - l1_ratio) / (C * total) / scale**2
    if fit_intercept:
        X = np.column_stack([X, np.ones(len(X))])
        l1, l2 = np.append(l1, 0), np.append(l2, 0)
    return Problem(X, T, l1, l2, centre, scale, into, back, fit_intercept)


def _scaled(problem: Problem, W: Array, b: Array) -> Array:
    theta = W * problem.scale @ problem.into
    if not problem.bias:
        return theta
    bias = (b + _product(W, problem.centre)).astype(float)
    return np.column_stack([theta, bias - bias.mean()])


def _softmax(z: Array) -> tuple[Array, Array]:
    """Return p and log p of logits (m, K), with all digits of log p where p is close to 1."""
    z = z - z.max(1, keepdims=True)
    e = np.exp(z)
    log_sum = np.log1p(_rest(e))[:, None]
    return e / np.exp(log_sum), z - log_sum


def _rest(q: Array) -> Array:
    """Return the sum of all but the largest entry of each row."""
    q = q.copy()
    q[np.arange(len(q)), q.argmax(1)] = 0
    return q.sum(1)


def _complement(p: Array) -> Array:
    """Return 1 - p of probabilities (m, K), with all digits where p is close to 1."""
    result = 1 - p
    result[np.arange(len(p)), p.argmax(1)] = _rest(p)
    return result


def _residuals(problem: Problem, p: Array, sign: int = -1) -> Array:
    """Return sum_l T_l (p - e_l) of each row (m, K), with all digits where p is close to e_l.

    With ``sign`` 1 it is sum_l T_l |p - e_l|, of which the residuals have the rounding errors.
    """
    others = problem.T @ (1 - np.eye(p.shape[1]))
    return p * others + sign * problem.T * _complement(p)


def _penalty(problem: Problem, theta: Array) -> float:
    return float((problem.l2 / 2 * theta**2 + problem.l1 * abs(theta)).sum())


def _value(problem: Problem, theta: Array) -> float:
    nll = -_softmax(problem.X @ theta.T)[1]
    return math.fsum((problem.T * nll).sum(1)) + _penalty(problem, theta)


def _hessian(problem: Problem, p: Array) -> Array:
    """Return the Hessian (K P, K P) without the penalty; each entry has its digits."""
    X, t = problem.X, problem.T.sum(1)
    (m, K), P = p.shape, X.shape[1]
    H = np.zeros((K * P, K * P))
    step = max(1, 4_000_000 // (K * P))
    for start in range(0, m, step):
        at = slice(start, start + step)
        A = ((np.sqrt(t[at])[:, None] * p[at])[:, :, None] * X[at][:, None, :]).reshape(-1, K * P)
        H -= A.T @ A
    curvature = t[:, None] * p * _complement(p)
    for k in range(K):
        block = slice(k * P, (k + 1) * P)
        H[block, block] = X.T @ (curvature[:, k, None] * X)
    return H


def _step(problem: Problem, theta: Array, p: Array, damping: float = 0.0) -> Array:
    """Return the d that minimizes the quadratic model of the NLL at theta + the penalty.

    Args:
        damping: curvature that each sample has in addition, in units of its largest residual.
    """
    K, P = theta.shape
    H = _hessian(problem, p)
    if damping:
        size = damping * abs(_residuals(problem, p)).max(1)
        H += np.kron(np.eye(K) - 1 / K, problem.X.T @ (size[:, None] * problem.X))
    l1, l2 = np.tile(problem.l1, K), np.tile(problem.l2, K)
    H.ravel()[:: K * P + 1] += l2
    x = theta.ravel()
    g = (_residuals(problem, p).T @ problem.X).ravel() + l2 * x
    # in units of the square roots of the diagonal of H
    scale = np.sqrt(np.where(H.diagonal() > 0, H.diagonal(), 1.0))
    H /= scale
    H /= scale[:, None]
    if l1.any():
        d = _quadratic_minimum(H, g / scale, x * scale, l1 / scale, _value(problem, theta))
    else:
        d = _refined(_factor(H), H, -g / scale)
    return (d / scale).reshape(K, P)


def _factor(H: Array) -> tuple[Array, bool]:
    """Return the Cholesky factor of a symmetric H with a diagonal of 1, made regular."""
    ridge = RIDGE
    while True:
        try:
            return linalg.cho_factor(H + ridge * np.eye(len(H)), check_finite=False)
        except linalg.LinAlgError:
            ridge *= 10


def _refined(factor: tuple[Array, bool], H: Array, g: Array, rounds: int = 4) -> Array:
    """Return H^-1 g; refinement takes the ridge out again, except in singular directions."""
    d = linalg.cho_solve(factor, g, check_finite=False)
    for _ in range(rounds):
        d += linalg.cho_solve(factor, g - H @ d, check_finite=False)
    return d


def _quadratic_minimum(H: Array, g: Array, x: Array, l1: Array, value: float) -> Array:
    """Return the d that minimizes g.d + d.H d / 2 + sum l1 |x + d| up to 1e-16 value.

    Interior-point method with predictor and corrector (Mehrotra 1992) for u = x + d, t >= |u| with
    s = t - u, r = t + u and their multipliers a, b, where a + b = l1 (Kim, Koh, Lustig, Boyd &
    Gorinevsky 2007, "An interior-point method for large-scale l1-regularized least squares").
    """
    at = l1 > 0
    u, l1 = x.copy(), l1[at]
    a, b = l1 / 2, l1 / 2
    least = 2 * value / len(l1) / l1  # so that all s a begin at value / len(l1) or more
    s, r = abs(u[at]) - u[at] + least, abs(u[at]) + u[at] + least
    for _ in range(100):
        mu = float((s * a + r * b).sum()) / (2 * len(l1))
        slope = g + H @ (u - x)
        slope[at] += a - b
        if mu * len(l1) <= 1e-16 * value:
            break
        w = s / a + r / b
        M = H.copy()
        M.ravel()[:: len(M) + 1][at] += 4 / w
        diagonal = np.sqrt(M.diagonal())
        M /= diagonal
        M /= diagonal[:, None]
        factor = _factor(M)
        complete = -s * a, -r * b  # what s a and r b are to change by
        for corrector in (False, True):
            e, f = complete
            right = -slope
            right[at] += 2 * (f / b - e / a) / w
            du = _refined(factor, M, right / diagonal, 1) / diagonal
            da = (2 * du[at] - f / b + e / a) / w
            ds = (e - s * da) / a
            dr = (f + r * da) / b
            falls = np.concatenate([-ds / s, -dr / r, -da / a, da / b])
            length = 1 / max(1e-8, float(falls.max()))
            if not corrector:
                length = min(1.0, length)
                after = (s + length * ds) @ (a + length * da) + (r + length * dr) @ (
                    b - length * da
                )
                aim = mu * (float(after) / (2 * len(l1)) / mu) ** 3
                complete = aim - s * a - ds * da, aim - r * b + dr * da
        length = min(1.0, 0.995 * length)
        u += length * du
        s, r, a, b = s + length * ds, r + length * dr, a + length * da, b - length * da
    return u - x


def _searched(problem: Problem, theta: Array, d: Array, value: float) -> tuple[Array, float, float]:
    """Return theta + a d, F there and a, the first of 1, 1/2, ... that lowers F enough, or 0."""
    p = _softmax(problem.X @ theta.T)[0]
    g = _residuals(problem, p).T @ problem.X + problem.l2 * theta
    norms = (problem.l1 * (abs(theta + d) - abs(theta))).sum()
    slope, length = float((g * d).sum() + norms), 1.0
    for _ in range(60):
        after = theta + length * d
        now = _value(problem, after)
        if now <= value + 1e-4 * length * slope:
            return after, now, length
        length /= 2
    return theta, value, 0.0


def _best_bias(problem: Problem, theta: Array) -> Array:
    """Return theta with the best bias for its weight, by Newton's method."""
    if not problem.bias:
        return theta
    K = len(theta)
    alone = problem._replace(X=np.ones((len(problem.X), 1)), l1=np.zeros(1), l2=np.zeros(1))
    z, b, t = problem.X @ theta.T, np.zeros(K), problem.T.sum(1)[:, None]
    value, least = math.inf, math.inf
    for _ in range(200):
        p, log_p = _softmax(z + b)
        g = _residuals(alone, p).sum(0)
        now = -float((problem.T * log_p).sum())
        if abs(g).max() <= 1e-16 or (abs(g).max() >= least / 2 and now >= value * (1 - 1e-14)):
            break
        least, value = min(least, float(abs(g).max())), now
        H = -(t * p).T @ p
        H.ravel()[:: K + 1] = (t * p * _complement(p)).sum(0)
        scale = np.sqrt(np.maximum(H.diagonal(), 1e-300))
        H = H / scale / scale[:, None]
        d = _refined(_factor(H), H, -g / scale) / scale
        span = float(d.max() - d.min())
        b += d if span < 0.1 else d * math.log1p(span) / span
    theta = theta.copy()
    theta[:, -1] += b
    return theta


def _moved(problem: Problem, p: Array, d: Array) -> Array | None:
    """Return q = p (1 + eps) of a step d; None where that is not in [0, 1]."""
    z = problem.X @ d.T
    eps = z - (p * z).sum(1, keepdims=True)
    if not eps.min() >= -1:
        return None
    return p * (1 + eps)


def _dual(problem: Problem, q: Array | None) -> float:
    """Return D(q); with an L1 term, of the best q on the way to the shares of the classes.

    The residuals of (1 - s) T / t + s q, t the row sums of T, are those of q times s.
    """
    if q is None:
        return -math.inf
    T, t = problem.T, problem.T.sum(1)
    V = abs(_residuals(problem, q).T @ problem.X)
    noise = ROUNDING * (_residuals(problem, q, 1).T @ abs(problem.X)).max(0)
    free = (problem.l1 == 0) & (problem.l2 == 0)

    def bound(s: float) -> float:
        mixed = q if s == 1 else (1 - s) * T / t[:, None] + s * q
        excess = np.maximum(s * V - problem.l1, 0)
        cost = np.full_like(V, np.inf)
        np.divide(excess**2, 2 * problem.l2, out=cost, where=problem.l2 > 0)
        near = REACH * excess
        cost = np.where(free | (excess <= noise), np.minimum(cost, near), cost)
        return float(t @ _entropy(mixed) - cost.sum())

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


def _entropy(q: Array) -> Array:
    """Return -sum_k q_k log q_k of each row, with all digits where one q_k is close to 1."""
    rest = _rest(q)
    each = special.entr(q)
    each[np.arange(len(q)), q.argmax(1)] = -(1 - rest) * np.log1p(-np.minimum(rest, 1))
    return each.sum(1)


def _separates(problem: Problem, d: Array) -> bool:
    """Return whether a step d changes no margin for the worse and one for the better."""
    z = problem.X @ d.T
    least = np.where(problem.T > 0, z, np.inf).min(1)
    most = np.where(problem.T > 0, z, -np.inf).max(1)
    shrunk, grown = float((z.max(1) - least).max()), float((most - z.min(1)).max())
    return grown > 0.1 and shrunk <= 1e-9 * grown


def column_separates(column: Any, y: Any, fit_intercept: bool, sample_weight: Any) -> bool:
    """Return whether some threshold on one column (n, 1) separates some classes from the others.

    Every threshold between two values is tried, or 0 alone without an intercept.

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
        # Two groups of classes, neither empty: those with samples below, those with samples above.
        groups = not below & above and set(y) - below and set(y) - above
        if groups and below | above:
            return True
    return False
