"""When a run is written down: at the end of every epoch, now and then within one, and on a signal.

    best.ckpt       lowest validation NLL so far
    last.ckpt       where the run is
    previous.ckpt   the last one before it, for when the last one is damaged

Each holds everything (see ``training.lit``), and how many rows of metrics.csv were written before
it, so that a resumed run goes on bit for bit and logs each row once. There is a ``last.ckpt`` at
any moment from the first one on. Within an epoch a checkpoint is written only between optimizer
steps and never where a validation comes next, since Lightning would pass that over on resumption.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from softmax_torch.storage.atomic_files import PARTIAL_SUFFIX, sync_folder, write_atomically
from softmax_torch.storage.checkpoints import CHECKPOINT_SECONDS, is_damaged
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io
from softmax_torch.training.run_logger import RunLogger

__all__ = ["RunCheckpoint", "Stopped"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)

MARGIN = 3
"""Checkpoints that have to fit on the disk before a run begins."""


class Stopped(SystemExit):
    """A signal ended a run, after a checkpoint; the exit status is that of shells, 128 + signal."""

    def __init__(self, signum: int, path: Path, step: int) -> None:
        super().__init__(128 + signum)
        self.path = path
        self.message = f"stopped by {signal.Signals(signum).name} at step {step}, kept in {path}"


class RunCheckpoint(Checkpoint):
    """Writes the checkpoints of a run, and a last one when it is told to stop.

    Args:
        folder: where to; by default the directory of the run's logger, and without one
            ``checkpoints`` in the trainer's ``default_root_dir``.
        monitor: the figure whose lowest value is the best.
        seconds: time between two checkpoints within an epoch, >= 0.

    Attributes:
        best_model_path, last_model_path: as Lightning's callback has them; empty where there is no
            such checkpoint yet.
    """

    def __init__(
        self,
        folder: Path | None = None,
        monitor: str = "val/nll",
        seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        if not seconds >= 0:
            raise ValueError(f"checkpoint_seconds: expected a number >= 0, got {seconds}")
        self.folder, self.monitor, self.seconds = folder, monitor, seconds
        self.best_score = math.inf
        self.received: int | None = None  # a signal
        self._due = 0.0
        self._handlers: dict[int, Any] = {}
        self._fitting = False
        self._logger: RunLogger | None = None

    @property
    def best_model_path(self) -> str:
        """The checkpoint of the lowest figure."""
        return self._existing("best")

    @property
    def last_model_path(self) -> str:
        """The last checkpoint."""
        return self._existing("last")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know of this one."""
        rows = 0 if self._logger is None else self._logger.rows
        return {"best_score": self.best_score, "rows": rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; leave of the metrics of the run what came before."""
        if not self._fitting:  # a checkpoint is evaluated
            return
        best = self._path("best")
        there = best.exists() and not is_damaged(best)
        # Without one, whichever comes next is better than none.
        self.best_score = state_dict["best_score"] if there else math.inf
        if self._logger is not None and self._logger.resumed:
            self._logger.truncate(state_dict["rows"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take over the writing of checkpoints, and see whether there is room for them.

        Raises:
            OSError: the folder cannot be written to, or is too full.
        """
        trial = trainer.fast_dev_run  # type: ignore[attr-defined]
        self._fitting = stage == "fit" and not trial
        if not self._fitting:
            return
        self._logger = trainer.logger if isinstance(trainer.logger, RunLogger) else None
        atomic_checkpoint_io(trainer)
        folder = self.folder
        if folder is None and trainer.is_global_zero:
            of_logger = getattr(trainer.logger, "log_dir", None)
            folder = Path(of_logger or Path(trainer.default_root_dir, "checkpoints"))
        self.folder = trainer.strategy.broadcast(folder)
        assert self.folder is not None
        if trainer.is_global_zero:
            _check_room(self.folder, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals. A run that is resumed without a checkpoint has logged nothing."""
        if not self._fitting:
            return
        if self._logger is not None and self._logger.resumed and trainer.ckpt_path is None:
            self._logger.truncate(0)
        self._due, self.received = time.monotonic() + self.seconds, None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._receive) for s in SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due, or the last one if a signal came."""
        if not self._fitting:
            return
        received, due = self._agreed(trainer, time.monotonic() >= self._due)
        if (received or due) and _between(trainer, pl_module, batch_idx):
            self._save(trainer, "last")
            self._stop(trainer, received)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint, and the best one if it is."""
        if not self._fitting:
            return
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        best = score < self.best_score
        if best:
            self.best_score = score
        self._save(trainer, "best" if best else "last")
        self._stop(trainer, self._agreed(trainer)[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave signals to whoever had them."""
        self._leave()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave signals to whoever had them."""
        self._leave()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """An epoch that is over is over: Lightning would take it up again where steps are limited.

        It counts an epoch as completed, and its batches as past, after the callbacks that save.
        """
        if not self._epoch_is_over(trainer):
            return
        loop = checkpoint["loops"]["fit_loop"]
        epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
        for part in ("total", "current"):
            epochs[part]["completed"] = epochs[part]["processed"]
        batches["current"] = dict.fromkeys(batches["current"], 0)
        batches["is_last_batch"] = False
        for loader in loop["state_dict"].get("combined_loader", []):
            if "position" in loader:  # one of ours; the next epoch begins at its start
                loader["position"] = 0

    @staticmethod
    def _epoch_is_over(trainer: Trainer) -> bool:
        progress: Any = trainer.fit_loop.epoch_progress.current
        return bool(progress.ready == progress.processed > progress.completed)

    def _save(self, trainer: Trainer, name: str) -> None:
        """Write the state as this name, and as the last one in any case."""
        if self._logger is not None:
            self._logger.sync()
        new = self._path("best" if name == "best" else "next")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            self._rotate(new, keep=name == "best")
        trainer.strategy.barrier("RunCheckpoint")
        self._due = time.monotonic() + self.seconds

    def _rotate(self, new: Path, keep: bool) -> None:
        """Make the new file the last one, and the last one the previous, with no moment between."""
        last, previous, coming = (self._path(name) for name in ("last", "previous", "next"))
        other = last.with_name(f".previous{PARTIAL_SUFFIX}")
        if last.exists():
            other.unlink(missing_ok=True)
            _link(last, other)
            other.replace(previous)
        if keep:  # a copy: two names for one file would be damaged together
            write_atomically(coming, new.read_bytes())
        coming.replace(last)
        sync_folder(last.parent)

    def _agreed(self, trainer: Trainer, due: bool = False) -> tuple[int | None, bool]:
        """Which signal came to any process; whether a checkpoint is due, by the first's clock."""
        if trainer.world_size == 1:
            return self.received, due
        said = [self.received or 0, int(due and trainer.is_global_zero)]
        flags = torch.tensor(said, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        received, due_anywhere = flags.tolist()
        return received or None, bool(due_anywhere)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal; the next one is not waited for."""
        self.received = signum
        self._leave()

    def _leave(self) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._handlers = {}

    def _stop(self, trainer: Trainer, received: int | None) -> None:
        if received:
            raise Stopped(received, self._path("last"), trainer.global_step)

    def _path(self, name: str) -> Path:
        assert self.folder is not None, "setup comes first"
        return self.folder / f"{name}.ckpt"

    def _existing(self, name: str) -> str:
        if self.folder is None or not self._path(name).exists():
            return ""
        return str(self._path(name))


def _between(trainer: Trainer, module: LightningModule, batch_idx: int) -> bool:
    """Whether a resumed run would go on from here with the next batch."""
    every = trainer.val_check_batch
    if trainer.is_last_batch or getattr(module, "accumulated", False):
        return False
    if every is None or not math.isfinite(every):
        return every is not None
    return (batch_idx + 1) % every != 0 and (trainer.fit_loop.total_batch_idx + 1) % every != 0


def _check_room(folder: Path, module: LightningModule) -> None:
    """Whether a checkpoint can be written, and the disk has room for some."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ".room", b"")
    (folder / ".room").unlink()
    # Adam keeps two numbers for each of the model's.
    expected = MARGIN * (1 << 16) + MARGIN * sum(3 * p.nbytes for p in module.parameters())
    free = shutil.disk_usage(folder).free
    if free < expected:
        raise OSError(
            f"{folder}: expected {expected / 1e6:.1f} MB for the checkpoints of the run, got "
            f"{free / 1e6:.1f} MB that are free on this disk"
        )


def _link(path: Path, other: Path) -> None:
    """The same file under another name, or a copy of it where a disk has no such thing."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
