"""Fixtures for tests of the command line: an empty current folder, and a run on digits."""

import shutil
from pathlib import Path

import pytest
from program import run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The best checkpoint of a whole run on digits, and what the run printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run("fit", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits" / "version_0" / "best.ckpt", done.stdout


@pytest.fixture
def to_calibrate(digits: tuple[Path, str], here: Path) -> Path:
    """A copy of the run on digits: calibrate changes its checkpoint."""
    ignored = shutil.ignore_patterns("predictions*.csv")
    shutil.copytree(digits[0].parent, here / "run", ignore=ignored)
    return here / "run" / "best.ckpt"
