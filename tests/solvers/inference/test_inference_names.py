"""Names of features and classes: labels of any kind, frames, and the reference class."""

from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch
from small_samples import LABELS, NAMES, labels, small

from softmax_torch.solvers import fit, inference

X, Y, GROUPS = small()


@pytest.mark.parametrize(
    "y",
    [
        labels(Y),
        labels(Y).tolist(),
        pd.Series(labels(Y)),
        pd.Series(labels(Y), dtype="category"),
        pl.Series(labels(Y)),
        pa.array(labels(Y)),
    ],
    ids=["numpy", "list", "pandas", "categories", "polars", "pyarrow"],
)
def test_labels_are_strings(y: Any) -> None:
    found, expected = inference(X, y), inference(X, Y)
    assert found.class_names == tuple(LABELS)
    assert found.labels == tuple(LABELS)
    assert found.row_names == ("low", "mid")
    assert torch.equal(found.coefficients, expected.coefficients)


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (10 * Y - 3, ("-3", "7", "17")),
        (Y + 0.0, ("0.0", "1.0", "2.0")),
        (torch.tensor(Y, dtype=torch.uint8), ("0", "1", "2")),
    ],
    ids=["whole numbers", "floats", "bytes"],
)
def test_labels_are_numbers(y: Any, names: tuple[str, ...]) -> None:
    found = inference(X, y)
    assert found.class_names == names
    assert torch.equal(found.coefficients, inference(X, Y).coefficients)


def test_labels_are_booleans() -> None:
    assert inference(X, Y > 0).class_names == ("False", "True")


FRAMES: dict[str, Any] = {
    "pandas": pd.DataFrame(X, columns=NAMES),
    "polars": pl.DataFrame(X, schema=NAMES),
    "pyarrow": pa.table(dict(zip(NAMES, X.T, strict=True))),
    "blocks": [pd.DataFrame(X[:100], columns=NAMES), pd.DataFrame(X[100:], columns=NAMES)],
}


@pytest.mark.parametrize("frame", FRAMES)
def test_a_frame_names_the_features(frame: str) -> None:
    found = inference(FRAMES[frame], Y)
    assert found.feature_names == tuple(NAMES)
    assert found.column_names == (*NAMES, "intercept")
    torch.testing.assert_close(found.coefficients, inference(X, Y).coefficients)


def test_fit_takes_a_table_of_pyarrow() -> None:
    table = pa.table({"flag": [True, False] * 150, "whole": list(range(300))})
    expected = fit(np.column_stack([[1, 0] * 150, np.arange(300)]), Y)
    assert torch.equal(fit(table, Y).weight, expected.weight)
    with pytest.raises(ValueError, match=r"no missing values, got some in column 1 \('whole'\)"):
        fit(table.set_column(1, "whole", [[None, *range(299)]]), Y)


def test_names_given_come_before_those_of_a_frame() -> None:
    found = inference(
        FRAMES["pandas"], Y, feature_names=["a", "b", "c"], class_names=["x", "y", "z"]
    )
    assert found.feature_names == ("a", "b", "c")
    assert found.row_names == ("y", "z")
    assert inference(X, Y).feature_names == ("x0", "x1", "x2")


@pytest.mark.parametrize(
    ("y", "reference", "options", "index"),
    [
        (labels(Y), "mid", {}, 2),
        (labels(Y), 1, {}, 1),
        (Y + 1, 1, {}, 0),
        (Y + 1, np.int64(3), {}, 2),
        (Y, "b", {"class_names": ["a", "b", "c"]}, 1),
        (Y, 2, {"class_names": ["a", "b", "c"]}, 2),
    ],
)
def test_the_reference_is_a_label_a_name_or_an_index(
    y: Any, reference: Any, options: dict[str, Any], index: int
) -> None:
    found = inference(X, y, reference=reference, **options)
    assert found.reference == index
    expected = inference(X, Y, reference=index)
    assert torch.equal(found.coefficients, expected.coefficients)


SEPARATED = np.where(X[:, 1] > 2, "big", "little")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"reference": "x"}, ValueError, "expected one of 'high', 'low', 'mid' or None, got 'x'"),
        ({"reference": 3}, ValueError, "expected one of .* or None, got 3"),
        ({"y": Y, "reference": 3}, ValueError, r"a class in \[0, 3\) or None, got 3"),
        ({"y": [None, *labels(Y)[1:]]}, TypeError, "y: expected no missing labels, got None"),
        ({"y": pd.Series([np.nan, *Y[1:]])}, ValueError, "y: expected no missing labels"),
        ({"y": pd.Series([None, *labels(Y)[1:]])}, ValueError, "y: expected no missing labels"),
        ({"y": Y + 0.5}, TypeError, "labels that are whole numbers or strings, got 0.5"),
        ({"y": Y.reshape(-1, 1)}, ValueError, r"y: expected shape \(n,\), a label .*\(300, 1\)"),
        ({"y": Y[:5]}, ValueError, r"y: expected shape \(300,\)"),
        ({"feature_names": ["a", "b"]}, ValueError, "feature_names: expected 3 names, got 2"),
        ({"feature_names": ["a", "b", "a"]}, ValueError, "different names, got 'a' twice"),
        ({"class_names": "abc"}, TypeError, "expected a sequence of names, got str 'abc'"),
        ({"feature_names": 5}, TypeError, "feature_names: expected a sequence of names, got int 5"),
        ({"confidence": "0.9"}, TypeError, "confidence: expected a number, got '0.9'"),
        ({"y": SEPARATED, "seed": 1.5}, ValueError, "seed: expected a whole number, got 1.5"),
        ({"y": SEPARATED, "seed": 2**60}, ValueError, "seed: .* at most 53 bits, got 1152921"),
        (
            {"y": SEPARATED, "feature_names": NAMES},
            ValueError,
            r"column 1 \('depth'\) separates class 'little' from class 'big'.*penalty=\"l2\"",
        ),
        (
            {"X": np.column_stack([X, X[:, 0] + X[:, 2]]), "feature_names": [*NAMES, "sum"]},
            ValueError,
            r"column 0 \('length'\), column 2 \('mass'\), column 3 \('sum'\) are involved",
        ),
        (
            {"X": np.column_stack([X, np.ones(300)]), "feature_names": [*NAMES, "one"]},
            ValueError,
            r"column 3 \('one'\), the intercept are involved",
        ),
        ({"X": np.where(X == X[7, 1], np.nan, X)}, ValueError, "got NaN in column 1"),
        (
            {"X": X[:6], "y": [0, 1, 1, 0, 1, 0], "sample_weight": [1, 1, 1, 0, 0, 0]},
            ValueError,
            "got 3 samples for 3 columns and the intercept",
        ),
    ],
)
def test_refused(changes: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        inference(**({"X": X, "y": labels(Y)} | changes))
