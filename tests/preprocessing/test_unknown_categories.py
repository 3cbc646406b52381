"""Categories that training never saw are counted, reported or refused."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from softmax_torch.modules import Classifier, SoftmaxRegression
from softmax_torch.predictor import Predictor
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.table import CategoricalColumn
from softmax_torch.preprocessing.unknown_categories import (
    UnknownCategories,
    UnknownCategoryWarning,
    counting_unknown,
)

CITIES = ["Oslo", "Rome", None, "Bergen", "Oslo"]
MESSAGE = "column city: 3 of 5 values, such as 'Oslo', treated as no category"


@pytest.fixture
def predictor() -> Predictor:
    preprocessing = TablePreprocessing(
        [CategoricalColumn("city", ("Paris", "Rome"), False)], ("no", "yes")
    )
    return Predictor(Classifier(nn.Identity(), SoftmaxRegression(2, 2)), preprocessing)


def written(path: Path) -> Path:
    path.write_text("city,more\n" + "".join(f"{city or ''},1\n" for city in CITIES))
    return path


def test_predictions_from_python_warn_once_in_the_callers_line(predictor: Predictor) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predictor.predict_proba({"city": CITIES})
    [warning] = caught
    assert (warning.category, str(warning.message)) == (UnknownCategoryWarning, MESSAGE)
    assert warning.filename == __file__
    predictor.predict_proba({"city": ["Rome", None]})  # nothing unknown


def test_files_are_counted_over_all_blocks(predictor: Predictor, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv")
    preprocessing = predictor.preprocessing
    with counting_unknown(UnknownCategories()) as found:
        parts = [x for _, x in preprocessing.read(path, 2)]
    assert found.messages() == [MESSAGE]
    with pytest.warns(UnknownCategoryWarning, match=MESSAGE):
        whole = preprocessing.tensor(path)
    assert torch.equal(torch.cat(parts), whole)
    with pytest.warns(UnknownCategoryWarning, match=MESSAGE):
        list(preprocessing.read(path, 2))


def test_unknown_categories_are_refused_on_request(predictor: Predictor, tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv")
    with (
        counting_unknown(UnknownCategories(refuse=True)),
        pytest.raises(ValueError, match=r"a.csv, line 2, column city: expected a cat.* got Oslo$"),
    ):
        list(predictor.predict_file(path))


def test_columns_with_most_unknown_values_come_first() -> None:
    found = UnknownCategories(counts={f"c{k}": (k, 20, "x") for k in range(12)})
    lines = found.messages()
    assert lines[0] == "column c11: 11 of 20 values, such as 'x', treated as no category"
    assert lines[-1] == "and 3 more columns"
    assert len(lines) == 9
