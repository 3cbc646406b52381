"""Softmax regression as a LightningModule: a classifier with no backbone, and convex therefore.

What that allows beyond ``training.classifier``: the gradient as a formula, and full-batch solvers
that go to the optimum and prove it.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from softmax_torch.data.batches import Batch, Steps
from softmax_torch.solvers import ConvergenceWarning
from softmax_torch.training import closed_form
from softmax_torch.training.calls import backward_is_plain
from softmax_torch.training.classifier import Gradient, LitClassifier, batches_of
from softmax_torch.training.convex import ConvexSolver
from softmax_torch.training.options import (
    OptimizerFactory,
    SchedulerFactory,
    check_solver,
    check_strengths,
)
from softmax_torch.training.strengths import ConvexPath

__all__ = ["LitSoftmaxRegression"]


class LitSoftmaxRegression(LitClassifier):
    """Trains ``SoftmaxRegression`` (attribute ``model``) by gradient descent of any kind.

    Args:
        in_features: D, the numbers of a sample.
        num_classes: number of classes.
        bias: whether the logits have an intercept per class.
        optimizer: makes an optimizer of parameters; any class of ``torch.optim``. Gradient descent
            proper is ``SGD`` with a data module whose ``batch_size`` is None. None is SGD with a
            learning rate of 0.1 and momentum 0.9.
        lr_scheduler, lr_interval, label_smoothing, class_weight: see ``LitClassifier``.
        steps_per_call, log_every_n_steps: see ``LitClassifier``.
        C: inverse strength of the L2 penalty on the weight, as in scikit-learn; None for none. With
            a solver it may be a list of them: an epoch is then the fit of one to its optimum, from
            the strongest penalty on, and the best checkpoint has the C of the least validation NLL.
        solver: None for gradient descent by ``optimizer``. Otherwise a full-batch solver, "auto",
            "lbfgs", "newton" or "gradient_descent" (see ``softmax_torch.solvers``), which makes one
            outer iteration an epoch and ends the training at the optimum. It starts from weights
            of 0 and wants a data module whose ``batch_size`` is None.
        tol: the duality gap relative to the objective at which a solver ends.

    A solver logs ``train/loss`` (the objective), ``train/gap`` (the relative duality gap, as far as
    the precision of its passes can tell) and ``train/gradient_norm`` in place of the figures of
    ``train``; where there are several, ``C`` too.
    """

    unsaved = (
        *LitClassifier.unsaved,
        *("backbone", "freeze_backbone", "unfreeze_at_epoch", "backbone_lr"),
        *("mixup", "cutmix", "z_loss"),
    )

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
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            backbone=None,
            bias=bias,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            C=None if isinstance(C, list) else C,
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            steps_per_call=steps_per_call,
            log_every_n_steps=log_every_n_steps,
        )
        if isinstance(C, list):
            check_strengths(C, solver)
            self.C = C
        if solver is not None:
            check_solver(solver, tol, optimizer, lr_scheduler, label_smoothing)
            for parameter in self.model.parameters():
                torch.nn.init.zeros_(parameter)
        self.solver, self.tol = solver, tol
        self.automatic_optimization = solver is None

    def setup(self, stage: str) -> None:
        """As of any classifier; and a solver has one process to itself.

        Raises:
            ValueError: see ``LitClassifier``; or there are several processes and a solver.
        """
        super().setup(stage)
        if stage == "fit" and self.solver is not None and self.trainer.world_size > 1:
            raise ValueError(
                f"solver: expected one process, got {self.trainer.world_size}; "
                "softmax_torch.solvers.fit(..., distributed=True) takes several"
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of any classifier; and what a solver can say of this solution."""
        super().on_save_checkpoint(checkpoint)
        if self.certificate is not None:
            checkpoint["certificate"] = self.certificate

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """As of any classifier; where it is evaluated, the certificate is that of its solution."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None or self.trainer.state.fn != "fit":
            self.certificate = checkpoint.get("certificate", self.certificate)

    def on_train_start(self) -> None:
        """As of any classifier; and several values of C want to be chosen from."""
        super().on_train_start()
        if isinstance(self.C, list) and not self.trainer.enable_validation:
            raise ValueError("C: expected a validation set to choose one of several by, got none")

    def configure_callbacks(self) -> list[Callback]:
        """None; a solver does not clip or accumulate, and Lightning shall refuse to."""
        callbacks = super().configure_callbacks()
        if self.solver is not None:
            self.automatic_optimization = False
        return callbacks

    def configure_optimizers(self) -> Optimizer | tuple[list[Optimizer], list[LRScheduler]]:
        """The optimizer, and the schedule where there is one; or the solver."""
        if self.solver is not None:
            if isinstance(self.C, list):
                return ConvexPath(self.model.linear, self.solver, self.tol, self.C)
            C = math.inf if self.C is None else self.C
            return ConvexSolver(self.model.linear, self.solver, self.tol, C)
        return super().configure_optimizers()

    def training_step(self, batch: Steps | tuple[Tensor, Tensor]) -> None:
        """Optimizer steps on some batches, or on one (x, y); or one step of the solver."""
        if self.solver is None:
            super().training_step(batch)
        else:
            self._outer_iteration(*batches_of(batch))

    def on_train_epoch_end(self) -> None:
        """The figures of the training set; a solver has logged its own."""
        if self.solver is None:
            super().on_train_epoch_end()

    def _gradient(self) -> Gradient:
        return self._formula if self._has_formula() else super()._gradient()

    def on_train_end(self) -> None:
        """Note what a solver can say of its result, and warn if it is not what was asked for."""
        solver = self._convex_solver()
        if solver is None or not solver.bound:
            return
        self.certificate = solver.certificate()
        if isinstance(solver, ConvexPath):
            self.path = solver.summary()
        if complaint := solver.complaint():
            warnings.warn(
                complaint.replace("max_iter", "trainer.max_epochs"),
                ConvergenceWarning,
                stacklevel=2,
            )

    def _convex_solver(self) -> ConvexSolver | ConvexPath | None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        return optimizer if isinstance(optimizer, ConvexSolver | ConvexPath) else None

    def _outer_iteration(self, *batches: Batch) -> None:
        """One step of the solver on all training samples, which are one batch."""
        solver, optimizer = self._convex_solver(), self.optimizers()
        assert solver is not None
        assert isinstance(optimizer, LightningOptimizer)
        if len(batches) * self.trainer.num_training_batches != 1:
            raise ValueError(
                "solver: expected all training samples in one batch (data.batch_size null), got "
                f"{max(len(batches), self.trainer.num_training_batches)} batches"
            )
        [(x, y, _)] = batches
        solver.bind(x.flatten(1), y, None if self.weight is None else self.weight.double()[y])
        optimizer.step()
        self._record(solver.figures())
        if isinstance(solver, ConvexPath):
            self.certificate = solver.certificate()
        if solver.ended:
            self.trainer.should_stop = True

    def _formula(self, optimizer: LightningOptimizer, batch: Batch) -> tuple[Tensor, Tensor]:
        """The same where the gradient is a formula."""
        try:
            return closed_form.set_gradient(self.model, batch.x, batch.y, self.penalty)
        except (IndexError, RuntimeError):
            return self._autograd(optimizer, batch)  # which says what is wrong

    def _has_formula(self) -> bool:
        return (
            self.weight is None
            and self.label_smoothing == 0
            and self.trainer.accumulate_grad_batches == 1
            and not is_overridden("objective", self, LitSoftmaxRegression)
            and backward_is_plain(self.trainer)
            and closed_form.applies(self.model)
        )
