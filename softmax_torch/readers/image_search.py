"""Find image files in folders, and count the other files.

Hidden files and folders are left out: ``.ipynb_checkpoints`` has copies of images that Jupyter's
file browser opened, ``__MACOSX`` a file of attributes for each image of an archive from a Mac.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from softmax_torch.storage.safe_read import require_file

__all__ = [
    "IMAGE_SUFFIXES",
    "FoundFiles",
    "find_files",
    "images_in",
    "is_hidden",
    "listed_suffixes",
    "no_images_error",
    "search",
    "visible_folders",
]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of image files."""

SYSTEM_FOLDERS = ("__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found")
"""Folders that programs and file systems put beside a user's own, as they do hidden ones."""

SHOWN_SUFFIXES = 5
"""Largest number of suffixes that a message names."""


def find_files(path: Path) -> list[Path]:
    """Return the image file itself, or the images in a folder as ``images_in`` does."""
    if path.suffix and not path.exists():
        require_file(path, "an image")
    return [path] if path.is_file() else images_in(path)


class FoundFiles(NamedTuple):
    """The files below a folder, hidden ones left out.

    Attributes:
        images: files with the suffix of an image, sorted.
        others: number of other files by suffix, lower-case; "" for files without one.
    """

    images: list[Path]
    others: Mapping[str, int]


def search(folder: Path) -> FoundFiles:
    """Return the files in a folder and its subfolders, which may be symbolic links.

    Files and folders whose name begins with a dot, and ``SYSTEM_FOLDERS``, are left out.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    for top, folders, names in os.walk(folder, followlinks=True):
        parent = Path(top)
        folders[:] = [
            name for name in folders if not is_hidden(name) and not links_to_ancestor(parent / name)
        ]
        for path in (parent / name for name in names if not is_hidden(name)):
            if not path.is_file():
                continue
            if path.name.lower().endswith(IMAGE_SUFFIXES):
                found.append(path)
            else:
                others[path.suffix.lower()] += 1
    return FoundFiles(sorted(found), others)


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or belongs to a program."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def images_in(folder: Path) -> list[Path]:
    """Return the images that ``search`` finds.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder with images, got no such folder")
    found, others = search(folder)
    if not found:
        raise no_images_error(folder, others)
    return found


def no_images_error(folder: Path, others: Mapping[str, int]) -> FileNotFoundError:
    """Return an error for a folder without images, with the files that are there instead."""
    return FileNotFoundError(
        f"{folder}: expected images ({', '.join(IMAGE_SUFFIXES)}), got {listed_suffixes(others)}"
    )


def visible_folders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder that ``search`` enters, sorted."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_dir() and not is_hidden(path.name) and not links_to_ancestor(path)
    ]


def listed_suffixes(others: Mapping[str, int]) -> str:
    """Return the numbers of files by suffix in words, the most frequent first.

    >>> listed_suffixes({".txt": 1, ".heic": 12, "": 2})
    '12 .heic, 2 without a suffix, 1 .txt'
    >>> listed_suffixes({})
    'no files'
    """
    ordered = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{n} {suffix or 'without a suffix'}" for suffix, n in ordered[:SHOWN_SUFFIXES]]
    more = sum(n for _, n in ordered[SHOWN_SUFFIXES:])
    return ", ".join([*shown, *([f"{more} others"] if more else [])]) or "no files"


def links_to_ancestor(folder: Path) -> bool:
    """Return whether a folder is a symbolic link to a folder that contains it."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
