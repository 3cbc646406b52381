"""Checks of the options of training, alone and together, before there is any data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "BackboneOption",
    "OptimizerFactory",
    "SchedulerFactory",
    "check_backbone",
    "check_counts",
    "check_mixing",
    "check_objective",
    "check_solver",
    "check_strengths",
]

OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]
if TYPE_CHECKING:
    BackboneOption = str | nn.Module | None
else:  # the command line's help would list every subclass of nn.Module
    BackboneOption = str | None
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def check_counts(steps_per_call: int, log_every_n_steps: int | None) -> None:
    """Raise ValueError unless both are at least 1, or None."""
    for name, value in (
        ("steps_per_call", steps_per_call),
        ("log_every_n_steps", log_every_n_steps),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a number of at least 1, got {value}")


def check_objective(
    num_classes: int,
    C: float | None,
    label_smoothing: float,
    class_weight: str | list[float] | None,
    z_loss: float,
) -> None:
    """Raise ValueError unless the options of the objective are in their ranges."""
    if C is not None and not C > 0:
        raise ValueError(f"C: expected a number above 0 (the smaller, the stronger), got {C}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    if not (z_loss >= 0 and math.isfinite(z_loss)):
        raise ValueError(f"z_loss: expected a number >= 0, got {z_loss}")
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
    for w in class_weight:
        if not 0 <= w < math.inf:
            raise ValueError(f"class_weight: expected finite numbers >= 0, got {w}")
    if not any(class_weight):
        raise ValueError("class_weight: expected a number above 0 for some class, got 0 for all")


def check_mixing(mixup: float, cutmix: float) -> None:
    """Raise ValueError unless both are parameters of a Beta distribution, or 0."""
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if not (alpha >= 0 and math.isfinite(alpha)):
            raise ValueError(f"{name}: expected a number >= 0, got {alpha}")


def check_backbone(
    backbone: BackboneOption,
    backbone_weights: str | None,
    freeze_backbone: bool,
    unfreeze_at_epoch: int | None,
    backbone_lr: float | None,
) -> None:
    """Raise an error unless the options of a backbone fit together, before it is built.

    Raises:
        TypeError: the backbone is not a name, module or None, or lacks ``out_features``.
        ValueError: an option requires another one, or is out of range.
    """
    if backbone is None:
        given = {
            "backbone_weights": backbone_weights,
            "freeze_backbone": freeze_backbone or None,
            "unfreeze_at_epoch": unfreeze_at_epoch,
            "backbone_lr": backbone_lr,
        }
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}: expected a backbone beside it, got {value} and none")
    elif isinstance(backbone, nn.Module):
        if not isinstance(getattr(backbone, "out_features", None), int):
            raise TypeError(
                "backbone: expected a module with an attribute out_features, the number of its "
                f"features, got {type(backbone).__name__} without one"
            )
    elif not isinstance(backbone, str):
        raise TypeError(f"backbone: expected a name, module or None, got {backbone!r}")
    if unfreeze_at_epoch is not None:
        if not freeze_backbone:
            raise ValueError("unfreeze_at_epoch: expected freeze_backbone beside it, got none")
        if unfreeze_at_epoch < 1:
            raise ValueError(f"unfreeze_at_epoch: expected at least 1, got {unfreeze_at_epoch}")
    if backbone_lr is not None:
        if not (backbone_lr > 0 and math.isfinite(backbone_lr)):
            raise ValueError(f"backbone_lr: expected a number above 0, got {backbone_lr}")
        if freeze_backbone and unfreeze_at_epoch is None:
            raise ValueError(
                f"backbone_lr: expected a backbone that is trained, got {backbone_lr} for one that "
                "stays frozen"
            )


def check_strengths(Cs: list[float]) -> None:
    """Raise ValueError unless these are different finite numbers above 0."""
    if not Cs or not all(0 < C < math.inf for C in Cs) or len(set(Cs)) < len(Cs):
        raise ValueError(f"C: expected different finite numbers above 0, got {Cs}")


def check_solver(
    solver: str,
    tol: float,
    optimizer: OptimizerFactory | None,
    lr_scheduler: SchedulerFactory | None,
    label_smoothing: float,
) -> None:
    """Raise ValueError unless the solver exists and the other options are allowed with one."""
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
