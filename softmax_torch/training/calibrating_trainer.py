"""Lightning's trainer with a method that calibrates a trained model on the validation set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer import Trainer
from torch import Tensor

from softmax_torch import calibration, lightning_compat
from softmax_torch.calibration import Method
from softmax_torch.data import TensorDataModule
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io
from softmax_torch.training.epoch_metrics import EvaluationMetrics
from softmax_torch.training.evaluating import LitEvaluation

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
    """Lightning's trainer, which also calibrates models."""

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
            ckpt_path: the checkpoint, which is rewritten with the calibration in it.
            method: "temperature", or "vector" for two numbers a class (see
                ``softmax_torch.calibration``).

        Returns:
            The metrics of the validation set, before and after calibration.

        Raises:
            ValueError: no temperature minimizes the NLL; or there are several processes, each with
                a part of the samples.
        """
        if self.world_size > 1:
            raise ValueError(f"calibrate: expected one process, got {self.world_size}")
        checkpoint_io = atomic_checkpoint_io(self)
        content = dict(checkpoint_io.read(ckpt_path))
        model.calibrated = False
        with self.collecting_logits() as collected:
            [before] = self.validate(model, None, ckpt_path, False, datamodule, weights_only=True)
        z, y = collected.logits, collected.y
        model.calibration = calibration.fit(z, y, method)
        evaluation = EvaluationMetrics()
        evaluation.add(model.calibration(z), y)
        result = evaluation.result(reduce=lambda x: x)
        content["calibration"] = model.calibration.state_dict()
        checkpoint_io.save_checkpoint(content, ckpt_path)
        return [before, {f"val/{name}": float(value) for name, value in result.items()}]

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
