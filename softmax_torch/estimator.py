"""A scikit-learn classifier with the parameters and attributes of ``LogisticRegression``.

    F(W, b) = 1/S sum_i w_i nll_i  +  1/(C S) ((1 - l1_ratio)/2 ||W||^2 + l1_ratio ||W||_1)

with S = sum_i w_i. For two classes scikit-learn has one row w in place of W, with logits
(0, w.x + b), and penalizes w. The loss depends on w = W_1 - W_0 alone. So the problem with two rows
has the same optimum if its penalty satisfies

    min over W_1 - W_0 = w  of  l2' / 2 ||W||^2 + l1' ||W||_1  =  l2 / 2 ||w||^2 + l1 ||w||_1

The minimum is at W = (-w/2, w/2), where the left side is l2'/4 ||w||^2 + l1' ||w||_1. Hence
l2' = 2 l2 and l1' = l1.

>>> from sklearn.datasets import load_iris
>>> X, y = load_iris(return_X_y=True)
>>> model = SoftmaxClassifier(C=1.0).fit(X, y)
>>> model.coef_.shape, round(model.score(X, y), 3), model.duality_gap_ < 1e-8
((3, 4), 0.973, True)
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

try:
    from scipy.sparse import csr_matrix
    from scipy.special import log_softmax, softmax
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils import check_array, check_random_state
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "SoftmaxClassifier needs scikit-learn 1.6 or later: pip install 'softmax-torch[sklearn]'"
    ) from error

from softmax_torch.solvers.conversion import refuse_masked, refuse_unreal
from softmax_torch.solvers.fit import Solution, minimize
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.problem import check_fit_options, make_solver, objective_of

__all__ = ["SoftmaxClassifier"]


class SoftmaxClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # bases without types
    """A classifier with the parameters and the optimum of scikit-learn's ``LogisticRegression``.

    Args:
        C: inverse strength of the penalty; ``math.inf`` for none.
        l1_ratio: share of the L1 norm in the penalty, in [0, 1].
        fit_intercept: whether there is an intercept; it is not penalized.
        class_weight: a dict from labels to weights, "balanced" or None.
        tol: relative duality gap to reach (see ``solvers.fit``). On the data sets of scikit-learn
            probabilities are accurate to 5e-5 with tol = 1e-6, to 1e-5 with 1e-8 and to 1e-7 with
            1e-12. On MNIST these take 36, 40 and 71 passes: below 1e-9 passes must be in float64.
        max_iter: outer iterations at most.
        warm_start: start from the last solution, if it has the same classes and number of features.
        random_state: seed or generator for the draw of rows for preconditioners, if there are
            thousands of rows. Only the last digits of the answer depend on it, so None stands for
            a fixed seed.
        solver: "lbfgs", "newton" or "gradient_descent"; with L1 "proximal_newton"; or "auto".
        device: where to fit, such as "cuda"; None for the CPU. Predictions are made on the CPU.
        dtype: dtype of the passes, torch.float32, torch.float64 or their names; None for float32,
            or float64 if X is small.

    Attributes:
        classes_: sorted labels (K,). For K = 2 the shapes below have 1 in place of K.
        coef_: weight (K, D), float32 if X was float32 and float64 otherwise.
        intercept_: bias (K,).
        objective_: F as above; for two classes with the penalty of w.
        duality_gap_: an upper bound on ``objective_`` minus its minimum.
        n_iter_: number of outer iterations (1,).
        n_features_in_: number of features D.
        feature_names_in_: names of the columns of X (D,), if they are strings.
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        tol: float = 1e-8,
        max_iter: int = 1000,
        warm_start: bool = False,
        random_state: Any = None,
        solver: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.random_state = random_state
        self.solver = solver
        self.device = device
        self.dtype = dtype

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Find the optimum for X (n, D) with labels y (n,), and return self.

        Samples whose weight times class weight is 0 are ignored: a class without other samples is
        not in ``classes_``.

        Args:
            X: an array, a tensor, a frame or a sparse matrix of floats, whole numbers or booleans,
                with magnitudes of at most 1e15.
            y: labels, numbers or strings.
            sample_weight: weights (n,) or one number, >= 0; None for ones.

        Raises:
            ValueError, TypeError: an argument cannot be used; the message says what was expected
                and what was given.

        Warns:
            sklearn.exceptions.ConvergenceWarning: the fit ended before ``tol`` was reached.
        """
        C, l1_ratio, tol, max_iter = check_fit_options(
            self.C, self.l1_ratio, self.tol, self.max_iter, self.solver
        )
        X, y = validate_data(self, _from_torch("X", X), _from_torch("y", y), accept_sparse="csr")
        check_classification_targets(y)
        weight = self._weight(y, _from_torch("sample_weight", sample_weight))
        if weight is not None and not weight.all():
            kept = weight > 0
            X, y, weight = X[kept], y[kept], weight[kept]
        classes, target = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                "y: expected at least 2 classes with samples of weight > 0, got 1 class: "
                f"{classes[0]}"
            )
        balanced = "balanced" if self._balanced() else None
        objective = objective_of(
            X, target, self.fit_intercept, weight, balanced, self.device, self.dtype
        )
        penalty = Penalty.of_strength(C, l1_ratio, objective.total)
        if len(classes) == 2:
            penalty = penalty._replace(l2=2 * penalty.l2)
        theta = self._start(objective, classes)
        solver = make_solver(self.solver, objective, penalty, theta, self._seed())
        self._set_attributes(
            minimize(solver, tol, max_iter, category=ConvergenceWarning),
            np.float32 if X.dtype == np.float32 else np.float64,
        )
        self.classes_ = classes
        return self

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return logits (n, K); for two classes w.x + b (n,), above 0 for ``classes_[1]``."""
        check_is_fitted(self)
        X = validate_data(self, _from_torch("X", X), accept_sparse="csr", reset=False)
        scores: NDArray[Any] = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable label of each row (n,)."""
        scores = self.decision_function(X)
        index = scores.argmax(1) if scores.ndim == 2 else (scores > 0).astype(np.intp)
        labels: NDArray[Any] = self.classes_[index]
        return labels

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return class probabilities (n, K), in the order of ``classes_``."""
        probabilities: NDArray[Any] = softmax(self._logits(X), axis=1)
        return probabilities

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Return log-probabilities (n, K), which are finite even where probabilities round to 0."""
        log_probabilities: NDArray[Any] = log_softmax(self._logits(X), axis=1)
        return log_probabilities

    def _logits(self, X: Any) -> NDArray[Any]:
        scores = self.decision_function(X)
        return scores if scores.ndim == 2 else np.stack([np.zeros_like(scores), scores], 1)

    def _weight(self, y: NDArray[Any], sample_weight: Any) -> NDArray[np.float64] | None:
        """Return sample weight times class weight (n,), or None; "balanced" is applied later."""
        weight = None
        if sample_weight is not None:
            weight = _checked_weight(sample_weight, len(y))
        if isinstance(self.class_weight, dict):
            labels, index = np.unique(y, return_inverse=True)
            per_label = compute_class_weight(self.class_weight, classes=labels, y=y)
            per_sample = _checked_weight(per_label[index], len(y), "class_weight")
            weight = per_sample if weight is None else weight * per_sample
        elif not (self.class_weight is None or self._balanced()):
            raise ValueError(
                f'class_weight: expected a dict, "balanced" or None, got {self.class_weight!r}'
            )
        if weight is not None and not weight.any():
            raise ValueError(
                "sample_weight and class_weight: expected a weight > 0 for some samples, got zeros"
            )
        return weight

    def _balanced(self) -> bool:
        return isinstance(self.class_weight, str) and self.class_weight == "balanced"

    def _start(self, objective: Objective, classes: NDArray[Any]) -> Tensor:
        """Return theta of the last solution if it can be a warm start, otherwise zeros."""
        theta = objective.zeros()
        if not (self.warm_start and hasattr(self, "coef_")):
            return theta
        if self.coef_.shape[1] == objective.samples.d and np.array_equal(self.classes_, classes):
            W, b = torch.from_numpy(self.coef_), torch.from_numpy(self.intercept_)
            if len(W) == 1:
                W, b = torch.cat([-W, W]) / 2, torch.cat([-b, b]) / 2
            theta = objective.theta_of(W, b)
        return theta

    def _seed(self) -> int:
        if self.random_state is None:
            return 0
        return int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))

    def _set_attributes(self, solution: Solution, dtype: type[np.floating[Any]]) -> None:
        W, b = solution.weight.cpu(), solution.bias.cpu()
        if len(W) == 2:
            W, b = W[1:] - W[:1], b[1:] - b[:1]
        self.coef_ = W.numpy().astype(dtype, copy=False)
        self.intercept_ = b.numpy().astype(dtype, copy=False)
        self.objective_ = solution.objective
        self.duality_gap_ = solution.duality_gap
        self.n_iter_ = np.array([solution.iterations], np.int32)


def _from_torch(name: str, given: Any) -> Any:
    """Return a tensor as an array or a scipy CSR matrix, on the CPU and without its gradient.

    Anything else is returned as it is. Masked arrays with masked entries raise ValueError, because
    scikit-learn would use the entries under the mask.
    """
    refuse_masked(name, given)
    if not isinstance(given, Tensor):
        return given
    refuse_unreal(name, given)
    x = given.detach().cpu()
    if x.layout != torch.strided:
        x = x.to_sparse_csr()
        parts = x.values().numpy(), x.col_indices().numpy(), x.crow_indices().numpy()
        return csr_matrix(parts, shape=tuple(x.shape))
    # numpy has no bfloat16 and no float8
    small = x.dtype.is_floating_point and x.dtype not in (torch.float16, torch.float64)
    return (x.float() if small else x).numpy()


def _checked_weight(given: Any, n: int, name: str = "sample_weight") -> NDArray[np.float64]:
    """Return weights (n,), float64; raise ValueError if one is negative or the shape is wrong."""
    if np.asarray(given).ndim == 0:
        given = np.full(n, given)
    weight: NDArray[np.float64] = check_array(
        given, ensure_2d=False, dtype=np.float64, input_name=name
    )
    if weight.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), got {weight.shape}")
    if weight.min() < 0:
        raise ValueError(f"{name}: expected numbers >= 0, got {weight.min()}")
    return weight
