"""Every form of data gives the same answer; unusable data are refused with a clear message."""

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray

from softmax_torch.solvers import Solution, cross_validate, fit, inference, inputs, path, samples
from softmax_torch.solvers.objective import Penalty
from softmax_torch.solvers.problem import check_options

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


def memmap(X: Array, folder: Path, dtype: Any = np.float32) -> Array:
    mapped = np.memmap(folder / "x.bin", dtype=dtype, mode="w+", shape=X.shape)
    mapped[:] = X
    return np.memmap(folder / "x.bin", dtype=dtype, mode="r", shape=X.shape)


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
    "uint16": lambda X: X.astype(np.uint16),
    "uint64": lambda X: X.astype(np.uint64),
    "objects": lambda X: X.astype(object),
    "int64": lambda X: X.astype(np.int64),
    "Fortran order": np.asfortranarray,
    "read-only": read_only,
    "backward strides": lambda X: X[::-1].copy()[::-1],
    "big-endian": lambda X: X.astype(">f8"),
    "list of lists": lambda X: X.tolist(),
    "torch": torch.from_numpy,
    "torch with gradient": lambda X: torch.from_numpy(X).requires_grad_(),
    "torch bfloat16": lambda X: torch.from_numpy(X).bfloat16(),
    "torch uint8": lambda X: torch.from_numpy(X).to(torch.uint8),
    "torch uint16": lambda X: torch.from_numpy(X).to(torch.uint16),
    "list of blocks": lambda X: np.array_split(X, 3),
    "list of tensors": lambda X: list(torch.from_numpy(X).split(70)),
    "iterable": Blocks,
    "blocks of uint16": lambda X: [X.astype(np.uint16)],
    "blocks of objects": lambda X: [X.astype(object)],
}


