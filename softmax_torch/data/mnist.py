"""MNIST and its relatives: 28 x 28 grey images with official training and test sets."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import string
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision import datasets

from softmax_torch.data.splits import Split
from softmax_torch.data.tensor_data_module import TensorDataModule
from softmax_torch.preprocessing import ImagePreprocessing
from softmax_torch.readers import idx

__all__ = ["MNISTDataModule", "Variant"]

Variant = Literal[
    "MNIST",
    "FashionMNIST",
    "KMNIST",
    "QMNIST",
    "EMNIST-byclass",
    "EMNIST-bymerge",
    "EMNIST-balanced",
    "EMNIST-letters",
    "EMNIST-digits",
    "EMNIST-mnist",
]

LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
"""Classes of EMNIST in order (Cohen et al. 2017, table II). The "merged" splits join the upper and
lower case of letters that look alike, under the capital."""

CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "byclass": tuple(LETTERS),
    "bymerge": tuple(MERGED),
    "balanced": tuple(MERGED),
    "letters": tuple(string.ascii_uppercase),
    "FashionMNIST": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "KMNIST": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
"""Class names by data set or EMNIST split; the others have the classes 0 to 9."""

ARCHIVES = (".gz", ".zip")


class SetFiles(NamedTuple):
    """Names of the files of a training or test set."""

    images: str
    labels: str


class MNISTDataModule(TensorDataModule):
    """MNIST, Fashion-MNIST, KMNIST, QMNIST or a split of EMNIST: 784 pixels in [0, 1].

    The official test set serves as the test set only; validation samples are drawn from the
    training set.

    Args:
        variant: which data set.
        root: folder that holds ``<data set>/raw/...`` as torchvision lays it out; by default the
            environment variable SOFTMAX_TORCH_DATA, or ``data`` if it is not set.
        download: whether to download missing files with torchvision, which checks them.
        batch_size, val_fraction, seed: see ``TensorDataModule``.
        sha256: hexadecimal digests that files must have, by file name (with .gz for a gzipped
            file); unlisted files are not checked.
    """

    def __init__(
        self,
        variant: Variant = "MNIST",
        root: str | None = None,
        download: bool = True,
        batch_size: int | None = 128,
        val_fraction: float = 0.1,
        seed: int = 0,
        sha256: dict[str, str] | None = None,
    ) -> None:
        super().__init__(None, None, batch_size, val_fraction, seed, scale=1 / 255)
        self.variant, self.download = variant, download
        self.dataset, _, self.emnist_split = variant.partition("-")
        self.sha256 = sha256 or {}
        self.root = Path(root or os.environ.get("SOFTMAX_TORCH_DATA", "data"))

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """Grey images of 28 x 28."""
        names = CLASS_NAMES.get(self.emnist_split or self.dataset, tuple(string.digits))
        return ImagePreprocessing((28, 28), False, names, self.scale)

    @property
    def folder(self) -> Path:
        """Folder of the files."""
        return self.root / self.dataset / "raw"

    def prepare_data(self) -> None:
        """Download missing files.

        The next call resumes a download that was cut off: complete archives stay in ``.downloads``
        until all are there. A file is moved into ``folder`` only after it was read completely.

        Raises:
            FileNotFoundError: files are missing and could not be downloaded.
        """
        reason = self._download() if self.download and self._missing() else ""
        missing = self._missing()
        if missing:
            raise FileNotFoundError(self._missing_message(missing, reason))

    def read(self) -> tuple[Split, Split]:
        """Return the official training and test sets."""
        missing = self._missing()
        if missing:
            raise FileNotFoundError(self._missing_message(missing))
        present = {path.name for path in map(self._path, self._names()) if path is not None}
        unknown = sorted(self.sha256.keys() - present)
        if unknown:
            raise ValueError(
                f"sha256: expected names among {', '.join(sorted(present))}, got "
                f"{', '.join(unknown)}"
            )
        return self._read_set("train"), self._read_set("test")

    def _read_set(self, name: Literal["train", "test"]) -> Split:
        images, labels = self._files(name)
        x, y = self._tensor(images), self._tensor(labels)
        if x.dim() != 3 or x.shape[1:] != (28, 28) or x.dtype != torch.uint8:
            raise ValueError(
                f"{self.folder / images}: expected images (N, 28, 28) of bytes, got "
                f"{tuple(x.shape)} of {x.dtype}"
            )
        if self.dataset == "QMNIST" and y.dim() == 2:
            y = y[:, 0]  # the other columns are metadata, such as the writer
        y = y.long()
        letters = self.emnist_split == "letters"
        if self.dataset == "EMNIST":
            x = x.transpose(1, 2)  # EMNIST stores images transposed
            y = y - 1 if letters else y  # and counts letters from 1
        if y.dim() != 1 or len(y) != len(x):
            raise ValueError(
                f"{self.folder / labels}: expected a label for each of the {len(x)} images, got "
                f"shape {tuple(y.shape)}"
            )
        bad = (y < 0) | (y >= self.num_classes)
        if bad.any():
            row, first = int(bad.nonzero()[0]), int(letters)
            raise IndexError(
                f"{self.folder / labels}: expected labels in [{first}, {self.num_classes + first})"
                f", got {int(y[row]) + first} in row {row}"
            )
        return Split(x, y)

    def _files(self, name: Literal["train", "test"]) -> SetFiles:
        """Return the file names of the training or test set."""
        if self.dataset == "EMNIST":
            stem = f"emnist-{self.emnist_split}-{name}"
        elif self.dataset == "QMNIST":
            stem = f"qmnist-{name}"
        else:
            stem = "train" if name == "train" else "t10k"
        labels = "labels-idx2-int" if self.dataset == "QMNIST" else "labels-idx1-ubyte"
        return SetFiles(f"{stem}-images-idx3-ubyte", f"{stem}-{labels}")

    def _names(self) -> tuple[str, ...]:
        return (*self._files("train"), *self._files("test"))

    def _path(self, name: str) -> Path | None:
        return idx.find(self.folder, name)

    def _missing(self) -> list[str]:
        return [name for name in self._names() if self._path(name) is None]

    def _tensor(self, name: str) -> Tensor:
        path = self._path(name)
        assert path is not None, "read checks that all files are there"
        return idx.read(path, self.sha256.get(path.name))

    def _download(self) -> str:
        """Download both sets with torchvision, which checks the digests of archives.

        Returns:
            The reason why something could not be downloaded, or "".
        """
        staging = self.root / ".downloads"
        raw = staging / self.dataset / "raw"
        for path in unpacked_files(raw):  # from an earlier call, and perhaps incomplete
            path.unlink()
        dataset = getattr(datasets, self.dataset)
        options = {"split": self.emnist_split} if self.emnist_split else {}
        reason = ""
        try:
            # torchvision prints each mirror that fails; here one error names the missing files.
            with contextlib.redirect_stdout(io.StringIO()):
                for train in (True, False):
                    dataset(staging, train=train, download=True, **options)
        except (RuntimeError, OSError) as error:
            reason = str(error).strip()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in unpacked_files(raw):
            try:
                idx.read(path)
            except ValueError as error:  # for example where the disk is full
                reason = reason or str(error)
                continue
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.replace(self.folder / path.name)
        if not self._missing():
            shutil.rmtree(staging)
        return reason

    def _missing_message(self, missing: list[str], reason: str = "") -> str:
        tried = "and they could not be downloaded" if self.download else "and download is off"
        why = f" ({reason})" if reason else ""
        return (
            f"{self.variant}: expected {', '.join(missing)} (or the same with .gz) in "
            f"{self.folder.absolute()}; they are not there, {tried}{why}.\n"
            f"With a network, set download to true; or put the files there; or set root, or the "
            f"environment variable SOFTMAX_TORCH_DATA, to the folder that holds "
            f"{self.dataset}/raw.\n"
            "DigitsDataModule needs no download."
        )


def unpacked_files(raw: Path) -> list[Path]:
    """Return the files in a folder except archives."""
    return [path for path in raw.glob("*") if path.is_file() and path.suffix not in ARCHIVES]
