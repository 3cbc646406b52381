"""Newton steps for the reference: merged samples, exact Hessians, L1 steps and line search."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse, special

__all__ = [
    "Array",
    "Problem",
    "dense",
    "entropy",
    "exact_product",
    "line_search",
    "logits_of",
    "merged",
    "newton_step",
    "residuals",
    "rest_of",
    "scaled",
    "separates_along",
    "softmax",
    "value_of",
    "weights_of",
    "with_best_bias",
]

Array = NDArray[np.float64]

RANK = 1e-12
"""Singular values of the scaled columns below this share of the largest count as 0."""

RIDGE = 1e-13
"""Added to the diagonal of a Hessian that is scaled to a diagonal of 1. The Hessian is singular in
the sum of the biases, and without a penalty for collinear columns."""


class Problem(NamedTuple):
    """Merged samples in scaled columns. The last column of theta (K, P) is the bias, if any.

    Attributes:
        X: distinct samples (m, P); with a bias they are centred, and their last column is 1.
        T: weight of each class at each distinct sample (m, K), divided by S.
        l1, l2: penalty of each column (P,).
        centre, scale: column j is (X_j - centre_j) / scale_j (D,).
        into, back: W scale = theta_W back, and theta_W = W scale into. With a penalty both are the
            identity; without one they make the columns orthonormal.
        bias: whether the logits have a bias.
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


def dense(X: Any) -> Array:
    return np.asarray(X.toarray() if sparse.issparse(X) else X, dtype=np.float64)


def weights_of(y: Any, sample_weight: Any) -> Array:
    if sample_weight is None:
        return np.ones(len(y))
    return np.asarray(sample_weight, dtype=np.float64)


def exact_product(W: Array, centre: NDArray[np.floating]) -> NDArray[np.longdouble]:
    """Return W @ centre in long double: most digits may cancel against the bias."""
    result: NDArray[np.longdouble] = W.astype(np.longdouble) @ centre.astype(np.longdouble)
    return result


def logits_of(X: Array, W: Array, b: Array) -> Array:
    centre = X.mean(0)
    return (X - centre) @ W.T + (b + exact_product(W, centre)).astype(float)


def merged(
    X: Any, y: Any, C: float, l1_ratio: float, fit_intercept: bool, sample_weight: Any
) -> Problem:
    X, y, w = dense(X), np.asarray(y), weights_of(y, sample_weight)
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
    # Equal samples have equal projections. The converse is checked.
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


def scaled(problem: Problem, W: Array, b: Array) -> Array:
    theta = W * problem.scale @ problem.into
    if not problem.bias:
        return theta
    bias = (b + exact_product(W, problem.centre)).astype(float)
    return np.column_stack([theta, bias - bias.mean()])


def softmax(z: Array) -> tuple[Array, Array]:
    """Return p and log p of logits (m, K), with all digits of log p where p is close to 1."""
    z = z - z.max(1, keepdims=True)
    e = np.exp(z)
    log_sum = np.log1p(rest_of(e))[:, None]
    return e / np.exp(log_sum), z - log_sum


def rest_of(q: Array) -> Array:
    """Return the sum of all but the largest entry of each row."""
    q = q.copy()
    q[np.arange(len(q)), q.argmax(1)] = 0
    return q.sum(1)


def _complement(p: Array) -> Array:
    """Return 1 - p of probabilities (m, K), with all digits where p is close to 1."""
    result = 1 - p
    result[np.arange(len(p)), p.argmax(1)] = rest_of(p)
    return result


def residuals(problem: Problem, p: Array, sign: int = -1) -> Array:
    """Return sum_l T_l (p - e_l) of each row (m, K), with all digits where p is close to e_l.

    With ``sign`` 1 return sum_l T_l |p - e_l|, the scale of the rounding errors of the residuals.
    """
    others = problem.T @ (1 - np.eye(p.shape[1]))
    return p * others + sign * problem.T * _complement(p)


def _penalty(problem: Problem, theta: Array) -> float:
    return float((problem.l2 / 2 * theta**2 + problem.l1 * abs(theta)).sum())


def value_of(problem: Problem, theta: Array) -> float:
    nll = -softmax(problem.X @ theta.T)[1]
    return math.fsum((problem.T * nll).sum(1)) + _penalty(problem, theta)


