"""What is fitted to a trained model afterwards, and carried beside its weights.

    key in a checkpoint    what it is                                 fitted by the command
    calibration            factors and offsets of logits              calibrate
    conformal              thresholds of prediction sets              calibrate --method conformal

Each has a ``state_dict`` of tensors and plain values, and a ``from_state_dict`` that also takes the
tensors as numbers and lists, as JSON has them. A fit that goes on changes the weights, so its next
checkpoint has none of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, Self

from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets

__all__ = ["NEEDED", "PostHoc"]


class Fitted(Protocol):
    """One of the things that a checkpoint carries."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Return what has this ``state_dict``."""


KINDS: dict[str, type[Fitted]] = {"calibration": Calibration, "conformal": ConformalSets}
"""The class of each key."""

NEEDED = {
    "calibration": ("a checkpoint with a calibration", "calibrate the run first"),
    "conformal": (
        "a checkpoint with conformal sets",
        "fit them with the command calibrate --method conformal",
    ),
}
"""Of each key, what a user of it expects, and how to get it."""


class PostHoc(NamedTuple):
    """What a checkpoint carries beside the weights; None for what it has not."""

    calibration: Calibration | None = None
    conformal: ConformalSets | None = None

    @classmethod
    def of_checkpoint(cls, content: dict[str, Any]) -> PostHoc:
        """Return what the content of a checkpoint or of exported weights has."""
        states = ((name, kind, content.get(name)) for name, kind in KINDS.items())
        found: dict[str, Any] = {
            name: kind.from_state_dict(state) for name, kind, state in states if state is not None
        }
        return cls(**found)

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of each part that there is."""
        return {
            name: part.state_dict() for name, part in self._asdict().items() if part is not None
        }

    def require(self, key: str, asked_by: object) -> None:
        """Raise ValueError, which says how to get it, unless there is a part under this key.

        Args:
            key: one of ``NEEDED``.
            asked_by: the beginning of the message: the file, or the option that needs it.
        """
        if getattr(self, key) is None:
            expected, remedy = NEEDED[key]
            raise ValueError(f"{asked_by}: expected {expected}, got one without; {remedy}")
