"""Images in one folder for each class, the layout of torchvision's ``ImageFolder``.

    root/train/cat/1.jpg        or        root/cat/1.jpg
    root/test/dog/2.jpg                   root/dog/2.jpg

On the left the splits are folders (also ``val``, if there is one); on the right they are drawn. All
images are decoded once, on all cores, and stay in memory as bytes.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from softmax_torch.data.progress import current_reporter
from softmax_torch.data.splits import TEST_SEED, Split, draw_splits
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import ImagePreprocessing
from softmax_torch.readers.images import images_in, read_headers

__all__ = ["ImageFolderDataModule"]

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Split of each folder name, in any case."""

IMAGES_PER_STEP = 256
"""Images that are decoded between two steps of the progress bar."""


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

    ``setup``, and the first access to ``preprocessing`` or a size, raise FileNotFoundError or
    ValueError: no images, images that cannot be read (all are named), several sizes while ``size``
    is None, or a class without training images. The first access reads headers alone.
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
        super().__init__(None, None, batch_size, val_fraction, seed, scale=1 / 255)
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction: expected a number in (0, 1), got {test_fraction}")
        if size is not None and min(size) < 1:
            raise ValueError(f"size: expected two numbers of at least 1, got {size}")
        self.root, self.size, self.color = Path(root), size, color
        self.test_fraction = test_fraction

    @cached_property
    def folders(self) -> dict[str, Path]:
        """The folder of each split that has one."""
        return find_split_folders(self.root)

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """The images of each split that has a folder; after ``setup``, of all splits."""
        return {name: images_in(folder) for name, folder in self.folders.items()}

    @cached_property
    def preprocessing(self) -> ImagePreprocessing:
        """Size and colours of the training images, and the names of their folders."""
        names = tuple(sorted({self._class_name(path, "train") for path in self.files["train"]}))
        if len(names) < 2:
            raise ValueError(
                f"{self.folders['train']}: expected a folder for each of at least two classes, got "
                f"{', '.join(names)} alone"
            )
        sizes, has_color = read_headers(self.files["train"])
        size = self.size or common_size(sizes)
        color = has_color if self.color is None else self.color
        return ImagePreprocessing(size, color, names, self.scale)

    @property
    def test_ids(self) -> list[str]:
        """Paths of the test images, relative to ``root``."""
        return [str(path.relative_to(self.root)) for path in self.files["test"]]

    def read_splits(self) -> dict[str, Split]:
        """Return the splits of the folders, with the others drawn."""
        # Errors about labels come first, since decoding takes long.
        labels = {name: self._labels(name) for name in self.files}
        draws = {"test": (self.test_fraction, TEST_SEED), "val": (self.val_fraction, self.seed)}
        draws = {name: draw for name, draw in draws.items() if name not in labels}
        train, y = self.files["train"], labels["train"]
        rows = draw_splits(y, draws, self.preprocessing.class_names, self.root)
        files = self.files | {name: [train[row] for row in at] for name, at in rows.items()}
        labels |= {name: y[at] for name, at in rows.items()}
        x = self._decode([path for paths in files.values() for path in paths])
        self.files = files
        parts = torch.split(x, [len(paths) for paths in files.values()])
        return {name: Split(part, labels[name]) for name, part in zip(files, parts, strict=True)}

    def _decode(self, files: list[Path]) -> Tensor:
        """Return all images in one tensor, filled in place: joining would double the memory."""
        x = torch.empty(len(files), *(self.preprocessing.image_shape or ()), dtype=torch.uint8)
        row = 0
        with current_reporter().bar("decoding", "", 0, len(files), transient=True) as advance:
            for pixels in self.preprocessing.decode_files(files, IMAGES_PER_STEP):
                x[row : row + len(pixels)] = pixels
                row += len(pixels)
                advance(len(pixels))
        return x

    def _labels(self, name: str) -> Tensor:
        """Return class indices (n,) of the files of a split."""
        index = {class_name: c for c, class_name in enumerate(self.preprocessing.class_names)}
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


def find_split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; {"train": root} if root holds the folders of classes.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: other splits without training, or two folders for one split.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"root: expected a folder with images, got {root}, which is not a folder"
        )
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        name = SPLIT_FOLDERS.get(path.name.lower())
        if name is None or not path.is_dir():
            continue
        if name in found:
            raise ValueError(
                f"{root}: expected one folder for {name}, got {found[name].name} and {path.name}"
            )
        found[name] = path
    if not found:
        return {"train": root}
    if "train" not in found:
        raise ValueError(f"{root}: expected a folder train beside {', '.join(found)}, got none")
    return found


def common_size(sizes: dict[tuple[int, int], Path]) -> tuple[int, int]:
    """Return the size that all images have; raise ValueError if there are several."""
    (size, path), *others = sizes.items()
    if others:
        (H, W), other = others[0]
        raise ValueError(
            f"size: expected a size to resize images to, since they have {len(sizes)} sizes: "
            f"{size[0]} x {size[1]} ({path}), {H} x {W} ({other}), ...; got none"
        )
    return size
