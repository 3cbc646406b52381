"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from softmax_torch.storage.atomic_files import write_atomically


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "metrics.csv"
    folder.mkdir()
    with pytest.raises(OSError, match=r"metrics\.csv could not be written \(3 bytes\)"):
        write_atomically(folder, b"abc")
    assert [*tmp_path.iterdir()] == [folder]
