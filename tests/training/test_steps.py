"""Several optimizer steps in a training_step do the same as Lightning's one by one."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EarlyStopping, LearningRateMonitor
from torch import Tensor, nn

from softmax_torch import lightning_compat
from softmax_torch.data import Batches, DigitsDataModule
from softmax_torch.storage.run_directories import read_metrics
from softmax_torch.training import LitSoftmaxRegression
from softmax_torch.training.run_logger import RunLogger

ADAM = partial(torch.optim.Adam, lr=0.01)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    settings = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **(settings | options))


def model(**options: Any) -> LitSoftmaxRegression:
    torch.manual_seed(0)
    return LitSoftmaxRegression(64, 10, **({"optimizer": ADAM} | options))


class Reference(LightningModule):
    """The same model, with Lightning's automatic optimization."""

    def __init__(self, scheduler: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 10)
        self.scheduler = scheduler

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.linear(x.flatten(1)), y)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        pass

    def configure_optimizers(self) -> Any:
        optimizer = ADAM(self.parameters())
        if self.scheduler is None:
            return optimizer
        scheduler = {"scheduler": self.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def same(lit: LitSoftmaxRegression, reference: Reference) -> None:
    assert torch.allclose(lit.model.linear.weight, reference.linear.weight, rtol=1e-4, atol=1e-6)
    assert torch.allclose(lit.model.linear.bias, reference.linear.bias, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        # In whole groups: Lightning divides the last one by 3 whatever it has (test_accumulation).
        {"limit_train_batches": 24, "accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"precision": "64-true"},
        {"max_steps": 50, "max_epochs": -1},
        {"limit_train_batches": 5},
        {"limit_train_batches": 0.25, "accumulate_grad_batches": 2},
    ],
    ids=str,
)
def test_trainer_settings_match_automatic_optimization(options: dict[str, Any]) -> None:
    """With any settings of the trainer, parameters match those of automatic optimization."""
    scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)
    lit, reference = model(lr_scheduler=scheduler, lr_interval="step"), Reference(scheduler)
    ours, theirs = trainer(**options), trainer(**options)
    ours.fit(lit, DigitsDataModule(batch_size=50))
    theirs.fit(reference, DigitsDataModule(batch_size=50))
    same(lit, reference)
    assert ours.global_step == theirs.global_step > 0
    lr = [t.optimizers[0].param_groups[0]["lr"] for t in (ours, theirs)]
    assert lr[0] == pytest.approx(lr[1], rel=1e-12)


class Watch(Callback):
    """Watches every optimizer step, so that each goes through Lightning."""

    def __init__(self) -> None:
        self.steps = 0

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.steps += 1


def test_steps_that_no_callback_watches_have_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = lightning_compat.plain_step
    counted = lambda *args: (calls.append(1), real(*args))[1]  # noqa: E731
    monkeypatch.setattr(lightning_compat, "plain_step", counted)
    scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99)
    fits, watch = [], Watch()
    for callbacks in ([], [watch]):
        lit = model(lr_scheduler=scheduler, lr_interval="step")
        trainer(*callbacks).fit(lit, DigitsDataModule(batch_size=50))
        fits.append(lit.model.linear.weight.detach())
    assert fits[0].equal(fits[1])
    assert (len(calls), watch.steps) == (52, 52)


def test_clipped_steps_go_through_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning_compat, "plain_step", None)
    trainer(gradient_clip_val=0.1).fit(model(), DigitsDataModule())


