"""What a checkpoint says about its run: the settings, and whether and why the run has ended.

``RunCheckpoint`` stores both in its state. Checkpoints of earlier versions have neither.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from lightning import LightningModule, Trainer

__all__ = ["Ending", "ending_after", "ending_of", "settings_of"]

STATE = "RunCheckpoint"
"""Key of the callback's state in a checkpoint."""


class Ending(NamedTuple):
    """The end of a run before its number of epochs or steps.

    Attributes:
        text: the reason, such as "converged after 9 iterations".
        optimal: whether the model has no more to learn from the data.
    """

    text: str
    optimal: bool


def settings_of(checkpoint: dict[str, Any]) -> str:
    """Return the settings that a checkpoint was trained with, as YAML; empty if unknown."""
    found: str = _own_state(checkpoint).get("settings", "")
    return found


def ending_of(checkpoint: dict[str, Any]) -> Ending | None:
    """Return the ending of the run that a checkpoint concludes; None if the run goes on."""
    found = _own_state(checkpoint).get("ending")
    return None if found is None else Ending(**found)


def _own_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = checkpoint.get("callbacks", {}).get(STATE, {})
    return found


def ending_after(trainer: Trainer, module: LightningModule) -> Ending | None:
    """Return the ending of a run that stops after this epoch by itself, and would stop again.

    A run that a limit of time stops may go on with more time, and has no ending.
    """
    epochs = trainer.current_epoch + 1
    enough = epochs >= (trainer.min_epochs or 0) and trainer.global_step >= (trainer.min_steps or 0)
    if not trainer.should_stop or not enough:
        return None
    if text := getattr(module, "ending", None):
        return Ending(text, True)
    if any(callback.stopping_reason.value for callback in trainer.early_stopping_callbacks):
        return Ending(f"stopped early after epoch {epochs}", False)
    return None
