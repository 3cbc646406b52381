"""What is fitted to a trained model afterwards, and carried beside its weights.

    key in a checkpoint    what it is                                 fitted by the command
    calibration            factors and offsets of logits              calibrate
    conformal              thresholds of prediction sets              calibrate --method conformal
    laplace                a normal distribution of the weights       calibrate --method laplace

Each has a ``state_dict`` of tensors and plain values, and a ``from_state_dict``. Those of the first
two also take the tensors as numbers and lists, as JSON has them. A fit that goes on changes the
weights, so its next checkpoint has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from softmax_torch import laplace
from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.laplace import Posterior

__all__ = ["NEEDED", "PostHoc", "refuse_both"]


class Fitted(Protocol):
    """One of the things that a checkpoint carries."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain values."""


FROM_STATE_DICT: dict[str, Callable[[dict[str, Any]], Fitted]] = {
    "calibration": Calibration.from_state_dict,
    "conformal": ConformalSets.from_state_dict,
    "laplace": laplace.from_state_dict,
}
"""The inverse of ``state_dict`` for each key."""

NEEDED = {
    "calibration": ("a checkpoint with a calibration", "calibrate the run first"),
    "conformal": (
        "a checkpoint with conformal sets",
        "fit them with the command calibrate --method conformal",
    ),
    "laplace": (
        "a checkpoint with a Laplace approximation",
        "fit it with the command calibrate --method laplace",
    ),
}
"""Of each key, what a user of it expects, and how to get it."""


class PostHoc(NamedTuple):
    """What a checkpoint carries beside the weights; None for what it has not."""

    calibration: Calibration | None = None
    conformal: ConformalSets | None = None
    laplace: Posterior | None = None

    @classmethod
    def of_checkpoint(cls, content: dict[str, Any]) -> PostHoc:
        """Return what the content of a checkpoint or of exported weights has."""
        found: dict[str, Any] = {
            name: read(content[name])
            for name, read in FROM_STATE_DICT.items()
            if content.get(name) is not None
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


def refuse_both(calibrated: object, laplace: object) -> None:
    """Raise ValueError if both a calibration and a Laplace approximation are to be applied."""
    if calibrated and laplace:
        raise ValueError(
            "laplace: expected no calibration beside it, got both: it is an approximation for the "
            "logits as they were trained, and a calibration is fitted without it"
        )
