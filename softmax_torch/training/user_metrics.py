"""Metrics of torchmetrics that a user adds to the logs of validation and test.

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
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["MetricsOption", "UserMetrics"]

if TYPE_CHECKING:
    MetricsOption = Metric | dict[str, Any] | list[Metric | dict[str, Any]] | None
else:  # the command line's help would list every subclass of Metric, 170 lines
    MetricsOption = dict | list | None

KEYS = ("class_path", "init_args")
"""Keys by which a configuration describes an object."""

SAMPLES = 32
"""Samples of the trial that checks a metric. Metrics that subsample need more than a few."""

RESERVED = ("accuracy", "nll", "ece")
"""Names of metrics that are always logged."""


class UserMetrics:
    """Metrics of class probabilities, computed once for a whole set.

    The class is no ``nn.Module``, so that metrics add no keys to the ``state_dict`` of a
    checkpoint: a run may be resumed, and its checkpoints evaluated, with other metrics or none.

    Args:
        metrics: one metric, a list of metrics, or a dict from names to metrics; None for none.
            A metric is a ``torchmetrics.Metric``, which is copied, or a dict with its
            ``class_path`` and ``init_args``. Outside a dict it is named after its class, such as
            MulticlassF1Score.
        num_classes: C.

    Raises:
        ValueError: a metric cannot be made, is for another number of classes, does not take class
            probabilities (n, C) and class indices (n,), or returns anything but one number; or two
            have the same name.
    """

    def __init__(self, metrics: MetricsOption, num_classes: int) -> None:
        self.metrics: dict[str, Metric] = {}
        for name, metric in _named_metrics(metrics):
            if name in self.metrics or name in RESERVED:
                raise ValueError(
                    f"metrics: expected different names, other than {', '.join(RESERVED)}, got "
                    f"{name} twice; a dict gives metrics other names"
                )
            _check_metric(name, metric, num_classes)
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


def _named_metrics(metrics: MetricsOption) -> list[tuple[str, Metric]]:
    """Return metrics with their names."""
    if isinstance(metrics, dict) and "class_path" not in metrics:
        return [(name, _make_metric(metric, name)) for name, metric in metrics.items()]
    listed = metrics if isinstance(metrics, list) else [] if metrics is None else [metrics]
    made = [_make_metric(metric, "one of them") for metric in listed]
    return [(type(metric).__name__, metric) for metric in made]


def _make_metric(metric: Any, name: str) -> Metric:
    """Return the metric itself, or make it if it is a dict of class_path and init_args."""
    if isinstance(metric, Metric):
        return metric
    if not isinstance(metric, dict) or not {"class_path"} <= {*metric} <= {*KEYS}:
        raise ValueError(
            "metrics: expected metrics of torchmetrics, or class_path and init_args of each, got "
            f"{metric!r} for {name}"
        )
    path, options = (metric.get(key) for key in KEYS)
    module, _, kind = str(path).rpartition(".")
    try:
        found = getattr(import_module(module), kind)
        if not (isinstance(found, type) and issubclass(found, Metric)):
            raise TypeError("it is not a class of metrics")
        return found(**(options or {}))
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"metrics: {path} cannot be made for {name}: {error}") from error


def _check_metric(name: str, metric: Metric, num_classes: int) -> None:
    """Raise ValueError unless a metric returns one number for predictions of ``num_classes``."""
    declared = getattr(metric, "num_classes", None)
    if declared is not None and declared != num_classes:
        raise ValueError(
            f"metrics: expected {name} for the {num_classes} classes of the data, got "
            f"num_classes={declared}"
        )
    trial = metric.clone()
    p = torch.full((SAMPLES, num_classes), 1 / num_classes)
    y = torch.arange(SAMPLES) % num_classes
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # for example that a class has no samples
        try:
            trial.update(p, y)
            value = trial.compute()
        except Exception as error:  # users' metrics raise errors of any type
            raise ValueError(
                f"metrics: expected {name} to take class probabilities (n, {num_classes}) and "
                f"class indices (n,), got {type(error).__name__}: {error}"
            ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"metrics: expected {name} to return one number, got {got}")
