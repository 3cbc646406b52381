"""Unusable arguments and input are refused with a message, before anything is written."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from program import ROOT

from softmax_torch import cli
from softmax_torch.cli import commands
from softmax_torch.report.trainer import ReportingTrainer


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        (["test"], ValueError, "test: expected a run or a checkpoint after it"),
        (["calibrate"], ValueError, "calibrate: expected a run or a checkpoint after it"),
        (["test", "a", "--ckpt_path", "b"], ValueError, "a run or --ckpt_path, got both"),
        (["test", "nowhere"], FileNotFoundError, "nowhere: expected a run or a checkpoint"),
        (["predict", "empty"], FileNotFoundError, "empty: expected a run with best.ckpt or last"),
        (
            ["predict", "--ckpt_path", "no.ckpt"],
            FileNotFoundError,
            "no.ckpt: expected a checkpoint of a run, got no such file",
        ),
        (
            ["test", "--ckpt_path", "."],
            FileNotFoundError,
            r"directory of a run.*got another folder",
        ),
        (["test", "--ckpt_path", "text.ckpt"], ValueError, "damaged or of another kind"),
        (["test", "--ckpt_path", "other.ckpt"], ValueError, r"state_dict.*got \['weights'\]"),
        (["test", "--ckpt_path", "alone.ckpt"], FileNotFoundError, "give one with --config"),
        (["fit", "--model.C", "-1"], ValueError, "C: expected a number above 0"),
        (["fit", "--data.batch_size", "0"], ValueError, "batch_size: expected at least 1"),
    ],
)
def test_unusable_input(args: list[str], kind: type[Exception], message: str, here: Path) -> None:
    (here / "empty").mkdir()
    (here / "empty" / "config.yaml").touch()
    (here / "text.ckpt").write_text("not a checkpoint")
    torch.save({"weights": torch.ones(1)}, here / "other.ckpt")
    torch.save({"state_dict": {}, "hyper_parameters": {}}, here / "alone.ckpt")
    with pytest.raises(kind, match=message):
        cli.main(args)
    assert not (here / "runs").exists()


def test_a_checkpoint_for_other_data_is_refused(
    digits: tuple[Path, str], mnist_root: Path, here: Path
) -> None:
    config = str(ROOT / "configs" / "mnist.yaml")
    args = ["test", "--ckpt_path", str(digits[0]), "--config", config]
    with pytest.raises(ValueError, match=r"in_features: .* has 784, the checkpoint 64"):
        cli.main([*args, "--data.root", str(mnist_root)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--config", "digits", "--data", "MNISTDataModule"],
            r"in_features: .* 784, .*checkpoint 64",
        ),
        (["--model.optimizer", "Adam"], r"optimizer\.class_path: expected torch\.optim\.SGD, got"),
        (["--model.optimizer.lr", "0.1"], r"optimizer\.lr: expected 0\.3, got 0\.1"),
        (["--model.bias", "false"], r"weights of this model, with no model\.linear\.bias, got"),
    ],
)
def test_a_run_does_not_start_from_a_checkpoint_of_another_model(
    flags: list[str], message: str, digits: tuple[Path, str], mnist_root: Path, here: Path
) -> None:
    root = ["--data.root", str(mnist_root)] if "--data" in flags else []
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", "--ckpt_path", str(digits[0]), *flags, *root, "--runs", "new"])
    assert [*(here / "new").glob("*/*")] == []


@pytest.mark.parametrize("command", ["calibrate", "predict", "report", "test", "inference"])
def test_what_needs_all_samples_is_refused_to_several_processes(
    command: str, digits: tuple[Path, str], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReportingTrainer, "world_size", 2)
    (here / "a.csv").write_text("x,y\n" + "1,a\n2,b\n" * 20)
    given = {
        "inference": ["--config", "table", "--data.file", "a.csv", "--data.target", "y"],
        "test": [str(digits[0]), "--output", "b.csv"],
    }
    by = "output" if command == "test" else command
    before = [digits[0].read_bytes(), *here.iterdir()]
    with pytest.raises(ValueError, match=f"^{by}: expected one process, got 2$"):
        cli.main([command, *given.get(command, [str(digits[0])])])
    assert [digits[0].read_bytes(), *here.iterdir()] == before


def test_code_in_a_checkpoint_is_not_run(here: Path) -> None:
    class Mischief:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (here / "ran",)

    torch.save({"state_dict": Mischief(), "hyper_parameters": {}}, here / "bad.ckpt")
    with pytest.raises(ValueError, match="damaged or of another kind"):
        cli.main(["test", "--ckpt_path", "bad.ckpt"])
    assert not (here / "ran").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["fit", "--data.batch_size", "0"],
            "error: batch_size: expected at least 1 or null",
        ),
        (
            ["test", "--ckpt_path", "no.ckpt"],
            "error: no.ckpt: expected a checkpoint of a run, got no such file",
        ),
        (
            ["fit", "--config", str(ROOT / "configs" / "mnist.yaml"), "--data.download", "false"],
            "error: MNIST: expected train-images-idx3-ubyte",
        ),
        (["fit", "--model.optimizer.lr", "1e38"], "error: train/loss: expected a finite number"),
    ],
)
def test_the_program_exits_with_a_message(
    args: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python prints the message of ``sys.exit`` without a traceback."""
    monkeypatch.delenv("SOFTMAX_TORCH_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["train.py", *args])
    monkeypatch.setattr(cli, "end_with_parent", lambda: None)
    monkeypatch.setattr(cli, "end_on_signals", lambda: None)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert str(stopped.value.code).startswith(message)


def test_errors_of_other_packages_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "record_settings", lambda session: int("not ours"))
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--trainer.fast_dev_run", "true"])
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main()
