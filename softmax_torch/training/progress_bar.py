"""A progress bar over a whole fit: epochs, time, and metrics of the last validation."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from softmax_torch import lightning_compat

__all__ = ["EpochBar"]

INTERVAL = 0.2
"""Seconds between two updates of the bar. The training thread draws it: rich's own thread competes
with the operators' threads, and made a run on digits ten times slower."""

NARROW = 70
"""Columns of a terminal below which metrics stand one below the other, without bar and time."""


class EpochBar(ProgressBar):
    """A progress bar over all epochs of ``fit``; without a terminal, one line at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._bar: Progress | None = None
        self._shown_metrics, self._between_metrics = "", "  "
        self._due = 0.0  # time of the next update

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def disable(self) -> None:
        """Show no bar. Lightning calls this on every process but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bar."""
        if not self._enabled:
            return
        narrow = get_console().width < NARROW
        self._between_metrics = "\n" if narrow else "  "
        self._bar = Progress(
            TextColumn("{task.description}"),
            *([] if narrow else [BarColumn(bar_width=24), TimeElapsedColumn()]),
            TextColumn("{task.fields[metrics]}"),
            auto_refresh=False,
        )
        self._bar.add_task(self._epoch(trainer), total=self._total(trainer), metrics="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar, if ``INTERVAL`` has passed."""
        if time.monotonic() >= self._due:
            self._show(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the metrics of the validation for the next update of the bar."""
        got = trainer.callback_metrics
        names = ("val/accuracy", "val/nll")
        texts = [f"{name} {got[name]:.4f}" for name in names if name in got]
        self._shown_metrics = self._between_metrics.join(texts)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the end and leave the bar on the screen: complete, if the fit converged."""
        self._show(trainer, ended=True, converged=getattr(pl_module, "converged", False))
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Stop the bar, which frees the terminal for the message."""
        self._stop()

    @staticmethod
    def _total(trainer: Trainer) -> float | None:
        """Return the batches of the whole fit; None if they are unknown."""
        if trainer.max_steps != -1:
            return trainer.max_steps * trainer.accumulate_grad_batches
        total = trainer.num_training_batches * (trainer.max_epochs or 0)
        return total if 0 < total < math.inf else None

    @staticmethod
    def _epoch(trainer: Trainer, ended: bool = False, converged: bool = False) -> str:
        """Return the number of the current epoch and of all epochs as text.

        A fit that converged says so in place of the epochs that it could have had.
        """
        last = trainer.max_epochs
        epoch = trainer.current_epoch + (0 if ended or trainer.current_epoch == last else 1)
        if converged:
            return f"epoch {epoch}, converged"
        return f"epoch {epoch}" + (f"/{last}" if last is not None and last > 0 else "")

    def _show(self, trainer: Trainer, ended: bool = False, converged: bool = False) -> None:
        if self._bar is not None:
            done = lightning_compat.batches_done(trainer)
            self._bar.update(
                self._bar.task_ids[0],
                description=self._epoch(trainer, ended, converged),
                completed=done,
                total=done if converged else self._total(trainer),
                metrics=self._shown_metrics,
                refresh=True,
            )
            self._due = time.monotonic() + INTERVAL

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
