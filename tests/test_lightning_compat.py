"""What lightning_compat relies on is as it was in the Lightning that it was written for.

One test for each function there, against the version that is installed.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from softmax_torch import lightning_compat
from softmax_torch.data import Batches

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but")


class Module(LightningModule):
    """A linear layer, trained by manual or automatic optimization."""

    def __init__(self, manual: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.automatic_optimization = not manual

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        x, y = batch
        loss = nn.functional.cross_entropy(self.linear(x), y)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Any) -> None:
        pass

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Passing(Module):
    """A module with manual optimization that clips and accumulates by itself."""

    def configure_callbacks(self) -> list[Callback]:
        lightning_compat.pass_optimization_check(self)
        return []

    def setup(self, stage: str) -> None:
        self.automatic_optimization = False


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"max_epochs": 2, "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False}
    settings |= {"log_every_n_steps": 1, "num_sanity_val_steps": 0, "accelerator": "cpu"}
    return Trainer(callbacks=list(callbacks), **(settings | options))


def loader(n: int = 12, steps: int | None = None) -> Batches:
    """Six batches."""
    x, y = torch.randn(n, 2), torch.arange(n) % 3
    return Batches(x, y, 2, steps=steps)


class Each(Callback):
    """Calls a function after each batch, and keeps what it returns."""

    def __init__(self, function: Any) -> None:
        self.function, self.seen = function, []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen.append(self.function(trainer, args[-1]))


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


def test_loaders_are_told_the_epoch_and_keep_their_place(tmp_path: Path) -> None:
    """Lightning looks for ``sampler.set_epoch`` and ``state_dict`` in any loader."""
    data = loader(steps=2)
    saving = Saving(tmp_path / "a.ckpt", 5)
    trainer(saving).fit(Recounting(2), data)
    assert data.epoch == 1
    loops = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert loops["state_dict"]["combined_loader"] == [{"position": 4, "batches": 6}]


def test_own_methods_are_known() -> None:
    class Own(Module):
        def validation_step(self, batch: Any) -> None:
            """Exist; no trainer calls it here."""

    assert lightning_compat.overrides("validation_step", Own(), Module)
    assert not lightning_compat.overrides("validation_step", Module(), Module)
    patched = Module()
    patched.validation_step = lambda batch: None  # type: ignore[method-assign]
    assert lightning_compat.overrides("validation_step", patched, Module)


def test_batches_are_counted_over_epochs() -> None:
    each = Each(lambda trainer, _: lightning_compat.batches_done(trainer))
    run = trainer(each)
    run.fit(Module(), loader())
    assert each.seen == list(range(1, 13))
    assert lightning_compat.batches_done(run) == 12


class Validations(Callback):
    """Numbers of batches after which there was a validation within an epoch."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seen.append(trainer.global_step)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [6, 12]),
        ({"val_check_interval": 2}, [2, 4, 6, 8, 10, 12]),
        ({"val_check_interval": 0.5}, [3, 6, 9, 12]),
        ({"val_check_interval": 4, "check_val_every_n_epoch": None}, [4, 8, 12]),
    ],
)
def test_a_validation_is_foreseen(options: dict[str, Any], expected: list[int]) -> None:
    each = Each(lambda run, i: (run.global_step, lightning_compat.validates_after(run, i)))
    validations = Validations()
    trainer(each, validations, **options).fit(Module(), loader(), loader())
    assert validations.seen == expected
    foreseen = {step for step, validates in each.seen if validates}
    assert set(expected) - {6, 12} <= foreseen  # the ends of epochs are known otherwise


class Endless:
    """Batches whose number Lightning does not know."""

    def __iter__(self) -> Any:
        return iter(loader())


def test_a_validation_is_not_foreseen_in_endless_data() -> None:
    each = Each(lambda run, i: lightning_compat.validates_after(run, i))
    trainer(each, max_epochs=1).fit(Module(), Endless(), loader())
    assert each.seen == [False] * 6


@pytest.mark.parametrize(("interval", "expected"), [("00:01:00:00", False), ("00:00:00:00", True)])
def test_a_validation_by_the_clock_is_foreseen(interval: str, expected: bool) -> None:
    each = Each(lambda run, i: lightning_compat.validates_after(run, i))
    trainer(each, val_check_interval=interval).fit(Module(), loader(), loader())
    assert each.seen == [expected] * 12


class Saving(Callback):
    """Writes a checkpoint at the end of the first epoch, or after a batch."""

    def __init__(self, path: Path, batch: int | None, complete: bool = True) -> None:
        self.path, self.batch, self.complete = path, batch, complete
        self.is_complete: list[bool] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if lightning_compat.batches_done(trainer) == self.batch:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.batch is None and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.is_complete.append(lightning_compat.epoch_is_complete(trainer))
        if self.complete and self.is_complete[-1]:
            lightning_compat.complete_epoch(checkpoint)


class Recounting(Module):
    """A module that goes on with batches of another number of steps."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for x, y, _ in batch:
            super().training_step((x, y), batch_idx)
            self.seen.append((self.current_epoch, self.global_step))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        lightning_compat.recount_batches(checkpoint, self.steps)


def test_a_finished_epoch_is_not_repeated(tmp_path: Path) -> None:
    """Lightning repeats it if the number of steps ended the fit together with the epoch."""
    path = tmp_path / "a.ckpt"
    epochs = {}
    for complete in (False, True):
        saving = Saving(path, None, complete)
        trainer(saving, max_steps=6).fit(Module(), loader())
        assert saving.is_complete == [True]
        each = Each(lambda run, _: run.current_epoch)
        trainer(each, max_steps=12).fit(Module(), loader(), ckpt_path=path, weights_only=True)
        epochs[complete] = each.seen
    assert epochs[True] == [1] * 6
    assert epochs[False] != epochs[True]  # or the function is needed no more


def test_an_epoch_is_not_complete_within_it(tmp_path: Path) -> None:
    saving = Saving(tmp_path / "a.ckpt", 4)
    trainer(saving, max_epochs=1).fit(Module(), loader())
    assert saving.is_complete == [False]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 6), (3, 2)])
def test_an_epoch_goes_on_with_other_batches(before: int, after: int, tmp_path: Path) -> None:
    """Each step runs once, with one validation at the end of each epoch."""
    path, data = tmp_path / "a.ckpt", partial(loader, steps=before)
    saving = Saving(path, 2 if before == 1 else 1)
    trainer(saving).fit(Recounting(before), data())
    module, validations = Recounting(after), Validations()
    trainer(validations).fit(
        module, loader(steps=after), loader(), ckpt_path=path, weights_only=True
    )
    first = 2 if before < 3 else 3
    steps = [(0, step) for step in range(first + 1, 7)] + [(1, step) for step in range(7, 13)]
    assert module.seen == steps
    assert validations.seen == [6, 12]
