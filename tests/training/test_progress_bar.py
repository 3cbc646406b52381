"""The progress bar: one line at the end, nothing when disabled, and no thread."""

import re
import threading
import warnings
from typing import Any

import pytest
import rich
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from trainers import trainer

from softmax_torch.data import DigitsDataModule
from softmax_torch.training import LitSoftmaxRegression
from softmax_torch.training.progress_bar import EpochBar


class Threads(Callback):
    """Callback that counts Python's threads at each step, and fails at one if asked."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.counts: set[int] = set()
        self.fail_at = fail_at

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.counts.add(threading.active_count())
        if trainer.global_step == self.fail_at:
            raise RuntimeError("on purpose")


def fit(*callbacks: Callback) -> None:
    torch.manual_seed(0)
    run = trainer(2, *callbacks, enable_progress_bar=True)
    run.fit(LitSoftmaxRegression(64, 10, steps_per_call=2), DigitsDataModule())


def test_one_line_and_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    """A drawing thread competes with the operators' threads: ten times slower on digits."""
    threads, before = Threads(), threading.active_count()
    fit(EpochBar(), threads)
    assert threads.counts == {before}
    [line] = [line for line in capsys.readouterr().out.splitlines() if "epoch" in line]
    assert line.startswith("epoch 2/2")
    assert "val/accuracy 0." in line
    assert "val/nll 0." in line


def test_a_narrow_terminal_shows_all_metrics(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rich.get_console(), "_width", 40)
    monkeypatch.setattr(rich.get_console(), "_height", 25)
    fit(EpochBar())
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if "val/" in line]
    assert re.fullmatch(r"epoch 2/2 val/accuracy 0\.\d{4}", lines[0])
    assert re.fullmatch(r" {10}val/nll \d\.\d{4}", lines[1])


@pytest.mark.parametrize(("epochs", "text"), [(200, r"epoch \d+, converged"), (3, "epoch 3/3")])
def test_a_solver_that_converged_is_complete(
    epochs: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bar, bars = EpochBar(), []
    bar._stop = lambda: bars.append(bar._bar)  # type: ignore[method-assign]
    run = trainer(epochs, bar, enable_progress_bar=True)
    with warnings.catch_warnings(action="ignore"):  # that 3 epochs are too few
        run.fit(LitSoftmaxRegression(64, 10, C=1.0, solver="newton"), DigitsDataModule(None))
    [task] = bars[0].tasks
    bars[0].stop()
    assert re.fullmatch(text, task.description)
    assert task.completed == task.total == run.current_epoch


def test_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    bar = EpochBar()
    bar.disable()
    fit(bar)
    assert "epoch" not in capsys.readouterr().out


def test_an_error_frees_the_terminal() -> None:
    bar = EpochBar()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(bar, Threads(fail_at=4))
    assert bar._bar is None
