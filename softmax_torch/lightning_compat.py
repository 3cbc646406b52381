"""Every place where this package depends on internals of Lightning, with the reason.

Lightning documents hooks and attributes, and keeps them from one minor version to the next. The
functions here depend on more: private attributes, progress counters in checkpoints, hooks that are
used for another purpose. They were written for Lightning 2.6.6; tests/test_lightning_compat*.py
fail where Lightning changes. Importing this file does not import Lightning, so that commands which
do without it can import it too.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning import LightningModule, Trainer
    from lightning.pytorch.callbacks import Callback

__all__ = [
    "backward_is_plain",
    "batches_done",
    "callbacks_of",
    "complete_epoch",
    "counts_batches",
    "epoch_is_complete",
    "is_trial",
    "overrides",
    "pass_optimization_check",
    "quiet",
    "recount_batches",
    "trainer_of",
    "validates_after",
]

# Training: modules and their trainer


def trainer_of(module: LightningModule) -> Trainer | None:
    """Return the trainer that a module is attached to, None where there is none.

    ``module.trainer`` raises RuntimeError in the second case. Reads ``module._trainer``.
    """
    trainer: Trainer | None = module._trainer
    return trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the list of a trainer's callbacks itself, to which more can be added.

    A connector sets the attribute, so that its type is not declared.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def is_trial(trainer: Trainer) -> bool:
    """Return whether the trainer makes a trial with a few batches (``fast_dev_run``).

    A connector sets the attribute, so that its type is not declared.
    """
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def counts_batches(trainer: Trainer) -> bool:
    """Return whether the trainer was given a number of batches, which users mean as steps.

    Lightning counts calls of ``training_step`` as batches. A connector sets ``overfit_batches``,
    so that its type is not declared.
    """
    return bool(
        trainer.max_steps != -1
        or trainer.limit_train_batches != 1.0
        or trainer.val_check_interval != 1.0
        or trainer.overfit_batches != 0  # type: ignore[attr-defined]
    )


def pass_optimization_check(module: LightningModule) -> None:
    """Let Lightning accept gradient clipping and accumulation in a fit of this module.

    To be called in ``configure_callbacks``, which runs right before Lightning checks its settings
    and refuses both under manual optimization. A module that clips and accumulates by itself
    pretends to be automatic until then, and sets ``automatic_optimization`` to False in ``setup``.
    """
    if module.trainer.state.fn == "fit":
        module.automatic_optimization = True


def backward_is_plain(module: LightningModule) -> bool:
    """Return whether ``module.manual_backward(loss)`` is ``loss.backward()`` and no hook watches.

    So it is with full precision on a single device, where no callback and no method of the module
    overrides ``on_before_backward`` or ``on_after_backward``. Then gradients may be computed
    without a backward pass. Relies on the class of the precision plugin, and on ``is_overridden``,
    which Lightning does not document.
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
        and not any(
            is_overridden(hook, of, base)
            for hook in ("on_before_backward", "on_after_backward")
            for of, base in hooked
        )
    )


def overrides(method: str, module: LightningModule, base: type[LightningModule]) -> bool:
    """Return whether a module has a method of its own in the place of that of a base class.

    ``is_overridden`` also sees a method that was set on the instance, or is wrapped by a decorator.
    """
    from lightning.pytorch.utilities.model_helpers import is_overridden

    return is_overridden(method, module, base)


# Training: progress within a run, and in its checkpoints


def batches_done(trainer: Trainer) -> int:
    """Return how many batches (calls of ``training_step``) the fit has completed or is in.

    ``total_batch_idx`` of the fit loop is the index of the current one over all epochs.
    """
    return trainer.fit_loop.total_batch_idx + 1


def validates_after(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a validation may follow this batch, by the interval between validations.

    ``trainer.val_check_batch`` is that interval in batches, which Lightning derives from
    ``val_check_interval``: None where the clock decides, and infinite where the data has no length
    and is validated after each epoch.
    """
    every = trainer.val_check_batch
    if every is None:
        return True
    if not math.isfinite(every):
        return False
    return (batch_idx + 1) % every == 0 or batches_done(trainer) % every == 0


def epoch_is_complete(trainer: Trainer) -> bool:
    """Return whether all batches of the current epoch are over, though Lightning has not said so.

    It counts an epoch as completed after the callbacks that write checkpoints at its end. Reads
    the counters ``trainer.fit_loop.epoch_progress``.
    """
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.ready == progress.processed > progress.completed)


def complete_epoch(checkpoint: dict[str, Any]) -> None:
    """Mark the finished epoch complete in a checkpoint, or Lightning repeats it on resume.

    Where the number of steps is limited Lightning would take the epoch up again. Writes to the
    counters under ``checkpoint["loops"]["fit_loop"]``, and sets loaders of ``softmax_torch.data``
    back to the start, where the next epoch begins.
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
    """Let an epoch, begun with another number of steps a batch, go on with this number.

    Lightning finds the last batch of an epoch by counting those before the checkpoint. Counted too
    high, batches are lost; too low, the epoch is not validated. Writes to the counters under
    ``checkpoint["loops"]["fit_loop"]``; the loaders of ``softmax_torch.data`` keep their position
    in steps there.
    """
    loop = checkpoint["loops"]["fit_loop"]
    counters = loop["epoch_loop.batch_progress"]["current"]
    for loader in loop["state_dict"].get("combined_loader", []):
        if "batches" in loader:  # of softmax_torch.data
            n = loader["batches"]
            before = math.ceil(n / steps) - math.ceil((n - loader["position"]) / steps)
            more = before - counters["ready"]
            counters.update({name: count + more for name, count in counters.items()})


# Commands: what Lightning prints


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's notes and advertisements, and three warnings that are wrong here.

    The warnings have no class of their own, and are recognised by their text:

    - "LeafSpec is deprecated": Lightning 2.6 uses an interface that torch 2.15 deprecates;
    - "Be aware that when using `ckpt_path`": a checkpoint holds the state of callbacks, such as the
      one that writes checkpoints, that an evaluation does not have;
    - "It is recommended to use sync_dist=True": metrics are reduced over the processes before they
      are logged.
    """
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec.* is deprecated")
        warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        warnings.filterwarnings("ignore", message="It is recommended to use .*sync_dist=True")
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
