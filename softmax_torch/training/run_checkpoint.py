"""The callback that writes the checkpoints of a run: after each epoch, at intervals, on a signal.

    best.ckpt       lowest validation NLL so far
    last.ckpt       state of the run
    previous.ckpt   the last.ckpt before, in case the current one is damaged

Each holds the whole state of training (see ``LitClassifier``), and the number of rows of
metrics.csv before it, so that a resumed run continues bit for bit and logs each row once. From the
first checkpoint on, ``last.ckpt`` exists at any moment. Within an epoch a checkpoint is written
only between optimizer steps, and never right before a validation, which Lightning would skip on
resume.
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

from softmax_torch import lightning_compat
from softmax_torch.storage.atomic_files import (
    PARTIAL_SUFFIX,
    name_in_errors,
    sync_folder,
    write_atomically,
)
from softmax_torch.storage.checkpoints import CHECKPOINT_SECONDS, is_damaged, step_of
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io
from softmax_torch.training.run_ending import Ending, ending_after
from softmax_torch.training.run_logger import RunLogger

__all__ = ["RunCheckpoint", "Stopped"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)

ROOM_FOR = 3
"""Number of checkpoints that the disk must have room for before a run begins."""


class Stopped(SystemExit):
    """End of a run by a signal, after a checkpoint; exit status 128 + signal, as in shells."""

    def __init__(self, signum: int, path: Path, step: int) -> None:
        super().__init__(128 + signum)
        self.path = path
        self.message = f"stopped by {signal.Signals(signum).name} at step {step}, kept in {path}"


class RunCheckpoint(Checkpoint):
    """Callback that writes the checkpoints of a run, and a last one when a signal ends it.

    Its state holds the settings of the run, if they are given, and the reason for which the run
    stopped by itself; see ``training.run_ending``.

    Args:
        folder: folder of the checkpoints; by default the directory of the run's logger, and
            without a logger ``checkpoints`` in the trainer's ``default_root_dir``.
        monitor: the metric whose lowest value makes the best checkpoint.
        seconds: time between two checkpoints within an epoch, >= 0.
        settings: the settings of the run as YAML, by which a resumed run is recognised.
    """

    def __init__(
        self,
        folder: Path | None = None,
        monitor: str = "val/nll",
        seconds: float = CHECKPOINT_SECONDS,
        settings: str = "",
    ) -> None:
        if not seconds >= 0:
            raise ValueError(f"checkpoint_seconds: expected a number >= 0, got {seconds}")
        self.folder, self.monitor, self.seconds = folder, monitor, seconds
        self.settings = settings
        self.best_score = math.inf
        self.ending: Ending | None = None
        self.received: int | None = None  # signal
        self._due = 0.0
        self._handlers: dict[int, Any] = {}
        self._fitting = False
        self._logger: RunLogger | None = None

    @property
    def best_model_path(self) -> str:
        """Path of the checkpoint with the lowest monitored metric; empty before the first."""
        return self._existing("best")

    @property
    def last_model_path(self) -> str:
        """Path of the last checkpoint; empty before the first."""
        return self._existing("last")

    def state_dict(self) -> dict[str, Any]:
        """Return the lowest monitored metric, the rows of metrics.csv, settings and ending."""
        rows = 0 if self._logger is None else self._logger.rows
        state = {"best_score": self.best_score, "rows": rows, "settings": self.settings}
        return state if self.ending is None else state | {"ending": self.ending._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume a run: drop the rows of metrics.csv that were logged after this checkpoint."""
        if not self._fitting:  # the checkpoint is evaluated
            return
        best = self._path("best")
        best_is_whole = best.exists() and not is_damaged(best)
        # Without a whole best.ckpt, the next checkpoint becomes the best.
        self.best_score = state_dict["best_score"] if best_is_whole else math.inf
        if self._logger is not None and self._logger.resumed:
            self._logger.truncate(state_dict["rows"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Make Lightning write checkpoints atomically, and check the disk.

        Raises:
            OSError: the folder cannot be written to, or is too full.
        """
        self._fitting = stage == "fit" and not lightning_compat.is_trial(trainer)
        if not self._fitting:
            return
        self._logger = trainer.logger if isinstance(trainer.logger, RunLogger) else None
        atomic_checkpoint_io(trainer)
        folder = self.folder
        if folder is None and trainer.is_global_zero:
            log_dir = getattr(trainer.logger, "log_dir", None)
            folder = Path(log_dir or Path(trainer.default_root_dir, "checkpoints"))
        self.folder = trainer.strategy.broadcast(folder)
        assert self.folder is not None
        if trainer.is_global_zero:
            _check_room(self.folder, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the checkpoint that a run resumes from its last.ckpt, if it is newer than that.

        A process that dies between writing a checkpoint and renaming it leaves such a file. If its
        epoch was the run's last one, no checkpoint follows that would replace last.ckpt.
        """
        if not self._fitting or trainer.ckpt_path is None or not trainer.is_global_zero:
            return
        path, last = Path(trainer.ckpt_path), self._path("last")
        another = path.parent.resolve() == last.parent.resolve() and path.name != last.name
        if another and (not last.exists() or step_of(last) < step_of(path)):
            write_atomically(last, path.read_bytes())  # a copy, as in ``_rotate``

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle signals. A run that is resumed without a checkpoint keeps no rows."""
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
        """Write a checkpoint if it is due; after a signal, write one and end the run."""
        if not self._fitting:
            return
        received, due = self._signal_or_due(trainer, time.monotonic() >= self._due)
        if (received or due) and _can_resume_after(trainer, pl_module, batch_idx):
            self._save(trainer, "last")
            self._stop(trainer, received)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last checkpoint, which may be the best one too."""
        if not self._fitting:
            return
        score = float(trainer.callback_metrics.get(self.monitor, math.nan))
        best = score < self.best_score
        if best:
            self.best_score = score
        self.ending = ending_after(trainer, pl_module)
        self._save(trainer, "best" if best else "last")
        self._stop(trainer, self._signal_or_due(trainer)[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the handlers of signals."""
        self._restore_handlers()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the handlers of signals."""
        self._restore_handlers()

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Mark a finished epoch complete, or Lightning repeats it on resume."""
        if lightning_compat.epoch_is_complete(trainer):
            lightning_compat.complete_epoch(checkpoint)

    def _save(self, trainer: Trainer, name: str) -> None:
        """Write last.ckpt, and if the name is "best" also best.ckpt."""
        if self._logger is not None:
            self._logger.sync()
        new = self._path("best" if name == "best" else "next")
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            self._rotate(new, keep=name == "best")
        trainer.strategy.barrier("RunCheckpoint")
        self._due = time.monotonic() + self.seconds

    def _rotate(self, new: Path, keep: bool) -> None:
        """Keep last.ckpt as previous.ckpt, and replace it by the new file; it always exists."""
        last, previous, following = (self._path(name) for name in ("last", "previous", "next"))
        partial = last.with_name(f".previous{PARTIAL_SUFFIX}")
        if last.exists():
            with name_in_errors(previous):
                partial.unlink(missing_ok=True)
                _link_or_copy(last, partial)
                partial.replace(previous)
        if keep:  # a copy, since two names of one file would be damaged together
            write_atomically(following, new.read_bytes())
        with name_in_errors(last):
            following.replace(last)
        sync_folder(last.parent)

    def _signal_or_due(self, trainer: Trainer, due: bool = False) -> tuple[int | None, bool]:
        """Return a signal that any process received, and whether a checkpoint is due.

        The result is the same in all processes; the clock of the first one decides.
        """
        if trainer.world_size == 1:
            return self.received, due
        mine = [self.received or 0, int(due and trainer.is_global_zero)]
        flags = torch.tensor(mine, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        received, due_anywhere = flags.tolist()
        return received or None, bool(due_anywhere)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        """Note the signal, and restore the handlers: a second signal ends the process at once."""
        self.received = signum
        self._restore_handlers()

    def _restore_handlers(self) -> None:
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


def _can_resume_after(trainer: Trainer, module: LightningModule, batch_idx: int) -> bool:
    """Return whether a run that is resumed after this batch continues with the next batch."""
    return not (
        trainer.is_last_batch
        or getattr(module, "accumulated", False)
        or lightning_compat.validates_after(trainer, batch_idx)
    )


def _check_room(folder: Path, module: LightningModule) -> None:
    """Raise OSError unless the folder is writable and has room for ``ROOM_FOR`` checkpoints."""
    with name_in_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / ".room", b"")
    (folder / ".room").unlink()
    # Adam keeps two numbers for each parameter; 64 KiB is for the rest.
    expected = ROOM_FOR * ((1 << 16) + sum(3 * p.nbytes for p in module.parameters()))
    free = shutil.disk_usage(folder).free
    if free < expected:
        raise OSError(
            f"{folder}: expected {expected / 1e6:.1f} MB for the checkpoints of the run, got "
            f"{free / 1e6:.1f} MB free on this disk"
        )


def _link_or_copy(path: Path, other: Path) -> None:
    """Link ``other`` to a file, or copy the file where the file system has no hard links."""
    try:
        os.link(path, other)
    except OSError:
        shutil.copyfile(path, other)
