"""The logger of a run names the folder that it cannot make."""

from pathlib import Path

import pytest

from softmax_torch.cli.console import error_of_this_package
from softmax_torch.training.run_logger import RunLogger


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The program prints the message alone."""
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match=r"Not a directory: .*runs/a could not be written") as error:
        _ = RunLogger(tmp_path / "runs", "a").folder
    assert error_of_this_package(error.value) is error.value
