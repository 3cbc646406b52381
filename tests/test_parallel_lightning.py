"""Lightning's ModelParallelStrategy trains a head whose classes are split over two ranks."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support import in_processes
from torch import Tensor
from torch.utils.data import DataLoader

from softmax_torch import SoftmaxRegression
from softmax_torch.parallel import (
    ShardedSoftmaxRegression,
)

N, D, C = 23, 5, 11


def lightning(rank: int, folder: str, port: int) -> None:
    """Run a trainer of two devices in a process with torchrun's environment."""
    from lightning import LightningModule, Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    class Lit(LightningModule):
        def configure_model(self) -> None:
            if not hasattr(self, "head"):
                torch.manual_seed(7)
                mesh = self.device_mesh["tensor_parallel"]
                self.head = ShardedSoftmaxRegression(D, C, mesh=mesh)
            self.losses: list[float] = []

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            loss = self.head.loss(*batch)
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.9)

    ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
    sizes = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "1"}
    os.environ |= {"GROUP_RANK": "0", **ranks, **sizes, **meet}
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=3,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Lit()
    trainer.fit(model, DataLoader(batches(), batch_size=None))
    torch.save(model.losses, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def batches() -> list[list[Tensor]]:
    torch.manual_seed(8)
    return [[torch.randn(N, D), torch.randint(C, (N,))] for _ in range(2)]


@pytest.mark.slow
def test_lightning_drives_it(tmp_path: Path) -> None:
    """ModelParallelStrategy on two ranks has the losses of a loop in one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    in_processes(lightning, 2, str(tmp_path), port)
    torch.manual_seed(7)
    model = SoftmaxRegression(D, C)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    expected = []
    for x, y in batches() * 3:
        optimizer.zero_grad()
        loss = model.loss(x, y)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, rel=1e-5)
