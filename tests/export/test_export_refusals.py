"""Exports that are refused: outputs, inputs and classifiers that do not fit, and full disks."""

import json
import resource
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import (
    NAMES,
    N,
    features,
    images,
    linear,
    pixels,
    table,
)
from safetensors.torch import save_file
from torch import nn

from softmax_torch import export as exports
from softmax_torch.export import export, onnx_file
from softmax_torch.predictor import Predictor, load
from softmax_torch.preprocessing import (
    TablePreprocessing,
)
from softmax_torch.preprocessing.table import NumericColumn


@pytest.mark.parametrize("name", NAMES)
def test_an_existing_output_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"expected a new name, got .*{name}, which exists"):
        export("there is no such checkpoint", tmp_path / name, None)
    assert (tmp_path / name).read_text() == "mine"


def test_outputs_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output is checked before the classifier is read."""
    with pytest.raises(
        ValueError, match=r"ends in \.onnx, \.pt2, \.safetensors, or one .* got a\.h5"
    ):
        export("", tmp_path / "a.h5", None)
    with pytest.raises(FileNotFoundError, match=r"expected a folder .*nowhere, got none"):
        export("", tmp_path / "nowhere" / "a.onnx", None)
    real = find_spec
    monkeypatch.setattr(
        exports, "find_spec", lambda name: None if name == "onnxruntime" else real(name)
    )
    with pytest.raises(
        ImportError, match=r"got no onnxruntime: pip install 'softmax-torch\[export\]"
    ):
        export("", tmp_path / "a.onnx", None)


@pytest.mark.parametrize(
    ("case", "raw", "error", "message"),
    [
        (
            images,
            torch.rand(3, 8, 6),
            ValueError,
            r"expected images of bytes \(uint8\), got torch.fl",
        ),
        (images, pixels(8, 8), ValueError, r"expected shape \(n, 8, 6\), got \(40, 8, 8\)"),
        (images, pixels(8, 6)[:0], ValueError, "expected at least one sample, got none"),
        (images, "no.png", FileNotFoundError, "no.png: expected an image, got no such file"),
        (features, torch.rand(3, 4), ValueError, r"expected shape \(n, 5\)"),
        (features, torch.rand(3), ValueError, r"expected shape \(n, 5\)"),
        (table, {"mul": ["blue"]}, ValueError, r"expected columns numbers, size \(cm\), add"),
        (table, torch.rand(3, 4), TypeError, "expected a data frame"),
    ],
)
def test_inputs_that_do_not_fit_the_classifier(
    case: Any, raw: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export(case().predictor, tmp_path / "model.onnx", raw)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["label", "net/numbers", ""])
def test_column_names_that_the_graph_uses(name: str, tmp_path: Path) -> None:
    predictor = linear(TablePreprocessing([NumericColumn(name, 0.0, 1.0)], ("yes", "no")))
    with pytest.raises(
        ValueError, match=f"column {name or 'without a name'}: expected a name other than label, pr"
    ):
        export(predictor, tmp_path / "model.onnx", {name: [1.0, 2.0]})
    assert export(predictor, tmp_path / "model.pt2", {name: [1.0, 2.0]}).samples == 2


def test_classifiers_that_cannot_be_exported(tmp_path: Path) -> None:
    predictor = Predictor(nn.Linear(5, 3), object())
    with pytest.raises(ValueError, match="one of images, features or a table, got object"):
        export(predictor, tmp_path / "model.onnx", torch.randn(N, 5))
    predictor.device = torch.device("cuda")
    with pytest.raises(ValueError, match="source: expected a classifier on a CPU, got cuda"):
        export(predictor, tmp_path / "model.onnx", torch.randn(N, 5))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    """The error names the output, and no file is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: .*{name} could not be written"):
            export(features().predictor, tmp_path / name, features().raw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_nets_that_are_too_large_for_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "MAX_WEIGHT_BYTES", 3 * 6 * 4 - 1)
    case = features()
    with pytest.raises(
        ValueError, match="expected a net of at most 71 bytes for ONNX, got one of 72"
    ):
        export(case.predictor, tmp_path / "model.onnx", case.raw)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(FileNotFoundError, match=r"expected the directory of a run, .* got another"):
        load(tmp_path)
    case = features()
    export(case.predictor, path, case.raw)
    config = json.loads((path / "config.json").read_text())
    for changed, message in (
        ({"format": 2}, "expected weights with the configuration that export writes, of format 1"),
        ({"preprocessing": {"kind": "smells"}}, "expected one of features, images, table, got 'sm"),
    ):
        (path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ValueError, match=message):
            load(path)
    for damaged in (b"{", b'{"name": "\xff"}'):
        (path / "config.json").write_bytes(damaged)
        with pytest.raises(
            ValueError, match="model: expected exported weights, got a damaged file"
        ):
            load(path)
    del config["calibration"]
    for uncalibrated in (config, config | {"calibration": None}):
        (path / "config.json").write_text(json.dumps(uncalibrated))
        assert load(path).calibration is None
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        ValueError, match=r"model\.safetensors: expected exported weights, got a file that is dam"
    ):
        load(file)
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: expected weights with the configur"):
        load(tmp_path / "other.safetensors")
