"""Features of images by a frozen backbone, as inputs: computed once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from softmax_torch.data.frozen import FrozenNet
from softmax_torch.data.module import Split, TensorDataModule, check
from softmax_torch.preprocessing import FeaturesPreprocessing
from softmax_torch.storage.atomic_files import lock_folder
from softmax_torch.storage.block_cache import BLOCK_ROWS, BlockFile, digest

__all__ = ["BackboneFeaturesDataModule"]


class BackboneFeaturesDataModule(TensorDataModule):
    """Features of images, computed once by a frozen net of torchvision and kept on disk.

    The parts are those of ``source``. Where features are kept they are known by what they are made
    of: the net with its weights, its layer, the size of images, and every byte of the images. What
    is not there is computed, and so is what is damaged; a computation that was interrupted goes on
    from its last block.

    Args:
        source: the images, (N, H, W) or (N, 1 | 3, H, W), and their labels.
        backbone, weights, backbone_seed, layer, size: see ``FrozenNet``.
        limit: how many images of the training set are used, from the first; None for all. Those
            of an ``ImageFolderDataModule`` come class by class.
        cache: folder where features are kept.
        half: whether they are kept in float16.
        batch_size: see ``TensorDataModule``; None is what solvers want.

    Raises:
        ValueError, FileNotFoundError: as ``FrozenNet``; a class that ``limit`` leaves none of.
    """

    def __init__(
        self,
        source: TensorDataModule,
        backbone: str = "resnet18",
        weights: str | None = None,
        backbone_seed: int = 0,
        layer: str | None = None,
        size: int = 224,
        limit: int | None = None,
        cache: str = "features",
        half: bool = False,
        batch_size: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit: expected at least 1 or null, got {limit}")
        if size < 1:
            raise ValueError(f"size: expected at least 1, got {size}")
        self.backbone = FrozenNet(backbone, weights, backbone_seed, layer, size)
        self.source, self.limit, self.cache = source, limit, Path(cache)
        self.dtype = np.dtype(np.float16 if half else np.float32)
        width, classes = self.backbone.in_features, source.num_classes
        super().__init__(width, classes, batch_size, source.val_fraction, source.seed)
        self._features: dict[str, Tensor] = {}

    @property
    def preprocessing(self) -> FeaturesPreprocessing:
        """Features as they are, and the names of the classes of the images."""
        return FeaturesPreprocessing(self.in_features, self.source.preprocessing.class_names)

    @property
    def test_ids(self) -> list[str]:
        """What the images are called."""
        return self.source.test_ids

    def prepare_data(self) -> None:
        """Fetch the images, and compute the features that are not there."""
        self.source.prepare_data()
        if not self._features:
            self.source.setup()
            self._extract()

    def read_splits(self) -> dict[str, Split]:
        """The features, and the labels of their images."""
        self.prepare_data()
        splits = {
            part: Split(x, self.source.splits[part].y[: len(x)])
            for part, x in self._features.items()
        }
        for part, split in splits.items():
            check(split, f"{part} set", self.in_features, self.num_classes)
        return splits

    def _extract(self) -> None:
        """The features of each part, from their file or computed into it."""
        y = self.source.splits["train"].y
        every, left = (
            torch.bincount(of, minlength=self.num_classes) for of in (y, y[: self.limit])
        )
        lacking = ((every > 0) & (left == 0)).nonzero().flatten().tolist()
        if lacking:
            name = self.source.preprocessing.class_names[lacking[0]]
            raise ValueError(
                f"limit: expected images of each class among the first {self.limit}, got none of "
                f"{len(lacking)} classes, such as {name}"
            )
        made_of = self.backbone.made_of | {"type": self.dtype.name, "scale": self.source.scale}
        key = digest(repr(made_of).encode())[:16]
        folder = self.cache / f"{self.backbone.name}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            for part, (images, _) in self.source.splits.items():
                used = images[: self.limit] if part == "train" else images
                self._features[part] = self._rows(part, used, made_of, folder)

    def _rows(self, part: str, images: Tensor, made_of: dict[str, Any], folder: Path) -> Tensor:
        """The features (N, D) of some images."""
        if images.dim() not in (3, 4) or (images.dim() == 4 and images.shape[1] not in (1, 3)):
            raise ValueError(
                "source: expected images (N, H, W), or (N, channels, H, W) with 1 or 3 channels, "
                f"got a {part} set of shape {tuple(images.shape)}"
            )
        N, D = len(images), self.in_features
        known_by = digest_of(images)
        path = folder / f"{known_by}.npy"
        file = BlockFile(path, made_of | {"images": known_by}, (N, D), self.dtype)
        if file.complaint:
            say(f"{path}, {file.complaint}; what is not there is computed again")
        if not file.missing:
            say(f"{part} {N} x {D} of {self.backbone.name}, read from {path}")
            return file.rows()
        device = self._device()
        done = N - sum(len(images[file.rows_of(block)]) for block in file.missing)
        with bar(f"{part} of {self.backbone.name}", done, N) as advance:
            for block in list(file.missing):
                some = images[file.rows_of(block)]
                file.write(block, self.backbone.features(some, self.source.scale, device))
                advance(len(some))
        return file.rows()

    def _device(self) -> torch.device:
        """Where the net is run: as the trainer, if there is one yet."""
        if self.trainer is not None:
            return self.trainer.strategy.root_device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def digest_of(images: Tensor) -> str:
    """A digest of all images: of every byte, since a net may tell any two apart."""
    head = f"{tuple(images.shape)} {images.dtype}".encode()
    blocks = (
        images[i : i + BLOCK_ROWS].contiguous().flatten().view(torch.uint8).numpy().data
        for i in range(0, len(images), BLOCK_ROWS)
    )
    return digest(head, *blocks)


@rank_zero_only
def say(text: str) -> None:
    """A line in the manner of the command line's report."""
    Console(soft_wrap=True, highlight=False, markup=False).print(f"{'features':12s}{text}")


@contextmanager
def bar(what: str, done: int, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar that stands there in the end, drawn by whoever advances it."""
    columns = (
        TextColumn(f"{'features':12s}{{task.description}}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, auto_refresh=False) as progress:
        task = progress.add_task(what, completed=done, total=total)
        yield lambda more: progress.update(task, advance=more, refresh=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else writes to a folder meanwhile; who is doing so is waited for."""
    try:
        descriptor = lock_folder(folder)
    except BlockingIOError:
        say(f"waiting for another process, which computes {folder}")
        descriptor = lock_folder(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
