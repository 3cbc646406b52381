"""Checkpoints that an earlier version wrote are loaded, predict and resume with the same results.

    tests/fixtures/checkpoints/<name>/run       run directory, stopped within an epoch or after one
    tests/fixtures/checkpoints/<name>/after.pt  results of the version that wrote it:
        predicted    class probabilities of the first test images, from last.ckpt
        state_dict, optimizer   parameters, and state of the optimizer, after the run was resumed
        metrics      lines of metrics.csv after the run was resumed
        environment  torch version and processor that all of this was computed with

In that environment every bit has to be the same, elsewhere numbers to 1e-6: matrix products differ
in their last bits between processors. `python tests/training/test_old_checkpoints.py` with the
package of that earlier version writes the fixtures anew.
"""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

import softmax_torch
from softmax_torch import cli
from softmax_torch.data import DigitsDataModule
from softmax_torch.storage.checkpoints import newest_checkpoint
from softmax_torch.training import LitClassifier
from softmax_torch.training.run_checkpoint import RunCheckpoint, Stopped
from softmax_torch.training.run_logger import RunLogger

FIXTURES = Path(__file__).parents[1] / "fixtures" / "checkpoints"
QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
SOLVER = ["--model.optimizer", "null", "--model.lr_scheduler", "null", "--data.batch_size", "null"]
COMMANDS = {
    "adam": [
        *("--model.optimizer", "Adam", "--model.optimizer.lr", "0.01"),
        *("--model.lr_scheduler", "ExponentialLR", "--model.lr_scheduler.gamma", "0.99"),
        *("--model.lr_interval", "step", "--model.steps_per_call", "8"),
        *("--model.log_every_n_steps", "16", "--trainer.max_epochs", "3"),
    ],
    "newton": [*SOLVER, "--model.solver", "newton", "--trainer.max_epochs", "5"],
    "path": [*SOLVER, "--model.solver", "auto", "--model.C", "[1, 30, 3000]"],
}
"""Flags of a fit on digits."""

STOPS = {"adam": 57, "newton": 2, "path": 2, "net": 33}
"""Optimizer steps after which the runs were stopped."""


