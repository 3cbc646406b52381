"""Which checkpoints a run keeps, and which problems it reports before its first step."""

import csv
import errno
import math
import os
import random
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from resumable_fits import At, Fit, model
from trainers import trainer

from softmax_torch.data import DigitsDataModule
from softmax_torch.storage import atomic_files, checkpoints
from softmax_torch.storage.checkpoints import step_of
from softmax_torch.training import rng_state, run_checkpoint
from softmax_torch.training.run_checkpoint import RunCheckpoint, Stopped


def test_checkpoints_without_a_logger_have_their_own_folder(tmp_path: Path) -> None:
    keeper = RunCheckpoint()
    run = trainer(1, keeper, default_root_dir=tmp_path, enable_checkpointing=True)
    run.fit(model(), DigitsDataModule())
    assert keeper.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")


def test_a_checkpoint_of_another_directory_brings_no_best(tmp_path: Path) -> None:
    """In a new directory the first epoch is the best so far."""
    last = Fit(tmp_path / "first").keeper.last_model_path
    content = torch.load(last, weights_only=True)
    content["callbacks"]["RunCheckpoint"]["best_score"] = 0.0  # no run has a lower one
    checkpoints.write_checkpoint(Path(last), content)
    keeper = RunCheckpoint(tmp_path)
    data = DigitsDataModule(batch_size=64)
    run = trainer(4, keeper, enable_checkpointing=True)
    run.fit(model(), data, ckpt_path=last, weights_only=True)
    assert keeper.best_model_path == str(tmp_path / "best.ckpt")


def test_seconds_are_checked() -> None:
    with pytest.raises(ValueError, match="checkpoint_seconds: expected a number >= 0, got nan"):
        RunCheckpoint(seconds=math.nan)


def test_there_is_always_a_last_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    """Between any two steps of the renaming."""
    folder = tmp_path / "a" / "version_0"
    seen: list[set[str]] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        seen.append({path.name for path in folder.glob("*.ckpt")})
        result = real(self, target)
        seen.append({path.name for path in folder.glob("*.ckpt")})
        return result

    monkeypatch.setattr(Path, "replace", replace)
    Fit(tmp_path, seconds=0.0, lit=model(log_every_n_steps=None))
    first = next(i for i, names in enumerate(seen) if "last.ckpt" in names)
    assert all("last.ckpt" in names for names in seen[first:])
    assert {path.name for path in folder.glob("*.ckpt")} == {
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    }
    steps = {name: step_of(folder / f"{name}.ckpt") for name in ("last", "best")}
    assert steps["last"] == 63
    assert step_of(folder / "previous.ckpt") < 63


def test_the_best_checkpoint_has_the_lowest_nll(tmp_path: Path) -> None:
    fit = Fit(tmp_path, lit=model(optimizer=partial(torch.optim.Adam, lr=0.5)), max_epochs=8)
    rows = list(csv.DictReader(fit.logger.path.read_text().splitlines()))
    nll = {int(row["step"]): float(row["val/nll"]) for row in rows if row["val/nll"]}
    step = step_of(tmp_path / "a" / "version_0" / "best.ckpt")
    assert nll[step] == min(nll.values())
    assert step != 8 * 21  # else the test proves nothing
    assert fit.keeper.best_score == pytest.approx(min(nll.values()))


