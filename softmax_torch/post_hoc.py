"""What is fitted to a trained model afterwards, and carried beside its weights.

    key in a checkpoint    what it is                                 fitted by the command
    calibration            factors and offsets of logits              calibrate
    conformal              thresholds of prediction sets              calibrate --method conformal
    threshold              when the second of two classes is chosen   calibrate --method threshold

Each has a ``state_dict`` of tensors and plain values, and a ``from_state_dict`` that also takes the
tensors as numbers and lists, as JSON has them. A fit that goes on changes the weights, so its next
checkpoint has none of them.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, Self

from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.decision_threshold import STORED, DecisionThreshold, check_threshold

__all__ = ["NEEDED", "PostHoc"]


class Fitted(Protocol):
    """One of the things that a checkpoint carries."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Return what has this ``state_dict``."""


KINDS: dict[str, type[Fitted]] = {
    "calibration": Calibration,
    "conformal": ConformalSets,
    "threshold": DecisionThreshold,
}
"""The class of each key."""

NEEDED = {
    "calibration": ("a checkpoint with a calibration", "calibrate the run first"),
    "conformal": (
        "a checkpoint with conformal sets",
        "fit them with the command calibrate --method conformal",
    ),
    "threshold": (
        "a checkpoint with a decision threshold",
        "choose it with the command calibrate --method threshold",
    ),
}
"""Of each key, what a user of it expects, and how to get it."""


class PostHoc(NamedTuple):
    """What a checkpoint carries beside the weights; None for what it has not."""

    calibration: Calibration | None = None
    conformal: ConformalSets | None = None
    threshold: DecisionThreshold | None = None

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

    def decision(
        self, asked: float | Literal["stored"] | None, calibrated: bool, asked_by: object
    ) -> DecisionThreshold | None:
        """Return the decision threshold that was asked for; None if none was.

        Args:
            asked: a number, for the probabilities that are predicted; "stored" for the threshold
                here, which is for those that it was chosen for.
            calibrated: whether predicted probabilities are calibrated.
            asked_by: as in ``require``.

        Raises:
            ValueError: the number is not in (0, 1), or there is no threshold here.
        """
        if asked is None:
            return None
        if asked == STORED:
            self.require("threshold", asked_by)
            return self.threshold
        check_threshold(asked)
        return DecisionThreshold(asked, calibration=self.calibration if calibrated else None)

    def require(self, key: str, asked_by: object) -> None:
        """Raise ValueError, which says how to get it, unless there is a part under this key.

        Args:
            key: one of ``NEEDED``.
            asked_by: the beginning of the message: the file, or the option that needs it.
        """
        if getattr(self, key) is None:
            expected, remedy = NEEDED[key]
            raise ValueError(f"{asked_by}: expected {expected}, got one without; {remedy}")
