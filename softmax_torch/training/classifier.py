"""A classifier as a LightningModule: a backbone, and softmax regression on its features.

    features = backbone(x)  (N, D)          z = features W^T + b  (N, C)

The objective is in ``training.training_objective``, the training loop in ``training.lit_base``.
This file adds the options of a backbone: freezing, its own learning rate and weights, mixed images,
and a loss that is fused with the head.

Where C <= D, logits are smaller than features: they are formed once, for loss and metrics. Where
C > D, the loss is fused with the head, and its pass over blocks of logits gives accuracy and NLL
too (``linear_cross_entropy_outputs``). No logits are kept.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from softmax_torch import backbones
from softmax_torch.data.batches import Batch
from softmax_torch.modules import SoftmaxRegression
from softmax_torch.training import compatibility
from softmax_torch.training.epoch_metrics import SampleFigures
from softmax_torch.training.lit_base import LitBase
from softmax_torch.training.mixing import Mixing
from softmax_torch.training.options import (
    BackboneOption,
    OptimizerFactory,
    SchedulerFactory,
    check_backbone,
    check_mixing,
)
from softmax_torch.training.steps import Rows
from softmax_torch.training.training_objective import TrainingObjective
from softmax_torch.training.user_metrics import MetricsOption

__all__ = ["LitClassifier"]


class LitClassifier(LitBase):
    """A net that ends in ``SoftmaxRegression``, trained by gradient descent of any kind.

    Args:
        in_features: number of values in a sample, such as 784 for 28 x 28.
        num_classes: number of classes.
        backbone: the net before the head: "small_cnn", the name of a classifier of torchvision, or
            the import path of a class or function of one's own, such as "my_nets.Net" (see
            ``softmax_torch.backbones``), by which a checkpoint rebuilds it; or a module from inputs
            (N, ...) to features (N, D) with an attribute ``out_features``, D, which must be passed
            again when a checkpoint is loaded; None for the flattened sample.
        backbone_weights: file that the backbone starts from (see ``backbones.load``) in a fit that
            is not resumed; None for random weights.
        freeze_backbone: whether the backbone stays unchanged: no gradients, and evaluation mode,
            which keeps the statistics of BatchNorm and disables dropout.
        unfreeze_at_epoch: first epoch, counted from 0, that trains the backbone too; None for
            none.
        backbone_lr: learning rate of the backbone; None for the one of ``optimizer``. Schedules
            scale both.
        bias: whether the logits have an intercept per class.
        optimizer: function from parameters to an optimizer; any class of ``torch.optim`` (but
            ``LBFGS`` refuses weights with channels last, which named backbones have). None is SGD
            with a learning rate of 0.1 and momentum 0.9.
        lr_scheduler: function from that optimizer to a learning-rate schedule; None for a constant
            rate. ``ReduceLROnPlateau`` watches the validation NLL.
        lr_interval: whether the schedule counts epochs or steps.
        C: inverse strength of the L2 penalty on the weight of the head, as in scikit-learn; None
            for none.
        label_smoothing: share of the target that is spread over all classes, in [0, 1].
        z_loss: zeta >= 0, weight of the squared log-sum-exp of the logits.
        class_weight: one weight a class; "balanced" for n / (num_classes * count), as in
            scikit-learn; None for none.
        mixup: alpha of Mixup, 0 for none (see ``training.mixing``).
        cutmix: alpha of CutMix, 0 for none; with both, each batch gets one of them.
        steps_per_call: optimizer steps in one ``training_step``, which callbacks and the profiler
            see as one batch. It does not change a bit of the result. Where the trainer counts
            batches (``max_steps``, ``min_steps``, ``limit_train_batches``, ``val_check_interval``,
            ``overfit_batches``, ``ModelCheckpoint`` by steps) it is 1. Signals, checkpoints and
            ``max_time`` wait for the end of a call.
        log_every_n_steps: log the objective and the head's learning rate of each n-th step, as
            ``train/loss_step`` and ``train/lr``; None to log epochs alone.
        metrics: torchmetrics to log for ``val`` and ``test`` besides the built-in ones: one, a
            list, or a dict from names to metrics. They get class probabilities (n, C) and class
            indices (n,) of the whole set, and return one number. In a configuration each has a
            ``class_path`` and ``init_args`` (see ``training.user_metrics``).

    Each epoch logs ``train/loss`` (the objective, mean over the steps), ``train/accuracy`` and
    ``train/nll``, of each batch before its step, and ``accuracy``, ``balanced_accuracy``,
    ``macro_f1``, ``weighted_f1``, ``nll`` and ``ece`` (see ``softmax_torch.metrics``) for ``val``
    and ``test``. With ``mixup`` or ``cutmix`` samples have no single class, and ``train`` has its
    loss alone.

    A checkpoint holds everything that the next step depends on: parameters, optimizer, schedule,
    position in the epoch, and of each process the sums of the epoch so far and the random number
    generators. A run is resumed with the same data and the same number of processes.

    Several processes divide the rows of a batch. BatchNorm normalizes by the rows of its own
    process. Its running statistics are those of the first process, which broadcasts them when a
    ``training_step`` or a validation begins; on GPUs ``Trainer(sync_batchnorm=True)`` computes them
    over the rows of all processes.

    C and "balanced" count the training samples: they need a data module with ``class_counts``.

    The attributes ``backbone`` and ``model`` are the two parts of the net; ``frozen`` says whether
    the backbone is frozen now.
    """

    frozen = False

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
        metrics: MetricsOption = None,
    ) -> None:
        criterion = TrainingObjective(num_classes, C, label_smoothing, z_loss, class_weight)
        check_mixing(mixup, cutmix)
        check_backbone(backbone, backbone_weights, freeze_backbone, unfreeze_at_epoch, backbone_lr)
        net, features = nn.Identity() if backbone is None else backbone, in_features
        if isinstance(net, str):
            net = backbones.make(net)
        if backbone is not None:
            features = int(net.out_features)  # type: ignore[arg-type] # checked above
        super().__init__(
            in_features,
            net,
            SoftmaxRegression(features, num_classes, bias),
            criterion,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            steps_per_call=steps_per_call,
            log_every_n_steps=log_every_n_steps,
            metrics=metrics,
        )
        # Checkpoints keep no code, and hold a module's weights anyway.
        module = () if backbone is None or isinstance(backbone, str) else ("backbone",)
        left_out = ["optimizer", "lr_scheduler", "backbone_weights", "metrics", *module]
        self.save_hyperparameters(ignore=left_out, logger=False)
        self.fuses_loss = backbone is not None and num_classes > features
        self.backbone_weights, self.backbone_lr = backbone_weights, backbone_lr
        self.freezes_backbone, self.unfreeze_at_epoch = freeze_backbone, unfreeze_at_epoch
        self._freeze_now()
        self.mixing = Mixing(mixup, cutmix, num_classes) if mixup or cutmix else None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Self:
        """Load as Lightning does; an import path in the checkpoint must be given as ``backbone``.

        Raises:
            ValueError: it is not given: loading would run the code of the module that it names.
        """
        with nullcontext() if "backbone" in options else backbones.imports_refused():
            return super().load_from_checkpoint(checkpoint_path, *args, **options)

    def features(self, x: Tensor) -> Tensor:
        """Return features (N, D) of inputs (N, ...), where N may be 0."""
        if len(x):
            return super().features(x)
        # BatchNorm refuses an empty batch, and other processes wait for a gradient of each weight.
        trained = [p for p in self.backbone.parameters() if p.requires_grad]
        zero = sum(p.sum() for p in trained) * 0.0
        return x.new_zeros(0, self.model.in_features) + zero

    # A frozen backbone

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def _freeze_now(self) -> None:
        """Freeze or unfreeze the backbone for the current epoch."""
        if self.freezes_backbone:
            until = self.unfreeze_at_epoch
            self.frozen = until is None or self.current_epoch < until
            self.backbone.requires_grad_(not self.frozen)
            self.backbone.train(self.training and not self.frozen)

    def setup(self, stage: str) -> None:
        """Prepare as ``LitBase`` does; for a fit, load the backbone's weights too.

        Raises:
            ValueError: see ``LitBase``; or the backbone does not take the samples, is to be
                unfrozen in several processes, or does not fit its weights.
            FileNotFoundError: there is no file of weights.
        """
        super().setup(stage)
        if stage != "fit":
            return
        data = getattr(self.trainer, "datamodule", None)
        name = self.hparams.get("backbone", type(self.backbone).__name__)
        W = self.model.linear.weight
        compatibility.check_pixels(data, self.backbone, name)
        compatibility.check_backbone_input(data, self.backbone, name, W)
        if self.freezes_backbone:
            # Lightning warns of modules that are in evaluation mode when a fit begins.
            self.backbone.train(self.training)
        if self.unfreeze_at_epoch is not None and self.trainer.world_size > 1:
            # Before the first epoch DDP fixes the set of gradients that it averages.
            raise ValueError(
                f"unfreeze_at_epoch: expected one process, got {self.trainer.world_size}"
            )
        if self.backbone_weights is not None and self.trainer.ckpt_path is None:
            backbones.load(self.backbone, self.backbone_weights)
        self.backbone_weights = None  # a second fit starts from the trained weights

    def on_train_start(self) -> None:
        """Freeze the backbone, for a run that is resumed within an epoch; restore a checkpoint."""
        self._freeze_now()
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Unfreeze the backbone in ``unfreeze_at_epoch``."""
        self._freeze_now()

    def on_validation_epoch_start(self) -> None:
        """Broadcast the BatchNorm statistics of the first process, which checkpoints hold."""
        if self.trainer.world_size > 1:
            for buffer in self.backbone.buffers():
                torch.distributed.broadcast(buffer, 0)

    # Two learning rates

    def trained_parameters(self) -> Any:
        """Return the parameters: without a frozen backbone, or with two groups for two rates."""
        if self.freezes_backbone and self.unfreeze_at_epoch is None:
            return self.model.parameters()
        if self.backbone_lr is None:
            return self.parameters()
        backbone = {"params": self.backbone.parameters(), "lr": self.backbone_lr}
        return [{"params": self.model.parameters()}, backbone]

    def make_scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """Return the schedule; ValueError if it sets one rate where there are two."""
        rates = {group["lr"] for group in optimizer.param_groups}
        scheduler = super().make_scheduler(optimizer)
        # Schedules scale ``initial_lr``; during warm-up the current rates may all be 0.
        scaled = {group.get("initial_lr", group["lr"]) for group in optimizer.param_groups}
        if len(rates) > len(scaled):
            raise ValueError(
                "backbone_lr: expected a schedule that scales the rates of an optimizer, got "
                f"{type(scheduler).__name__}, which sets one for all"
            )
        return scheduler

    # Mixed images, and a loss without logits

    def augmented(self, batch: Batch) -> Batch:
        """Return the batch, mixed if ``mixup`` or ``cutmix`` is used."""
        return batch if self.mixing is None else self.mixing(batch)

    def training_metric_names(self) -> tuple[str, ...]:
        """Return the names of the metrics of the training set: mixed images have no class."""
        return super().training_metric_names() if self.mixing is None else ("loss",)

    def objective_and_rows(self, batch: Batch) -> tuple[Tensor, Rows]:
        """Return the objective on a batch, and the rows: None if its images are mixed."""
        if self.fuses_loss:
            return self.fused_objective(self.features(batch.x), batch.y, batch.whole)
        objective, logits = super().objective_and_rows(batch)
        return objective, None if self.mixing is not None else logits

    def fused_objective(
        self, features: Tensor, y: Tensor, whole: Tensor | None = None
    ) -> tuple[Tensor, SampleFigures | None]:
        """Return the objective of features (b, D) without their logits, and the samples' figures.

        Args:
            features: (b, D), of the samples of this process.
            y, whole: as in ``objective``. There are no figures for class probabilities y.
        """
        figures = None

        def loss_of(y: Tensor, **options: Any) -> Tensor:
            nonlocal figures
            if y.is_floating_point():
                return self.model.loss(features, y, **options)
            found = self.model.loss_outputs(
                features, y, outputs=("argmax", "log_prob"), detach=True, **options
            )
            assert found.argmax is not None, "asked for"
            assert found.log_prob is not None, "asked for"
            figures = SampleFigures(found.argmax == y, -found.log_prob)
            return found.loss

        W = self.model.linear.weight
        return self.criterion.value(loss_of, W, y, whole, features.dtype), figures

    def _expected_hyperparameters(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Return sizes and, if model and checkpoint both name it, the backbone."""
        expected = super()._expected_hyperparameters(checkpoint)
        named = isinstance(checkpoint["hyper_parameters"].get("backbone"), str)
        if named and "backbone" in self.hparams:
            expected["backbone"] = self.hparams["backbone"]
        return expected
