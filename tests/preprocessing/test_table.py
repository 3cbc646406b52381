"""Columns are encoded as scikit-learn encodes them, from statistics of training rows alone."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from softmax_torch import preprocessing
from softmax_torch.preprocessing import TablePreprocessing, same
from softmax_torch.preprocessing.table import CategoricalColumn, NumericColumn
from softmax_torch.preprocessing.table_fitting import CategoricalFit, NumericFit, Survey
from softmax_torch.preprocessing.unknown_categories import (
    UnknownCategories,
    UnknownCategoryWarning,
    counting_unknown,
)
from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import read_chunks


def passengers(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Return numbers near 0, far from it and constant; categories with and without missing ones."""
    rng = np.random.default_rng(seed)
    age = rng.normal(40, 12, n).round(1)
    age[rng.random(n) < 0.2] = np.nan
    port = rng.choice(["Oslo", "Århus", "a,b"], n).astype(object)
    port[rng.random(n) < 0.2] = np.nan
    return pd.DataFrame(
        {
            "age": age,
            "port": port,
            "year": 1e6 + rng.integers(0, 30, n),
            "same": 0.1,
            "deck": rng.integers(1, 4, n),
            "member": rng.random(n) < 0.5,
        }
    )


def fit(chunk, training: Any = None, rows: int = 10**6, categorical=("deck",)) -> Any:
    """Return a preprocessing fitted to the training rows of a table."""
    training = np.ones(len(chunk), dtype=bool) if training is None else training
    survey = Survey(chunk.names, categorical)
    survey.add(chunk)
    columns = survey.fits(chunk.source)
    for first in range(0, len(chunk), rows):
        part = type(chunk)(chunk.table.slice(first, rows), chunk.source, first)
        for column in columns:
            column.add(part, training[first : first + rows])
    return TablePreprocessing([column.column() for column in columns], ("no", "yes"))


def memory(frame: pd.DataFrame) -> Any:
    return chunk_in_memory(frame, list(frame))


def test_encoding_equals_that_of_scikit_learn() -> None:
    train, new = passengers(), passengers(40, seed=1)
    new.loc[3, "port"] = "Rome"  # unknown to training
    found = fit(memory(train))
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    text = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="\uffff"),  # sorts last
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    onehot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    oracle = make_column_transformer(
        (numbers, ["age"]), (text, ["port"]), (numbers, ["year", "same"]), (onehot, ["deck"]),
        (onehot, ["member"]),
    )  # fmt: skip
    for frame in (train, new):
        expected = oracle.fit(train).transform(frame)
        with counting_unknown(UnknownCategories()) as unknown:
            x = found.tensor(frame)
        assert x.dtype == torch.float32
        assert unknown.counts["port"][0] == (frame is new)
        # scikit-learn's deviation includes the imputed means; ours is that of the present values
        age = frame["age"].fillna(train["age"].mean())
        expected[:, 0] = (age - train["age"].mean()) / train["age"].std(ddof=0)
        np.testing.assert_allclose(x.numpy(), expected, rtol=2e-6, atol=1e-6)
    assert found.in_features == expected.shape[1]
    assert found.feature_names == (
        "age",
        *("port=Oslo", "port=a,b", "port=Århus", "port=(missing)"),
        *("year", "same"),
        *("deck=1", "deck=2", "deck=3"),
        *("member=false", "member=true"),
    )
    assert x[3, 1:5].tolist() == [0, 0, 0, 0]


def test_missing_values() -> None:
    """A number becomes the mean; a category its own, or zeros if training had no missing ones."""
    columns = [NumericColumn("a", 3.0, 2.0), CategoricalColumn("b", ("x", "y"), True)]
    columns += [CategoricalColumn("c", ("x", "y"), False)]
    found = TablePreprocessing(columns, ("0", "1"))
    with pytest.warns(UnknownCategoryWarning, match="column b: 1 of 2 values, such as 'z'"):
        x = found.tensor({"a": [None, 7.0], "b": [None, "z"], "c": [None, "y"]})
    assert x.tolist() == [[0, 0, 0, 1, 0, 0], [2, 0, 0, 0, 0, 1]]


