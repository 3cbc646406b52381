"""What the tests of the Trainer's arguments share: fits of 32 rows, and the program with flags.

A check of an argument has its name, and registers itself as supported or refused.
"""

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from program import ROOT

from softmax_torch import cli
from softmax_torch.training import LitClassifier, LitSoftmaxRegression
from softmax_torch.training.lit_base import LitBase

sys.path.append(str(ROOT / "tests" / "training"))
from rows import C, D, RowsDataModule
from trainers import trainer as quiet_trainer

STEPS = 8  # batches of 4 among 32 training rows
KINDS = ("softmax", "classifier", "solver")
MINI_BATCH = KINDS[:2]


def model(kind: str, **options: Any) -> LitBase:
    torch.manual_seed(0)
    if kind == "solver":
        return LitSoftmaxRegression(D, C, C=1.0, solver="gradient_descent", tol=1e-12, **options)
    optimizer = partial(torch.optim.SGD, lr=0.1)
    if kind == "classifier":
        return LitClassifier(D, C, backbone=None, optimizer=optimizer, **options)
    return LitSoftmaxRegression(D, C, optimizer=optimizer, **options)


class Watch(Callback):
    """Steps at each validation, samples of each validation, and rows of each epoch's first step."""

    def __init__(self) -> None:
        self.validated: list[int] = []
        self.sanity = self.loaders = 0
        self.samples: list[int] = []
        self.inference: list[bool] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            self.sanity += 1
        else:
            self.validated.append(trainer.global_step)
            self.samples.append(0)

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.samples[-1] += len(args[2][1])
        self.inference.append(torch.is_inference_mode_enabled())


def fit(kind: str = "softmax", *callbacks: Callback, max_epochs: int = 2, **options: Any) -> Any:
    """Return a trainer that has fitted a model, with the model as ``lit`` and a ``watch``."""
    data = RowsDataModule(None if kind == "solver" else 4)
    lit, watch = model(kind), Watch()
    run = quiet_trainer(max_epochs, watch, *callbacks, **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*expected|.*gap")  # a solver ends early
        run.fit(lit, data)
    run.lit, run.watch, run.data = lit, watch, data
    return run


def weight(run: Any) -> torch.Tensor:
    found: torch.Tensor = run.lit.model.linear.weight.detach()
    return found


def program(*flags: str, command: str = "fit") -> None:
    cli.main([command, "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", *flags])


def refusal(*flags: str) -> str:
    """Return the message that the command line refuses flags with, before it writes anything."""
    message = message_of(*flags)
    assert not Path("runs").exists()
    assert "\n" not in message
    return message


def message_of(*flags: str, start: str = r"^trainer[.:]") -> str:
    """Return the message of a run that is refused, whether there are runs already or not."""
    with pytest.raises(ValueError, match=start) as refused:
        program(*flags)
    return str(refused.value)


SUPPORTED: dict[str, Callable[[], None]] = {}
REFUSED: dict[str, Callable[[], None]] = {}


def supported(check: Callable[[], None]) -> Callable[[], None]:
    SUPPORTED[check.__name__.removesuffix("_")] = check
    return check


def refused(check: Callable[[], None]) -> Callable[[], None]:
    REFUSED[check.__name__] = check
    return check
