"""The command line: what a user types, reads, and is told when something is wrong."""

import csv
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from softmax_torch import cli
from softmax_torch.cli import commands
from softmax_torch.training import checkpoint
from softmax_torch.training.runs import RunLogger

ROOT = Path(__file__).parents[1]
SHORT = ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The best checkpoint of a whole run on digits, and what the run printed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run("fit", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "digits" / "version_0" / "best.ckpt", done.stdout


def run(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """train.py as a user starts it, from another folder."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *args],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "100"},
    )


def figures(text: str, label: str) -> str:
    """The line of a report that starts with a label."""
    [line] = [line for line in text.splitlines() if line.startswith(f"{label}  ")]
    return line


def test_fit_alone_trains_on_digits(digits: tuple[Path, str]) -> None:
    path, output = digits
    assert path.exists()
    accuracy = re.search(r"accuracy (\S+)", figures(output, "test"))
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.95
    labels = [line[:12].strip() for line in output.splitlines()[-6:]]
    assert labels == ["trained", "device", "best val", "test", "checkpoint", "next"]
    assert "runs/digits/version_0/best.ckpt" in output.splitlines()[-1]


def test_the_console_is_calm(digits: tuple[Path, str]) -> None:
    """One line of progress where there is no terminal, the report, and no advice."""
    _, output = digits
    assert len(output.splitlines()) == 7
    assert output.startswith("epoch 30/30")


@pytest.mark.parametrize(("command", "label"), [("test", "test"), ("validate", "val")])
def test_a_checkpoint_reproduces_the_printed_figures(
    digits: tuple[Path, str], command: str, label: str, here: Path, capsys: Any
) -> None:
    path, output = digits
    cli.main([command, "--ckpt_path", str(path)])
    printed = figures(capsys.readouterr().out, label)
    expected = figures(output, "test" if command == "test" else "best val")
    assert printed.split("accuracy")[1] == expected.split("accuracy")[1]
    assert list(here.iterdir()) == []  # evaluation writes nothing


def test_a_checkpoint_reproduces_the_logged_figures_exactly(
    digits: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """to the last bit, not to what is printed of them."""
    path, _ = digits
    with (path.parent / "metrics.csv").open() as file:
        [logged] = [row for row in csv.DictReader(file) if row["test/nll"]]
    results: list[dict[str, float]] = []
    monkeypatch.setattr(commands, "figures", lambda result: results.append(result) or "")
    cli.main(["test", "--ckpt_path", str(path)])
    assert {name: float(logged[name]) for name in results[0]} == results[0]


def test_the_console_program_is_the_same(
    digits: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 'softmax-torch = "softmax_torch.cli:main"' in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/softmax-torch"])
    assert cli.program() == "softmax-torch"


def test_predict_writes_probabilities(digits: tuple[Path, str], capsys: Any) -> None:
    path, _ = digits
    for name in ("predictions.csv", "predictions_1.csv"):  # nothing is written over
        cli.main(["predict", "--ckpt_path", str(path), "--probabilities"])
        assert f"{name} (359 samples, 10 classes)" in capsys.readouterr().out
        with (path.parent / name).open() as file:
            rows = list(csv.DictReader(file))
        p = torch.tensor([[float(row[f"p_{c}"]) for c in range(10)] for row in rows])
        assert p.shape == (359, 10)
        assert ((0 <= p) & (p <= 1)).all()
        torch.testing.assert_close(p.sum(1), torch.ones(359), rtol=0, atol=1e-6)
        assert p.argmax(1).tolist() == [int(row["predicted"]) for row in rows]
        most = torch.tensor([float(row["probability"]) for row in rows])
        assert torch.equal(most, p.amax(1))
        assert [row["id"] for row in rows] == [str(i) for i in range(359)]


@pytest.fixture
def to_calibrate(digits: tuple[Path, str], here: Path) -> Path:
    """A copy of the run on digits, as one that calibrate changes."""
    ignored = shutil.ignore_patterns("predictions*.csv")
    shutil.copytree(digits[0].parent, here / "run", ignore=ignored)
    return here / "run" / "best.ckpt"


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_calibration_is_kept_and_used_when_asked(
    method: str, to_calibrate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[dict[str, float]] = []
    monkeypatch.setattr(commands, "figures", lambda result: results.append(dict(result)) or "")
    path = ["--ckpt_path", str(to_calibrate)]
    cli.main(["calibrate", *path, "--method", method])
    for flags in ([], ["--calibrated"]):
        cli.main(["validate", *path, *flags])
    before, after, plain, calibrated = results
    assert (plain, calibrated) == (before, after)
    assert after["val/nll"] < before["val/nll"]
    # the rest of the checkpoint is as it was, and whole
    assert not checkpoint.damaged(to_calibrate)
    content = checkpoint.load(to_calibrate)
    assert set(content) - {"calibration"} == set(checkpoint.load(to_calibrate.parent / "last.ckpt"))


def test_predictions_are_calibrated_when_asked(to_calibrate: Path) -> None:
    path = ["--ckpt_path", str(to_calibrate)]
    cli.main(["calibrate", *path])
    temperature = 1 / checkpoint.load(to_calibrate)["calibration"]["scale"].item()
    assert temperature != pytest.approx(1.0, abs=0.01)
    cli.main(["predict", *path, "--probabilities"])
    cli.main(["predict", *path, "--probabilities", "--calibrated"])
    plain, calibrated = (
        torch.tensor(
            [[float(p) for p in row[3:]] for row in csv.reader(file.read_text().splitlines()[1:])],
            dtype=torch.float64,
        )
        for file in (to_calibrate.with_name(f"predictions{n}.csv") for n in ("", "_1"))
    )
    expected = (plain.log() / temperature).softmax(1)
    torch.testing.assert_close(calibrated, expected, rtol=1e-4, atol=1e-7)


def test_a_run_goes_on_from_a_calibrated_checkpoint_as_from_another(
    to_calibrate: Path, here: Path
) -> None:
    flags = ["--trainer.max_epochs", "31"]
    shutil.copytree(to_calibrate.parent, here / "other")
    cli.main(["calibrate", "--ckpt_path", str(to_calibrate.with_name("last.ckpt"))])
    for folder in ("run", "other"):
        cli.main(["fit", "--resume", folder, *flags])
    mine, other = (checkpoint.load(here / folder / "last.ckpt") for folder in ("run", "other"))
    assert "calibration" not in mine  # that was of other weights
    for name, value in mine["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_what_is_not_calibrated_is_refused(command: str, to_calibrate: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkpoint with a calibration, got one with"):
        cli.main([command, "--ckpt_path", str(to_calibrate), "--calibrated"])


def test_a_run_directory_is_never_written_twice(here: Path) -> None:
    cli.main(["fit", *SHORT])
    first = here / "runs" / "digits" / "version_0"
    before = {path: path.read_bytes() for path in first.iterdir()}
    cli.main(["fit", *SHORT, "--model.optimizer.lr", "0.01"])
    assert {path: path.read_bytes() for path in first.iterdir()} == before
    assert (here / "runs" / "digits" / "version_1" / "best.ckpt").exists()


def test_a_run_goes_on_from_a_checkpoint(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT])
    cli.main(["fit", "--ckpt_path", "runs/digits/version_0/last.ckpt", "--trainer.max_epochs", "3"])
    text = (here / "runs" / "digits" / "version_1" / "metrics.csv").read_text()
    assert {row["epoch"] for row in csv.DictReader(text.splitlines()) if row["train/loss"]} == {"2"}


NET = ["--model", "LitClassifier", "--model.optimizer", "AdamW"]


def test_a_net_is_trained_resumed_and_tested_by_its_name(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT, *NET, "--model.mixup", "0.2"])
    report = capsys.readouterr().out
    run = here / "runs" / "digits" / "version_0"
    settings = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert settings["class_path"] == "softmax_torch.training.LitClassifier"
    assert settings["init_args"]["mixup"] == 0.2
    cli.main(["test", "--ckpt_path", str(run / "best.ckpt")])
    assert figures(capsys.readouterr().out, "test") == figures(report, "test")
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    assert "resumed     runs/digits/version_0/last.ckpt" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"model\.mixup: expected 0\.2, got 0\.3"):
        cli.main(["fit", "--resume", "--model.mixup", "0.3"])


def test_a_run_whose_configuration_names_no_class_goes_on(here: Path, capsys: Any) -> None:
    """as those of earlier versions do not."""
    cli.main(["fit", *SHORT])
    path = here / "runs" / "digits" / "version_0" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["model"] = settings["model"]["init_args"]
    path.write_text(yaml.safe_dump(settings))
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    assert "resumed     runs/digits/version_0/last.ckpt" in capsys.readouterr().out


def test_help_has_the_settings_of_both_models(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fit", "--help"])
    text = capsys.readouterr().out
    usual, net = text.split("--model LitSoftmaxRegression (the default):")[1].split(
        "--model LitClassifier:"
    )
    assert "--model.solver" in usual
    assert "inverse strength of the L2 penalty" in net
    assert "--model.backbone BACKBONE" in net
    assert "--model.in_features" not in text


def metrics(here: Path, version: int = 0) -> list[str]:
    path = here / "runs" / "digits" / f"version_{version}" / "metrics.csv"
    return path.read_text().splitlines()


@pytest.mark.parametrize("where", [[], ["runs/digits/version_0"]])
def test_resume_goes_on_in_the_directory_of_the_run(
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


def test_resume_takes_the_newest_run_of_the_name(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT])
    cli.main(["fit", *SHORT, "--model.C", "2.0"])
    cli.main(["fit", *SHORT, "--name", "other"])
    capsys.readouterr()
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    assert "resumed     runs/digits/version_1/last.ckpt" in capsys.readouterr().out
    assert len(metrics(here, 1)) > len(metrics(here, 0))


def test_resume_without_a_checkpoint_begins_anew_in_place(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT])
    expected = metrics(here)
    for path in (here / "runs" / "digits" / "version_0").glob("*.ckpt"):
        path.unlink()
    cli.main(["fit", "--resume", "--trainer.accelerator", "cpu"])
    assert "from its start: it has no checkpoint" in capsys.readouterr().out
    assert metrics(here) == expected


def test_resume_says_which_files_are_damaged(here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT])
    last = here / "runs" / "digits" / "version_0" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1])
    cli.main(["fit", "--resume", "--trainer.max_epochs", "3", "--trainer.accelerator", "cpu"])
    output = capsys.readouterr()
    assert "warning: runs/digits/version_0/last.ckpt: passed over, as it is cut off" in output.err
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
        (["fit", "--resume", "nowhere"], "expected the directory of a run.*got nowhere"),
        (["fit", "--resume=nowhere"], "expected the directory of a run.*got nowhere"),
        (["test", "--resume"], "expected it after fit"),
        (["fit", "--resume", "--ckpt_path", "a.ckpt"], "expected no --ckpt_path beside it"),
        (["fit", "--resume", "--config", "no.yaml"], "--config: expected a file, got no.yaml"),
        (["fit", "--resume", "--config=empty"], "--config: expected settings in empty, got None"),
        (["fit", "--resume", "-c", "broken"], "--config: expected YAML in broken, got while"),
    ],
)
def test_what_cannot_be_resumed(args: list[str], message: str, here: Path) -> None:
    (here / "empty").write_text("")
    (here / "broken").write_text("name: [")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        cli.main(args)
    assert not (here / "runs").exists()


def test_a_run_that_is_under_way_is_left_alone(here: Path) -> None:
    cli.main(["fit", *SHORT])
    logger = RunLogger("runs", "digits", Path("runs/digits/version_0"))
    with pytest.raises(BlockingIOError, match="another process is writing to"):
        cli.main(["fit", "--resume"])
    logger.close()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_with_a_checkpoint(
    signum: int, code: int, tmp_path: Path
) -> None:
    job = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "fit", "--trainer.max_epochs", "100000"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    last = tmp_path / "runs" / "digits" / "version_0" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    job.send_signal(signum)
    _, errors = job.communicate(timeout=60)
    assert job.returncode == code, errors
    lines = errors.splitlines()
    assert re.match(rf"stopped by {signal.Signals(signum).name} at step \d+, kept in ", lines[-2])
    assert lines[-1].strip() == "python train.py fit --resume runs/digits/version_0"
    assert "Traceback" not in errors


def test_flags_go_over_the_configuration(here: Path) -> None:
    cli.main(
        ["fit", *SHORT, "--name", "mine", "--runs", "elsewhere"]
        + ["--model.optimizer", "AdamW", "--model.optimizer.lr", "0.02"]
        + ["--model.class_weight", "balanced", "--model.label_smoothing", "0.1"]
    )
    config = (here / "elsewhere" / "mine" / "version_0" / "config.yaml").read_text()
    for line in ("class_path: torch.optim.AdamW", "lr: 0.02", "class_weight: balanced"):
        assert line in config


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.fast_dev_run", "true"],
        ["--trainer.enable_progress_bar", "false", "--trainer.enable_checkpointing", "false"],
    ],
)
def test_without_checkpoints(flags: list[str], here: Path, capsys: Any) -> None:
    cli.main(["fit", *SHORT, *flags])
    output = capsys.readouterr().out
    assert "test  " in output
    assert "checkpoint" not in output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["fit", "--model.nonsense", "3"], "Option 'nonsense' is not accepted"),
        (["fit", "--data", "NoSuchData"], "NoSuchData"),
        (["fit", "--model.optimizer", "torch.optim.Nope"], "torch.optim.*Nope"),
        (["fit", "--model.num_classes", "7"], "num_classes"),
        (["fit", "--config", "nowhere.yaml"], "does not exist"),
        (["fit", "--config", "unknown.yaml"], "Option 'nonsense' is not accepted"),
        (["train"], "invalid choice: 'train'"),
    ],
)
def test_arguments_that_do_not_exist(
    args: list[str], message: str, here: Path, capsys: Any
) -> None:
    (here / "unknown.yaml").write_text("model:\n  nonsense: 3\n")
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    assert stopped.value.code == 2
    output = capsys.readouterr().err
    assert re.search(message, output)
    assert len(output.splitlines()) < 25  # the message is not buried under a list of options
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        (["test"], ValueError, "test: expected --ckpt_path"),
        (["calibrate"], ValueError, "calibrate: expected --ckpt_path"),
        (
            ["predict", "--ckpt_path", "no.ckpt"],
            FileNotFoundError,
            "no.ckpt: expected a checkpoint of a run, got no such file",
        ),
        (["test", "--ckpt_path", "."], FileNotFoundError, r"\.: expected a .*, got a folder"),
        (["test", "--ckpt_path", "text.ckpt"], ValueError, "damaged or another thing"),
        (["test", "--ckpt_path", "other.ckpt"], ValueError, r"state_dict.*got \['weights'\]"),
        (["test", "--ckpt_path", "alone.ckpt"], FileNotFoundError, "give one with --config"),
        (["fit", "--model.C", "-1"], ValueError, "C: expected a number above 0"),
        (["fit", "--data.batch_size", "0"], ValueError, "batch_size: expected at least 1"),
    ],
)
def test_input_that_cannot_be_used(
    args: list[str], kind: type[Exception], message: str, here: Path
) -> None:
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


def test_code_in_a_checkpoint_is_not_run(here: Path) -> None:
    class Mischief:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (here / "ran",)

    torch.save({"state_dict": Mischief(), "hyper_parameters": {}}, here / "bad.ckpt")
    with pytest.raises(ValueError, match="damaged or another thing"):
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
def test_a_user_reads_a_message_and_no_traceback(
    args: list[str], message: str, tmp_path: Path
) -> None:
    done = run(*args, folder=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_errors_of_others_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        int("not ours")

    monkeypatch.setattr(commands.CLI, "before_fit", lambda self: int("not ours"))
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--trainer.fast_dev_run", "true"])
    with pytest.raises(ValueError, match="invalid literal"):
        cli.main()
