"""A run can end at any moment, by a signal, a crash or a limit, and resumes bit for bit."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from resumable_fits import At, Fit, model

from softmax_torch.data import DigitsDataModule
from softmax_torch.storage import checkpoints
from softmax_torch.storage.checkpoints import step_of
from softmax_torch.training import LitSoftmaxRegression
from softmax_torch.training.run_checkpoint import RunCheckpoint, Stopped

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """Outcome of an undisturbed run: 21 steps an epoch, in 5 calls of ``training_step``."""
    return Fit(tmp_path_factory.mktemp("alone")).outcome()


@pytest.mark.parametrize("call", [1, 2, 4, 5, 6, 8, 10, 14, 15])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_run_ended_by_a_signal_resumes(
    call: int, signum: int, alone: tuple[Any, ...], tmp_path: Path
) -> None:
    before = signal.getsignal(signum)
    with pytest.raises(Stopped) as stopped:
        Fit(tmp_path, At(call, lambda: os.kill(os.getpid(), signum)))
    assert stopped.value.code == 128 + signum
    assert signal.getsignal(signum) is before
    step = checkpoints.newest_checkpoint(tmp_path / "a" / "version_0")[0].step  # type: ignore[union-attr]
    assert step == min(5 * (call % 5), 21) + 21 * (call // 5)
    assert f"at step {step}, kept in" in stopped.value.message
    assert Fit(tmp_path).outcome() == alone


@pytest.mark.parametrize(("before", "after"), [(1, 8), (2, 5), (8, 1), (3, 2)])
def test_a_run_resumes_with_other_steps_per_call(
    before: int, after: int, alone: tuple[Any, ...], tmp_path: Path
) -> None:
    """Lightning counts calls of ``training_step``, and would end the epoch too early."""
    stop = At(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped):
        Fit(tmp_path, stop, lit=model(steps_per_call=before))
    assert Fit(tmp_path, lit=model(steps_per_call=after)).outcome() == alone


def test_a_run_ended_by_max_steps_finishes_its_epoch(tmp_path: Path) -> None:
    """The next epoch begins with its first batch, and is validated at its end."""
    Fit(tmp_path, max_steps=10)
    more = Fit(tmp_path, max_steps=31)
    rows = list(csv.DictReader(more.logger.path.read_text().splitlines()))
    assert [int(row["step"]) for row in rows if row["val/nll"]] == [31]
    assert more.trainer.current_epoch == 2


def test_another_batch_size_is_refused_within_an_epoch(tmp_path: Path) -> None:
    """Rows would be dropped or doubled there; after an epoch it is accepted."""
    with pytest.raises(Stopped):
        Fit(tmp_path, At(2, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(ValueError, match=r"batch_size: expected 21 batches, .* got 41"):
        Fit(tmp_path, data=DigitsDataModule(batch_size=32))
    Fit(tmp_path, max_epochs=1)
    other = Fit(tmp_path, data=DigitsDataModule(batch_size=32), max_epochs=2)
    assert other.trainer.global_step == 21 + 41


class CrashError(RuntimeError):
    pass


def crash() -> None:
    raise CrashError


@pytest.mark.parametrize("call", [1, 3, 6, 9, 13])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_crash_costs_what_came_after_the_last_checkpoint(
    call: int, seconds: float, alone: tuple[Any, ...], tmp_path: Path
) -> None:
    with pytest.raises(CrashError):
        Fit(tmp_path, At(call, crash), seconds=seconds)
    assert Fit(tmp_path, seconds=seconds).outcome() == alone  # from the start, if there was none


@pytest.mark.parametrize("name", ["best", "next"])
def test_a_crash_before_the_last_renaming_leaves_no_old_last_checkpoint(
    name: str, alone: tuple[Any, ...], tmp_path: Path, monkeypatch: Any
) -> None:
    """The file that was written last becomes last.ckpt, though no training follows."""
    rotate = RunCheckpoint._rotate

    def crash_at_the_end(self: RunCheckpoint, new: Path, keep: bool) -> None:
        if step_of(new) < 63:
            return rotate(self, new, keep)
        if name == "next":
            new.replace(new.with_name("next.ckpt"))
        raise CrashError

    monkeypatch.setattr(RunCheckpoint, "_rotate", crash_at_the_end)
    with pytest.raises(CrashError):
        Fit(tmp_path, seconds=0.0)
    monkeypatch.undo()
    folder = tmp_path / "a" / "version_0"
    newest = (folder / f"{name}.ckpt").read_bytes()
    assert step_of(folder / "last.ckpt") < 63
    assert Fit(tmp_path, seconds=0.0).outcome() == alone
    assert (folder / "last.ckpt").read_bytes() == newest


def test_an_older_checkpoint_does_not_replace_the_last_one(tmp_path: Path) -> None:
    Fit(tmp_path)
    folder = tmp_path / "a" / "version_0"
    older = folder / "previous.ckpt"
    last = (folder / "last.ckpt").read_bytes()
    assert step_of(older) < step_of(folder / "last.ckpt")
    keeper = RunCheckpoint(folder)
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[keeper], max_epochs=3)

    class Stop(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            raise CrashError

    trainer.callbacks.append(Stop())  # type: ignore[attr-defined] # by a connector
    with pytest.raises(CrashError):
        trainer.fit(model(), DigitsDataModule(batch_size=64), ckpt_path=older, weights_only=True)
    assert (folder / "last.ckpt").read_bytes() == last


@pytest.mark.parametrize("options", [{"max_steps": 63, "max_epochs": -1}, {"max_steps": 50}])
@pytest.mark.parametrize("call", [7, 21, 30, 42])
def test_runs_with_max_steps_resume(options: dict[str, int], call: int, tmp_path: Path) -> None:
    expected = Fit(tmp_path / "alone", **options).outcome()
    with pytest.raises(Stopped):
        Fit(tmp_path, At(call, lambda: os.kill(os.getpid(), signal.SIGTERM)), **options)
    assert Fit(tmp_path, **options).outcome() == expected


@pytest.mark.slow
def test_runs_that_validate_within_epochs_resume(tmp_path: Path) -> None:
    options = {"val_check_interval": 7}
    expected = Fit(tmp_path / "alone", **options).outcome()
    for call in (7, 13, 14, 30, 42):
        root = tmp_path / str(call)
        with pytest.raises(Stopped):
            Fit(root, At(call, lambda: os.kill(os.getpid(), signal.SIGTERM)), **options)
        assert Fit(root, **options).outcome() == expected, call


def test_no_checkpoint_splits_accumulated_gradients(tmp_path: Path) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 4}
    expected = Fit(tmp_path / "alone", **options).outcome()
    for call in (1, 2, 3, 7):
        root = tmp_path / str(call)
        with pytest.raises(Stopped):
            Fit(root, At(call, lambda: os.kill(os.getpid(), signal.SIGTERM)), **options)
        assert Fit(root, **options).outcome() == expected, call


@pytest.mark.slow
def test_a_solver_resumes(tmp_path: Path) -> None:
    def fit(root: Path, *callbacks: Callback) -> tuple[Any, ...]:
        torch.manual_seed(0)
        lit = LitSoftmaxRegression(64, 10, C=1.0, solver="lbfgs")
        data = DigitsDataModule(batch_size=None)
        done = Fit(root, *callbacks, lit=lit, data=data, max_epochs=300)
        rows = done.logger.path.read_text().splitlines()
        return [value.tolist() for value in lit.state_dict().values()], rows, lit.certificate

    expected = fit(tmp_path / "alone")
    assert len(expected[1]) > 12
    for call in (1, 4, 7):
        root = tmp_path / str(call)
        with pytest.raises(Stopped):
            fit(root, At(call, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        assert fit(root) == expected, call


def test_a_finished_run_that_is_resumed_does_nothing(
    alone: tuple[Any, ...], tmp_path: Path
) -> None:
    Fit(tmp_path)
    again = Fit(tmp_path)
    assert again.trainer.global_step == 63
    assert again.logger.path.read_text().splitlines() == alone[-1]


def test_a_damaged_checkpoint_costs_what_came_after_the_one_before(
    alone: tuple[Any, ...], tmp_path: Path
) -> None:
    with pytest.raises(CrashError):
        Fit(tmp_path, At(9, crash), seconds=0.0)
    last = tmp_path / "a" / "version_0" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    before = checkpoints.newest_checkpoint(last.parent)
    assert before[0] is not None
    assert before[0].path.name == "previous.ckpt"
    again = Fit(tmp_path)
    assert again.passed_over == [f"{last}: skipped: damaged: its content does not match its digest"]
    assert again.outcome() == alone


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_runs_resume_bit_for_bit(processes: int) -> None:
    """The benchmark, with one or two runs; it fails where anything differs."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "survival.py")]
        + ["--runs", str(3 - processes), "--processes", str(processes)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "to the last bit" in done.stdout
