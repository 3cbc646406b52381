"""Options of training that cannot be used, alone or together: said before there are data."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "OptimizerFactory",
    "SchedulerFactory",
    "check_counts",
    "check_options",
    "check_solver",
]

OptimizerFactory = Callable[[Iterable[Parameter]], Optimizer]
SchedulerFactory = Callable[[Optimizer], LRScheduler]


def check_counts(steps_per_call: int, log_every_n_steps: int | None) -> None:
    """Whether they can be counted to; ValueError."""
    for name, value in (
        ("steps_per_call", steps_per_call),
        ("log_every_n_steps", log_every_n_steps),
    ):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a number of at least 1, got {value}")


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
