"""Modules, trainers and callbacks for the tests of what lightning_compat relies on."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from softmax_torch import lightning_compat
from softmax_torch.data import Batches


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