def test_a_checkpoint_keeps_the_implementation_of_the_optimizer(tmp_path: Path) -> None:
    """A step is told to update one parameter at a time; a run resumed on a GPU is not."""
    seen = set()

    class Told(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            seen.update(group["foreach"] for group in self.param_groups)
            return super().step(closure)

    for given, told in ((None, False), (True, True)):
        seen.clear()
        run = trainer(max_epochs=1)
        run.fit(model(optimizer=partial(Told, lr=0.1, foreach=given)), DigitsDataModule())
        run.save_checkpoint(tmp_path / "a.ckpt")
        [state] = torch.load(tmp_path / "a.ckpt", weights_only=True)["optimizer_states"]
        assert seen == {told}
        assert state["param_groups"][0]["foreach"] is given


def test_gradients_of_a_failed_fit_are_dropped() -> None:
    class Fail(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyError("mine")

    lit, other = model(optimizer=torch.optim.SGD), model(optimizer=torch.optim.SGD)
    options = {"accumulate_grad_batches": 3, "limit_train_batches": 6, "max_epochs": 1}
    with pytest.raises(KeyError, match="mine"):
        trainer(Fail(), **options).fit(lit, DigitsDataModule())
    for each in (lit, other):
        trainer(**options).fit(each, DigitsDataModule())
    assert lit.model.linear.weight.equal(other.model.linear.weight)


def test_bfloat16_autocast_applies() -> None:
    lit = model(steps_per_call=4)
    seen = []
    lit.model.linear.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    trainer(precision="bf16-mixed", max_epochs=1).fit(lit, DigitsDataModule())
    assert set(seen) == {torch.bfloat16}
    assert lit.model.linear.weight.dtype == torch.float32


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_the_objective_in_half_precision_is_logged(precision: Any) -> None:
    """A float16 does not hold its sum in units of 2^-20."""
    run = trainer(precision=precision, max_epochs=1)
    run.fit(model(optimizer=partial(torch.optim.SGD, lr=0.1)), DigitsDataModule())
    figures = run.callback_metrics
    assert figures["train/loss"] == pytest.approx(float(figures["train/nll"]), rel=0.05)


@pytest.mark.parametrize("steps", [2, 7, 64, 1000])
def test_any_number_of_steps_per_call_gives_the_same_bits(steps: int, tmp_path: Path) -> None:
    """The bits of parameters and of all logged figures."""
    results = []
    for number in (1, steps):
        lit = model(
            steps_per_call=number,
            C=1.0,
            class_weight="balanced",
            label_smoothing=0.1,
            log_every_n_steps=5,
        )
        logger = RunLogger(tmp_path, f"steps_{number}")
        trainer(logger=logger).fit(lit, DigitsDataModule(batch_size=32))
        results.append((lit.state_dict(), logger.path.read_text().splitlines()))
    (state, rows), (other_state, other_rows) = results
    assert all(torch.equal(value, other_state[name]) for name, value in state.items())
    assert sorted(rows) == sorted(other_rows)
    assert sum(float(row.split(",")[0]) % 5 == 0 for row in rows[1:]) >= 16


def test_every_nth_step_is_logged(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "a")
    scheduler = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5)
    lit = model(log_every_n_steps=10, lr_scheduler=scheduler, lr_interval="step")
    trainer(logger=logger).fit(lit, DigitsDataModule(batch_size=50))
    rows = [row for row in read_metrics(logger.path)[1] if "train/loss_step" in row]
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50]
    for row in rows:
        assert float(row["train/lr"]) == pytest.approx(0.01 * 0.5 ** (int(row["step"]) - 1))
    # only epochs are logged otherwise
    quiet = RunLogger(tmp_path, "b")
    trainer(logger=quiet).fit(model(), DigitsDataModule(batch_size=50))
    assert [int(row["step"]) for row in read_metrics(quiet.path)[1]] == [26, 26, 52, 52]


def test_a_call_makes_many_steps() -> None:
    class Calls(Callback):
        calls = 0

        def on_train_batch_end(self, *args: Any) -> None:
            self.calls += 1

    calls = Calls()
    run = trainer(calls, max_epochs=3)
    run.fit(model(), DigitsDataModule(batch_size=4))
    assert run.global_step == 3 * 324
    assert calls.calls == 3 * 6


@pytest.mark.parametrize("options", [{"max_steps": 30}, {"limit_train_batches": 7}, {}])
def test_a_trainer_that_counts_batches_gets_one_step_per_call(options: dict[str, Any]) -> None:
    lit = model(steps_per_call=16)
    run = trainer(**options)
    run.fit(lit, DigitsDataModule(batch_size=50))
    assert lit.steps_per_call == (1 if options else 16)
    assert (
        run.global_step
        == {"max_steps": 30, "limit_train_batches": 14, "": 52}[next(iter(options), "")]
    )


def test_validation_within_an_epoch(tmp_path: Path) -> None:
    logger = RunLogger(tmp_path, "a")
    trainer(logger=logger, val_check_interval=0.25, max_epochs=1).fit(
        model(), DigitsDataModule(batch_size=32)
    )
    rows = [row for row in read_metrics(logger.path)[1] if "val/nll" in row]
    assert [int(row["step"]) for row in rows] == [10, 20, 30, 40]


