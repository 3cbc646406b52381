"""Softmax regression as a LightningModule: objective, optimizer, figures of each epoch.

    objective = sum_i w_{y_i} loss_i / sum_i w_{y_i}  +  ||W||^2 / (2 C sum_i w_{y_i})

over the n training samples, with class weights w (1 if there are none) and the strength C of the L2
penalty as in scikit-learn's LogisticRegression: the smaller, the stronger. The bias is not in it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import (
    LRSchedulerConfigType,
    OptimizerLRScheduler,
    OptimizerLRSchedulerConfig,
)
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from softmax_torch.functional import cross_entropy
from softmax_torch.modules import SoftmaxRegression
from softmax_torch.solvers import ConvergenceWarning
from softmax_torch.training.convex import ConvexSolver
from softmax_torch.training.evaluation import Evaluation

__all__ = ["LitSoftmaxRegression"]

OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


class LitSoftmaxRegression(LightningModule):
    """Trains ``SoftmaxRegression`` (attribute ``model``) by gradient descent of any kind.

    Args:
        in_features: D, the numbers of a sample.
        num_classes: number of classes.
        bias: whether the logits have an intercept per class.
        optimizer: makes an optimizer of parameters; any class of ``torch.optim``. Gradient descent
            proper is ``SGD`` with a data module whose ``batch_size`` is None. None is SGD with a
            learning rate of 0.1 and momentum 0.9.
        lr_scheduler: makes a learning-rate schedule of that optimizer, or None for a constant rate.
            ``ReduceLROnPlateau`` watches the validation NLL.
        lr_interval: whether the schedule counts epochs or steps.
        C: inverse strength of the L2 penalty on the weight, as in scikit-learn; None for none.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        class_weight: one weight a class; "balanced" for n / (num_classes * count), as in
            scikit-learn; None for none.
        solver: None for gradient descent by ``optimizer``. Otherwise a full-batch solver, "auto",
            "lbfgs", "newton" or "gradient_descent" (see ``softmax_torch.solvers``), which makes one
            outer iteration an epoch and ends the training at the optimum. It starts from weights
            of 0 and wants a data module whose ``batch_size`` is None.
        tol: the duality gap relative to the objective at which a solver ends.

    A solver logs ``train/loss`` (the objective), ``train/gap`` (the relative duality gap, as far as
    the precision of its passes can tell) and ``train/gradient_norm`` in place of the figures of
    ``train``.

    Logged once an epoch: ``train/loss`` (the objective, mean over the steps), and ``accuracy``,
    ``nll`` and ``ece`` (see ``training.evaluation``) for ``train``, ``val`` and ``test``. Those of
    ``train`` are of each batch before its step.

    C and "balanced" count the training samples: they need a data module with ``class_counts``.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        C: float | None = None,
        label_smoothing: float = 0.0,
        class_weight: Literal["balanced"] | list[float] | None = None,
        solver: Literal["auto", "lbfgs", "newton", "gradient_descent"] | None = None,
        tol: float = 1e-6,
    ) -> None:
        super().__init__()
        check_options(num_classes, C, label_smoothing, class_weight)
        if solver is not None:
            check_solver(solver, tol, optimizer, lr_scheduler, label_smoothing)
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler"], logger=False)
        self.model = SoftmaxRegression(in_features, num_classes, bias)
        self.optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.C, self.label_smoothing, self.class_weight = C, label_smoothing, class_weight
        self.solver, self.tol = solver, tol
        self.certificate: str | None = None
        self.automatic_optimization = solver is None
        if solver is not None:
            for parameter in self.model.parameters():
                torch.nn.init.zeros_(parameter)
        self.train_evaluation = Evaluation(num_classes)
        self.val_evaluation = Evaluation(num_classes)
        self.test_evaluation = Evaluation(num_classes)
        self.losses: list[Tensor] = []
        self.penalty = 0.0  # factor of ||W||^2
        self.weight: Tensor | None
        self.register_buffer("weight", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, C) of inputs (N, ...)."""
        log_p: Tensor = self.model(x)
        return log_p

    def setup(self, stage: str) -> None:
        """Compare the model with the data, and take from the data what the objective needs.

        Raises:
            ValueError: the data has other classes or features than the model, or is not at hand
                where the objective needs to count it.
        """
        data = getattr(self.trainer, "datamodule", None)
        for name in ("num_classes", "in_features"):
            expected, got = getattr(self.model, name), getattr(data, name, None)
            if got is not None and got != expected:
                raise ValueError(
                    f"{name}: the model has {expected}, {type(data).__name__} has {got}"
                )
        if stage == "fit":
            self._set_objective(getattr(data, "class_counts", None))
            if self.solver is not None and self.trainer.world_size > 1:
                raise ValueError(
                    f"solver: expected one process, got {self.trainer.world_size}; "
                    "softmax_torch.solvers.fit(..., distributed=True) takes several"
                )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare the sizes of a checkpoint with those of the model; ValueError if they differ."""
        saved = checkpoint["hyper_parameters"]
        for name in ("num_classes", "in_features"):
            expected = getattr(self.model, name)
            if saved.get(name, expected) != expected:
                raise ValueError(
                    f"{name}: the model for this data has {expected}, the checkpoint {saved[name]}"
                )

    def _set_objective(self, counts: Tensor | None) -> None:
        """Class weights and the factor of the penalty, from the count of each class."""
        if counts is None and (self.C is not None or self.class_weight == "balanced"):
            raise ValueError(
                'C and class_weight="balanced": expected a data module with class_counts, the '
                f"training samples of each class, got {getattr(self.trainer, 'datamodule', None)}"
            )
        weight = None
        if self.class_weight == "balanced":
            assert counts is not None, "checked above"
            if not counts.all():
                raise ValueError(
                    'class_weight="balanced": expected training samples of every class, got none '
                    f"of {(counts == 0).nonzero().flatten().tolist()}"
                )
            weight = counts.sum() / (len(counts) * counts)
        elif self.class_weight is not None:
            weight = torch.tensor(self.class_weight)
        if self.C is not None:
            assert counts is not None, "checked above"
            total = counts.sum() if weight is None else (weight * counts).sum()
            self.penalty = 1 / (2 * self.C * float(total))
        self.weight = None if weight is None else weight.to(self.device, torch.float32)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer, and the schedule where there is one; or the solver."""
        if self.solver is not None:
            return ConvexSolver(self.model.linear, self.solver, self.tol)
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        config = LRSchedulerConfigType(scheduler=scheduler, interval=self.lr_interval)
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = "val/nll"
        return OptimizerLRSchedulerConfig(optimizer=optimizer, lr_scheduler=config)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor | None:
        """The objective on a batch; the mean is over the batch's own class weights."""
        if self.solver is not None:
            self._outer_iteration(*batch)
            return None
        x, y = batch
        logits = self.model.logits(x)
        self.train_evaluation.add(logits, y)
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        loss = cross_entropy(logits, y, weight, label_smoothing=self.label_smoothing)
        if self.penalty:
            loss = loss + self.penalty * self.model.linear.weight.square().sum()
        self.losses.append(loss.detach())
        return loss

    def on_train_end(self) -> None:
        """Note what a solver can say of its result, and warn if it is not what was asked for."""
        solver = self._convex_solver()
        if solver is None or solver.run is None:
            return
        certificate = solver.run.conclude()
        self.certificate = (
            f"objective {certificate.value:.8f}, {solver.run.goal.reached(certificate)}"
        )
        if not solver.run.converged:
            warnings.warn(
                solver.run.complaint().replace("max_iter", "trainer.max_epochs"),
                ConvergenceWarning,
                stacklevel=2,
            )

    def _convex_solver(self) -> ConvexSolver | None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        return optimizer if isinstance(optimizer, ConvexSolver) else None

    def _outer_iteration(self, x: Tensor, y: Tensor) -> None:
        """One step of the solver on all training samples, which are this batch."""
        solver, optimizer = self._convex_solver(), self.optimizers()
        assert solver is not None
        assert isinstance(optimizer, LightningOptimizer)
        if self.trainer.num_training_batches != 1:
            raise ValueError(
                "solver: expected all training samples in one batch (data.batch_size null), got "
                f"{self.trainer.num_training_batches} batches"
            )
        weight = None if self.weight is None else self.weight.double()[y]
        solver.bind(x.flatten(1), y, weight, math.inf if self.C is None else self.C)
        optimizer.step()
        now = solver.progress()
        self.log("train/loss", now.objective)
        self.log("train/gradient_norm", now.gradient_norm)
        if now.duality_gap is not None:
            self.log("train/gap", now.duality_gap / now.objective)
        assert solver.run is not None
        if solver.run.ended:
            self.trainer.should_stop = True

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Logits of a validation batch."""
        x, y = batch
        self.val_evaluation.add(self.model.logits(x), y)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Logits of a test batch."""
        x, y = batch
        self.test_evaluation.add(self.model.logits(x), y)

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Class probabilities (B, C) in float32, whatever the precision of the matmul."""
        x, _ = batch
        return self.model.logits(x).float().softmax(-1)

    def on_train_epoch_end(self) -> None:
        """The figures of the training set and the mean objective."""
        if self.solver is not None:
            return
        self.log("train/loss", torch.stack(self.losses).mean(), sync_dist=True)
        self.losses = []
        self._log_figures("train", self.train_evaluation)

    def on_validation_epoch_end(self) -> None:
        """The figures of the validation set."""
        self._log_figures("val", self.val_evaluation)

    def on_test_epoch_end(self) -> None:
        """The figures of the test set."""
        self._log_figures("test", self.test_evaluation)

    def _log_figures(self, prefix: str, evaluation: Evaluation) -> None:
        """Log the figures of an epoch.

        Raises:
            FloatingPointError: the NLL is NaN or infinite. Validation comes before a checkpoint is
                written, so that the last one is good.
        """
        figures = evaluation.result()
        if not figures["nll"].isfinite():
            raise FloatingPointError(
                f"{prefix}/nll: expected a finite number, got {figures['nll'].item()} in epoch "
                f"{self.current_epoch}: the optimization diverged; try a smaller learning rate"
            )
        self.log_dict({f"{prefix}/{name}": value for name, value in figures.items()})


def check_options(
    num_classes: int,
    C: float | None,
    label_smoothing: float,
    class_weight: str | list[float] | None,
) -> None:
    """What can be said of the objective before there are data; ValueError."""
    if C is not None and not C > 0:
        raise ValueError(f"C: expected a number above 0 (the smaller, the stronger), got {C}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    if class_weight is None or class_weight == "balanced":
        return
    if isinstance(class_weight, str):
        raise ValueError(
            f'class_weight: expected "balanced", numbers or None, got {class_weight!r}'
        )
    if len(class_weight) != num_classes:
        raise ValueError(
            f"class_weight: expected one number for each of the {num_classes} classes, got "
            f"{len(class_weight)}"
        )
    if not min(class_weight) >= 0:
        raise ValueError(f"class_weight: expected numbers >= 0, got {min(class_weight)}")


def check_solver(
    solver: str,
    tol: float,
    optimizer: OptimizerFactory | None,
    lr_scheduler: SchedulerFactory | None,
    label_smoothing: float,
) -> None:
    """What does not go together with a solver; ValueError."""
    names = ("auto", "lbfgs", "newton", "gradient_descent")
    if solver not in names:
        raise ValueError(f"solver: expected {', '.join(names)} or None, got {solver!r}")
    if not tol > 0:
        raise ValueError(f"tol: expected a number above 0, got {tol}")
    if optimizer is not None or lr_scheduler is not None:
        raise ValueError(
            "solver: expected neither an optimizer nor a learning-rate schedule beside it, got "
            f"{'an optimizer' if optimizer is not None else 'a schedule'}"
        )
    if label_smoothing > 0:
        raise ValueError(f"solver: expected label_smoothing=0, got {label_smoothing}")
