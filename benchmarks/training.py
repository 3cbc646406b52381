"""Time of a training epoch: ours against a bare loop, and against a usual Lightning script.

    python benchmarks/training.py [--root DATA] [--batch_sizes 128 1024] [--repeats 5] [--quick]
                                  [--parts epochs program busy] [--device cpu] [--markdown FILE]

epochs: MNIST, 54,000 training samples, softmax regression, SGD with momentum. The bare loop and
ours begin with the same weights and see the same batches. It is checked that their parameters agree
after an epoch.

bare       a Python loop over tensors on the device: index_select, scale, nn.Linear,
           F.cross_entropy, backward, SGD.step; no validation, no log, nothing written
native     ``Trainer.fit`` with the progress bar, metrics.csv, validation, best.ckpt and last.ckpt;
           an epoch is the time from one ``on_train_epoch_start`` to the next, with all of these
torch      the same without the native kernels (SOFTMAX_TORCH_KERNELS=torch)
usual      a LightningModule as in tutorials, on torchvision's MNIST with ToTensor and a
           DataLoader, with a bar, CSVLogger, ModelCheckpoint, and the loss logged

They take turns in one process, and medians of whole epochs are compared. --quick makes two turns,
and one of the usual script.

program: train.py in a process of its own, from its start to its report, for five epochs.

busy: the training time that ``train.py fit`` on digits prints, alone and beside a process that
keeps one core busy, in turns. Run it on a machine that is idle otherwise (Linux).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from softmax_torch.data import MNISTDataModule
from softmax_torch.ops import backends
from softmax_torch.ops.native import library
from softmax_torch.training import LitSoftmaxRegression
from softmax_torch.training.progress_bar import EpochBar
from softmax_torch.training.run_checkpoint import RunCheckpoint
from softmax_torch.training.run_logger import RunLogger

ROOT = Path(__file__).parents[1]
RATE, MOMENTUM = 0.1, 0.9
EPOCHS = 4
"""Epochs of a turn, of which the first is not timed."""
PARTS = ("epochs", "program", "busy")
SPIN = "import os; os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])\nwhile True: pass"
"""A program that keeps a core busy."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", help="where MNIST is, or is downloaded to")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two repeats, and fewer of long runs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print(f"torch {torch.__version__}, {options.threads} threads, {options.device}")
    if options.quick:
        options.repeats = min(options.repeats, 2)
    tables: list[str] = []
    for name, part in (("epochs", epochs), ("program", whole_program), ("busy", busy_core)):
        if name not in options.parts:
            continue
        tables.append(part(options))
        print(f"\n{tables[-1]}", flush=True)
        if options.markdown:
            options.markdown.write_text("\n\n".join(tables) + "\n")


def epochs(options: argparse.Namespace) -> str:
    """Return a table of the time of an epoch."""
    lines = [
        "| batch | bare, s | native, s | / bare | torch, s | / bare | usual, s | / native |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    kinds = ["torch"] if library.load() is None else ["native", "torch"]
    if library.reason():
        print(library.reason())
    for batch_size in options.batch_sizes:
        times: dict[str, list[float]] = {"bare": [], "native": [], "torch": [], "usual": []}
        for kernels in kinds:
            with backends.cpu_kernels(kernels):
                check(options, batch_size)
        for repeat in range(options.repeats):
            times["bare"] += bare(options, batch_size)[0]
            for kernels in kinds:
                with backends.cpu_kernels(kernels):
                    times[kernels] += ours(options, batch_size)[0]
            if repeat < (1 if options.quick else 2):  # it takes half a minute
                times["usual"] += usual(options, batch_size)
        b, n, t, u = (statistics.median(found or [math.nan]) for found in times.values())
        lines.append(
            f"| {batch_size} | {b:.3f} | {n:.3f} | {n / b:.2f} | {t:.3f} | {t / b:.2f} | {u:.2f} | "
            f"{u / n:.1f} |"
        )
        print(lines[-1], flush=True)
    return "\n".join(lines)


def data_module(options: argparse.Namespace, batch_size: int) -> MNISTDataModule:
    """Return MNIST, read and split."""
    data = MNISTDataModule(root=options.root, batch_size=batch_size)
    data.prepare_data()
    data.setup()
    return data


def linear() -> nn.Linear:
    """Return a layer with the initial weights."""
    torch.manual_seed(0)
    return nn.Linear(784, 10)


def bare(options: argparse.Namespace, batch_size: int) -> tuple[list[float], nn.Linear]:
    """Return the seconds of each epoch but the first, and the layer after one epoch."""
    data = data_module(options, batch_size)
    x, y = (t.to(options.device) for t in data.splits["train"])
    loader = data.train_dataloader()
    layer = linear().to(options.device)
    optimizer = torch.optim.SGD(layer.parameters(), lr=RATE, momentum=MOMENTUM)
    times = []
    for epoch in range(EPOCHS):
        wait(options)
        began = time.perf_counter()
        loader.set_epoch(epoch)
        order = loader._order().to(options.device)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            optimizer.zero_grad()
            # index_select takes a seventh of the time of x[rows]; the fair comparison uses it too
            images = x.index_select(0, rows).flatten(1).float().mul_(1 / 255)
            loss = F.cross_entropy(layer(images), y.index_select(0, rows))
            loss.backward()
            optimizer.step()
        wait(options)
        times.append(time.perf_counter() - began)
        if epoch == 0:
            first = nn.Linear(784, 10)
            first.load_state_dict({k: v.cpu().clone() for k, v in layer.state_dict().items()})
    return times[1:], first


class Epochs(Callback):
    """A callback that records when each epoch begins, and the parameters after the first."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.began: list[float] = []
        self.first: dict[str, Tensor] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait(self.options)
        self.began.append(time.perf_counter())
        if len(self.began) == 2:
            self.first = {k: v.cpu().clone() for k, v in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        wait(self.options)
        self.began.append(time.perf_counter())

    def times(self) -> list[float]:
        """Return the seconds of each epoch but the first."""
        return [b - a for a, b in zip(self.began, self.began[1:], strict=False)][1:]


def ours(options: argparse.Namespace, batch_size: int) -> tuple[list[float], dict[str, Tensor]]:
    """Return the seconds of each epoch but the first, and the parameters after one epoch."""
    lit = LitSoftmaxRegression(
        784, 10, optimizer=partial(torch.optim.SGD, lr=RATE, momentum=MOMENTUM)
    )
    lit.model.linear.load_state_dict(linear().state_dict())
    epochs = Epochs(options)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        Trainer(
            max_epochs=EPOCHS,
            accelerator="cpu" if options.device == "cpu" else "gpu",
            devices=1,
            callbacks=[epochs, EpochBar(), RunCheckpoint()],
            logger=RunLogger(folder, "benchmark"),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        ).fit(lit, data_module(options, batch_size))
        written = {path.name for path in (Path(folder) / "benchmark" / "version_0").iterdir()}
        assert {"best.ckpt", "last.ckpt", "metrics.csv"} <= written, written
    return epochs.times(), epochs.first


class Usual(LightningModule):
    """Softmax regression as in tutorials of Lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = linear()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.layer(x.view(x.size(0), -1)), y)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        logits = self.layer(x.view(x.size(0), -1))
        self.log("val_loss", F.cross_entropy(logits, y), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=MOMENTUM)


