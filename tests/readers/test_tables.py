"""Tables of every format give the same values, as numbers and as text."""

import datetime
import decimal
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import Chunk, read_chunks

NAMES = ["size", "whole", "kind", "flag"]
SIZE, WHOLE, KIND, FLAG = [0.5, None, -2.0], [1, 2, 3], ["x", None, "z z"], [True, False, True]
TEXTS = {
    "size": ["0.5", None, "-2"],
    "whole": ["1", "2", "3"],
    "kind": ["x", None, "z z"],
    "flag": ["true", "false", "true"],
}
CSV = "size,whole,kind,flag,more\n0.5,1.0,x,True,7\nNA,2.0,,FALSE,8\n-2,3.00, z z,true,9\n"


def frame() -> pd.DataFrame:
    columns = {"size": SIZE, "whole": WHOLE, "kind": KIND, "flag": FLAG}
    return pd.DataFrame(columns | {"more": [datetime.date(2020, 1, 1)] * 3}, index=[5, 6, 5])


def table() -> pa.Table:
    return pa.table(
        {
            "size": pa.array([0.5, math.nan, -2.0], pa.float32()),
            "whole": pa.array(WHOLE, pa.uint8()),
            "kind": pa.array(KIND).dictionary_encode(),
            "flag": FLAG,
            "more": [[1], [2], [3]],
        }
    )


def as_csv(path: Path) -> Any:
    (path / "a.csv").write_text(CSV)
    return path / "a.csv"


def as_tsv(path: Path) -> Any:
    (path / "a.tsv").write_text(CSV.replace(",", "\t"))
    return path / "a.tsv"


def as_parquet(path: Path) -> Any:
    parquet.write_table(table(), path / "a.parquet")
    return path / "a.parquet"


def as_npz(path: Path) -> Any:
    kind = np.array(["x", "", "z z"])
    np.savez(path / "a.npz", size=[0.5, np.nan, -2], whole=WHOLE, kind=kind, flag=FLAG)
    return path / "a.npz"


def as_npy(path: Path) -> Any:
    kinds = [("size", ">f8"), ("whole", "i4"), ("kind", "S4"), ("flag", "?")]
    array = np.array([(0.5, 1, b"x", 1), (np.nan, 2, b"NA", 0), (-2, 3, b"z z", 1)], dtype=kinds)
    np.save(path / "a.npy", array)
    return path / "a.npy"


TABLES = {
    "csv": as_csv,
    "tsv": as_tsv,
    "parquet": as_parquet,
    "npz": as_npz,
    "npy": as_npy,
    "pandas": lambda path: frame(),
    "pandas categorical": lambda path: frame().astype({"kind": "category", "flag": "category"}),
    "polars": lambda path: pl.from_pandas(frame()),
    "polars categorical": lambda path: pl.from_pandas(frame()).cast({"kind": pl.Categorical}),
    "pyarrow": lambda path: table(),
    "batch": lambda path: table().to_batches()[0],
    "dict": lambda path: {"size": SIZE, "whole": WHOLE, "kind": KIND, "flag": FLAG, "more": 3},
    "dict of arrays": lambda path: {
        "size": np.array([0.5, np.nan, -2]),
        "whole": pd.Series([1.0, 2.0, 3.0]),
        "kind": pl.Series(KIND),
        "flag": FLAG,
    },
    "rows": lambda path: [
        {"size": 0.5, "whole": 1, "kind": "x", "flag": True},
        {"whole": 2, "kind": None, "flag": False},
        {"size": -2, "whole": 3, "kind": "z z", "flag": True, "more": {}},
    ],
    "decimals": lambda path: {
        "size": [decimal.Decimal("0.5"), None, decimal.Decimal("-2.0")],
        "whole": [decimal.Decimal("1.00"), decimal.Decimal(2), decimal.Decimal(3)],
        "kind": KIND,
        "flag": ["true", "False", "TRUE"],
    },
}


def chunks_of(raw: Any, rows: int) -> list[Chunk]:
    return (
        list(read_chunks(Source.from_path(raw), rows))
        if isinstance(raw, Path)
        else [chunk_in_memory(raw, NAMES)]
    )