@pytest.mark.parametrize("at", [2, 23, 40])
def test_a_nan_loss_leaves_the_last_finite_checkpoint(at: int, tmp_path: Path) -> None:
    class Poison(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step + 1 == at:
                trainer.lightning_module.model.linear.weight.data[0, 0] = math.nan

    # Weights that are NaN after step ``at - 1`` show in step ``at`` or the one after it.
    with pytest.raises(FloatingPointError, match=rf"in step ({at}|{at + 1}):"):
        Fit(tmp_path, Poison(), seconds=0.0)
    folder = tmp_path / "a" / "version_0"
    found = checkpoints.newest_checkpoint(folder)[0]
    if at > 5:
        assert found is not None
        assert found.path.name == "last.ckpt"
        assert found.step < at
        state = torch.load(found.path, weights_only=True)["state_dict"]
        assert all(value.isfinite().all() for value in state.values())
    else:
        assert found is None


def test_other_data_are_refused(tmp_path: Path) -> None:
    class Other(DigitsDataModule):
        def read(self) -> Any:
            train, test = super().read()
            train.x[3, 0, 0] += 1
            return train, test

    Other.__qualname__ = "DigitsDataModule"
    Fit(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="data: expected the training set that the run began with"):
        Fit(tmp_path, data=Other(batch_size=64))


def test_another_split_is_refused(tmp_path: Path) -> None:
    Fit(tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match="training set that the run began with"):
        Fit(tmp_path, data=DigitsDataModule(batch_size=64, seed=1))


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    Fit(tmp_path, max_epochs=1)
    path = tmp_path / "a" / "version_0" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["softmax_torch"]["format"] = 99
    checkpoints.write_checkpoint(path, content | {"global_step": 999})
    with pytest.raises(ValueError, match="expected one of format 1 to resume from, got 99"):
        Fit(tmp_path)


def test_a_checkpoint_of_more_processes_is_refused(tmp_path: Path) -> None:
    Fit(tmp_path, max_epochs=1)
    path = tmp_path / "a" / "version_0" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    content["softmax_torch"]["processes"] *= 2
    checkpoints.write_checkpoint(path, content | {"global_step": 999})
    with pytest.raises(
        ValueError, match="expected one of 1 processes, the present number, got one"
    ):
        Fit(tmp_path)


def test_a_full_disk_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: Any) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(run_checkpoint.shutil, "disk_usage", lambda _: usage)
    lit = model()
    with pytest.raises(OSError, match=r"expected 0.2 MB for the checkpoints .* got 0.0 MB"):
        Fit(tmp_path, lit=lit)
    assert lit.training_metrics.sums is None


def test_a_read_only_directory_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    keeper = RunCheckpoint(tmp_path / "file" / "run")
    trainer = Trainer(callbacks=[keeper], logger=False, accelerator="cpu", max_epochs=1)
    with pytest.raises(NotADirectoryError):
        trainer.fit(model(), DigitsDataModule())


def test_a_failed_save_leaves_earlier_checkpoints(tmp_path: Path, monkeypatch: Any) -> None:
    real = os.fsync
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 20:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(atomic_files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: .* could not be written"):
        Fit(tmp_path, seconds=0.0, lit=model(log_every_n_steps=None))
    monkeypatch.undo()
    found, passed_over = checkpoints.newest_checkpoint(tmp_path / "a" / "version_0")
    assert found is not None
    assert passed_over == []


def test_random_number_generators_are_restored() -> None:
    def draw() -> list[float]:
        return [random.gauss(0, 1), float(np.random.normal()), float(torch.randn(()))]

    draw()
    state = rng_state.get_rng_state()
    expected = [draw() for _ in range(3)]
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    rng_state.set_rng_state(state)
    assert [draw() for _ in range(3)] == expected


def test_random_number_generators_are_in_checkpoints(tmp_path: Path) -> None:
    class Draw(Callback):
        drawn: list[float]

        def on_train_epoch_start(self, *_: Any) -> None:
            self.drawn.append(float(torch.rand(()) + random.random() + np.random.random()))

    whole, parts = Draw(), Draw()
    whole.drawn, parts.drawn = [], []
    for draw in (whole, parts):
        random.seed(1)
        np.random.seed(1)
        root = tmp_path / str(draw is whole)
        if draw is parts:
            stop = At(8, lambda: os.kill(os.getpid(), signal.SIGTERM))
            with pytest.raises(Stopped):
                Fit(root, draw, stop)
            random.seed(2)
            np.random.seed(2)
        Fit(root, draw)
    assert whole.drawn == parts.drawn


def test_an_error_of_the_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "last.ckpt").touch()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*previous\.ckpt could not be"):
        RunCheckpoint(tmp_path)._rotate(tmp_path / "next.ckpt", keep=False)
    assert (tmp_path / "last.ckpt").exists()
