"""The IDX reader returns what was written, and names every fault of a file."""

import gzip
from pathlib import Path

import pytest
import torch
from mnist_files import write_idx

from softmax_torch.readers import idx


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4), (0, 3)])
def test_a_written_tensor_is_read_back(
    tmp_path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    values = torch.randint(256, shape).to(dtype) * (1 if dtype == torch.uint8 else 70000)
    write_idx(tmp_path / name, values)
    got = idx.read(tmp_path / name)
    assert got.dtype == dtype
    assert torch.equal(got, values)
    got += 1  # the result is writable


def test_plain_files_are_found_before_gzipped_ones(tmp_path: Path) -> None:
    assert idx.find(tmp_path, "labels") is None
    (tmp_path / "labels.gz").touch()
    assert idx.find(tmp_path, "labels") == tmp_path / "labels.gz"
    (tmp_path / "labels").touch()
    assert idx.find(tmp_path, "labels") == tmp_path / "labels"


HEADER = bytes([0, 0, 8, 1, 0, 0, 0, 4])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starting with nothing"),
        (b"<html>", "expected an IDX file .* starting 3c 68 74 6d"),
        (bytes([0, 0, 9, 1]), "starting 00 00 09 01"),
        (HEADER[:6], "expected a header of 8 bytes, got 6 bytes"),
        (HEADER + b"abc", r"expected 12 bytes for shape \(4,\), got 11"),
        (HEADER + b"abcde", r"expected 12 bytes for shape \(4,\), got 13"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_invalid_files_are_named(
    tmp_path: Path, content: bytes, message: str, packed: bool
) -> None:
    path = tmp_path / ("labels.gz" if packed else "labels")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(ValueError, match=message) as raised:
        idx.read(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("cut", [5, 25])
def test_a_broken_gzip_file_is_refused(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(HEADER + b"abcd")[:cut])
    with pytest.raises(ValueError, match="expected a gzip file, got one that is broken"):
        idx.read(path)
