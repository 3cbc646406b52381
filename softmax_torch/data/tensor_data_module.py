"""The base class of all data modules: tensors in memory, checked and split, and their loaders.

A data module also has a ``preprocessing``, which turns raw inputs into its tensors. It is stored in
checkpoints, so that a trained model predicts raw inputs without the data module.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn

from softmax_torch.data.batches import Batches
from softmax_torch.data.description import DataDescription, count_classes
from softmax_torch.data.splits import Split, check_split, random_split
from softmax_torch.preprocessing import FeaturesPreprocessing, Preprocessing

__all__ = ["TensorDataModule"]

EVALUATION_BATCH = 8192
"""Samples of an evaluation batch: few calls, and 25 MB at 784 features."""

SHARES = 1000
"""Number of batches into which an evaluated set is divided where a share of it is wanted."""

ORDER = ("train", "val", "test")
"""The splits in the order in which they are described."""

MAX_COPIED_BYTES = 1 << 32
"""Inputs up to this size, 4 GiB, are copied into memory; larger ones stay mapped."""


class Splits(dict[str, Split]):
    """The splits of a data module by name; an access to one that is not there says why.

    Args:
        owner: name of the data module's class.
        read: the splits; None before ``setup``.
    """

    def __init__(self, owner: str, read: dict[str, Split] | None = None) -> None:
        super().__init__(read or {})
        self.owner = owner

    def __missing__(self, name: str) -> Split:
        if self:
            raise RuntimeError(
                f"{self.owner}: expected a split {name} from its method read_splits, got "
                f"{', '.join(self)}"
            )
        raise RuntimeError(
            f"{self.owner}: expected prepare_data() and setup() to be called before its samples "
            "are used, got no call of setup(); a Trainer calls both"
        )


class TensorDataModule(LightningDataModule):
    """A data set held in memory; a subclass defines ``read`` or ``read_splits``.

    Files are opened at these times:

    - The constructor opens none; it checks the arguments that can be checked without files.
    - ``prepare_data`` downloads missing files. Lightning calls it on one process only, so it sets
      no state.
    - ``setup`` reads, checks and splits the data, on each process.
    - ``preprocessing``, ``in_features`` and ``num_classes`` may be needed before ``setup``, since a
      model is built for the sizes of its data. Where these depend on files, the first access on a
      process reads as much of the files as necessary. Errors about files are raised then, or in
      ``setup``: always before training starts.

    Args:
        in_features: D, number of values in a sample; None to take it from ``preprocessing``, which
            a subclass then defines.
        num_classes: C; None likewise.
        batch_size: samples of a batch, over all processes together; None for the whole training set
            (gradient descent).
        val_fraction: share of the training set that is set aside for validation, in (0, 1).
        seed: of the validation split and of the order of the training samples.
        scale: factor from the stored numbers to the numbers that the model sees.
    """

    def __init__(
        self,
        in_features: int | None,
        num_classes: int | None,
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
        self._in_features, self._num_classes = in_features, num_classes
        self.batch_size, self.val_fraction = batch_size, val_fraction
        self.seed, self.scale = seed, scale
        self.splits: dict[str, Split] = Splits(type(self).__name__)
        self._fingerprint: str | None = None
        self.subset_rows: dict[str, Tensor] = {}  # of splits that are rows of a larger, mapped x

    @property
    def in_features(self) -> int:
        """D, the number of values in a sample."""
        return self.preprocessing.in_features if self._in_features is None else self._in_features

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        known = self._num_classes
        return len(self.preprocessing.class_names) if known is None else known

    @property
    def preprocessing(self) -> Preprocessing:
        """Map from raw inputs to the model's; by default vectors, with numbered classes."""
        if self._in_features is None or self._num_classes is None:
            # Python's type for what a subclass has to define.
            raise NotImplementedError(
                f"{type(self).__name__}: expected in_features and num_classes, or a property "
                "preprocessing that has them"
            )
        names = map(str, range(self._num_classes))
        return FeaturesPreprocessing(self._in_features, tuple(names), self.scale)

    @property
    def test_ids(self) -> list[str]:
        """Names of the test samples; by default their numbers."""
        return [str(row) for row in range(len(self.splits["test"]))]

    def test_inputs(self, rows: int) -> Any:
        """Return the first raw test inputs, at most ``rows``, for ``preprocessing.tensor``.

        By default these are rows of the test split.
        """
        return self.splits["test"].x[:rows]

    def read(self) -> tuple[Split, Split]:
        """Return the training set, validation samples included, and the test set."""
        # Not abstract, as a subclass that overrides ``read_splits`` does not need it; the type is
        # Python's for a method that a subclass has to define.
        raise NotImplementedError(f"{type(self).__name__}: expected a method read or read_splits")

    def read_splits(self) -> dict[str, Split]:
        """Return the splits "train", "val" and "test"; by default validation is drawn at random."""
        train, test = self.read()
        for name, split in (("training", train), ("test", test)):
            check_split(split, f"{name} set", self.in_features, self.num_classes)
        train, val = random_split(train, self.val_fraction, self.seed)
        return {"train": train, "val": val, "test": test}

    def setup(self, stage: str | None = None) -> None:
        """Read, check and split the data, once.

        Raises:
            ValueError: NaN or infinity in the inputs, or sizes that do not match (the first such
                row is named).
            IndexError: a class index outside [0, C).
        """
        if self.splits:
            return
        self.splits = Splits(type(self).__name__, self.read_splits())
        self._fingerprint = fingerprint(self.splits["train"], self.subset_rows.get("train"))

    @property
    def fingerprint(self) -> str:
        """A digest of the training set, by which a resumed run recognizes it."""
        self.splits["train"]
        assert self._fingerprint is not None
        return self._fingerprint

    def subset(self, name: str, data: Split, rows: Tensor) -> Split:
        """Return the samples at these rows as the split ``name``; a large x is not copied."""
        if data.x.nbytes <= MAX_COPIED_BYTES:
            return data.rows(rows)
        self.subset_rows[name] = rows
        return Split(data.x, data.y[rows])

    def state_dict(self) -> dict[str, Any]:
        """Return the state by which a resumed run recognizes its training set."""
        return {"fingerprint": self.fingerprint, "samples": len(self.splits["train"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raise ValueError if a fit is resumed with another training set than it began with."""
        if self.trainer is None or self.trainer.state.fn != "fit":
            return  # evaluation may use other data
        if state_dict["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"data: expected the training set that the run began with ({state_dict['samples']} "
                f"samples, fingerprint {state_dict['fingerprint'][:12]}), got another one "
                f"({len(self.splits['train'])} samples, fingerprint {self.fingerprint[:12]})"
            )

    @property
    def class_counts(self) -> Tensor:
        """Number of training samples of each class, int64 (C,)."""
        return torch.bincount(self.splits["train"].y.cpu(), minlength=self.num_classes)

    def describe(self) -> DataDescription:
        """Return what the data hold, counted; ``setup`` comes first."""
        preprocessing = self.preprocessing
        return DataDescription(
            {name: len(self.splits[name]) for name in ORDER if name in self.splits},
            self.in_features,
            preprocessing.class_names,
            count_classes(self.splits, self.num_classes),
            preprocessing.image_shape,
        )

    def train_dataloader(self) -> Batches:
        """Return batches of the training set, in another order in each epoch.

        The order stays the same where a trainer is to overfit a few batches.
        """
        module = None if self.trainer is None else self.trainer.lightning_module
        steps = getattr(module, "steps_per_call", None)
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        return self._batches("train", self.batch_size, shuffle=shuffle, steps=steps)

    def training_rows(self) -> Batches:
        """Return batches of the training set in its order, as for an evaluation."""
        return self._batches("train", EVALUATION_BATCH)

    def val_dataloader(self) -> Batches:
        """Return batches of the validation set."""
        return self._batches("val", self._evaluation_batch("val"))

    def test_dataloader(self) -> Batches:
        """Return batches of the test set."""
        return self._batches("test", self._evaluation_batch("test"))

    def predict_dataloader(self) -> Batches:
        """Return batches of the test set, in order."""
        return self._batches("test", self._evaluation_batch("test", "predict"))

    def _evaluation_batch(self, name: str, stage: str | None = None) -> int:
        """Return the number of samples in a batch of evaluation.

        A trainer that takes a share of the batches gets small ones: Lightning rounds the share down
        to whole batches, and refuses one of none.
        """
        limit = getattr(self.trainer, f"limit_{stage or name}_batches", 1.0)
        if isinstance(limit, int) or limit in (0.0, 1.0):
            return EVALUATION_BATCH
        return min(EVALUATION_BATCH, math.ceil(len(self.splits[name]) / SHARES))

    def _batches(
        self, name: str, batch_size: int | None, shuffle: bool = False, steps: int | None = None
    ) -> Batches:
        trainer = self.trainer
        device = torch.device("cpu") if trainer is None else trainer.strategy.root_device
        module = None if trainer is None else trainer.lightning_module
        split = self.splits[name]
        fits = has_room(device, split.x.nbytes)
        if fits:  # moved once, and kept there
            split = self.splits[name] = Split(split.x.to(device), split.y.to(device))
        return Batches(
            *split,
            batch_size,
            shuffle=shuffle,
            seed=self.seed,
            scale=self.scale,
            standardization=self.preprocessing.standardization,
            rank=0 if trainer is None else trainer.global_rank,
            world_size=1 if trainer is None else trainer.world_size,
            steps=steps,
            rows=self.subset_rows.get(name),
            device=device,
            ahead=not fits,
            keep_float64=module is not None and in_float64(module),
        )


def in_float64(module: nn.Module) -> bool:
    """Return whether a model has parameters in float64, as with the Trainer's precision 64-true."""
    return any(parameter.dtype == torch.float64 for parameter in module.parameters())


def has_room(device: torch.device, size: int) -> bool:
    """Return whether ``size`` bytes of data fit on a device, on a GPU in half its free memory."""
    if device.type != "cuda":
        return size <= MAX_COPIED_BYTES
    return 2 * size <= torch.cuda.mem_get_info(device)[0]


def fingerprint(data: Split, rows: Tensor | None) -> str:
    """Return a SHA-256 of all labels and about a thousand samples.

    On MNIST it takes 2 ms, a digest of all samples 100 ms. It is the same for a split that copies
    its rows and for one that indexes a larger x.
    """
    x, y = data
    sampled = slice(None, None, max(1, len(y) // 1000))
    digest = hashlib.sha256(f"{(len(y), *x.shape[1:])} {x.dtype}".encode())
    for part in (y, x[sampled] if rows is None else x[rows[sampled]]):
        digest.update(part.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
