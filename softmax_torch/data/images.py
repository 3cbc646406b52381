"""A folder of images, a folder a class: torchvision's ``ImageFolder`` layout.

    root/train/cat/1.jpg        or        root/cat/1.jpg
    root/test/dog/2.jpg                   root/dog/2.jpg

Left, the parts are as they lie there (``val`` besides, if there is one); right, they are drawn.
Images are decoded once, by all cores, and stay in memory as bytes.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from softmax_torch.data.module import Split, TensorDataModule
from softmax_torch.data.splits import TEST_SEED, enough, stratified
from softmax_torch.preprocessing.images import ImagePreprocessing, images_in, look_at

__all__ = ["ImageFolderDataModule"]

FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""The part that lies in a folder of this name, in small letters or capitals."""

ROWS = 256
"""Images that are decoded between two steps of the progress bar."""


class ImageFolderDataModule(TensorDataModule):
    """Images in folders that are named after their classes.

    Args:
        root: folder with the folders ``train`` and, where they are given, ``val`` and ``test``, in
            which there is a folder for each class; or with the folders of the classes.
        size: pixels (H, W) that images are brought to; None for the size that all of them have.
        color: whether to keep colours; None to keep them if an image of training has some.
        batch_size, seed: see ``TensorDataModule``.
        val_fraction: share of each class of training that is kept apart for validation, where there
            is no folder ``val``.
        test_fraction: share of each class that is kept apart before that as the test set, where
            there is no folder ``test``; in the same way whatever the seed is.

    Raises:
        FileNotFoundError, ValueError: no images, images that cannot be read (all of them are
            named), or of several sizes while ``size`` is None; a class with none to train on.
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
    ) -> None:
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in (0, 1), got {test_fraction}")
        if size is not None and min(size) < 1:
            raise ValueError(f"size: expected two numbers of at least 1, got {size}")
        self.test_fraction = test_fraction
        self.root, self.tops = Path(root), parts_in(Path(root))
        self.files = {part: images_in(top) for part, top in self.tops.items()}
        names = tuple(sorted({self._class(path, "train") for path in self.files["train"]}))
        if len(names) < 2:
            raise ValueError(
                f"{self.tops['train']}: expected a folder for each of at least two classes, got "
                f"{', '.join(names)} alone"
            )
        # A model is made to the size of its data, so that they are looked at here and now.
        sizes, colorful = look_at(self.files["train"])
        self._preprocessing = ImagePreprocessing(
            size or the_only(sizes), colorful if color is None else color, names
        )
        in_features = self._preprocessing.in_features
        scale = self._preprocessing.scale
        super().__init__(in_features, len(names), batch_size, val_fraction, seed, scale)

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """The size and the colours of images, and the names of their folders."""
        return self._preprocessing

    @property
    def test_ids(self) -> list[str]:
        """Where images of the test set lie, from ``root`` on."""
        return [str(path.relative_to(self.root)) for path in self.files["test"]]

    def read_splits(self) -> dict[str, Split]:
        """The parts, as they lie there or drawn."""
        # What labels alone have to say comes first: decoding is what takes long.
        labels = {part: self._labels(part) for part in self.files}
        draws = {"test": (self.test_fraction, TEST_SEED), "val": (self.val_fraction, self.seed)}
        draws = {part: how for part, how in draws.items() if part not in labels}
        try:
            enough(labels["train"], 1 + len(draws), self._preprocessing.class_names)
        except ValueError as error:
            raise ValueError(f"{self.root}: {error}") from None
        files = dict(self.files)
        for part, how in draws.items():
            train, y = files["train"], labels["train"]
            rest, drawn = stratified(y, *how)
            files["train"], files[part] = ([train[row] for row in at] for at in (rest, drawn))
            labels["train"], labels[part] = y[rest], y[drawn]
        x = self._decoded([path for of_part in files.values() for path in of_part])
        self.files = files
        parts = torch.split(x, [len(of_part) for of_part in files.values()])
        return {part: Split(x, labels[part]) for part, x in zip(files, parts, strict=True)}

    def _decoded(self, files: list[Path]) -> Tensor:
        """All images, in one piece of memory: joined in the end they would take it twice."""
        x = torch.empty(len(files), *(self._preprocessing.image_shape or ()), dtype=torch.uint8)
        row = 0
        with Progress(transient=True, disable=not os.isatty(1)) as progress:
            task = progress.add_task("decoding", total=len(files))
            for pixels in self._preprocessing.decoded(files, ROWS):
                x[row : row + len(pixels)] = pixels
                row += len(pixels)
                progress.advance(task, len(pixels))
        return x

    def _labels(self, part: str) -> Tensor:
        """Class indices (n,) of the files of a part."""
        index = {name: c for c, name in enumerate(self._preprocessing.class_names)}
        names = [self._class(path, part) for path in self.files[part]]
        unseen = sorted(set(names) - index.keys())
        if unseen:
            raise ValueError(
                f"{self.tops[part] / unseen[0]}: expected a class that there are training images "
                f"of ({', '.join(index)}), got {', '.join(unseen)}"
            )
        return torch.tensor([index[name] for name in names])

    def _class(self, path: Path, part: str) -> str:
        folder, *others = path.relative_to(self.tops[part]).parts
        if not others:
            raise ValueError(
                f"{path}: expected an image in a folder named after its class, got one beside them"
            )
        return folder


def parts_in(root: Path) -> dict[str, Path]:
    """The folder of each part; that of training alone where the folders are those of classes.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or there are parts without training,
            or two folders for one part.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"root: expected a folder with images, got {root}, which is none")
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        part = FOLDERS.get(path.name.lower())
        if part is None or not path.is_dir():
            continue
        if part in found:
            raise ValueError(
                f"{root}: expected one folder for {part}, got {found[part].name} and {path.name}"
            )
        found[part] = path
    if not found:
        return {"train": root}
    if "train" not in found:
        raise ValueError(f"{root}: expected a folder train beside {', '.join(found)}, got none")
    return found


def the_only(sizes: dict[tuple[int, int], Path]) -> tuple[int, int]:
    """The size that all images have; ValueError if there are several."""
    (size, path), *others = sizes.items()
    if others:
        (H, W), other = others[0]
        raise ValueError(
            f"size: expected one to bring images to, as they have {len(sizes)} sizes: "
            f"{size[0]} x {size[1]} ({path}), {H} x {W} ({other}), ...; got none"
        )
    return size
