"""Samples in every form give the same fit, and their numbers are kept exactly."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from small_data import Array, Blocks, D, N, data, memmap, solved

from softmax_torch.solvers import fit, inference, inputs, path, samples


def read_only(X: Array) -> Array:
    X = X.copy()
    X.flags.writeable = False
    return X


def untidy(X: Array) -> Any:
    """Return CSR with entries out of order and split in two, and an explicit 0."""
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


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dense_data_of_zeros_are_made_sparse(
    dtype: Any, order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.backends.mkl.is_available():
        pytest.skip("without MKL sparse products are slower than dense ones")
    monkeypatch.setattr(inputs, "SMALL", 100)
    monkeypatch.setattr(samples, "SPARSE_ROWS", 64)
    X, y = data(sparse=True)
    given = np.asarray(X, dtype, order=order)
    assert isinstance(inputs.as_samples(given, None, None), samples.SparseSamples)
    got = solved(given, y)
    monkeypatch.setattr(samples, "SPARSE_BELOW", 0.0)
    assert isinstance(inputs.as_samples(given, None, None), samples.DenseSamples)
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


# Unix times, which float32 rounds to multiples of 128, and small numbers.
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
    """Products in float64 distinguish all 60 seconds, although the passes are in float32."""
    got = inputs.as_samples(WHOLE_FORMS[form](WHOLE, tmp_path), None, torch.float32)
    assert (got.n, got.d, got.dtype) == (60, 2, torch.float32)
    eye = torch.eye(2, dtype=torch.float64)
    read = torch.cat([block.dot(eye) for _, block in got.blocks()])
    assert read.tolist() == WHOLE.tolist()
    index = torch.tensor([0, 24, 25, 59])
    torch.testing.assert_close(got.rows(index), torch.from_numpy(WHOLE)[index].float())
    offset = torch.tensor([1.7e9, 0.0], dtype=torch.float64)
    for each, expected in ((got, WHOLE), (got.shifted(offset), WHOLE - offset.numpy())):
        assert each.rows(index, torch.float64).tolist() == expected[index].tolist()


@pytest.mark.parametrize("form", ["map of int64", "blocks of int32", "sparse int64"])
def test_fit_of_large_whole_numbers(form: str, tmp_path: Path) -> None:
    """The classes depend on differences of 1 between numbers of about 2^25."""
    rng = np.random.default_rng(0)
    small = rng.integers(-3, 4, (N, 2))
    y = (small @ rng.normal(size=(2, 3)) + rng.normal(size=(N, 3))).argmax(1)
    expected = fit(small.astype(np.float64), y, C=0.01)
    X = WHOLE_FORMS[form](small + (1 << 25), tmp_path)
    got = fit(X, y, C=0.01, dtype=torch.float32)
    assert got.objective == pytest.approx(expected.objective, rel=1e-5)


def frame_columns() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    return {
        "age": rng.integers(20, 60, N),
        "height": rng.normal(size=N).astype(np.float32),
        "old": rng.random(N) < 0.5,
        "second": 1_700_000_000 + np.arange(N),
    }


def pandas_frames() -> dict[str, Any]:
    """Return frames of the same numbers in different dtypes of pandas."""
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


def test_blocks_without_rows_are_skipped() -> None:
    X, y = data()
    empty, none = X[:0], np.zeros((0, 0))
    for blocks in ([empty, X[:100], empty, none, X[100:], empty], [X[:100], empty, X[100:]]):
        got = inputs.as_samples(blocks, None, torch.float64)
        torch.testing.assert_close(got.rows(torch.arange(N)), torch.from_numpy(X))
        assert solved(blocks, y).objective == pytest.approx(solved(X, y).objective, rel=1e-12)
    with pytest.raises(ValueError, match="at least one block with rows, got none"):
        solved([empty, empty], y)


def test_sparse_samples_on_a_gpu_keep_their_digits() -> None:
    """Passes in float32 round them; passes in float64, which certify, do not."""
    X = torch.tensor([[1 + 2**-40, 0.0], [0.0, 3 - 2**-40]], dtype=torch.float64)
    samples = inputs._streamed_sparse(
        inputs._from_torch(X.to_sparse_csr()), torch.device("cpu"), torch.float32
    )
    assert samples.rows(torch.arange(2), torch.float64).equal(X)
    one = torch.eye(2, dtype=torch.float64)
    assert torch.cat([block.dot(one) for _, block in samples.blocks()]).equal(X)
