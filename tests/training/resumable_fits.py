"""Fits of digits in a run directory, begun or resumed, for tests of checkpoints."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from softmax_torch.data import DigitsDataModule
from softmax_torch.storage import checkpoints
from softmax_torch.training import LitSoftmaxRegression
from softmax_torch.training.run_checkpoint import RunCheckpoint
from softmax_torch.training.run_logger import RunLogger


class At(Callback):
    """Callback that acts once, after the batch of this number."""

    def __init__(self, call: int, action: Any) -> None:
        self.call, self.action = call, action

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx + 1 == self.call:
            self.action()


def model(**options: Any) -> LitSoftmaxRegression:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "lr_scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.99),
        "lr_interval": "step",
        "steps_per_call": 5,
        "log_every_n_steps": 3,
    }
    return LitSoftmaxRegression(64, 10, **(settings | options))


class Fit:
    """A fit in a run directory, begun or resumed."""

    def __init__(
        self,
        root: Path,
        *callbacks: Callback,
        lit: LitSoftmaxRegression | None = None,
        data: DigitsDataModule | None = None,
        seconds: float = 1e9,
        **options: Any,
    ) -> None:
        folder = root / "a" / "version_0"
        found, self.passed_over = checkpoints.newest_checkpoint(folder)
        self.logger = RunLogger(root, "a", folder if folder.exists() else None)
        self.keeper = RunCheckpoint(seconds=seconds)
        self.lit = lit or model()
        settings: dict[str, Any] = {"max_epochs": 3, "num_sanity_val_steps": 0}
        settings |= {"log_every_n_steps": 1}
        self.trainer = Trainer(
            accelerator="cpu",
            logger=self.logger,
            callbacks=[*callbacks, self.keeper],
            enable_progress_bar=False,
            enable_model_summary=False,
            **(settings | options),
        )
        try:
            self.trainer.fit(
                self.lit,
                data or DigitsDataModule(batch_size=64),
                ckpt_path=found and found.path,
                weights_only=True,
            )
        finally:
            self.logger.close()

    def outcome(self) -> tuple[Any, ...]:
        optimizer = self.trainer.optimizers[0].state_dict()["state"]
        rows = self.logger.path.read_text().splitlines()
        return (
            [value.tolist() for value in self.lit.state_dict().values()],
            {k: [v.tolist() for v in state.values()] for k, state in optimizer.items()},
            self.trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            self.trainer.global_step,
            rows,
        )