def test_only_training_rows_are_fitted() -> None:
    frame = passengers()
    training = np.arange(60) < 45
    found = fit(memory(frame), training).state_dict()
    other = frame.copy()
    other.loc[45:, "age"] = 1e9
    other.loc[45:, "port"] = "elsewhere"
    other.loc[45:, "deck"] = 7
    assert fit(memory(other), training).state_dict() == found
    assert found == fit(memory(frame[:45])).state_dict()
    other.loc[44, "age"] = 1e9
    assert fit(memory(other), training).state_dict() != found


@pytest.mark.parametrize("rows", [3, 7, 60])
def test_chunks_of_any_size_give_the_same(rows: int) -> None:
    frame = passengers()
    whole, found = fit(memory(frame)), fit(memory(frame), rows=rows)
    assert same(found.state_dict(), whole.state_dict())
    torch.testing.assert_close(found.tensor(frame), whole.tensor(frame))


def test_the_deviation_keeps_its_digits_far_from_zero() -> None:
    """The mean of squares minus the squared mean would have no digits left."""
    values = 1e9 + np.random.default_rng(0).random(1000)
    found = NumericFit("a")
    for part in np.split(values, 10):
        found.add(chunk_in_memory({"a": part}, ["a"]), np.ones(100, dtype=bool))
    assert found.column().deviation == pytest.approx(values.std(), rel=1e-12)
    assert found.column().mean == pytest.approx(values.mean(), rel=1e-15)


def test_a_constant_column_is_zero() -> None:
    found = fit(memory(pd.DataFrame({"a": [0.1] * 7})), rows=2)
    assert found.columns == (NumericColumn("a", 0.1, 1.0),)
    assert found.tensor({"a": [0.1, 1.1]}).tolist() == [[0], [1]]


def test_a_file_is_encoded_as_the_same_table_in_memory(tmp_path: Path) -> None:
    frame, path = passengers(), tmp_path / "a.csv"
    frame.to_csv(path, index=False)
    found = fit(memory(frame))
    [chunk] = read_chunks(Source.from_path(path), 1000)
    assert fit(chunk).state_dict() == found.state_dict()
    assert torch.equal(found.tensor(path), found.tensor(frame))
    assert torch.equal(found.tensor(str(path)), found.tensor(frame))
    rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
    assert torch.equal(found.tensor(rows), found.tensor(frame))
    parts = list(found.read(path, 7))
    assert [len(x) for _, x in parts] == [7] * 8 + [4]
    assert torch.equal(torch.cat([x for _, x in parts]), found.tensor(frame))
    assert [name for ids, _ in parts for name in ids] == [str(row) for row in range(60)]


def test_an_id_column_names_the_rows_of_files(tmp_path: Path) -> None:
    frame, path = passengers(5), tmp_path / "a.csv"
    columns = fit(memory(frame)).columns
    found = TablePreprocessing(columns, ("no", "yes"), id_column="who", format=TableFormat(";"))
    frame.assign(who=[7, 8, 7, "x y", None]).to_csv(path, index=False, sep=";")
    [(ids, _)] = found.read(path, 100)
    assert ids == ["7", "8", "7", "x y", ""]
    frame.assign(who=["NA", "01.0", "TRUE", "nan", " x"]).to_csv(path, index=False, sep=";")
    [(ids, _)] = found.read(path, 100)
    assert ids == ["NA", "01.0", "TRUE", "nan", " x"]  # unchanged
    assert found.tensor(frame).shape == (5, found.in_features)  # tables in memory need no ids
    frame.to_csv(path, index=False, sep=";")
    with pytest.raises(ValueError, match=r"a.csv: expected column who, got columns age, port"):
        list(found.read(path, 100))


def test_a_state_is_plain_data_and_rebuilds_the_preprocessing() -> None:
    found = fit(memory(passengers()))
    state = found.state_dict()

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return type(value) in (str, int, float, bool, type(None))

    assert plain(state)
    again = preprocessing.from_state_dict(state)
    assert isinstance(again, TablePreprocessing)
    assert again.state_dict() == state
    assert torch.equal(again.tensor(passengers()), found.tensor(passengers()))
    assert again.class_names == ("no", "yes")


