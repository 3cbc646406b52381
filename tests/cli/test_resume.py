"""Interrupted runs are resumed, with the same settings, to the same metrics."""

import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from program import ROOT, SHORT, metrics
from support import Finished

from softmax_torch import cli
from softmax_torch.training.run_logger import RunLogger


def test_a_run_whose_configuration_names_no_class_is_resumed(here: Path, capsys: Any) -> None:
    """Earlier versions wrote such configurations."""
    cli.main(["fit", *SHORT])
    path = here / "runs" / "digits" / "version_0" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["model"] = settings["model"]["init_args"]
    path.write_text(yaml.safe_dump(settings))
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    assert "resumed     runs/digits/version_0/last.ckpt" in capsys.readouterr().out


@pytest.mark.parametrize("where", [[], ["runs/digits/version_0"]])
def test_resume_continues_in_the_directory_of_the_run(
    where: list[str], here: Path, capsys: Any
) -> None:
    flags = ["--trainer.accelerator", "cpu", "--trainer.max_epochs"]
    cli.main(["fit", *flags, "4"])
    expected = metrics(here)
    shutil.move(here / "runs", here / "other")
    cli.main(["fit", *flags, "2"])
    capsys.readouterr()
    cli.main(["fit", "--resume", *where, *flags, "4"])
    assert "resumed     runs/digits/version_0/last.ckpt, step 82" in capsys.readouterr().out
    assert metrics(here) == expected
    assert [path.name for path in (here / "runs" / "digits").iterdir()] == ["version_0"]


def test_a_run_is_not_resumed_to_fewer_epochs_than_it_has(here: Path) -> None:
    cli.main(["fit", *SHORT])
    before = metrics(here)
    message = "max_epochs: expected at least 2, the epochs that the run has completed, got 1"
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", "--resume", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"])
    assert metrics(here) == before


def test_resume_takes_the_newest_run_of_the_name(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT])
    cli.main(["fit", *SHORT, "--model.C", "2.0"])
    cli.main(["fit", *SHORT, "--name", "other"])
    capsys.readouterr()
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    assert "resumed     runs/digits/version_1/last.ckpt" in capsys.readouterr().out
    assert len(metrics(here, 1)) > len(metrics(here, 0))


def test_resume_without_a_checkpoint_starts_again_in_the_same_directory(
    here: Path, capsys: Any
) -> None:
    cli.main(["fit", *SHORT])
    expected = metrics(here)
    for path in (here / "runs" / "digits" / "version_0").glob("*.ckpt"):
        path.unlink()
    cli.main(["fit", "--resume", "--trainer.accelerator", "cpu"])
    assert "from its start: it has no checkpoint" in capsys.readouterr().out
    assert metrics(here) == expected


def test_resume_names_damaged_files(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT])
    last = here / "runs" / "digits" / "version_0" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    output = capsys.readouterr()
    assert "warning: runs/digits/version_0/last.ckpt: skipped: cut off" in output.err
    assert "resumed     runs/digits/version_0/best.ckpt" in output.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.C", "3.0"], r"got others:\n  model.C: expected 10.0, got 3.0"),
        (["--data.batch_size", "7"], "batch_size: expected 32, got 7"),
        (["--model.optimizer", "Adam"], "model.optimizer.class_path: expected torch.optim.SGD"),
        (["--config", "mnist.yaml"], "class_path: expected softmax_torch.data.DigitsDataModule"),
    ],
)
def test_resume_with_other_settings_is_refused(
    flags: list[str], message: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "configs" / "mnist.yaml", here)
    cli.main(["fit", *SHORT])
    before = metrics(here)
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", "--resume", "runs/digits/version_0", *flags, *SHORT[2:]])
    assert metrics(here) == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--resume"], "expected an earlier run in runs/digits, got none"),
        (["fit", "--resume", "nowhere"], "nowhere: expected the directory of a run"),
        (["fit", "--resume=nowhere"], "nowhere: expected the directory of a run"),
        (["fit", "--resume", "--ckpt_path", "a.ckpt"], "expected no --ckpt_path beside it"),
        (["fit", "--resume", "--config", "no.yaml"], "--config: expected a file, got no.yaml"),
        (["fit", "--resume", "--config=empty"], "--config: expected settings in empty, got None"),
        (["fit", "--resume", "-c", "broken"], "--config: expected YAML in broken, got while"),
    ],
)
def test_refusals_of_resume(args: list[str], message: str, here: Path) -> None:
    (here / "empty").write_text("")
    (here / "broken").write_text("name: [")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cli.main(args)
    assert not (here / "runs").exists()


def test_a_running_run_is_not_resumed(here: Path) -> None:
    cli.main(["fit", *SHORT])
    logger = RunLogger("runs", "digits", Path("runs/digits/version_0"))
    with pytest.raises(BlockingIOError, match="another process is writing to"):
        cli.main(["fit", "--resume"])
    logger.close()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_with_a_checkpoint(
    signum: signal.Signals, code: int, programs: tuple[Path, dict[str, Finished]]
) -> None:
    done = programs[1][signum.name]
    assert done.code == code, done.stderr
    assert (programs[0] / signum.name / "runs" / "digits" / "version_0" / "last.ckpt").exists()
    lines = done.stderr.splitlines()
    assert re.match(rf"stopped by {signum.name} at step \d+, kept in ", lines[-2])
    assert lines[-1].strip() == "python train.py fit --resume runs/digits/version_0"
    assert "Traceback" not in done.stderr
