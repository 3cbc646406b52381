"""Tables as data sets: their parts, their classes, and what is refused before a run begins."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

from softmax_torch import cli
from softmax_torch.data import TableDataModule, table
from softmax_torch.data.splits import stratified
from softmax_torch.preprocessing import TablePreprocessing, same
from softmax_torch.readers.tables import Chunk
from softmax_torch.solvers import fit

CONFIG = Path(__file__).parents[2] / "configs" / "table.yaml"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def flowers(n: int = 60, seed: int = 0) -> pd.DataFrame:
    """Two columns, one with missing values, that tell three classes apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    size = (y + rng.normal(0, 0.3, n)).round(3)
    color = np.array(["red", "blue", "white"])[y].astype(object)
    color[rng.random(n) < 0.3] = np.nan
    return pd.DataFrame({"size": size, "color": color, "kind": np.array(["b", "c", "a"])[y]})


def written(frame: pd.DataFrame, name: str = "a.csv") -> str:
    frame.to_csv(name, index=False)
    return name


def ready(**options: Any) -> TableDataModule:
    data = TableDataModule(**options)
    data.setup()
    return data


def test_parts_are_drawn_class_by_class(here: Path) -> None:
    data = ready(file=written(flowers(150)), target="kind")
    assert {part: len(split) for part, split in data.splits.items()} == {
        "train": 108,
        "val": 12,
        "test": 30,
    }
    for split in data.splits.values():
        assert torch.bincount(split.y).unique().numel() == 1
        assert split.x.dtype == torch.float32
        assert split.y.dtype == torch.int64
        assert split.x.shape == (len(split), data.in_features)
    assert data.num_classes == 3
    assert data.preprocessing.class_names == ("a", "b", "c")
    names = ("size", "color=blue", "color=red", "color=white", "color=(missing)")
    assert data.preprocessing.feature_names == names
    assert data.class_counts.tolist() == [36, 36, 36]


def test_samples_are_the_rows_of_the_file(here: Path) -> None:
    frame = flowers(150)
    data = ready(file=written(frame), target="kind")
    x = data.preprocessing.tensor(frame)
    rows = [int(name) for name in data.test_ids]
    assert torch.equal(data.splits["test"].x, x[rows])
    names = [data.preprocessing.class_names[c] for c in data.splits["test"].y]
    assert names == frame["kind"][rows].tolist()
    together = torch.cat([split.x for split in data.splits.values()])
    assert torch.equal(together[:, 0].sort().values, x[:, 0].sort().values)
    assert torch.equal(together.sum(0), x.sum(0)) or torch.allclose(
        together.sum(0), x.sum(0), atol=1e-4
    )


@pytest.mark.parametrize("rows", [1, 13, 500])
@pytest.mark.parametrize("options", [{}, {"test_file": "b.parquet"}])
def test_raw_inputs_of_the_test_set(
    options: dict[str, str], rows: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flowers(40, seed=1).to_parquet("b.parquet")
    monkeypatch.setattr(table, "ROWS", 16)
    data = ready(file=written(flowers(150)), target="kind", **options)
    raw = data.test_inputs(rows)
    assert len(raw) == min(rows, 40 if options else 30)
    assert torch.equal(data.preprocessing.tensor(raw), data.splits["test"].x[:rows])


def test_the_seed_draws_validation_and_leaves_the_test_set(here: Path) -> None:
    file = written(flowers(150))
    one, other = (ready(file=file, target="kind", seed=seed) for seed in (0, 1))
    assert one.test_ids == other.test_ids
    assert torch.equal(one.splits["test"].y, other.splits["test"].y)
    assert one.fingerprint != other.fingerprint
    again = ready(file=file, target="kind")
    assert again.fingerprint == one.fingerprint
    larger = ready(file=file, target="kind", test_fraction=0.4, val_fraction=0.5)
    assert [len(larger.splits[part]) for part in ("train", "val", "test")] == [45, 45, 60]


def test_parts_come_from_files(here: Path) -> None:
    files = {part: written(flowers(30, seed), f"{part}.csv") for seed, part in enumerate("abc")}
    data = ready(file="a.csv", val_file="b.csv", test_file="c.csv", target="kind")
    for part, name in (("train", "a"), ("val", "b"), ("test", "c")):
        frame = pd.read_csv(files[name])
        assert torch.equal(data.splits[part].x, data.preprocessing.tensor(frame))
        assert data.splits[part].y.tolist() == [("abc").index(k) for k in frame["kind"]]
    assert data.test_ids == [str(row) for row in range(30)]
    data = ready(file="a.csv", test_file="c.csv", target="kind")
    assert [len(data.splits[part]) for part in ("train", "val", "test")] == [27, 3, 30]


def test_parts_come_from_a_column(here: Path) -> None:
    frame = flowers(30)
    frame["part"] = ["train", "train", "test", "val", "train"] * 6
    frame["who"] = [f"n{k}" for k in range(30)]
    options = {"file": written(frame), "target": "kind", "split_column": "part"}
    data = ready(**options, id_column="who")
    x = data.preprocessing.tensor(frame)
    for part in ("train", "val", "test"):
        assert torch.equal(data.splits[part].x, x[[*np.flatnonzero(frame["part"] == part)]])
    assert data.test_ids == [f"n{k}" for k in range(2, 30, 5)]
    assert "part" not in str(data.preprocessing.feature_names)
    frame["part"] = frame["part"].replace("val", "train")
    written(frame)
    data = ready(**options, ignore=["who"])  # the one that no row has is drawn
    assert [len(data.splits[part]) for part in ("train", "val", "test")] == [21, 3, 6]


def test_only_training_samples_are_fitted_to(here: Path) -> None:
    """Kinds of columns aside, which all rows of the file decide."""
    frame = flowers(30)
    frame["part"] = ["train", "train", "test", "val", "train"] * 6
    options = {"file": "a.csv", "target": "kind", "split_column": "part"}
    written(frame)
    state = ready(**options).preprocessing.state_dict()
    others = frame["part"] != "train"
    frame.loc[others, "size"] = 1e6
    frame.loc[others, "color"] = "green"
    written(frame)
    assert ready(**options).preprocessing.state_dict() == state
    written(frame[~others].drop(columns="part"), "b.csv")
    written(frame.drop(columns="part"), "c.csv")
    files = {"file": "b.csv", "val_file": "c.csv", "test_file": "c.csv"}
    assert ready(**files, target="kind").preprocessing.state_dict() == state
    frame.loc[0, "size"] = 1e6
    written(frame)
    assert ready(**options).preprocessing.state_dict() != state


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", "10"], ("10", "a", "b")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([1.0, 10.0, 9.0], ("1", "9", "10")),
        ([True, False, True], ("false", "true")),
    ],
)
def test_names_of_classes(labels: list[Any], expected: tuple[str, ...], here: Path) -> None:
    frame = flowers(30).assign(kind=labels * 10)
    assert ready(file=written(frame), target="kind").preprocessing.class_names == expected


