"""SoftmaxClassifier is scikit-learn's LogisticRegression in all that one can see of it."""

import doctest
import math
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import softmax_torch
from softmax_torch import SoftmaxClassifier, estimator
from softmax_torch.solvers.problem import SOLVERS

NEAR = 1e-6


def exact(**params: Any) -> SoftmaxClassifier:
    """One to be compared to ``NEAR``."""
    return SoftmaxClassifier(tol=1e-12, **params)


@parametrize_with_checks([SoftmaxClassifier()])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # the checks provoke some
        check(estimator)


def standardised(load: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    X, y = load_digits(return_X_y=True)
    return {
        "iris": load_iris(return_X_y=True),
        "wine": standardised(load_wine),
        "digits": (X / 16, y),
        "breast cancer": standardised(load_breast_cancer),
    }


def weights(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 3, n)


def near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=NEAR * max(1.0, np.abs(b).max()))


def same_model(a: Any, b: Any) -> None:
    """Coefficients are the same; intercepts of several classes up to a common number."""
    near(a.coef_, b.coef_)
    centre = len(a.intercept_) > 1
    near(a.intercept_ - centre * a.intercept_.mean(), b.intercept_ - centre * b.intercept_.mean())


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
        # Before 1.7 scikit-learn counted samples for this, whatever they weigh.
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
def test_figures_are_those_of_the_objective(name: str, data: Any) -> None:
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


def test_balanced_counts_what_samples_weigh(data: Any) -> None:
    X, y = data["iris"]
    times = np.random.default_rng(0).integers(0, 4, len(y))
    balanced = exact(class_weight="balanced")
    repeated = clone(balanced).fit(X.repeat(times, 0), y.repeat(times))
    same_model(balanced.fit(X, y, sample_weight=times), repeated)


def test_a_class_that_weighs_nothing_is_absent(data: Any) -> None:
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


def test_order_of_classes_and_samples_is_of_no_account(data: Any) -> None:
    X, y = data["wine"]
    model = exact().fit(X, y)
    order = np.random.default_rng(0).permutation(len(y))
    same_model(exact().fit(X[order], y[order]), model)
    renamed = exact().fit(X, np.array([2, 0, 1])[y])
    near(renamed.coef_[[2, 0, 1]], model.coef_)
    near(renamed.predict_proba(X)[:, [2, 0, 1]], model.predict_proba(X))
    X, y = data["breast cancer"]
    near(exact().fit(X, 1 - y).coef_, -exact().fit(X, y).coef_)


