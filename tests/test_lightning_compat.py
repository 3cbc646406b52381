"""What lightning_compat relies on is as it was in the Lightning that it was written for.

One test for each function there, against the version that is installed.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from compat_modules import Each, Module, Passing, loader, trainer
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from softmax_torch import lightning_compat

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but")


def test_a_module_knows_its_trainer() -> None:
    module, run = Module(), trainer()
    assert lightning_compat.trainer_of(module) is None
    with pytest.raises(RuntimeError, match="not attached"):
        _ = module.trainer
    run.fit(module, loader())
    assert lightning_compat.trainer_of(module) is run


def test_callbacks_that_are_added_are_called() -> None:
    run, each = trainer(), Each(lambda *_: 1)
    lightning_compat.callbacks_of(run).append(each)
    run.fit(Module(), loader())
    assert len(each.seen) == 12
    assert each in lightning_compat.callbacks_of(run)


@pytest.mark.parametrize("trial", [False, True])
def test_a_trial_is_known(trial: bool) -> None:
    assert lightning_compat.is_trial(trainer(fast_dev_run=trial)) == trial


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, False),
        ({"max_steps": 3}, True),
        ({"limit_train_batches": 3}, True),
        ({"limit_train_batches": 0.5}, True),
        ({"val_check_interval": 0.5}, True),
        ({"overfit_batches": 1}, True),
        ({"limit_train_batches": 1.0, "val_check_interval": 1.0}, False),
        ({"limit_train_batches": 1}, True),
        ({"val_check_interval": 1}, True),
        ({"val_check_interval": "00:01:00:00"}, False),
        ({"min_steps": 3}, True),
    ],
)
def test_numbers_of_batches_are_known(options: dict[str, Any], counts: bool) -> None:
    assert lightning_compat.counts_batches(trainer(**options)) == counts


@pytest.mark.parametrize("every", [None, 2])
def test_checkpoints_after_numbers_of_steps_are_known(every: int | None) -> None:
    run = trainer(ModelCheckpoint(every_n_train_steps=every), enable_checkpointing=True)
    assert lightning_compat.counts_batches(run) == (every is not None)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", None), ("64-true", torch.float64), ("bf16-true", torch.bfloat16)],
)
def test_inputs_are_converted_to_the_precision(precision: str, dtype: Any) -> None:
    convert = lightning_compat.input_converter(trainer(precision=precision))
    assert dtype is None if convert is None else convert(torch.ones(1)).dtype == dtype


@pytest.mark.parametrize(
    ("strategy", "parallel", "spawns"),
    [
        ("auto", True, False),
        ("ddp", True, False),
        ("ddp_spawn", True, True),
        ("sharded", False, False),
    ],
)
def test_strategies_are_known(strategy: str, parallel: bool, spawns: bool) -> None:
    run = trainer(strategy=ModelParallelStrategy() if strategy == "sharded" else strategy)
    assert lightning_compat.is_data_parallel(run) == parallel
    assert lightning_compat.spawns_processes(run) == spawns


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("", 1, 1)),
        (
            {"TORCHELASTIC_RUN_ID": "a", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"},
            ("torchrun", 4, 2),
        ),
        ({"SLURM_NTASKS": "4"}, ("", 1, 1)),  # in a script of sbatch
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2"}, ("srun", 4, 2)),
        ({"SLURM_STEP_NUM_TASKS": "1"}, ("", 1, 1)),
    ],
)
def test_processes_that_a_launcher_started_are_counted(
    variables: dict[str, str], expected: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert lightning_compat.launched_processes() == expected


@pytest.mark.parametrize("asked", [True, False])
def test_synchronized_batch_norm_is_known(asked: bool) -> None:
    assert lightning_compat.synchronizes_batch_norm(trainer(sync_batchnorm=asked)) == asked


@pytest.mark.parametrize("options", [{"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}])
def test_a_module_that_clips_by_itself_is_accepted(options: dict[str, Any]) -> None:
    """Lightning refuses clipping under manual optimization right after the hook."""
    with pytest.raises(MisconfigurationException, match=r"gradient .* not supported for manual"):
        trainer(**options).fit(Module(), loader())
    module = Passing()
    trainer(**options).fit(module, loader())
    assert not module.automatic_optimization


class Watching(Callback):
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass


class WatchingModule(Module):
    def on_before_backward(self, loss: Tensor) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "callbacks", "options", "plain"),
    [
        (Module, [], {}, True),
        (Module, [Each(lambda *_: 1)], {}, True),
        (Module, [Watching()], {}, False),
        (WatchingModule, [], {}, False),
        (Module, [], {"precision": "bf16-mixed"}, False),
        (Module, [], {"precision": "64-true"}, False),
        (Module, [], {"detect_anomaly": True}, False),
    ],
)
def test_a_backward_pass_that_is_watched_is_known(
    kind: Any, callbacks: list[Callback], options: dict[str, Any], plain: bool
) -> None:
    module, seen = kind(), []
    run = trainer(*callbacks, Each(lambda *_: seen.append(1)), max_epochs=1, **options)
    found = Each(lambda *_: lightning_compat.backward_is_plain(module))
    lightning_compat.callbacks_of(run).append(found)
    run.fit(module, loader())
    assert set(found.seen) == {plain}


def test_plain_precision_does_nothing_else_in_a_backward_pass(monkeypatch: Any) -> None:
    """The default on a single device is the class that the check compares with."""
    run, module = trainer(max_epochs=1), Module()
    assert type(run.precision_plugin) is Precision
    assert isinstance(run.strategy, SingleDeviceStrategy)
    calls: list[Any] = []
    real = Tensor.backward
    monkeypatch.setattr(
        Tensor,
        "backward",
        lambda *args, **options: calls.append(args[1:]) or real(*args, **options),
    )
    run.fit(module, loader())
    assert calls == [()] * 6


class WatchesSteps(Callback):
    def on_before_optimizer_step(self, *args: Any) -> None:
        pass


class OwnStep(Module):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("module", "options", "expected"),
    [
        (Module, {}, True),
        (Module, {"callbacks": [WatchesSteps()]}, False),
        (OwnStep, {}, False),
        (Module, {"profiler": "simple"}, False),
        (Module, {"precision": "bf16-mixed"}, False),
        (Module, {"strategy": "ddp", "devices": 1}, False),
    ],
)
def test_a_step_that_is_watched_is_known(
    module: type[Module], options: dict[str, Any], expected: bool
) -> None:
    lit, callbacks = module(), options.get("callbacks", [])
    rest = {name: value for name, value in options.items() if name != "callbacks"}
    lit.trainer = trainer(*callbacks, **rest)
    assert lightning_compat.step_is_plain(lit, Module) is expected


def test_a_plain_step_is_that_of_lightning(tmp_path: Path) -> None:
    """The same parameters, and the same counters in a checkpoint."""

    class Plain(Module):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            x, y = batch
            optimizer = self.optimizers()

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.linear(x), y)
                self.manual_backward(loss)
                return loss

            lightning_compat.plain_step(optimizer, closure)

    saved = []
    for kind in (Module, Plain):
        torch.manual_seed(0)
        run = trainer()
        run.fit(kind(), loader())
        run.save_checkpoint(tmp_path / "a.ckpt")
        saved.append(torch.load(tmp_path / "a.ckpt", weights_only=True))
        assert run.global_step == 12
    ours, theirs = saved
    assert ours["state_dict"]["linear.weight"].equal(theirs["state_dict"]["linear.weight"])
    assert ours["loops"] == theirs["loops"]


def test_own_methods_are_known() -> None:
    class Own(Module):
        def validation_step(self, batch: Any) -> None:
            """Exist; no trainer calls it here."""

    assert lightning_compat.overrides("validation_step", Own(), Module)
    assert not lightning_compat.overrides("validation_step", Module(), Module)
    patched = Module()
    patched.validation_step = lambda batch: None  # type: ignore[method-assign]
    assert lightning_compat.overrides("validation_step", patched, Module)
