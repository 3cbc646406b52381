"""Features of images by a frozen backbone as inputs: computed once and cached on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softmax_torch.data.frozen import FrozenNet
from softmax_torch.data.progress import current_reporter
from softmax_torch.data.splits import Split, check_split
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import FeaturesPreprocessing
from softmax_torch.storage.atomic_files import lock_folder
from softmax_torch.storage.block_cache import BLOCK_ROWS, BlockFile, digest

__all__ = ["BackboneFeaturesDataModule"]

LABEL = "features"
"""Label of the messages about features."""


class BackboneFeaturesDataModule(TensorDataModule):
    """Features of images, computed once by a frozen torchvision net and cached on disk.

    The splits are those of ``source``. The cache key hashes the net with its weights, its layer,
    the size of images, and all bytes of the images. ``setup`` computes the features that are
    missing or damaged; an interrupted computation continues after its last block.

    Args:
        source: the images, (N, H, W) or (N, 1 | 3, H, W), and their labels.
        backbone: name of a classification model in ``torchvision.models`` (see ``FrozenNet``).
        weights: file with its state_dict, or a name of torchvision's own weights, such as DEFAULT;
            None for random weights.
        backbone_seed: of random weights.
        layer: dotted name of the module whose output the features are; None for the input of the
            head.
        size: width and height in pixels that images are resized to.
        limit: use only the first so many training images; None for all. The images of an
            ``ImageFolderDataModule`` are ordered by class.
        cache: folder of the cached features.
        half: whether to cache them in float16.
        batch_size: see ``TensorDataModule``; None, all samples, suits solvers.

    Raises:
        ValueError, FileNotFoundError: see ``FrozenNet``; in ``setup``, ``limit`` leaves no images
            of a class.
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
        net = FrozenNet(backbone, weights, backbone_seed, layer, size)
        super().__init__(net.in_features, None, batch_size, source.val_fraction, source.seed)
        self.backbone = net
        self.source, self.limit, self.cache = source, limit, Path(cache)
        self.dtype = np.dtype(np.float16 if half else np.float32)

    @property
    def preprocessing(self) -> FeaturesPreprocessing:
        """Unchanged features, and the class names of the images."""
        class_names = self.source.preprocessing.class_names
        return FeaturesPreprocessing(self.in_features, class_names)

    @property
    def test_ids(self) -> list[str]:
        """Names of the test images."""
        return self.source.test_ids

    def prepare_data(self) -> None:
        """Download the images. Features are computed in ``setup``, where processes take turns."""
        self.source.prepare_data()

    def read_splits(self) -> dict[str, Split]:
        """Return the features, read from the cache or computed into it, with the images' labels."""
        self.source.setup()
        splits = dict(self.source.splits)
        self._check_limit(splits["train"].y)
        splits["train"] = Split(*(values[: self.limit] for values in splits["train"]))
        made_of = self.backbone.made_of | {"type": self.dtype.name, "scale": self.source.scale}
        key = digest(repr(made_of).encode())[:16]
        folder = self.cache / f"{self.backbone.name}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            for name, (images, y) in splits.items():
                splits[name] = Split(self._features(name, images, made_of, folder), y)
        for name, split in splits.items():
            check_split(split, f"{name} set", self.in_features, self.num_classes)
        return splits

    def _check_limit(self, y: Tensor) -> None:
        """Raise ValueError if ``limit`` leaves no training images of a class."""
        total, left = (
            torch.bincount(of, minlength=self.num_classes) for of in (y, y[: self.limit])
        )
        lacking = ((total > 0) & (left == 0)).nonzero().flatten().tolist()
        if lacking:
            name = self.source.preprocessing.class_names[lacking[0]]
            raise ValueError(
                f"limit: expected images of each class among the first {self.limit}, got none of "
                f"{len(lacking)} classes, such as {name}"
            )

    def _features(self, name: str, images: Tensor, made_of: dict[str, Any], folder: Path) -> Tensor:
        """Return the features (N, D) of the images of a split, mapped into memory."""
        if images.dim() not in (3, 4) or (images.dim() == 4 and images.shape[1] not in (1, 3)):
            raise ValueError(
                "source: expected images (N, H, W), or (N, channels, H, W) with 1 or 3 channels, "
                f"got a {name} set of shape {tuple(images.shape)}"
            )
        N, D = len(images), self.in_features
        images_digest = digest_of(images)
        path = folder / f"{images_digest}.npy"
        file = BlockFile(path, made_of | {"images": images_digest}, (N, D), self.dtype)
        reporter = current_reporter()
        if file.complaint:
            reporter.message(LABEL, f"{path}, {file.complaint}; missing features are recomputed")
        if not file.missing:
            reporter.message(LABEL, f"{name} {N} x {D} of {self.backbone.name}, read from {path}")
            return file.rows()
        device = self._device()
        done = N - sum(len(images[file.rows_of(block)]) for block in file.missing)
        with reporter.bar(LABEL, f"{name} of {self.backbone.name}", done, N) as advance:
            for block in list(file.missing):
                batch = images[file.rows_of(block)]
                file.write(block, self.backbone.features(batch, self.source.scale, device))
                advance(len(batch))
        return file.rows()

    def _device(self) -> torch.device:
        """Return the trainer's device; without a trainer, a GPU if there is one."""
        if self.trainer is not None:
            return self.trainer.strategy.root_device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def digest_of(images: Tensor) -> str:
    """Return a digest of shape, type and all bytes, since any byte may change the features."""
    head = f"{tuple(images.shape)} {images.dtype}".encode()
    blocks = (
        images[i : i + BLOCK_ROWS].contiguous().flatten().view(torch.uint8).numpy().data
        for i in range(0, len(images), BLOCK_ROWS)
    )
    return digest(head, *blocks)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; wait if another process holds it."""
    try:
        descriptor = lock_folder(folder)
    except BlockingIOError:
        message = f"waiting for another process, which computes {folder}"
        current_reporter().message(LABEL, message)
        descriptor = lock_folder(folder, wait=True)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
