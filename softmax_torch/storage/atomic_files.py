"""Write files atomically, and lock folders that one process at a time may write to.

A file is written under a temporary name in its folder, synchronized with the disk (fsync) and
renamed, which POSIX does atomically; then the folder is synchronized. A process that dies meanwhile
leaves the old file and, perhaps, a temporary one whose name ends in ``.partial``.

A folder is locked by a lock on itself (flock), which the kernel releases when the process ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":  # Windows has no flock: two writers in one folder go unnoticed there
    import fcntl

__all__ = ["PARTIAL_SUFFIX", "lock_folder", "name_in_errors", "sync_folder", "write_atomically"]

PARTIAL_SUFFIX = ".partial"
"""End of the temporary name of a file that is being written."""


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file, or replace an existing one, in one step.

    Args:
        path: the file; its folder exists.
        parts: the content, in pieces.

    Raises:
        OSError: the file could not be written; an existing file is unchanged.
    """
    partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
    size = sum(len(part) for part in parts)
    with name_in_errors(path, f" ({size} bytes); an existing file is unchanged"):
        try:
            with partial.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Synchronize the names in a folder with the disk."""
    with name_in_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def name_in_errors(path: Path, details: str = "") -> Iterator[None]:
    """Add the name of the file to an OSError raised within."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        message = f"{reason}: {path} could not be written{details}"
        if error.errno is None:  # as in those that Pillow raises
            raise type(error)(message) from error
        raise type(error)(error.errno, message) from error


def lock_folder(folder: Path, wait: bool = False) -> int | None:
    """Lock an existing folder.

    Args:
        folder: the folder.
        wait: whether to wait until another process releases it.

    Returns:
        A file descriptor that holds the lock until it is closed; None on Windows.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is false.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
