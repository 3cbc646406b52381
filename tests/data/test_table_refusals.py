"""Tables and arguments that are refused, before a run begins and without leaving files."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flowers import flowers, written

from softmax_torch import cli
from softmax_torch.data import TableDataModule

CONFIG = Path(__file__).parents[2] / "configs" / "table.yaml"


def change(row: int, column: str, value: Any) -> pd.DataFrame:
    frame = flowers().astype(object)
    frame.loc[row, column] = value
    return frame


SPLIT = flowers().assign(part=["train"] * 50 + ["val"] * 5 + ["test"] * 5)

TOO_FEW = pd.concat([flowers(), flowers(1).assign(kind="rare"), flowers(2).assign(kind="few")])

REFUSED = {
    "no file": (None, {"file": "b.csv"}, r"b.csv: expected a table, got no such file"),
    "no target": (
        flowers(),
        {"target": "sort"},
        r"a.csv: expected column sort, got columns size, ",
    ),
    "delimiter": (flowers(), {"delimiter": ";"}, r"got column size,color,kind; its columns look"),
    "long delimiter": (flowers(), {"delimiter": "::"}, r"delimiter: expected one character, got"),
    "no class": (
        change(7, "kind", None),
        {},
        r"a.csv, line 9, column kind: expected a class, got a",
    ),
    "one class": (
        flowers().assign(kind="a"),
        {},
        r"a.csv: expected at least two classes .* a alone",
    ),
    "few": (
        TOO_FEW,
        {},
        r"a.csv: expected at least 3 samples .* got 2 of class few, 1 of class rar",
    ),
    "unseen in part": (
        SPLIT.assign(kind=[*SPLIT["kind"][:59], "new"]),
        {"split_column": "part"},
        r"a.csv, line 61: expected a class that training samples have, got new, none of a, b, c",
    ),
    "unseen in file": (
        flowers(),
        {"test_file": "new.csv"},
        r"new.csv, line 3: expected a class that training samples have, got new, none of a, b, c",
    ),
    "other part": (
        SPLIT.replace("val", "dev"),
        {"split_column": "part"},
        r"a.csv, line 52, column part: expected train, val, test, got dev",
    ),
    "no part": (
        SPLIT.replace("val", None),
        {"split_column": "part"},
        r"a.csv, line 52, column part: expected train, val, test, got a missing value",
    ),
    "no training": (
        SPLIT.replace("train", "val"),
        {"split_column": "part"},
        r"a.csv: expected at least two classes .* got no training samples",
    ),
    "both": (
        SPLIT,
        {"split_column": "part", "test_file": "new.csv"},
        r"split_column: expected no val_file and no test_file beside it",
    ),
    "text in test": (
        flowers(),
        {"test_file": "text.csv"},
        r"text.csv, line 2, column size: expected a number, got large",
    ),
    "lacking in test": (
        flowers(),
        {"val_file": "lacking.csv"},
        r"lacking.csv: expected column color",
    ),
    "mixed": (
        change(5, "size", "?"),
        {},
        r"a.csv, line 7, column size: expected a number as in a.c",
    ),
    "infinite": (
        change(5, "size", np.inf),
        {},
        r"a.csv, line 7, column size: expected a finite num",
    ),
    "huge": (change(5, "size", 1e300), {}, r"a.csv: column size: expected numbers with a standard"),
    "ids": (
        flowers().assign(who=[f"n{k}" for k in range(60)]),
        {},
        r"a.csv: .* got column who with another value .*: --data.ignore '\[\"who\"\]'",
    ),
    "empty": (flowers().assign(more=None), {}, r"a.csv, column more: expected at least one value"),
    "empty in training": (
        SPLIT.assign(more=[None] * 50 + ["x"] * 10),
        {"split_column": "part"},
        r"a.csv: column more: expected at least one value in the training samples, got none",
    ),
    "unknown": (
        flowers(),
        {"ignore": ["colour"]},
        r"a.csv: expected column colour, got columns si",
    ),
    "unknown category": (
        flowers(),
        {"categorical": ["colour"]},
        r"a.csv: expected column colour, got columns size, ",
    ),
    "ignored category": (
        flowers(),
        {"ignore": ["color"], "categorical": ["color"]},
        r"column color: expected one use of it, got two",
    ),
    "twice": (flowers(), {"id_column": "kind"}, r"column kind: expected one use of it, got two"),
    "category": (flowers(), {"categorical": ["kind"]}, r"column kind: expected one use of it, got"),
    "nothing": (
        flowers(),
        {"ignore": ["size", "color"]},
        r"a.csv: expected columns besides kind, size, color, got none",
    ),
    "fraction": (
        flowers(),
        {"test_fraction": 1.0},
        r"fraction: expected a number in \(0, 1\), got 1",
    ),
    "batch": (flowers(), {"batch_size": 0}, r"batch_size: expected at least 1 or null, got 0"),
}


def refused(name: str) -> tuple[dict[str, str], str]:
    """Write the files of a case; return its arguments and the expected message."""
    frame, options, message = REFUSED[name]
    if frame is not None:
        written(frame)
    written(change(1, "kind", "new"), "new.csv")
    written(change(0, "size", "large"), "text.csv")
    written(flowers().drop(columns="color"), "lacking.csv")
    return {"file": "a.csv", "target": "kind"} | options, message


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_cannot_be_used(name: str, here: Path) -> None:
    given, message = refused(name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TableDataModule(**given).setup()


@pytest.mark.parametrize("name", ["few", "text in test", "ids", "batch"])
def test_a_refused_run_leaves_no_files(name: str, here: Path) -> None:
    given, message = refused(name)
    before = sorted(here.iterdir())
    flags = [text for option, value in given.items() for text in (f"--data.{option}", str(value))]
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", "--config", str(CONFIG), *flags])
    assert sorted(here.iterdir()) == before
