"""MNIST and its relatives: 28 x 28 grey images, official training and test sets."""

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

from softmax_torch.data import idx
from softmax_torch.data.module import Split, TensorDataModule
from softmax_torch.preprocessing import ImagePreprocessing

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

CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
"""Classes of EMNIST's splits (Cohen et al. 2017, table II)."""

LETTERS = string.digits + string.ascii_uppercase + string.ascii_lowercase
MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
"""Classes of EMNIST in order; of letters whose cases look alike, "merged" ones are capitals."""

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
"""What classes are called, by data set or split of EMNIST; those not named here are digits."""

ARCHIVES = (".gz", ".zip")


class Files(NamedTuple):
    """Where a part of a variant lies."""

    images: str
    labels: str


class MNISTDataModule(TensorDataModule):
    """MNIST, Fashion-MNIST, KMNIST, QMNIST or a split of EMNIST: 784 pixels in [0, 1].

    The official test set is the test set and never anything else; validation samples are taken from
    the training set.

    Args:
        variant: which data set.
        root: folder that holds ``<data set>/raw/...`` as torchvision lays it out; by default the
            environment variable SOFTMAX_TORCH_DATA, or ``data`` where that is not set.
        download: whether files that are missing are fetched with torchvision, which checks them.
        batch_size, val_fraction, seed: see ``TensorDataModule``.
        sha256: hexadecimal digests that files must have, by the names they lie under (with .gz, if
            it is the gzipped file); those that are not named may have any.
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
        name, _, part = variant.partition("-")
        super().__init__(784, CLASSES.get(part, 10), batch_size, val_fraction, seed, 1 / 255)
        self.variant, self.download = variant, download
        self.dataset = name
        self.part = part  # of EMNIST; empty for the other data sets
        self.sha256 = sha256 or {}
        self.root = Path(root or os.environ.get("SOFTMAX_TORCH_DATA", "data"))

    @property
    def preprocessing(self) -> ImagePreprocessing:
        """Grey images of 28 x 28."""
        names = CLASS_NAMES.get(self.part or self.dataset, tuple(string.digits))
        return ImagePreprocessing((28, 28), False, names, self.scale)

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self.root / self.dataset / "raw"

    def prepare_data(self) -> None:
        """Fetch what is missing.

        A download that was cut off is taken up again by the next one: archives that are whole stay
        in ``.downloads`` until all of them are there. A file comes to its place at once, after it
        was read as a whole.

        Raises:
            FileNotFoundError: files are missing and could not be fetched.
        """
        reason = self._fetch() if self.download and self._missing() else ""
        missing = self._missing()
        if missing:
            raise FileNotFoundError(self._how_to_get(missing, reason))

    def read(self) -> tuple[Split, Split]:
        """The official training and test sets."""
        missing = self._missing()
        if missing:
            raise FileNotFoundError(self._how_to_get(missing))
        lying = {path.name for path in map(self._path, self._names()) if path is not None}
        unknown = sorted(self.sha256.keys() - lying)
        if unknown:
            raise ValueError(
                f"sha256: expected names among {', '.join(sorted(lying))}, got {', '.join(unknown)}"
            )
        return self._read("train"), self._read("test")

    def _read(self, part: Literal["train", "test"]) -> Split:
        images, labels = self._files(part)
        x, y = self._tensor(images), self._tensor(labels)
        if x.dim() != 3 or x.shape[1:] != (28, 28) or x.dtype != torch.uint8:
            raise ValueError(
                f"{self.folder / images}: expected images (N, 28, 28) of bytes, got "
                f"{tuple(x.shape)} of {x.dtype}"
            )
        if self.dataset == "QMNIST" and y.dim() == 2:
            y = y[:, 0]  # then writer, place in NIST and the like
        y = y.long()
        if self.dataset == "EMNIST":
            x = x.transpose(1, 2)  # stored lying on their side
            y = y - 1 if self.part == "letters" else y  # letters are counted from 1
        if y.dim() != 1 or len(y) != len(x):
            raise ValueError(
                f"{self.folder / labels}: expected a label for each of the {len(x)} images, got "
                f"shape {tuple(y.shape)}"
            )
        bad = (y < 0) | (y >= self.num_classes)
        if bad.any():
            row, first = int(bad.nonzero()[0]), int(self.part == "letters")
            raise IndexError(
                f"{self.folder / labels}: expected labels in [{first}, {self.num_classes + first})"
                f", got {int(y[row]) + first} in row {row}"
            )
        return Split(x, y)

    def _files(self, part: Literal["train", "test"]) -> Files:
        """Images and labels of the training or test set."""
        if self.dataset == "EMNIST":
            stem = f"emnist-{self.part}-{part}"
        elif self.dataset == "QMNIST":
            stem = f"qmnist-{part}"
        else:
            stem = "train" if part == "train" else "t10k"
        labels = "labels-idx2-int" if self.dataset == "QMNIST" else "labels-idx1-ubyte"
        return Files(f"{stem}-images-idx3-ubyte", f"{stem}-{labels}")

    def _names(self) -> tuple[str, ...]:
        return (*self._files("train"), *self._files("test"))

    def _path(self, name: str) -> Path | None:
        return idx.find(self.folder, name)

    def _missing(self) -> list[str]:
        return [name for name in self._names() if self._path(name) is None]

    def _tensor(self, name: str) -> Tensor:
        path = self._path(name)
        assert path is not None, "read looked for it"
        return idx.read(path, self.sha256.get(path.name))

    def _fetch(self) -> str:
        """Download both sets with torchvision, which compares archives with digests it knows.

        Returns:
            Why something could not be had; nothing otherwise.
        """
        staging = self.root / ".downloads"
        raw = staging / self.dataset / "raw"
        for path in unpacked(raw):  # perhaps not to the end
            path.unlink()
        fetch = getattr(datasets, self.dataset)
        options = {"split": self.part} if self.part else {}
        reason = ""
        try:
            # torchvision prints each mirror that fails; what is missing is said once, later.
            with contextlib.redirect_stdout(io.StringIO()):
                for train in (True, False):
                    fetch(staging, train=train, download=True, **options)
        except (RuntimeError, OSError) as error:
            reason = str(error).strip()
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in unpacked(raw):
            try:
                idx.read(path)
            except ValueError as error:  # a full disk, which is the reason then
                reason = reason or str(error)
                continue
            with path.open("rb+") as file:
                os.fsync(file.fileno())
            path.replace(self.folder / path.name)
        if not self._missing():
            shutil.rmtree(staging)
        return reason

    def _how_to_get(self, missing: list[str], reason: str = "") -> str:
        tried = "and they could not be downloaded" if self.download else "and download is off"
        why = f" ({reason})" if reason else ""
        return (
            f"{self.variant}: expected {', '.join(missing)} (or the same with .gz) in "
            f"{self.folder.absolute()}; they are not there, {tried}{why}.\n"
            f"With a network, run again with --data.download true; or put the files there; or give "
            f"the folder that holds {self.dataset}/raw with --data.root or SOFTMAX_TORCH_DATA.\n"
            "To start without any download: python train.py fit --config configs/digits.yaml"
        )


def unpacked(raw: Path) -> list[Path]:
    """The files in a folder that are no archives."""
    return [path for path in raw.glob("*") if path.is_file() and path.suffix not in ARCHIVES]
