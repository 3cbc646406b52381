"""Arguments of the Trainer that say where and how long it trains."""

import csv
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from program import ROOT, metrics

from softmax_torch.training.trainer_checks import check_processes

sys.path.append(str(ROOT / "tests" / "training"))
from trainer_flags import (
    KINDS,
    MINI_BATCH,
    STEPS,
    fit,
    program,
    refusal,
    refused,
    supported,
    weight,
)
from trainers import trainer as quiet_trainer

# Where


@supported
def accelerator() -> None:
    assert fit(accelerator="cpu").strategy.root_device.type == "cpu"
    message = refusal("--trainer.accelerator", "tpu")
    assert re.match(r"trainer\.accelerator: expected one of auto, cpu.*, got tpu", message)


@supported
def strategy() -> None:
    with pytest.raises(ValueError, match="expected one device or ddp, got ModelParallelStrategy"):
        check_processes(quiet_trainer(1, strategy=ModelParallelStrategy()))
    message = refusal("--trainer.strategy", "ddp_spawn")
    assert "trainer.strategy: expected ddp" in message
    assert "`strategy='nope'`" in refusal("--trainer.strategy", "nope")


@supported
def devices() -> None:
    """tests/training/test_processes.py trains on two."""
    assert quiet_trainer(1, devices=3, strategy="ddp").world_size == 3
    assert "`Trainer(devices='0')`" in refusal("--trainer.devices", "0")


@supported
def num_nodes() -> None:
    assert quiet_trainer(1, devices=2, num_nodes=2, strategy="ddp").world_size == 4


@supported
def precision() -> None:
    full = fit("softmax")
    for name, dtype, bits in (
        ("64-true", torch.float64, 20),
        ("bf16-mixed", torch.float32, 7),
        ("bf16-true", torch.bfloat16, 7),
        ("16-true", torch.float16, 10),
    ):
        for kind in MINI_BATCH:
            run = fit(kind, precision=name)
            assert weight(run).dtype == dtype
            torch.testing.assert_close(weight(run).float(), weight(full), rtol=0, atol=2.0**-bits)
    assert weight(fit("solver", precision="64-true")).dtype == torch.float64
    with pytest.raises(ValueError, match=r"precision: expected 32-true or 64-true .* got bf16-m"):
        fit("solver", precision="bf16-mixed")


@refused
def plugins() -> None:
    """Others than a CheckpointIO are passed on."""
    assert fit(plugins=[LightningEnvironment()]).global_step == 2 * STEPS
    plugin = "lightning.pytorch.plugins.io.AsyncCheckpointIO"
    message = refusal("--trainer.plugins", plugin)
    assert message.startswith("trainer.plugins: expected no CheckpointIO")
    assert message.endswith("got AsyncCheckpointIO")


@supported
def sync_batchnorm() -> None:
    assert fit(sync_batchnorm=True).global_step == 2 * STEPS  # one process: nothing to do
    with pytest.raises(ValueError, match=r"sync_batchnorm: expected GPUs, got processes on a CPU"):
        check_processes(quiet_trainer(1, devices=2, strategy="ddp", sync_batchnorm=True))


@refused
def use_distributed_sampler() -> None:
    assert refusal("--trainer.use_distributed_sampler", "false").endswith("got false")


# How long


@supported
def max_epochs() -> None:
    for kind in KINDS:
        assert fit(kind, max_epochs=3).current_epoch == 3
    assert fit(max_epochs=0).global_step == 0


class Stop(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = True


@supported
def min_epochs() -> None:
    for kind in KINDS:
        assert fit(kind, Stop(), max_epochs=9).current_epoch == 1
        assert fit(kind, Stop(), max_epochs=9, min_epochs=3).current_epoch == 3


@supported
def max_steps() -> None:
    for kind in MINI_BATCH:
        assert fit(kind, max_steps=5).global_step == 5
    assert fit("solver", max_steps=3, max_epochs=-1).global_step == 3


@supported
def min_steps() -> None:
    for kind in MINI_BATCH:
        assert fit(kind, Stop(), max_epochs=9, min_steps=STEPS + 3).global_step == STEPS + 3
    assert fit("solver", Stop(), max_epochs=9, min_steps=4).global_step == 4


@supported
def max_time() -> None:
    for kind in KINDS:
        assert fit(kind, max_time={"seconds": 0}).global_step == 0
    program("--trainer.max_time", "00:00:00:00", "--runs", "timed")
    assert not list(Path("timed").rglob("*.ckpt"))  # nothing was trained
    assert "DD:HH:MM:SS" in refusal("--trainer.max_time", "1h")
    assert "expected one limit of time" in refusal(
        "--trainer.max_time", "00:00:01:00", "--trainer.callbacks", "Timer"
    )


@supported
def fast_dev_run() -> None:
    for kind, steps in (("softmax", 3), ("classifier", 3), ("solver", 1)):
        run = fit(kind, fast_dev_run=3, max_epochs=9)
        assert (run.global_step, run.current_epoch) == (steps, 1)


@supported
def overfit_batches() -> None:
    """The same batches in each epoch: as an epoch of one batch."""

    class Seen(Callback):
        def __init__(self) -> None:
            self.rows: list[list[float]] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            [one] = args[1]
            self.rows.append(one.x.flatten().tolist())

    for kind in MINI_BATCH:
        seen = Seen()
        assert fit(kind, seen, overfit_batches=1, max_epochs=3).global_step == 3
        assert seen.rows[0] == seen.rows[1] == seen.rows[2]
    run = fit(overfit_batches=0.5)
    assert (run.global_step, set(run.watch.samples)) == (STEPS, {4})


@supported
def limit_train_batches() -> None:
    for kind in MINI_BATCH:
        for limit, steps in ((1, 1), (3, 3), (0.5, 4), (1.0, STEPS), (0, 0)):
            assert fit(kind, limit_train_batches=limit).global_step == 2 * steps, limit
    assert fit("solver", limit_train_batches=1).global_step == 2
    program("--trainer.limit_train_batches", "1")
    assert '"1",' not in metrics(Path())[0]
    assert {row["step"] for row in csv.DictReader(metrics(Path()))} == {"1"}
