"""Lightning's trainer with methods that fit something to a trained model, for its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer import Trainer
from torch import Tensor

from softmax_torch import calibration, conformal, decision_threshold, laplace, lightning_compat
from softmax_torch.calibration import Method
from softmax_torch.conformal import Score
from softmax_torch.data import TensorDataModule
from softmax_torch.decision_threshold import Criterion, check_costs, check_two_classes
from softmax_torch.laplace import Structure
from softmax_torch.post_hoc import PostHoc
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io
from softmax_torch.training.epoch_metrics import EvaluationMetrics
from softmax_torch.training.evaluating import LitEvaluation
from softmax_torch.training.laplace_of_run import Prior, prior_of_run, training_features
from softmax_torch.training.lit_base import LitBase

__all__ = ["CalibratingTrainer", "LogitCollector"]


class LogitCollector(Callback):
    """Callback that keeps the logits from which an evaluation computes its metrics.

    Attributes:
        logits: (n, C) of the last evaluation, float32, on a CPU.
        y: its class indices (n,).
    """

    logits: Tensor
    y: Tensor

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the validation set; runs before the module computes metrics and drops logits."""
        assert isinstance(pl_module, LitEvaluation)
        self._collect(pl_module.val_evaluation)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the test set."""
        assert isinstance(pl_module, LitEvaluation)
        self._collect(pl_module.test_evaluation)

    def _collect(self, evaluation: EvaluationMetrics) -> None:
        self.logits, self.y = (tensor.cpu() for tensor in evaluation.samples())


class CalibratingTrainer(Trainer):
    """Lightning's trainer, which also calibrates models, and fits sets and posteriors."""

    def calibrate(
        self,
        model: LitEvaluation,
        datamodule: TensorDataModule,
        ckpt_path: str,
        method: Method = "temperature",
    ) -> list[Mapping[str, float]]:
        """Fit a calibration to the validation set and add it to the checkpoint.

        Args:
            model: a model with the run's configuration, which gets the checkpoint's weights and
                the calibration.
            datamodule: the data that the model was trained on.
            ckpt_path: the checkpoint, which is rewritten with the calibration in it. Conformal sets
                in it stay as they are, of the probabilities that they were fitted to.
            method: "temperature", or "vector" for two numbers a class (see
                ``softmax_torch.calibration``).

        Returns:
            The metrics of the validation set, before and after calibration.

        Raises:
            ValueError: no temperature minimizes the NLL; or there are several processes, each with
                a part of the samples.
        """
        z, y, before = self._validated(model, datamodule, ckpt_path)
        fitted = calibration.fit(z, y, method)
        evaluation = EvaluationMetrics()
        evaluation.add(fitted(z), y)
        result = evaluation.result(reduce=lambda x: x)
        self._store(model, ckpt_path, calibration=fitted)
        return [before, {f"val/{name}": float(value) for name, value in result.items()}]

    def fit_sets(
        self,
        model: LitEvaluation,
        datamodule: TensorDataModule,
        ckpt_path: str,
        *,
        level: float = conformal.LEVEL,
        score: Score = "aps",
        per_class: bool = False,
        calibrated: bool = False,
    ) -> Tensor:
        """Fit conformal sets to the validation set and add them to the checkpoint.

        Args:
            model, datamodule, ckpt_path: as in ``calibrate``.
            level, score, per_class: see ``softmax_torch.conformal.fit``.
            calibrated: whether the sets are made of probabilities with the calibration that is in
                the checkpoint now. The sets keep it, also if the checkpoint gets another one.

        Returns:
            The sizes of the validation samples' sets, (n,).

        Raises:
            ValueError: the level is not in (0, 1), or the samples are too few for it; the
                checkpoint has no calibration; or there are several processes.
        """
        conformal.check_level(level)
        z, y, _ = self._validated(model, datamodule, ckpt_path, calibrated)
        sets = conformal.fit(
            *(z, y, level, score),
            per_class=per_class,
            calibration=model.calibration if calibrated else None,
            class_names=datamodule.preprocessing.class_names,
        )
        self._store(model, ckpt_path, conformal=sets)
        return sets(z).sum(1)

    def choose_threshold(
        self,
        model: LitEvaluation,
        datamodule: TensorDataModule,
        ckpt_path: str,
        *,
        criterion: Criterion = "balanced_accuracy",
        costs: Sequence[float] = (1.0, 1.0),
        calibrated: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Choose a decision threshold on the validation set and add it to the checkpoint.

        Args:
            model, datamodule, ckpt_path: as in ``calibrate``.
            criterion, costs: see ``softmax_torch.decision_threshold.choose``.
            calibrated: whether the threshold is for probabilities with the calibration that is in
                the checkpoint now. It keeps it, also if the checkpoint gets another one.

        Returns:
            Logits (n, 2), not calibrated, and classes (n,) of the validation set.

        Raises:
            ValueError: there are not two classes, or a class has no samples; the checkpoint has no
                calibration; or there are several processes.
        """
        check_two_classes(model.model.num_classes)
        check_costs(costs)
        z, y, _ = self._validated(model, datamodule, ckpt_path, calibrated)
        chosen = decision_threshold.choose(
            *(z, y, criterion),
            costs=costs,
            calibration=model.calibration if calibrated else None,
            class_names=datamodule.preprocessing.class_names,
        )
        self._store(model, ckpt_path, threshold=chosen)
        return z, y

    def fit_laplace(
        self,
        model: LitBase,
        datamodule: TensorDataModule,
        ckpt_path: str,
        *,
        structure: Structure = "kronecker",
        prior_precision: float | None = None,
    ) -> tuple[Prior, list[Mapping[str, float]]]:
        """Fit a Laplace approximation to the training set and add it to the checkpoint.

        Args:
            model, datamodule, ckpt_path: as in ``calibrate``.
            structure: see ``softmax_torch.laplace``.
            prior_precision: precision of the prior; by default that of the run's penalty, and 1
                without one (``softmax_torch.training.laplace_of_run``).

        Returns:
            The prior; and the metrics of the validation set, without the approximation and with it.

        Raises:
            ValueError: the prior precision is not positive, a full posterior would be too large, or
                there are several processes.
        """
        if prior_precision is not None:
            laplace.check_prior_precision(prior_precision)
        head = model.model.linear
        laplace.check_structure(structure, head.weight, head.bias)
        _, _, before = self._validated(model, datamodule, ckpt_path)
        prior = prior_of_run(model, datamodule, atomic_checkpoint_io(self).read(ckpt_path))
        if prior_precision is not None:
            prior = Prior(prior_precision, "as asked for")
        posterior = laplace.fit(
            *(training_features(model, datamodule), head.weight, head.bias),
            prior_precision=prior.precision,
            structure=structure,
        )
        self._store(model, ckpt_path, laplace=posterior)
        model.laplace = "probit"
        [after] = self.validate(model, None, None, False, datamodule)
        model.laplace = None
        return prior, [before, after]

    def _validated(
        self,
        model: LitEvaluation,
        datamodule: TensorDataModule,
        ckpt_path: str,
        needs_calibration: bool = False,
    ) -> tuple[Tensor, Tensor, Mapping[str, float]]:
        """Return logits (n, C), classes (n,) and metrics of the validation set.

        The model gets what the checkpoint has; the logits are not calibrated.

        Raises:
            ValueError: there are several processes, or no calibration in the checkpoint and one is
                needed. Nothing was evaluated then.
        """
        if self.world_size > 1:
            raise ValueError(f"calibrate: expected one process, got {self.world_size}")
        # Read once for this, the validation and ``_store``.
        content = atomic_checkpoint_io(self).read(ckpt_path)
        if needs_calibration:
            PostHoc.of_checkpoint(content).require("calibration", "calibrated")
        model.calibrated, model.laplace = False, None
        with self.collecting_logits() as collected:
            [metrics] = self.validate(model, None, ckpt_path, False, datamodule, weights_only=True)
        return collected.logits, collected.y, metrics

    def _store(self, model: LitEvaluation, ckpt_path: str, **fitted: Any) -> None:
        """Rewrite the checkpoint with something that was fitted, which the model gets too.

        Args:
            model: the model.
            ckpt_path: the checkpoint.
            **fitted: fields of ``PostHoc``.
        """
        checkpoint_io = atomic_checkpoint_io(self)
        content = checkpoint_io.read(ckpt_path)
        model.post_hoc = model.post_hoc._replace(**fitted)
        checkpoint_io.save_checkpoint(content | model.post_hoc.state_dict(), ckpt_path)

    @contextmanager
    def collecting_logits(self) -> Iterator[LogitCollector]:
        """Collect the logits of each evaluation inside the ``with`` block."""
        collector = LogitCollector()
        callbacks = lightning_compat.callbacks_of(self)
        callbacks.append(collector)
        try:
            yield collector
        finally:
            callbacks.remove(collector)
