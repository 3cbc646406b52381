"""Softmax regression as a LightningModule: objective, optimizer, figures of each epoch.

    objective = sum_i w_{y_i} loss_i / sum_i w_{y_i}  +  ||W||^2 / (2 C sum_i w_{y_i})

over the n training samples, with class weights w (1 if there are none) and the strength C of the L2
penalty as in scikit-learn's LogisticRegression: the smaller, the stronger. The bias is not in it.

One ``training_step`` makes many optimizer steps. Lightning pays for each call of it some 300 us,
for hooks, progress and profiling, where a step of 784 -> 10 at batch 128 takes 200. Optimization is
manual in Lightning's sense, but for what it leaves undone then: the schedule, gradient clipping and
accumulation that the trainer was asked for are done here. Nothing is read from the device but once
a call, when the objectives of its steps are looked at.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from softmax_torch.calibration import Calibration
from softmax_torch.data.batches import Batch, Steps
from softmax_torch.functional import cross_entropy
from softmax_torch.modules import SoftmaxRegression
from softmax_torch.preprocessing import Preprocessing, same
from softmax_torch.solvers import ConvergenceWarning
from softmax_torch.training import closed_form, randomness
from softmax_torch.training.calls import DIVERGED, Call, backward_is_plain, counts_batches
from softmax_torch.training.checkpoint import FORMAT
from softmax_torch.training.convex import ConvexSolver
from softmax_torch.training.evaluation import Evaluation
from softmax_torch.training.options import (
    OptimizerFactory,
    SchedulerFactory,
    check_counts,
    check_options,
    check_solver,
)
from softmax_torch.training.sums import EpochSums

__all__ = ["LitSoftmaxRegression"]

CALL_LOGITS = 1 << 24
"""Logits that the steps of a call may leave behind, 64 MiB: where a step has that many by itself, a
call costs nothing beside it."""


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
        steps_per_call: optimizer steps in one ``training_step``, which is what callbacks and the
            profiler see as a batch. The result is the same to the last bit. Where the trainer
            counts batches (``max_steps``, ``limit_train_batches``, ``val_check_interval``,
            ``overfit_batches``) it is one.
        log_every_n_steps: log the objective and the learning rate of every so many steps, as
            ``train/loss_step`` and ``train/lr``; None for epochs alone.
        solver: None for gradient descent by ``optimizer``. Otherwise a full-batch solver, "auto",
            "lbfgs", "newton" or "gradient_descent" (see ``softmax_torch.solvers``), which makes one
            outer iteration an epoch and ends the training at the optimum. It starts from weights
            of 0 and wants a data module whose ``batch_size`` is None.
        tol: the duality gap relative to the objective at which a solver ends.

    A solver logs ``train/loss`` (the objective), ``train/gap`` (the relative duality gap, as far as
    the precision of its passes can tell) and ``train/gradient_norm`` in place of the figures of
    ``train``.

    Logged once an epoch: ``train/loss`` (the objective, mean over the steps), ``accuracy`` and
    ``nll`` for ``train``, of each batch before its step, and ``accuracy``, ``nll`` and ``ece`` (see
    ``training.evaluation``) for ``val`` and ``test``.

    A checkpoint holds everything that the next step depends on: parameters, optimizer, schedule,
    place in the epoch, sums of the epoch so far, random number generators, of each process. It fits
    runs with the same data and as many processes.

    C and "balanced" count the training samples: they need a data module with ``class_counts``.

    Attributes:
        calibrated: whether evaluation and prediction use the ``calibration`` of the checkpoint,
            which must have one then; it is no part of what is trained.
    """

    calibrated = False
    calibration: Calibration | None = None

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
        steps_per_call: int = 64,
        log_every_n_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_options(num_classes, C, label_smoothing, class_weight)
        check_counts(steps_per_call, log_every_n_steps)
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
        self.most_steps, self.steps_per_call = steps_per_call, 1
        self.log_every_n_steps = log_every_n_steps
        self.accumulated = 0  # batches whose gradients wait for a step
        self.sums = EpochSums()
        self._restored: dict[str, Any] | None = None
        self._validated = False
        self.val_evaluation = Evaluation(num_classes)
        self.test_evaluation = Evaluation(num_classes)
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
            self.automatic_optimization = False
            self.steps_per_call = 1 if counts_batches(self.trainer) else self._most_steps(data)
            self._set_objective(getattr(data, "class_counts", None))
            if self.solver is not None and self.trainer.world_size > 1:
                raise ValueError(
                    f"solver: expected one process, got {self.trainer.world_size}; "
                    "softmax_torch.solvers.fit(..., distributed=True) takes several"
                )

    def configure_callbacks(self) -> list[Callback]:
        """None; the hook comes before Lightning looks whether it can do what it was asked for.

        Where optimization is manual it refuses to clip and to accumulate gradients, which is done
        here from ``setup`` on.
        """
        if self.trainer.state.fn == "fit":
            self.automatic_optimization = self.solver is None
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning leaves out: sums of the epoch and random number generators."""
        mine = {"sums": self.sums.sums, "random": randomness.state()}
        processes: list[Any] = [mine]
        if self._trainer is not None and self.trainer.world_size > 1:
            processes = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(processes, mine)
        checkpoint["softmax_torch"] = {"format": FORMAT, "processes": processes}
        preprocessing = self._preprocessing()
        if preprocessing is not None:
            checkpoint["preprocessing"] = preprocessing.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Compare a checkpoint with the model and the run; ValueError if they do not fit."""
        saved = checkpoint["hyper_parameters"]
        for name in ("num_classes", "in_features"):
            expected = getattr(self.model, name)
            if saved.get(name, expected) != expected:
                raise ValueError(
                    f"{name}: the model for this data has {expected}, the checkpoint {saved[name]}"
                )
        found, now = checkpoint.get("preprocessing"), self._preprocessing()
        if found is not None and now is not None and not same(found, now.state_dict()):
            raise ValueError(
                "data: expected the preprocessing that the checkpoint was trained with, got "
                "another one: the training data or their settings have changed since"
            )
        if self._trainer is None or self.trainer.state.fn != "fit":
            self._load_calibration(checkpoint)
            return
        state = checkpoint.get("softmax_torch", {"format": None, "processes": []})
        if state["format"] != FORMAT:
            raise ValueError(
                f"checkpoint: expected one of format {FORMAT} to go on from, got {state['format']}"
            )
        if len(state["processes"]) != self.trainer.world_size:
            raise ValueError(
                f"checkpoint: expected one of {self.trainer.world_size} processes, as there are "
                f"now, got one of {len(state['processes'])}"
            )
        self._restored = state["processes"][self.trainer.global_rank]

    def _preprocessing(self) -> Preprocessing | None:
        """That of the data, where they say."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        found: Preprocessing | None = getattr(data, "preprocessing", None)
        return found

    def _load_calibration(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("calibration")
        if found is None and self.calibrated:
            raise ValueError(
                "calibrated: expected a checkpoint with a calibration, got one without; the "
                "command calibrate puts one into it"
            )
        self.calibration = None if found is None else Calibration.from_state_dict(found)

    def on_train_start(self) -> None:
        """Restore what a checkpoint held, last of all: anything before may draw random numbers."""
        self.accumulated = 0
        if self.scheduler_watches and not self.trainer.enable_validation:
            raise ValueError(
                "lr_scheduler: expected a validation set for ReduceLROnPlateau to watch, got none"
            )
        if self._restored is not None:
            sums = self._restored["sums"]
            self.sums.sums = None if sums is None else sums.to(self.device)
            randomness.restore(self._restored["random"])
            self._restored = None

    def _most_steps(self, data: Any) -> int:
        """Optimizer steps in a call, whose logits are kept until its end."""
        batch_size = getattr(data, "batch_size", None) or 1
        return max(1, min(self.most_steps, CALL_LOGITS // (batch_size * self.model.num_classes)))

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

    def configure_optimizers(self) -> Optimizer | tuple[list[Optimizer], list[LRScheduler]]:
        """The optimizer, and the schedule where there is one; or the solver."""
        if self.solver is not None:
            return ConvexSolver(self.model.linear, self.solver, self.tol)
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return [optimizer], [self.lr_scheduler(optimizer)]

    @property
    def scheduler_watches(self) -> bool:
        """Whether the schedule depends on how validation goes."""
        return isinstance(self.lr_schedulers(), ReduceLROnPlateau)

    def training_step(self, batch: Steps | tuple[Tensor, Tensor]) -> None:
        """Optimizer steps on some batches, or on one (x, y)."""
        batches = batch if isinstance(batch, Steps) else [Batch(*batch, batch[1])]
        if self.solver is not None:
            self._outer_iteration(*batches)
            return
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        each_step = scheduler if self.lr_interval == "step" and not self.scheduler_watches else None
        gradient = self._formula if self._has_formula() else self._autograd
        call = Call(self.global_step)
        for i, one in enumerate(batches):
            last = self.trainer.is_last_batch and i + 1 == len(batches)
            if not self._step(optimizer, one, gradient, last, call):
                continue
            call.step += 1
            if isinstance(each_step, LRScheduler):
                each_step.step()
        self._conclude(call)

    def _step(
        self,
        optimizer: LightningOptimizer,
        batch: Batch,
        gradient: Callable[[LightningOptimizer, Batch], tuple[Tensor, Tensor]],
        last: bool,
        call: Call,
    ) -> bool:
        """The gradient on a batch, and a step if it is time for one: whether it was."""
        noted = False

        def closure() -> Tensor:
            nonlocal noted
            objective, logits = gradient(optimizer, batch)
            if not noted:  # some optimizers evaluate more than once
                call.add(objective, logits, batch.y, optimizer)
                noted = True
            return objective

        if self.accumulated + 1 < self.trainer.accumulate_grad_batches and not last:
            closure()
            self.accumulated += 1
            return False
        optimizer.step(closure=closure)
        if self.accumulated:  # attributes of modules are slow to set
            self.accumulated = 0
        return True

    def _autograd(self, optimizer: LightningOptimizer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Objective and logits; the gradient is added to those that wait for a step."""
        logits = self.model.logits(batch.x)
        objective = self.objective(logits, batch.y, batch.whole)
        if self.accumulated == 0:
            optimizer.zero_grad()
        share = self.trainer.accumulate_grad_batches
        self.manual_backward(objective if share == 1 else objective / share)
        return objective, logits

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

    def objective(self, logits: Tensor, y: Tensor, whole: Tensor | None = None) -> Tensor:
        """The objective on samples with these logits (b, C) and classes y (b,).

        Where they are those of one process, ``whole`` are the classes of the batch in all of them;
        what the processes return has the objective on the batch as its mean.
        """
        weight = None if self.weight is None else self.weight.to(logits.dtype)
        if whole is None or whole is y:
            loss = cross_entropy(logits, y, weight, label_smoothing=self.label_smoothing)
        else:
            total = len(whole) if weight is None else weight[whole].sum()
            loss = cross_entropy(
                logits, y, weight, reduction="sum", label_smoothing=self.label_smoothing
            )
            loss = loss * (self.trainer.world_size / total)
        if self.penalty:
            loss = loss + self.penalty * self.model.linear.weight.square().sum()
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip gradients as the trainer was asked to; they are unscaled by now."""
        if self.trainer.gradient_clip_val and self.solver is None:
            self.configure_gradient_clipping(
                optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
            )

    def _conclude(self, call: Call) -> None:
        """Look at the objectives of a call's steps, add them up, and log those that are wanted.

        What is written to disk later is finite therefore.
        """
        objectives = call.finite_objectives(self)
        self.sums.add(objectives, torch.cat(call.logits), torch.cat(call.targets))
        every = self.log_every_n_steps
        if every is None:
            return
        for step, objective, lr in zip(call.steps, objectives.tolist(), call.rates, strict=True):
            if step % every == 0:
                self._write({"train/loss_step": objective, "train/lr": lr}, step)

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
        weight = None if self.weight is None else self.weight.double()[y]
        solver.bind(x.flatten(1), y, weight, math.inf if self.C is None else self.C)
        optimizer.step()
        now = solver.progress()
        figures = {"train/loss": now.objective, "train/gradient_norm": now.gradient_norm}
        if now.duality_gap is not None:
            figures["train/gap"] = now.duality_gap / now.objective
        self._record(figures)
        assert solver.run is not None
        if solver.run.ended:
            self.trainer.should_stop = True

    def evaluated_logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) as figures and predictions see them: calibrated where that was asked."""
        logits = self.model.logits(x)
        if not self.calibrated or self.trainer.state.fn == "fit":
            return logits
        assert self.calibration is not None, "a checkpoint without one was refused"
        return self.calibration(logits)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Logits of a validation batch."""
        x, y = batch
        self.val_evaluation.add(self.evaluated_logits(x), y)

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        """Logits of a test batch."""
        x, y = batch
        self.test_evaluation.add(self.evaluated_logits(x), y)

    def predict_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Class probabilities (B, C) in float32, whatever the precision of the matmul."""
        x, _ = batch
        return self.evaluated_logits(x).float().softmax(-1)

    def on_train_epoch_end(self) -> None:
        """The figures of the training set, and the schedule where it counts epochs.

        Both come before callbacks that write checkpoints, so that a run that goes on from one has
        logged what was before it and nothing else.
        """
        if self.solver is not None:
            return
        if self.sums.sums is not None:  # a callback may have skipped the epoch
            reduce = partial(self.trainer.strategy.reduce, reduce_op="sum")
            figures = self.sums.result(reduce)
            self._record({f"train/{name}": float(value) for name, value in figures.items()})
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            if self._validated:
                scheduler.step(self.trainer.callback_metrics["val/nll"])
        elif isinstance(scheduler, LRScheduler) and self.lr_interval == "epoch":
            scheduler.step()
        self._validated = False

    def on_validation_epoch_end(self) -> None:
        """The figures of the validation set."""
        self._record_evaluation("val", self.val_evaluation)
        self._validated = True

    def on_test_epoch_end(self) -> None:
        """The figures of the test set."""
        self._record_evaluation("test", self.test_evaluation)

    def _record_evaluation(self, prefix: str, evaluation: Evaluation) -> None:
        """Log the figures of an evaluation; FloatingPointError if the NLL is NaN or infinite."""
        figures = {f"{prefix}/{name}": float(x) for name, x in evaluation.result().items()}
        if not math.isfinite(figures[f"{prefix}/nll"]):
            raise FloatingPointError(
                f"{prefix}/nll: expected a finite number, got {figures[f'{prefix}/nll']} in epoch "
                f"{self.current_epoch}: {DIVERGED}"
            )
        self._record(figures)

    def _record(self, figures: dict[str, float]) -> None:
        """Show figures to callbacks, and in a fit write them to the loggers at once."""
        if self.trainer.state.fn == "fit":
            self.log_dict(figures, logger=False)
            if not self.trainer.sanity_checking:
                self._write(figures, self.global_step)
            return
        # What is returned of an evaluation is what Lightning logs; it takes the step from there.
        self.log_dict(figures | ({"step": float(self.global_step)} if self.loggers else {}))

    def _write(self, figures: dict[str, float], step: int) -> None:
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **figures}, step)
            logger.save()
