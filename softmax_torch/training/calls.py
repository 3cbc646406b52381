"""A call of ``training_step``, which makes many optimizer steps: how many, and what they leave."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

__all__ = ["DIVERGED", "Call", "backward_is_plain", "counts_batches", "recount"]

DIVERGED = "the optimization diverged; try a smaller learning rate"


class Call:
    """What the steps of a call leave behind: tensors on the device, which nobody waits for.

    Attributes:
        step: optimizer steps that were made in all, before and in this call.
        steps: for each batch the step that it is for, counted from 1.
        objectives, logits, targets, rates: of each batch, the last being the learning rate.
        count: what is done with that of which figures are made, and targets, in place of keeping
            them as logits; None where they are kept.
    """

    def __init__(self, step: int, count: Callable[[Tensor, Tensor], None] | None = None) -> None:
        self.step, self.count = step, count
        self.steps: list[int] = []
        self.objectives: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.rates: list[float] = []

    def add(
        self, objective: Tensor, logits: Tensor, targets: Tensor, optimizer: LightningOptimizer
    ) -> None:
        """Note a batch."""
        self.steps.append(self.step + 1)
        self.objectives.append(objective.detach())
        if self.count is None:
            self.logits.append(logits.detach())
            self.targets.append(targets)
        else:
            self.count(logits.detach(), targets)
        self.rates.append(optimizer.param_groups[0]["lr"])

    def finite_objectives(self, module: LightningModule) -> Tensor:
        """The objectives (K,), if they and the parameters are finite: the one look at the device.

        Raises:
            FloatingPointError: something is NaN or infinite, with the step.
        """
        objectives = torch.stack(self.objectives)
        finite = [objectives.isfinite().all(), *(p.isfinite().all() for p in module.parameters())]
        if torch.stack(finite).all():
            return objectives
        bad = (~objectives.isfinite()).nonzero().flatten().tolist()
        at, got = (bad[0], objectives[bad[0]].item()) if bad else (-1, "infinite parameters")
        raise FloatingPointError(
            f"train/loss: expected a finite number, got {got} in step {self.steps[at]}: {DIVERGED}"
        )


def counts_batches(trainer: Trainer) -> bool:
    """Whether the trainer was told of a number of batches, which are steps to whoever said it."""
    return bool(
        trainer.max_steps != -1
        or trainer.limit_train_batches != 1.0
        or trainer.val_check_interval != 1.0
        or trainer.overfit_batches != 0  # type: ignore[attr-defined] # set by a connector
    )


def recount(checkpoint: dict[str, Any], steps: int) -> None:
    """Let Lightning go on with so many steps in a call within an epoch that began with others.

    By the calls before the checkpoint it knows the last one: too early, and batches would be lost;
    too late, and the epoch would not be validated.
    """
    loop = checkpoint["loops"]["fit_loop"]
    calls = loop["epoch_loop.batch_progress"]["current"]
    for loader in loop["state_dict"].get("combined_loader", []):
        if "batches" in loader:  # one of ours
            n = loader["batches"]
            before = math.ceil(n / steps) - math.ceil((n - loader["position"]) / steps)
            more = before - calls["ready"]
            calls.update({name: count + more for name, count in calls.items()})


def backward_is_plain(trainer: Trainer) -> bool:
    """Whether Lightning's part in a backward pass is to call it, and no hook wants to know."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # set by a connector
    hooked = [(trainer.lightning_module, LightningModule), *((c, Callback) for c in callbacks)]
    return (
        type(trainer.precision_plugin) is Precision
        and isinstance(trainer.strategy, SingleDeviceStrategy)
        and not any(
            is_overridden(hook, of, base)
            for hook in ("on_before_backward", "on_after_backward")
            for of, base in hooked
        )
    )
