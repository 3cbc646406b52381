"""A run directory belongs to one process at a time; a resumed run continues its metrics."""

import csv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from softmax_torch.storage.run_directories import create_run_directory, latest_run
from softmax_torch.training.run_logger import RunLogger


def rows(logger: RunLogger) -> list[dict[str, str]]:
    return list(csv.DictReader(logger.path.read_text().splitlines()))


def test_versions_are_numbered_in_order(tmp_path: Path) -> None:
    loggers = [RunLogger(tmp_path, "digits") for _ in range(3)]
    assert [logger.version for logger in loggers] == [0, 1, 2]
    assert loggers[0].version == 0
    assert Path(loggers[2].log_dir) == tmp_path / "digits" / "version_2"


def test_existing_names_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "version_0").write_text("not even a directory")
    assert RunLogger(tmp_path, "a").version == 1
    assert (tmp_path / "a" / "version_0").read_text() == "not even a directory"


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        _ = RunLogger(tmp_path / "file", "a").folder


def test_runs_started_together_do_not_share(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: RunLogger(tmp_path, "a").version, range(32)))
    assert sorted(versions) == list(range(32))


def test_metrics_of_an_earlier_run_stay(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        RunLogger(tmp_path, "a").log_metrics({"nll": value}, step=0)
    for version, value in enumerate((1.0, 2.0)):
        text = (tmp_path / "a" / f"version_{version}" / "metrics.csv").read_text()
        assert str(value) in text


def test_columns_come_as_they_are_logged(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "a")
    logger.log_metrics({"epoch": 0, "val": 0.1}, step=1)
    logger.log_metrics({"epoch": 0, "train": 0.2}, step=1)
    logger.log_metrics({"epoch": 1, "val": 1 / 3}, step=2)
    assert rows(logger) == [
        {"step": "1", "epoch": "0", "val": "0.1", "train": ""},
        {"step": "1", "epoch": "0", "val": "", "train": "0.2"},
        {"step": "2", "epoch": "1", "val": "0.3333333333333333", "train": ""},
    ]


def test_a_log_goes_on_from_the_rows_of_a_checkpoint(tmp_path: Path) -> None:
    first = RunLogger(tmp_path, "a")
    for step in range(4):
        first.log_metrics({"loss": step / 2}, step)
    (first.folder / ".last.ckpt.partial").write_text("of a write that was cut off")
    with first.path.open("a") as file:
        file.write("4,2.")  # so was this
    first.close()
    then = RunLogger(tmp_path, "a", first.folder)
    assert not list(first.folder.glob(".*"))
    then.truncate(2)
    then.log_metrics({"loss": 7.0}, 2)
    then.log_metrics({"other": 8.0}, 3)
    assert [(row["step"], row["loss"], row["other"]) for row in rows(then)] == [
        ("0", "0.0", ""),
        ("1", "0.5", ""),
        ("2", "7.0", ""),
        ("3", "", "8.0"),
    ]


def test_lost_rows_are_reported(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "a")
    logger.log_metrics({"loss": 1.0}, 0)
    with pytest.warns(UserWarning, match=r"expected the 3 rows .* got 1"):
        logger.truncate(3)
    assert len(rows(logger)) == 1


def test_a_directory_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    first = RunLogger(tmp_path, "a")
    folder = first.folder
    with pytest.raises(
        BlockingIOError, match=r"version_0: expected a free run directory, got one that another"
    ):
        RunLogger(tmp_path, "a", folder)
    first.log_metrics({"x": 1.0})
    first.close()
    assert RunLogger(tmp_path, "a", folder).version == 0


def test_a_run_that_wrote_nothing_leaves_no_directory(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "a")
    assert logger.folder.is_dir()
    logger.close()
    assert [*tmp_path.glob("a/*")] == []


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """By a name that is a file, since the superuser may write to any folder."""
    (tmp_path / "runs").touch()
    with pytest.raises(OSError, match=r"Not a directory: .*runs/a could not be written"):
        create_run_directory(tmp_path / "runs", "a")


def test_the_latest_run_is_the_one_with_the_highest_number(tmp_path: Path) -> None:
    for number in (2, 10, 11):
        (tmp_path / "a" / f"version_{number}").mkdir(parents=True)
    for number in (2, 10):
        (tmp_path / "a" / f"version_{number}" / "config.yaml").write_text("")
    assert latest_run(tmp_path, "a") == tmp_path / "a" / "version_10"
    with pytest.raises(FileNotFoundError, match=r"expected an earlier run in .*b, got none"):
        latest_run(tmp_path, "b")
