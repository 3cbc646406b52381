"""Random problems for ``fit``, one per seed: all kinds of columns, labels, weights and penalties.

>>> problem(7).name == problem(7).name
True
>>> X, y = problem(7).X, problem(7).y
>>> X.shape[0] == len(y)
True
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import sparse

__all__ = ["KINDS", "Problem", "problem"]

Array = NDArray[np.float64]

NUMBERS = 600
"""Largest K (D + 1): the Hessian of the reference is dense."""

RARE = {"onehot", "sparse onehot", "binary", "sparse binary", "repeated"}
"""Kinds with rare levels or repeated samples, half of which have more than 3000 samples."""


class Problem(NamedTuple):
    """The arguments of ``fit``, with the seed and a description.

    Attributes:
        X: (n, D), an array or a scipy CSR matrix.
        y: class indices (n,); each of the K classes occurs.
        dtype: dtype of the passes: "float32", or None for the default.
    """

    seed: int
    name: str
    X: Any
    y: NDArray[np.int64]
    C: float
    l1_ratio: float
    fit_intercept: bool
    sample_weight: Array | None
    class_weight: str | None
    tol: float
    dtype: str | None

    def weights(self) -> Array | None:
        """Return sample weight times class weight (n,); None if all are 1."""
        if self.class_weight is None:
            return self.sample_weight
        w = np.ones(len(self.y)) if self.sample_weight is None else self.sample_weight
        sums = np.bincount(self.y, w)
        return w * (sums.sum() / (len(sums) * sums))[self.y]


def problem(seed: int) -> Problem:
    """Return the problem of this seed."""
    rng = np.random.default_rng([seed, 20240607])
    kind = str(rng.choice(list(KINDS)))
    K, D = _shape(rng)
    C = _strength(rng)
    if math.isinf(C) and rng.random() < 0.6:  # otherwise hardly any problem has an optimum
        K, D = min(K, 4), min(D, 12)
    n = _samples(rng, kind, K)
    fit_intercept = bool(rng.random() < 0.8)
    X, columns = KINDS[kind](rng, n, D)
    if kind in DENSE:
        X, changed = _changed(rng, X, fit_intercept, exact=kind != "collinear")
        columns += changed
    y, labels = _labels(rng, X, K, mild=math.isinf(C))
    sample_weight, weights = _sample_weight(rng, y)
    class_weight = "balanced" if rng.random() < 0.15 else None
    l1_ratio = 0.0 if rng.random() < 0.6 else float(rng.choice([1.0, rng.uniform(0.01, 0.99)]))
    tol = float(rng.choice([1e-4, 1e-6, 1e-8], p=[0.15, 0.65, 0.2]))
    dtype = "float32" if rng.random() < 0.15 else None
    penalty = "no penalty" if math.isinf(C) else f"C={C:.2g} l1_ratio={l1_ratio:.2g}"
    name = (
        f"{columns}; n={n} D={X.shape[1]} K={K}; {labels}; {penalty}; "
        f"{'' if fit_intercept else 'no intercept; '}{weights}"
        f"{'balanced; ' if class_weight else ''}tol={tol:.0e}{' float32 passes' if dtype else ''}"
    )
    return Problem(
        seed, name, X, y, C, l1_ratio, fit_intercept, sample_weight, class_weight, tol, dtype
    )


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _shape(rng: Generator) -> tuple[int, int]:
    K = round(_log_uniform(rng, 2, 30))
    return K, max(1, round(_log_uniform(rng, 1, min(100, NUMBERS // K - 1))))


def _samples(rng: Generator, kind: str, K: int) -> int:
    if kind in RARE and rng.random() < 0.5:
        return round(_log_uniform(rng, 3000, 20000))
    high = 20000 if rng.random() < 0.15 else 1500
    return max(2 * K, round(_log_uniform(rng, 10, high)))


def _strength(rng: Generator) -> float:
    return math.inf if rng.random() < 0.2 else _log_uniform(rng, 1e-6, 1e6)


# --- columns: each function returns X (n, about D) and its description ----------------------------


def _gaussian(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    return rng.normal(size=(n, D)), "Gaussian"


def _correlated(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    factors = max(1, D // 3)
    noise = _log_uniform(rng, 0.03, 1)
    X = rng.normal(size=(n, factors)) @ rng.normal(size=(factors, D))
    return X + noise * rng.normal(size=(n, D)), "correlated"


def _onehot(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    factors = min(int(rng.integers(1, 4)), D)
    kept = rng.random() < 0.5
    exponent = rng.uniform(1.3, 2)
    parts = []
    for part in np.array_split(np.arange(D), factors):
        levels = max(2, len(part) + (not kept))
        frequency = np.arange(1, levels + 1) ** -exponent
        level = rng.choice(levels, n, p=frequency / frequency.sum())
        parts.append(np.eye(levels)[level][:, : levels - (not kept)])
    return np.hstack(parts), f"one-hot {factors}x zipf {exponent:.1f}{' kept' * kept}"


def _binary(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    frequency = np.exp(rng.uniform(math.log(0.003), math.log(0.05), D))
    return (rng.random((n, D)) < frequency).astype(float), "rare 0/1"


def _counts(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    rate = np.exp(rng.uniform(math.log(0.05), math.log(50), D))
    return rng.poisson(rate, (n, D)).astype(float), "counts"


def _repeated(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    distinct = round(_log_uniform(rng, 5, 200))
    X = rng.normal(size=(distinct, D))
    if rng.random() < 0.5:
        X = np.round(X)
    frequency = np.arange(1, distinct + 1) ** -1.0
    return X[rng.choice(distinct, n, p=frequency / frequency.sum())], f"{distinct} distinct"


def _degenerate(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    """Return columns of which some are copies of others, constant or 0."""
    X = rng.normal(size=(n, D))
    for j in range(D):
        fate = rng.random()
        if fate < 0.15:
            X[:, j] = X[:, rng.integers(D)]
        elif fate < 0.25:
            X[:, j] = rng.normal()
        elif fate < 0.35:
            X[:, j] = 0
    return X, "copies, constants, zeros"


def _collinear(rng: Generator, n: int, D: int) -> tuple[Array, str]:
    X = rng.normal(size=(n, max(2, D)))
    distance = _log_uniform(rng, 1e-5, 1e-1)
    for j in range(1, X.shape[1], 2):
        X[:, j] = X[:, j - 1] + distance * X[:, j]
    return X, f"collinear up to {distance:.0e}"


def _sparse(rng: Generator, n: int, D: int) -> tuple[Any, str]:
    density = _log_uniform(rng, 0.01, 0.3)
    X = sparse.random(n, D, density, "csr", rng=rng, data_rvs=rng.standard_normal)
    if rng.random() < 0.25:
        X = sparse.csr_matrix(X @ sparse.diags(10 ** rng.uniform(-6, 6, D)))
        return X, f"sparse {density:.2f} scaled"
    return X, f"sparse {density:.2f}"


def _sparse_onehot(rng: Generator, n: int, D: int) -> tuple[Any, str]:
    X, name = _onehot(rng, n, D)
    return sparse.csr_matrix(X), f"sparse {name}"


def _sparse_binary(rng: Generator, n: int, D: int) -> tuple[Any, str]:
    X, name = _binary(rng, n, D)
    return sparse.csr_matrix(X), f"sparse {name}"


DENSE = {
    "gaussian": _gaussian,
    "correlated": _correlated,
    "onehot": _onehot,
    "binary": _binary,
    "counts": _counts,
    "repeated": _repeated,
    "degenerate": _degenerate,
    "collinear": _collinear,
}

KINDS = DENSE | {
    "sparse": _sparse,
    "sparse onehot": _sparse_onehot,
    "sparse binary": _sparse_binary,
}
"""Kinds of columns. Those in ``DENSE`` may be scaled and have an offset."""


def _changed(
    rng: Generator, X: Array, fit_intercept: bool, exact: bool
) -> tuple[NDArray[np.floating], str]:
    """Return X with offsets and scales of its columns, or in float32, and a description of that.

    Offsets are in units of the standard deviation. Without an intercept they are smaller, as a
    column with a large offset is almost constant. If ``exact``, nothing is rounded: collinear
    columns stay collinear, so that no rounding noise decides whether there is an optimum.
    """
    name = ""
    spread = np.where(X.std(0) > 0, X.std(0), 1)
    unit = 2.0 ** np.round(np.log2(spread))
    how = str(rng.choice(["as it is", "offset", "float32"], p=[0.68, 0.25, 0.07]))
    if how != "as it is" and exact:
        X = np.round(X / unit * 2**16) * unit / 2**16
    if how == "offset":
        # All columns have about the same offset, like years or temperatures in Kelvin.
        offset = _log_uniform(rng, 1, 1e6 if fit_intercept else 1e3)
        X = X + np.round(offset * rng.uniform(0, 1, X.shape[1]) * 4) / 4 * unit
        name += f" + offset {offset:.0e}"
    if rng.random() < 0.3:
        X = X * 2.0 ** rng.integers(-20, 21, X.shape[1])
        name += " x scales"
    if how == "float32":
        X, name = X.astype(np.float32), f"{name}, float32"
    return X, name


def _labels(rng: Generator, X: Any, K: int, mild: bool) -> tuple[NDArray[np.int64], str]:
    n = X.shape[0]
    how = str(rng.choice(["model", "random", "imbalanced"], p=[0.6, 0.15, 0.25]))
    shares = np.ones(K) / K
    if how == "imbalanced":
        shares = np.arange(1, K + 1) ** -rng.uniform(0.5, 2.0)
        shares /= shares.sum()
    z = np.tile(np.log(shares), (n, 1))
    name = how
    if how == "model" or (how == "imbalanced" and rng.random() < 0.5):
        strength = _log_uniform(rng, 0.1, 1 if mild else 30)
        dense = X.toarray() if sparse.issparse(X) else X
        spread = dense.std(0)
        columns = (dense - dense.mean(0)) / np.where(spread > 0, spread, 1)
        z += columns @ rng.normal(size=(X.shape[1], K)) * (strength / math.sqrt(X.shape[1]))
        name = f"{how} of strength {strength:.1f}"
    y = (z + rng.gumbel(size=z.shape)).argmax(1)
    y[rng.permutation(n)[:K]] = np.arange(K)  # every class occurs
    return y, name


def _sample_weight(rng: Generator, y: NDArray[np.int64]) -> tuple[Array | None, str]:
    n = len(y)
    how = str(
        rng.choice(
            ["", "random weights", "weights of 0", "weights to 1e12", "integer weights"],
            p=[0.5, 0.2, 0.1, 0.1, 0.1],
        )
    )
    if not how:
        return None, ""
    if how == "weights to 1e12":
        w = 10 ** rng.uniform(0, rng.uniform(2, 12), n)
    elif how == "integer weights":
        w = rng.poisson(3.0, n).astype(float)
    else:
        w = rng.uniform(0.1, 3, n)
    if how == "weights of 0":
        w[rng.random(n) < 0.4] = 0
    first = np.unique(y, return_index=True)[1]
    w[first] = np.maximum(w[first], 0.5)  # every class has weight
    return w, f"{how}; "