def test_lightnings_callbacks_work(tmp_path: Path) -> None:
    stop = EarlyStopping("val/nll", patience=1, min_delta=10.0)
    rates = LearningRateMonitor(logging_interval="epoch")
    run = trainer(stop, rates, logger=RunLogger(tmp_path, "a"), max_epochs=9)
    run.fit(model(), DigitsDataModule())
    assert run.current_epoch == 2
    assert any("lr-Adam" in row for row in read_metrics(run.logger.path)[1])


def test_other_loaders_work() -> None:
    data = DigitsDataModule(batch_size=50)
    data.setup()
    x, y = data.splits["train"]
    pairs = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x / 16, y), batch_size=50, shuffle=False
    )
    for loader in (pairs, Batches(x, y, 50, scale=1 / 16)):
        lit, reference = model(), Reference()
        trainer().fit(lit, loader, loader)
        trainer().fit(reference, loader, loader)
        same(lit, reference)


def test_other_modules_get_pairs() -> None:
    reference = Reference()
    run = trainer()
    run.fit(reference, DigitsDataModule(batch_size=50))
    assert run.global_step == 52


def test_a_skipped_epoch_has_no_figures() -> None:
    lit = model()
    lit.on_train_batch_start = lambda *_: -1  # type: ignore[method-assign]
    run = trainer()
    run.fit(lit, DigitsDataModule())
    assert run.global_step == 0
    assert "train/loss" not in run.callback_metrics


@pytest.mark.parametrize("options", [{}, {"C": 1.0}, {"class_weight": [1.0, 2.0] * 5}])
def test_a_process_without_samples_has_zero_gradient(options: dict[str, Any]) -> None:
    """The last batch of an epoch may have fewer samples than there are processes."""
    lit = model(**options)
    run = trainer(limit_train_batches=0)
    run.fit(lit, DigitsDataModule())
    x, y, whole = torch.empty(0, 64), torch.empty(0, dtype=torch.long), torch.tensor([3])
    objective = lit.objective(lit.model.logits(x), y, whole)
    gradients = torch.autograd.grad(objective, list(lit.model.parameters()))
    penalty = lit.criterion.penalty * lit.model.linear.weight.square().sum()
    torch.testing.assert_close(objective, penalty if lit.criterion.penalty else torch.zeros(()))
    torch.testing.assert_close(gradients[0], 2 * lit.criterion.penalty * lit.model.linear.weight)
    assert not gradients[1].any()


class Spoil(nn.Linear):
    """A linear layer that returns NaN from a certain call on."""

    calls = 0

    def __init__(self, at: int) -> None:
        super().__init__(64, 10)
        self.at = at

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
        z = super().forward(x)
        return z * math.nan if self.calls >= self.at and torch.is_grad_enabled() else z


@pytest.mark.parametrize("at", [1, 5, 27, 40])
@pytest.mark.parametrize("steps", [1, 8, 64])
def test_a_nan_loss_names_its_step(at: int, steps: int) -> None:
    lit = model(steps_per_call=steps)
    lit.model.linear = Spoil(at)
    with pytest.raises(FloatingPointError, match=rf"got nan in step {at}: the optimization"):
        trainer().fit(lit, DigitsDataModule(batch_size=50))


def test_an_infinite_parameter_is_reported_in_its_step() -> None:
    """After the last step too, whose loss was finite."""
    lit = model(optimizer=partial(torch.optim.SGD, lr=math.inf), steps_per_call=1)
    with pytest.raises(FloatingPointError, match="got infinite parameters in step 1:"):
        trainer().fit(lit, DigitsDataModule(batch_size=50))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_call": 0}, "steps_per_call: expected a number of at least 1, got 0"),
        ({"log_every_n_steps": -1}, "log_every_n_steps: expected .* at least 1, got -1"),
    ],
)
def test_counts_are_checked_at_once(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**options)


def test_reduce_on_plateau_needs_a_validation() -> None:
    lit = model(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(ValueError, match="expected a validation set for ReduceLROnPlateau"):
        trainer(limit_val_batches=0).fit(lit, DigitsDataModule())
    lit = model(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau, lr_interval="step")
    with pytest.raises(ValueError, match='lr_interval: expected "epoch" for ReduceLROnPlateau'):
        trainer().fit(lit, DigitsDataModule())
