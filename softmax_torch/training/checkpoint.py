"""Checkpoints that survive: written whole or not at all, known by their digest, read without code.

A checkpoint is a file as ``softmax_torch.files`` writes them, and in it what ``torch.save`` writes,
a zip archive, with one line as the archive's comment:

    softmax_torch 1 step=<optimizer steps> sha256=<of all bytes before the comment's length>

``torch.load`` passes over it, and a byte that changed anywhere in the file is found by it.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from softmax_torch.files import replace
from softmax_torch.saved import check, load

__all__ = [
    "FORMAT",
    "AtomicCheckpointIO",
    "Found",
    "check",
    "damaged",
    "load",
    "newest",
]

FORMAT = 1
"""Of what a checkpoint holds; another one is refused where a run is resumed."""

COMMENT = re.compile(rb"softmax_torch (\d+) step=(\d+) sha256=([0-9a-f]{64})")
LENGTH = struct.Struct("<H")
"""The length of a comment, the last thing before it in a zip archive."""

TAIL = 256
"""Bytes at the end of a file that hold the comment."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to files, made safe; what is not on this machine goes Lightning's way."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; there is the old file until the new one is whole.

        Raises:
            OSError: it could not be written, with the path; a file that was there is untouched.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        comment = b"softmax_torch %d step=%d sha256=%s" % (
            FORMAT,
            checkpoint.get("global_step", 0),
            hashlib.sha256(content[: -LENGTH.size]).hexdigest().encode(),
        )
        replace(Path(path), content[: -LENGTH.size], LENGTH.pack(len(comment)), comment)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, _: storage,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint, always without running code from it."""
        return super().load_checkpoint(path, map_location, weights_only=True)


class Found(NamedTuple):
    """A checkpoint of a run, and the number of optimizer steps before it."""

    path: Path
    step: int


def newest(folder: Path) -> tuple[Found | None, list[str]]:
    """The last whole checkpoint of a run, if there is one, and what was passed over on the way.

    That are files which are damaged or no checkpoints of ours, each with a sentence that says so.
    """
    found, passed_over = [], []
    for path in sorted(folder.glob("*.ckpt")):
        step, complaint = _inspected(path)
        if complaint:
            passed_over.append(f"{path}: passed over, {complaint}")
        else:
            # Of those of one step the last one knows the most: a best one is written before.
            found.append((step, path.name == "last.ckpt", Found(path, step)))
    return (max(found)[2] if found else None), passed_over


def damaged(path: Path) -> bool:
    """Whether it is anything but a whole checkpoint of ours."""
    return bool(_inspected(path)[1])


def _inspected(path: Path) -> tuple[int, str]:
    """The step of a checkpoint, and what is wrong with it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL))
        tail = file.read()
        at = tail.rfind(b"softmax_torch ")
        match = COMMENT.fullmatch(tail, at) if at >= LENGTH.size else None
        if match is None or LENGTH.unpack_from(tail, at - LENGTH.size)[0] != len(tail) - at:
            return 0, "as it is cut off or no checkpoint of a run of this program"
        left = size - len(tail) + at - LENGTH.size
        digest = hashlib.sha256()
        file.seek(0)
        while left and (piece := file.read(min(left, 1 << 20))):
            digest.update(piece)
            left -= len(piece)
    if digest.hexdigest().encode() != match[3]:
        return 0, "as it is damaged: its content does not have the digest it was written with"
    return int(match[2]), ""
