"""A calibration is fitted to the validation set and kept in the checkpoint it belongs to."""

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
from softmax_torch.training.evaluating import LitEvaluation
from softmax_torch.training.evaluation import Evaluation

__all__ = ["CalibratingTrainer", "KeptLogits"]


class KeptLogits(Callback):
    """Keeps what an evaluation makes its figures of, as it was computed: where, how, and once.

    Attributes:
        logits: (n, C), on a CPU.
        y: class indices (n,).
    """

    logits: Tensor
    y: Tensor

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the module makes figures of them."""
        assert isinstance(pl_module, LitEvaluation)
        self._keep(pl_module.val_evaluation)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same of the test set."""
        assert isinstance(pl_module, LitEvaluation)
        self._keep(pl_module.test_evaluation)

    def _keep(self, evaluation: Evaluation) -> None:
        self.logits, self.y = (tensor.cpu() for tensor in evaluation.samples())


class CalibratingTrainer(Trainer):
    """Lightning's trainer, with one thing more that can be done to a model."""

    def calibrate(
        self,
        model: LitEvaluation,
        datamodule: TensorDataModule,
        ckpt_path: str,
        method: Method = "temperature",
    ) -> list[Mapping[str, float]]:
        """Fit a calibration to the validation set and keep it in the checkpoint.

        Args:
            model: as it was trained; afterwards it has the calibration.
            datamodule: the data that it was trained on.
            ckpt_path: the checkpoint, which is rewritten with its calibration in it.
            method: temperature, or vector for two numbers a class (see
                ``softmax_torch.calibration``).

        Returns:
            The figures of the validation set, before and after.

        Raises:
            ValueError: there is no best temperature; or there are several processes, each of
                which would have some of the samples.
        """
        if self.world_size > 1:
            raise ValueError(f"calibrate: expected one process, got {self.world_size}")
        checkpoint_io = atomic_checkpoint_io(self)
        content = dict(checkpoint_io.read(ckpt_path))
        model.calibrated = False
        with self.keeping_logits() as kept:
            [before] = self.validate(model, None, ckpt_path, False, datamodule, weights_only=True)
        z, y = kept.logits, kept.y
        model.calibration = calibration.fit(z, y, method)
        evaluation = Evaluation(z.shape[1])
        evaluation.add(model.calibration(z), y)
        after = {f"val/{name}": float(value) for name, value in evaluation.result().items()}
        content["calibration"] = model.calibration.state_dict()
        checkpoint_io.save_checkpoint(content, ckpt_path)
        return [before, after]

    @contextmanager
    def keeping_logits(self) -> Iterator[KeptLogits]:
        """Within it an evaluation leaves its logits behind."""
        kept = KeptLogits()
        callbacks = lightning_compat.callbacks_of(self)
        callbacks.append(kept)
        try:
            yield kept
        finally:
            callbacks.remove(kept)
