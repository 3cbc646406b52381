"""Settings of tables: left out columns, dates, ways of writing, missing values and labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flowers import flowers, written

from softmax_torch import preprocessing
from softmax_torch.cli.parser import parse
from softmax_torch.cli.settings import parse_settings
from softmax_torch.data import TableDataModule
from softmax_torch.data.labelled_rows import read_labelled
from softmax_torch.preprocessing.unknown_categories import UnknownCategories, counting_unknown

CONFIG = Path(__file__).parents[2] / "configs" / "table.yaml"


def ready(**options: Any) -> TableDataModule:
    data = TableDataModule(**{"file": "a.csv", "target": "kind"} | options)
    data.setup()
    return data


@pytest.mark.parametrize("ignore", [[""], [0], [-4], ["", 0]])
def test_a_column_without_a_name_is_left_out(ignore: list[str | int], here: Path) -> None:
    frame = flowers()
    frame.to_csv("a.csv")  # pandas writes the row numbers without a name
    data = ready(ignore=ignore)
    expected = ready(file=written(frame, "b.csv"))
    assert data.preprocessing.names == ["size", "color"]
    assert torch.equal(data.splits["train"].x, expected.splits["train"].x)
    pd.read_csv("a.csv").to_csv("c.csv", index=False)
    again = ready(file="c.csv", ignore=["Unnamed: 0"])
    assert torch.equal(again.splits["train"].x, expected.splits["train"].x)
    named = ready(id_column="")
    assert named.test_ids == data.test_ids


def test_several_columns_without_a_name(here: Path) -> None:
    Path("a.csv").write_text("size,kind,,\n" + "".join(f"{k},{'ab'[k % 2]},,\n" for k in range(40)))
    assert ready(ignore=[""]).preprocessing.names == ["size"]


@pytest.mark.parametrize(
    ("header", "options", "message"),
    [
        (
            "",
            {},
            r"a.csv: expected a name for each of the 4 columns, got none for column 1; pandas .*: "
            r"--data.ignore '\[\"\"\]'$",
        ),
        (
            "Unnamed: 0",
            {},
            r"got 'Unnamed: 0' for column 1; .* --data.ignore '\[\"Unnamed: 0\"\]'$",
        ),
        ("", {"ignore": [4]}, r"ignore: expected a position in \[-4, 4\), .* 4 columns, got 4$"),
        ("", {"ignore": ["no"]}, r"a.csv: expected column no, got columns without a name, size"),
        ("", {"ignore": [0], "dates": ["size"], "categorical": ["size"]}, "size: expected one use"),
        ("", {"ignore": [0, "color"], "dates": ["color"]}, "column color: expected one use"),
    ],
)
def test_columns_without_a_name_are_refused(
    header: str, options: Any, message: str, here: Path
) -> None:
    flowers().to_csv("a.csv", index_label=header)
    with pytest.raises(ValueError, match=message):
        ready(**options)


def test_dates_and_numbers_of_a_spreadsheet(here: Path) -> None:
    """A checkpoint's preprocessing reads new files as the training file was read."""
    frame = flowers()
    days = pd.date_range("2020-01-01", periods=60)
    frame["day"] = days.strftime("%Y-%m-%d")
    plain = ready(file=written(frame), dates=["day"])
    frame["size"] = [f"{1000 * v:,.2f}".translate(str.maketrans(",.", ".,")) for v in frame["size"]]
    data = ready(file=written(frame, "b.csv"), dates=["day"], decimal=",", thousands=".")
    again = preprocessing.from_state_dict(data.preprocessing.state_dict())
    x = plain.preprocessing.tensor("a.csv")
    torch.testing.assert_close(again.tensor("b.csv"), x, atol=1e-4, rtol=1e-5)
    assert data.preprocessing.columns[2].mean == plain.preprocessing.columns[2].mean
    typed = pd.read_csv("a.csv").assign(day=days, size=lambda f: 1000 * f["size"])
    torch.testing.assert_close(again.tensor(typed), x, atol=1e-4, rtol=1e-5)
    typed.to_parquet("c.parquet")
    torch.testing.assert_close(again.tensor("c.parquet"), x, atol=1e-4, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"b.csv, line 2, column size: .* got .*; --data.decimal ,"
    ):
        ready(file="b.csv", dates=["day"])
    with pytest.raises(ValueError, match=r"line 2, column day: .* got dates such as 2020-01-01"):
        ready(file="a.csv")


