"""The time that the steps of a fit take."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

__all__ = ["TrainingClock"]


class TrainingClock(Callback):
    """A callback that measures training without the validation between its epochs.

    A resumed run continues the count of its checkpoint. Lightning's ``Timer`` counts validation as
    training, and the trainer ignores its argument ``max_time`` where there is one.
    """

    def __init__(self) -> None:
        self._measured = 0.0  # up to the last pause
        self._since: float | None = None  # time of the last start; None while paused

    @property
    def seconds(self) -> float:
        """Seconds of training so far."""
        running = 0.0 if self._since is None else time.monotonic() - self._since
        return self._measured + running

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again, if the validation belongs to a fit and is no sanity check."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._since = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._pause()

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds so far."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after these seconds."""
        self._measured = state_dict["seconds"]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Continue the count of Lightning's ``Timer``, which runs of earlier versions had."""
        timer = checkpoint["callbacks"].get("Timer", {}).get("time_elapsed", {})
        self._measured = timer.get("train", self._measured)

    def _pause(self) -> None:
        self._measured, self._since = self.seconds, None
