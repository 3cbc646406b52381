"""Images of any format become bytes of one size; those of that size stay unchanged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softmax_torch.preprocessing import ImagePreprocessing, from_state_dict

GREY = ImagePreprocessing((8, 6), False, ("a", "b"))
COLOR = ImagePreprocessing((8, 6), True, ("a", "b"))


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_an_image_of_the_right_size_is_unchanged(tmp_path: Path, suffix: str) -> None:
    grey, color = pixels(8, 6), pixels(8, 6, 3)
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(color).save(tmp_path / f"color.{suffix}", **options)
    Image.fromarray(grey).save(tmp_path / f"grey.{suffix}", **options)
    found = COLOR.decode(tmp_path / f"color.{suffix}")
    assert torch.equal(found, torch.from_numpy(color).permute(2, 0, 1))
    assert torch.equal(GREY.decode(tmp_path / f"grey.{suffix}"), torch.from_numpy(grey))


def test_an_image_of_another_size_is_averaged() -> None:
    large = np.kron(pixels(8, 6), np.ones((4, 4), np.uint8)).astype(np.uint8)
    small = GREY.decode(Image.fromarray(np.full_like(large, 77)))
    assert small.shape == (8, 6)
    assert small.unique().tolist() == [77]
    checkered = np.indices((80, 60)).sum(0) % 2 * 255  # nearest neighbours would be 0 or 255
    averaged = GREY.decode(Image.fromarray(checkered.astype(np.uint8))).double()
    assert (averaged - 127.5).abs().max() < 16


def test_16_bits_are_shifted_to_8_not_clipped(tmp_path: Path) -> None:
    deep = pixels(8, 6).astype(np.uint16) * 256 + 17
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert torch.equal(
        GREY.decode(tmp_path / "deep.png"), torch.from_numpy((deep >> 8).astype("u1"))
    )


def test_more_than_16_bits_are_refused(tmp_path: Path) -> None:
    for value in (-1, 1 << 16):
        Image.fromarray(np.full((8, 6), value, np.int32)).save(tmp_path / "deep.tiff")
        with pytest.raises(ValueError, match=r"deep.tiff: .* its pixels have 32 bits of unknown"):
            GREY.decode(tmp_path / "deep.tiff")
    Image.fromarray(np.full((8, 6), 0xFFFF, np.int32)).save(tmp_path / "deep.tiff")
    assert GREY.decode(tmp_path / "deep.tiff").unique().tolist() == [255]


def test_transparent_pixels_become_white() -> None:
    clear = np.zeros((8, 6, 4), np.uint8)
    clear[0, 0] = 10, 20, 30, 255
    found = COLOR.decode(Image.fromarray(clear))
    assert found[:, 0, 0].tolist() == [10, 20, 30]
    assert found[:, 1:].unique().tolist() == [255]


def test_an_image_is_rotated_by_its_exif_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    upright = pixels(8, 6)
    lying = Image.fromarray(np.rot90(upright).copy())
    lying.save(tmp_path / "lying.png", exif=exif)
    assert torch.equal(GREY.decode(tmp_path / "lying.png"), torch.from_numpy(upright))


def test_raw_inputs_of_every_kind_give_the_same_tensor(tmp_path: Path) -> None:
    images = pixels(3, 8, 6)
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for image, file in zip(images, files, strict=True):
        Image.fromarray(image).save(file)
    np.save(tmp_path / "all.npy", images)
    x = torch.from_numpy(images) * (1 / 255)
    assert torch.equal(GREY.tensor(images), x)
    assert torch.equal(GREY.tensor(torch.from_numpy(images)), x)
    assert torch.equal(GREY.tensor(x), x)
    assert torch.equal(GREY.tensor([str(file) for file in files]), x)
    assert torch.equal(GREY.tensor([Image.open(file) for file in files]), x)
    assert torch.equal(GREY.tensor(files[1]), x[1:2])
    for path, names in (
        (tmp_path, ["0.png", "1.png", "2.png"]),
        (tmp_path / "all.npy", list("012")),
        (shutil.copy(tmp_path / "all.npy", tmp_path / "CAPITALS.NPY"), list("012")),
    ):
        ids, parts = zip(*GREY.read(path, 2), strict=True)
        assert [len(part) for part in parts] == [2, 1]
        assert [name for part in ids for name in part] == names
        assert torch.equal(torch.cat(parts), x)
    assert [ids for ids, _ in GREY.read(files[2], 2)] == [["2.png"]]


def test_a_state_rebuilds_the_preprocessing() -> None:
    digits = ImagePreprocessing((8, 8), False, tuple("0123456789"), scale=1 / 16)
    again = from_state_dict(digits.state_dict())
    assert isinstance(again, ImagePreprocessing)
    assert again.state_dict() == digits.state_dict()
    assert (again.image_shape, again.in_features) == ((8, 8), 64)
    assert (COLOR.image_shape, COLOR.in_features) == ((3, 8, 6), 144)
    with pytest.raises(ValueError, match=r"expected one of features, images.*got 'sounds'"):
        from_state_dict({"kind": "sounds"})


def test_all_unreadable_files_are_named(tmp_path: Path) -> None:
    Image.fromarray(pixels(8, 6)).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:60])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.gif").touch()
    Image.fromarray(pixels(8, 6).astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match="got 4 that cannot") as caught:
        list(GREY.read(tmp_path, 2))
    for name in ("cut.png", "text.jpg", "empty.gif", "float.tiff"):
        assert str(caught.value).count(f"{name}: expected an image, got one that fails") == 1
    assert "good.png" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (np.zeros((2, 6, 8), np.uint8), r"expected shape \(n, 8, 6\), got \(2, 6, 8\)"),
        (np.zeros((8, 6), np.uint8), r"expected shape \(n, 8, 6\), got \(8, 6\)"),
        (np.zeros((2, 8, 6), np.int64), r"expected bytes \(uint8\) or floats, got torch.int64"),
        (np.full((2, 8, 6), np.nan), "expected finite numbers"),
    ],
)
def test_arrays_of_other_shapes_or_types_are_refused(
    raw: np.ndarray, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        GREY.tensor(raw)
    np.save(tmp_path / "raw.npy", raw)
    with pytest.raises(ValueError, match=r"raw.npy, rows from 0: images: expected"):
        list(GREY.read(tmp_path / "raw.npy", 5))


def test_paths_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"expected images \(\.png, .*got 1 \.txt"):
        list(GREY.read(tmp_path, 2))
    with pytest.raises(FileNotFoundError, match="no such file"):
        list(GREY.read(tmp_path / "none.png", 2))
    with pytest.raises(FileNotFoundError, match="no such file"):
        GREY.tensor("none.png")
    with pytest.raises(FileNotFoundError, match="expected an image, got a folder"):
        GREY.tensor(tmp_path)
    (tmp_path / "cut.npy").write_bytes(b"PK\x03\x04 an archive")
    with pytest.raises(ValueError, match=r"cut.npy: expected a .npy file of numbers, got another"):
        list(GREY.read(tmp_path / "cut.npy", 2))
