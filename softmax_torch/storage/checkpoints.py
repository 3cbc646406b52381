"""Checkpoints: written atomically, verified by a digest, read without running code.

A checkpoint is a file written by ``torch.save``, a zip archive, with one line as the archive's
comment:

    softmax_torch 1 step=<optimizer steps> sha256=<of all bytes before the comment's length>

``torch.load`` ignores the comment; the digest finds any changed byte of the file. It is checked
whenever a checkpoint is read.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from softmax_torch.storage.atomic_files import write_atomically
from softmax_torch.storage.safe_read import read_torch_file, require_file, unpickle

__all__ = [
    "CHECKPOINT_FORMAT",
    "CHECKPOINT_SECONDS",
    "CheckpointFile",
    "check_digest",
    "is_damaged",
    "newest_checkpoint",
    "read_checkpoint",
    "step_of",
    "stored_hyper_parameters",
    "write_checkpoint",
]

CHECKPOINT_FORMAT = 1
"""Version of a checkpoint's content; a run is not resumed from a checkpoint of another version."""

CHECKPOINT_SECONDS = 30.0
"""Default time between two checkpoints within an epoch, the most work that a crash may cost."""

COMMENT = re.compile(rb"softmax_torch (\d+) step=(\d+) sha256=([0-9a-f]{64})")

COMMENT_LENGTH = struct.Struct("<H")
"""Length of the comment: the last bytes before it in a zip archive."""

TAIL = 256
"""Bytes at the end of a file that are searched for the comment."""

EXPECTED = "a checkpoint of a run"
DAMAGED = "damaged: its content does not match its digest"


class CheckpointFile(NamedTuple):
    """A whole checkpoint of a run.

    Attributes:
        path: the file.
        step: optimizer steps made before it.
        content: its content, as ``read_checkpoint`` returns it.
    """

    path: Path
    step: int
    content: dict[str, Any]


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically, with the comment that holds its step and its digest.

    Raises:
        OSError: the file could not be written; an existing file is unchanged.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    archive = buffer.getbuffer()
    comment = b"softmax_torch %d step=%d sha256=%s" % (
        CHECKPOINT_FORMAT,
        content.get("global_step", 0),
        hashlib.sha256(archive[: -COMMENT_LENGTH.size]).hexdigest().encode(),
    )
    length = COMMENT_LENGTH.pack(len(comment))
    write_atomically(path, archive[: -COMMENT_LENGTH.size], length, comment)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, with its tensors on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or no checkpoint of a run.
    """
    require_file(path, EXPECTED)
    with path.open("rb") as file:
        _check_digest(file, path)
        return _content(file, path)


def check_digest(path: Path) -> None:
    """Raise ValueError for a file whose digest does not match its content.

    ``torch.load`` does not notice a changed number. A file without a digest, which another program
    wrote, is accepted.
    """
    with path.open("rb") as file:
        _check_digest(file, path)


def newest_checkpoint(folder: Path) -> tuple[CheckpointFile | None, list[str]]:
    """Find the newest whole checkpoint in a folder; each file is opened once.

    Returns:
        The checkpoint with the most steps, or None; among equals ``last.ckpt``. And a sentence
        about each file that is damaged or no checkpoint of this program.

    Raises:
        ValueError: the newest file has the right digest, but is no checkpoint of a run.
    """
    whole: list[tuple[int, bool, Path, IO[bytes]]] = []
    skipped: list[str] = []
    with ExitStack() as opened:
        for path in sorted(folder.glob("*.ckpt")):
            file: IO[bytes] = opened.enter_context(path.open("rb"))
            step, damage = _verify(file)
            if damage:
                skipped.append(f"{path}: skipped: {damage}")
            else:
                # last.ckpt is written after a best.ckpt of the same step.
                whole.append((step, path.name == "last.ckpt", path, file))
        if not whole:
            return None, skipped
        step, _, path, file = max(whole, key=lambda entry: entry[:2])
        file.seek(0)
        return CheckpointFile(path, step, _content(file, path)), skipped


def is_damaged(path: Path) -> bool:
    """Return whether a file is anything but a whole checkpoint of this program."""
    with path.open("rb") as file:
        return bool(_verify(file)[1])


def step_of(path: Path) -> int:
    """Return the optimizer steps before a checkpoint; 0 for anything but a whole one."""
    with path.open("rb") as file:
        return _verify(file)[0]


def stored_hyper_parameters(path: Path) -> dict[str, Any]:
    """Return the hyper-parameters in a checkpoint; none if it is damaged or no checkpoint.

    Neither tensors nor the digest are read, so that the size of the file does not matter.
    """
    try:
        content = read_torch_file(path, EXPECTED, mmap=True)
    except (OSError, ValueError):
        return {}
    found = content.get("hyper_parameters") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else {}


def _content(file: IO[bytes], path: Path) -> dict[str, Any]:
    content = unpickle(file, path, EXPECTED)
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise ValueError(
            f"{path}: expected {EXPECTED}, with state_dict and hyper_parameters; got "
            f"{sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__}"
        )
    return content


class _Comment(NamedTuple):
    """The comment of a checkpoint, and the number of bytes before it that it has the digest of."""

    step: int
    digest: str
    size: int


def _comment(file: IO[bytes]) -> _Comment | None:
    """Return the comment of a checkpoint; None for a file that is cut off or has none."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL))
    tail = file.read()
    at = tail.rfind(b"softmax_torch ")
    match = COMMENT.fullmatch(tail, at) if at >= COMMENT_LENGTH.size else None
    if match is None or (
        COMMENT_LENGTH.unpack_from(tail, at - COMMENT_LENGTH.size)[0] != len(tail) - at
    ):
        return None
    return _Comment(int(match[2]), match[3].decode(), size - len(tail) + at - COMMENT_LENGTH.size)


def _matches(file: IO[bytes], comment: _Comment) -> bool:
    """Return whether the bytes of a checkpoint match its digest."""
    digest, remaining = hashlib.sha256(), comment.size
    file.seek(0)
    while remaining and (chunk := file.read(min(remaining, 1 << 20))):
        digest.update(chunk)
        remaining -= len(chunk)
    return digest.hexdigest() == comment.digest


def _check_digest(file: IO[bytes], path: Path) -> None:
    comment = _comment(file)
    if comment is not None and not _matches(file, comment):
        raise ValueError(f"{path}: expected {EXPECTED}, got a file that is {DAMAGED}")
    file.seek(0)


def _verify(file: IO[bytes]) -> tuple[int, str]:
    """Return the step of a checkpoint and the damage of its file, empty for a whole one."""
    comment = _comment(file)
    if comment is None:
        return 0, "cut off, or no checkpoint of a run of this program"
    return (comment.step, "") if _matches(file, comment) else (0, DAMAGED)
