"""Images of any size and format become images of one size, grey or in colour.

    file  ->  upright (as its EXIF says), on white where it is transparent, grey or RGB, H x W
    x     =   bytes / 255

Pixels are kept as bytes until a batch is made. An image that has the size and the colours already
goes through unchanged, byte for byte.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from softmax_torch.preprocessing.base import Preprocessing
from softmax_torch.preprocessing.tensor_files import mapped
from softmax_torch.storage.safe_read import require_file

__all__ = ["SUFFIXES", "ImagePreprocessing", "files_of", "images_in", "look_at"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""What the name of an image ends in."""

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Pillow's modes of grey images with 16 bits a pixel, which it would cut off at 255."""

GREY = ("1", "L", "LA", "La", *DEEP)
"""Modes that have no colours."""

ORIENTATION = 0x0112
"""The tag of EXIF that says how an image lies; from 5 on, on its side."""

FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""What Pillow raises for files that are no images, or damaged."""

SHOWN = 20
"""Files that a message names, of those that are bad."""


class ImagePreprocessing(Preprocessing):
    """Images of H x W pixels.

    Args:
        size: (H, W).
        color: whether images have three channels, red, green and blue, or one, grey.
        class_names: a name for each class.
        scale: factor for bytes that come as an array; 1 / 255, unless white is another number.
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
        """Pixels, times 3 in colour."""
        return math.prod(self.image_shape or ())

    def tensor(self, raw: Any) -> Tensor:
        """Images in memory as x (n, H, W), or (n, 3, H, W) in colour.

        Args:
            raw: a path or a Pillow image, or a list of those; or an array (n, ...) of the shape
                above, of bytes, or of floats that are scaled already.

        Raises:
            FileNotFoundError, ValueError: a file that cannot be read, an array that does not fit.
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
        """One image as bytes (H, W), or (3, H, W) in colour.

        Raises:
            FileNotFoundError, ValueError: there is no such file, or no image that can be read.
        """
        if not isinstance(image, Image.Image):
            with opened(Path(image)) as found:
                return self.decode(found)
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floats, of which no range is known")
        if image.mode in DEEP:
            values = np.asarray(image)
            if values.min() < 0 or values.max() >= 1 << 16:
                raise ValueError("its pixels have 32 bits, of which no range is known")
            image = Image.fromarray((values >> 8).astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        image = image.convert("RGB" if self.color else "L")
        H, W = self.size
        if image.size != (W, H):
            image = image.resize((W, H), Image.Resampling.BILINEAR)  # it averages where it shrinks
        pixels = torch.from_numpy(np.array(image))
        return pixels.permute(2, 0, 1).contiguous() if self.color else pixels

    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """The images of a folder and the folders in it, one image, or a .npy file of bytes.

        Images that cannot be read are named at the end, all of them.
        """
        if path.suffix.lower() == ".npy":
            raw = mapped(path)
            for first in range(0, len(raw), rows):
                array = np.array(raw[first : first + rows])
                names = [str(row) for row in range(first, first + len(array))]
                try:
                    yield names, self.tensor(array)
                except ValueError as error:
                    raise ValueError(f"{path}: {error}") from None
            return
        files = files_of(path)
        top = path if path.is_dir() else path.parent
        for piece, pixels in zip(pieces(files, rows), self.decoded(files, rows), strict=True):
            yield [str(file.relative_to(top)) for file in piece], pixels * (1 / 255)

    def decoded(self, files: Sequence[Path], rows: int) -> Iterator[Tensor]:
        """Images as bytes (n, ...), at most so many at once, decoded by several threads.

        Raises:
            ValueError: at the end, with all those that cannot be read; none comes after the first.
        """
        bad: list[str] = []
        with ThreadPoolExecutor() as pool:  # Pillow decodes without holding the interpreter
            for piece in pieces(files, rows):
                images = []
                for image in pool.map(self._tried, piece):
                    if isinstance(image, Tensor):
                        images.append(image)
                    else:
                        bad.append(str(image))
                if not bad:
                    yield torch.stack(images)
        if bad:
            raise unreadable(bad)

    def _tried(self, file: Path) -> Tensor | Exception:
        try:
            return self.decode(file)
        except (FileNotFoundError, ValueError) as error:
            return error

    def state_dict(self) -> dict[str, Any]:
        """What it takes to make it again."""
        return {
            "kind": self.kind,
            "size": list(self.size),
            "color": self.color,
            "class_names": list(self.class_names),
            "scale": self.scale,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The one that was saved."""
        H, W = state["size"]
        return cls((H, W), state["color"], state["class_names"], state["scale"])


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """An image whose header was read; what goes wrong then or later names the file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or no image that can be read.
    """
    require_file(path, "an image")
    try:
        with Image.open(path) as image:
            yield image
    except FAULTS as error:
        reason = str(error).removesuffix(f" {str(path)!r}") or type(error).__name__
        raise ValueError(f"{path}: expected an image, got one that fails: {reason}") from None


def look_at(files: Sequence[Path]) -> tuple[dict[tuple[int, int], Path], bool]:
    """The sizes (H, W) of images, each with the first file that has it; whether any has colours.

    Only headers are read.

    Raises:
        ValueError: with all those that cannot be read.
    """
    sizes: dict[tuple[int, int], Path] = {}
    color, bad = False, []
    for path in files:
        try:
            with opened(path) as image:
                W, H = image.size
                # That of a PNG would decode all of it, for tags that may come after the pixels.
                turned = Image.Image.getexif(image).get(ORIENTATION, 1) >= 5
                sizes.setdefault((W, H) if turned else (H, W), path)
                color = color or image.mode not in GREY
        except ValueError as error:
            bad.append(str(error))
    if bad:
        raise unreadable(bad)
    return sizes, color


def pieces(files: Sequence[Path], rows: int) -> Iterator[Sequence[Path]]:
    """The files, at most so many at once."""
    for first in range(0, len(files), rows):
        yield files[first : first + rows]


def files_of(path: Path) -> list[Path]:
    """The one image that a path names, or those in a folder; see ``images_in``."""
    if path.suffix and not path.exists():
        require_file(path, "an image")
    return [path] if path.is_file() else images_in(path)


def images_in(folder: Path) -> list[Path]:
    """The images in a folder and the folders in it, in order; folders may be links.

    Raises:
        FileNotFoundError: there is no such folder, or none in it.
    """
    found: list[Path] = []
    for top, folders, names in os.walk(folder, followlinks=True):
        at = Path(top)
        folders[:] = [name for name in folders if not leads_back(at / name)]
        found += [
            at / name
            for name in names
            if name.lower().endswith(SUFFIXES)
            and not name.startswith(".")
            and (at / name).is_file()
        ]
    found.sort()
    if not found:
        raise FileNotFoundError(
            f"{folder}: expected a folder with images ({', '.join(SUFFIXES)}), got "
            + ("one without any" if folder.is_dir() else "no such folder")
        )
    return found


def leads_back(folder: Path) -> bool:
    """Whether it is a link to a folder that it lies in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def unreadable(complaints: Sequence[str]) -> ValueError:
    """One error for all files that cannot be read."""
    more = len(complaints) - SHOWN
    lines = [*complaints[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return ValueError(
        f"expected images that can be read, got {len(complaints)} that cannot:\n  "
        + "\n  ".join(lines)
    )
