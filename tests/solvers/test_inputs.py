"""The same answer from every form of data; what cannot be used is refused, and says so."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray

from softmax_torch.solvers import Solution, fit, inputs, samples

Array = NDArray[Any]
N, D = 300, 12


def data(sparse: bool = False) -> tuple[Array, Array]:
    """Whole numbers, which every type holds exactly; a third of them 0, or nine in ten."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 50, (N, D)) * (rng.random((N, D)) < (0.1 if sparse else 0.7))
    y = (X @ rng.normal(size=(D, 4)) + 30 * rng.normal(size=(N, 4))).argmax(1)
    return X.astype(np.float64), y


def solved(X: Any, y: Any, **options: Any) -> Solution:
    return fit(X, y, **({"C": 1e-3, "tol": 1e-10} | options))


def memmap(X: Array, folder: Path) -> Array:
    mapped = np.memmap(folder / "x.bin", dtype=np.float32, mode="w+", shape=X.shape)
    mapped[:] = X
    return np.memmap(folder / "x.bin", dtype=np.float32, mode="r", shape=X.shape)


def read_only(X: Array) -> Array:
    X = X.copy()
    X.flags.writeable = False
    return X


class Blocks:
    """Reads its rows anew each time."""

    def __init__(self, X: Array) -> None:
        self.X = X

    def __iter__(self) -> Iterator[Array]:
        return iter(np.array_split(self.X, 7))


def untidy(X: Array) -> Any:
    """CSR with entries out of order and split in two, and an explicit 0."""
    coo = scipy.sparse.coo_array(X)
    data = np.concatenate([coo.data - 1, np.ones(coo.nnz), [0.0]])
    row, column = (np.concatenate([c, c[::-1][::-1], [0]]) for c in coo.coords)
    order = np.argsort(row, kind="stable")[::-1]
    order = order[np.argsort(row[order], kind="stable")]
    starts = np.searchsorted(row[order], np.arange(N + 1))
    return scipy.sparse.csr_array((data[order], column[order], starts), shape=X.shape)


DENSE_FORMS = {
    "float64": lambda X: X,
    "float32": lambda X: X.astype(np.float32),
    "float16": lambda X: X.astype(np.float16),
    "longdouble": lambda X: X.astype(np.longdouble),
    "uint8": lambda X: X.astype(np.uint8),
    "int64": lambda X: X.astype(np.int64),
    "Fortran order": np.asfortranarray,
    "read-only": read_only,
    "backward strides": lambda X: X[::-1].copy()[::-1],
    "big-endian": lambda X: X.astype(">f8"),
    "list of lists": lambda X: X.tolist(),
    "torch": torch.from_numpy,
    "torch bfloat16": lambda X: torch.from_numpy(X).bfloat16(),
    "list of blocks": lambda X: np.array_split(X, 3),
    "list of tensors": lambda X: list(torch.from_numpy(X).split(70)),
    "iterable": Blocks,
}


