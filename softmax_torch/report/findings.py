"""What a report knows of a run: everything on its page and in its figures follows from this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from softmax_torch.calibration import Calibration

__all__ = ["MANY", "Evaluated", "Findings"]

MANY = 60
"""Classes up to which each is shown beside each other; of more, those that matter most are."""


class Evaluated(NamedTuple):
    """What a model said of a set: logits (n, C) before any calibration, and class indices (n,)."""

    logits: Tensor
    y: Tensor


@dataclass(frozen=True, eq=False)
class Findings:
    """A trained model, judged on samples that it was not trained on.

    Attributes:
        name: of the run.
        class_names: C names, in the order of the classes.
        feature_names: D names, in the order of the model's inputs; None where they have none.
        image_shape: (H, W) or (3, H, W) of a sample that is a picture; None for any other.
        val: the validation set.
        test: the test set.
        ids: what the samples of the test set are known by, n strings.
        x: the samples of the test set as they are stored: (n, ...) of bytes or floating point.
        scale: factor that takes them to what the model sees.
        weight: (C, D) on a CPU; None where a net comes before the last layer, whose weights say
            nothing of the inputs.
        history: the rows of metrics.csv, a text for each column that was logged.
        step: the optimizer step after which the checkpoint was written.
        calibration: that of the checkpoint, if it has one.
        facts: labels and values, of data, preprocessing and versions.
        config: the configuration of the run, as YAML.
    """

    name: str
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] | None
    image_shape: tuple[int, ...] | None
    val: Evaluated
    test: Evaluated
    ids: list[str]
    x: Tensor
    scale: float
    weight: Tensor | None
    history: list[dict[str, str]]
    step: int
    calibration: Calibration | None
    facts: tuple[tuple[str, str], ...]
    config: str

    def __post_init__(self) -> None:
        C, n = len(self.class_names), len(self.test.y)
        assert self.val.logits.shape == (len(self.val.y), C)
        assert self.test.logits.shape == (n, C)
        assert len(self.ids) == len(self.x) == n
        assert self.weight is None or len(self.weight) == C