def test_texts_that_mean_missing(here: Path) -> None:
    frame = flowers().astype(object)
    expected = ready(file=written(frame.assign(size=frame["size"].where(frame.index != 5))))
    frame.loc[5, "size"] = "?"
    data = ready(file=written(frame.fillna({"color": "-"}), "b.csv"), missing=["?", "-"])
    assert torch.equal(data.splits["train"].x, expected.splits["train"].x)
    again = preprocessing.from_state_dict(data.preprocessing.state_dict())
    assert torch.equal(again.tensor("b.csv"), expected.preprocessing.tensor("a.csv"))


def test_a_missing_label_is_refused_or_left_out(here: Path, messages: list[str]) -> None:
    frame = flowers()
    frame.loc[[3, 7], "kind"] = None
    written(frame)
    message = r"a.csv, line 5, column kind: .*missing value; .* --data.drop_unlabelled true$"
    with pytest.raises(ValueError, match=message):
        ready()
    data = ready(drop_unlabelled=True)
    assert messages == ["unlabelled: 2 of 60 rows of a.csv have no class and are left out"]
    assert sum(len(split) for split in data.splits.values()) == 58
    assert not {"3", "7"} & {*data.test_ids}
    kept = frame.dropna(subset="kind")
    x = data.preprocessing.tensor(kept)
    together = torch.cat([split.x for split in data.splits.values()])
    assert torch.equal(together[:, 0].sort().values, x[:, 0].sort().values)
    for split in data.splits.values():
        assert split.y.min() >= 0
    # The file with labels is the training file, and the other one the test file.
    written(flowers(), "b.csv")
    data = ready(file="b.csv", test_file="a.csv", drop_unlabelled=True)
    assert len(data.splits["test"]) == 58


def test_a_class_may_be_called_na(here: Path) -> None:
    frame = flowers()
    frame["kind"] = frame["kind"].replace("a", "NA")
    written(frame)
    with pytest.raises(
        ValueError, match=r"missing value \(NA\); .*: --data.keep_labels '\[\"NA\"\]'"
    ):
        ready()
    data = ready(keep_labels=["NA"])
    assert data.preprocessing.class_names == ("NA", "b", "c")
    assert "color=(missing)" in data.preprocessing.feature_names  # in features NA stays missing
    frame["color"] = frame["color"].fillna("NA")
    written(frame)
    again = ready(keep_labels=["NA"])
    assert torch.equal(again.splits["train"].x, data.splits["train"].x)
    scored = read_labelled(data.preprocessing, "a.csv").splits["test"]
    assert torch.bincount(scored.y).tolist() == [20, 20, 20]


def test_unknown_categories_of_test_samples(here: Path, messages: list[str]) -> None:
    new = flowers(30, seed=1)
    new.loc[[4, 8], "color"] = "green"
    written(flowers())
    written(new, "b.csv")
    ready(test_file="b.csv")
    said = "column color: 2 of 30 values, such as 'green', treated as no category"
    assert messages == [f"unknown: b.csv, {said}"]
    with pytest.raises(ValueError, match=r"b.csv, line 6, column color: expected .* got green$"):
        ready(test_file="b.csv", unknown="refuse")
    with pytest.raises(ValueError, match="unknown: expected report or refuse, got 'ask'"):
        ready(unknown="ask")


def test_labels_are_matched_by_value(here: Path) -> None:
    """A Parquet file has the numbers of labels that the training file has as text."""
    frame = flowers()
    frame["kind"] = frame["kind"].map({"a": "01", "b": "02", "c": "1.50"})
    written(frame)
    numbers = frame.assign(kind=frame["kind"].astype(float))
    numbers.to_parquet("b.parquet")
    data = ready(test_file="b.parquet")
    names = data.preprocessing.class_names
    assert [names[c] for c in data.splits["test"].y] == frame["kind"].tolist()
    frame["kind"] = frame["kind"].replace("02", "1")
    written(frame)
    frame.assign(kind=frame["kind"].astype(float)).to_parquet("b.parquet")
    message = r"b.parquet, row 0: expected a class .*, got 1, the number of several of 01, 1, 1.50"
    with pytest.raises(ValueError, match=message):
        ready(test_file="b.parquet")


