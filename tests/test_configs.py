"""Every YAML in configs/ is run for a few batches; gradient descent descends, and MNIST learns."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mnist_files import write_mnist
from PIL import Image
from safetensors.torch import save_file

from softmax_torch import cli
from softmax_torch.cli.console import program_name
from softmax_torch.storage.run_results import checkpoint_of

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


SMALLER = {"linear_probe": ["--data.size", "8", "--model.C", "[0.1, 1.0, 10.0]"]}
"""Flags that make slow configurations quick."""


@pytest.fixture
def data_root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Generated data: files of each variant of MNIST, images, a table, and features."""
    for name in ("MNIST", "FashionMNIST"):
        write_mnist(tmp_path / "data", name)
    for c, name in enumerate(("dark", "light")):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(10):
            Image.new("L", (6, 6), 200 * c + i).save(folder / f"{i}.png")
    rows = "".join(f"{k},{'ab'[k % 2]},{'xy'[k % 2]}\n" for k in range(40))
    (tmp_path / "table.csv").write_text(f"size,color,class\n{rows}")
    y = torch.arange(40) % 2
    for part in ("train", "test"):
        save_file({"x": torch.eye(40), "y": y}, str(tmp_path / f"{part}.safetensors"))
    return tmp_path / "data"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_config_runs(
    config: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(data_root.parent)
    monkeypatch.setenv("SOFTMAX_TORCH_DATA", str(data_root))
    settings = yaml.safe_load(config.read_text())
    solver = "solver" in settings["model"]
    epochs = "200" if solver else "2"  # a solver stops at the optimum
    cli.main(
        ["fit", "--config", str(config)]
        + ["--trainer.max_epochs", epochs, "--trainer.limit_train_batches", "3"]
        + ["--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu"]
        + SMALLER.get(config.stem, [])
    )
    name = settings["name"]
    assert name == config.stem
    chosen = not solver or isinstance(settings["model"].get("C"), list)
    used = "best.ckpt" if chosen else "last.ckpt"
    run = data_root.parent / "runs" / name / "version_0"
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "metrics.csv",
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    }
    assert capsys.readouterr().out.endswith(
        f"checkpoint  runs/{name}/version_0/{used}\n"
        f"next        {program_name()} test runs/{name}/version_0\n"
    )
    assert checkpoint_of(run) == run / used


def test_there_is_one_of_each_kind() -> None:
    names = {path.stem for path in CONFIGS}
    assert {"digits", "mnist", "fashion_mnist", "digits_gradient_descent"} <= names
    assert {"mnist_newton", "mnist_cnn", "linear_probe"} <= names


def test_gradient_descent_takes_one_step_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its objective never rises, unlike that of SGD."""
    monkeypatch.chdir(tmp_path)
    config = next(path for path in CONFIGS if path.stem == "digits_gradient_descent")
    cli.main(["fit", "--config", str(config), "--trainer.max_epochs", "40"])
    with (tmp_path / "runs" / "digits_gradient_descent" / "version_0" / "metrics.csv").open() as f:
        rows = [row for row in csv.DictReader(f) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    losses = torch.tensor([float(row["train/loss"]) for row in rows])
    assert (losses.diff() < 0).all()


def test_mnist_learns(real_mnist_root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Two epochs of the shipped configuration reach 91% accuracy on the real test set."""
    monkeypatch.chdir(tmp_path)
    config = next(path for path in CONFIGS if path.stem == "mnist")
    cli.main(
        ["fit", "--config", str(config), "--data.root", str(real_mnist_root)]
        + ["--trainer.max_epochs", "2"]
    )
    text = (tmp_path / "runs" / "mnist" / "version_0" / "metrics.csv").read_text().splitlines()
    [test] = [float(row["test/accuracy"]) for row in csv.DictReader(text) if row["test/accuracy"]]
    assert test > 0.91
