"""Arguments of the Trainer that say what it writes and prints."""

import csv
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from program import ROOT, metrics

from softmax_torch import cli
from softmax_torch.cli import commands as cli_commands

sys.path.append(str(ROOT / "tests" / "training"))
from rows import RowsDataModule
from trainer_flags import (
    KINDS,
    fit,
    message_of,
    model,
    program,
    refusal,
    refused,
    supported,
)
from trainers import trainer as quiet_trainer

# Files, figures and output


@supported
def logger() -> None:
    """Loggers beside the run's own: tests/cli/test_loggers.py."""
    program("--trainer.logger", "false")
    names = {path.name for path in Path("runs", "digits", "version_0").iterdir()}
    assert names >= {"config.yaml", "metrics.csv", "best.ckpt"}


@supported
def callbacks() -> None:
    flags = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.save_top_k", "2"]
    flags += ["--trainer.callbacks.monitor", "val/accuracy", "--trainer.callbacks.mode", "max"]
    program(*flags, "--trainer.max_epochs", "3")
    run = Path("runs", "digits", "version_0")
    kept = list((run / "checkpoints").iterdir())
    assert len(kept) == 2
    assert (run / "best.ckpt").exists()
    cli.main(["test", "--ckpt_path", str(kept[0])])  # with the config.yaml of the run
    cli.main(["fit", "--resume", "--trainer.max_epochs", "4", "--trainer.accelerator", "cpu"])
    assert len(list((run / "checkpoints").iterdir())) == 2
    flags = ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "loss"]
    with pytest.raises(ValueError, match=r"EarlyStopping\.monitor: expected one of train/loss"):
        program(*flags, "--name", "refused")
    assert not Path("runs", "refused").exists()
    for kind in KINDS:
        expected = r"train/gap, val/accuracy" if kind == "solver" else r"train/nll, val/accuracy"
        data = RowsDataModule(None if kind == "solver" else 4)
        with pytest.raises(ValueError, match=rf"EarlyStopping\.monitor: .*{expected}.*, got loss"):
            quiet_trainer(1, EarlyStopping("loss")).fit(model(kind), data)
        fit(kind, EarlyStopping("val/nll"))
    with pytest.raises(ValueError, match=r"expected one of train/loss.*nll, got val/nll"):
        quiet_trainer(1, EarlyStopping("val/nll"), limit_val_batches=0).fit(model("softmax"), data)


@supported
def enable_checkpointing() -> None:
    program("--trainer.enable_checkpointing", "false")
    assert not list(Path("runs").rglob("*.ckpt"))
    flags = ["--trainer.enable_checkpointing", "false", "--trainer.callbacks", "ModelCheckpoint"]
    with pytest.raises(ValueError, match=r"^trainer: .*found `ModelCheckpoint` in callbacks"):
        program(*flags)


@supported
def enable_progress_bar() -> None:
    """tests/training/test_progress_bar.py has the bar."""
    for flags, bars in (
        (["--trainer.enable_progress_bar", "false"], []),
        (["--trainer.callbacks", "TQDMProgressBar"], ["TQDMProgressBar"]),
        ([], ["EpochBar"]),
    ):
        found = [type(c).__name__ for c in callbacks_of_the_program(*flags)]
        assert [name for name in found if name.endswith("Bar")] == bars


def callbacks_of_the_program(*flags: str) -> list[Any]:
    """Return the callbacks of the trainer that the command line makes."""
    made: list[Any] = []
    original = cli_commands.fit
    cli_commands.FUNCTIONS["fit"] = lambda session: made.extend(session.trainer.callbacks)
    try:
        program(*flags)
    finally:
        cli_commands.FUNCTIONS["fit"] = original
    return made


@supported
def enable_model_summary() -> None:
    kinds = [
        {type(c).__name__ for c in callbacks_of_the_program(*flags)}
        for flags in ([], ["--trainer.enable_model_summary", "true"])
    ]
    assert kinds[1] - kinds[0] == {"RichModelSummary"}


@supported
def log_every_n_steps() -> None:
    program("--trainer.log_every_n_steps", "20")
    rows = [row for row in csv.DictReader(metrics(Path())) if row["train/loss_step"]]
    assert [row["step"] for row in rows] == ["20", "40"]


@supported
def profiler() -> None:
    records: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler = Keep()
    logging.getLogger("lightning.pytorch.profilers").addHandler(handler)
    try:
        program("--trainer.profiler", "simple")
    finally:
        logging.getLogger("lightning.pytorch.profilers").removeHandler(handler)
    assert any("FIT Profiler Report" in text and "optimizer_step" in text for text in records)
    assert "['simple', 'advanced', 'pytorch', 'xla']" in message_of("--trainer.profiler", "x")


@supported
def enable_autolog_hparams() -> None:
    """tests/cli/test_loggers.py has the hyper-parameters."""
    flags = ["--trainer.logger", "CSVLogger", "--trainer.enable_autolog_hparams", "false"]
    program(*flags)
    assert not list(Path("runs").rglob("hparams.yaml"))


@refused
def barebones() -> None:
    assert refusal("--trainer.barebones", "true").endswith("log and its checkpoints, got True")


@refused
def default_root_dir() -> None:
    assert "--runs names the folder" in refusal("--trainer.default_root_dir", "elsewhere")


@refused
def model_registry() -> None:
    assert refusal("--trainer.model_registry", "mine").endswith("own directory, got mine")