def usual(options: argparse.Namespace, batch_size: int) -> list[float]:
    """Return the seconds of each epoch but the first."""
    root = options.root or os.environ.get("SOFTMAX_TORCH_DATA", "data")
    mnist = datasets.MNIST(root, train=True, transform=transforms.ToTensor())
    n = len(data_module(options, batch_size).splits["train"])
    train, val = Subset(mnist, range(n)), Subset(mnist, range(n, len(mnist)))
    epochs = Epochs(options)
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        Trainer(
            max_epochs=2,
            accelerator="cpu" if options.device == "cpu" else "gpu",
            devices=1,
            callbacks=[epochs, ModelCheckpoint(folder, monitor="val_loss", save_last=True)],
            logger=CSVLogger(folder),
            enable_model_summary=False,
            num_sanity_val_steps=0,
        ).fit(
            Usual(),
            DataLoader(train, batch_size=batch_size, shuffle=True),
            DataLoader(val, batch_size=batch_size),
        )
    return epochs.times()


def check(options: argparse.Namespace, batch_size: int) -> None:
    """Raise AssertionError unless ours and the bare loop agree after an epoch."""
    _, layer = bare(options, batch_size)
    _, state = ours(options, batch_size)
    W = state["model.linear.weight"]
    difference = float((W - layer.weight).norm() / layer.weight.norm())
    assert difference < 1e-5, f"after an epoch ours is {difference:.1e} from the bare loop"


def whole_program(options: argparse.Namespace) -> str:
    """Return how long train.py takes for five epochs, from start to end of its process."""
    args = ["--config", str(ROOT / "configs" / "mnist.yaml"), "--trainer.max_epochs", "5"]
    args += ["--model.lr_scheduler.T_max", "5"]
    args += ["--data.root", options.root] if options.root else []
    times, accuracy = [], 0.0
    for _ in range(1 if options.quick else 3):
        began = time.perf_counter()
        printed = run_train_py(*args)
        times.append(time.perf_counter() - began)
        found = re.search(r"^test +accuracy (\S+)", printed, re.MULTILINE)
        assert found is not None, printed
        accuracy = float(found[1])
    return (
        f"train.py, five epochs: {statistics.median(times):.1f} s from its start to its end, test "
        f"accuracy {accuracy:.4f}"
    )


def busy_core(options: argparse.Namespace) -> str:
    """Return a table of the training time of train.py on digits, alone and beside a busy core."""
    alone, busy = [], []
    for _ in range(options.repeats):
        alone.append(seconds_on_digits())
        spinning = subprocess.Popen([sys.executable, "-c", SPIN])
        try:
            busy.append(seconds_on_digits())
        finally:
            spinning.kill()
            spinning.wait()
    base = statistics.median(alone)
    lines = [
        f"train.py on digits, {len(os.sched_getaffinity(0))} cores, {options.repeats} turns",
        "",
        "| | trained in, s | from, s | to, s | / alone |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, times in (("alone", alone), ("beside a process that keeps a core busy", busy)):
        middle = statistics.median(times)
        lines.append(
            f"| {name} | {middle:.2f} | {min(times):.2f} | {max(times):.2f} | {middle / base:.2f} |"
        )
    return "\n".join(lines)


def seconds_on_digits() -> float:
    """Return the training time that train.py prints for digits."""
    printed = run_train_py()
    found = re.search(r"^trained +(\d+) steps in .* \((\d+) a second", printed, re.MULTILINE)
    assert found is not None, printed
    return int(found[1]) / int(found[2])


def run_train_py(*args: str) -> str:
    """Return what ``train.py fit`` prints, run in a folder of its own."""
    command = [sys.executable, str(ROOT / "train.py"), "fit", *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"train.py failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def wait(options: argparse.Namespace) -> None:
    """Wait until the device is idle."""
    if options.device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