class Tiny(nn.Module):
    """A backbone of 8 features with statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 8
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(6),
            nn.Dropout(0.3),
        )

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x.unsqueeze(1)).flatten(1)
        return features


def fit_net(folder: Path | None) -> LitClassifier:
    """Train a net by gradient descent, in the run directory that is there or in a new one."""
    torch.manual_seed(0)
    lit = LitClassifier(
        64,
        10,
        Tiny(),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        lr_scheduler=partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9),
        freeze_backbone=True,
        unfreeze_at_epoch=1,
        backbone_lr=0.01,
        C=10.0,
        class_weight="balanced",
        mixup=0.4,
        cutmix=1.0,
        steps_per_call=4,
    )
    found = None if folder is None else newest_checkpoint(folder)[0]
    logger = RunLogger("runs", "net", folder)
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=logger,
        callbacks=[RunCheckpoint(seconds=1e9)],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
    )
    try:
        data = DigitsDataModule(batch_size=64)
        trainer.fit(lit, data, ckpt_path=found and found.path, weights_only=True)
    finally:
        logger.close()
    return lit


def begin(name: str) -> None:
    """Begin a run in this folder."""
    if name == "net":
        fit_net(None)
    else:
        cli.main(["fit", "--name", name, *COMMANDS[name], *QUIET])


def resume(name: str) -> None:
    """Resume a run in this folder."""
    if name == "net":
        fit_net(Path("runs", "net", "version_0"))
    else:
        cli.main(["fit", "--resume", f"runs/{name}/version_0"])


def predicted(name: str, path: Path) -> Tensor:
    """Class probabilities (20, 10) of test images by a checkpoint."""
    data = DigitsDataModule()
    data.setup()
    x = data.splits["test"].x[:20]
    if name != "net":
        return softmax_torch.load(path).predict_proba(x.numpy())
    lit = LitClassifier.load_from_checkpoint(path, backbone=Tiny(), weights_only=True).eval()
    with torch.no_grad():
        return lit.logits(x / 16).softmax(1)


def results(name: str) -> dict[str, Any]:
    """Predict with a stopped run in this folder, and resume it; see the top of this file."""
    folder = Path("runs", name, "version_0")
    before = predicted(name, folder / "last.ckpt")
    resume(name)
    content = torch.load(folder / "last.ckpt", weights_only=True)
    return {
        "predicted": before,
        "state_dict": content["state_dict"],
        "optimizer": content["optimizer_states"],
        "metrics": (folder / "metrics.csv").read_text().splitlines(),
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.partition(": ")[2] for line in lines if line[:10] == "model name"), "")
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": str(torch.__version__), "processor": processor, "capability": capability}


@contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def compare(got: Any, expected: Any, same: Callable[[Tensor, Tensor], None]) -> None:
    """AssertionError where two results differ in structure, or in numbers by this comparison."""
    if isinstance(expected, Tensor):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        same(got, expected)
    elif isinstance(expected, float):
        same(torch.tensor(got, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64))
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for key, value in expected.items():
            compare(got[key], value, same)
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            compare(one, other, same)
    else:
        assert got == expected


def number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.filterwarnings("ignore:the fit ended after")
@pytest.mark.parametrize("name", STOPS)
def test_a_run_of_an_earlier_version_predicts_and_resumes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURES / name / "run", tmp_path / "runs" / name / "version_0")
    expected = torch.load(FIXTURES / name / "after.pt", weights_only=True)
    with one_thread():
        got = results(name)
    here, there = got.pop("environment"), expected.pop("environment")
    # Earlier versions had no means over classes, and did not keep the validation of a path's fits.
    for state in got["optimizer"]:
        for kept in state.get("fits", []):
            for figure in ("val/nll", "val/accuracy"):
                kept.pop(figure, None)
    close = partial(torch.testing.assert_close, rtol=1e-6, atol=1e-6)
    exact = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
    for one in (got, expected):
        one["metrics"] = [[number(x) for x in line.split(",")] for line in one["metrics"]]
        new = ("balanced_accuracy", "macro_f1", "weighted_f1")
        columns = [c for c in zip(*one["metrics"], strict=True) if not str(c[0]).endswith(new)]
        one["metrics"] = [column for column in columns if "ece" not in str(column[0])]
        one["ece"] = [column for column in columns if "ece" in str(column[0])]
    # The fixtures have the ECE of torchmetrics, which adds up in float32.
    compare(got.pop("ece"), expected.pop("ece"), close)
    compare(got, expected, exact if here == there else close)
    folders = FIXTURES / name / "run", Path("runs", name, "version_0")
    old, new = (torch.load(folder / "last.ckpt", weights_only=True) for folder in folders)
    assert new.keys() == old.keys()
    assert new["hyper_parameters"] == old["hyper_parameters"]


def write(name: str) -> None:
    """Write the fixture of this name."""
    real = RunCheckpoint.on_train_batch_end

    def stopping(self: RunCheckpoint, trainer: Trainer, *rest: Any) -> None:
        if trainer.global_step == STOPS[name]:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, trainer, *rest)

    RunCheckpoint.on_train_batch_end = stopping  # type: ignore[method-assign]
    try:
        begin(name)
        raise AssertionError("the run was not stopped")
    except Stopped:
        pass
    finally:
        RunCheckpoint.on_train_batch_end = real  # type: ignore[method-assign]
    run, target = Path("runs", name, "version_0"), FIXTURES / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for path in (run / "best.ckpt", run / "previous.ckpt"):  # small fixtures
        path.unlink(missing_ok=True)
    shutil.copytree(run, target / "run")
    torch.save(results(name), target / "after.pt")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary, one_thread():
        os.chdir(temporary)
        for each in STOPS:
            write(each)