@pytest.mark.parametrize("form", DENSE_FORMS)
@pytest.mark.parametrize("small", [True, False])
def test_forms_of_dense_data(form: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, and in float32 with the last digits in float64, as large data are."""
    X, y = data()
    expected = solved(X, y)
    if not small:
        monkeypatch.setattr(inputs, "SMALL", 0)
    got = solved(DENSE_FORMS[form](X), y)
    assert got.converged
    assert got.objective == pytest.approx(expected.objective, rel=1e-10)


def test_memory_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data()
    monkeypatch.setattr(inputs, "READ_BYTES", 40 * D * 4)  # pieces of 40 rows
    got = solved(memmap(X, tmp_path), y)
    assert got.objective == pytest.approx(solved(X, y).objective, rel=1e-10)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "form",
    [
        scipy.sparse.csr_array,
        scipy.sparse.csc_matrix,
        scipy.sparse.coo_array,
        untidy,
        lambda X: scipy.sparse.csr_array(X.astype(np.float32)),
        lambda X: scipy.sparse.csr_array(X.astype(np.int32)),
        lambda X: torch.from_numpy(X).to_sparse_csr(),
        lambda X: torch.from_numpy(X).to_sparse(),
    ],
)
@pytest.mark.parametrize("small", [True, False])
def test_forms_of_sparse_data(form: Any, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = data(sparse=True)
    assert (X == 0).all(1).any()  # empty rows are among them
    monkeypatch.setattr(samples, "SPARSE_ROWS", 64)
    if not small:
        monkeypatch.setattr(inputs, "SMALL", 0)
    given = form(X)
    got = solved(given, y)
    monkeypatch.undo()
    assert got.objective == pytest.approx(solved(X, y).objective, rel=1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dense_data_of_zeros_are_made_sparse(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("without MKL sparse products are slower than dense ones")
    monkeypatch.setattr(inputs, "SMALL", 100)
    monkeypatch.setattr(samples, "SPARSE_ROWS", 64)
    X, y = data(sparse=True)
    assert isinstance(inputs.as_samples(X.astype(dtype), None, None), samples.SparseSamples)
    got = solved(X.astype(dtype), y)
    monkeypatch.setattr(samples, "SPARSE_BELOW", 0.0)
    assert isinstance(inputs.as_samples(X.astype(dtype), None, None), samples.DenseSamples)
    assert got.objective == pytest.approx(solved(X, y).objective, rel=1e-10)


def test_rows_and_products_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of samples against the plain matrix."""
    X, _ = data(sparse=True)
    monkeypatch.setattr(samples, "SPARSE_ROWS", 64)
    dense = torch.from_numpy(X)
    index = torch.tensor([0, 1, 63, 64, 65, 200, 299])
    W, r = torch.randn(3, D, dtype=torch.float64), torch.randn(N, 3, dtype=torch.float64)
    for form in (dense, scipy.sparse.csr_array(X), Blocks(X)):
        got = inputs.as_samples(form, None, torch.float64)
        assert (got.n, got.d) == (N, D)
        torch.testing.assert_close(got.rows(index), dense[index])
        z = torch.cat([block.dot(W) for _, block in got.blocks()])
        torch.testing.assert_close(z, dense @ W.T)
        sums = sum(block.transposed_dot(r[at]) for at, block in got.blocks())
        torch.testing.assert_close(sums, r.T @ dense)


def with_value(value: float) -> Array:
    X, _ = data()
    X[7, 3] = value
    return X


def test_blocks_that_can_be_read_once_only() -> None:
    X, y = data()
    with pytest.raises(TypeError, match=r"again and again.*got generator"):
        solved((x for x in [X]), y)


def test_blocks_that_change() -> None:
    X, y = data()

    class Changing(Blocks):
        calls = 0

        def __iter__(self) -> Iterator[Array]:
            self.calls += 1
            return iter(np.array_split(self.X, 7 if self.calls < 4 else 6))

    with pytest.raises(ValueError, match="the same 7 blocks each time"):
        solved(Changing(X), y)


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (with_value(math.nan), "X: expected finite numbers, got NaN"),
        (with_value(math.inf), "X: expected finite numbers, got infinity"),
        ([with_value(math.nan)], "expected finite numbers, got NaN"),
        (scipy.sparse.csr_array(with_value(math.nan)), "expected finite numbers, got NaN"),
        (np.zeros(N), r"expected shape \(n, D\).*got \(300,\)"),
        (np.zeros((0, 3)), r"at least one sample and one feature, got \(0, 3\)"),
        (np.zeros((3, 0)), r"got \(3, 0\)"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "blocks of 3 features as the first, got 4 in bl"),
    ],
)
def test_bad_samples(X: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solved(X, data()[1])


def test_bad_samples_in_a_memory_map(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected finite numbers, got NaN"):
        solved(memmap(with_value(math.nan), tmp_path), data()[1])


def test_samples_of_things_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match="X: expected numbers, got dtype object"):
        solved(np.array([[object()]] * 3), [0, 1, 1])
    with pytest.raises(TypeError, match="X: expected numbers, got dtype <U1"):
        solved(np.array([["a"]] * 3), [0, 1, 1])


def changed(index: int, value: int, dtype: Any = np.int64) -> Array:
    y = data()[1].astype(dtype)
    y[index] = value
    return y


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (np.zeros(N, int), ValueError, "at least 2 classes, got class 0 alone"),
        (np.zeros(N - 1, int), ValueError, r"expected shape \(300,\).*got \(299,\)"),
        (np.zeros((N, 1), int), ValueError, r"got \(300, 1\)"),
        (data()[1].astype(float), TypeError, "integer type, got torch.float64"),
        (changed(0, -1), ValueError, "at least 0, got -1"),
        (changed(0, 2**62), ValueError, "got 4611686018427387904 among 300 samples"),
        (changed(0, 2**64 - 1, np.uint64), ValueError, "y: expected class indices"),
        (data()[1] * 2, ValueError, r"every class in \[0, 7\), got none of class 1"),
        (["a"] * N, TypeError, "y: expected numbers, got dtype <U1"),
    ],
)
def test_bad_class_indices(y: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        solved(data()[0], y)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"sample_weight": np.full(N, -1.0)},
            "sample_weight: expected finite numbers >= 0, got -1",
        ),
        ({"sample_weight": np.full(N, np.nan)}, "sample_weight: .* got nan"),
        ({"sample_weight": np.zeros(N)}, "samples of weight > 0 in every class, got none in cla"),
        (
            {"sample_weight": np.ones(N - 1)},
            r"sample_weight: expected shape \(300,\), got \(299,\)",
        ),
        ({"class_weight": [1, 1, 1]}, r"class_weight: expected shape \(4,\), got \(3,\)"),
        ({"class_weight": [1, 1, 1, -1]}, "class_weight: expected finite numbers >= 0, got -1"),
        ({"class_weight": {7: 1.0}}, r"class_weight: expected classes in \[0, 4\), got 7"),
        ({"class_weight": "auto"}, "class_weight: expected \"balanced\".*got 'auto'"),
        ({"C": 0.0}, "C: expected a number above 0 .*got 0.0"),
        ({"C": math.nan}, "C: expected a number above 0 .*got nan"),
        ({"l1_ratio": 2.0}, r"l1_ratio: expected a number in \[0, 1\], got 2.0"),
        ({"tol": 0.0}, "tol: expected a number above 0, got 0.0"),
        ({"max_iter": 0}, "max_iter: expected at least 1, got 0"),
        ({"solver": "saga"}, "solver: expected auto, lbfgs, .*got 'saga'"),
        ({"dtype": torch.float16}, "dtype: expected torch.float32, .*got torch.float16"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solved(*data(), **options)


def test_warm_start_of_another_shape() -> None:
    X, y = data()
    with pytest.raises(ValueError, match=r"weight \(4, 11\).*got \(4, 12\)"):
        solved(X[:, 1:], y, warm_start=solved(X, y))
