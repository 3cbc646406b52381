"""What is fitted to a trained model afterwards, and carried beside its weights.

    key in a checkpoint    what it is                                 fitted by the command
    calibration            factors and offsets of logits              calibrate
    conformal              thresholds of prediction sets              calibrate --method conformal
    threshold              when the second of two classes is chosen   calibrate --method threshold
    laplace                a normal distribution of the weights       calibrate --method laplace

Each has a ``state_dict`` of tensors and plain values, and a ``from_state_dict``. Those of the first
two, which exported files have too, also take the tensors as numbers and lists, as JSON has them. A
fit that goes on changes the weights, so its next checkpoint has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from softmax_torch import laplace
from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.decision_threshold import STORED, DecisionThreshold, check_threshold
from softmax_torch.laplace import Posterior

__all__ = ["NEEDED", "PostHoc", "refuse_beside_laplace"]


FROM_STATE_DICT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "calibration": Calibration.from_state_dict,
    "conformal": ConformalSets.from_state_dict,
    "threshold": DecisionThreshold.from_state_dict,
    "laplace": laplace.from_state_dict,
}
"""The inverse of ``state_dict`` for each key."""

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
    threshold: DecisionThreshold | None = None
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


def refuse_beside_laplace(laplace: object, calibrated: object, threshold: object) -> None:
    """Raise ValueError if a calibration or threshold is to be applied beside a Laplace posterior.

    Args:
        laplace, calibrated: whether they are to be applied.
        threshold: the threshold; None for none.
    """
    if laplace and threshold is not None:
        raise ValueError(
            "laplace: expected no threshold beside it, got both: a threshold is for the "
            "probabilities without it"
        )
    if laplace and calibrated:
        raise ValueError(
            "laplace: expected no calibration beside it, got both: it is an approximation for the "
            "logits as they were trained, and a calibration is fitted without it"
        )
