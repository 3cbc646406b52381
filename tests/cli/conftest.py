"""Fixtures for tests of the command line: an empty current folder, and runs of the program."""

import shutil
import signal
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from program import SHORT, train
from support import Finished, in_forks

from softmax_torch import cli


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


SIGNALLED = """
import threading, time

def send():
    deadline = time.monotonic() + 120
    while not os.path.exists("runs/digits/version_0/last.ckpt") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(os.getpid(), {signum})

threading.Thread(target=send, daemon=True).start()
"""
"""A program sends itself a signal when it has written a checkpoint."""


AFTER_THE_LAST_STEP = """
from lightning import Trainer

Trainer.test = lambda *_, **__: os.kill(os.getpid(), {signum})
"""
"""A program gets a signal where the trained model is to be tested."""


@pytest.fixture(scope="session")
def signalled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Finished]]:
    """Runs that a signal ends within the training and after it, and their folder."""
    folder, wanted = tmp_path_factory.mktemp("signalled"), {}
    for signum in (signal.SIGTERM, signal.SIGINT):
        (folder / signum.name).mkdir()
        wanted[signum.name] = train(
            *("fit", "--trainer.max_epochs", "100000"),
            folder=folder / signum.name,
            before=SIGNALLED.format(signum=int(signum)),
        )
        (folder / f"after-{signum.name}").mkdir()
        wanted[f"after {signum.name}"] = train(
            *("fit", "--trainer.max_epochs", "1"),
            folder=folder / f"after-{signum.name}",
            before=AFTER_THE_LAST_STEP.format(signum=int(signum)),
        )
    return folder, in_forks(wanted, after="softmax_torch.training")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The best checkpoint of a whole run on digits, and what the run printed."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as printed:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train.py"])
        cli.main(["fit"])
    return folder / "runs" / "digits" / "version_0" / "best.ckpt", printed.getvalue()


@pytest.fixture(scope="session")
def short_fit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs on digits."""
    folder = tmp_path_factory.mktemp("short")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        cli.main(["fit", *SHORT])
    return folder


@pytest.fixture
def short_run(short_fit: Path, here: Path) -> None:
    """Copy a run of two epochs on digits into the current folder, as if it had been made there."""
    shutil.copytree(short_fit / "runs", here / "runs")


@pytest.fixture
def to_calibrate(digits: tuple[Path, str], here: Path) -> Path:
    """A copy of the run on digits: calibrate changes its checkpoint."""
    ignored = shutil.ignore_patterns("predictions*.csv")
    shutil.copytree(digits[0].parent, here / "run", ignore=ignored)
    return here / "run" / "best.ckpt"
