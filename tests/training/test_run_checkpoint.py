"""A run can end at any moment and resumes bit for bit; problems are reported before it begins."""

import csv
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from softmax_torch.data import DigitsDataModule
from softmax_torch.storage import atomic_files, checkpoints
from softmax_torch.training import LitSoftmaxRegression, rng_state, run_checkpoint
from softmax_torch.training.run_checkpoint import RunCheckpoint, Stopped
from softmax_torch.training.run_logger import RunLogger

ROOT = Path(__file__).parents[2]


def step_of(path: Path) -> int:
    with path.open("rb") as file:
        return checkpoints._verify(file)[0]


class At(Callback):
    """Callback that acts once, after the batch of this number."""

    def __init__(self, call: int, action: Any) -> None:
        self.call, self.action = call, action

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.call:
            self.action()


def model(**options: Any) -> LitSoftmaxRegression:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "lr_scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99),
        "lr_interval": "step",
        "steps_per_call": 5,
        "log_every_n_steps": 3,
    }
    return LitSoftmaxRegression(64, 10, **(settings | options))


class Fit:
    """A fit in a run directory, begun or resumed."""

    def __init__(
        self,
        root: Path,
        *callbacks: Callback,
        lit: LitSoftmaxRegression | None = None,
        data: DigitsDataModule | None = None,
        seconds: float = 1e9,
        **options: Any,
    ) -> None:
        folder = root / "a" / "version_0"
        found, self.passed_over = checkpoints.newest_checkpoint(folder)
        self.logger = RunLogger(root, "a", folder if folder.exists() else None)
        self.keeper = RunCheckpoint(seconds=seconds)
        self.lit = lit or model()
        settings: dict[str, Any] = {"max_epochs": 3, "num_sanity_val_steps": 0}
        settings |= {"log_every_n_steps": 1}
        self.trainer = Trainer(
            accelerator="cpu",
            logger=self.logger,
            callbacks=[*callbacks, self.keeper],
            enable_progress_bar=False,
            enable_model_summary=False,
            **(settings | options),
        )
        try:
            self.trainer.fit(
                self.lit,
                data or DigitsDataModule(batch_size=64),
                ckpt_path=found and found.path,
                weights_only=True,
            )
        finally:
            self.logger.close()

    def outcome(self) -> tuple[Any, ...]:
        optimizer = self.trainer.optimizers[0].state_dict()["state"]
        rows = self.logger.path.read_text().splitlines()
        return (
            [value.tolist() for value in self.lit.state_dict().values()],
            {k: [v.tolist() for v in state.values()] for k, state in optimizer.items()},
            self.trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            self.trainer.global_step,
            rows,
        )


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


@pytest.mark.parametrize("options", [{"max_steps": 63, "max_epochs": -1}, {"max_steps": 50}])
@pytest.mark.parametrize("call", [7, 21, 30, 42])
def test_runs_with_max_steps_resume(options: dict[str, int], call: int, tmp_path: Path) -> None:
    expected = Fit(tmp_path / "alone", **options).outcome()
    with pytest.raises(Stopped):
        Fit(tmp_path, At(call, lambda: os.kill(os.getpid(), signal.SIGTERM)), **options)
    assert Fit(tmp_path, **options).outcome() == expected


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


def test_checkpoints_without_a_logger_have_their_own_folder(tmp_path: Path) -> None:
    keeper = RunCheckpoint()
    Trainer(
        default_root_dir=tmp_path,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        callbacks=[keeper],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    ).fit(model(), DigitsDataModule())
    assert keeper.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")


def test_a_checkpoint_of_another_directory_brings_no_best(tmp_path: Path) -> None:
    """In a new directory the first epoch is the best so far."""
    last = Fit(tmp_path / "first").keeper.last_model_path
    content = torch.load(last, weights_only=True)
    content["callbacks"]["RunCheckpoint"]["best_score"] = 0.0  # no run has a lower one
    checkpoints.write_checkpoint(Path(last), content)
    keeper = RunCheckpoint(tmp_path)
    Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        callbacks=[keeper],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    ).fit(model(), DigitsDataModule(batch_size=64), ckpt_path=last, weights_only=True)
    assert keeper.best_model_path == str(tmp_path / "best.ckpt")


def test_seconds_are_checked() -> None:
    with pytest.raises(ValueError, match="checkpoint_seconds: expected a number >= 0, got nan"):
        RunCheckpoint(seconds=math.nan)


def test_a_finished_run_that_is_resumed_does_nothing(
    alone: tuple[Any, ...], tmp_path: Path
) -> None:
    Fit(tmp_path)
    again = Fit(tmp_path)
    assert again.trainer.global_step == 63
    assert again.logger.path.read_text().splitlines() == alone[-1]


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
