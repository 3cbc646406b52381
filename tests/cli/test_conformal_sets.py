"""calibrate --method conformal stores sets in the checkpoint; predict --sets writes them."""

import csv
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet

import softmax_torch
from softmax_torch import cli
from softmax_torch.data import DigitsDataModule
from softmax_torch.storage.checkpoints import is_damaged, read_checkpoint

CONFORMAL = ["--method", "conformal"]


def sets_in(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return [json.loads(row["set"]) for row in csv.DictReader(file)]


@cache
def digits_images() -> np.ndarray[Any, Any]:
    """Return the test set of the run on digits."""
    data = DigitsDataModule()
    data.setup("test")
    return data.splits["test"].x.numpy()


def test_sets_from_calibrate_to_every_form_of_prediction(to_calibrate: Path) -> None:
    """The sets of the run's test set, of raw files and of the predictor are the same."""
    path = ["--ckpt_path", str(to_calibrate)]
    cli.main(["calibrate", *path, *CONFORMAL, "--level", "0.98"])
    assert not is_damaged(to_calibrate)
    content = read_checkpoint(to_calibrate)
    others = read_checkpoint(to_calibrate.parent / "last.ckpt").keys()
    assert set(content) - {"conformal"} == set(others)
    images = digits_images()
    np.save("images.npy", images)
    for name in ("csv", "jsonl", "parquet"):
        output = ["--input", "images.npy", "--output", f"out.{name}"]
        cli.main(["predict", *path, "--sets", "--probabilities", *output])
    found = sets_in(Path("out.csv"))
    lines = Path("out.jsonl").read_text().splitlines()
    assert [json.loads(line)["set"] for line in lines] == found
    assert parquet.read_table("out.parquet")["set"].to_pylist() == found
    assert len({len(names) for names in found}) > 2
    classifier = softmax_torch.load(to_calibrate)
    assert classifier.predict_set(images) == found
    # The most probable class comes first.
    assert [names[0] for names in found] == classifier.predict(images)
    p = classifier.predict_proba(images)
    assert all(p[i, list(map(int, names))].diff().le(0).all() for i, names in enumerate(found))
    cli.main(["predict", *path, "--sets"])
    output = to_calibrate.with_name("predictions.csv")
    assert output.read_text().startswith("id,predicted,probability,set\n")
    assert sets_in(output) == found


def test_sets_keep_their_probabilities_when_a_temperature_is_fitted(
    to_calibrate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = ["--ckpt_path", str(to_calibrate)]
    images = digits_images()
    cli.main(["calibrate", *path, *CONFORMAL, "--score", "lac", "--level", "0.98"])
    before = softmax_torch.load(to_calibrate).predict_set(images)
    capsys.readouterr()
    cli.main(["calibrate", *path])
    assert "unchanged   LAC sets at level 0.98, from 144 samples" in capsys.readouterr().out
    assert softmax_torch.load(to_calibrate, calibrated=True).predict_set(images) == before
    content = read_checkpoint(to_calibrate)
    assert content["conformal"]["calibration"] is None
    # Sets of calibrated probabilities are made on request.
    cli.main(["calibrate", *path, *CONFORMAL, "--score", "lac", "--level", "0.98", "--calibrated"])
    content = read_checkpoint(to_calibrate)
    assert content["conformal"]["calibration"] == content["calibration"]
    assert "of probabilities with temperature" in capsys.readouterr().out
    assert softmax_torch.load(to_calibrate).predict_set(images) != before


def test_a_threshold_for_each_class_is_stored(
    to_calibrate: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--per_class", "--level", "0.8", "--score", "lac"]
    cli.main(["calibrate", "--ckpt_path", str(to_calibrate), *CONFORMAL, *flags])
    out = capsys.readouterr().out
    assert "of 144 sets, where no class is probable enough" in out
    assert out.endswith(" predict --sets run\n")
    state = read_checkpoint(to_calibrate)["conformal"]
    assert state["threshold"].shape == (10,)
    assert torch.equal(state["samples"].sum(), torch.tensor(144))


@pytest.mark.parametrize("flags", [[], ["--input", "images.npy"]])
def test_a_checkpoint_without_sets_is_refused(flags: list[str], to_calibrate: Path) -> None:
    np.save("images.npy", np.zeros((1, 8, 8), np.uint8))
    message = "conformal sets, got one without; fit them with the command calibrate --method confo"
    with pytest.raises(ValueError, match=message):
        cli.main(["predict", "--ckpt_path", str(to_calibrate), "--sets", *flags])
    assert not list(to_calibrate.parent.glob("predictions*"))
    with pytest.raises(ValueError, match=message):
        softmax_torch.load(to_calibrate).predict_set(np.zeros((1, 8, 8), np.uint8))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--level", "0.999"], "level: expected at least 999 samples for 0.999, got 144"),
        (["--level", "0.96", "--per_class"], "24 samples of each class .*, got .* of '0'"),
        (["--calibrated"], "expected a checkpoint with a calibration, got one without"),
    ],
)
def test_what_the_samples_cannot_give_is_refused(
    flags: list[str], message: str, to_calibrate: Path
) -> None:
    before = to_calibrate.read_bytes()
    with pytest.raises(ValueError, match=message):
        cli.main(["calibrate", "--ckpt_path", str(to_calibrate), *CONFORMAL, *flags])
    assert to_calibrate.read_bytes() == before