@pytest.mark.parametrize("name", ["iris", "breast cancer"])
def test_labels_may_be_strings(name: str, data: Any) -> None:
    X, y = data[name]
    model = exact().fit(X, y)
    names = np.array(["b", "c", "d"], dtype=object)
    named = exact(class_weight={"b": 1, "c": 1, "d": 1}).fit(X, names[y])
    assert named.classes_.tolist() == names[np.unique(y)].tolist()
    assert (named.coef_ == model.coef_).all()
    assert (named.predict(X) == names[model.predict(X)]).all()


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csr_matrix, sparse.coo_array])
def test_sparse_is_as_dense(form: Any, data: Any) -> None:
    X, y = data["digits"]
    w = weights(len(y)).round()
    dense = exact().fit(X, y, sample_weight=w)
    model = exact().fit(form(X), y, sample_weight=w)
    same_model(model, dense)
    for method in ("predict", "predict_proba", "predict_log_proba", "decision_function"):
        result = getattr(model, method)(form(X))
        assert type(result) is np.ndarray
        near(result, getattr(model, method)(X))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(library: str, data: Any) -> None:
    frames = pytest.importorskip(library)
    X, y = data["iris"]
    names = [f"x{i}" for i in range(4)]
    frame = frames.DataFrame(dict(zip(names, X.T, strict=True)))
    labels = frames.Series(["a" if k else "b" for k in y])
    w = frames.Series(weights(len(y)))
    model = exact().fit(frame, labels, sample_weight=w)
    assert model.feature_names_in_.tolist() == names
    alone = exact().fit(X, labels.to_numpy(), sample_weight=w.to_numpy())
    same_model(model, alone)
    near(model.predict_proba(frame), alone.predict_proba(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame[names[::-1]])


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
    # The last solution is no start for other classes or features.
    near(warm.fit(X, y == 1).coef_, exact(C=1.1).fit(X, y == 1).coef_)
    near(warm.fit(X[:, :9], y == 1).coef_, exact(C=1.1).fit(X[:, :9], y == 1).coef_)


def test_log_probabilities_are_finite_where_probabilities_are_not_there(data: Any) -> None:
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
    X = rng.normal(size=(4000, 30))  # more rows than are drawn, and coefficients than use them all
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


DTYPES = [np.float64, np.float32, np.float16, np.uint8, np.int64, bool]


@pytest.mark.parametrize(
    ("form", "given"),
    [(np.asarray, dtype) for dtype in DTYPES]
    + [(sparse.csr_array, dtype) for dtype in DTYPES if dtype != np.float16],  # not in scipy
)
def test_types_of_numbers(form: Any, given: Any) -> None:
    X, y = load_digits(return_X_y=True)
    X, y = (X[:300] > 8).astype(given), y[:300]
    model = exact().fit(form(X), y)
    near(model.coef_, exact().fit(X.astype(np.float64), y).coef_)
    expected = np.float32 if given == np.float32 else np.float64
    assert model.coef_.dtype == model.intercept_.dtype == expected
    for method in ("predict_proba", "predict_log_proba", "decision_function"):
        assert getattr(model, method)(form(X)).dtype == expected


def test_data_are_not_changed_nor_copied(data: Any) -> None:
    X, y = data["digits"]
    X, w = X.copy(), weights(len(y))
    copies = X.copy(), w.copy()
    seen = []
    original = estimator.objective_of

    def spy(X: Any, *rest: Any) -> Any:
        seen.append(X)
        return original(X, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimator, "objective_of", spy)
        exact().fit(X, y, sample_weight=w)
    assert np.shares_memory(seen[0], X)
    assert original(seen[0], y, True, None, None, None, None).samples.X.data_ptr() == X.ctypes.data
    assert (X == copies[0]).all()
    assert (w == copies[1]).all()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"C": 0}, ValueError, "C: expected a number above 0 .* got 0"),
        ({"C": "1"}, TypeError, "C: expected a number, got '1'"),
        ({"C": 1e-40}, ValueError, "C: expected C times the sum of the weights to be at least 1e-"),
        ({"C": 10**400}, ValueError, "C: expected a number that a float can hold"),
        ({"tol": None}, TypeError, "tol: expected a number, got None"),
        ({"max_iter": 10.5}, ValueError, "max_iter: expected a whole number, got 10.5"),
        ({"max_iter": 0}, ValueError, "max_iter: expected at least 1, got 0"),
        ({"l1_ratio": 2}, ValueError, "l1_ratio: expected a number in"),
        ({"solver": "liblinear"}, ValueError, "solver: expected auto, lbfgs.*; got 'liblinear'"),
        ({"class_weight": "even"}, ValueError, 'class_weight: expected a dict, "balanced" or'),
        ({"class_weight": np.ones(3)}, ValueError, 'class_weight: expected a dict, "balanced" or'),
        ({"class_weight": {0: 1, 9: 1}}, ValueError, r"classes, \[1, 2\], are not in class_weight"),
        ({"class_weight": {0: -1, 1: 1, 2: 1}}, ValueError, "class_weight: expected numbers >= 0"),
        ({"class_weight": {0: 0, 1: 0, 2: 0}}, ValueError, "class_weight: expected a weight > 0"),
        ({"class_weight": {0: 0, 1: 0, 2: 1}}, ValueError, "at least 2 classes .* got 1 class: 2"),
        ({"dtype": torch.float16}, ValueError, "dtype: expected torch.float32"),
        ({"dtype": "half"}, ValueError, "dtype: expected torch.float32, .* got 'half'"),
        ({"random_state": "a"}, ValueError, "cannot be used to seed"),
    ],
)
def test_parameters_that_cannot_be(params: Any, error: Any, message: str, data: Any) -> None:
    with pytest.raises(error, match=message):
        SoftmaxClassifier(**params).fit(*data["iris"])


@pytest.mark.parametrize(
    ("sample_weight", "message"),
    [
        (np.zeros(150), "expected a weight > 0 for some samples, got zeros"),
        (-1.0, "sample_weight: expected numbers >= 0, got -1"),
        (np.r_[np.ones(149), -2], "sample_weight: expected numbers >= 0, got -2"),
        (np.r_[np.ones(149), np.nan], "sample_weight contains NaN"),
        (np.full(150, 1e308), r"sample_weight: expected weights with a sum from 1e-30 to 1e\+30"),
        (np.ones(149), r"sample_weight: expected shape \(150,\), got \(149,\)"),
        (np.ones((150, 1)), r"sample_weight: expected shape \(150,\), got \(150, 1\)"),
    ],
)
def test_weights_that_cannot_be(sample_weight: Any, message: str, data: Any) -> None:
    with pytest.raises(ValueError, match=message):
        exact().fit(*data["iris"], sample_weight=sample_weight)


@pytest.mark.parametrize("number", [float, np.float16, np.array, torch.tensor])
def test_one_number_weighs_all_samples(number: Any, data: Any) -> None:
    X, y = data["iris"]
    heavy = exact(C=0.5).fit(X, y, sample_weight=number(2.0))
    same_model(heavy, exact(C=1.0).fit(X, y))


