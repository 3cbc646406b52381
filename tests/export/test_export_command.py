"""The command export, from the checkpoint of a run to a file that others run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from export_cases import ROOT, TABLE

from softmax_torch import cli
from softmax_torch.cli.console import wrapped
from softmax_torch.cli.exporting import listed
from softmax_torch.export import export
from softmax_torch.export.input_modules import TensorSpec
from softmax_torch.predictor import load


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the calibrated checkpoint of a short run on digits."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "digits" / "version_0" / "best.ckpt"
    cli.main(["fit", "--runs", str(folder), "--trainer.max_epochs", "2"])
    cli.main(["calibrate", "--ckpt_path", str(path)])
    return path


@pytest.mark.parametrize(("name", "calibrated"), [("model.onnx", True), ("model.pt2", False)])
def test_exporting_the_checkpoint_of_a_run(
    run: Path, name: str, calibrated: bool, tmp_path: Path, capfd: Any
) -> None:
    output = tmp_path / name
    args = ["export", "--ckpt_path", str(run), "--output", str(output)]
    cli.main([*args, *(["--calibrated"] if calibrated else [])])
    printed = capfd.readouterr()
    labels = [line[:12].rstrip() for line in printed.out.splitlines()]
    assert labels == ["exported", "takes", "gives", "compared", "use"]
    assert "takes       image uint8 (n, 8, 8)\n" in printed.out
    assert "compared    359 samples: the same classes, probabilities within " in printed.out
    assert printed.err == ""
    images = (torch.arange(64) % 17).to(torch.uint8).view(1, 8, 8)
    if name == "model.onnx":
        session = onnxruntime.InferenceSession(output)
        p = torch.from_numpy(session.run(["probabilities"], {"image": images.numpy()})[0])
    else:
        p = torch.export.load(output).module()(images)[1]
    expected = load(run, calibrated).predict_proba(images)
    torch.testing.assert_close(p, expected, rtol=0, atol=1e-5)
    assert (p - load(run, not calibrated).predict_proba(images)).abs().max() > 1e-3


def test_a_line_is_divided_between_outputs() -> None:
    label = TensorSpec("label", "int64", ("n",))
    specs = (label, TensorSpec("probabilities", "float32", ("n", 10)))
    assert wrapped("gives", listed(specs), 50).splitlines() == [
        "gives       label int64 (n,),",
        "            probabilities float32 (n, 10)",
    ]
    assert listed(6 * [label]).endswith(", label\xa0int64\xa0(n,) and 2 more")


def test_exporting_with_given_inputs(run: Path, tmp_path: Path, capsys: Any) -> None:
    """The checkpoint then needs no configuration beside it."""
    alone = shutil.copy(run, tmp_path)
    np.save(tmp_path / "x.npy", np.zeros((5, 8, 8), np.uint8))
    args = ["export", "--ckpt_path", str(alone), "--output", str(tmp_path / "model")]
    with pytest.raises(FileNotFoundError, match=r"got no .*config\.yaml; give one with --config"):
        cli.main(args)
    config = tmp_path / "other.yaml"
    config.write_text("name: digits")
    with pytest.raises(ValueError, match=r"expected settings of data in .*other\.yaml, got none"):
        cli.main([*args, "--config", str(config)])
    cli.main([*args, "--input", str(tmp_path / "x.npy")])
    export(
        run, tmp_path / "plain", np.zeros((5, 8, 8), np.uint8)
    )  # the checkpoint has a calibration
    assert load(tmp_path / "plain").calibration is None
    assert "folder, safetensors" in (printed := capsys.readouterr().out)
    assert "compared    5 samples" in printed
    with pytest.raises(SystemExit):  # data settings would have no effect
        cli.main([*args, "--input", str(tmp_path / "x.npy"), "--data.seed", "1"])
    assert (
        "export: expected no settings beside --input, got --data.seed 1" in capsys.readouterr().err
    )


def test_settings_of_the_data_may_be_given(run: Path, tmp_path: Path) -> None:
    args = ["export", "--ckpt_path", str(run), "--output", str(tmp_path / "model")]
    cli.main([*args, "--config", str(run.with_name("config.yaml")), "--data.seed", "1"])
    assert (tmp_path / "model" / "config.json").is_file()
    with pytest.raises(SystemExit):
        cli.main([*args[:-1], str(tmp_path / "more"), "--data.nothing", "1"])


def test_exporting_a_run_on_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a user's table to an ONNX file that takes its columns."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame({**TABLE, "kind": ["yes", "no", "no", "yes", "no"] * 8})
    frame.to_csv("table.csv", index=False)
    data = ["--data.file", "table.csv", "--data.target", "kind"]
    config = str(ROOT / "configs" / "table.yaml")
    cli.main(["fit", "--config", config, *data, "--data.categorical", '["size (cm)"]'])
    path = "runs/table/version_0/last.ckpt"
    cli.main(["export", "--ckpt_path", path, "--output", "model.onnx"])
    session = onnxruntime.InferenceSession("model.onnx")
    read = pd.read_csv("table.csv", dtype={"size (cm)": "Int64"})
    given = {
        value.name: read[value.name].to_numpy()
        if value.type == "tensor(double)"
        else read[value.name].astype(object).fillna("").astype(str).str.strip().to_numpy(object)
        for value in session.get_inputs()
    }
    assert given.keys() == TABLE.keys()
    [p] = session.run(["probabilities"], given)
    expected = load(path).predict_proba(frame)
    torch.testing.assert_close(torch.from_numpy(p), expected, rtol=0, atol=1e-5)
