"""calibrate stores a calibration in the checkpoint; --calibrated applies it."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from softmax_torch import cli
from softmax_torch.storage.checkpoints import is_damaged, read_checkpoint


@pytest.mark.parametrize("method", ["temperature", "vector"])
def test_a_calibration_is_stored_and_applied_on_request(
    method: str, to_calibrate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[dict[str, float]] = []
    for module in ("calibrating", "commands"):
        printed = f"softmax_torch.cli.{module}.format_metrics"
        monkeypatch.setattr(printed, lambda result: results.append(dict(result)) or "")
    path = ["--ckpt_path", str(to_calibrate)]
    cli.main(["calibrate", *path, "--method", method])
    for flags in ([], ["--calibrated"]):
        cli.main(["validate", *path, *flags])
    before, after, plain, calibrated = results
    assert (plain, calibrated) == (before, after)
    assert after["val/nll"] < before["val/nll"]
    # The checkpoint is whole, and its other content unchanged.
    assert not is_damaged(to_calibrate)
    content = read_checkpoint(to_calibrate)
    assert set(content) - {"calibration"} == set(read_checkpoint(to_calibrate.parent / "last.ckpt"))


def test_predictions_are_calibrated_on_request(to_calibrate: Path, capsys: Any) -> None:
    to_calibrate = to_calibrate.parent.rename("two words").absolute() / to_calibrate.name
    path = ["--ckpt_path", str(to_calibrate)]
    cli.main(["calibrate", *path])
    assert capsys.readouterr().out.endswith(" test --calibrated 'two words'\n")
    temperature = 1 / read_checkpoint(to_calibrate)["calibration"]["scale"].item()
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


def test_a_run_resumes_from_a_calibrated_checkpoint_as_from_another(
    to_calibrate: Path, here: Path
) -> None:
    flags = ["--trainer.max_epochs", "31"]
    shutil.copytree(to_calibrate.parent, here / "other")
    cli.main(["calibrate", "--ckpt_path", str(to_calibrate.with_name("last.ckpt"))])
    for folder in ("run", "other"):
        cli.main(["fit", "--resume", folder, *flags])
    mine, other = (read_checkpoint(here / folder / "last.ckpt") for folder in ("run", "other"))
    assert "calibration" not in mine  # it was fitted to other weights
    for name, value in mine["state_dict"].items():
        assert torch.equal(value, other["state_dict"][name])


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_without_a_calibration_is_refused(command: str, to_calibrate: Path) -> None:
    with pytest.raises(ValueError, match="expected a checkpoint with a calibration, got one with"):
        cli.main([command, "--ckpt_path", str(to_calibrate), "--calibrated"])