@pytest.mark.parametrize("rows", [2, 100])
@pytest.mark.parametrize("kind", TABLES)
def test_all_formats_give_the_same_values(kind: str, rows: int, tmp_path: Path) -> None:
    found = chunks_of(TABLES[kind](tmp_path), rows)
    if rows == 2 and isinstance(TABLES[kind](tmp_path), Path):
        assert [(len(piece), piece.first) for piece in found] == [(2, 0), (1, 2)]
    for name, expected in TEXTS.items():
        if kind == "decimals" and name == "size":
            continue  # a decimal keeps its digits as text
        assert [v for piece in found for v in piece.text(name).to_pylist()] == expected
    for name, numbers in (("size", [0.5, math.nan, -2]), ("whole", [1, 2, 3])):
        got = np.concatenate([piece.numbers(name) for piece in found])
        assert got.dtype == np.float64
        np.testing.assert_array_equal(got, numbers)


@pytest.mark.parametrize("kind", TABLES)
def test_first_rows_with_a_number_and_with_text(kind: str, tmp_path: Path) -> None:
    [found] = chunks_of(TABLES[kind](tmp_path), 100)
    kinds = {name: found.first_number_and_text(name) for name in NAMES}
    assert kinds == {"size": (0, None), "whole": (0, None), "kind": (None, 0), "flag": (None, 0)}


def test_numbers_and_text_in_one_column() -> None:
    found = chunk_in_memory({"a": ["", "1", "x", "2"], "b": ["y", "NA", "1e3", "z"]}, ["a", "b"])
    assert (found.first_number_and_text("a"), found.first_number_and_text("b")) == ((1, 2), (2, 0))
    empty = chunk_in_memory({"a": ["", "NA"], "b": [None, None]}, ["a", "b"])
    assert empty.first_number_and_text("a") == empty.first_number_and_text("b") == (None, None)
    with pytest.raises(ValueError, match=r"^inputs, row 2, column a: expected a number, got x$"):
        found.numbers("a")


SHORT_TEXT = st.text(st.sampled_from("0123456789+-.eEinfaINFAty_, x"), max_size=8)


@given(text=SHORT_TEXT | st.floats().map(str) | st.integers().map(str))
def test_the_number_pattern_matches_the_texts_that_arrow_can_cast(text: str) -> None:
    found = chunk_in_memory({"a": ["z", text]}, ["a"])
    if found.column("a")[1].as_py() is None:
        return
    try:
        pa.array([text.strip()]).cast(pa.float64())
    except pa.ArrowInvalid:
        assert found.first_number_and_text("a") == (None, 0), TableFormat().number_pattern
    else:
        assert found.first_number_and_text("a") == (1, 0)


