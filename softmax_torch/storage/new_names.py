"""Names for new files and folders, none of which replaces an existing one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["check_new_name", "numbered_names", "take_free_name"]


def check_new_name(path: Path) -> None:
    """Raise FileExistsError if an output exists, FileNotFoundError unless its folder does."""
    if path.exists():
        raise FileExistsError(f"output: expected a new name, got {path}, which exists")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"output: expected a folder {path.parent}, got none")


def numbered_names(path: Path) -> Iterator[Path]:
    """Yield a path, and then the same with _1, _2, ... before its suffix."""
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.stem}_{number}{path.suffix}")


def take_free_name(
    names: Iterable[Path], take: Callable[[Path], object] = lambda path: None
) -> Path:
    """Return the first name that does not exist, after ``take`` created it.

    Args:
        names: names without end.
        take: creates a file or folder of a name. If another process was faster and it raises
            OSError, the next name is tried.

    Raises:
        OSError: ``take`` failed, and the name is still free.
    """
    for path in names:
        if os.path.lexists(path):
            continue
        try:
            take(path)
        except OSError:
            if not os.path.lexists(path):
                raise
        else:
            return path
    raise AssertionError("names end")
