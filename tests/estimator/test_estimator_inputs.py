"""Samples, labels, weights and parameters that SoftmaxClassifier accepts and refuses."""

from typing import Any

import numpy as np
import pytest
import torch
from comparison import exact, near, same_model, weights
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits

from softmax_torch import SoftmaxClassifier, estimator


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
def test_refused_parameters(params: Any, error: Any, message: str, data: Any) -> None:
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
def test_refused_weights(sample_weight: Any, message: str, data: Any) -> None:
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


def test_refused_samples(data: Any) -> None:
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
