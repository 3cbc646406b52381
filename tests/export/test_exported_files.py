"""Exported files of every format predict as the classifier does, without this package."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import (
    CASES,
    NAMES,
    ROOT,
    Case,
    N,
    linear,
    net,
    pixels,
)
from pages import blocks
from torch import nn

import softmax_torch
from softmax_torch.export import export, input_module_of, onnx_file, torch_program
from softmax_torch.export.program import output_specs
from softmax_torch.predictor import Predictor, load
from softmax_torch.preprocessing import (
    FeaturesPreprocessing,
    ImagePreprocessing,
    TablePreprocessing,
)
from softmax_torch.preprocessing.table import NumericColumn

# The table of the cases has categories that its training never saw.
UNSEEN = "softmax_torch.preprocessing.unknown_categories.UnknownCategoryWarning"
pytestmark = pytest.mark.filterwarnings(f"ignore::{UNSEEN}")


QUICK = ("photos", "net", "table")
"""Cases with every kind of layer and of input; the others are slow tests."""


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES],
)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, Path]:
    """Return a case, and the folder with its exports in all formats."""
    case, folder = CASES[request.param](), tmp_path_factory.mktemp("exported")
    for name in NAMES[: 2 if case.predictor.hyper_parameters is None else None]:
        written = export(case.predictor, folder / name, case.raw)
        assert written.path == folder / name
        assert written.samples == N
        assert 0 <= written.difference <= 1e-5
    return case, folder


def test_nothing_else_is_written(exported: tuple[Case, Path]) -> None:
    case, folder = exported
    made = NAMES[: 2 if case.predictor.hyper_parameters is None else None]
    assert sorted(path.name for path in folder.iterdir()) == sorted(made)
    (folder / "plain").touch()
    plain = (folder / "plain").stat().st_mode
    (folder / "plain").unlink()
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.stat().st_mode for path in files} == {
        plain
    }  # readable by others, as the umask allows


@pytest.mark.parametrize("n", [1, 7, N])
def test_onnxruntime_predicts_the_same(exported: tuple[Case, Path], n: int) -> None:
    case, folder = exported
    p = case.predictor.predict_proba(case.raw)[:n]
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    given = {name: array[:n] for name, array in case.arrays.items()}
    names = ["label", "class_name", "probabilities"]
    label, class_name, probabilities = session.run(names, given)
    assert label.tolist() == p.argmax(1).tolist()
    assert class_name.tolist() == [case.predictor.class_names[c] for c in p.argmax(1)]
    torch.testing.assert_close(torch.from_numpy(probabilities), p, rtol=0, atol=1e-5)
    assert n < N or len(set(label.tolist())) > 1  # a constant would not pass


def test_an_onnx_file_declares_its_inputs_and_outputs(exported: tuple[Case, Path]) -> None:
    case, folder = exported
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    takes = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    types = {"u": "tensor(uint8)", "f": "tensor(float)", "d": "tensor(double)"}
    assert takes == {
        name: (
            types.get(array.dtype.char.lower().replace("b", "u"), "tensor(string)"),
            ["n", *array.shape[1:]],
        )
        for name, array in case.arrays.items()
    }
    gives = {value.name: value.shape for value in session.get_outputs()}
    C = len(case.predictor.class_names)
    assert gives == {"label": ["n"], "class_name": ["n"], "probabilities": ["n", C]}


@pytest.mark.parametrize("n", [1, 7, N])
def test_torch_export_predicts_the_same(exported: tuple[Case, Path], n: int) -> None:
    case, folder = exported
    p = case.predictor.predict_proba(case.raw)[:n]
    program = torch.export.load(folder / "model.pt2").module()
    label, probabilities = program(*(t[:n] for t in case.tensors))
    assert label.tolist() == p.argmax(1).tolist()
    torch.testing.assert_close(probabilities, p, rtol=0, atol=1e-5)
    assert not probabilities.requires_grad


@pytest.mark.parametrize("name", ["model.safetensors", "model", "model/model.safetensors"])
def test_weights_are_read_back(exported: tuple[Case, Path], name: str) -> None:
    case, folder = exported
    if case.predictor.hyper_parameters is None:
        with pytest.raises(ValueError, match="expected a classifier that was loaded from a check"):
            export(case.predictor, folder / "no.safetensors", case.raw)
        assert not (folder / "no.safetensors").exists()
        return
    again = softmax_torch.load(folder / name)
    assert torch.equal(again.predict_proba(case.raw), case.predictor.predict_proba(case.raw))
    assert again.predict(case.raw) == case.predictor.predict(case.raw)
    assert again.hyper_parameters == case.predictor.hyper_parameters


def test_metadata_are_complete(exported: tuple[Case, Path]) -> None:
    case, folder = exported
    extra = {"metadata.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    props = onnx.load(folder / "model.onnx").metadata_props
    found = [extra["metadata.json"], *(p.value for p in props if p.key == "softmax_torch")]
    if case.predictor.hyper_parameters is not None:
        found.append((folder / "model" / "config.json").read_text(encoding="utf-8"))
        assert json.loads(found[-1])["hyper_parameters"] == case.predictor.hyper_parameters
    assert len(found) == (2 if case.predictor.hyper_parameters is None else 3)
    calibration = case.predictor.calibration
    for text in found:
        metadata = json.loads(text)
        assert metadata["format"] == 1
        assert metadata["softmax_torch"] == softmax_torch.__version__
        assert metadata["torch"] == torch.__version__
        assert metadata["class_names"] == list(case.predictor.class_names)
        assert all(name in text for name in case.predictor.class_names)  # not escaped
        assert metadata["preprocessing"] == case.predictor.preprocessing.state_dict()
        assert metadata["calibration"] == (
            calibration
            and {"scale": calibration.scale.tolist(), "shift": calibration.shift.tolist()}
        )
    inputs = json.loads(found[1])["inputs"]
    assert {value["name"] for value in inputs} == case.arrays.keys()


def test_files_hold_no_paths_and_no_data(exported: tuple[Case, Path]) -> None:
    """By default torch stores the source lines of each operation, and the example inputs."""
    case, folder = exported
    with zipfile.ZipFile(folder / "model.pt2") as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    for content in [*parts, (folder / "model.onnx").read_bytes()]:
        assert str(ROOT).encode() not in content
        assert str(Path(torch.__file__).parent).encode() not in content
        assert b".py" not in content
    assert not any(node.metadata_props for node in onnx.load(folder / "model.onnx").graph.node)
    args, kwargs = torch.export.load(folder / "model.pt2").example_inputs
    assert [torch.count_nonzero(tensor) for tensor in args] == [0] * len(case.tensors)
    assert kwargs == {}


@pytest.mark.slow
def test_files_run_without_this_package(exported: tuple[Case, Path]) -> None:
    """A process runs the .onnx file with onnxruntime and NumPy, and the .pt2 file with torch."""
    case, folder = exported
    if "mul" not in case.arrays:
        return  # one process is enough: the table has inputs of all types
    kept = {k: v.astype("U") if v.dtype == object else v for k, v in case.arrays.items()}
    np.savez(folder / "given.npz", **kept)
    torch.save(case.tensors, folder / "given.pt")
    code = """
