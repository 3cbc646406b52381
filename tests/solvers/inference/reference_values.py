"""Problems and reference values of the tests of inference: R's, and Stata's from statsmodels.

The problems are three data sets that statsmodels ships, and three that a formula makes: with
clusters, and with a class that a feature separates. Their features and classes:

    anes96       party (7) by 5 features of 944 voters; American National Election Study of 1996
    spector      whether the grade improved (2) by 3 features, one of them 0 or 1, of 32 students
    fair         rating of the marriage (5) by 7 features of 6366 women (Fair 1978)
    affair       whether there was an affair (2) by 8 features of the same women
    clustered    3 features and 4 classes, 300 samples in 60 groups of unequal size
    separated2   2 features and 2 classes, 40 samples; the classes are quasi-separated
    separated3   2 features and 3 classes, 60 samples; the classes are quasi-separated

``values(problem)`` returns what reference_values.R wrote into r_values.json. To make that file
again, from this folder, with R and the Debian packages r-cran-{nnet,vgam,sandwich,brglm2,effects,
jsonlite,numderiv}:

    python reference_values.py /tmp/problems && Rscript reference_values.R /tmp/problems

Each entry holds the R calls that made it; "packages" holds the versions. Arrays are as in
``Inference``: rows are the classes but the first, columns the features and then the intercept, and
a covariance is that of the coefficients row by row. Compare its entries relative to the diagonal:
those near 0 hold fewer digits. VGAM's values hold about 8 digits, multinom's 5 (quasi-Newton).

stata_values.json holds Stata's numbers, as statsmodels 0.15.0 (BSD licence) stores them in
statsmodels/discrete/tests/results/results_discrete.py: ``Anes.mnlogit_basezero`` and
``Spector.logit``, with the names that they have there.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["PROBLEMS", "Problem", "problem", "stata", "values", "write"]

Array = NDArray[Any]
PROBLEMS = ["anes96", "spector", "fair", "affair", "clustered", "separated2", "separated3"]
HERE = Path(__file__).parent


class Problem(NamedTuple):
    """Samples X (n, D), classes y (n,), the names of the features, and groups (n,) or None."""

    X: Array
    y: Array
    features: list[str]
    groups: Array | None = None


@cache
def problem(name: str) -> Problem:
    """Return the problem with this name."""
    if name == "anes96":
        return _shipped("anes96", ["logpopul", "selfLR", "age", "educ", "income"], "PID")
    if name == "spector":
        return _shipped("spector", ["GPA", "TUCE", "PSI"], "GRADE")
    women = ["age", "yrs_married", "children", "religious", "educ", "occupation", "occupation_husb"]
    if name == "fair":
        made = _shipped("fair", women, "rate_marriage")
        return made._replace(y=made.y - 1)
    if name == "affair":
        made = _shipped("fair", ["rate_marriage", *women], "affairs")
        return made._replace(y=(made.y > 0).astype(np.int64))
    return {"clustered": _clustered, "separated2": _separated2, "separated3": _separated3}[name]()


def values(name: str) -> dict[str, Any]:
    """Return R's values for this problem; lists of numbers as arrays."""
    return _read("r_values.json")[name]


def stata(name: str) -> dict[str, Any]:
    """Return Stata's values for "anes96" or "spector"; lists of numbers as arrays."""
    return _read("stata_values.json")[name]


@cache
def _read(file: str) -> dict[str, Any]:
    return {name: _arrays(entry) for name, entry in json.loads((HERE / file).read_text()).items()}


def _arrays(entry: Any) -> Any:
    if isinstance(entry, dict):
        return {name: _arrays(value) for name, value in entry.items()}
    return np.array(entry) if isinstance(entry, list) else entry


def _shipped(name: str, features: list[str], target: str) -> Problem:
    from statsmodels import datasets

    frame = getattr(datasets, name).load_pandas().data
    X = frame[features].to_numpy(np.float64)
    values = frame[target].to_numpy()
    return Problem(X, values if target == "affairs" else values.astype(np.int64), features)


def _weyl(n: int, irrational: float) -> Array:
    """Return the fractional parts of multiples of a number (n,): evenly spread in [0, 1)."""
    return np.arange(1, n + 1) * irrational % 1


def _draw(z: Array, u: Array) -> Array:
    """Return classes (n,) with probabilities softmax(z), chosen by u (n,) in [0, 1)."""
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return (u[:, None] > p.cumsum(1)[:, :-1]).sum(1)


def _thousandths(values: Array) -> Array:
    return np.floor(1000 * values) / 1000


def _clustered() -> Problem:
    """Return classes that depend on an effect of the group, which no feature tells.

    Group g has 3 to 7 samples; its second feature is the same for all of them.
    """
    sizes = 3 + np.arange(60) * 3 % 5
    groups = np.repeat(np.arange(60), sizes)
    n = len(groups)
    X = np.stack(
        [
            _thousandths(4 * _weyl(n, 2**0.5) - 2),
            _thousandths(2 * np.sin(2.4 * groups)),
            np.floor(2 * _weyl(n, 3**0.5)),
        ],
        1,
    )
    effect = 1.5 * np.sin(np.outer(1 + groups, [1.0, 1.7, 2.9, 0.6]))
    z = X @ np.array([[0.0, 0.6, -0.4, 0.3], [0.0, 0.2, 0.5, -0.3], [0.0, -0.5, 0.4, 0.8]]) + effect
    return Problem(X, _draw(z, _weyl(n, 5**0.5)), ["x1", "x2", "x3"], groups)


def _separated2() -> Problem:
    """Return classes of which one has all samples whose second feature is 1."""
    x, b = _thousandths(4 * _weyl(40, 2**0.5) - 2), np.floor(1.3 * _weyl(40, 3**0.5))
    y = _draw(np.stack([0 * x, 0.8 * x - 0.3], 1), _weyl(40, 7**0.5))
    return Problem(np.stack([x, b], 1), np.where(b == 1, 1, y), ["x1", "x2"])


def _separated3() -> Problem:
    """Return three classes; class 2 has all samples whose second feature is 1."""
    x, b = _thousandths(4 * _weyl(60, 2**0.5) - 2), np.floor(1.3 * _weyl(60, 3**0.5))
    y = _draw(np.stack([0 * x, 0.8 * x - 0.3, 0.2 - 0.6 * x], 1), _weyl(60, 7**0.5))
    return Problem(np.stack([x, b], 1), np.where(b == 1, 2, y), ["x1", "x2"])


def write(folder: Path) -> None:
    """Write a CSV file a problem: features, y, and group where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PROBLEMS:
        X, y, features, groups = problem(name)
        columns = [X, y[:, None]] + ([] if groups is None else [groups[:, None]])
        header = [*features, "y"] + ([] if groups is None else ["group"])
        np.savetxt(
            folder / f"{name}.csv",
            np.hstack(columns),
            "%.17g",
            ",",
            header=",".join(header),
            comments="",
        )


if __name__ == "__main__":
    write(Path(sys.argv[1]))
