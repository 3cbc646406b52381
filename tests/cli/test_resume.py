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
from softmax_torch.cli import resuming
from softmax_torch.cli.parser import parse
from softmax_torch.data import DigitsDataModule
from softmax_torch.storage.checkpoints import read_checkpoint
from softmax_torch.training.run_logger import RunLogger


class ResumedDigitsDataModule(DigitsDataModule):
    """Data of a user."""


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("short_run")
def test_a_run_whose_configuration_names_no_class_is_resumed(here: Path, capsys: Any) -> None:
    """Earlier versions wrote such configurations."""
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


@pytest.mark.usefixtures("short_run")
def test_a_run_is_not_resumed_to_fewer_epochs_than_it_has(here: Path) -> None:
    before = metrics(here)
    files = contents(here)
    message = "max_epochs: expected at least 2, the epochs that the run has completed, got 1"
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", "--resume", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"])
    assert metrics(here) == before
    assert contents(here) == files


SOLVER = [
    *("--model.optimizer", "null", "--model.lr_scheduler", "null", "--data.batch_size", "null"),
    *("--model.solver", "newton", "--trainer.max_epochs", "200"),
]
EARLY = [
    *("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/nll"),
    *("--trainer.callbacks.patience", "1", "--trainer.callbacks.min_delta", "10"),
]
LONGER = "fit --resume runs/digits/version_0 --trainer.max"


