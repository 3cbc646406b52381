"""Data that have changed since a checkpoint are refused with what differs."""

import pytest

from softmax_torch.preprocessing import FeaturesPreprocessing, Preprocessing, TablePreprocessing
from softmax_torch.preprocessing.table import NumericColumn
from softmax_torch.training.compatibility import check_checkpoint

COLUMNS = (NumericColumn("length", 1.0, 2.0), NumericColumn("width", 0.0, 1.0))
CHECKPOINT = {
    "hyper_parameters": {},
    "preprocessing": TablePreprocessing(COLUMNS, ("a", "b")).state_dict(),
}


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (TablePreprocessing(COLUMNS, ("a", "c")), "class names c in place of b"),
        (TablePreprocessing(COLUMNS[:1], ("a", "b")), r"feature names \(none\) in place of width"),
        (
            TablePreprocessing((COLUMNS[0], NumericColumn("width", 0.5, 1.0)), ("a", "b")),
            "columns width$",
        ),
        (FeaturesPreprocessing(2, ("a", "b")), "from table to features"),
    ],
)
def test_the_difference_is_named(now: Preprocessing, message: str) -> None:
    with pytest.raises(ValueError, match=f"the training data or their settings .*: {message}"):
        check_checkpoint(CHECKPOINT, {}, now)


def test_the_same_data_are_accepted() -> None:
    check_checkpoint(CHECKPOINT, {}, TablePreprocessing(COLUMNS, ("a", "b")))
