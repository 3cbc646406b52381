"""Metrics of torchmetrics that a user names, logged for validation and test beside our figures.

In a configuration:

    model:
      metrics:
        macro_f1:
          class_path: torchmetrics.classification.MulticlassF1Score
          init_args: {num_classes: 10, average: macro}

logs ``val/macro_f1`` and ``test/macro_f1``. In Python:

>>> from torchmetrics.classification import MulticlassF1Score
>>> metrics = UserMetrics({"macro_f1": MulticlassF1Score(3, average="macro")}, num_classes=3)
>>> metrics.result(torch.eye(3), torch.tensor([0, 1, 2]))
{'macro_f1': tensor(1.)}
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MetricsOption", "UserMetrics"]

MetricsOption = Metric | list[Metric] | dict[str, Metric] | None

RESERVED = ("accuracy", "nll", "ece")
"""Names of our own figures."""


class UserMetrics:
    """Metrics of class probabilities, computed once for a whole set.

    No ``nn.Module``, so that metrics have no keys in the ``state_dict`` of a checkpoint: a run may
    be resumed, and its checkpoints evaluated, with other metrics or none.

    Args:
        metrics: one metric, a list of metrics, or a dict from names to metrics; None for none.
            Without a dict their names are those of their classes, such as MulticlassF1Score. They
            are copied.
        num_classes: C.

    Raises:
        TypeError: something is not a metric of torchmetrics.
        ValueError: a metric is for another number of classes, does not take class probabilities
            (n, C) and class indices (n,), or returns anything but one number; a name is taken.
    """

    def __init__(self, metrics: MetricsOption, num_classes: int) -> None:
        self.metrics: dict[str, Metric] = {}
        for name, metric in _named(metrics):
            if not isinstance(metric, Metric):
                raise TypeError(
                    f"metrics: expected metrics of torchmetrics, got {metric!r} for {name}"
                )
            if name in self.metrics or name in RESERVED:
                raise ValueError(
                    f"metrics: expected different names, other than {', '.join(RESERVED)}, got "
                    f"{name} twice; a dict gives metrics other names"
                )
            _check(name, metric, num_classes)
            self.metrics[name] = metric.clone()

    def result(self, probabilities: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the value of each metric, a scalar, over the samples of all processes.

        Args:
            probabilities: class probabilities (n, C) of the samples of this process.
            targets: class indices (n,).
        """
        values: dict[str, Tensor] = {}
        for name, metric in self.metrics.items():
            metric.to(probabilities.device)
            try:
                metric.update(probabilities, targets)
                values[name] = metric.compute()
            finally:
                metric.reset()
        return values


def _named(metrics: MetricsOption) -> list[tuple[str, Metric]]:
    """Return metrics with their names."""
    if metrics is None:
        return []
    if isinstance(metrics, dict):
        return list(metrics.items())
    listed = metrics if isinstance(metrics, list) else [metrics]
    return [(type(metric).__name__, metric) for metric in listed]


def _check(name: str, metric: Metric, num_classes: int) -> None:
    """Raise ValueError unless a metric returns one number for predictions of so many classes."""
    theirs = getattr(metric, "num_classes", None)
    if theirs is not None and theirs != num_classes:
        raise ValueError(
            f"metrics: expected {name} for the {num_classes} classes of the data, got "
            f"num_classes={theirs}"
        )
    trial = metric.clone()
    p = torch.full((2, num_classes), 1 / num_classes)
    y = torch.tensor([0, num_classes - 1])
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # such as: there are no samples of some classes
        try:
            trial.update(p, y)
            value = trial.compute()
        except Exception as error:  # of any type, as metrics may be users' own
            raise ValueError(
                f"metrics: expected {name} to take class probabilities (n, {num_classes}) and "
                f"class indices (n,), got {type(error).__name__}: {error}"
            ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"metrics: expected {name} to return one number, got {got}")
