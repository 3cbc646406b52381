"""Find the folders of splits and of classes in a folder of images, and the size of the images."""

from __future__ import annotations

from pathlib import Path

from softmax_torch.readers.image_search import FoundFiles, no_images_error, search, visible_folders

__all__ = ["common_size", "find_split_folders", "search_classes"]

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Split of each folder name, in any case."""


def find_split_folders(root: Path) -> dict[str, Path]:
    """Return the folder of each split; {"train": root} if root holds the folders of classes.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: other splits without training, or two folders for one split.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"root: expected a folder with images, got {root}, which is not a folder"
        )
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        name = SPLIT_FOLDERS.get(path.name.lower())
        if name is None or not path.is_dir():
            continue
        if name in found:
            raise ValueError(
                f"{root}: expected one folder for {name}, got {found[name].name} and {path.name}"
            )
        found[name] = path
    if not found:
        return {"train": root}
    if "train" not in found:
        raise ValueError(f"{root}: expected a folder train beside {', '.join(found)}, got none")
    return found


def search_classes(folder: Path) -> FoundFiles:
    """Return the files of a split, in one folder for each class.

    Raises:
        FileNotFoundError: there are no images, or a folder in it has none.
    """
    found = search(folder)
    if not found.images:
        raise no_images_error(folder, found.others)
    with_images = {path.relative_to(folder).parts[0] for path in found.images}
    for path in visible_folders(folder):
        if path.name not in with_images:
            raise no_images_error(path, search(path).others)
    return found


def common_size(sizes: dict[tuple[int, int], Path]) -> tuple[int, int]:
    """Return the size that all images have; raise ValueError if there are several."""
    (size, path), *others = sizes.items()
    if others:
        (H, W), other = others[0]
        raise ValueError(
            "size: expected a size to resize images to, such as [32, 32], since they have "
            f"{len(sizes)} sizes: "
            f"{size[0]} x {size[1]} ({path}), {H} x {W} ({other}), ...; got none"
        )
    return size
