"""Commands do and print what they promise, and agree on metrics."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from program import ROOT, SHORT, figures

from softmax_torch import cli
from softmax_torch.cli import commands
from softmax_torch.cli.console import LINE


def test_fit_alone_trains_on_digits(digits: tuple[Path, str]) -> None:
    path, output = digits
    assert path.exists()
    accuracy = re.search(r"accuracy (\S+)", figures(output, "test"))
    assert accuracy is not None
    assert float(accuracy[1]) >= 0.95
    labels = [line[:12].strip() for line in output.splitlines()[-7:]]
    assert labels == ["trained", "device", "best val", "test", "baseline", "checkpoint", "next"]
    assert output.splitlines()[-2].endswith("runs/digits/version_0/best.ckpt")
    assert output.splitlines()[-1].endswith("python train.py test runs/digits/version_0")


def test_fit_prints_its_data_its_progress_and_its_result_alone(digits: tuple[Path, str]) -> None:
    """Four lines about data, one of progress where there is no terminal, the result, no advice."""
    _, output = digits
    data = output.splitlines()[:4]
    assert data == [
        "data        1797 samples: 1294 train, 144 val, 359 test",
        "features    64 (8 x 8 grey images)",
        "classes     10, from 174 to 183 samples each",
        "baseline    accuracy 0.0764  nll 2.3059  (class frequencies, on val)",
    ]
    assert output.splitlines()[4].startswith("epoch 30/30")
    assert len(output.splitlines()) == 5 + 7
    assert max(map(len, output.splitlines())) <= LINE


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
    """To the last bit, beyond the printed digits."""
    path, _ = digits
    with (path.parent / "metrics.csv").open() as file:
        [logged] = [row for row in csv.DictReader(file) if row["test/nll"]]
    results: list[dict[str, float]] = []
    monkeypatch.setattr(commands, "format_metrics", lambda result: results.append(result) or "")
    cli.main(["test", "--ckpt_path", str(path)])
    assert {name: float(logged[name]) for name in results[0]} == results[0]


def test_the_installed_command_is_the_same_program() -> None:
    assert 'softmax-torch = "softmax_torch.cli:main"' in (ROOT / "pyproject.toml").read_text()


def test_predict_writes_probabilities(digits: tuple[Path, str], capsys: Any) -> None:
    path, _ = digits
    for name in ("predictions.csv", "predictions_1.csv"):  # no file is overwritten
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


def test_predict_skips_unreadable_images_on_request(
    digits: tuple[Path, str], tmp_path: Path, capsys: Any
) -> None:
    run, _ = digits
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    (folder / "b.png").write_text("no image")
    command = ["predict", str(run), "--input", str(folder), "--output", str(tmp_path / "p.csv")]
    with pytest.raises(ValueError, match="got 1 that cannot"):
        cli.main(command)
    cli.main([*command, "--skip_unreadable"])
    rows = (tmp_path / "p.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["id", "a.png"]
    assert "skipped" in (error := capsys.readouterr().err)
    assert f"{folder}/b.png: expected an image" in error


@pytest.mark.usefixtures("short_run")
def test_a_run_directory_is_never_written_twice(here: Path) -> None:
    first = here / "runs" / "digits" / "version_0"
    before = {path: path.read_bytes() for path in first.iterdir()}
    cli.main(["fit", *SHORT, "--model.optimizer.lr", "0.01"])
    assert {path: path.read_bytes() for path in first.iterdir()} == before
    assert (here / "runs" / "digits" / "version_1" / "best.ckpt").exists()


@pytest.mark.usefixtures("short_run")
def test_a_new_run_continues_from_a_checkpoint(here: Path, capsys: Any) -> None:
    cli.main(["fit", "--ckpt_path", "runs/digits/version_0/last.ckpt", "--trainer.max_epochs", "3"])
    text = (here / "runs" / "digits" / "version_1" / "metrics.csv").read_text()
    assert {row["epoch"] for row in csv.DictReader(text.splitlines()) if row["train/loss"]} == {"2"}


NET = ["--model", "LitClassifier", "--model.optimizer", "AdamW"]


@pytest.mark.slow
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


def test_flags_override_the_configuration(here: Path) -> None:
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