def _hessian(problem: Problem, p: Array) -> Array:
    """Return the Hessian (K P, K P) without the penalty, each entry to full relative accuracy."""
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


def newton_step(problem: Problem, theta: Array, p: Array, damping: float = 0.0) -> Array:
    """Return the d that minimizes the quadratic model of the NLL at theta plus the penalty.

    Args:
        damping: curvature that is added to each sample's, in units of its largest residual.
    """
    K, P = theta.shape
    H = _hessian(problem, p)
    if damping:
        size = damping * abs(residuals(problem, p)).max(1)
        H += np.kron(np.eye(K) - 1 / K, problem.X.T @ (size[:, None] * problem.X))
    l1, l2 = np.tile(problem.l1, K), np.tile(problem.l2, K)
    H.ravel()[:: K * P + 1] += l2
    x = theta.ravel()
    g = (residuals(problem, p).T @ problem.X).ravel() + l2 * x
    # Scale H to a diagonal of 1.
    scale = np.sqrt(np.where(H.diagonal() > 0, H.diagonal(), 1.0))
    H /= scale
    H /= scale[:, None]
    if l1.any():
        d = _quadratic_minimum(H, g / scale, x * scale, l1 / scale, value_of(problem, theta))
    else:
        d = _refined(_factor(H), H, -g / scale)
    return (d / scale).reshape(K, P)


def _factor(H: Array) -> tuple[Array, bool]:
    """Return the Cholesky factor of a symmetric H with a diagonal of 1, after adding a ridge."""
    ridge = RIDGE
    while True:
        try:
            return linalg.cho_factor(H + ridge * np.eye(len(H)), check_finite=False)
        except linalg.LinAlgError:
            ridge *= 10


def _refined(factor: tuple[Array, bool], H: Array, g: Array, rounds: int = 4) -> Array:
    """Return H^-1 g; refinement removes the effect of the ridge except in singular directions."""
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
    least = 2 * value / len(l1) / l1  # all s a begin at value / len(l1) or more
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
        complete = -s * a, -r * b  # the changes of s a and r b to aim at
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


def line_search(
    problem: Problem, theta: Array, d: Array, value: float
) -> tuple[Array, float, float]:
    """Return theta + a d, F there and a: the first of 1, 1/2, ... that lowers F enough, or 0."""
    p = softmax(problem.X @ theta.T)[0]
    g = residuals(problem, p).T @ problem.X + problem.l2 * theta
    norms = (problem.l1 * (abs(theta + d) - abs(theta))).sum()
    slope, length = float((g * d).sum() + norms), 1.0
    for _ in range(60):
        after = theta + length * d
        now = value_of(problem, after)
        if now <= value + 1e-4 * length * slope:
            return after, now, length
        length /= 2
    return theta, value, 0.0


def with_best_bias(problem: Problem, theta: Array) -> Array:
    """Return theta with the best bias for its weight, by Newton's method."""
    if not problem.bias:
        return theta
    K = len(theta)
    alone = problem._replace(X=np.ones((len(problem.X), 1)), l1=np.zeros(1), l2=np.zeros(1))
    z, b, t = problem.X @ theta.T, np.zeros(K), problem.T.sum(1)[:, None]
    value, least = math.inf, math.inf
    for _ in range(200):
        p, log_p = softmax(z + b)
        g = residuals(alone, p).sum(0)
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


def entropy(q: Array) -> Array:
    """Return -sum_k q_k log q_k of each row, with all digits where one q_k is close to 1."""
    rest = rest_of(q)
    each = special.entr(q)
    each[np.arange(len(q)), q.argmax(1)] = -(1 - rest) * np.log1p(-np.minimum(rest, 1))
    return each.sum(1)


def separates_along(problem: Problem, d: Array) -> bool:
    """Return whether a step d lowers no margin and raises at least one."""
    z = problem.X @ d.T
    least = np.where(problem.T > 0, z, np.inf).min(1)
    most = np.where(problem.T > 0, z, -np.inf).max(1)
    shrunk, grown = float((z.max(1) - least).max()), float((most - z.min(1)).max())
    return grown > 0.1 and shrunk <= 1e-9 * grown
