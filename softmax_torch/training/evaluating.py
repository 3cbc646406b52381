"""Validation, test, prediction and logging of a classifier as a LightningModule.

Logits are collected over the batches of a set; at its end metrics are computed from them (see
``softmax_torch.metrics``).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

from lightning import LightningModule
from torch import Tensor, nn

from softmax_torch.calibration import Calibration
from softmax_torch.laplace import Method
from softmax_torch.modules import Classifier, SoftmaxRegression
from softmax_torch.post_hoc import PostHoc
from softmax_torch.storage.checkpoints import check_digest
from softmax_torch.threads import is_small, one_thread_if
from softmax_torch.training.epoch_metrics import EvaluationMetrics
from softmax_torch.training.steps import DIVERGED
from softmax_torch.training.user_metrics import MetricsOption, UserMetrics

__all__ = ["LitEvaluation"]


class LitEvaluation(Classifier, LightningModule):
    """A classifier that Lightning can validate, test and predict with.

    Args:
        backbone: from inputs (N, ...) to features (N, D).
        model: the head, from features to C classes.
        metrics: see ``training.user_metrics``.

    Attributes:
        post_hoc: what the checkpoint carries beside the weights.
        calibrated: whether evaluation and prediction (not training) apply the ``calibration`` of
            the checkpoint, which must then have one.
        laplace: how evaluation and prediction (not training) make probabilities from the Laplace
            approximation of the checkpoint, which must then have one; None leaves it out.
        predicts_sets: whether ``predict_step`` also returns the conformal sets of the checkpoint,
            which must then have some.
        threshold: the decision threshold by which ``predict_step`` also returns classes: a number,
            or "stored" for that of the checkpoint (see ``PostHoc.decision``); None for no classes.
    """

    post_hoc = PostHoc()
    calibrated = False
    laplace: Method | None = None
    predicts_sets = False
    threshold: float | Literal["stored"] | None = None

    def __init__(
        self, backbone: nn.Module, model: SoftmaxRegression, metrics: MetricsOption = None
    ) -> None:
        super().__init__(backbone, model)
        self.val_evaluation = EvaluationMetrics()
        self.test_evaluation = EvaluationMetrics()
        self.user_metrics = UserMetrics(metrics, model.num_classes)

    @property
    def calibration(self) -> Calibration | None:
        """The calibration in the checkpoint; None without one."""
        return self.post_hoc.calibration

    def is_small(self, samples: int | None) -> bool:
        """Return whether so many samples are too few to gain from several threads of a CPU.

        False with a backbone, whose work is unknown.
        """
        linear, head = isinstance(self.backbone, nn.Identity), self.model
        return linear and is_small(samples, head.in_features, head.num_classes)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Return the module in a checkpoint, as Lightning does, after its digest was checked.

        Raises:
            ValueError: the file is damaged, or its weights are not finite.
        """
        if isinstance(checkpoint_path, str | Path) and Path(checkpoint_path).is_file():
            check_digest(Path(checkpoint_path))
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Return log-probabilities (N, C) of inputs (N, ...)."""
        log_p: Tensor = self.model(self.features(x))
        return log_p

    def evaluated_logits(self, x: Tensor) -> Tensor:
        """Return logits (B, C) for metrics and predictions: calibrated, if ``calibrated``.

        With ``laplace`` they are log-probabilities.
        """
        return self._both_logits(x)[1]

    def _both_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits as they were trained, and ``evaluated_logits``."""
        fits = self.trainer.state.fn == "fit"
        if self.laplace is not None and not fits:
            assert self.post_hoc.laplace is not None, "a checkpoint without one was refused"
            features, z = self.features_and_logits(x)
            return z, self.post_hoc.laplace.predict_log_proba(z, features, self.laplace)
        z = self.logits(x)
        if not self.calibrated or fits:
            return z, z
        assert self.calibration is not None, "a checkpoint without one was refused"
        return z, self.calibration(z)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Collect the logits of a validation batch (x, y)."""
        self._evaluate(batch, self.val_evaluation)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Collect the logits of a test batch (x, y)."""
        self._evaluate(batch, self.test_evaluation)

    def _evaluate(self, batch: tuple[Tensor, Tensor], evaluation: EvaluationMetrics) -> None:
        x, y = batch
        with one_thread_if(self.is_small(len(y))):
            evaluation.add(self.evaluated_logits(x), y)

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> Tensor | tuple[Tensor, ...]:
        """Return class probabilities (B, C) in float32, whatever the precision of the matmul.

        With ``predicts_sets``, also which classes are in the set of each sample, bool (B, C); then,
        with a ``threshold``, also the class of each sample, int64 (B,).
        """
        x, _ = batch
        with one_thread_if(self.is_small(len(x))):
            logits, predicted = self._both_logits(x)
            found = [predicted.float().softmax(-1)]
            if self.predicts_sets:
                assert self.post_hoc.conformal is not None, "a checkpoint without them was refused"
                found.append(self.post_hoc.conformal(logits))
            decision = self.post_hoc.decision(self.threshold, self.calibrated, "threshold")
            if decision is not None:
                found.append(decision(logits))
            return found[0] if len(found) == 1 else tuple(found)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation set."""
        self._record_evaluation("val", self.val_evaluation)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the test set."""
        self._record_evaluation("test", self.test_evaluation)

    def _record_evaluation(self, prefix: str, evaluation: EvaluationMetrics) -> None:
        """Log the metrics of a set; FloatingPointError if the NLL is NaN or infinite."""
        with one_thread_if(self.is_small(sum(map(len, evaluation.targets)))):
            metrics = self._metrics_of(prefix, evaluation)
        if not math.isfinite(metrics[f"{prefix}/nll"]):
            raise FloatingPointError(
                f"{prefix}/nll: expected a finite number, got {metrics[f'{prefix}/nll']} in epoch "
                f"{self.current_epoch}: {DIVERGED}"
            )
        self.record_metrics(metrics)

    def _metrics_of(self, prefix: str, evaluation: EvaluationMetrics) -> dict[str, float]:
        values: dict[str, Tensor] = {}
        if self.user_metrics.metrics:
            logits, targets = evaluation.samples()  # before ``result`` drops them
            values = self.user_metrics.result(logits.softmax(1), targets)
        values = evaluation.result(self.sum_over_processes) | values
        return {f"{prefix}/{name}": float(x) for name, x in values.items()}

    def evaluation_metric_names(self) -> list[str]:
        """Return the names of the metrics of an evaluated set, without "val/" or "test/"."""
        means = ("balanced_accuracy", "macro_f1", "weighted_f1")
        built_in = ("accuracy", *means, "nll", "ece")
        return [*dict.fromkeys((*built_in, *self.user_metrics.metrics))]

    def sum_over_processes(self, x: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes."""
        total: Tensor = self.trainer.strategy.reduce(x, reduce_op="sum")
        return total

    def record_metrics(self, metrics: dict[str, float]) -> None:
        """Pass metrics to callbacks, and in a fit write them to the loggers at once."""
        if self.trainer.state.fn == "fit":
            self.log_dict(metrics, logger=False)
            if not self.trainer.sanity_checking:
                self.write_metrics(metrics, self.global_step)
            return
        # Lightning returns the metrics that an evaluation logs, and reads the step from them.
        self.log_dict(metrics | ({"step": float(self.global_step)} if self.loggers else {}))

    def write_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Write the metrics of an optimizer step to the loggers."""
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **metrics}, step)
            logger.save()
