"""What every data module shares: checked tensors, a seeded split, and loaders over them."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor

from softmax_torch.data.batches import Batches

__all__ = ["Split", "TensorDataModule", "carve"]


class Split(NamedTuple):
    """Inputs (N, ...) and class indices (N,) of one part of a data set."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Number of samples; a tuple's own length would be 2."""
        return len(self.y)

    def rows(self, index: Tensor) -> Split:
        """The samples at these rows."""
        return Split(self.x[index], self.y[index])


class TensorDataModule(LightningDataModule):
    """A data set held in memory. A subclass says how to read it: ``read``.

    Args:
        in_features: D, the numbers of one sample.
        num_classes: C.
        batch_size: samples of a batch; None for the whole training set at once (gradient descent).
        val_fraction: share of the training set that is kept apart for validation, in (0, 1).
        seed: seed of the validation split and of the order of the training samples.
        scale: factor that takes the stored numbers to those the model sees.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        batch_size: int | None,
        val_fraction: float,
        seed: int,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1 or null, got {batch_size}")
        if not 0 < val_fraction < 1:
            raise ValueError(f"val_fraction: expected a number in (0, 1), got {val_fraction}")
        if seed < 0:
            raise ValueError(f"seed: expected a number >= 0, got {seed}")
        self.in_features, self.num_classes = in_features, num_classes
        self.batch_size, self.val_fraction = batch_size, val_fraction
        self.seed, self.scale = seed, scale
        self.splits: dict[str, Split] = {}

    @abstractmethod
    def read(self) -> tuple[Split, Split]:
        """The training set, validation part included, and the test set."""

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data, once.

        Raises:
            ValueError: NaN or infinity in the inputs, sizes that do not fit (the first bad row).
            IndexError: a class index outside [0, C).
        """
        if self.splits:
            return
        train, test = self.read()
        for name, split in (("training", train), ("test", test)):
            check(split, name, self.in_features, self.num_classes)
        train, val = carve(train, self.val_fraction, self.seed)
        self.splits = {"train": train, "val": val, "test": test}

    @property
    def class_counts(self) -> Tensor:
        """How many training samples each class has, int64 (C,)."""
        return torch.bincount(self.splits["train"].y, minlength=self.num_classes)

    def train_dataloader(self) -> Batches:
        """Batches of the training set, in an order of each epoch's own."""
        return self._batches("train", self.batch_size, shuffle=True)

    def val_dataloader(self) -> Batches:
        """Batches of the part of the training set that is kept apart."""
        return self._batches("val", EVALUATION_BATCH)

    def test_dataloader(self) -> Batches:
        """Batches of the test set."""
        return self._batches("test", EVALUATION_BATCH)

    def predict_dataloader(self) -> Batches:
        """The test set, in its order."""
        return self.test_dataloader()

    def _batches(self, name: str, batch_size: int | None, shuffle: bool = False) -> Batches:
        trainer = self.trainer
        return Batches(
            *self.splits[name],
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            scale=self.scale,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
        )


EVALUATION_BATCH = 8192
"""Samples of a batch where nothing is learnt from it: few calls, and 25 MB at 784 features."""


def carve(data: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Two parts of a data set drawn at random: the rest, and the given fraction of it."""
    n = len(data)
    part = round(n * fraction)
    if not 0 < part < n:
        raise ValueError(f"expected both parts of a split to have samples, got {n - part} + {part}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return data.rows(order[part:]), data.rows(order[:part])


def check(data: Split, name: str, in_features: int, num_classes: int) -> None:
    """Whether a model with these sizes can be fitted to the data; ValueError or IndexError."""
    x, y = data
    if len(x) != len(y):
        raise ValueError(f"{name} set: expected a label for each of {len(x)} samples, got {len(y)}")
    if len(y) == 0:
        raise ValueError(f"{name} set: expected at least one sample, got none")
    if math.prod(x.shape[1:]) != in_features:
        raise ValueError(
            f"{name} set: expected {in_features} features a sample, got shape {tuple(x.shape[1:])}"
        )
    if x.is_floating_point():
        bad = ~x.flatten(1).isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"{name} set: expected finite numbers, got NaN or infinity in {int(bad.sum())} "
                f"rows, the first of them row {int(bad.nonzero()[0])}"
            )
    bad = (y < 0) | (y >= num_classes)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise IndexError(
            f"{name} set: expected labels in [0, {num_classes}), got {int(y[row])} in row {row}"
        )
