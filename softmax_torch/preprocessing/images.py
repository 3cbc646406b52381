"""Preprocessing of images: one size, grey or colour, and numbers that a model can start from.

    file or Pillow image  ->  bytes, H x W (see ``softmax_torch.readers.images``)
    v = bytes / 255                in [0, 1]
    x = v, or standardised         (see ``softmax_torch.preprocessing.standardization``)

Pixels stay bytes until a batch is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from softmax_torch.preprocessing.interface import Preprocessing
from softmax_torch.preprocessing.standardization import Standardization
from softmax_torch.readers import images
from softmax_torch.readers.image_search import find_files
from softmax_torch.readers.numpy_files import map_numbers

__all__ = ["ImagePreprocessing"]


class ImagePreprocessing(Preprocessing):
    """Images of H x W pixels.

    Args:
        size: (H, W).
        color: whether images have three channels (red, green, blue) or one (grey).
        class_names: one name for each class.
        scale: factor for bytes in arrays; 1 / 255 if white is 255.
        standardization: of the training pixels; None to leave pixels in [0, 1].

    Attributes:
        unreadable: reason by file of the images that ``read`` could not read and left out; None,
            the default, makes such a file an error.

    Raises:
        ValueError: the standardization has another number of channels than the images.
    """

    kind = "images"

    def __init__(
        self,
        size: tuple[int, int],
        color: bool,
        class_names: Sequence[str],
        scale: float = 1 / 255,
        standardization: Standardization | None = None,
    ) -> None:
        channels = 3 if color else 1
        if standardization is not None and any(len(of) != channels for of in standardization):
            raise ValueError(
                f"standardization: expected a mean and a std for each of {channels} channels, got "
                f"{len(standardization.mean)} and {len(standardization.std)}"
            )
        self.standardization = standardization
        self.size, self.color, self.scale = size, color, scale
        self.class_names = tuple(class_names)
        self.image_shape = (3, *size) if color else size
        self.unreadable: dict[Path, str] | None = None

    @property
    def in_features(self) -> int:
        """Number of pixels, times 3 in colour."""
        return math.prod(self.image_shape or ())

    def tensor(self, raw: Any) -> Tensor:
        """Return images in memory as x (n, H, W), or (n, 3, H, W) in colour.

        Args:
            raw: a path or a Pillow image, or a list of those; or an array (n, ...) of the result's
                shape, of bytes, or of floats that are in [0, 1] already. All are standardised if
                the training images were.

        Raises:
            FileNotFoundError, ValueError: a file cannot be read, or an array has another shape,
                another type, or numbers that are not finite.
        """
        if isinstance(raw, str | Path | Image.Image):
            raw = [raw]
        if isinstance(raw, list | tuple) and raw and isinstance(raw[0], str | Path | Image.Image):
            return self._as_input(torch.stack([self.decode(image) for image in raw]) * (1 / 255))
        x = torch.as_tensor(raw)
        if x.shape[1:] != self.image_shape:
            raise ValueError(
                f"images: expected shape (n, {', '.join(map(str, self.image_shape or ()))}), got "
                f"{tuple(x.shape)}; files and Pillow images may have any size"
            )
        if x.is_floating_point():
            x = x.to(torch.get_default_dtype())
            if not x.isfinite().all():
                raise ValueError("images: expected finite numbers, got NaN or infinity")
            return x if self.standardization is None else self._as_input(x.clone())
        if x.dtype != torch.uint8:
            raise ValueError(f"images: expected bytes (uint8) or floats, got {x.dtype}")
        return self._as_input(x * self.scale)

    def _as_input(self, v: Tensor) -> Tensor:
        """Return scaled images as a model takes them; they are changed in place."""
        return v if self.standardization is None else self.standardization.apply_(v)

    def decode(self, image: str | Path | Image.Image) -> Tensor:
        """Return one image as bytes (H, W), or (3, H, W) in colour.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is no readable image.
        """
        return images.decode(image, self.size, self.color)

    def decode_files(
        self, files: Sequence[Path], rows: int, skip_unreadable: bool = False
    ) -> Iterator[images.DecodedFiles]:
        """Yield image files as bytes (n, ...); see ``readers.images.decode_files``."""
        return images.decode_files(files, self.size, self.color, rows, skip_unreadable)

    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """Yield the images of a folder and its subfolders, one image, or a .npy file of bytes.

        The error for images that cannot be read comes last and names all of them; ``unreadable``
        collects them instead.
        """
        if path.suffix.lower() == ".npy":
            yield from self.read_rows(torch.from_numpy(map_numbers(path)), rows, path)
            return
        files, parent = find_files(path), path if path.is_dir() else path.parent
        for read, pixels, failures in self.decode_files(files, rows, self.unreadable is not None):
            if self.unreadable is not None:
                self.unreadable |= failures
            names = [str(file.relative_to(parent)) for file in read]
            yield names, self._as_input(pixels * (1 / 255))

    def state_dict(self) -> dict[str, Any]:
        state = {
            "kind": self.kind,
            "size": list(self.size),
            "color": self.color,
            "class_names": list(self.class_names),
            "scale": self.scale,
        }
        # Left out where there is none: earlier versions had none, and their states stay equal.
        if self.standardization is not None:
            state |= {name: list(of) for name, of in self.standardization._asdict().items()}
        return state

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        H, W = state["size"]
        standardization = None
        if "mean" in state:
            standardization = Standardization(tuple(state["mean"]), tuple(state["std"]))
        return cls((H, W), state["color"], state["class_names"], state["scale"], standardization)
