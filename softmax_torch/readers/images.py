"""Find image files, read their headers, and decode them to bytes of one size.

    file  ->  upright (by its EXIF orientation), on white where transparent  ->  grey or RGB, H x W

An image that already has the size and the colours passes unchanged, byte for byte.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from softmax_torch.storage.safe_read import require_file

__all__ = ["IMAGE_SUFFIXES", "decode", "decode_files", "find_files", "images_in", "read_headers"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files."""

DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
"""Modes of grey images with 16 or more bits a pixel, which Pillow's ``convert`` clips at 255."""

GREY_MODES = ("1", "L", "LA", "La", *DEEP)
"""Modes of images without colours."""

ORIENTATION = 0x0112
"""EXIF tag of the orientation; values from 5 on swap width and height."""

PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    zlib.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)
"""Exceptions that Pillow raises for damaged files and other kinds of files."""

SHOWN = 20
"""Largest number of unreadable files that a message names."""


def decode(image: str | Path | Image.Image, size: tuple[int, int], color: bool) -> Tensor:
    """Return one image as bytes (H, W), or (3, H, W) in colour.

    Args:
        image: a file or a Pillow image.
        size: (H, W); an image of another size is resized, and averaged where it shrinks.
        color: whether to return red, green and blue, or grey.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no readable image.
    """
    if not isinstance(image, Image.Image):
        with open_image(Path(image)) as opened:
            return decode(opened, size, color)
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floats of unknown range")
    if image.mode in DEEP:
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 1 << 16:
            raise ValueError("its pixels have 32 bits of unknown range")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    image = image.convert("RGB" if color else "L")
    H, W = size
    if image.size != (W, H):
        image = image.resize((W, H), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1).contiguous() if color else pixels


def decode_files(
    files: Sequence[Path], size: tuple[int, int], color: bool, rows: int
) -> Iterator[Tensor]:
    """Yield image files as bytes (n, ...) in batches of at most ``rows``, decoded by threads.

    Raises:
        ValueError: files cannot be read. All are tried first, and the message names those that
            fail; no batch is yielded after the first of them.
    """

    def try_decode(file: Path) -> Tensor | Exception:
        try:
            return decode(file, size, color)
        except (FileNotFoundError, ValueError) as error:
            return error

    failures: list[str] = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter lock
        for first in range(0, len(files), rows):
            results = list(pool.map(try_decode, files[first : first + rows]))
            failures += [str(result) for result in results if isinstance(result, Exception)]
            if not failures:
                yield torch.stack([image for image in results if isinstance(image, Tensor)])
    if failures:
        raise unreadable_error(failures)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image and read its header; any error, also a later one, names the file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no readable image.
    """
    require_file(path, "an image")
    try:
        with Image.open(path) as image:
            yield image
    except PILLOW_ERRORS as error:
        reason = str(error).removesuffix(f" {str(path)!r}") or type(error).__name__
        raise ValueError(f"{path}: expected an image, got one that fails: {reason}") from None


def read_headers(files: Sequence[Path]) -> tuple[dict[tuple[int, int], Path], bool]:
    """Return the sizes (H, W) of images, each with its first file, and whether any has colours.

    Raises:
        ValueError: headers cannot be read; the message names all such files.
    """
    sizes: dict[tuple[int, int], Path] = {}
    color, failures = False, []
    for path in files:
        try:
            with open_image(path) as image:
                W, H = image.size
                # A PNG's own getexif would decode all pixels, since tags may follow them.
                swapped = Image.Image.getexif(image).get(ORIENTATION, 1) >= 5
                sizes.setdefault((W, H) if swapped else (H, W), path)
                color = color or image.mode not in GREY_MODES
        except ValueError as error:
            failures.append(str(error))
    if failures:
        raise unreadable_error(failures)
    return sizes, color


def find_files(path: Path) -> list[Path]:
    """Return the image file itself, or the images in a folder as ``images_in`` does."""
    if path.suffix and not path.exists():
        require_file(path, "an image")
    return [path] if path.is_file() else images_in(path)


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted; folders may be symbolic links.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    found: list[Path] = []
    for top, folders, names in os.walk(folder, followlinks=True):
        parent = Path(top)
        folders[:] = [name for name in folders if not links_to_ancestor(parent / name)]
        found += [
            parent / name
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES)
            and not name.startswith(".")
            and (parent / name).is_file()
        ]
    found.sort()
    if not found:
        raise FileNotFoundError(
            f"{folder}: expected a folder with images ({', '.join(IMAGE_SUFFIXES)}), got "
            + ("one without any" if folder.is_dir() else "no such folder")
        )
    return found


def links_to_ancestor(folder: Path) -> bool:
    """Return whether a folder is a symbolic link to a folder that contains it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def unreadable_error(failures: Sequence[str]) -> ValueError:
    """Return one error that lists the messages for all unreadable files."""
    more = len(failures) - SHOWN
    lines = [*failures[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
    return ValueError(
        f"expected images that can be read, got {len(failures)} that cannot:\n  "
        + "\n  ".join(lines)
    )