def test_chunks_of_any_size_give_the_same(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(flowers(60))
    whole = ready(file=file, target="kind")
    monkeypatch.setattr(table, "ROWS", 7)
    monkeypatch.setattr(table, "MAX_ENCODED", 19)  # three rows of five numbers
    encode, together = TablePreprocessing.encode, []

    def noted(self: TablePreprocessing, chunk: Chunk) -> torch.Tensor:
        together.append(len(chunk))
        return encode(self, chunk)

    monkeypatch.setattr(TablePreprocessing, "encode", noted)
    parts = ready(file=file, target="kind")
    assert set(together) == {3}
    assert same(parts.preprocessing.state_dict(), whole.preprocessing.state_dict())
    assert parts.test_ids == whole.test_ids
    for part, split in whole.splits.items():
        assert torch.equal(parts.splits[part].y, split.y)
        torch.testing.assert_close(parts.splits[part].x, split.x)


def test_formats_give_the_same(here: Path) -> None:
    frame = flowers(60)
    whole = ready(file=written(frame), target="kind")
    frame.to_parquet("a.parquet")
    frame.to_csv("a.tsv", index=False, sep="\t")
    frame.to_csv("b.csv", index=False, sep=";")
    frame.to_csv("c.csv", index=False, sep="\t")
    np.savez("a.npz", **{name: frame[name].fillna("").to_numpy("U") for name in ("color", "kind")},
             size=frame["size"])  # fmt: skip
    for name, options in (
        ("a.parquet", {}),
        ("a.tsv", {}),
        ("b.csv", {"delimiter": ";"}),
        ("c.csv", {"delimiter": r"\t"}),  # as a shell hands it over
    ):
        data = ready(file=name, target="kind", **options)
        assert torch.equal(data.splits["train"].x, whole.splits["train"].x)
    data = ready(file="a.npz", target="kind")
    assert torch.equal(data.splits["train"].x[:, -1], whole.splits["train"].x[:, 0])


def test_wine_is_learnt_as_from_tensors(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples standardised by scikit-learn, and fitted by a call, are as often right."""
    wine = load_wine(as_frame=True).frame
    data = ready(file=written(wine, "wine.csv"), target="target")
    x = torch.from_numpy(wine.drop(columns="target").to_numpy(copy=True))
    y = torch.from_numpy(wine["target"].to_numpy(copy=True))
    rest, test = stratified(y, 0.2, 0)
    train = rest[stratified(y[rest], 0.1, 0)[0]]
    assert [int(name) for name in data.test_ids] == test.tolist()
    scaler = StandardScaler().fit(x[train])
    x = torch.from_numpy(scaler.transform(x)).float()
    assert torch.equal(data.splits["train"].y, y[train])
    torch.testing.assert_close(data.splits["train"].x, x[train], rtol=1e-5, atol=1e-6)
    solution = fit(x[train], y[train], C=1.0)
    expected = (x[test] @ solution.weight.float().T + solution.bias.float()).argmax(1) == y[test]
    results: list[Any] = []
    monkeypatch.setattr("softmax_torch.cli.commands.figures", lambda r: results.append(r) or "")
    cli.main(["fit", "--config", str(CONFIG), "--data.file", "wine.csv", "--data.target", "target"])
    accuracy = expected.double().mean().item()
    assert accuracy > 0.9
    assert results[-1]["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)


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
        r"a.csv: .* got column who with another value .*: ignore=\[\"who\"\]",
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
    """The files of a case, what is asked for, and what is said."""
    frame, options, message = REFUSED[name]
    if frame is not None:
        written(frame)
    written(change(1, "kind", "new"), "new.csv")
    written(change(0, "size", "large"), "text.csv")
    written(flowers().drop(columns="color"), "lacking.csv")
    return {"file": "a.csv", "target": "kind"} | options, message


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used(name: str, here: Path) -> None:
    given, message = refused(name)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        TableDataModule(**given).setup()


@pytest.mark.parametrize("name", ["few", "text in test", "ids", "batch"])
def test_a_run_that_is_refused_leaves_nothing(name: str, here: Path) -> None:
    given, message = refused(name)
    before = sorted(here.iterdir())
    flags = [text for option, value in given.items() for text in (f"--data.{option}", str(value))]
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", "--config", str(CONFIG), *flags])
    assert sorted(here.iterdir()) == before
