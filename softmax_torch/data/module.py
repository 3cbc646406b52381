"""What every data module shares: checked tensors, a seeded split, and loaders over them.

A data module also says how raw inputs become what its tensors hold (``preprocessing``), which goes
into the checkpoint, so that a model predicts without it.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import torch
from lightning import LightningDataModule
from torch import Tensor

from softmax_torch.data.batches import Batches
from softmax_torch.preprocessing import FeaturesPreprocessing, Preprocessing

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
    """A data set held in memory. A subclass says how to read it: ``read``, or ``read_splits``.

    Args:
        in_features: D, the numbers of one sample.
        num_classes: C.
        batch_size: samples of a batch, of all processes together; None for the whole training set
            at once (gradient descent).
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
        self.rows: dict[str, Tensor] = {}  # which rows of a larger x a part has

    @property
    def preprocessing(self) -> Preprocessing:
        """How raw inputs become what the model sees; by default vectors, and numbered classes."""
        names = map(str, range(self.num_classes))
        return FeaturesPreprocessing(self.in_features, tuple(names), self.scale)

    @property
    def test_ids(self) -> list[str]:
        """What samples of the test set are called: by default, their numbers."""
        return [str(row) for row in range(len(self.splits["test"]))]

    def test_inputs(self, rows: int) -> Any:
        """The first raw inputs of the test set, so many at most, as ``preprocessing.tensor`` takes.

        By default, what the test set holds.
        """
        return self.splits["test"].x[:rows]

    def read(self) -> tuple[Split, Split]:
        """The training set, validation part included, and the test set."""
        # Not abstract, as who overrides ``read_splits`` has no use for it; with neither there is no
        # data to go on with, and this says what to write.
        raise NotImplementedError(f"{type(self).__name__}: expected a method read or read_splits")

    def read_splits(self) -> dict[str, Split]:
        """The parts "train", "val" and "test"; by default that of validation is drawn at random."""
        train, test = self.read()
        for name, split in (("training", train), ("test", test)):
            check(split, f"{name} set", self.in_features, self.num_classes)
        train, val = carve(train, self.val_fraction, self.seed)
        return {"train": train, "val": val, "test": test}

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data, once.

        Raises:
            ValueError: NaN or infinity in the inputs, sizes that do not fit (the first bad row).
            IndexError: a class index outside [0, C).
        """
        if self.splits:
            return
        self.splits = self.read_splits()
        self.fingerprint = fingerprint(self.splits["train"], self.rows.get("train"))

    def taken(self, part: str, data: Split, rows: Tensor) -> Split:
        """The samples at these rows, as a part; an x that is too large to be copied stays whole."""
        if data.x.nbytes <= HELD:
            return data.rows(rows)
        self.rows[part] = rows
        return Split(data.x, data.y[rows])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint notes of the data: by which a resumed run knows them again."""
        return {"fingerprint": self.fingerprint, "samples": len(self.splits["train"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Compare the data with those a run began with; ValueError if they are others."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return  # other data may be predicted
        if state_dict["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"data: expected the training set that the run began with ({state_dict['samples']} "
                f"samples, fingerprint {state_dict['fingerprint'][:12]}), got another one "
                f"({len(self.splits['train'])} samples, fingerprint {self.fingerprint[:12]})"
            )

    @property
    def class_counts(self) -> Tensor:
        """How many training samples each class has, int64 (C,)."""
        return torch.bincount(self.splits["train"].y.cpu(), minlength=self.num_classes)

    def train_dataloader(self) -> Batches:
        """Batches of the training set, in an order of each epoch's own."""
        module = None if self.trainer is None else self.trainer.lightning_module
        steps = getattr(module, "steps_per_call", None)
        return self._batches("train", self.batch_size, shuffle=True, steps=steps)

    def val_dataloader(self) -> Batches:
        """Batches of the part of the training set that is kept apart."""
        return self._batches("val", EVALUATION_BATCH)

    def test_dataloader(self) -> Batches:
        """Batches of the test set."""
        return self._batches("test", EVALUATION_BATCH)

    def predict_dataloader(self) -> Batches:
        """The test set, in its order."""
        return self.test_dataloader()

    def _batches(
        self, name: str, batch_size: int | None, shuffle: bool = False, steps: int | None = None
    ) -> Batches:
        trainer = self.trainer
        device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
        split = self.splits[name]
        fits = room_on(device, split.x.nbytes)
        if fits:  # once, and they stay there
            split = self.splits[name] = Split(split.x.to(device), split.y.to(device))
        return Batches(
            *split,
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            scale=self.scale,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            steps=steps,
            rows=self.rows.get(name),
            device=device,
            ahead=not fits,
        )


HELD = 1 << 32
"""Bytes of inputs up to which they are taken for data that memory holds, and copied: 4 GiB."""


def room_on(device: torch.device, size: int) -> bool:
    """Whether a device has room for so many bytes of data, and for as much again."""
    if device.type != "cuda":
        return size <= HELD
    return 2 * size <= torch.cuda.mem_get_info(device)[0]


def fingerprint(data: Split, rows: Tensor | None) -> str:
    """A digest of the labels, and of a thousand samples: 2 ms on MNIST, where all take 100.

    It is the same whether a part is a copy of its rows or lies among others in a larger x.
    """
    x, y = data
    some = slice(None, None, max(1, len(y) // 1000))
    digest = hashlib.sha256(f"{(len(y), *x.shape[1:])} {x.dtype}".encode())
    for part in (y, x[some] if rows is None else x[rows[some]]):
        digest.update(part.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


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
    """Whether a model with these sizes can be fitted to the data; ValueError or IndexError.

    ``name`` is what the message calls them: a part, or the file they come from.
    """
    x, y = data
    if len(x) != len(y):
        raise ValueError(f"{name}: expected a label for each of {len(x)} samples, got {len(y)}")
    if len(y) == 0:
        raise ValueError(f"{name}: expected at least one sample, got none")
    if math.prod(x.shape[1:]) != in_features:
        raise ValueError(
            f"{name}: expected {in_features} features a sample, got shape {tuple(x.shape[1:])}"
        )
    if x.is_floating_point():
        pieces = torch.split(x, EVALUATION_BATCH)  # x may be mapped, and large
        bad = torch.cat([~piece.flatten(1).isfinite().all(1) for piece in pieces])
        if bad.any():
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity in {int(bad.sum())} "
                f"rows, the first of them row {int(bad.nonzero()[0])}"
            )
    bad = (y < 0) | (y >= num_classes)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise IndexError(
            f"{name}: expected labels in [0, {num_classes}), got {int(y[row])} in row {row}"
        )
