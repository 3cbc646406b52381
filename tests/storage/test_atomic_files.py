"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from softmax_torch.storage.atomic_files import name_in_errors, write_atomically


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "metrics.csv"
    folder.mkdir()
    with pytest.raises(OSError, match=r"metrics\.csv could not be written \(3 bytes\)"):
        write_atomically(folder, b"abc")
    assert [*tmp_path.iterdir()] == [folder]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left"), "[Errno 28] No space left: a.csv could not be written"),
        (OSError("cannot write mode F"), "cannot write mode F: a.csv could not be written"),
        (OSError(), "OSError: a.csv could not be written"),
    ],
)
def test_an_error_says_its_reason_and_the_file(error: OSError, message: str) -> None:
    with pytest.raises(OSError) as found, name_in_errors(Path("a.csv")):
        raise error
    assert str(found.value) == message
    assert found.value.errno == error.errno
