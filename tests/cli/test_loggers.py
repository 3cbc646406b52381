"""Loggers of Lightning are added to the run's own files, and get figures, settings and pictures."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import yaml
from lightning.fabric.loggers import tensorboard
from lightning.pytorch.loggers import CSVLogger, Logger
from program import SHORT, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from softmax_torch import cli
from softmax_torch.cli import commands
from softmax_torch.cli.console import error_of_this_package
from softmax_torch.cli.run_loggers import hyperparameters, with_logger_folder
from softmax_torch.report import trainer
from softmax_torch.report.logged_pictures import log_pictures, takes_pictures

RUN = Path("runs", "digits", "version_0")


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A picture in place of those of the report, which take seconds."""
    file = io.BytesIO()
    matplotlib.image.imsave(file, np.full((3, 4, 3), 0.5))
    monkeypatch.setattr(commands, "pictures", lambda results: {"confusion": file.getvalue()})
    return file.getvalue()


def logged(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def logger(kind: str, **options: Any) -> dict[str, Any]:
    return {"class_path": kind, "init_args": {"save_dir": "{run}", **options}}


def test_loggers_get_what_the_run_logs(
    here: Path, picture: bytes, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No picture shows the coefficients of a table, which take a fit.
    monkeypatch.setattr(trainer, "inference_of_report", None)
    given = [logger("TensorBoardLogger", name="board"), logger("CSVLogger", name="table")]
    cli.main(["fit", *SHORT, "--trainer.logger", json.dumps(given), "--model.C", "7.5"])
    assert (RUN / "best.ckpt").exists()
    rows = list(csv.DictReader(metrics(here)))
    expected = [(int(r["step"]), float(r["val/nll"])) for r in rows if r["val/nll"]]
    events = logged(RUN / "board" / "version_0")
    found = [(e.step, e.value) for e in events.Scalars("val/nll")]
    assert found == [(step, pytest.approx(value)) for step, value in expected]
    assert len(events.Scalars("test/nll")) == 1
    assert events.Tags()["images"] == ["report/confusion"]
    assert events.Images("report/confusion")[0].step == 82
    text = (RUN / "table" / "version_0" / "metrics.csv").read_text()
    table = list(csv.DictReader(text.splitlines()))
    assert [float(r["val/nll"]) for r in table if r["val/nll"]] == [v for _, v in expected]
    for name in ("board", "table"):
        settings = yaml.safe_load((RUN / name / "version_0" / "hparams.yaml").read_text())
        assert settings["model.C"] == 7.5
        assert settings["data.batch_size"] == 32
        assert settings["model.optimizer.lr"] == 0.3

    # A resumed run goes on with them, or with others.
    capsys.readouterr()
    resume = ["fit", "--resume", "--trainer.accelerator", "cpu", "--trainer.max_epochs"]
    cli.main([*resume, "3"])
    assert "resumed     runs/digits/version_0/last.ckpt" in capsys.readouterr().out
    [event] = logged(RUN / "board" / "version_1").Scalars("val/nll")
    assert event.step == 123
    cli.main([*resume, "4", "--trainer.logger", "false"])
    assert [int(r["epoch"]) for r in csv.DictReader(metrics(here)) if r["train/nll"]] == [
        0,
        1,
        2,
        3,
    ]


def test_a_logger_that_needs_a_folder_writes_to_the_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["fit", *SHORT, "--trainer.logger", "CSVLogger", "--trainer.logger.name", "mine"])
    assert (RUN / "mine" / "version_0" / "metrics.csv").exists()
    # Other commands have no use for it, and need no package of its own.
    monkeypatch.setattr(CSVLogger, "__init__", None)
    cli.main(["test", "--ckpt_path", str(RUN / "best.ckpt")])


def test_a_missing_package_is_an_error_in_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(tensorboard, name, False)
    with pytest.raises(ImportError, match=r"^trainer: .* got: Neither `tensorboard` nor") as error:
        cli.main(["fit", *SHORT, "--trainer.logger", "TensorBoardLogger"])
    assert "\n" not in str(error.value)
    assert error_of_this_package(error.value) is error.value  # the program prints it alone
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("args", "added"),
    [
        (["--trainer.logger", "CSVLogger", "--name", "a"], True),
        (["--trainer.logger=TensorBoardLogger"], True),
        (["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"], True),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "x"], False),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.init_args.save_dir=x"], False),
        (["--trainer.logger", "WandbLogger"], False),
        (["--trainer.logger", "false"], False),
        (["--trainer.logger"], False),
        ([], False),
    ],
)
def test_the_folder_is_added_where_it_is_missing(args: list[str], added: bool) -> None:
    found = with_logger_folder(args)
    if added:
        at = found.index("--trainer.logger.save_dir")
        assert found[at + 1] == "{run}"
        assert found[:at] + found[at + 2 :] == args
    else:
        assert found == args


def test_hyperparameters_have_the_names_of_flags() -> None:
    settings = {"model": {"class_path": "a.B", "init_args": {"C": 1.0, "bias": None}}, "name": "x"}
    assert hyperparameters(settings) == {"model.class_path": "a.B", "model.C": 1.0, "name": "x"}


class Client:
    """The interfaces for pictures of Weights & Biases and MLflow, without their packages."""

    run_id, experiment = "7", None

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def log_image(self, key: str, images: list[Any], step: int) -> None:
        self.seen.append((key, images[0].shape, step))

    def log_artifact(self, run: str, path: str, folder: str) -> None:
        self.seen.append((run, Path(path).name, Path(path).read_bytes(), folder))

    def save(self) -> None:
        pass


class OfMLflow:
    run_id = "7"

    def __init__(self) -> None:
        self.experiment = Client()

    def save(self) -> None:
        pass


def test_pictures_are_passed_to_other_loggers(picture: bytes, tmp_path: Path) -> None:
    wandb: Any = Client()
    assert takes_pictures(wandb)
    log_pictures(wandb, {"confusion": picture}, 3)
    assert wandb.seen == [("report/confusion", (3, 4, 3), 3)]
    mlflow: Any = OfMLflow()
    assert takes_pictures(mlflow)
    log_pictures(mlflow, {"confusion": picture}, 3)
    assert mlflow.experiment.seen == [("7", "confusion.png", picture, "report")]
    plain: Logger = CSVLogger(tmp_path)
    assert not takes_pictures(plain)