@pytest.mark.parametrize(
    ("columns", "name", "message"),
    [
        (
            {"a": [1.0, math.inf]},
            "a",
            r"inputs, row 1, column a: expected a finite number, got inf",
        ),
        ({"a": ["1", "-Infinity"]}, "a", r"inputs, row 1, column a: .* finite number, got -inf"),
        ({"a": [[1], [2]]}, "a", r"inputs, column a: expected numbers, text or .* got list<"),
        ({"a": [datetime.date(2020, 1, 1)]}, "a", r"column a: .* got date32.*leave the column out"),
    ],
)
def test_values_that_are_no_finite_numbers_are_refused(
    columns: Any, name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        chunk_in_memory(columns, [name]).numbers(name)


@pytest.mark.parametrize(
    ("raw", "kind", "message"),
    [
        (3, TypeError, "inputs: expected a data frame, a dict of columns, .* got int"),
        ([], TypeError, "inputs: .* got list"),
        ([1, 2], TypeError, "inputs: .* got list"),
        (np.zeros((2, 3)), TypeError, "inputs: .* got ndarray"),
        ({"size": 1.0}, ValueError, "inputs: expected columns of one type each"),
        ({"size": [1.0, "x"]}, ValueError, "inputs: expected columns of one type each"),
        ([{"size": 1.0}, {"size": "x"}], ValueError, "inputs: expected columns of one type each"),
        ({"size": [1.0], "kind": ["x", "y"]}, ValueError, "inputs: expected columns of one type"),
        (pd.DataFrame({"size": [1, "x"]}), ValueError, "inputs: expected columns of one type each"),
        (pd.DataFrame({"size": [1.0]})["size"], TypeError, "inputs: .* got Series"),
        (pd.DataFrame({"size": [1.0]}).iloc[0], TypeError, "inputs: .* got Series"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), ValueError, "inputs: .* Duplicate"),
        (pa.table([[1], [2]], names=["a", "a"]), ValueError, "got two called a"),
    ],
)
def test_inputs_that_are_no_table_are_refused(
    raw: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        chunk_in_memory(raw, NAMES)


def test_other_columns_of_a_frame_are_ignored() -> None:
    """Even if pyarrow has no type for them."""
    frame = pd.DataFrame({"size": SIZE, "other": [1, "x", None], "more": [object()] * 3})
    found = chunk_in_memory(frame, ["kind", "size"])
    assert found.names == ["size"]
    np.testing.assert_array_equal(found.numbers("size"), [0.5, math.nan, -2])
    assert chunk_in_memory(pd.DataFrame(np.eye(2)), ["1"]).numbers("1").tolist() == [0, 1]


def test_column_names_are_listed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listing the names of 3000 columns once for each of them took 14 s."""
    found, listed = chunk_in_memory({name: [1] for name in "abc"}, ["a", "b", "c"]), []
    names = property(lambda chunk: listed.append(chunk) or chunk.table.column_names)
    monkeypatch.setattr(Chunk, "names", names)
    found.require(["c", "a", "b"])
    assert len(listed) == 1


def test_a_matrix_gives_numbered_columns(tmp_path: Path) -> None:
    matrix = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    np.save(tmp_path / "a.npy", matrix)
    np.savez(tmp_path / "a.npz", x=matrix, y=[7, 8, 9])
    [a] = read_chunks(Source.from_path(tmp_path / "a.npy"), 100)
    [b] = read_chunks(Source.from_path(tmp_path / "a.npz"), 100)
    assert (a.names, b.names) == (["0", "1"], ["x_0", "x_1", "y"])
    for k in range(2):
        assert a.numbers(f"{k}").tolist() == b.numbers(f"x_{k}").tolist() == matrix[:, k].tolist()


def test_files_that_are_no_tables_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.parquet", "a.npz", "a.npy"):
        Path(name).write_bytes(b"no table")
    np.save("objects.npy", np.array([{}, 1]), allow_pickle=True)
    np.savez("objects.npz", a=np.array([{}, 1]))
    np.savez("lengths.npz", a=[1, 2], b=[1])
    np.savez("deep.npz", a=np.zeros((2, 2, 2)))
    np.save("flat.npy", np.zeros(3))
    np.save("complex.npy", np.zeros((3, 2), np.complex64))
    np.save("none.npy", np.zeros((0, 2)))
    parquet.write_table(pa.table({"a": pa.array([], pa.int8())}), "none.parquet")
    np.savez_compressed("whole.npz", a=np.arange(999))
    whole = Path("whole.npz").read_bytes()
    Path("cut.npz").write_bytes(whole[:100])
    Path("damaged.npz").write_bytes(whole[:200] + b"\xff" * 50 + whole[250:])
    with zipfile.ZipFile("other.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    for name, message in {
        "a.parquet": "expected a Parquet file",
        "a.npz": "expected arrays of numbers or text",
        "a.npy": "expected arrays of numbers or text",
        "objects.npy": "expected arrays of numbers or text, got .*Python objects",
        "objects.npz": "expected arrays of numbers or text, got .*allow_pickle",
        "lengths.npz": "arrays of several lengths: {'a': 2, 'b': 1}",
        "deep.npz": r"got a of shape \(2, 2, 2\)",
        "flat.npy": r"got an array of shape \(3,\), neither",
        "complex.npy": "expected arrays of numbers or text",
        "none.npy": "expected at least one row, got none",
        "cut.npz": "expected arrays of numbers or text",
        "damaged.npz": "expected arrays of numbers or text",
        "other.npz": "expected arrays of numbers or text, got readme.txt, which is no array",
        "none.parquet": "expected at least one row, got none",
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: .*{message}"):
            list(read_chunks(Source.from_path(name), 10))


def test_a_pickle_in_an_array_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "run",)

    np.save(tmp_path / "a.npy", np.array([Evil(), 1]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=np.array([Evil(), 1]))
    for name in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match=r"allow_pickle|Python objects"):
            list(read_chunks(Source.from_path(tmp_path / name), 10))
    assert not (tmp_path / "run").exists()
    np.load(tmp_path / "a.npy", allow_pickle=True)
    assert (tmp_path / "run").exists()  # NumPy would have run it
