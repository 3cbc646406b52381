"""Images in one folder for each class, the layout of torchvision's ``ImageFolder``.

    root/train/cat/1.jpg        or        root/cat/1.jpg
    root/test/dog/2.jpg                   root/dog/2.jpg

On the left the splits are folders (also ``val``, if there is one); on the right they are drawn. All
images are decoded once, on all cores, and stay in memory as bytes. Batches are standardised by the
pixels of the training images.
"""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from softmax_torch.data.class_folders import common_size, find_split_folders, search_classes
from softmax_torch.data.progress import current_reporter
from softmax_torch.data.splits import TEST_SEED, Split, draw_splits
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import ImagePreprocessing, Standardization
from softmax_torch.readers.image_search import FoundFiles, listed_suffixes
from softmax_torch.readers.images import read_headers, unreadable_error

__all__ = ["ImageFolderDataModule"]

IMAGES_PER_STEP = 256
"""Images that are decoded between two steps of the progress bar."""

SHOWN = 5
"""Largest number of skipped images that a message names."""


class ImageFolderDataModule(TensorDataModule):
    """Images in folders named after their classes.

    Args:
        root: folder of ``train`` and perhaps ``val`` and ``test``, each with one folder for each
            class; or folder of the classes' folders.
        size: pixels (H, W) that images are resized to; None for the size that all of them have.
        color: whether to keep colours; None to keep them if any training image has colours.
        batch_size, seed: see ``TensorDataModule``.
        val_fraction: share of each training class that is drawn for validation, if there is no
            folder ``val``.
        test_fraction: share of each class that is drawn as the test set before that, if there is no
            folder ``test``; the draw does not depend on ``seed``.
        standardize: whether batches have the mean of the training pixels subtracted and are divided
            by their standard deviation, channel by channel. False leaves pixels in [0, 1], which
            backbones of torchvision expect.
        skip_unreadable: whether to leave out images that cannot be read, and report their number
            and names. By default they are an error.

    Hidden files and folders are left out (see ``readers.image_search``). Other files that are no
    images are left out too, and their number is reported.

    ``setup``, and the first access to ``preprocessing`` or a size, raise FileNotFoundError or
    ValueError: no images, a class without any, images that cannot be read (all are named), several
    sizes while ``size`` is None, or a class without training images. The first access to a size
    reads headers alone; ``preprocessing`` reads all images if they are standardised.
    """

    def __init__(
        self,
        root: str,
        size: tuple[int, int] | None = None,
        color: bool | None = None,
        batch_size: int | None = 128,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        seed: int = 0,
        standardize: bool = True,
        skip_unreadable: bool = False,
    ) -> None:
        super().__init__(None, None, batch_size, val_fraction, seed, scale=1 / 255)
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in (0, 1), got {test_fraction}")
        if size is not None and min(size) < 1:
            raise ValueError(f"size: expected two numbers of at least 1, got {size}")
        self.root, self.size, self.color = Path(root), size, color
        self.test_fraction, self.standardize = test_fraction, standardize
        self.skip_unreadable = skip_unreadable

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The folder of each split that has one."""
        return find_split_folders(self.root)

    @cached_property
    def found(self) -> dict[str, FoundFiles]:
        """The images, and the number of other files, of each split that has a folder."""
        return {name: search_classes(folder) for name, folder in self.folders.items()}

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """The images of each split that has a folder; after ``setup``, of all splits."""
        return {name: found.images for name, found in self.found.items()}

    @cached_property
    def unstandardized(self) -> ImagePreprocessing:
        """Size and colours of the training images, and the names of their folders."""
        names = tuple(sorted({self._class_name(path, "train") for path in self.files["train"]}))
        if len(names) < 2:
            raise ValueError(
                f"{self.folders['train']}: expected a folder for each of at least two classes, got "
                f"{', '.join(names)} alone"
            )
        sizes, has_color = read_headers(self.files["train"], self.skip_unreadable)
        size = self.size or common_size(sizes)
        color = has_color if self.color is None else self.color
        return ImagePreprocessing(size, color, names, self.scale)

    @cached_property
    def standardized(self) -> ImagePreprocessing:
        """The preprocessing with mean and standard deviation of the training images' pixels."""
        self.setup()
        plain = self.unstandardized
        fitted = Standardization.fit(self.splits["train"].x, self.scale)
        return ImagePreprocessing(plain.size, plain.color, plain.class_names, plain.scale, fitted)

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """Size, colours and pixels of the training images, and the names of their folders."""
        return self.standardized if self.standardize else self.unstandardized

    @property
    def in_features(self) -> int:
        """D, the number of values in an image."""
        return self.unstandardized.in_features

    @property
    def num_classes(self) -> int:
        """C, the number of folders with training images."""
        return len(self.unstandardized.class_names)

    @property
    def test_ids(self) -> list[str]:
        """Paths of the test images, relative to ``root``."""
        self.splits["test"]  # RuntimeError before ``setup``
        return [str(path.relative_to(self.root)) for path in self.files["test"]]

    def read_splits(self) -> dict[str, Split]:
        """Return the splits of the folders, with the others drawn."""
        # Errors about labels come first, since decoding takes long.
        labels = {name: self._labels(name) for name in self.files}
        draws = {"test": (self.test_fraction, TEST_SEED), "val": (self.val_fraction, self.seed)}
        draws = {name: draw for name, draw in draws.items() if name not in labels}
        train, y = self.files["train"], labels["train"]
        rows = draw_splits(y, draws, self.unstandardized.class_names, self.root)
        files = self.files | {name: [train[row] for row in at] for name, at in rows.items()}
        labels |= {name: y[at] for name, at in rows.items()}
        x, failures = self._decode([path for paths in files.values() for path in paths])
        if failures:
            for name, paths in files.items():
                readable = torch.tensor([path not in failures for path in paths])
                labels[name] = labels[name][readable]
                files[name] = [path for path in paths if path not in failures]
            self._check_readable(labels, failures)
        self._report_skipped(failures)
        self.files = files
        parts = torch.split(x, [len(paths) for paths in files.values()])
        return {name: Split(part, labels[name]) for name, part in zip(files, parts, strict=True)}

    def _decode(self, files: list[Path]) -> tuple[Tensor, dict[Path, str]]:
        """Return all images in one tensor, and the messages of those that are left out.

        The tensor is filled in place: joining would double the memory.
        """
        plain, skip = self.unstandardized, self.skip_unreadable
        x = torch.empty(len(files), *(plain.image_shape or ()), dtype=torch.uint8)
        row, failures = 0, dict[Path, str]()
        with current_reporter().bar("decoding", "", 0, len(files), transient=True) as advance:
            for batch in plain.decode_files(files, IMAGES_PER_STEP, skip):
                x[row : row + len(batch.files)] = batch.pixels
                row += len(batch.files)
                failures |= batch.failures
                advance(len(batch.files) + len(batch.failures))
        return x[:row], failures

    def _check_readable(self, labels: dict[str, Tensor], failures: dict[Path, str]) -> None:
        """Raise ValueError unless every class has readable training images, and every split any."""
        left = torch.bincount(labels["train"], minlength=self.num_classes)
        lacking = (left == 0).nonzero().flatten().tolist()
        if lacking or not all(map(len, labels.values())):
            what = (
                f"training images of class {self.unstandardized.class_names[lacking[0]]}"
                if lacking
                else f"images of {min(labels, key=lambda name: len(labels[name]))}"
            )
            raise ValueError(
                f"{self.root}: expected {what}, got none that can be read: "
                f"{unreadable_error([*failures.values()], skipped=True)}"
            )

    def _report_skipped(self, failures: dict[Path, str]) -> None:
        """Report the files that are no images, and the images that cannot be read, by number."""
        others: Counter[str] = Counter()
        for found in self.found.values():
            others.update(found.others)
        if others:
            n = others.total()
            what = "1 file that is no image" if n == 1 else f"{n} files that are no images"
            text = f"{what}: {listed_suffixes(others)}"
            current_reporter().message("skipped", text)
        if failures:
            names = [str(path.relative_to(self.root)) for path in failures]
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            what = f"{len(names)} unreadable image{'s' * (len(names) > 1)}"
            text = f"{what}: {', '.join(names[:SHOWN])}{more}"
            current_reporter().message("skipped", text)

    def _labels(self, name: str) -> Tensor:
        """Return class indices (n,) of the files of a split."""
        index = {class_name: c for c, class_name in enumerate(self.unstandardized.class_names)}
        names = [self._class_name(path, name) for path in self.files[name]]
        unknown = sorted(set(names) - index.keys())
        if unknown:
            raise ValueError(
                f"{self.folders[name] / unknown[0]}: expected a class that there are training "
                f"images of ({', '.join(index)}), got {', '.join(unknown)}"
            )
        return torch.tensor([index[class_name] for class_name in names])

    def _class_name(self, path: Path, name: str) -> str:
        """Return the folder of an image, below the folder of its split."""
        folder, *others = path.relative_to(self.folders[name]).parts
        if not others:
            raise ValueError(
                f"{path}: expected an image in a folder named after its class, got one beside them"
            )
        return folder
