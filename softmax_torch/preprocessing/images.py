"""Preprocessing of images: one size, grey or colour, and numbers in [0, 1].

    file or Pillow image  ->  bytes, H x W (see ``softmax_torch.readers.images``)
    x = bytes / 255

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
from softmax_torch.readers import images
from softmax_torch.readers.numpy_files import map_numbers

__all__ = ["ImagePreprocessing"]


class ImagePreprocessing(Preprocessing):
    """Images of H x W pixels.

    Args:
        size: (H, W).
        color: whether images have three channels (red, green, blue) or one (grey).
        class_names: one name for each class.
        scale: factor for bytes in arrays; 1 / 255 if white is 255.
    """

    kind = "images"

    def __init__(
        self,
        size: tuple[int, int],
        color: bool,
        class_names: Sequence[str],
        scale: float = 1 / 255,
    ) -> None:
        self.size, self.color, self.scale = size, color, scale
        self.class_names = tuple(class_names)
        self.image_shape = (3, *size) if color else size

    @property
    def in_features(self) -> int:
        """Number of pixels, times 3 in colour."""
        return math.prod(self.image_shape or ())

    def tensor(self, raw: Any) -> Tensor:
        """Return images in memory as x (n, H, W), or (n, 3, H, W) in colour.

        Args:
            raw: a path or a Pillow image, or a list of those; or an array (n, ...) of the result's
                shape, of bytes, or of floats that are scaled already.

        Raises:
            FileNotFoundError, ValueError: a file cannot be read, or an array has another shape,
                another type, or numbers that are not finite.
        """
        if isinstance(raw, str | Path | Image.Image):
            raw = [raw]
        if isinstance(raw, list | tuple) and raw and isinstance(raw[0], str | Path | Image.Image):
            return torch.stack([self.decode(image) for image in raw]) * (1 / 255)
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
            return x
        if x.dtype != torch.uint8:
            raise ValueError(f"images: expected bytes (uint8) or floats, got {x.dtype}")
        return x * self.scale

    def decode(self, image: str | Path | Image.Image) -> Tensor:
        """Return one image as bytes (H, W), or (3, H, W) in colour.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or it is no readable image.
        """
        return images.decode(image, self.size, self.color)

    def decode_files(self, files: Sequence[Path], rows: int) -> Iterator[Tensor]:
        """Yield image files as bytes (n, ...), at most ``rows`` together, decoded by threads."""
        return images.decode_files(files, self.size, self.color, rows)

    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """Yield the images of a folder and its subfolders, one image, or a .npy file of bytes.

        The error for images that cannot be read comes last and names all of them.
        """
        if path.suffix.lower() == ".npy":
            yield from self.read_rows(torch.from_numpy(map_numbers(path)), rows, path)
            return
        files = images.find_files(path)
        names = [str(file.relative_to(path if path.is_dir() else path.parent)) for file in files]
        first = 0
        for pixels in self.decode_files(files, rows):
            yield names[first : first + len(pixels)], pixels * (1 / 255)
            first += len(pixels)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "size": list(self.size),
            "color": self.color,
            "class_names": list(self.class_names),
            "scale": self.scale,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        H, W = state["size"]
        return cls((H, W), state["color"], state["class_names"], state["scale"])
