"""Read IDX files, the format of MNIST and its relatives; every field is checked before use.

    bytes 0-1   0
    byte  2     type: 0x08 unsigned byte, 0x0C big-endian int32
    byte  3     number of dimensions d
    4 d bytes   the dimensions, big-endian uint32
    the rest    the elements, row-major

(http://yann.lecun.com/exdb/mnist, "File formats".) A file may be gzipped; its name then ends in
.gz.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["find", "read"]

TYPES: dict[int, np.dtype[Any]] = {0x08: np.dtype(np.uint8), 0x0C: np.dtype(">i4")}


def find(folder: Path, name: str) -> Path | None:
    """Return the plain file of this name, else the gzipped one, else None."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read(path: Path, sha256: str | None = None) -> Tensor:
    """Return the tensor in an IDX file, uint8 or int32.

    Args:
        path: the file.
        sha256: hexadecimal digest that the file must have, before it is unzipped; None for any.

    Raises:
        ValueError: the file is not a whole IDX file, or has another digest; the message names the
            file and the fault.
    """
    content = path.read_bytes()
    digest = sha256 and hashlib.sha256(content).hexdigest()
    if sha256 and digest != sha256.lower():
        raise ValueError(f"{path}: expected a file with SHA-256 {sha256}, got one with {digest}")
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a gzip file, got one that is broken: {error}") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in TYPES:
        raise ValueError(
            f"{path}: expected an IDX file of bytes or int32 (starting 00 00 08 or 00 00 0c), got "
            f"one starting {content[:4].hex(' ') or 'with nothing'}"
        )
    dtype, start = TYPES[content[2]], 4 + 4 * content[3]
    if len(content) < start:
        raise ValueError(f"{path}: expected a header of {start} bytes, got {len(content)} bytes")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    expected = start + math.prod(shape) * dtype.itemsize
    if len(content) != expected:
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {shape}, got {len(content)}: the file is "
            "damaged or its download is incomplete"
        )
    values = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return torch.from_numpy(values.astype(dtype.newbyteorder("=")))  # a copy: bytes are read-only
