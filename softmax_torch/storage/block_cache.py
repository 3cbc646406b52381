"""Cache the rows of an expensive computation on disk, block by block, each with its digest.

    <name>.npy     the rows (N, D)
    <name>.json    the record: in "made_of" everything that the rows depend on, in "blocks" a
                   BLAKE2b digest for each finished block and null for the others

A block is synchronized with the disk before its digest is recorded, and the record is replaced
atomically, so that a process that dies loses the unfinished block alone. When the file is opened
again, every block is compared with its digest; a damaged block counts as missing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softmax_torch.storage.atomic_files import name_in_errors, write_atomically

__all__ = ["BLOCK_ROWS", "BlockFile", "digest"]

BLOCK_ROWS = 256
"""Rows of a block: with ResNet-18 on two cores 1 s of work at 28 x 28 pixels, 4 s at 64 x 64."""


class BlockFile:
    """N rows of D numbers in a file, of which some blocks may be missing.

    Args:
        path: the .npy file; its record is the .json file beside it.
        made_of: everything that the rows depend on, as JSON values; a file with another record is
            started anew.
        shape: (N, D).
        dtype: dtype of the numbers.

    Attributes:
        missing: indices of the missing blocks, ascending.
        complaint: description of the fault of an existing file; empty if there was none.

    Raises:
        OSError: the file cannot be written, or the disk has no room for it.
    """

    def __init__(
        self, path: Path, made_of: dict[str, Any], shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.record = path, path.with_suffix(".json")
        self.made_of, self.shape, self.dtype = made_of, shape, dtype
        self.blocks = math.ceil(shape[0] / BLOCK_ROWS)
        self.digests: list[str | None] = [None] * self.blocks
        self.complaint = self._verify() if self.record.exists() else ""
        if all(entry is None for entry in self.digests):
            self._begin()
        self.missing = [i for i, entry in enumerate(self.digests) if entry is None]

    def rows_of(self, block: int) -> slice:
        """Return the rows of a block."""
        return slice(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, self.shape[0]))

    def write(self, block: int, rows: Tensor) -> None:
        """Write the rows (b, D) of a missing block."""
        content = rows.numpy().astype(self.dtype).tobytes()
        width = self.shape[1] * self.dtype.itemsize
        with name_in_errors(self.path), self.path.open("r+b") as file:
            file.seek(self._mapped().offset + block * BLOCK_ROWS * width)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.digests[block] = digest(content)
        self.missing.remove(block)
        self._write_record()

    def rows(self) -> Tensor:
        """Return all rows (N, D), mapped into memory."""
        assert not self.missing, "blocks are missing"
        return torch.from_numpy(self._mapped())

    def _mapped(self) -> np.memmap[Any, Any]:
        # Copy on write: torch warns of memory that it must not write to.
        mapped = np.load(self.path, mmap_mode="c", allow_pickle=False)
        assert isinstance(mapped, np.memmap)
        return mapped

    def _verify(self) -> str:
        """Load the digests of whole blocks; return the complaint about the file."""
        try:
            record = json.loads(self.record.read_text())
            made_of, digests = record["made_of"], list(record["blocks"])
            mapped = self._mapped()
        except (OSError, ValueError, KeyError, TypeError):
            return "damaged: the file or its record cannot be read"
        differing = [name for name, value in self.made_of.items() if made_of.get(name) != value]
        if differing or len(digests) != self.blocks:
            return f"computed from other {', '.join(differing) or 'rows'}"
        if mapped.shape != self.shape or mapped.dtype != self.dtype:
            return f"damaged: expected {self.shape} of {self.dtype}, got {mapped.shape}"
        for i, recorded in enumerate(digests):
            if recorded is not None and digest(mapped[self.rows_of(i)].tobytes()) == recorded:
                self.digests[i] = recorded
        bad = sum(entry is not None for entry in digests) - sum(map(bool, self.digests))
        return f"damaged: {bad} of {self.blocks} blocks do not match their digest" if bad else ""

    def _begin(self) -> None:
        """Create a file of the full size, without any block."""
        self.record.unlink(missing_ok=True)
        size = math.prod(self.shape) * self.dtype.itemsize
        self.path.unlink(missing_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise OSError(
                f"{self.path}: expected {size / 1e6:.1f} MB of free disk space for features, got "
                f"{free / 1e6:.1f} MB"
            )
        with name_in_errors(self.path):
            np.lib.format.open_memmap(self.path, "w+", self.dtype, self.shape)
        self._write_record()

    def _write_record(self) -> None:
        record = {"made_of": self.made_of, "blocks": self.digests}
        write_atomically(self.record, json.dumps(record, indent=0).encode())


def digest(*parts: bytes | memoryview) -> str:
    """Return the BLAKE2b digest of the concatenated parts, as 32 hexadecimal digits."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(part)
    return result.hexdigest()
