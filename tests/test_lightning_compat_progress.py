"""Progress within a run and in its checkpoints is counted as lightning_compat relies on."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compat_modules import Each, Module, loader, trainer
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from softmax_torch import lightning_compat

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but")


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


def test_loaders_are_told_the_epoch_and_keep_their_place(tmp_path: Path) -> None:
    """Lightning looks for ``sampler.set_epoch`` and ``state_dict`` in any loader."""
    data = loader(steps=2)
    saving = Saving(tmp_path / "a.ckpt", 5)
    trainer(saving).fit(Recounting(2), data)
    assert data.epoch == 1
    loops = torch.load(tmp_path / "a.ckpt", weights_only=True)["loops"]["fit_loop"]
    assert loops["state_dict"]["combined_loader"] == [{"position": 4, "batches": 6}]