def test_a_labelled_file_is_read_as_samples(here: Path, messages: list[str]) -> None:
    data = ready(file=written(flowers(150)), id_column=None)
    frame = flowers(30, seed=2)
    frame["kind"].to_frame().join(frame.drop(columns="kind")).to_json(
        "new.jsonl", orient="records", lines=True
    )
    splits, ids, groups = read_labelled(data.preprocessing, "new.jsonl")
    found = splits["test"]
    assert groups == {}
    assert torch.equal(found.x, data.preprocessing.tensor(frame))
    assert found.y.tolist() == [("abc").index(kind) for kind in frame["kind"]]
    assert ids == [str(row) for row in range(30)]
    again = preprocessing.from_state_dict(data.preprocessing.state_dict())
    renamed = written(frame.rename(columns={"kind": "sort"}), "b.csv")
    assert torch.equal(read_labelled(again, renamed, "sort").splits["test"].y, found.y)
    with pytest.raises(ValueError, match=r"b.csv: expected column kind, got columns size, color"):
        read_labelled(again, "b.csv")
    frame.loc[4, "kind"] = None
    frame.loc[6, "color"] = "green"
    written(frame, "c.csv")
    with pytest.raises(ValueError, match=r"c.csv, line 6, column kind: expected a class"):
        read_labelled(again, "c.csv")
    with pytest.raises(ValueError, match=r"c.csv, line 8, column color: expected a category"):
        read_labelled(again, "c.csv", drop_unlabelled=True, refuse_unknown=True)
    splits, ids, _ = read_labelled(again, "c.csv", drop_unlabelled=True)
    assert len(splits["test"]) == len(ids) == 29
    assert messages[-1].startswith("unknown: c.csv, column color: 1 of 30 values")
    written(frame.assign(kind=np.where(frame.index == 9, "d", "a")), "d.csv")
    with pytest.raises(
        ValueError, match=r"d.csv, line 11: expected a class .* got d, none of a, b"
    ):
        read_labelled(again, "d.csv")
    written(frame.assign(kind=None), "e.csv")
    with pytest.raises(ValueError, match=r"e.csv: expected rows with a class in column kind, got"):
        read_labelled(again, "e.csv", drop_unlabelled=True)
    again.target = None  # as in checkpoints of earlier versions
    with pytest.raises(ValueError, match="target: expected the column with the classes"):
        read_labelled(again, "b.csv")


def test_a_preprocessing_of_an_earlier_version_is_read(here: Path) -> None:
    data = ready(file=written(flowers()))
    state = data.preprocessing.state_dict()
    for name in ("decimal", "thousands", "missing", "dates", "target"):
        del state[name]
    again = preprocessing.from_state_dict(state)
    with counting_unknown(UnknownCategories()):
        assert torch.equal(again.tensor("a.csv"), data.preprocessing.tensor("a.csv"))


def test_settings_are_given_on_the_command_line() -> None:
    flags = {
        "ignore": ("""["", 0, "Unnamed: 0"]""", ["", 0, "Unnamed: 0"]),
        "dates": ("""["day"]""", ["day"]),
        "missing": ("""["?"]""", ["?"]),
        "keep_labels": ("""["NA"]""", ["NA"]),
        "decimal": (",", ","),
        "thousands": (".", "."),
        "drop_unlabelled": ("true", True),
        "unknown": ("refuse", "refuse"),
    }
    args = [text for name, (value, _) in flags.items() for text in (f"--data.{name}", value)]
    request = parse(["fit", "--config", str(CONFIG), *args])
    _, config = parse_settings(request)
    given = config["data"]["init_args"]
    assert {name: given[name] for name in flags} == {name: v for name, (_, v) in flags.items()}
