"""Files that are there whole or not at all, in folders that one process at a time writes to.

A file is written under another name in the folder where it belongs, synchronized with the disk, and
renamed, which POSIX does at once; then the folder is synchronized. Whoever dies in between leaves
the old file and, perhaps, one that ends in ``.partial``.

A folder is locked by a lock on itself (flock), which ends with the process, however it ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":  # where two processes in one folder go unnoticed
    import fcntl

__all__ = ["PARTIAL", "lock", "named", "replace", "sync"]

PARTIAL = ".partial"
"""Ends the name of a file that is being written."""


def replace(path: Path, *parts: bytes | memoryview) -> None:
    """Write a file in the place of another, at once.

    Raises:
        OSError: it could not be written; what was there is untouched.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    size = sum(len(part) for part in parts)
    with named(path, f" ({size} bytes); what was there before is as it was"):
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
    sync(path.parent)


def sync(folder: Path) -> None:
    """Make the names in a folder last."""
    with named(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def named(path: Path, more: str = "") -> Iterator[None]:
    """Let an error of the disk say which file it was."""
    try:
        yield
    except OSError as error:
        message = f"{error.strerror}: {path} could not be written{more}"
        raise type(error)(error.errno, message) from error


def lock(folder: Path, wait: bool = False) -> int | None:
    """Lock a folder: a descriptor that holds the lock until it is closed; None on Windows.

    Args:
        folder: which exists.
        wait: whether to wait for another process that has it.

    Raises:
        BlockingIOError: another process has it.
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
