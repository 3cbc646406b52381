"""Samples that cannot be used raise errors that say what was expected, what was given and where."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from small_data import Array, Blocks, N, data, memmap, solved

from softmax_torch.solvers import cross_validate, fit, inference, inputs, path


def with_value(value: float) -> Array:
    X, _ = data()
    X[7, 3] = value
    return X


def with_whole(value: int, dtype: Any = np.int64) -> Array:
    X = data()[0].astype(dtype)
    X[7, 3] = value
    return X


def pandas_frame(X: Array) -> Any:
    return pytest.importorskip("pandas").DataFrame(X, columns=list("abcdefghijkl"))


def polars_frame(X: Array) -> Any:
    return pytest.importorskip("polars").DataFrame(X, schema=list("abcdefghijkl"))


FLOAT_FORMS: dict[str, Callable[[Array, Path], Any]] = {
    "float64": lambda X, at: X,
    "float32": lambda X, at: X.astype(np.float32),
    "bfloat16": lambda X, at: torch.from_numpy(X).bfloat16(),
    "Fortran order": lambda X, at: np.asfortranarray(X),
    "objects": lambda X, at: X.astype(object),
    "scipy CSC": lambda X, at: scipy.sparse.csc_array(X),
    "torch CSR": lambda X, at: torch.from_numpy(X).to_sparse_csr(),
    "torch COO": lambda X, at: torch.from_numpy(X).to_sparse(),
    "map": lambda X, at: memmap(X, at),
    "blocks": lambda X, at: np.array_split(X, 7),
    "iterable": lambda X, at: Blocks(X),
    "pandas": lambda X, at: pandas_frame(X),
    "polars": lambda X, at: polars_frame(X),
    "pandas blocks": lambda X, at: [pandas_frame(X[:5]), pandas_frame(X[5:])],
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    ("value", "match"),
    [
        (9.96921e36, r"magnitude at most 1e\+15, got 9.96921e\+36 in column 3.*fill value"),
        (-1e20, r"magnitude at most 1e\+15, got -1e\+20 in column 3"),
        (math.nan, "expected finite numbers, got NaN in column 3"),
        (-math.inf, "expected finite numbers, got infinity in column 3"),
    ],
)
@pytest.mark.parametrize("form", FLOAT_FORMS)
def test_refused_values(form: str, value: float, match: str, tmp_path: Path) -> None:
    X = with_value(value)
    if form == "bfloat16":
        match = match.replace("9.96921e", "9.9.*e").replace("-1e\\+20", "-9.9.*e\\+19")
    if form.startswith(("pandas", "polars")):
        match = match.replace("column 3", r"column 3 \('d'\)")
    with pytest.raises(ValueError, match=f"^X: .*{match}"):
        solved(FLOAT_FORMS[form](X, tmp_path), data()[1])


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "X",
    [
        with_whole(2**60),
        with_whole(-(2**63)),
        with_whole(2**64 - 1, np.uint64),
        with_whole(10**30, object),
        scipy.sparse.csr_array(with_whole(2**60)),
        torch.from_numpy(with_whole(-(2**63))).to_sparse(),
        [with_whole(2**60)],
        [with_whole(2**64 - 1, np.uint64)],
    ],
)
def test_whole_numbers_that_are_too_large(X: Any) -> None:
    with pytest.raises(ValueError, match=r"magnitude at most 1e\+15, got .*e\+\d\d in column 3"):
        solved(X, data()[1])


def test_whole_numbers_that_are_too_large_in_a_memory_map(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 1.15292e\+18 in column 3"):
        solved(memmap(with_whole(2**60), tmp_path, np.int64), data()[1])


@pytest.mark.parametrize("value", [1e155, 1e300])
def test_values_whose_squares_overflow_float64(value: float) -> None:
    with pytest.raises(ValueError, match=r"got 1e\+\d* in column 3"):
        solved(with_value(value), data()[1])


def test_the_largest_value_is_taken() -> None:
    inputs.as_samples(with_value(1e15), None, None)
    inputs.as_samples(with_whole(-(10**15)), None, None)
    inputs.as_samples([with_value(-1e15)], None, None)


def test_a_fill_value_in_one_of_a_hundred_rows() -> None:
    X, y = data()
    X[::100, 5] = 9.96921e36
    for use in (lambda: path(X, y, [1.0]), lambda: cross_validate(X, y, [1.0])):
        with pytest.raises(ValueError, match="in column 5; drop the column if this is a fill"):
            use()
    with pytest.raises(ValueError, match="in column 5; drop the column if this is a fill"):
        inference(X, y)


def column_of_pandas(column: Any, dtype: Any = None) -> Any:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(column, dtype=dtype)
    return pandas.DataFrame({"height": np.ones(len(column)), "age": column})


def column_of_polars(column: Any) -> Any:
    polars = pytest.importorskip("polars")
    return polars.DataFrame({"height": np.ones(len(column)), "age": column})


@pytest.mark.parametrize(
    ("frame", "error", "match"),
    [
        (lambda: column_of_pandas([1, None, 2], "Int64"), ValueError, "no missing values"),
        (lambda: column_of_pandas([1.5, None, 2], "Float64"), ValueError, "no missing values"),
        (lambda: column_of_pandas([True, None, True], "boolean"), ValueError, "no missing values"),
        (lambda: column_of_pandas([1, None, 2], "category"), ValueError, "no missing values"),
        (lambda: column_of_pandas([1, None, 2], object), ValueError, "no missing values, got None"),
        (lambda: column_of_pandas([1, None, 2]), ValueError, "finite numbers, got NaN"),
        (lambda: column_of_pandas(["1", "2", "3"]), TypeError, "numbers, got str '1'"),
        (lambda: column_of_pandas(["a", "b", "c"], "category"), TypeError, "got str 'a'"),
        (lambda: column_of_pandas([1, 2, "c"], object), TypeError, "numbers, got str 'c'"),
        (lambda: column_of_pandas([1, 2, 3], "datetime64[s]"), TypeError, "got dtype datetime64"),
        (lambda: column_of_pandas([1 + 1j, 2, 3]), TypeError, "got dtype complex128"),
        (lambda: column_of_polars([1, None, 2]), ValueError, "no missing values"),
        (lambda: column_of_polars([True, None, False]), ValueError, "no missing values"),
        (lambda: column_of_polars(["1", "2", "3"]), TypeError, "expected numbers, got dtype <U1"),
    ],
)
def test_refused_columns(frame: Callable[[], Any], error: type[Exception], match: str) -> None:
    for use in (lambda X: fit(X, [0, 1, 1]), lambda X: fit([X], [0, 1, 1])):
        with pytest.raises(error, match=rf"^X: .*{match}.* in column 1 \('age'\)"):
            use(frame())


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize(
    "change",
    [
        lambda X: torch.from_numpy(X) + 1j,
        lambda X: torch.from_numpy(X).to_sparse_csr() * (1 + 1j),
        lambda X: [torch.from_numpy(X) + 1j],
        lambda X: X + 1j,
        lambda X: scipy.sparse.csr_array(X + 1j),
        lambda X: [X + 1j],
        lambda X: torch.from_numpy(X).to("meta"),
        lambda X: [torch.from_numpy(X).to_sparse()],
    ],
)
def test_refused_tensors(change: Callable[[Array], Any]) -> None:
    X, y = data()
    with pytest.raises(TypeError, match=r"X: expected (numbers|real numbers|a tensor|a dense te)"):
        solved(change(X), y)


def test_complex_numbers_in_a_memory_map(tmp_path: Path) -> None:
    X, y = data()
    with pytest.raises(TypeError, match="X: expected numbers, got dtype complex64"):
        solved(memmap(X + 1j, tmp_path, np.complex64), y)


@pytest.mark.parametrize("X", [None, 3, "abc", {"a": [1.0]}, lambda: None])
def test_samples_that_are_not_an_array(X: Any) -> None:
    with pytest.raises(TypeError, match=r"X: expected an array.*got (None|int|str|dict|function)"):
        solved(X, data()[1])


def test_blocks_that_can_be_read_only_once() -> None:
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
        (np.zeros(N), r"expected shape \(n, D\).*got \(300,\)"),
        (np.zeros((0, 3)), r"at least one sample and one feature, got \(0, 3\)"),
        (np.zeros((3, 0)), r"got \(3, 0\)"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], "3 features like the first, got 4 in block 1"),
        ([np.zeros((2, 3)), np.zeros((2, 0))], r"one feature, got \(2, 0\) in block 1"),
        ([np.zeros((2, 3)), np.zeros(3)], r"shape \(n, D\).*got \(3,\) in block 1"),
    ],
)
def test_bad_samples(X: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solved(X, data()[1])


def test_samples_that_are_not_numbers() -> None:
    with pytest.raises(TypeError, match=r"X: expected numbers, got object .* in column 0"):
        solved(np.array([[object()]] * 3), [0, 1, 1])
    with pytest.raises(TypeError, match="X: expected numbers, got dtype <U1"):
        solved(np.array([["a"]] * 3), [0, 1, 1])