@pytest.mark.parametrize(
    ("flags", "reason", "longer"),
    [
        (["--trainer.max_epochs", "2"], "2 of 2 epochs", f"{LONGER}_epochs 4"),
        pytest.param(
            ["--trainer.max_steps", "50", "--trainer.max_epochs", "-1"],
            "50 of 50 steps",
            f"{LONGER}_steps 100",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(EARLY, "stopped early after epoch 2", "last.ckpt --trainer.callbacks null"),
            marks=pytest.mark.slow,
        ),
        (SOLVER, "converged after 8 iterations", None),
        pytest.param(
            *([*SOLVER, "--model.C", "[0.1, 1]"], "fitted all 2 values of C", None),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["epochs", "steps", "early", "solver", "path"],
)
def test_a_finished_run_is_not_resumed(
    flags: list[str], reason: str, longer: str | None, here: Path, capsys: Any
) -> None:
    cli.main(["fit", *flags, "--trainer.accelerator", "cpu"])
    [*_, checkpoint, following] = capsys.readouterr().out.splitlines()
    before = contents(here)
    cli.main(["fit", "--resume", "runs/digits"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"finished    runs/digits/version_0: {reason}"
    assert (lines[1], lines[-1]) == (checkpoint, following)
    assert [line for line in lines if line.startswith("longer")] == lines[2:-1]
    assert lines[2:-1] == [] if longer is None else lines[2].endswith(longer)
    assert contents(here) == before
    # A run that was killed before its result was logged gets it, and nothing else.
    metrics = here / "runs" / "digits" / "version_0" / "metrics.csv"
    rows = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(rows[:-1]))
    cli.main(["fit", "--resume", "runs/digits"])
    assert capsys.readouterr().out.splitlines()[-1] == following
    assert metrics.read_text() == "".join(rows)
    assert contents(here) == before


@pytest.mark.usefixtures("short_run")
@pytest.mark.slow
def test_a_run_that_got_more_epochs_keeps_them(here: Path, capsys: Any) -> None:
    """A run that is interrupted again continues to the new number."""
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--name", "digits"])
    capsys.readouterr()
    cli.main(["fit", "--resume"])
    assert "finished    runs/digits/version_0: 3 of 3 epochs" in capsys.readouterr().out
    settings = yaml.safe_load((here / "runs/digits/version_0/config.yaml").read_text())
    assert (settings["trainer"]["max_epochs"], settings["name"]) == (3, "digits")


@pytest.mark.usefixtures("short_run")
@pytest.mark.slow
def test_an_edited_configuration_is_refused(here: Path) -> None:
    config = here / "runs" / "digits" / "version_0" / "config.yaml"
    before, text, more = contents(here), config.read_text(), ["--trainer.max_epochs", "3"]
    edited = text.replace("batch_size: 32", "batch_size: 64").replace("lr: 0.3", "lr: 0.2")
    config.write_text(edited)
    message = (
        r"got others in runs/digits/version_0/config\.yaml; restore it, or begin a new run:\n"
        r"  model\.optimizer\.lr: expected 0\.3, got 0\.2\n  data\.batch_size: expected 32, got 64$"
    )
    with pytest.raises(ValueError, match=message):
        cli.main(["fit", "--resume", *more])
    config.write_text(text)
    assert contents(here) == before
    # Flags may restore what the file has lost.
    config.write_text(edited)
    cli.main(["fit", "--resume", *more, "--data.batch_size", "32", "--model.optimizer.lr", "0.3"])
    assert config.read_text() == text.replace("max_epochs: 2", "max_epochs: 3")


def test_a_checkpoint_of_an_earlier_version_is_compared_by_its_numbers() -> None:
    run = ROOT / "tests" / "fixtures" / "checkpoints" / "adam" / "run"
    content = read_checkpoint(run / "last.ckpt")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert resuming.changed_numbers(content, settings) == []
    model, data = (settings[key]["init_args"] for key in ("model", "data"))
    model["C"] = 3.0
    model["optimizer"]["init_args"]["lr"] = 0.5
    data["batch_size"] = 64
    assert resuming.changed_numbers(content, settings) == [
        "model.C: expected 10.0, got 3.0",
        "data.batch_size, batches of an epoch: expected 41, got 21",
        "model.optimizer.lr: expected 0.01, got 0.5",
    ]


@pytest.mark.usefixtures("short_run")
@pytest.mark.slow
def test_resume_takes_the_newest_run_of_the_name(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT, "--model.C", "2.0"])
    cli.main(["fit", *SHORT, "--name", "other"])
    capsys.readouterr()
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    assert "resumed     runs/digits/version_1/last.ckpt" in capsys.readouterr().out
    assert len(metrics(here, 1)) > len(metrics(here, 0))


def resumed_run(*args: str) -> Path | None:
    """Return the run that a command line resumes; it is not trained."""
    return parse(["fit", "--resume", *args]).resolved().resumed_run


def test_resume_finds_the_name_where_a_new_run_gets_it(here: Path) -> None:
    data = {"class_path": "softmax_torch.data.DigitsDataModule"}
    for name in ("digits", "resumed_digits", "first"):
        (run := here / "runs" / name / "version_0").mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    (here / "a.yaml").write_text("name: first\n")
    (here / "b.yaml").write_text("model: {init_args: {C: 1.0}}\n")
    assert resumed_run() == Path("runs/digits/version_0")
    # The name of a user's data follows from its class, as in ``cli.implied_settings``.
    own = f"{__name__}.ResumedDigitsDataModule"
    assert resumed_run("--data", own) == Path("runs/resumed_digits/version_0")
    assert resumed_run("--config", "a.yaml", "--config", "b.yaml", "--data", own) == Path(
        "runs/first/version_0"
    )


@pytest.mark.usefixtures("short_run")
def test_resume_without_a_checkpoint_starts_again_in_the_same_directory(
    here: Path, capsys: Any
) -> None:
    expected = metrics(here)
    for path in (here / "runs" / "digits" / "version_0").glob("*.ckpt"):
        path.unlink()
    cli.main(["fit", "--resume", "--trainer.accelerator", "cpu"])
    assert "from its start: it has no checkpoint" in capsys.readouterr().out
    assert metrics(here) == expected


@pytest.mark.usefixtures("short_run")
def test_resume_names_damaged_files(here: Path, capsys: Any) -> None:
    last = here / "runs" / "digits" / "version_0" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    output = capsys.readouterr()
    assert "warning: runs/digits/version_0/last.ckpt: skipped: cut off" in output.err
    assert "resumed     runs/digits/version_0/best.ckpt" in output.out


@pytest.mark.usefixtures("short_run")
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
    ],
)
def test_refusals_of_resume(args: list[str], message: str, here: Path) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cli.main(args)
    assert not (here / "runs").exists()


@pytest.mark.usefixtures("short_run")
def test_a_running_run_is_not_resumed(here: Path) -> None:
    logger = RunLogger("runs", "digits", Path("runs/digits/version_0"))
    with pytest.raises(BlockingIOError, match="another process is writing to"):
        cli.main(["fit", "--resume", "--trainer.max_epochs", "3"])
    logger.close()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_with_a_checkpoint(
    signum: signal.Signals, code: int, signalled: tuple[Path, dict[str, Finished]]
) -> None:
    done = signalled[1][signum.name]
    assert done.code == code, done.stderr
    assert (signalled[0] / signum.name / "runs" / "digits" / "version_0" / "last.ckpt").exists()
    lines = done.stderr.splitlines()
    assert re.match(rf"stopped by {signum.name} at step \d+, kept in ", lines[-2])
    assert lines[-1].strip() == "python train.py fit --resume runs/digits/version_0"
    assert "Traceback" not in done.stderr
