"""Results of a trained run, from which everything in a report is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from softmax_torch.calibration import Calibration
from softmax_torch.conformal import ConformalSets
from softmax_torch.decision_threshold import DecisionThreshold

__all__ = ["MAX_CLASSES", "EvaluatedSet", "Groups", "RawRows", "RunResults"]

MAX_CLASSES = 60
"""Most classes that a report shows one by one; of more, it shows those that matter most."""


class EvaluatedSet(NamedTuple):
    """Logits (n, C) of a set of samples before any calibration, and class indices y (n,)."""

    logits: Tensor
    y: Tensor


class RawRows(NamedTuple):
    """The n rows of a test set as they are in their file.

    Attributes:
        table: a pyarrow table of n rows.
        columns: for each of the D features of the model, the name of the column it is made from.
    """

    table: Any
    columns: tuple[str, ...]


class Groups(NamedTuple):
    """The groups of a test set.

    Attributes:
        column: name of the column that they come from.
        of_samples: the group of each of the n samples.
    """

    column: str
    of_samples: list[str]


@dataclass(frozen=True, eq=False)
class RunResults:
    """A trained model and its logits on samples that it was not trained on.

    Attributes:
        name: name of the run.
        class_names: C names, in the order of the classes.
        feature_names: D names, in the order of the model's inputs; None where they have none.
        image_shape: (H, W) or (3, H, W) of a sample that is an image; None for other samples.
        val: the validation set.
        test: the test set.
        ids: n strings that identify the samples of the test set.
        x: samples of the test set as stored, (n, ...), bytes or floating point.
        scale: factor from the stored samples to the inputs of the model, before images are
            standardised.
        weight: (C, D) on a CPU, for samples times ``scale``; None where a net comes before the last
            layer, whose weights say nothing about the inputs.
        history: the rows of metrics.csv; each maps the columns that were logged to their text.
        step: the optimizer step after which the checkpoint was written.
        calibration: the calibration in the checkpoint; None without one.
        facts: labels and values about the data, the preprocessing and versions.
        config: the configuration of the run, as YAML.
        raw: the rows of the test set, if they come from a table.
        groups: of the test set, if a column names them.
        conformal: the conformal sets in the checkpoint; None without them.
        threshold: the decision threshold in the checkpoint; None without one.
    """

    name: str
    class_names: tuple[str, ...]
    feature_names: tuple[str, ...] | None
    image_shape: tuple[int, ...] | None
    val: EvaluatedSet
    test: EvaluatedSet
    ids: list[str]
    x: Tensor
    scale: float
    weight: Tensor | None
    history: list[dict[str, str]]
    step: int
    calibration: Calibration | None
    facts: tuple[tuple[str, str], ...]
    config: str
    raw: RawRows | None = None
    groups: Groups | None = None
    conformal: ConformalSets | None = None
    threshold: DecisionThreshold | None = None

    def __post_init__(self) -> None:
        C, n = len(self.class_names), len(self.test.y)
        assert self.val.logits.shape == (len(self.val.y), C)
        assert self.test.logits.shape == (n, C)
        assert len(self.ids) == len(self.x) == n
        assert self.weight is None or len(self.weight) == C
        assert self.raw is None or len(self.raw.table) == n
        assert self.groups is None or len(self.groups.of_samples) == n
