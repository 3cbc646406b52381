"""Tables as data sets: splits, classes, test inputs, chunks and formats."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from flowers import flowers, written
from sklearn.datasets import load_wine
from sklearn.preprocessing import StandardScaler

from softmax_torch import cli
from softmax_torch.data import TableDataModule, labelled_rows
from softmax_torch.data.splits import stratified
from softmax_torch.preprocessing import TablePreprocessing, same
from softmax_torch.readers.tables import Chunk
from softmax_torch.solvers import fit

CONFIG = Path(__file__).parents[2] / "configs" / "table.yaml"


def ready(**options: Any) -> TableDataModule:
    data = TableDataModule(**options)
    data.setup()
    return data


def test_splits_are_drawn_class_by_class(here: Path) -> None:
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
def test_raw_test_inputs_come_from_the_file(
    options: dict[str, str], rows: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flowers(40, seed=1).to_parquet("b.parquet")
    monkeypatch.setattr(labelled_rows, "READ_ROWS", 16)
    data = ready(file=written(flowers(150)), target="kind", **options)
    raw = data.test_inputs(rows)
    assert len(raw) == min(rows, 40 if options else 30)
    assert torch.equal(data.preprocessing.tensor(raw), data.splits["test"].x[:rows])


def test_the_seed_changes_validation_and_not_the_test_set(here: Path) -> None:
    file = written(flowers(150))
    one, other = (ready(file=file, target="kind", seed=seed) for seed in (0, 1))
    assert one.test_ids == other.test_ids
    assert torch.equal(one.splits["test"].y, other.splits["test"].y)
    assert one.fingerprint != other.fingerprint
    again = ready(file=file, target="kind")
    assert again.fingerprint == one.fingerprint
    larger = ready(file=file, target="kind", test_fraction=0.4, val_fraction=0.5)
    assert [len(larger.splits[part]) for part in ("train", "val", "test")] == [45, 45, 60]


def test_splits_from_files(here: Path) -> None:
    files = {part: written(flowers(30, seed), f"{part}.csv") for seed, part in enumerate("abc")}
    data = ready(file="a.csv", val_file="b.csv", test_file="c.csv", target="kind")
    for part, name in (("train", "a"), ("val", "b"), ("test", "c")):
        frame = pd.read_csv(files[name])
        assert torch.equal(data.splits[part].x, data.preprocessing.tensor(frame))
        assert data.splits[part].y.tolist() == [("abc").index(k) for k in frame["kind"]]
    assert data.test_ids == [str(row) for row in range(30)]
    data = ready(file="a.csv", test_file="c.csv", target="kind")
    assert [len(data.splits[part]) for part in ("train", "val", "test")] == [27, 3, 30]


def test_splits_from_a_column(here: Path) -> None:
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
    data = ready(**options, ignore=["who"])  # the split without rows is drawn
    assert [len(data.splits[part]) for part in ("train", "val", "test")] == [21, 3, 6]


def test_only_training_samples_are_fitted_to(here: Path) -> None:
    """All rows of the file decide only which columns are numeric."""
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
def test_class_names_are_sorted(labels: list[Any], expected: tuple[str, ...], here: Path) -> None:
    frame = flowers(30).assign(kind=labels * 10)
    assert ready(file=written(frame), target="kind").preprocessing.class_names == expected


def test_chunks_of_any_size_give_the_same_splits(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(flowers(60))
    whole = ready(file=file, target="kind")
    monkeypatch.setattr(labelled_rows, "READ_ROWS", 7)
    monkeypatch.setattr(labelled_rows, "MAX_ENCODED", 19)  # three rows of five numbers
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


def test_all_formats_give_the_same_splits(here: Path) -> None:
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
        ("c.csv", {"delimiter": r"\t"}),  # as a shell passes it
    ):
        data = ready(file=name, target="kind", **options)
        assert torch.equal(data.splits["train"].x, whole.splits["train"].x)
    data = ready(file="a.npz", target="kind")
    assert torch.equal(data.splits["train"].x[:, -1], whole.splits["train"].x[:, 0])


def test_a_run_on_wine_has_the_accuracy_of_a_fit_to_tensors(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tensors are the same samples, standardised by scikit-learn."""
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
    results: dict[str, dict[str, float]] = {}
    monkeypatch.setattr("softmax_torch.cli.fit_summary.print_metrics", results.update)
    cli.main(["fit", "--config", str(CONFIG), "--data.file", "wine.csv", "--data.target", "target"])
    accuracy = expected.double().mean().item()
    assert accuracy > 0.9
    assert results["test"]["test/accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_a_table_describes_its_columns(here: Path) -> None:
    frame = flowers()
    frame.loc[[3, 4], "size"] = np.nan
    frame["note"] = [f"note {k}" for k in range(60)]
    data = ready(file=written(frame), target="kind", ignore=["note"])
    found = data.describe()
    train = frame.drop(index=[int(row) for row in data.test_ids])
    assert found.samples == {"train": 43, "val": 5, "test": 12}
    assert found.class_counts.tolist() == [20, 20, 20]
    assert found.class_names == ("a", "b", "c")
    columns = found.columns
    assert columns is not None
    assert columns[:4] == (1, 1, 4, 1)  # of colors there are three, and missing ones
    counts = train[["size", "color"]].isna().sum()  # validation samples included
    assert 0 < columns.missing["color"] <= counts["color"]
    assert columns.missing.get("size", 0) <= counts["size"]
