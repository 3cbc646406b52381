"""Arguments of the Trainer that say when it validates, and how it steps."""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ROOT
from torch import nn

from softmax_torch import cli
from softmax_torch.training import LitClassifier

sys.path.append(str(ROOT / "tests" / "training"))
from rows import C, D, RowsDataModule
from trainer_flags import (
    KINDS,
    MINI_BATCH,
    STEPS,
    fit,
    message_of,
    model,
    program,
    refusal,
    supported,
    weight,
)
from trainers import trainer as quiet_trainer

# Validation


@supported
def limit_val_batches() -> None:
    for kind in KINDS:
        assert fit(kind, limit_val_batches=0.5).watch.samples == [4, 4]
        assert fit(kind, limit_val_batches=0).watch.samples == []
    program("--trainer.limit_val_batches", "0")
    run = Path("runs", "digits", "version_0")
    assert {path.name for path in run.glob("*.ckpt")} == {"last.ckpt"}
    with pytest.raises(ValueError, match=r"limit_val_batches: .* above 0 for validate, got 0"):
        cli.main(["validate", "--ckpt_path", str(run / "last.ckpt")])


@supported
def limit_test_batches() -> None:
    run = fit(limit_test_batches=0.5)
    run.test(run.lit, run.data, verbose=False)
    assert run.num_test_batches == [4]  # of one sample each
    program("--trainer.limit_test_batches", "0")


@supported
def limit_predict_batches() -> None:
    run = fit(limit_predict_batches=0.25)
    assert sum(map(len, run.predict(run.lit, run.data))) == 2


@supported
def val_check_interval() -> None:
    for kind in MINI_BATCH:
        for interval, steps in ((1, range(1, 17)), (3, [3, 6, 11, 14]), (0.5, range(4, 17, 4))):
            assert fit(kind, val_check_interval=interval).watch.validated == list(steps)
        assert fit(kind, val_check_interval={"hours": 1}).watch.validated == []
        assert fit(kind, val_check_interval="00:00:00:00").watch.validated[-1] == 2 * STEPS
    assert fit("solver", val_check_interval=1).watch.validated == [1, 2]
    message = message_of(
        *("--trainer.val_check_interval", "50"), start="^trainer: expected settings that Lightning"
    )
    assert "must be less than or equal to the number of the training batches (41)" in message


@supported
def check_val_every_n_epoch() -> None:
    for kind in KINDS:
        last = fit(kind, max_epochs=4, check_val_every_n_epoch=2)
        assert len(last.watch.validated) == 2
    every = fit(check_val_every_n_epoch=None, val_check_interval=5, max_epochs=2)
    assert every.watch.validated == [5, 10, 15]


@supported
def num_sanity_val_steps() -> None:
    for kind in KINDS:
        assert fit(kind).watch.sanity == 0
        assert fit(kind, num_sanity_val_steps=-1).watch.sanity == 1
    assert weight(fit(num_sanity_val_steps=2)).equal(weight(fit()))
    # A schedule that watches validations takes no sanity check for one.
    lit = model("softmax", lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    options = {"num_sanity_val_steps": 1, "check_val_every_n_epoch": 2}
    quiet_trainer(2, **options).fit(lit, RowsDataModule())


@supported
def inference_mode() -> None:
    for mode in (True, False):
        run = fit(inference_mode=mode)
        run.watch.inference = []
        run.validate(run.lit, run.data, verbose=False)
        assert run.watch.inference == [mode]


# Steps


@supported
def accumulate_grad_batches() -> None:
    """tests/training/test_accumulation.py compares the steps with a plain loop."""
    for kind in MINI_BATCH:
        assert fit(kind, accumulate_grad_batches=3).global_step == 2 * 3
    with pytest.raises(ValueError, match=r"accumulate_grad_batches: expected 1 with a solver"):
        fit("solver", accumulate_grad_batches=3)


def clipped_loop(clip: Callable[[list[nn.Parameter]], object]) -> torch.Tensor:
    """The weight after an epoch of a plain loop."""
    lit, data = model("softmax"), RowsDataModule()
    data.setup()
    parameters = list(lit.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for x, y in data._batches("train", 4, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(lit.model.linear(x), y).backward()
        clip(parameters)
        optimizer.step()
    return lit.model.linear.weight.detach()


@supported
def gradient_clip_val() -> None:
    expected = clipped_loop(partial(nn.utils.clip_grad_norm_, max_norm=0.01))
    for kind in MINI_BATCH:
        run = fit(kind, max_epochs=1, gradient_clip_val=0.01)
        torch.testing.assert_close(weight(run), expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match=r"gradient_clip_val: expected None with a solver, got"):
        fit("solver", gradient_clip_val=0.1)


@supported
def gradient_clip_algorithm() -> None:
    expected = clipped_loop(partial(nn.utils.clip_grad_value_, clip_value=0.01))
    for kind in MINI_BATCH:
        clipped = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
        run = fit(kind, max_epochs=1, **clipped)
        torch.testing.assert_close(weight(run), expected, rtol=1e-6, atol=1e-7)
    assert "['value', 'norm']" in refusal("--trainer.gradient_clip_algorithm", "median")


@supported
def deterministic() -> None:
    try:
        for kind in KINDS:
            fit(kind, deterministic=True)
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@supported
def benchmark() -> None:
    before = torch.backends.cudnn.benchmark
    try:
        fit(benchmark=not before)
        assert torch.backends.cudnn.benchmark is not before
    finally:
        torch.backends.cudnn.benchmark = before


@supported
def detect_anomaly() -> None:
    """The gradient comes from autograd then, which names the operation that makes a NaN."""

    class Root(nn.Module):
        out_features = D

        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.sqrt(self.factor * 0)  # its derivative is 0 / 0

    lit = LitClassifier(D, C, backbone=Root())
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(RuntimeError, match="Backward0' returned nan"),
    ):
        quiet_trainer(1, detect_anomaly=True).fit(lit, RowsDataModule())
    with pytest.raises(FloatingPointError, match="in step 2: the optimization diverged"):
        quiet_trainer(1).fit(lit, RowsDataModule())
    torch.testing.assert_close(weight(fit(detect_anomaly=True)), weight(fit()))


@supported
def reload_dataloaders_every_n_epochs() -> None:
    class Counting(RowsDataModule):
        loaded = 0

        def train_dataloader(self) -> Any:
            self.loaded += 1
            return super().train_dataloader()

    data, lit = Counting(), model("softmax")
    quiet_trainer(4, reload_dataloaders_every_n_epochs=2).fit(lit, data)
    assert data.loaded == 2
    assert lit.model.linear.weight.equal(weight(fit(max_epochs=4)))
