"""Rows that are costly to compute, computed once: on disk block by block, each with its digest.

    <name>.npy     the rows (N, D)
    <name>.json    what they are made of, and a digest (BLAKE2b) of each block that is there

A block is synchronized with the disk before its digest is noted, and notes are replaced at once. So
whoever dies in between loses the block at hand and no other; and each time the file is opened a
block that has not its digest is found, and is computed again like one that was never there.
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

from softmax_torch.files import named, replace

__all__ = ["BLOCK", "BlockFile", "digest"]

BLOCK = 256
"""Rows of a block: on two cores a second of ResNet-18 at 28 x 28 pixels, 4 at 64 x 64."""


class BlockFile:
    """N rows of D numbers, of which some blocks are there.

    Args:
        path: the .npy file; its notes lie beside it.
        made_of: what the rows depend on, as JSON has it; rows of other things are not used.
        shape: (N, D).
        dtype: of the numbers.

    Attributes:
        missing: numbers of the blocks that are not there, ascending.
        complaint: what was wrong with what was found there, in words; empty where nothing was.

    Raises:
        OSError: the file cannot be written, or the disk has no room for it.
    """

    def __init__(
        self, path: Path, made_of: dict[str, Any], shape: tuple[int, int], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.notes = path, path.with_suffix(".json")
        self.made_of, self.shape, self.dtype = made_of, shape, dtype
        self.blocks = math.ceil(shape[0] / BLOCK)
        self.digests: list[str | None] = [None] * self.blocks
        self.complaint = ""
        if self.notes.exists():
            self.complaint = self._take_over()
        if all(noted is None for noted in self.digests):
            self._begin()
        self.missing = [i for i, noted in enumerate(self.digests) if noted is None]

    def at(self, block: int) -> slice:
        """The rows of a block."""
        return slice(block * BLOCK, min((block + 1) * BLOCK, self.shape[0]))

    def write(self, block: int, rows: Tensor) -> None:
        """Put a block (b, D) in its place."""
        content = rows.numpy().astype(self.dtype).tobytes()
        width = self.shape[1] * self.dtype.itemsize
        with named(self.path), self.path.open("r+b") as file:
            file.seek(self._mapped().offset + block * BLOCK * width)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        self.digests[block] = digest(content)
        self.missing.remove(block)
        self._note()

    def rows(self) -> Tensor:
        """All rows (N, D), mapped into memory."""
        assert not self.missing, "blocks are missing"
        return torch.from_numpy(self._mapped())

    def _mapped(self) -> np.memmap[Any, Any]:
        # Copy on write: torch warns of memory that it must not write to.
        mapped = np.load(self.path, mmap_mode="c", allow_pickle=False)
        assert isinstance(mapped, np.memmap)
        return mapped

    def _take_over(self) -> str:
        """Believe the blocks that have the digest noted: what is wrong with the others."""
        try:
            notes = json.loads(self.notes.read_text())
            made_of, digests = notes["made_of"], list(notes["blocks"])
            mapped = self._mapped()
        except (OSError, ValueError, KeyError, TypeError):
            return "damaged: the file or its notes cannot be read"
        others = [name for name, value in self.made_of.items() if made_of.get(name) != value]
        if others or len(digests) != self.blocks:
            return f"made of other things: {', '.join(others) or 'rows'}"
        if mapped.shape != self.shape or mapped.dtype != self.dtype:
            return f"damaged: expected {self.shape} of {self.dtype}, got {mapped.shape}"
        for i, noted in enumerate(digests):
            if noted is not None and digest(mapped[self.at(i)].tobytes()) == noted:
                self.digests[i] = noted
        bad = sum(noted is not None for noted in digests) - sum(map(bool, self.digests))
        return f"damaged: {bad} of {self.blocks} blocks do not have their digest" if bad else ""

    def _begin(self) -> None:
        """A file of the right size, with nothing in it."""
        self.notes.unlink(missing_ok=True)
        size = math.prod(self.shape) * self.dtype.itemsize
        self.path.unlink(missing_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise OSError(
                f"{self.path}: expected {size / 1e6:.1f} MB for features, got {free / 1e6:.1f} MB "
                "that are free on this disk"
            )
        with named(self.path):
            np.lib.format.open_memmap(self.path, "w+", self.dtype, self.shape)
        self._note()

    def _note(self) -> None:
        notes = {"made_of": self.made_of, "blocks": self.digests}
        replace(self.notes, json.dumps(notes, indent=0).encode())


def digest(*parts: bytes | memoryview) -> str:
    """BLAKE2b of some bytes, 32 hexadecimal digits."""
    result = hashlib.blake2b(digest_size=16)
    for part in parts:
        result.update(part)
    return result.hexdigest()
