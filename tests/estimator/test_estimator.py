"""SoftmaxClassifier finds the optimum of scikit-learn's LogisticRegression and behaves like it."""

import doctest
import math
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import sklearn
import torch
from comparison import exact, near, same_model, weights
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import softmax_torch
from softmax_torch import SoftmaxClassifier, estimator
from softmax_torch.solvers.problem import SOLVERS

sklearn_version = tuple(int(n) for n in sklearn.__version__.split(".")[:2])


@parametrize_with_checks([SoftmaxClassifier()])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # some checks raise warnings
        check(estimator)


@pytest.mark.skipif(
    sklearn_version < (1, 8), reason="scikit-learn has temperature scaling from 1.8 on"
)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("case", ["overlapping", "separable", "constant"])
def test_temperature_scaling_by_scikit_learn(case: str, classes: int) -> None:
    """Where no temperature is best, scikit-learn clips it; it must not stop for our estimator."""
    rng = np.random.default_rng(0)
    y = np.arange(30 * classes) % classes
    X = {"overlapping": 1.0, "separable": 100.0, "constant": 0.0}[case] * np.eye(4)[y]
    X = X + (case != "constant") * rng.normal(size=X.shape)
    w = weights(len(y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, about the weights of a FrozenEstimator
        ours, theirs = (
            CalibratedClassifierCV(FrozenEstimator(model.fit(X, y)), method="temperature").fit(
                X, y, sample_weight=w
            )
            for model in (exact(), LogisticRegression(tol=1e-10, max_iter=10_000))
        )
    ours_beta, theirs_beta = (
        model.calibrated_classifiers_[0].calibrators[0].beta_ for model in (ours, theirs)
    )
    assert 0 < ours_beta < math.exp(10.1)
    if case == "overlapping":
        assert ours_beta == pytest.approx(theirs_beta, rel=1e-3)
    assert ours.predict_proba(X) == pytest.approx(theirs.predict_proba(X), abs=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("name", ["iris", "wine", "digits", "breast cancer"])
def test_optimum_is_that_of_logistic_regression(
    name: str, class_weight: Any, weighted: bool, data: Any
) -> None:
    X, y = data[name]
    if isinstance(class_weight, dict):
        class_weight = {**dict.fromkeys(np.unique(y).tolist(), 1.0), **class_weight}
    w = weights(len(y)) if weighted else None
    given = {"C": 0.5, "class_weight": class_weight}
    if class_weight == "balanced" and weighted:
        # Before 1.7 scikit-learn ignored sample weights in "balanced".
        sums = np.bincount(y, w)
        given["class_weight"] = dict(enumerate(w.sum() / (len(sums) * sums)))
    theirs = LogisticRegression(**given, solver="newton-cg", tol=1e-9, max_iter=1000)
    theirs.fit(X, y, sample_weight=w)
    ours = exact(C=0.5, class_weight=class_weight).fit(X, y, sample_weight=w)
    same_model(ours, theirs)
    assert ours.coef_.shape == theirs.coef_.shape
    assert ours.intercept_.shape == theirs.intercept_.shape
    near(ours.predict_proba(X), theirs.predict_proba(X))
    near(ours.decision_function(X), theirs.decision_function(X))
    assert (ours.predict(X) == theirs.predict(X)).all()
    assert ours.score(X, y, w) == theirs.score(X, y, w)


@pytest.mark.skipif("proximal_newton" not in SOLVERS, reason="there is no solver for L1")
@pytest.mark.parametrize("l1_ratio", [0.5, 1.0])
@pytest.mark.parametrize("name", ["wine", "breast cancer"])
def test_sparse_optimum_is_that_of_logistic_regression(
    name: str, l1_ratio: float, data: Any
) -> None:
    X, y = data[name]
    theirs = LogisticRegression(C=0.1, l1_ratio=l1_ratio, solver="saga", tol=1e-9, max_iter=20000)
    theirs.fit(X, y)
    ours = SoftmaxClassifier(C=0.1, l1_ratio=l1_ratio, tol=1e-9).fit(X, y)
    same_model(ours, theirs)
    assert ((ours.coef_ == 0) == (theirs.coef_ == 0)).all()
    assert 0 <= ours.duality_gap_ <= 1e-9 * ours.objective_


@pytest.mark.parametrize("name", ["wine", "breast cancer"])
def test_no_intercept(name: str, data: Any) -> None:
    X, y = data[name]
    theirs = LogisticRegression(fit_intercept=False, solver="newton-cg", tol=1e-9).fit(X, y)
    ours = exact(fit_intercept=False).fit(X, y)
    same_model(ours, theirs)
    assert ours.intercept_.shape == theirs.intercept_.shape
    assert not ours.intercept_.any()


@pytest.mark.parametrize("name", ["iris", "breast cancer"])
def test_objective_and_gap_follow_their_definition(name: str, data: Any) -> None:
    X, y = data[name]
    w = weights(len(y))
    model = exact(C=0.1).fit(X, y, sample_weight=w)
    nll = -w @ model.predict_log_proba(X)[np.arange(len(y)), y] / w.sum()
    F = nll + (model.coef_**2).sum() / (2 * 0.1 * w.sum())
    assert model.objective_ == pytest.approx(F, rel=1e-12)
    assert 0 <= model.duality_gap_ <= 1e-12 * F
    assert model.n_iter_.shape == (1,)
    assert 1 <= model.n_iter_[0] <= 1000


@pytest.mark.parametrize("name", ["iris", "breast cancer"])
def test_whole_weights_are_repetitions(name: str, data: Any) -> None:
    X, y = data[name]
    times = np.random.default_rng(0).integers(0, 4, len(y))
    repeated = exact().fit(X.repeat(times, 0), y.repeat(times))
    same_model(exact().fit(X, y, sample_weight=times), repeated)
    per_class = {0: 2, 1: 3, 2: 1}
    times = np.array([per_class[k] for k in y])
    repeated = exact().fit(X.repeat(times, 0), y.repeat(times))
    same_model(exact(class_weight=per_class).fit(X, y), repeated)


def test_balanced_uses_sample_weights(data: Any) -> None:
    X, y = data["iris"]
    times = np.random.default_rng(0).integers(0, 4, len(y))
    balanced = exact(class_weight="balanced")
    repeated = clone(balanced).fit(X.repeat(times, 0), y.repeat(times))
    same_model(balanced.fit(X, y, sample_weight=times), repeated)


def test_a_class_of_weight_0_is_absent(data: Any) -> None:
    X, y = data["iris"]
    rest = y != 1
    alone = exact().fit(X[rest], y[rest])
    for model, w in [
        (exact(), rest.astype(float)),
        (exact(class_weight={0: 1, 1: 0, 2: 1}), None),
    ]:
        model.fit(X, y, sample_weight=w)
        assert model.classes_.tolist() == [0, 2]
        same_model(model, alone)


def test_order_of_classes_and_samples_does_not_matter(data: Any) -> None:
    X, y = data["wine"]
    model = exact().fit(X, y)
    order = np.random.default_rng(0).permutation(len(y))
    same_model(exact().fit(X[order], y[order]), model)
    renamed = exact().fit(X, np.array([2, 0, 1])[y])
    near(renamed.coef_[[2, 0, 1]], model.coef_)
    near(renamed.predict_proba(X)[:, [2, 0, 1]], model.predict_proba(X))
    X, y = data["breast cancer"]
    near(exact().fit(X, 1 - y).coef_, -exact().fit(X, y).coef_)


def test_clone_and_pickle(data: Any) -> None:
    X, y = data["iris"]
    model = exact(C=3.0, dtype=torch.float64, random_state=1).fit(X, y)
    assert clone(model).get_params() == model.get_params()
    assert not hasattr(clone(model), "coef_")
    again = pickle.loads(pickle.dumps(model))
    assert (again.predict_proba(X) == model.predict_proba(X)).all()


def test_search_over_a_pipeline(data: Any) -> None:
    X, y = load_wine(return_X_y=True)
    grid = {"softmaxclassifier__C": [1e-4, 1.0]}
    search = GridSearchCV(make_pipeline(StandardScaler(), SoftmaxClassifier()), grid, cv=3)
    search.fit(X, y)
    assert search.best_params_ == {"softmaxclassifier__C": 1.0}
    assert search.best_score_ > 0.97


@pytest.mark.parametrize("name", ["digits", "breast cancer"])
def test_warm_start(name: str, data: Any) -> None:
    X, y = data[name]
    cold = exact(C=1.1).fit(X, y)
    warm = exact(C=1.0, warm_start=True).fit(X, y)
    warm.set_params(C=1.1).fit(X, y)
    assert warm.n_iter_[0] < 0.8 * cold.n_iter_[0]
    same_model(warm, cold)
    warm.fit(X, y)
    assert warm.n_iter_[0] == 0
    # A solution for other classes or features is not used as a warm start.
    near(warm.fit(X, y == 1).coef_, exact(C=1.1).fit(X, y == 1).coef_)
    near(warm.fit(X[:, :9], y == 1).coef_, exact(C=1.1).fit(X[:, :9], y == 1).coef_)


def test_log_probabilities_are_finite_where_probabilities_are_0(data: Any) -> None:
    for name in ("iris", "breast cancer"):
        X, y = data[name]
        model = exact().fit(X, y)
        far = 1e4 * X[:5]
        assert (model.predict_proba(far) == 0).any()
        log_p = model.predict_log_proba(far)
        assert np.isfinite(log_p).all()
        assert log_p.min() < -1000
        near(np.exp(model.predict_log_proba(X)), model.predict_proba(X))


def test_random_state_draws_rows() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 30))  # more rows than are drawn, more coefficients than use all
    y = (X @ rng.normal(size=(30, 9)) + rng.normal(size=(4000, 9))).argmax(1)
    first, again, other = (exact(random_state=s).fit(X, y) for s in (0, 0, 1))
    assert (first.coef_ == again.coef_).all()
    assert (first.coef_ != other.coef_).any()
    same_model(other, first)
    default = exact().fit(X, y)
    np.random.rand()
    assert (default.coef_ == exact().fit(X, y).coef_).all()
    drawn = exact(random_state=np.random.RandomState(0)).fit(X, y)
    assert (drawn.coef_ == first.coef_).all()


def test_no_penalty(data: Any) -> None:
    X, y = data["iris"]
    with pytest.raises(ValueError, match="column 2 separates class 0 from class 1"):
        exact(C=math.inf).fit(X[:100], y[:100])
    X, y = X[50:], y[50:]
    model = exact(C=math.inf).fit(X, y)
    assert 0 <= model.duality_gap_ <= 1e-12 * model.objective_
    theirs = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    near(model.coef_, theirs.coef_)


def test_the_convergence_warning_points_at_the_call_of_fit(data: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter was reached first") as caught:
        model = SoftmaxClassifier(max_iter=2).fit(*data["iris"])
    assert [str(w.filename) for w in caught] == [__file__]
    assert model.n_iter_[0] == 2


@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_solvers_agree(solver: str, data: Any) -> None:
    same_model(exact(solver=solver).fit(*data["wine"]), exact().fit(*data["wine"]))


def test_the_class_is_imported_lazily() -> None:
    assert "SoftmaxClassifier" in dir(softmax_torch)
    assert softmax_torch.SoftmaxClassifier is estimator.SoftmaxClassifier
    with pytest.raises(AttributeError, match="no attribute 'Softmax'"):
        softmax_torch.Softmax  # noqa: B018


@pytest.mark.slow
def test_without_scikit_learn_the_extra_is_named() -> None:
    code = """
import sys
import softmax_torch

sys.modules["sklearn"] = None
assert "SoftmaxClassifier" not in dir(softmax_torch)
try:
    softmax_torch.SoftmaxClassifier
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "scikit-learn 1.6 or later: pip install 'softmax-torch[sklearn]'" in done.stdout


def test_doctest() -> None:
    result = doctest.testmod(estimator)
    assert result.attempted >= 4
    assert result.failed == 0
