"""The arguments of Lightning's Trainer: the user's, with this program's logger, callbacks and bar.

Arguments that Lightning would take and that would have no effect here are refused by name. So are
those that Lightning refuses, in one line.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar, Timer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer import Trainer

from softmax_torch import lightning_compat
from softmax_torch.cli.console import causes
from softmax_torch.data import TensorDataModule
from softmax_torch.training.checkpoint_io import atomic_checkpoint_io
from softmax_torch.training.progress_bar import EpochBar
from softmax_torch.training.trainer_checks import check_processes

__all__ = [
    "as_list",
    "check_arguments",
    "check_limits",
    "check_trainer",
    "evaluation_callbacks",
    "lightning_refusals",
    "missing_packages",
    "share_processes",
    "the_timer",
    "with_bar",
]

WITHOUT_EFFECT = {
    "barebones": (False, "a run keeps its log and its checkpoints"),
    "default_root_dir": (None, "--runs names the folder of all runs"),
    "model_registry": (None, "a run keeps its checkpoints in its own directory"),
}
"""Arguments that would have no effect: the value that they must have, and the reason."""

NEEDED_SETS = {
    "validate": ("val",),
    "calibrate": ("val",),
    "test": ("test",),
    "report": ("val", "test"),
    "predict": ("predict",),
}
"""The sets that a command evaluates, as in ``limit_val_batches``."""


def check_arguments(trainer: dict[str, Any], data: TensorDataModule) -> None:
    """Raise ValueError for arguments that would have no effect, or cannot be met here.

    Args:
        trainer: the arguments by name.
        data: the data module.
    """
    for name, (expected, reason) in WITHOUT_EFFECT.items():
        if trainer[name] != expected:
            raise ValueError(
                f"trainer.{name}: expected {_yaml(expected)}, as {reason}, got {trainer[name]}"
            )
    divides = type(data).train_dataloader is TensorDataModule.train_dataloader
    if divides and not trainer["use_distributed_sampler"]:
        raise ValueError(
            "trainer.use_distributed_sampler: expected true, as the data modules divide the "
            "samples among processes themselves, got false"
        )
    _check_accelerator(trainer["accelerator"])


def check_limits(trainer: dict[str, Any], command: str) -> None:
    """Raise ValueError if a set that a command evaluates is limited to nothing."""
    for name in NEEDED_SETS.get(command, ()):
        limit = f"limit_{name}_batches"
        if trainer[limit] == 0:
            raise ValueError(
                f"trainer.{limit}: expected a number above 0 for {command}, got 0; "
                f"--trainer.{limit} 1.0 takes the whole set"
            )


def check_trainer(trainer: Trainer) -> None:
    """Raise ValueError unless the trainer's processes share the work and report their results."""
    check_processes(trainer)
    atomic_checkpoint_io(trainer)  # an unusable plugin is refused
    if lightning_compat.spawns_processes(trainer):
        raise ValueError(
            "trainer.strategy: expected ddp, whose processes run this program, got one that "
            "starts its processes by spawn or fork"
        )


def share_processes(trainer: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments, with those of DDP if torchrun started several processes.

    Explicit arguments are left as they are: one that does not fit is refused later.
    """
    launcher, processes, local = lightning_compat.launched_processes()
    implied = trainer["strategy"] == "auto" and trainer["devices"] in (1, "1", "auto")
    if launcher != "torchrun" or processes == 1 or not implied or trainer["num_nodes"] != 1:
        return trainer
    return trainer | {"strategy": "ddp", "devices": local, "num_nodes": processes // local}


def the_timer(callbacks: list[Callback], max_time: Any) -> tuple[Timer, list[Callback]]:
    """Return the timer of a fit, and the callbacks with it: the user's, or one with the limit.

    Raises:
        ValueError: there is a timer of the user beside ``max_time``, or there are several.
    """
    timers = [callback for callback in callbacks if isinstance(callback, Timer)]
    if len(timers) + (max_time is not None) > 1:
        raise ValueError(
            "trainer.max_time: expected one limit of time, got several: max_time, or Timers among "
            "the callbacks"
        )
    if timers:
        return timers[0], callbacks
    timer = Timer(max_time)
    return timer, [*callbacks, timer]


def with_bar(callbacks: list[Callback], enabled: bool | None) -> list[Callback]:
    """Return the callbacks with a progress bar, unless there is one or none is wanted."""
    has_bar = any(isinstance(callback, ProgressBar) for callback in callbacks)
    return callbacks if has_bar or enabled is False else [*callbacks, EpochBar()]


def evaluation_callbacks(callbacks: list[Callback]) -> list[Callback]:
    """Return the callbacks without those that write checkpoints, which only a fit does.

    Lightning would refuse them where checkpoints are disabled.
    """
    return [callback for callback in callbacks if not isinstance(callback, Checkpoint)]


def as_list(value: Any) -> list[Any]:
    """Return what an argument holds that may be one object, several, or none (None or a bool)."""
    if value is None or isinstance(value, bool):
        return []
    single = isinstance(value, Logger | Callback | str) or not isinstance(value, Iterable)
    return [value] if single else list(value)


@contextmanager
def lightning_refusals() -> Iterator[None]:
    """Raise ValueError, with one line, for settings that Lightning refuses within the context.

    Lightning has one exception for wrong settings, and raises errors of Python too. The latter
    count if they are raised in a file of Lightning.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, RuntimeError, ImportError) as error:
        if not isinstance(error, MisconfigurationException) and not _is_of_lightning(error):
            raise
        message = " ".join(str(error).split())
        raise ValueError(
            f"trainer: expected settings that Lightning accepts, got: {message}"
        ) from error


@contextmanager
def missing_packages() -> Iterator[None]:
    """Raise ImportError with one line if an object of the settings needs a package that is missing.

    jsonargparse wraps what a constructor raises into the reasons of a union of types.
    """
    try:
        yield
    except ValueError as error:
        missing = next((cause for cause in causes(error) if isinstance(cause, ImportError)), None)
        if missing is None:
            raise
        message = str(missing).partition("\n")[0]
        raise ImportError(
            f"trainer: expected the package of each setting, got: {message}"
        ) from error


def _is_of_lightning(error: Exception) -> bool:
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("lightning.")


def _check_accelerator(name: Any) -> None:
    """Raise ValueError for the name of an accelerator that this machine lacks."""
    if not isinstance(name, str):
        return
    found = {
        known
        for known in AcceleratorRegistry.available_accelerators()
        if AcceleratorRegistry[known]["accelerator"].is_available()
    }
    names = ["auto", *sorted(found), *(["gpu"] if found & {"cuda", "mps"} else [])]
    if name.lower() not in names:
        raise ValueError(
            f"trainer.accelerator: expected one of {', '.join(names)} on this machine, got {name}"
        )


def _yaml(value: bool | None) -> str:
    return {None: "null", False: "false", True: "true"}[value]
