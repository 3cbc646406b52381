"""Every place where this package depends on internals of Lightning, with the reason.

Lightning documents hooks and attributes, and keeps them from one minor version to the next. The
functions here depend on more: private attributes, progress counters in checkpoints, hooks that are
used for another purpose. They were written for Lightning 2.6.6; tests/test_lightning_compat*.py
fail where Lightning changes. Importing this file does not import Lightning, so that code that works
without Lightning can import it too.
"""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, get_args

import torch

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.core.optimizer import LightningOptimizer

__all__ = [
    "backward_is_plain",
    "batches_done",
    "callbacks_of",
    "complete_epoch",
    "counts_batches",
    "end_after",
    "epoch_is_complete",
    "epochs_done",
    "input_converter",
    "is_data_parallel",
    "is_trial",
    "launched_processes",
    "overrides",
    "pass_optimization_check",
    "plain_step",
    "quiet",
    "recount_batches",
    "spawns_processes",
    "step_is_plain",
    "synchronizes_batch_norm",
    "trainer_of",
    "validates_after",
    "whole_numbers_first",
]

# Training: modules and their trainer


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return the trainer that a module is attached to, or None.

    Reads ``module._trainer``, as ``module.trainer`` raises RuntimeError in place of None.
    """
    trainer: Trainer | None = module._trainer
    return trainer


def whole_numbers_first() -> None:
    """Let the Trainer's arguments that are whole numbers or floats try whole numbers first.

    ``limit_train_batches`` is one batch if it is 1, and all batches if it is 1.0. jsonargparse
    tries the types of ``Optional[Union[int, float]]`` in their order. But typing caches unions, and
    takes them for equal whatever their order: if another module has ``Optional[Union[float, int]]``
    shortly before Lightning is imported, Lightning's annotation is that one. A union by ``|`` is
    not cached.
    """
    from lightning import Trainer

    annotations = Trainer.__init__.__annotations__
    for name, annotation in annotations.items():
        kinds = get_args(annotation)
        if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
            annotations[name] = reduce(or_, [int, *(kind for kind in kinds if kind is not int)])


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a trainer's own list of callbacks, to which more can be added.

    A connector sets the attribute, so that its type is not declared.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined] # by a connector
    return callbacks


def is_trial(trainer: Trainer) -> bool:
    """Return whether the trainer only tries a few batches (``fast_dev_run``).

    A connector sets the attribute, so that its type is not declared.
    """
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined] # by a connector


def counts_batches(trainer: Trainer) -> bool:
    """Return whether an option of the trainer counts batches, by which users mean steps.

    Lightning counts calls of ``training_step`` as batches. It tells 1, a batch, from 1.0, all of
    them, by the type. A connector sets ``overfit_batches``, so that its type is not declared;
    ``val_check_interval`` is missing where the interval is a time. ``_every_n_train_steps`` of
    ``ModelCheckpoint`` is private.
    """
    shares = (trainer.limit_train_batches, getattr(trainer, "val_check_interval", 1.0))
    return bool(
        trainer.max_steps != -1
        or trainer.min_steps is not None
        or any(share != 1.0 or isinstance(share, int) for share in shares)
        or trainer.overfit_batches != 0  # type: ignore[attr-defined] # by a connector
        or any(getattr(c, "_every_n_train_steps", 0) for c in callbacks_of(trainer))
    )


def input_converter(trainer: Trainer) -> Callable[[Any], Any] | None:
    """Return the function that converts inputs to the trainer's precision; None for float32.

    Lightning converts the tensors in a batch, and does not see those inside a
    ``softmax_torch.data`` batch of several steps. Relies on the class of the precision plugin.
    """
    from lightning.pytorch.plugins.precision import Precision

    plugin = trainer.precision_plugin
    return None if type(plugin) is Precision else plugin.convert_input


def is_data_parallel(trainer: Trainer) -> bool:
    """Return whether each process of the trainer holds the whole model: one device, or DDP.

    Relies on the classes of the strategies.
    """
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    return isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)


def spawns_processes(trainer: Trainer) -> bool:
    """Return whether the trainer starts its other processes by spawn or fork.

    They run the fit alone: this process waits for them, and sees none of its results. Lightning
    declares no type for the launcher of such a strategy, which has a private class.
    """
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

    return isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)


def launched_processes() -> tuple[str, int, int]:
    """Return who started this process, how many there are, and how many on this machine.

    Only torchrun and SLURM's srun are recognized; ("", 1, 1) for neither. ``SLURM_NTASKS`` is set
    for every process of a job, the variables of a step for those of srun alone.
    """
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        return "torchrun", int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks.isdigit() and int(tasks) > 1:
        nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
        return "srun", int(tasks), int(tasks) // nodes
    return "", 1, 1


def synchronizes_batch_norm(trainer: Trainer) -> bool:
    """Return whether ``sync_batchnorm`` was set, which only a private connector keeps."""
    return trainer._accelerator_connector._layer_sync is not None


def pass_optimization_check(module: LightningModule) -> None:
    """Let Lightning accept gradient clipping and accumulation in a fit of this module.

    Call it in ``configure_callbacks``, which runs right before Lightning checks its settings and
    refuses both under manual optimization. A module that clips and accumulates by itself pretends
    to be automatic until then, and sets ``automatic_optimization`` to False in ``setup``.
    """
    if module.trainer.state.fn == "fit":
        module.automatic_optimization = True


def backward_is_plain(module: LightningModule) -> bool:
    """Return whether ``module.manual_backward(loss)`` is ``loss.backward()`` without any hook.

    This holds with full precision on a single device without anomaly detection, if neither the
    module nor a callback overrides ``on_before_backward`` or ``on_after_backward``. Gradients may
    then be computed without a backward pass. Relies on the class of the precision plugin, on
    ``_detect_anomaly``, and on ``is_overridden``, which Lightning does not document.
    """
    from lightning import LightningModule
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.plugins.precision import Precision
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.utilities.model_helpers import is_overridden

    trainer = module.trainer
    hooked = [(module, LightningModule), *((c, Callback) for c in callbacks_of(trainer))]
    return (
        type(trainer.precision_plugin) is Precision
        and isinstance(trainer.strategy, SingleDeviceStrategy)
        and not trainer._detect_anomaly
        and not any(
            is_overridden(hook, of, base)
            for hook in ("on_before_backward", "on_after_backward")
            for of, base in hooked
        )
    )


def step_is_plain(module: LightningModule, base: type[LightningModule]) -> bool:
    """Return whether a step through Lightning's optimizer is a step of torch's, counted.

    This holds with full precision on a single device, without a profiler, if no callback overrides
    ``on_before_optimizer_step``, and the module has that of ``base``. Relies on the classes of the
    plugins, and on ``is_overridden``, which Lightning does not document.
    """
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.plugins.precision import Precision
    from lightning.pytorch.profilers import PassThroughProfiler
    from lightning.pytorch.strategies import SingleDeviceStrategy
    from lightning.pytorch.utilities.model_helpers import is_overridden

    trainer, hook = module.trainer, "on_before_optimizer_step"
    return (
        type(trainer.precision_plugin) is Precision
        and type(trainer.strategy) is SingleDeviceStrategy
        and type(trainer.profiler) is PassThroughProfiler  # type: ignore[attr-defined] # by a connector
        and not is_overridden(hook, module, base)
        and not any(is_overridden(hook, c, Callback) for c in callbacks_of(trainer))
    )


def plain_step(optimizer: LightningOptimizer, closure: Callable[[], Any]) -> None:
    """Make a step of torch's optimizer, and count it as Lightning does; see ``step_is_plain``.

    Lightning calls a hook of the module and of each callback between the closure and the step,
    which costs 50 us: a quarter of a step of 784 -> 10 at batch 128. ``_on_before_step`` and
    ``_on_after_step`` are set by Lightning's loop, and count.
    """
    optimizer._on_before_step()
    optimizer.optimizer.step(closure)
    optimizer._on_after_step()


def overrides(method: str, module: LightningModule, base: type[LightningModule]) -> bool:
    """Return whether a module overrides a method of a base class.

    ``is_overridden`` also sees a method that was set on the instance, or is wrapped by a decorator.
    """
    from lightning.pytorch.utilities.model_helpers import is_overridden

    return is_overridden(method, module, base)


# Training: progress within a run, and in its checkpoints


def batches_done(trainer: Trainer) -> int:
    """Return the number of batches (calls of ``training_step``) so far, with the current one.

    ``total_batch_idx`` of the fit loop is the index of the current batch over all epochs.
    """
    return trainer.fit_loop.total_batch_idx + 1


def validates_after(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a validation may follow this batch, by the interval between validations.

    ``trainer.val_check_batch`` is that interval in batches, which Lightning derives from
    ``val_check_interval``: None if the interval is a time, and infinite if the data has no length
    and is validated after each epoch. The time of the last validation and the interval in seconds
    are private attributes of the trainer.
    """
    every = trainer.val_check_batch
    if every is None:
        private: Any = trainer
        seconds = private._val_check_time_interval
        return seconds is not None and time.monotonic() - private._last_val_time >= seconds
    if not math.isfinite(every):
        return False
    return (batch_idx + 1) % every == 0 or batches_done(trainer) % every == 0