@pytest.mark.parametrize("number", [np.float16, torch.tensor])
def test_numbers_of_any_type(number: Any, data: Any) -> None:
    """In float16 C times 150 samples is infinite."""
    X, y = data["iris"]
    params = {"C": number(1000.0), "l1_ratio": number(0.0), "max_iter": np.int16(500)}
    same_model(exact(**params).fit(X, y), exact(C=1000.0).fit(X, y))
    model = exact(**params, dtype="float64").fit(X, y)
    assert clone(model).get_params() == model.get_params()


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize(
    "form",
    [
        torch.clone,
        lambda x: x.clone().requires_grad_(),
        lambda x: x.float(),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: x.to(torch.uint8),
        lambda x: x.to_sparse(),
        lambda x: x.clone().requires_grad_().to_sparse_csr(),
    ],
)
def test_tensors(form: Any, data: Any) -> None:
    X, y = load_digits(return_X_y=True)  # whole numbers up to 16, which all these types hold
    X, y = X[:300], y[:300]
    w = weights(300).astype(np.float32)
    model = exact(C=1e-3).fit(X, y, w)
    x = form(torch.from_numpy(X))
    ours = exact(C=1e-3).fit(x, torch.from_numpy(y), torch.from_numpy(w).requires_grad_())
    same_model(ours, model)
    near(ours.predict_proba(x), model.predict_proba(X))
    near(ours.predict_log_proba(x), model.predict_log_proba(X))
    assert (ours.predict(x) == model.predict(X)).all()
    assert ours.score(x, y) == model.score(X, y)


def test_frames_of_mixed_columns() -> None:
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    rng = np.random.default_rng(0)
    columns = {"x": rng.normal(size=200), "old": rng.random(200) < 0.5, "n": np.arange(200) % 5}
    X = np.stack([column.astype(float) for column in columns.values()], 1)
    y = (X @ [1, 1, 0.2] + rng.normal(size=200) > 1).astype(int)
    expected = exact().fit(X, y)
    frame = pandas.DataFrame(columns)
    nullable = frame.convert_dtypes()
    for given in (frame, nullable, frame.astype({"n": "category"}), polars.DataFrame(columns)):
        same_model(exact().fit(given, pandas.Series(y, dtype="Int64")), expected)
    nullable.loc[3, "old"] = pandas.NA
    with pytest.raises(ValueError, match="X contains NaN"):
        exact().fit(nullable, y)


def test_samples_that_cannot_be(data: Any) -> None:
    X, y = data["iris"]
    model = exact().fit(X, y)
    with pytest.raises(ValueError, match=r"X has 3 features, but SoftmaxClassifier .* 4 features"):
        model.predict(X[:, :3])
    with pytest.raises(ValueError, match="X contains NaN"):
        model.fit(np.where(X > 7, np.nan, X), y)
    with pytest.raises(ValueError, match=r"got 1e\+20 in column 0; drop the column if"):
        model.fit(np.where(X > 7, 1e20, X), y)
    masked = np.ma.masked_array(X, X > 7)
    for method in (lambda X: model.fit(X, y), model.predict):
        with pytest.raises(ValueError, match="no missing values, got masked entries in column 0"):
            method(masked)
    with pytest.raises(TypeError, match=r"X: expected real numbers, got torch\.complex128"):
        model.fit(torch.from_numpy(X) + 1j, y)
    with pytest.raises(ValueError, match="got 1 class: a"):
        model.fit(X, ["a"] * 150)
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        model.fit(X, X[:, 0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        model.fit(X, y[1:])


def test_no_penalty(data: Any) -> None:
    X, y = data["iris"]
    with pytest.raises(ValueError, match="column 2 separates class 0 from class 1"):
        exact(C=math.inf).fit(X[:100], y[:100])
    X, y = X[50:], y[50:]
    model = exact(C=math.inf).fit(X, y)
    assert 0 <= model.duality_gap_ <= 1e-12 * model.objective_
    theirs = LogisticRegression(C=math.inf, solver="newton-cholesky", tol=1e-12).fit(X, y)
    near(model.coef_, theirs.coef_)


def test_ending_early_is_warned_of_where_fit_was_called(data: Any) -> None:
    with pytest.warns(ConvergenceWarning, match="max_iter was reached first") as caught:
        model = SoftmaxClassifier(max_iter=2).fit(*data["iris"])
    assert [str(w.filename) for w in caught] == [__file__]
    assert model.n_iter_[0] == 2


@pytest.mark.parametrize("solver", ["lbfgs", "newton"])
def test_solvers_agree(solver: str, data: Any) -> None:
    same_model(exact(solver=solver).fit(*data["wine"]), exact().fit(*data["wine"]))


def test_the_name_comes_when_it_is_asked_for() -> None:
    assert "SoftmaxClassifier" in dir(softmax_torch)
    assert softmax_torch.SoftmaxClassifier is estimator.SoftmaxClassifier
    with pytest.raises(AttributeError, match="no attribute 'Softmax'"):
        softmax_torch.Softmax  # noqa: B018


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