@pytest.mark.parametrize("form", DENSE_FORMS)
@pytest.mark.parametrize("small", [True, False])
def test_forms_of_dense_data(form: str, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small data are fitted in float64, large data in float32 with the last digits in float64."""
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
        lambda X: scipy.sparse.csr_array(X.astype(np.uint16)),
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


# Unix seconds, which float32 rounds to multiples of 128, and small numbers.
WHOLE = np.stack([1_700_000_000 + np.arange(60), np.arange(60) % 7], 1)

WHOLE_FORMS: dict[str, Callable[[Array, Path], Any]] = {
    "map of int64": lambda X, at: memmap(X, at, np.int64),
    "map of int32": lambda X, at: memmap(X, at, np.int32),
    "map of uint32": lambda X, at: memmap(X, at, np.uint32),
    "map of uint64": lambda X, at: memmap(X, at, np.uint64),
    "map of big-endian": lambda X, at: memmap(X, at, ">i8"),
    "blocks of int64": lambda X, at: np.array_split(X, 3),
    "blocks of int32": lambda X, at: np.array_split(X.astype(np.int32), 3),
    "blocks of uint32": lambda X, at: np.array_split(X.astype(np.uint32), 3),
    "blocks of uint64": lambda X, at: np.array_split(X.astype(np.uint64), 3),
    "blocks of tensors": lambda X, at: list(torch.from_numpy(X).split(25)),
    "iterable": lambda X, at: Blocks(X),
    "array": lambda X, at: X,
    "array of uint32": lambda X, at: X.astype(np.uint32),
    "sparse int64": lambda X, at: scipy.sparse.csr_array(X),
    "torch CSR": lambda X, at: torch.from_numpy(X).to_sparse_csr(),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("form", WHOLE_FORMS)
def test_whole_numbers_are_exact(form: str, tmp_path: Path) -> None:
    """float64 products see each of 60 seconds, though the passes are in float32."""
    got = inputs.as_samples(WHOLE_FORMS[form](WHOLE, tmp_path), None, torch.float32)
    assert (got.n, got.d, got.dtype) == (60, 2, torch.float32)
    eye = torch.eye(2, dtype=torch.float64)
    read = torch.cat([block.dot(eye) for _, block in got.blocks()])
    assert read.tolist() == WHOLE.tolist()
    index = torch.tensor([0, 24, 25, 59])
    torch.testing.assert_close(got.rows(index), torch.from_numpy(WHOLE)[index].float())


@pytest.mark.parametrize("form", ["map of int64", "blocks of int32", "sparse int64"])
def test_fit_of_large_whole_numbers(form: str, tmp_path: Path) -> None:
    """Differences of 1 beside 2^25 are what the classes depend on."""
    rng = np.random.default_rng(0)
    small = rng.integers(-3, 4, (N, 2))
    y = (small @ rng.normal(size=(2, 3)) + rng.normal(size=(N, 3))).argmax(1)
    expected = fit(small.astype(np.float64), y, C=0.01)
    X = WHOLE_FORMS[form](small + (1 << 25), tmp_path)
    got = fit(X, y, C=0.01, dtype=torch.float32)
    assert got.objective == pytest.approx(expected.objective, rel=1e-5)


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
def test_values_that_cannot_be_used(form: str, value: float, match: str, tmp_path: Path) -> None:
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


def frame_columns() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {
        "age": rng.integers(20, 60, N),
        "height": rng.normal(size=N).astype(np.float32),
        "old": rng.random(N) < 0.5,
        "second": 1_700_000_000 + np.arange(N),
    }


def pandas_frames() -> dict[str, Any]:
    """Frames of the same numbers in the dtypes that pandas has for them."""
    pandas = pytest.importorskip("pandas")
    plain = pandas.DataFrame(frame_columns())
    objects = plain.astype(object)
    nullable = plain.convert_dtypes()
    return {
        "plain": plain,
        "nullable": nullable,
        "objects": objects,
        "categories": plain.astype({"age": "category", "old": "category"}),
        "same name twice": plain.set_axis(["a", "a", "b", "b"], axis=1),
        "numbered": plain.set_axis(range(4), axis=1),
    }


@pytest.mark.parametrize(
    "form", ["plain", "nullable", "objects", "categories", "same name twice", "numbered", "polars"]
)
def test_frames_of_mixed_columns(form: str) -> None:
    expected = np.stack([column.astype(float) for column in frame_columns().values()], 1)
    if form == "polars":
        frame = pytest.importorskip("polars").DataFrame(frame_columns())
    else:
        frame = pandas_frames()[form]
    eye = torch.eye(4, dtype=torch.float64)
    for X in (frame, [frame[:100], frame[100:]]):
        got = inputs.as_samples(X, None, None)
        read = torch.cat([block.dot(eye) for _, block in got.blocks()])
        assert read.tolist() == expected.tolist()


def test_dummies_of_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({"x": rng.normal(size=N), "city": rng.choice(list("abc"), N)})
    y = (frame["x"].to_numpy() + (frame["city"] == "a") + rng.normal(size=N) > 0).astype(int)
    X = pandas.get_dummies(frame, drop_first=True)
    numbers = X.to_numpy(dtype=float)
    assert fit(X, y).objective == fit(numbers, y).objective
    assert path(X, y, [1.0])[0].objective == path(numbers, y, [1.0])[0].objective
    torch.testing.assert_close(inference(X, y).p_values, inference(numbers, y).p_values)
    sparse = X.astype(pandas.SparseDtype(float, 0))
    assert isinstance(inputs.as_samples(sparse, None, None), samples.SparseSamples)
    assert fit(sparse, y).objective == pytest.approx(fit(numbers, y).objective, rel=1e-10)


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
def test_columns_that_cannot_be_used(
    frame: Callable[[], Any], error: type[Exception], match: str
) -> None:
    for use in (lambda X: fit(X, [0, 1, 1]), lambda X: fit([X], [0, 1, 1])):
        with pytest.raises(error, match=rf"^X: .*{match}.* in column 1 \('age'\)"):
            use(frame())


def test_arrays_of_objects() -> None:
    X = np.array([[1, 2.5, True], [np.int8(3), Decimal("0.5"), np.float32(2)]], object)
    got = inputs.as_samples(X, None, None)
    assert got.rows(torch.arange(2)).tolist() == [[1, 2.5, 1], [3, 0.5, 2]]
    X = np.array([[2**53 + 1, True]], object)
    torch.testing.assert_close(inputs.as_tensor("X", X), torch.tensor([[2**53 + 1, 1]]))
    with pytest.raises(ValueError, match="no missing values, got None in column 2"):
        solved(np.array([[1, 2, None]] * 3, object), [0, 1, 1])
    with pytest.raises(ValueError, match="expected numbers that a float can hold"):
        solved(np.array([[1, 2, 10**400]] * 3, object), [0, 1, 1])


def test_masked_arrays() -> None:
    X, y = data()
    masked = np.ma.masked_array(X, mask=X < 0)
    assert solved(masked, y).objective == solved(X, y).objective
    masked[7, 3] = np.ma.masked
    for form in (masked, [masked]):
        with pytest.raises(ValueError, match="no missing values, got masked entries in column 3"):
            solved(form, y)


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
def test_tensors_that_cannot_be_used(change: Callable[[Array], Any]) -> None:
    X, y = data()
    with pytest.raises(TypeError, match=r"X: expected (numbers|real numbers|a tensor|a dense te)"):
        solved(change(X), y)


def test_complex_numbers_in_a_memory_map(tmp_path: Path) -> None:
    X, y = data()
    with pytest.raises(TypeError, match="X: expected numbers, got dtype complex64"):
        solved(memmap(X + 1j, tmp_path, np.complex64), y)


@pytest.mark.parametrize("X", [None, 3, "abc", {"a": [1.0]}, lambda: None])
def test_samples_that_are_no_array(X: Any) -> None:
    with pytest.raises(TypeError, match=r"X: expected an array.*got (None|int|str|dict|function)"):
        solved(X, data()[1])


def test_blocks_without_rows_are_skipped() -> None:
    X, y = data()
    empty, none = X[:0], np.zeros((0, 0))
    for blocks in ([empty, X[:100], empty, none, X[100:], empty], [X[:100], empty, X[100:]]):
        got = inputs.as_samples(blocks, None, torch.float64)
        torch.testing.assert_close(got.rows(torch.arange(N)), torch.from_numpy(X))
        assert solved(blocks, y).objective == pytest.approx(solved(X, y).objective, rel=1e-12)
    with pytest.raises(ValueError, match="at least one block with rows, got none"):
        solved([empty, empty], y)


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


def test_samples_of_things_that_are_no_numbers() -> None:
    with pytest.raises(TypeError, match=r"X: expected numbers, got object .* in column 0"):
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
        (torch.from_numpy(data()[1]) + 1j, TypeError, "y: expected real numbers, got torch.comp"),
        (data()[1].astype(object) + 0.5, TypeError, "integer type, got torch.float64"),
        ([None, *data()[1][1:]], ValueError, "y: expected no missing values, got None in entry 0"),
    ],
)
def test_bad_class_indices(y: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        solved(data()[0], y)


def test_class_indices_of_any_container() -> None:
    X, y = data()
    expected = solved(X, y).objective
    pandas, polars = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for given in (
        pandas.Series(y, dtype="Int64"),
        pandas.Series(y, dtype="category"),
        polars.Series(y),
        y.astype(object),
        y.astype(np.uint16),
        y.tolist(),
    ):
        assert solved(X, given).objective == expected
    with pytest.raises(ValueError, match="y: expected no missing values, got some"):
        solved(X[:3], pandas.Series([0, None, 1], dtype="Int64"))
    two = y > 1
    assert solved(X, two).objective == solved(X, two.astype(int)).objective


@pytest.mark.parametrize("scale", [1e12, 1e-12])
def test_weights_of_any_scale(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """F depends on the scale of the weights through C alone."""
    X, y = data()
    monkeypatch.setattr(inputs, "SMALL", 0)
    weight = np.random.default_rng(0).uniform(0.5, 2, N)
    got = solved(X, y, sample_weight=scale * weight, C=1e-3 / scale)
    expected = solved(X, y, sample_weight=torch.from_numpy(weight).requires_grad_(), C=1e-3)
    assert got.objective == pytest.approx(expected.objective, rel=1e-10)


@pytest.mark.parametrize(
    "dtype",
    ["float64", "torch.float64", torch.float64, np.float64, np.dtype(np.float64)],
    ids=str,
)
def test_names_of_dtypes(dtype: Any) -> None:
    X, y = data()
    X = X.astype(np.float32)
    assert inputs.as_samples(X, None, dtype).dtype == torch.float64
    name = str(dtype).replace("64", "32") if isinstance(dtype, str) else np.float32
    assert inputs.as_samples(X, None, name).dtype == torch.float32
    expected = solved(X, y, dtype=torch.float64).objective
    assert solved(X, y, dtype=dtype).objective == expected
    assert path(X, y, [1e-3], tol=1e-10, dtype=dtype)[0].converged
    assert cross_validate(X, y, [1e-3], folds=2, tol=1e-10, dtype=dtype).solution.converged


@pytest.mark.parametrize("number", [np.float16, np.float64, torch.tensor, np.array, Decimal])
def test_numbers_of_any_type(number: Any) -> None:
    options = check_options(number(500.0), number(0.5), number(0.25), number(100.0), "auto")
    assert options == (500.0, 0.5, 0.25, 100)
    assert [type(option) for option in options] == [float, float, float, int]


def test_a_path_of_options_in_float16() -> None:
    """In float16 C times 300 samples would be infinite, and 1 / (C S) has three digits."""
    X, y = data()
    half = {"l1_ratio": np.float16(0.3), "tol": np.float16(1e-3), "max_iter": np.int16(500)}
    [got] = path(X, y, [np.float16(0.01)], **half)
    C, l1_ratio, tol = (float(np.float16(value)) for value in (0.01, 0.3, 1e-3))
    [expected] = path(X, y, [C], l1_ratio=l1_ratio, tol=tol, max_iter=500)
    assert got.objective == expected.objective


@pytest.mark.parametrize(
    ("C", "scale", "match"),
    [
        (
            1e-45,
            1.0,
            r"C times the sum of the weights to be at least 1e-30, got C=1e-45 and .* 300",
        ),
        (1e-38, 1e-8, "at least 1e-30, got C=1e-38 and the sum 3e-06"),
        (1e-310, 1.0, "at least 1e-30, got C=1e-310"),
        (1e308, 1.0, r"finite C times the sum of the weights, got C=1e\+308 and the sum 300"),
    ],
)
def test_strengths_that_cannot_be_computed(C: float, scale: float, match: str) -> None:
    X, y = data()
    weight = np.full(N, scale)
    for use in (path, cross_validate):
        with pytest.raises(ValueError, match=match):
            use(X, y, [1e-3, C], sample_weight=weight)
    with pytest.raises(ValueError, match=match):
        Penalty.of_strength(C, 0.0, scale * N)


def test_strengths_at_the_limit() -> None:
    Penalty.of_strength(1e-30, 0.0, 1.0)
    Penalty.of_strength(math.inf, 0.0, 1.0)
    X, y = data()
    [solution] = path(X, y, [1e-30 / 299])
    assert solution.converged
    shares = np.bincount(y) / N
    assert solution.objective == pytest.approx(-shares @ np.log(shares), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        ("C", "1", TypeError, "C: expected a number, got '1'"),
        ("C", None, TypeError, "C: expected a number, got None"),
        ("C", [1.0], TypeError, r"C: expected a number, got \[1.0\]"),
        ("C", np.ones(1), TypeError, r"C: expected a number, got array\(\[1.\]\)"),
        ("C", 1j, TypeError, "C: expected a number, got 1j"),
        pytest.param("C", 10**400, ValueError, "C: expected a number that a float can", id="huge"),
        ("C", Decimal("1e400"), ValueError, "C: expected a number that a float can hold"),
        ("l1_ratio", "1", TypeError, "l1_ratio: expected a number, got '1'"),
        ("tol", torch.ones(2), TypeError, "tol: expected a number, got tensor"),
        ("max_iter", 10.5, ValueError, "max_iter: expected a whole number, got 10.5"),
        ("max_iter", math.inf, ValueError, "max_iter: expected a whole number, got inf"),
        ("max_iter", math.nan, ValueError, "max_iter: expected at least 1, got nan"),
    ],
)
def test_options_that_are_no_numbers(
    name: str, value: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        solved(*data(), **{name: value})


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
        ({"sample_weight": np.full(N, 1e308)}, r"sum from 1e-30 to 1e\+30, got inf; scale"),
        ({"sample_weight": np.full(N, 1e-320)}, "sum from 1e-30 to .*, got 2.99.*e-318"),
        ({"class_weight": [1e200] * 4}, "sample_weight and class_weight: expected weights with a"),
        (
            {"sample_weight": data()[1] != 1, "class_weight": "balanced"},
            "sample_weight: expected samples of weight > 0 in every class, got none in class 1",
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
        ({"dtype": "float16"}, "dtype: expected torch.float32, .*got 'float16'"),
        ({"dtype": "double"}, "dtype: expected torch.float32, .*got 'double'"),
        ({"dtype": np.int64}, "dtype: expected torch.float32, .*got <class 'numpy.int64'>"),
    ],
)
def test_bad_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        solved(*data(), **options)


def test_warm_start_of_another_shape() -> None:
    X, y = data()
    with pytest.raises(ValueError, match=r"weight \(4, 11\).*got \(4, 12\)"):
        solved(X[:, 1:], y, warm_start=solved(X, y))
