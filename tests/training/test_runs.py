"""A run directory belongs to one run."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from softmax_torch.training.runs import RunLogger


def test_versions_are_taken_one_after_the_other(tmp_path: Path) -> None:
    loggers = [RunLogger(tmp_path, "digits") for _ in range(3)]
    assert [logger.version for logger in loggers] == [0, 1, 2]
    assert loggers[0].version == 0
    assert Path(loggers[2].log_dir) == tmp_path / "digits" / "version_2"


def test_gaps_and_strangers_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "version_0").write_text("not even a directory")
    assert RunLogger(tmp_path, "a").version == 1
    assert (tmp_path / "a" / "version_0").read_text() == "not even a directory"


def test_runs_started_together_do_not_share(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: RunLogger(tmp_path, "a").version, range(32)))
    assert sorted(versions) == list(range(32))


def test_metrics_of_an_earlier_run_stay(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        logger = RunLogger(tmp_path, "a")
        logger.log_metrics({"nll": value}, step=0)
        logger.save()
    for version, value in enumerate((1.0, 2.0)):
        text = (tmp_path / "a" / f"version_{version}" / "metrics.csv").read_text()
        assert str(value) in text
