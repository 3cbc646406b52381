"""Checks of Lightning's trainer before a fit: settings that would be ignored, or fail later."""

from __future__ import annotations

from collections.abc import Iterable

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from softmax_torch import lightning_compat

__all__ = ["check_monitors", "check_processes"]


def check_processes(trainer: Trainer) -> None:
    """Raise ValueError unless the processes divide the samples, each with the whole model.

    A trainer of one process, started several times by torchrun or srun, would train the whole model
    in each. Sharded strategies keep no whole model that a checkpoint could hold.
    """
    if not lightning_compat.is_data_parallel(trainer):
        raise ValueError(
            f"trainer.strategy: expected one device or ddp, got {type(trainer.strategy).__name__}"
        )
    launcher, processes, local = lightning_compat.launched_processes()
    if processes > 1 and trainer.world_size != processes:
        nodes = processes // local
        raise ValueError(
            f"trainer.strategy: expected the {processes} processes of {launcher} to share the "
            f"work, by --trainer.strategy ddp --trainer.devices {local}"
            + (f" --trainer.num_nodes {nodes}" if nodes > 1 else "")
            + f", got a trainer of {trainer.world_size}"
        )
    on_cpu = trainer.strategy.root_device.type == "cpu"
    if lightning_compat.synchronizes_batch_norm(trainer) and trainer.world_size > 1 and on_cpu:
        raise ValueError("trainer.sync_batchnorm: expected GPUs, got processes on a CPU")


def check_monitors(trainer: Trainer, module: LightningModule, names: Iterable[str]) -> None:
    """Raise ValueError if a callback of Lightning watches a metric that nothing logs.

    Lightning finds out at the end of the first epoch. Callbacks and modules that are not of
    Lightning or this package may log metrics of their own, so that nothing is checked beside them.

    Args:
        trainer: the trainer with its callbacks.
        module: the module that is trained.
        names: the metrics that it logs.
    """
    callbacks = lightning_compat.callbacks_of(trainer)
    if not all(map(_is_known, [module, *callbacks])):
        return
    expected = list(names)
    for callback in callbacks:
        monitor = _monitor(callback)
        if monitor is not None and monitor not in expected and not monitor.startswith("lr-"):
            raise ValueError(
                f"{type(callback).__name__}.monitor: expected one of {', '.join(expected)}, got "
                f"{monitor}"
            )


def _monitor(callback: Callback) -> str | None:
    """Return the metric that a callback of Lightning watches; None for none or a counter."""
    if not isinstance(callback, EarlyStopping | ModelCheckpoint):
        return None
    monitor = callback.monitor
    return None if monitor in ("epoch", "step") else monitor


def _is_known(part: object) -> bool:
    return type(part).__module__.partition(".")[0] in ("lightning", "softmax_torch")
