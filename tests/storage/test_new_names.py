"""Names of new files: numbered, skipped where something stands, and taken by one process."""

from pathlib import Path

import pytest

from softmax_torch.storage.new_names import check_new_name, numbered_names, take_free_name


def test_existing_names_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "a_1.csv").symlink_to("nowhere")
    assert take_free_name(numbered_names(tmp_path / "a.csv")) == tmp_path / "a_2.csv"


def test_a_name_that_another_process_takes_is_skipped(tmp_path: Path) -> None:
    def too_late(path: Path) -> None:
        if path.name == "a":
            (path / "theirs").mkdir(parents=True)
        path.mkdir()

    assert take_free_name(numbered_names(tmp_path / "a"), too_late) == tmp_path / "a_1"


def test_other_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        take_free_name(numbered_names(tmp_path / "missing" / "a"), Path.mkdir)


def test_a_new_name_is_free_and_in_a_folder(tmp_path: Path) -> None:
    check_new_name(tmp_path / "a.csv")
    with pytest.raises(FileExistsError, match="which exists"):
        check_new_name(tmp_path)
    with pytest.raises(FileNotFoundError, match="expected a folder"):
        check_new_name(tmp_path / "missing" / "a.csv")
