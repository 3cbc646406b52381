"""Softmax regression as a LightningModule: no backbone, and therefore a convex objective.

A convex objective allows two shortcuts: the gradient as a formula (``training.closed_form``), and
full-batch solvers that reach the optimum and prove it (``training.convex_training``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from softmax_torch import lightning_compat
from softmax_torch.data.batches import Batch, Steps
from softmax_torch.modules import SoftmaxRegression
from softmax_torch.threads import is_small_fit, one_thread_if
from softmax_torch.training import closed_form
from softmax_torch.training.convex_training import ConvexTraining
from softmax_torch.training.lit_base import LitBase
from softmax_torch.training.options import OptimizerFactory, SchedulerFactory, check_solver
from softmax_torch.training.steps import GradientFunction, Rows, batches_of
from softmax_torch.training.training_objective import TrainingObjective
from softmax_torch.training.user_metrics import MetricsOption

__all__ = ["LitSoftmaxRegression"]


class LitSoftmaxRegression(LitBase):
    """``SoftmaxRegression``, the attribute ``model``, trained by gradient descent or a solver.

    Args:
        in_features: D, number of values in a sample.
        num_classes: number of classes.
        bias: whether the logits have an intercept per class.
        optimizer: function from parameters to an optimizer; any class of ``torch.optim``. Gradient
            descent proper is ``SGD`` with a data module whose ``batch_size`` is None. None is SGD
            with a learning rate of 0.1 and momentum 0.9.
        lr_scheduler: function from that optimizer to a learning-rate schedule; None for a constant
            rate. ``ReduceLROnPlateau`` watches the validation NLL.
        lr_interval: whether the schedule counts epochs or steps.
        C: inverse strength of the L2 penalty on the weight, as in scikit-learn; None for none. With
            a solver it may be a list: each epoch then fits one C to its optimum, beginning with the
            strongest penalty, and the best checkpoint has the C of the least validation NLL.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        class_weight: one weight a class; "balanced" for n / (num_classes * count), as in
            scikit-learn; None for none.
        solver: None for gradient descent by ``optimizer``. Otherwise a full-batch solver, "auto",
            "lbfgs", "newton" or "gradient_descent" (see ``softmax_torch.solvers``), which makes one
            outer iteration an epoch and ends the training at the optimum. It starts from weights
            of 0 and needs a data module whose ``batch_size`` is None.
        tol: the duality gap, relative to the objective, at which a solver ends.
        steps_per_call: optimizer steps in one ``training_step``, which callbacks and the profiler
            see as one batch. It does not change a bit of the result. Where the trainer counts
            batches (``max_steps``, ``min_steps``, ``limit_train_batches``, ``val_check_interval``,
            ``overfit_batches``, ``ModelCheckpoint`` by steps) it is 1. Signals, checkpoints and
            ``max_time`` wait for the end of a call.
        log_every_n_steps: log the objective and the learning rate of each n-th step, as
            ``train/loss_step`` and ``train/lr``; None to log epochs alone.
        metrics: torchmetrics to log for ``val`` and ``test`` besides the built-in ones: one, a
            list, or a dict from names to metrics. They get class probabilities (n, C) and class
            indices (n,) of the whole set, and return one number. In a configuration each has a
            ``class_path`` and ``init_args`` (see ``training.user_metrics``).

    A solver logs ``train/loss`` (the objective), ``train/gap`` (the relative duality gap, within
    the precision of its passes) and ``train/gradient_norm`` in place of the metrics of ``train``;
    with several values of C it logs ``C`` too.

    Logging, checkpoints and several processes: see ``LitClassifier``.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        C: float | list[float] | None = None,
        label_smoothing: float = 0.0,
        class_weight: Literal["balanced"] | list[float] | None = None,
        solver: Literal["auto", "lbfgs", "newton", "gradient_descent"] | None = None,
        tol: float = 1e-6,
        steps_per_call: int = 64,
        log_every_n_steps: int | None = None,
        metrics: MetricsOption = None,
    ) -> None:
        strength = None if isinstance(C, list) else C
        super().__init__(
            in_features,
            nn.Identity(),
            SoftmaxRegression(in_features, num_classes, bias),
            TrainingObjective(num_classes, strength, label_smoothing, 0.0, class_weight),
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            steps_per_call=steps_per_call,
            log_every_n_steps=log_every_n_steps,
            metrics=metrics,
        )
        left_out = ["optimizer", "lr_scheduler", "metrics"]  # checkpoints keep no code
        self.save_hyperparameters(ignore=left_out, logger=False)
        self.convex: ConvexTraining | None = None
        if solver is not None:
            check_solver(solver, tol, optimizer, lr_scheduler, label_smoothing)
            self.convex = ConvexTraining(solver, tol, C)
            self.automatic_optimization = False
            for parameter in self.model.parameters():
                torch.nn.init.zeros_(parameter)
        elif isinstance(C, list):
            raise ValueError(f"C: expected one number without a solver, got a list of {len(C)}")

    def trained_parameters(self) -> Any:
        """Return the parameters of the model."""
        return self.parameters()

    # The gradient as a formula

    def gradient_function(self) -> GradientFunction:
        """Return the function that computes gradients: the formula, where it applies."""
        if not self._has_formula():
            return self.backpropagate
        weight, bias = closed_form.parameters(self.model)
        penalty = self.criterion.penalty

        def formula(optimizer: LightningOptimizer, batch: Batch) -> tuple[Tensor, Rows]:
            try:
                return closed_form.set_gradient(weight, bias, batch.x, batch.y, penalty)
            except (IndexError, RuntimeError):
                return self.backpropagate(optimizer, batch)  # for its error message

        return formula

    def _has_formula(self) -> bool:
        return (
            self.criterion.weight is None
            and self.criterion.label_smoothing == 0
            and self.trainer.accumulate_grad_batches == 1
            and not lightning_compat.overrides("objective", self, LitSoftmaxRegression)
            and lightning_compat.backward_is_plain(self)
            and closed_form.applies(self.model)
        )

    # Training by a solver

    @property
    def certificate(self) -> str | None:
        """Statement of a solver about its solution; None where there is none."""
        return None if self.convex is None else self.convex.certificate

    @property
    def converged(self) -> bool:
        """Whether a solver has reached its tolerance, with each value of C."""
        return self.convex is not None and self.convex.converged

    @property
    def path(self) -> str | None:
        """Statement of a solver about its solutions for several values of C; None likewise."""
        return None if self.convex is None else self.convex.path

    @property
    def reports_last_checkpoint(self) -> bool:
        """Whether the result is the last checkpoint: with one C a solver ends at the optimum."""
        return self.convex is not None and not self.convex.chooses_strength

    @property
    def ending(self) -> str | None:
        """How a solver ended; None before its end and without one."""
        return None if self.convex is None else self.convex.ending(self)

    def fit_summary(self) -> dict[str, str]:
        """Return statements about the result of a solver, by label."""
        return {} if self.convex is None else self.convex.summary()

    def training_metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics of the training set, which a solver has of its own."""
        return super().training_metric_names() if self.convex is None else ConvexTraining.METRICS

    def metric_names(self, validates: bool) -> list[str]:
        """Return the names of the metrics; with several values of C their own, too."""
        several = self.convex is not None and self.convex.chooses_strength
        return [*super().metric_names(validates), *(["C"] if several else [])]

    def check_trainer(self, trainer: Trainer, validates: bool) -> None:
        """Check as ``LitBase`` does, and what a solver expects."""
        super().check_trainer(trainer, validates)
        if self.convex is not None:
            self.convex.check_settings(trainer)
            self.convex.check_validation(validates)

    @property
    def step_name(self) -> str:
        """The noun for a step: an iteration of a solver, or its fit with one of several C."""
        return super().step_name if self.convex is None else self.convex.step_name

    @property
    def strengths(self) -> Sequence[Mapping[str, float]]:
        """The completed fits, if there are several values of C."""
        return () if self.convex is None else self.convex.fits

    def configure_callbacks(self) -> list[Callback]:
        """Prepare as ``LitBase`` does; with a solver, check the trainer's settings instead."""
        if self.convex is None:
            return super().configure_callbacks()
        if self.trainer.state.fn == "fit":
            self.convex.check_settings(self.trainer)
        return []

    def setup(self, stage: str) -> None:
        """Prepare as ``LitBase`` does; ValueError for a solver in several processes too."""
        super().setup(stage)
        if stage == "fit" and self.convex is not None:
            self.convex.check_processes(self)

    def configure_optimizers(self) -> Optimizer | tuple[list[Optimizer], list[LRScheduler]]:
        """Return the optimizer, and the schedule where there is one; or the solver."""
        if self.convex is None:
            return super().configure_optimizers()
        return self.convex.optimizer(self.model.linear)

    def on_train_start(self) -> None:
        """Start as ``LitBase`` does; ValueError if there is no validation to choose C by."""
        super().on_train_start()
        if self.convex is not None:
            batch_size = getattr(self.trainer.train_dataloader, "batch_size", None)
            self.on_one_thread = is_small_fit(batch_size, self.in_features, self.model.num_classes)
            self.convex.check_validation(bool(self.trainer.enable_validation))

    def training_step(self, batch: Steps | tuple[Tensor, Tensor]) -> None:
        """Make the optimizer steps of some batches (x, y), or one step of the solver."""
        if self.convex is None:
            super().training_step(batch)
        else:
            with one_thread_if(self.on_one_thread):
                metrics = self.convex.step(self, [*batches_of(batch)], self.criterion.weight)
            self.record_metrics(metrics)

    def record_metrics(self, metrics: dict[str, float]) -> None:
        """Pass metrics on as ``LitEvaluation`` does; a path keeps those of its validation too."""
        if self.convex is not None and self.trainer.validating and self.trainer.state.fn == "fit":
            self.convex.keep_validation(self, metrics)
        super().record_metrics(metrics)

    def on_train_epoch_end(self) -> None:
        """End the epoch as ``LitBase`` does, unless a solver has logged its own metrics."""
        if self.convex is None:
            super().on_train_epoch_end()

    def on_train_end(self) -> None:
        """Conclude the fit of a solver."""
        if self.convex is not None:
            self.convex.conclude(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the certificate of the solution, if there is one."""
        super().on_save_checkpoint(checkpoint)
        if self.certificate is not None:
            checkpoint["certificate"] = self.certificate

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Load as ``LitBase`` does; outside of a fit, take the certificate of the solution too."""
        super().on_load_checkpoint(checkpoint)
        trainer = lightning_compat.trainer_of(self)
        if self.convex is not None and (trainer is None or trainer.state.fn != "fit"):
            self.convex.certificate = checkpoint.get("certificate", self.convex.certificate)
