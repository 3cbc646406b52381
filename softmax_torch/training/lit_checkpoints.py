"""What a module adds to a checkpoint of a fit, checks in one, and restores from it.

    softmax_torch     format of the content; sums of the epoch and random numbers of each process
    preprocessing     of the data, to predict raw inputs with the checkpoint alone

Lightning stores weights, optimizers, schedules and its own counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from softmax_torch import lightning_compat
from softmax_torch.modules import SoftmaxRegression
from softmax_torch.post_hoc import PostHoc, refuse_beside_laplace
from softmax_torch.preprocessing import Preprocessing
from softmax_torch.storage.checkpoints import CHECKPOINT_FORMAT
from softmax_torch.training import compatibility
from softmax_torch.training.epoch_metrics import TrainingMetrics
from softmax_torch.training.evaluating import LitEvaluation
from softmax_torch.training.rng_state import get_rng_state, set_rng_state
from softmax_torch.training.user_metrics import MetricsOption

__all__ = ["LitCheckpoints"]


class LitCheckpoints(LitEvaluation):
    """A module whose fits continue from a checkpoint with the same bits.

    Args:
        in_features: number of values in a sample.
        backbone, model: see ``modules.Classifier``.
        metrics: see ``LitClassifier``.

    Attributes:
        training_metrics: sums over the epoch so far.
        steps_per_call: optimizer steps in a ``training_step``.
    """

    def __init__(
        self,
        in_features: int,
        backbone: nn.Module,
        model: SoftmaxRegression,
        metrics: MetricsOption,
    ) -> None:
        super().__init__(backbone, model, metrics)
        self.in_features = in_features
        self.training_metrics = TrainingMetrics()
        self.steps_per_call = 1
        self._restored: dict[str, Any] | None = None  # of this process, from a checkpoint

    def _sizes(self) -> dict[str, int]:
        """Return the sizes that the data and a checkpoint must share."""
        return {"num_classes": self.model.num_classes, "in_features": self.in_features}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add sums of the epoch, random number generators and preprocessing to a checkpoint."""
        trainer = lightning_compat.trainer_of(self)
        mine = {"sums": self.training_metrics.sums, "random": get_rng_state()}
        processes: list[Any] = [mine]
        if trainer is not None and trainer.world_size > 1:
            processes = [None] * trainer.world_size
            torch.distributed.all_gather_object(processes, mine)
        checkpoint["softmax_torch"] = {"format": CHECKPOINT_FORMAT, "processes": processes}
        preprocessing = self._preprocessing()
        if preprocessing is not None:
            checkpoint["preprocessing"] = preprocessing.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load the training state from a checkpoint, or what was fitted after the training.

        Raises:
            ValueError: the checkpoint has other sizes or another preprocessing; its weights are
                others or not finite; it lacks the calibration, the Laplace approximation, the sets
                or the threshold that are asked for; or the trainer is to end before the epochs that
                are done.
        """
        expected = self._expected_hyperparameters(checkpoint)
        compatibility.check_checkpoint(checkpoint, expected, self._preprocessing())
        trainer = lightning_compat.trainer_of(self)
        path = getattr(trainer, "ckpt_path", None) or "checkpoint"
        compatibility.check_weights(checkpoint["state_dict"], self, path)
        if trainer is None or trainer.state.fn != "fit":
            self.post_hoc = PostHoc.of_checkpoint(checkpoint)
            if self.calibrated:
                self.post_hoc.require("calibration", "calibrated")
            refuse_beside_laplace(self.laplace, self.calibrated, self.threshold)
            if self.laplace is not None:
                self.post_hoc.require("laplace", "laplace")
            if self.predicts_sets:
                self.post_hoc.require("conformal", "sets")
            self.post_hoc.decision(self.threshold, self.calibrated, "threshold")
            return
        done, most = lightning_compat.epochs_done(checkpoint), trainer.max_epochs
        if most is not None and -1 < most < done:
            raise ValueError(
                f"max_epochs: expected at least {done}, the epochs that the run has completed, got "
                f"{most}"
            )
        rank, processes = trainer.global_rank, trainer.world_size
        self._restored = compatibility.process_state(checkpoint, rank, processes)
        lightning_compat.recount_batches(checkpoint, self.steps_per_call)

    def _expected_hyperparameters(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Return the values that hyper-parameters in a checkpoint must have."""
        return self._sizes()

    def _preprocessing(self) -> Preprocessing | None:
        """Return the preprocessing of the data, None where the data has none."""
        trainer = lightning_compat.trainer_of(self)
        data = None if trainer is None else getattr(trainer, "datamodule", None)
        found: Preprocessing | None = getattr(data, "preprocessing", None)
        return found

    def restore_state(self) -> None:
        """Restore the sums of the epoch and the random number generators of a checkpoint.

        Call it when training starts, since Lightning, callbacks and data may draw numbers before.
        """
        if self._restored is None:
            return
        sums = self._restored["sums"]
        self.training_metrics.sums = None if sums is None else sums.to(self.device)
        set_rng_state(self._restored["random"])
        self._restored = None
