"""A calibration is fitted to the validation set and kept in the checkpoint it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from lightning.pytorch.trainer import Trainer

from softmax_torch import calibration
from softmax_torch.calibration import Method
from softmax_torch.data import Batches, TensorDataModule
from softmax_torch.training import checkpoint
from softmax_torch.training.evaluation import Evaluation
from softmax_torch.training.lit import LitSoftmaxRegression

__all__ = ["CalibratingTrainer"]


class CalibratingTrainer(Trainer):
    """Lightning's trainer, with one thing more that can be done to a model."""

    def calibrate(
        self,
        model: LitSoftmaxRegression,
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
        model.calibrated = False
        [before] = self.validate(model, None, ckpt_path, False, datamodule, weights_only=True)
        z, y = logits_of(model, datamodule.val_dataloader())
        model.calibration = calibration.fit(z, y, method)
        evaluation = Evaluation(z.shape[1])
        evaluation.add(model.calibration(z), y)
        after = {f"val/{name}": float(value) for name, value in evaluation.result().items()}
        content = checkpoint.load(Path(ckpt_path))
        content["calibration"] = model.calibration.state_dict()
        checkpoint.AtomicCheckpointIO().save_checkpoint(content, ckpt_path)
        return [before, after]


@torch.no_grad()
def logits_of(model: LitSoftmaxRegression, batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, C) and class indices (n,) of all samples."""
    logits, targets = [], []
    for batch in batches:
        assert isinstance(batch, tuple), "many steps at once are for training"
        x, y = batch
        logits.append(model.model.logits(x.to(model.device)).cpu())
        targets.append(y.cpu())
    return torch.cat(logits), torch.cat(targets)
