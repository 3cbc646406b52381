"""A classifier as a LightningModule: a backbone, and softmax regression on its features.

    features = backbone(x)  (N, D)          z = features W^T + b  (N, C)

    objective = sum_i (w_{y_i} loss_i + zeta lse_i^2) / sum_i w_{y_i}
                + ||W||^2 / (2 C sum_i w_{y_i})

over the n training samples, with class weights w (1 if there are none), z-loss zeta, and the
strength C of the L2 penalty as in scikit-learn's LogisticRegression: the smaller, the stronger. It
is on the weight of the head alone: the bias is not in it, and a backbone has the optimizer's weight
decay. What it is on a batch is in ``training.objective``; what has to fit together before a run
begins, in ``training.agreement``.

Where C <= D logits are smaller than features: they are formed once, for the loss and the figures.
Where C > D the loss is fused with the head (``linear_cross_entropy``), and accuracy and NLL are
counted in blocks of rows: one more product of the head, with no logits kept.

One ``training_step`` makes many optimizer steps. Lightning pays for each call of it some 300 us,
for hooks, progress and profiling, where a step of 784 -> 10 at batch 128 takes 200. Optimization is
manual in Lightning's sense, but for what it leaves undone then: the schedule, gradient clipping and
accumulation that the trainer was asked for are done here. Nothing is read from the device but once
a call, when the objectives of its steps are looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from softmax_torch import backbones
from softmax_torch.calibration import Calibration
from softmax_torch.data.batches import Batch, Steps
from softmax_torch.functional import cross_entropy
from softmax_torch.modules import SoftmaxRegression
from softmax_torch.preprocessing import Preprocessing
from softmax_torch.training import agreement, randomness
from softmax_torch.training.calls import DIVERGED, Call, counts_batches, recount
from softmax_torch.training.checkpoint import FORMAT
from softmax_torch.training.epoch_metrics import EvaluationMetrics, TrainingMetrics
from softmax_torch.training.mixing import Mixing
from softmax_torch.training.objective import mean_loss, terms_of
from softmax_torch.training.options import (
    BackboneOption,
    OptimizerFactory,
    SchedulerFactory,
    check_backbone,
    check_counts,
    check_mixing,
    check_options,
)

__all__ = ["Gradient", "LitClassifier", "batches_of"]

CALL_LOGITS = 1 << 24
"""Logits that the steps of a call may leave behind, 64 MiB: where a step has that many by itself, a
call costs nothing beside it."""

BLOCK = 1 << 20
"""Logits that exist at once where figures are counted in blocks, 4 MiB."""

Gradient = Callable[[LightningOptimizer, Batch], tuple[Tensor, Tensor]]
"""Puts the gradient on a batch where the optimizer looks for it: the objective, and that of which
figures are made: logits, or features where the loss is fused."""


def batches_of(batch: Steps | tuple[Tensor, Tensor]) -> Steps | list[Batch]:
    """The batches of a call: many, or one pair (x, y) of a loader of others."""
    return batch if isinstance(batch, Steps) else [Batch(*batch, batch[1])]


class LitClassifier(LightningModule):
    """Trains a net that ends in ``SoftmaxRegression``, by gradient descent of any kind.

    Args:
        in_features: the numbers of a sample, such as 784 for 28 x 28.
        num_classes: number of classes.
        backbone: the net before the head: "small_cnn" or the name of a classifier of torchvision
            (see ``softmax_torch.backbones``), by which a checkpoint rebuilds it; or a module from
            inputs (N, ...) to features (N, D) with an attribute ``out_features``, D, which a
            checkpoint has to be given again; None for the sample itself, flattened.
        backbone_weights: file that the backbone starts from (see ``backbones.load``) in a fit that
            is not resumed; None for random weights.
        freeze_backbone: whether the backbone stays as it is: no gradients, and evaluation mode,
            which keeps the statistics of BatchNorm and drops nothing.
        unfreeze_at_epoch: epoch, counted from 0, from which on it is trained too; None for never.
        backbone_lr: learning rate of the backbone; None for the one of ``optimizer``. Schedules
            scale both.
        bias: whether the logits have an intercept per class.
        optimizer: makes an optimizer of parameters; any class of ``torch.optim`` that takes them
            (``LBFGS`` takes no weights with channels last, as a backbone by its name has). None is
            SGD with a learning rate of 0.1 and momentum 0.9.
        lr_scheduler: makes a learning-rate schedule of that optimizer, or None for a constant rate.
            ``ReduceLROnPlateau`` watches the validation NLL.
        lr_interval: whether the schedule counts epochs or steps.
        C: inverse strength of the L2 penalty on the weight of the head, as in scikit-learn; None
            for none.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        z_loss: zeta >= 0, weight of the squared log-sum-exp of the logits.
        class_weight: one weight a class; "balanced" for n / (num_classes * count), as in
            scikit-learn; None for none.
        mixup: alpha of Mixup, 0 for none (see ``training.mixing``).
        cutmix: alpha of CutMix, 0 for none; with both, each batch gets one of them.
        steps_per_call: optimizer steps in one ``training_step``, which is what callbacks and the
            profiler see as a batch. The result is the same to the last bit. Where the trainer
            counts batches (``max_steps``, ``limit_train_batches``, ``val_check_interval``,
            ``overfit_batches``) it is one. Signals and checkpoints wait for the end of a call.
        log_every_n_steps: log the objective and the learning rate of the head of every so many
            steps, as ``train/loss_step`` and ``train/lr``; None for epochs alone.

    Logged once an epoch: ``train/loss`` (the objective, mean over the steps), ``accuracy`` and
    ``nll`` for ``train``, of each batch before its step and ``accuracy``, ``nll`` and ``ece`` (see
    ``softmax_torch.metrics``) for ``val`` and ``test``.

    Mixed images are of no class: with ``mixup`` or ``cutmix`` ``train`` has its loss alone.

    A checkpoint holds everything that the next step depends on: parameters, optimizer, schedule,
    place in the epoch, sums of the epoch so far, random number generators, of each process. It fits
    runs with the same data and as many processes.

    Several processes share out the rows of a batch. BatchNorm normalizes by those of its own
    process, and its statistics are those of the first, which hands them out as a call or a
    validation begins; on GPUs ``Trainer(sync_batchnorm=True)`` takes them over all.

    C and "balanced" count the training samples: they need a data module with ``class_counts``.

    Attributes:
        backbone: from inputs to features.
        model: the head, ``SoftmaxRegression``.
        frozen: whether the backbone is, at present.
        calibrated: whether evaluation and prediction use the ``calibration`` of the checkpoint,
            which must have one then; it is no part of what is trained.
        solver: the convex solver that trains in the place of an optimizer, where there is one.
        certificate: what such a solver can say of its result, in words.
        path: the same of its results for several values of C.
    """

    calibrated = False
    calibration: Calibration | None = None
    solver: str | None = None
    certificate: str | None = None
    path: str | None = None
    frozen = False
    unsaved: tuple[str, ...] = ("optimizer", "lr_scheduler", "backbone_weights")
    """Arguments that are no hyper-parameters of a checkpoint: code, and what is in it anyway."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        backbone: BackboneOption = "small_cnn",
        backbone_weights: str | None = None,
        freeze_backbone: bool = False,
        unfreeze_at_epoch: int | None = None,
        backbone_lr: float | None = None,
        bias: bool = True,
        optimizer: OptimizerFactory | None = None,
        lr_scheduler: SchedulerFactory | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        C: float | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        class_weight: Literal["balanced"] | list[float] | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        steps_per_call: int = 8,
        log_every_n_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_options(num_classes, C, label_smoothing, class_weight, z_loss)
        check_counts(steps_per_call, log_every_n_steps)
        check_mixing(mixup, cutmix)
        check_backbone(backbone, backbone_weights, freeze_backbone, unfreeze_at_epoch, backbone_lr)
        module = () if backbone is None or isinstance(backbone, str) else ("backbone",)
        self.save_hyperparameters(ignore=[*self.unsaved, *module], logger=False)
        self.in_features = in_features
        self.backbone: nn.Module = nn.Identity()
        features = in_features
        if backbone is not None:
            self.backbone = backbones.make(backbone) if isinstance(backbone, str) else backbone
            features = int(self.backbone.out_features)  # type: ignore[arg-type] # checked above
        self.model = SoftmaxRegression(features, num_classes, bias)
        self.fuses = backbone is not None and num_classes > features
        self.backbone_weights, self.backbone_lr = backbone_weights, backbone_lr
        self.freezes, self.unfreeze_at_epoch = freeze_backbone, unfreeze_at_epoch
        self._freeze_now()
        self.mixing = Mixing(mixup, cutmix, num_classes) if mixup or cutmix else None
        self.optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.C: float | list[float] | None = C  # several of them are for a solver
        self.label_smoothing, self.class_weight = label_smoothing, class_weight
        self.z_loss = z_loss
        self.most_steps, self.steps_per_call = steps_per_call, 1
        self.log_every_n_steps = log_every_n_steps
        self.accumulated = 0  # batches whose gradients wait for a step
        self.sums = TrainingMetrics()
        self._restored: dict[str, Any] | None = None
        self._validated = False
        self.val_evaluation = EvaluationMetrics()
        self.test_evaluation = EvaluationMetrics()
        self.penalty = 0.0  # factor of ||W||^2
        self.weight: Tensor | None
        self.register_buffer("weight", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities (N, C) of inputs (N, ...)."""
        log_p: Tensor = self.model(self.features(x))
        return log_p

    def features(self, x: Tensor) -> Tensor:
        """Features (N, D) of inputs (N, ...), of which there may be none."""
        if len(x):
            features: Tensor = self.backbone(x)
            return features
        # BatchNorm takes no empty batch, and other processes wait for a gradient of everything.
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        nothing = sum(p.sum() for p in trained) * 0.0
        return x.new_zeros(0, self.model.in_features) + nothing

    def logits(self, x: Tensor) -> Tensor:
        """Logits (N, C) of inputs (N, ...)."""
        return self.model.logits(self.features(x))

    def train(self, mode: bool = True) -> Self:
        """Training mode, or evaluation mode, in which a frozen backbone stays."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _freeze_now(self) -> None:
        """Freeze or thaw the backbone, as it is to be in the current epoch."""
        if self.freezes:
            until = self.unfreeze_at_epoch
            self.frozen = until is None or self.current_epoch < until
            self.backbone.requires_grad_(not self.frozen)
            self.backbone.train(self.training and not self.frozen)

    def setup(self, stage: str) -> None:
        """Compare the model with the data, and take from the data what the objective needs.

        Raises:
            ValueError: the data has other classes or features than the model, or samples that the
                backbone does not take, or is not at hand where the objective needs to count it.
        """
        data = getattr(self.trainer, "datamodule", None)
        agreement.check_data(data, self._sizes())
        if stage == "fit":
            self.automatic_optimization = False
            self.steps_per_call = 1 if counts_batches(self.trainer) else self._most_steps(data)
            weight, self.penalty = terms_of(data, self.C, self.class_weight)
            self.weight = None if weight is None else weight.to(self.device, torch.float32)
            name = self.hparams.get("backbone", type(self.backbone).__name__)
            agreement.check_samples(data, self.backbone, name, self.model.linear.weight)
            if self.freezes:  # Lightning warns of modules in evaluation mode at ``on_train_start``
                self.backbone.train(self.training)
            if self.unfreeze_at_epoch is not None and self.trainer.world_size > 1:
                # What DDP averages is settled before the first epoch.
                raise ValueError(
                    f"unfreeze_at_epoch: expected one process, got {self.trainer.world_size}"
                )
            if self.backbone_weights is not None and self.trainer.ckpt_path is None:
                backbones.load(self.backbone, self.backbone_weights)
            self.backbone_weights = None  # what comes later is better

    def _sizes(self) -> dict[str, int]:
        """Sizes that data and checkpoints have too."""
        return {"num_classes": self.model.num_classes, "in_features": self.in_features}

    def configure_callbacks(self) -> list[Callback]:
        """None; the hook comes before Lightning looks whether it can do what it was asked for.

        Where optimization is manual it refuses to clip and to accumulate gradients, which is done
        here from ``setup`` on.
        """
        if self.trainer.state.fn == "fit":
            self.automatic_optimization = True
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
        expected: dict[str, Any] = {**self._sizes()}
        named = isinstance(checkpoint["hyper_parameters"].get("backbone"), str)
        if named and "backbone" in self.hparams:
            expected["backbone"] = self.hparams["backbone"]
        agreement.check_checkpoint(checkpoint, expected, self._preprocessing())
        if self._trainer is None or self.trainer.state.fn != "fit":
            self.calibration = agreement.calibration_in(checkpoint, self.calibrated)
            return
        trainer = self.trainer
        self._restored = agreement.state_in(checkpoint, trainer.global_rank, trainer.world_size)
        recount(checkpoint, self.steps_per_call)

    def _preprocessing(self) -> Preprocessing | None:
        """That of the data, where they say."""
        data = None if self._trainer is None else getattr(self.trainer, "datamodule", None)
        found: Preprocessing | None = getattr(data, "preprocessing", None)
        return found

    def on_train_start(self) -> None:
        """Restore what a checkpoint held, last of all: anything before may draw random numbers."""
        self.accumulated = 0
        self._freeze_now()  # the epoch may have begun before a resumption
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
        if self._restored is not None:
            sums = self._restored["sums"]
            self.sums.sums = None if sums is None else sums.to(self.device)
            randomness.restore(self._restored["random"])
            self._restored = None

    def on_train_epoch_start(self) -> None:
        """Thaw the backbone, if it is time."""
        self._freeze_now()

    def _most_steps(self, data: Any) -> int:
        """Optimizer steps in a call, whose logits are kept until its end."""
        batch_size = getattr(data, "batch_size", None) or 1
        return max(1, min(self.most_steps, CALL_LOGITS // (batch_size * self.model.num_classes)))

    def configure_optimizers(self) -> Optimizer | tuple[list[Optimizer], list[LRScheduler]]:
        """The optimizer, and the schedule where there is one."""
        parameters: Any = self.parameters()
        if self.freezes and self.unfreeze_at_epoch is None:
            parameters = self.model.parameters()
        elif self.backbone_lr is not None:
            backbone = {"params": self.backbone.parameters(), "lr": self.backbone_lr}
            parameters = [{"params": self.model.parameters()}, backbone]
        optimizer = self.optimizer(parameters)
        if self.lr_scheduler is None:
            return optimizer
        rates = {group["lr"] for group in optimizer.param_groups}
        scheduler = self.lr_scheduler(optimizer)
        # What it scales; the rates now may all be 0, where it warms up.
        scaled = {group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}
        if len(rates) > len(scaled):
            raise ValueError(
                "backbone_lr: expected a schedule that scales the rates of an optimizer, got "
                f"{type(scheduler).__name__}, which sets one for all"
            )
        return [optimizer], [scheduler]

    @property
    def wants_the_last(self) -> bool:
        """Whether the last checkpoint of a run is the one that is meant, in place of the best.

        The least validation NLL is that of the best epoch, or value of C; a solver with one C is
        asked for the optimum.
        """
        return self.solver is not None and not isinstance(self.C, list)

    def training_step(self, batch: Steps | tuple[Tensor, Tensor]) -> None:
        """Optimizer steps on some batches, or on one (x, y)."""
        batches = batches_of(batch)
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        each_step = scheduler if self.lr_interval == "step" else None
        gradient = self._gradient()
        mixing = self.mixing
        call = Call(self.global_step, self._count if self.fuses or mixing is not None else None)
        for i, one in enumerate(batches):
            last = self.trainer.is_last_batch and i + 1 == len(batches)
            if mixing is not None:
                one = mixing(one)
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
        gradient: Gradient,
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

    def _gradient(self) -> Gradient:
        """How gradients come about in a call."""
        return self._autograd

    def _autograd(self, optimizer: LightningOptimizer, batch: Batch) -> tuple[Tensor, Tensor]:
        """Objective and logits; the gradient is added to those that wait for a step."""
        rows = self.features(batch.x)
        if self.fuses:
            objective = self.fused_objective(rows, batch.y, batch.whole)
        else:
            rows = self.model.logits(rows)
            objective = self.objective(rows, batch.y, batch.whole)
        if self.accumulated == 0:
            optimizer.zero_grad()
        share = self.trainer.accumulate_grad_batches
        self.manual_backward(objective if share == 1 else objective / share)
        return objective, rows

    def objective(self, logits: Tensor, y: Tensor, whole: Tensor | None = None) -> Tensor:
        """The objective on samples with these logits (b, C) and classes y (b,).

        Where they are those of one process, ``whole`` are the classes of the batch in all of them;
        what the processes return has the objective on the batch as its mean. Of mixed images y are
        class probabilities (b, C), and ``whole`` their classes before.
        """
        return self._objective(partial(cross_entropy, logits), logits, y, whole)

    def fused_objective(self, features: Tensor, y: Tensor, whole: Tensor | None = None) -> Tensor:
        """The same of features (b, D), without logits."""
        return self._objective(partial(self.model.loss, features), features, y, whole)

    def _objective(
        self, loss_of: Callable[..., Tensor], rows: Tensor, y: Tensor, whole: Tensor | None
    ) -> Tensor:
        weight = None if self.weight is None else self.weight.to(rows.dtype)
        processes = 1 if self._trainer is None else self.trainer.world_size
        options = {"label_smoothing": self.label_smoothing, "z_loss": self.z_loss}
        loss = mean_loss(loss_of, y, whole, weight, processes, **options)
        if self.penalty:
            loss = loss + self.penalty * self.model.linear.weight.square().sum()
        return loss

    @torch.no_grad()
    def _count(self, rows: Tensor, y: Tensor) -> None:
        """Accuracy and NLL of features (b, D), where their logits are not formed for the loss."""
        if self.mixing is not None:
            return
        size = max(1, BLOCK // self.model.num_classes)
        for part, targets in zip(torch.split(rows, size), torch.split(y, size), strict=True):
            self.sums.add_rows(self.model.logits(part), targets)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip gradients as the trainer was asked to; they are unscaled by now."""
        if self.trainer.gradient_clip_val:
            self.configure_gradient_clipping(
                optimizer, self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
            )

    def _conclude(self, call: Call) -> None:
        """Look at the objectives of a call's steps, add them up, and log those that are wanted.

        What is written to disk later is finite therefore.
        """
        objectives = call.finite_objectives(self)
        self.sums.add_steps(objectives)
        if call.logits:
            self.sums.add_rows(torch.cat(call.logits), torch.cat(call.targets))
        every = self.log_every_n_steps
        if every is None:
            return
        for step, objective, lr in zip(call.steps, objectives.tolist(), call.rates, strict=True):
            if step % every == 0:
                self._write({"train/loss_step": objective, "train/lr": lr}, step)

    def evaluated_logits(self, x: Tensor) -> Tensor:
        """Logits (B, C) as figures and predictions see them: calibrated where that was asked."""
        logits = self.logits(x)
        if not self.calibrated or self.trainer.state.fn == "fit":
            return logits
        assert self.calibration is not None, "a checkpoint without one was refused"
        return self.calibration(logits)

    def on_validation_epoch_start(self) -> None:
        """Let all processes evaluate what goes into the checkpoint: statistics of the first."""
        if self.trainer.world_size > 1:
            for buffer in self.backbone.buffers():
                torch.distributed.broadcast(buffer, 0)

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
        if self.sums.sums is not None:  # a callback may have skipped the epoch
            figures = self.sums.result(self._sum_over_processes)
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

    def _record_evaluation(self, prefix: str, evaluation: EvaluationMetrics) -> None:
        """Log the figures of an evaluation; FloatingPointError if the NLL is NaN or infinite."""
        results = evaluation.result(self._sum_over_processes)
        figures = {f"{prefix}/{name}": float(x) for name, x in results.items()}
        if not math.isfinite(figures[f"{prefix}/nll"]):
            raise FloatingPointError(
                f"{prefix}/nll: expected a finite number, got {figures[f'{prefix}/nll']} in epoch "
                f"{self.current_epoch}: {DIVERGED}"
            )
        self._record(figures)

    def _sum_over_processes(self, x: Tensor) -> Tensor:
        total: Tensor = self.trainer.strategy.reduce(x, reduce_op="sum")
        return total

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
