"""The training loop that all classifiers share, as a LightningModule.

Several optimizer steps run per ``training_step``, so that Lightning's overhead is paid once for all
of them: some 300 us for hooks, progress and profiling, where a step of 784 -> 10 at batch 128 takes
200. Optimization is manual in Lightning's sense. Lightning then leaves the schedule, gradient
clipping and accumulation to the module, which applies the trainer's settings. A ``training_step``
waits for the device once, to check the objectives of its steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from softmax_torch import lightning_compat
from softmax_torch.data.batches import Batch, Steps
from softmax_torch.functional import cross_entropy
from softmax_torch.modules import SoftmaxRegression
from softmax_torch.threads import one_thread_if
from softmax_torch.training import compatibility
from softmax_torch.training.accumulation import GradientGroup
from softmax_torch.training.checkpoint_io import verify_checkpoints
from softmax_torch.training.epoch_metrics import SampleFigures
from softmax_torch.training.fit_description import FitDescription
from softmax_torch.training.lit_checkpoints import LitCheckpoints
from softmax_torch.training.options import OptimizerFactory, SchedulerFactory, check_counts
from softmax_torch.training.steps import (
    GradientFunction,
    Rows,
    StepFunction,
    StepHistory,
    batches_of,
    one_by_one,
)
from softmax_torch.training.trainer_checks import check_processes
from softmax_torch.training.training_objective import TrainingObjective
from softmax_torch.training.user_metrics import MetricsOption

__all__ = ["LitBase"]

STEP_LOGITS = 1 << 24
"""Logits that a ``training_step`` may keep until its end, 64 MiB. Where a single step has as many,
Lightning's overhead is negligible."""


