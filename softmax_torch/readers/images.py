"""Read the headers of image files, and decode them to bytes of one size.

    file  ->  upright (by its EXIF orientation), on white where transparent  ->  grey or RGB, H x W

An image that already has the size and the colours passes unchanged, byte for byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from softmax_torch.storage.safe_read import require_file

__all__ = [
    "DecodedFiles",
    "decode",
    "decode_files",
    "read_headers",
    "unreadable_error",
]

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


class DecodedFiles(NamedTuple):
    """Some image files in order: those that can be read with their pixels, and the others.

    Attributes:
        files: the files that can be read.
        pixels: their bytes (n, H, W), or (n, 3, H, W) in colour.
        failures: the message of each file that cannot be read.
    """

    files: list[Path]
    pixels: Tensor
    failures: dict[Path, str]


def decode_files(
    files: Sequence[Path],
    size: tuple[int, int],
    color: bool,
    rows: int,
    skip_unreadable: bool = False,
) -> Iterator[DecodedFiles]:
    """Yield image files as bytes, at most ``rows`` together, decoded by threads.

    Args:
        files: the image files.
        size, color: see ``decode``.
        rows: largest number of files to yield together.
        skip_unreadable: whether files that cannot be read are among the ``failures`` of their
            batch. Otherwise they are an error.

    Raises:
        ValueError: files cannot be read, and are not to be skipped. All are tried first, and the
            message names those that fail; no batch is yielded after the first of them.
    """
    shape = (3, *size) if color else size

    def try_decode(file: Path) -> Tensor | Exception:
        try:
            return decode(file, size, color)
        except (FileNotFoundError, ValueError) as error:
            return error

    failures: list[str] = []
    with ThreadPoolExecutor() as pool:  # Pillow decodes without the interpreter lock
        for first in range(0, len(files), rows):
            batch = files[first : first + rows]
            read, images, failed = [], [], {}
            for file, result in zip(batch, pool.map(try_decode, batch), strict=True):
                if isinstance(result, Tensor):
                    read.append(file)
                    images.append(result)
                else:
                    failed[file] = str(result)
            if not skip_unreadable:
                failures += failed.values()
            if not failures:
                empty = torch.empty(0, *shape, dtype=torch.uint8)
                yield DecodedFiles(read, torch.stack(images) if images else empty, failed)
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


def read_headers(
    files: Sequence[Path], skip_unreadable: bool = False
) -> tuple[dict[tuple[int, int], Path], bool]:
    """Return the sizes (H, W) of images, each with its first file, and whether any has colours.

    Args:
        files: the image files.
        skip_unreadable: whether to leave out images whose header cannot be read.

    Raises:
        ValueError: headers cannot be read, and are not to be left out, or all are left out; the
            message names the files.
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
    if failures and not (skip_unreadable and sizes):
        raise unreadable_error(failures, skip_unreadable)
    return sizes, color


def unreadable_error(failures: Sequence[str], skipped: bool = False) -> ValueError:
    """Return one error that lists the messages for all unreadable files.

    Args:
        failures: the messages.
        skipped: whether such files were to be left out, but too few others remain.
    """
    more = len(failures) - SHOWN
    lines = [*failures[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
    hint = "" if skipped else " (skip_unreadable leaves them out)"
    return ValueError(
        f"expected images that can be read, got {len(failures)} that cannot{hint}:\n  "
        + "\n  ".join(lines)
    )