def test_values_that_cannot_be_encoded_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = TablePreprocessing(
        [NumericColumn("a", 0.0, 1.0), CategoricalColumn("b", ("x",), False)], ("0", "1")
    )
    Path("a.csv").write_text('c,a,b\n"1\n2",3,x\n1,old,x\n')
    Path("b.csv").write_text("c,a\n1,2\n")
    Path("c.csv").write_text("a;b\n1;x\n")
    Path("d.csv").write_text("a,b\n1,x\n1e39,x\n")
    for raw, message in {
        "a.csv": r"a.csv, line 4, column a: expected a number, got old$",
        "b.csv": r"b.csv: expected column b, got columns c, a$",
        "c.csv": r"c.csv: expected columns a, b, got column a;b; its columns look separated by ';'",
        "d.csv": r"d.csv, line 3, column a: expected a number .* deviations .* got 1e\+39",
    }.items():
        with pytest.raises(ValueError, match=message):
            found.tensor(raw)
    with pytest.raises(ValueError, match=r"^inputs: expected column a, got column b$"):
        found.tensor({"b": ["x"]})
    with pytest.raises(ValueError, match=r"^inputs, row 1, column a: expected a finite number"):
        found.tensor({"a": [0, -math.inf], "b": ["x", "x"]})


@pytest.mark.parametrize(
    ("values", "raw", "message"),
    [
        (("false", "true"), [None, 0, 1], r"row 1, column b: .* 2 .* false, true, got 0$"),
        (("1", "2"), ["one", "two"], r"row 0, column b: .* 2 .* such as 1, 2, got one$"),
        (("1", "2"), ["one", "2"], None),
        (("1", "2"), ["one", "3"], None),
        (("1", "x"), ["3"], None),
        (("1", "x"), ["y"], None),
        (("a", "b"), ["c", "d"], None),
        (("a", "b"), [None, None], None),
        ((), ["1", "x"], None),
        ((), ["1"], None),
    ],
)
def test_categories_of_another_kind_are_refused(values: Any, raw: Any, message: Any) -> None:
    """Other unknown categories give zeros."""
    found = TablePreprocessing([CategoricalColumn("b", values, False)], ("0", "1"))
    if message is None:
        with counting_unknown(UnknownCategories()):
            assert found.tensor({"b": raw}).sum() == sum(value in values for value in raw)
    else:
        with pytest.raises(ValueError, match=message):
            found.tensor({"b": raw})


def surveyed(**columns: Any) -> Any:
    chunk = chunk_in_memory(columns, list(columns))
    survey = Survey(chunk.names, ["code"])
    survey.add(chunk)
    return survey.fits(chunk.source)


def test_which_columns_are_numeric() -> None:
    found = surveyed(
        a=["1", "", "-2e3"], b=["x", None, "y"], c=[True, False, None], d=[1, 2, 3], code=[1, 2, 2]
    )
    assert [type(column) for column in found] == [
        NumericFit,
        CategoricalFit,
        CategoricalFit,
        NumericFit,
        CategoricalFit,
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"a": ["1", "2", "?"]},
            r"^inputs, row 2, column a: expected a number as in inputs, row 0, which has 1, got \?;"
            r" correct the value, or take it as missing \(--data.missing '\[\"\?\"\]'\), or make "
            r"the column categorical \(--data.categorical '\[\"a\"\]'\), or leave it out "
            r"\(--data.ignore '\[\"a\"\]'\)$",
        ),
        (
            {"a": ["1", "2,5"]},
            r"got 2,5, one of numbers with a decimal comma; --data.decimal ,; correct",
        ),
        ({"a": ["NA", None]}, r"^inputs, column a: expected at least one value, got none; leave"),
        ({"a": [None, None]}, r"^inputs, column a: expected at least one value, got none"),
        (
            {"n": [1.0] * 20, "a": [f"x{k}" for k in range(20)], "b": [f"y{k}" for k in range(20)]},
            r"^inputs: .* got columns a, b with another .*: --data.ignore '\[\"a\", \"b\"\]'$",
        ),
        ({"a": [f"x{k % 1001}" for k in range(3000)]}, r"got column a with .* more than 1000"),
        ({"code": list(range(30))}, r"got column code with another value in each row"),
    ],
)
def test_columns_that_cannot_be_fitted_are_refused(columns: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        surveyed(**columns)


def test_text_with_fewer_values_is_no_identifier() -> None:
    surveyed(a=[f"x{k}" for k in range(19)])
    surveyed(a=[f"x{k % 19}" for k in range(20)])
    surveyed(a=[f"x{k % 1000}" for k in range(3000)])