import sys, numpy, onnxruntime
given = dict(numpy.load("given.npz"))
given = {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in given.items()}
p = onnxruntime.InferenceSession("model.onnx").run(["probabilities"], given)[0]
assert "torch" not in sys.modules
import torch
tensors = torch.load("given.pt")
label, q = torch.export.load("model.pt2").module()(*tensors)
assert not any(name.startswith("softmax_torch") for name in sys.modules)
numpy.save("p.npy", numpy.stack([p, q.numpy()]))
"""
    run = [sys.executable, "-I", "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    expected = case.predictor.predict_proba(case.raw)
    for p in torch.from_numpy(np.load(folder / "p.npy")):
        torch.testing.assert_close(p, expected, rtol=0, atol=1e-5)
    for name in ("given.npz", "given.pt", "p.npy"):
        (folder / name).unlink()


def test_the_example_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = blocks(ROOT / "docs" / "prediction.md")
    [example] = [b.code for b in page if b.language == "python" and "onnxruntime" in b.code]
    monkeypatch.chdir(tmp_path)
    predictor = linear(ImagePreprocessing((8, 8), False, "0123456789", 1 / 16))
    images, names = (pixels(8, 8) // 16).numpy(), dict[str, Any]()
    np.save("images.npy", images)
    export(predictor, "digits.onnx", images)
    exec(example, names)
    p = predictor.predict_proba(images)
    torch.testing.assert_close(torch.from_numpy(names["probabilities"]), p, rtol=0, atol=1e-5)
    assert names["class_name"].tolist() == predictor.predict(images)


@pytest.mark.parametrize("name", ["size (cm)", "class", 'a "b"', "ä"])
def test_the_line_that_uses_a_table_is_python(name: str) -> None:
    preprocessing = TablePreprocessing((NumericColumn(name, 0.0, 1.0),), ("yes", "no"))
    for path in ("a.onnx", 'a "b".onnx'):
        line = ast.parse(onnx_file.usage(Path(path), input_module_of(preprocessing), ()))
        constants = [node.value for node in ast.walk(line) if isinstance(node, ast.Constant)]
        assert {path, name} <= {*constants}
    outputs = output_specs(Predictor(nn.Linear(1, 2), preprocessing))
    ast.parse(torch_program.usage(Path('a "b".pt2'), input_module_of(preprocessing), outputs))


def test_the_line_that_uses_a_table_of_several_columns_runs() -> None:
    """It is run with a session that returns what it is given."""
    columns = tuple(NumericColumn(name, 0.0, 1.0) for name in ("size (cm)", "class"))
    preprocessing = TablePreprocessing(columns, ("yes", "no"))
    session = SimpleNamespace(
        get_inputs=lambda: [SimpleNamespace(name=column.name) for column in columns],
        run=lambda _, given: results.append(given),
    )
    results: list[dict[str, Any]] = []
    column = SimpleNamespace(to_numpy=torch.ones(2).numpy)
    names: dict[str, Any] = {
        "onnxruntime": SimpleNamespace(InferenceSession=lambda path: session),
        "frame": dict.fromkeys(("size (cm)", "class", "another"), column),
    }
    exec(onnx_file.usage(Path("a.onnx"), input_module_of(preprocessing), ()), names)
    assert [list(given) for given in results] == [["size (cm)", "class"]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_nets_in_other_dtypes(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Such a net gets x in its own dtype, as in the classifier."""
    preprocessing = FeaturesPreprocessing(5, "abc")
    predictor = Predictor(nn.Linear(5, 3, dtype=dtype), preprocessing)
    if name == "model.onnx" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match="expected a net that onnxruntime has operators for"):
            export(predictor, tmp_path / name, torch.randn(N, 5))
        assert list(tmp_path.iterdir()) == []
    else:
        assert export(predictor, tmp_path / name, torch.randn(N, 5)).samples == N


def test_the_classifier_is_not_changed(tmp_path: Path) -> None:
    case = net()
    parameters = list(case.predictor.network.parameters())
    strides = [t.stride() for t in parameters]
    export(case.predictor, tmp_path / "model.pt2", case.raw)
    assert [t.stride() for t in parameters] == strides
    assert all(t.requires_grad for t in parameters)


def test_uncalibrated_weights_are_not_calibrated(tmp_path: Path) -> None:
    predictor = linear(FeaturesPreprocessing(5, "abc"))
    export(predictor, tmp_path / "model.safetensors", torch.ones(1, 5))
    assert load(tmp_path / "model.safetensors").calibration is None
    with pytest.raises(
        ValueError, match="expected a checkpoint with a calibration, got one without"
    ):
        load(tmp_path / "model.safetensors", calibrated=True)