def epoch_is_complete(trainer: Trainer) -> bool:
    """Return whether the current epoch is finished, though Lightning has not counted it yet.

    Lightning counts an epoch as completed after the callbacks that write checkpoints at its end.
    Reads the counters ``trainer.fit_loop.epoch_progress``.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.ready == progress.processed > progress.completed)


def epochs_done(checkpoint: dict[str, Any]) -> int:
    """Return the number of epochs that a fit had completed at a checkpoint.

    Reads the counters under ``checkpoint["loops"]["fit_loop"]``.
    """
    done: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    return done


def end_after(trainer: Trainer, epochs: int) -> None:
    """Let a fit end after so many epochs, whatever the trainer was made with.

    Sets ``trainer.fit_loop.max_epochs``; ``trainer.max_epochs`` only reads it.
    """
    trainer.fit_loop.max_epochs = epochs


def complete_epoch(checkpoint: dict[str, Any]) -> None:
    """Mark the finished epoch complete in a checkpoint, or Lightning repeats it on resume.

    That happens where the number of steps is limited. Writes to the counters under
    ``checkpoint["loops"]["fit_loop"]``, and sets loaders of ``softmax_torch.data`` back to the
    start, where the next epoch begins.
    """
    loop = checkpoint["loops"]["fit_loop"]
    epochs, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        epochs[part]["completed"] = epochs[part]["processed"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    for loader in loop["state_dict"].get("combined_loader", []):
        if "position" in loader:  # of softmax_torch.data
            loader["position"] = 0


def recount_batches(checkpoint: dict[str, Any], steps: int) -> None:
    """Let an epoch continue with another number of steps a batch than it began with.

    Lightning finds the last batch of an epoch by counting the batches before the checkpoint. With
    too high a count batches are lost; with too low a count the epoch is not validated. Writes to
    the counters under ``checkpoint["loops"]["fit_loop"]``, where the loaders of
    ``softmax_torch.data`` keep their position in steps.
    """
    loop = checkpoint["loops"]["fit_loop"]
    counters = loop["epoch_loop.batch_progress"]["current"]
    for loader in loop["state_dict"].get("combined_loader", []):
        if "batches" in loader:  # of softmax_torch.data
            n = loader["batches"]
            before = math.ceil(n / steps) - math.ceil((n - loader["position"]) / steps)
            more = before - counters["ready"]
            counters.update({name: count + more for name, count in counters.items()})


# Commands: Lightning's output


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's notes and advertisements, and warnings that are wrong here.

    The table of a profiler is a note too, and is kept. The warnings share general classes, and are
    recognised by their text:

    - "LeafSpec is deprecated": Lightning 2.6 uses an interface that torch 2.15 deprecates;
    - "Be aware that when using `ckpt_path`": a checkpoint holds the state of callbacks that an
      evaluation does not have, such as ``RunCheckpoint``;
    - "It is recommended to use sync_dist=True": metrics are reduced over the processes before they
      are logged;
    - "You requested to overfit": the data modules turn off shuffling themselves;
    - "Using ModelCheckpoint with manual optimization": a checkpoint is written between steps;
    - "Checkpoint directory ... exists and is not empty": a resumed run finds its own checkpoints;
    - "smaller than the logging interval": steps are logged whatever the number of calls.
    """
    parts = {"pytorch": logging.WARNING, "fabric": logging.WARNING}
    parts["pytorch.profilers"] = logging.INFO
    loggers = [logging.getLogger(f"lightning.{part}") for part in parts]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        warnings.filterwarnings("ignore", message="You requested to overfit but enabled")
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval")
        for logger, level in zip(loggers, parts.values(), strict=True):
            logger.setLevel(level)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
