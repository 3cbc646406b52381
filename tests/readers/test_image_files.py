"""Image files are found in folders, and headers give sizes and colours without decoding."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from softmax_torch.readers.image_search import images_in
from softmax_torch.readers.images import read_headers


def test_folders_may_be_links(tmp_path: Path) -> None:
    """A link to a folder that contains it is not followed."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    for path in ("a/1.png", "a/b/2.png", "c/3.png"):
        (tmp_path / path).touch()
    (tmp_path / "a" / "d").symlink_to(tmp_path / "c")
    (tmp_path / "a" / "b" / "e").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "b" / "f").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in images_in(tmp_path / "a")]
    assert found == ["a/1.png", "a/b/2.png", "a/d/3.png"]


def test_headers_give_sizes_and_colours(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise, which swaps width and height
    rotated, colour = tmp_path / "rotated.png", tmp_path / "colour.png"
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(rotated, exif=exif)
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(colour)
    assert read_headers([rotated]) == ({(8, 6): rotated}, False)
    assert read_headers([rotated, colour]) == ({(8, 6): rotated, (5, 4): colour}, True)


def test_all_unreadable_headers_are_named(tmp_path: Path) -> None:
    """Headers alone are read, so that damaged pixels are not found."""
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.gif").touch()
    with pytest.raises(ValueError, match=r"got 2 that cannot(.|\n)*empty.gif(.|\n)*text.jpg"):
        read_headers(images_in(tmp_path))
