"""The base of data modules: checks before training, a seeded split, loaders, no early reading."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from softmax_torch.data import (
    BackboneFeaturesDataModule,
    DigitsDataModule,
    FeaturesDataModule,
    ImageFolderDataModule,
    MNISTDataModule,
    Split,
    TableDataModule,
    TensorDataModule,
    splits,
)
from softmax_torch.data.splits import random_split


class Given(TensorDataModule):
    """A data module over tensors of 3 features and 4 classes."""

    def __init__(self, train: Split, test: Split | None = None, **options: object) -> None:
        super().__init__(3, 4, **{"batch_size": 4, "val_fraction": 0.25, "seed": 0, **options})
        self.train, self.test = train, test or train

    def read(self) -> tuple[Split, Split]:
        return self.train, self.test


def good(n: int = 20) -> Split:
    return Split(torch.arange(3.0 * n).reshape(n, 3), torch.arange(n) % 4)


def with_value(data: Split, row: int, x: float | None = None, y: int | None = None) -> Split:
    """Return a copy of the data with one value changed."""
    data = Split(data.x.clone(), data.y.clone())
    if x is not None:
        data.x[row, 1] = x
    if y is not None:
        data.y[row] = y
    return data


def test_a_random_split_is_disjoint_complete_and_seeded() -> None:
    def numbers(seed: int) -> list[list[int]]:
        parts = random_split(good(), 0.3, seed)
        for part in parts:
            assert torch.equal(part.y, (part.x[:, 0] / 3).long() % 4)
        return [part.x[:, 0].tolist() for part in parts]

    rest, part = numbers(1)
    assert len(part) == 6
    assert sorted(rest + part) == good().x[:, 0].tolist()
    assert numbers(1) == [rest, part] != numbers(2)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.999, 1.0])
def test_an_empty_part_of_a_split_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="expected both parts of a split to have samples"):
        random_split(good(), fraction, 0)


def test_raw_test_inputs_are_the_first_of_the_test_set() -> None:
    data = Given(good(20), good(8))
    data.setup()
    for rows in (1, 3, 20):
        expected = data.preprocessing.tensor(data.test_inputs(rows))
        assert torch.equal(expected, data.splits["test"].x[:rows])


def test_loaders_visit_their_splits() -> None:
    data = Given(good())
    data.setup()
    assert {name: len(split) for name, split in data.splits.items()} == {
        "train": 15,
        "val": 5,
        "test": 20,
    }
    visited = {
        "train": data.train_dataloader(),
        "val": data.val_dataloader(),
        "test": data.test_dataloader(),
    }
    for name, loader in visited.items():
        x = torch.cat([x for x, _ in loader])
        assert sorted(x[:, 0].tolist()) == sorted(data.splits[name].x[:, 0].tolist())
    assert [len(y) for _, y in visited["train"]] == [4, 4, 4, 3]
    assert data.class_counts.tolist() == torch.bincount(data.splits["train"].y).tolist()


def test_prediction_visits_the_test_set_in_order() -> None:
    data = Given(good())
    data.setup()
    assert torch.equal(torch.cat([x for x, _ in data.predict_dataloader()]), good().x)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_first_row_that_is_not_finite_is_named(
    value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "CHECKED_ROWS", 4)
    bad = with_value(with_value(good(), 7, value), 11, value)
    with pytest.raises(ValueError, match=r"training set: .* 2 rows, the first of them row 7"):
        Given(bad).setup()
    with pytest.raises(ValueError, match="test set: expected finite numbers"):
        Given(good(), bad).setup()


@pytest.mark.parametrize("label", [-1, -100, 4, 250])
def test_a_label_out_of_range_is_an_index_error(label: int) -> None:
    bad = with_value(good(), 5, y=label)
    with pytest.raises(IndexError, match=rf"labels in \[0, 4\), got {label} in row 5"):
        Given(bad).setup()


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (Split(torch.zeros(5, 3), torch.zeros(4).long()), "a label for each of 5 samples, got 4"),
        (Split(torch.zeros(0, 3), torch.zeros(0).long()), "at least one sample, got none"),
        (Split(torch.zeros(5, 2), torch.zeros(5).long()), r"3 features a sample, got shape \(2,\)"),
    ],
)
def test_sizes_that_do_not_match_are_named(train: Split, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Given(train).setup()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected at least 1 or null, got 0"),
        ({"val_fraction": 0.0}, r"val_fraction: expected a number in \(0, 1\), got 0.0"),
        ({"val_fraction": 1.5}, "got 1.5"),
    ],
)
def test_the_constructor_checks_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Given(good(), **options)


def from_files(root: str) -> dict[str, TensorDataModule]:
    """Return data modules whose files would be in a folder."""
    folder = ImageFolderDataModule(root)
    return {
        "features": FeaturesDataModule(f"{root}/train.pt", f"{root}/test.pt"),
        "folder": folder,
        "table": TableDataModule(f"{root}/table.csv", "y"),
        "mnist": MNISTDataModule(root=root, download=False),
        "backbone": BackboneFeaturesDataModule(folder, "squeezenet1_1", "none.pt", 0, "features.3"),
    }


def test_the_constructor_opens_no_file(tmp_path: Path) -> None:
    """Missing files are found by ``setup``, and by sizes that depend on them."""
    for name in from_files(str(tmp_path / "none")):
        data = from_files(str(tmp_path / "none"))[name]
        with pytest.raises(FileNotFoundError):
            data.setup()
        for size in ("in_features", "num_classes"):
            if name == "mnist" or (name, size) == ("backbone", "in_features"):
                assert getattr(data, size) > 0
            else:
                with pytest.raises(FileNotFoundError):
                    getattr(data, size)
    assert list(tmp_path.iterdir()) == []


def test_a_subclass_without_sizes_needs_a_preprocessing() -> None:
    data = TensorDataModule(None, None, 4, 0.25, 0)
    with pytest.raises(NotImplementedError, match="expected in_features and num_classes, or a pro"):
        assert data.num_classes
    with pytest.raises(NotImplementedError, match="expected a method read or read_splits"):
        data.setup()


def test_digits_are_scaled_images() -> None:
    data = DigitsDataModule()
    data.setup()
    assert sum(len(split) for split in data.splits.values()) == 1797
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (32, 8, 8)
    assert (x.min(), x.max()) == (0, 1)
    assert y.dtype == torch.int64


def test_the_test_set_of_digits_is_always_the_same() -> None:
    def test_set(seed: int) -> Tensor:
        data = DigitsDataModule(seed=seed)
        data.setup()
        return data.splits["test"].x

    assert torch.equal(test_set(0), test_set(1))


@pytest.mark.parametrize("name", ["features", "folder", "table", "mnist", "backbone"])
def test_samples_before_setup_say_what_to_call(name: str, tmp_path: Path) -> None:
    data = from_files(str(tmp_path))[name]
    for use in (
        data.train_dataloader,
        data.val_dataloader,
        data.test_dataloader,
        data.predict_dataloader,
        data.state_dict,
        lambda: data.fingerprint,
        lambda: data.splits["val"],
        *([lambda: data.class_counts, lambda: data.test_inputs(1)] if name != "table" else []),
        *([lambda: data.test_ids] if name != "table" else []),  # a table reads its file for these
    ):
        with pytest.raises(
            RuntimeError, match=r"DataModule: expected prepare_data\(\) and setup\(\)"
        ):
            use()


def test_a_split_that_was_not_read_is_named() -> None:
    class TrainOnly(Given):
        def read_splits(self) -> dict[str, Split]:
            return {"train": self.train}

    data = TrainOnly(good())
    data.setup()
    assert len(data.train_dataloader()) > 0
    with pytest.raises(RuntimeError, match=r"expected a split val from .* read_splits, got train"):
        data.val_dataloader()
