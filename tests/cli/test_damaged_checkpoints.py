"""No command uses a checkpoint with a changed bit, or with weights that are NaN or infinite."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

import softmax_torch
from softmax_torch import cli
from softmax_torch.data import DigitsDataModule
from softmax_torch.storage.checkpoints import read_checkpoint, write_checkpoint
from softmax_torch.training import LitSoftmaxRegression

BEST, WEIGHT = "run/best.ckpt", "model.linear.weight"


def in_trainer() -> None:
    """Test in Python, with a trainer that no option has prepared."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.test(LitSoftmaxRegression(64, 10), DigitsDataModule(), BEST, weights_only=True)


USES: dict[str, list[str] | Callable[[], Any]] = {
    "validate": ["validate", BEST],
    "test": ["test", BEST],
    "test a run": ["test", "run"],
    "predict": ["predict", BEST],
    "predict --input": ["predict", "run", "--input", "x.npy"],
    "calibrate": ["calibrate", BEST],
    "report": ["report", "run"],
    "export": ["export", "run", "--output", "x.safetensors"],
    "export --input": ["export", "run", "--output", "x.pt2", "--input", "x.npy"],
    "fit --ckpt_path": ["fit", "--ckpt_path", BEST, "--trainer.max_epochs", "31"],
    "load": lambda: softmax_torch.load(BEST),
    "load a run": lambda: softmax_torch.load("run"),
    "load_from_checkpoint": lambda: LitSoftmaxRegression.load_from_checkpoint(
        BEST, weights_only=True
    ),
    "Trainer": in_trainer,
}


@pytest.fixture(scope="module")
def run(digits: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose best.ckpt is whole, in a folder with raw input."""
    folder = tmp_path_factory.mktemp("damaged")
    shutil.copytree(digits[0].parent, folder / "run")
    np.save(folder / "x.npy", np.zeros((5, 8, 8), np.uint8))
    return folder


def use(name: str) -> None:
    way = USES[name]
    if callable(way):
        way()
    else:
        cli.main(way)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refused(run: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that a use raises one line of ValueError, and writes nothing."""
    monkeypatch.chdir(run)
    before = files(run)
    with pytest.raises(ValueError, match=message) as raised:
        use(name)
    assert "\n" not in str(raised.value)
    assert files(run) == before
    assert [*run.glob("runs/digits/*")] == []


@pytest.mark.parametrize("name", USES)
def test_a_flipped_bit_is_refused(name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = run / BEST
    good = path.read_bytes()
    weight = read_checkpoint(path)["state_dict"][WEIGHT].numpy().tobytes()
    at = good.index(weight) + len(weight) // 2
    try:
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        refused(run, name, r"best\.ckpt: .* damaged: its content does not match", monkeypatch)
    finally:
        path.write_bytes(good)


@pytest.mark.parametrize("name", ["test", "predict --input", "report", "fit --ckpt_path", "load"])
def test_weights_that_are_not_finite_are_refused(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest of such a file is right."""
    path = run / BEST
    good = path.read_bytes()
    content = read_checkpoint(path)
    content["state_dict"][WEIGHT][2, 7] = -math.inf if name == "load" else math.nan
    try:
        write_checkpoint(path, content)
        message = r"best\.ckpt: expected finite .* got (nan|-inf) in model\.linear\.weight\[2, 7\]"
        refused(run, name, message, monkeypatch)
    finally:
        path.write_bytes(good)


def test_a_run_with_weights_that_are_not_finite_is_not_resumed(
    digits: tuple[Path, str], here: Path
) -> None:
    shutil.copytree(digits[0].parent, here / "run")
    content = read_checkpoint(here / "run" / "last.ckpt")
    content["state_dict"]["model.linear.bias"][3] = math.nan
    write_checkpoint(here / "run" / "last.ckpt", content)
    with pytest.raises(ValueError, match=r"last\.ckpt: .*got nan in model\.linear\.bias\[3\]"):
        cli.main(["fit", "--resume", "run", "--trainer.max_epochs", "31"])


@pytest.mark.parametrize("name", ["test a run", "predict --input", "fit --ckpt_path", "load"])
@pytest.mark.parametrize("what", ["cut off", "of another program", "safetensors"])
def test_a_file_that_is_no_checkpoint_is_refused(
    what: str, name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run / BEST
    good = path.read_bytes()
    try:
        if what == "cut off":
            path.write_bytes(good[: len(good) // 2])
        elif what == "safetensors":
            save = pytest.importorskip("safetensors.torch").save
            path.write_bytes(save({"weight": torch.ones(2)}))
        else:
            torch.save({"model": torch.ones(2)}, path)
        refused(run, name, r"best\.ckpt: expected a checkpoint of a run, (with|got)", monkeypatch)
    finally:
        path.write_bytes(good)