class LitBase(FitDescription, LitCheckpoints, ABC):
    """A net that ends in ``SoftmaxRegression``, trained by Lightning.

    Subclasses choose the net, the objective, its options and the parameters to train, and may
    compute gradients in another way.

    Args:
        in_features: number of values in a sample.
        backbone, model: see ``modules.Classifier``.
        criterion: the objective.
        optimizer, lr_scheduler, lr_interval, steps_per_call, log_every_n_steps, metrics: see
            ``LitClassifier``.
    """

    def __init__(
        self,
        in_features: int,
        backbone: nn.Module,
        model: SoftmaxRegression,
        criterion: TrainingObjective,
        *,
        optimizer: OptimizerFactory | None,
        lr_scheduler: SchedulerFactory | None,
        lr_interval: Literal["epoch", "step"],
        steps_per_call: int,
        log_every_n_steps: int | None,
        metrics: MetricsOption,
    ) -> None:
        check_counts(steps_per_call, log_every_n_steps)
        super().__init__(in_features, backbone, model, metrics)
        self.criterion = criterion
        self.optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        self.lr_scheduler, self.lr_interval = lr_scheduler, lr_interval
        self.max_steps_per_call = steps_per_call
        self.log_every_n_steps = log_every_n_steps
        self.accumulated = 0  # batches since the last optimizer step
        self.gradient_group = GradientGroup()  # of these batches
        self.on_one_thread = False  # whether a training step is, see ``threads``
        self._validated = False

    # Beginning of a fit

    def configure_callbacks(self) -> list[Callback]:
        """Let Lightning accept clipping and accumulation, which it checks next; add no callback."""
        lightning_compat.pass_optimization_check(self)
        return []

    def setup(self, stage: str) -> None:
        """Compare the model with the data, and prepare the objective for the training set.

        Raises:
            ValueError: the data has other sizes than the model, or lacks ``class_counts`` where
                the objective needs them; or see ``training.trainer_checks``.
        """
        verify_checkpoints(self.trainer)
        data = getattr(self.trainer, "datamodule", None)
        compatibility.check_sizes(data, self._sizes())
        check_processes(self.trainer)
        if stage == "fit":
            self.check_trainer(self.trainer, bool(self.trainer.enable_validation))
            self.automatic_optimization = False
            counted = lightning_compat.counts_batches(self.trainer)
            self.steps_per_call = 1 if counted else self._limited_steps(data)
            self.criterion.prepare(data, self.trainer.world_size, self.device)

    def _limited_steps(self, data: Any) -> int:
        """Return the number of steps in a ``training_step``, limited by ``STEP_LOGITS``."""
        batch_size = getattr(data, "batch_size", None) or 1
        most = STEP_LOGITS // (batch_size * self.model.num_classes)
        return max(1, min(self.max_steps_per_call, most))

    def configure_optimizers(self) -> Optimizer | tuple[list[Optimizer], list[LRScheduler]]:
        """Return the optimizer, and the schedule where there is one."""
        optimizer = self.optimizer(self.trained_parameters())
        scheduler = self.make_scheduler(optimizer)
        return optimizer if scheduler is None else ([optimizer], [scheduler])

    @abstractmethod
    def trained_parameters(self) -> Any:
        """Return the parameters to train, or groups of them, for the optimizer."""

    def make_scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """Return the learning-rate schedule of an optimizer; None for a constant rate."""
        return None if self.lr_scheduler is None else self.lr_scheduler(optimizer)

    def on_train_start(self) -> None:
        """Check the schedule, and restore the state of a checkpoint."""
        self.accumulated = 0
        accumulates = self.trainer.accumulate_grad_batches > 1
        if accumulates and isinstance(self.optimizers(use_pl_optimizer=False), torch.optim.LBFGS):
            raise ValueError(
                "trainer.accumulate_grad_batches: expected 1 with LBFGS, which evaluates a batch "
                f"several times in a step, got {self.trainer.accumulate_grad_batches}"
            )
        loader = self.trainer.train_dataloader  # this package's, or one of torch
        self.on_one_thread = self.is_small(getattr(loader, "batch_size", None))
        if isinstance(self.lr_schedulers(), ReduceLROnPlateau):
            if not self.trainer.enable_validation:
                raise ValueError(
                    "lr_scheduler: expected a validation set for ReduceLROnPlateau to watch, got "
                    "none"
                )
            if self.lr_interval == "step":
                raise ValueError(
                    'lr_interval: expected "epoch" for ReduceLROnPlateau, which watches the '
                    'validation, got "step"'
                )
        self.restore_state()

    # Optimizer steps

    def training_step(self, batch: Steps | tuple[Tensor, Tensor]) -> None:
        """Make the optimizer steps of some batches, or of one pair (x, y)."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        with one_thread_if(self.on_one_thread), one_by_one(optimizer.optimizer):
            self._make_steps(optimizer, batches_of(batch))

    def _make_steps(self, optimizer: LightningOptimizer, batches: Steps | list[Batch]) -> None:
        scheduler = self.lr_schedulers()
        each_step = scheduler if self.lr_interval == "step" else None
        gradient, history = self.gradient_function(), StepHistory(self.global_step)
        step = self._step_function(optimizer)
        ends_epoch = self.trainer.is_last_batch
        convert = lightning_compat.input_converter(self.trainer)
        for i, one in enumerate(batches):
            if convert is not None:
                one = one._replace(x=convert(one.x))
            last = ends_epoch and i + 1 == len(batches)
            if not self._step(optimizer, step, self.augmented(one), gradient, last, history):
                continue
            history.step += 1
            if isinstance(each_step, LRScheduler):
                each_step.step()
        self._finish_steps(history)

    def _step_function(self, optimizer: LightningOptimizer) -> StepFunction:
        """Return the function that makes a step: past Lightning, where Lightning adds nothing."""
        plain = not self.trainer.gradient_clip_val and lightning_compat.step_is_plain(self, LitBase)
        return partial(lightning_compat.plain_step, optimizer) if plain else optimizer.step

    def gradient_function(self) -> GradientFunction:
        """Return the function that computes gradients; by default ``backpropagate``."""
        return self.backpropagate

    def augmented(self, batch: Batch) -> Batch:
        """Return the batch to train on, made from a batch of the data; by default the same."""
        return batch

    def _step(
        self,
        optimizer: LightningOptimizer,
        step: StepFunction,
        batch: Batch,
        gradient: GradientFunction,
        last: bool,
        history: StepHistory,
    ) -> bool:
        """Compute the gradient on a batch, and make a step unless gradients are accumulated.

        Returns:
            Whether a step was made.
        """
        added, every = False, self.trainer.accumulate_grad_batches
        accumulates, waits = every > 1, self.accumulated + 1 < every and not last

        def closure() -> Tensor:
            nonlocal added
            objective, rows = gradient(optimizer, batch)
            if accumulates and not waits:
                self.gradient_group.average(optimizer.optimizer)
            if not added:  # some optimizers, such as LBFGS, evaluate more than once
                history.add(objective, rows, batch.y, optimizer.optimizer)
                added = True
            return objective

        if waits:
            closure()
            self.accumulated += 1
            return False
        step(closure)
        if self.accumulated:  # attributes of modules are slow to set
            self.accumulated = 0
        return True

    def backpropagate(self, optimizer: LightningOptimizer, batch: Batch) -> tuple[Tensor, Rows]:
        """Accumulate the gradient on a batch; return the objective and the rows."""
        objective, rows = self.objective_and_rows(batch)
        if self.accumulated == 0:
            optimizer.zero_grad()
        if self.trainer.accumulate_grad_batches == 1:
            self.manual_backward(objective)
        else:
            begins, weight = self.accumulated == 0, self.criterion.weight
            factor = self.gradient_group.add(batch.whole, weight, begins)
            self.manual_backward(objective * factor)
        return objective.detach(), rows

    def objective_and_rows(self, batch: Batch) -> tuple[Tensor, Rows]:
        """Return the objective on a batch, and the rows: by default its logits (b, C)."""
        logits = self.logits(batch.x)
        return self.objective(logits, batch.y, batch.whole), logits.detach()

    def objective(self, logits: Tensor, y: Tensor, whole: Tensor | None = None) -> Tensor:
        """Return the objective, a scalar.

        Args:
            logits: (b, C), of the samples of this process.
            y: their class indices (b,), or class probabilities (b, C).
            whole: class indices (B,) of the batch in all processes; None for y. The mean over the
                processes is the objective on that batch.
        """
        W = self.model.linear.weight
        loss_of = partial(cross_entropy, logits)
        return self.criterion.value(loss_of, W, y, whole, logits.dtype)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip gradients, which are unscaled by now, by the trainer's settings."""
        if self.trainer.gradient_clip_val:
            self.configure_gradient_clipping(
                optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
            )

    def _finish_steps(self, history: StepHistory) -> None:
        """Check and add up the objectives of the steps, and log every n-th of them.

        A NaN stops the run here, so that checkpoints are finite.
        """
        objectives = history.finite_objectives(self.parameters())
        self.training_metrics.add_steps(objectives)
        if history.logits:
            self.training_metrics.add_rows(torch.cat(history.logits), torch.cat(history.targets))
        if history.figures:
            self.training_metrics.add_figures(SampleFigures.joined(history.figures))
        every = self.log_every_n_steps
        if every is None:
            return
        values = zip(history.steps, objectives.tolist(), history.rates, strict=True)
        for step, objective, lr in values:
            if step % every == 0:
                self.write_metrics({"train/loss_step": objective, "train/lr": lr}, step)

    # End of an epoch

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation set, which a schedule may watch."""
        super().on_validation_epoch_end()
        self._validated = not self.trainer.sanity_checking

    def on_train_epoch_end(self) -> None:
        """Log the metrics of the training set, and advance a schedule that counts epochs.

        Both precede the callbacks that write checkpoints, so that a checkpoint never lacks metrics
        of the steps before it.
        """
        if self.training_metrics.sums is not None:  # None where a callback skipped the epoch
            metrics = self.training_metrics.result(self.sum_over_processes)
            self.record_metrics({f"train/{name}": float(value) for name, value in metrics.items()})
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            if self._validated:
                scheduler.step(self.trainer.callback_metrics["val/nll"])
        elif isinstance(scheduler, LRScheduler) and self.lr_interval == "epoch":
            scheduler.step()
        self._validated = False
