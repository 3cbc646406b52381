"""What is exported predicts as the classifier does, without this package; or it is not there."""

import json
import resource
import shutil
import subprocess
import sys
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import softmax_torch
from softmax_torch import backbones, cli
from softmax_torch import export as exports
from softmax_torch.calibration import Calibration
from softmax_torch.export import FORMATS, compare, export, onnx_file, torch_program
from softmax_torch.predictor import Predictor, load, network
from softmax_torch.preprocessing import (
    FeaturesPreprocessing,
    ImagePreprocessing,
    Preprocessing,
    TablePreprocessing,
)
from softmax_torch.preprocessing.columns import Categories, Numbers

ROOT = Path(__file__).parents[1]
NAMES = [f"model{suffix}" for suffix in FORMATS]
N = 40

TABLE = {
    # Called as matrices and operations within the graphs are; with gaps, and with what is new.
    "mul": ["blue", None, "ü", "green", 'red "q"', "NA", " blue ", "blue"] * 5,
    "numbers": [1000.4, 1000.5, None, 1000.6, 1000.75, 1000.5, 999.0, 1001.0] * 5,
    "size (cm)": [1, 2, 3, None, 2, 1, 1, 2] * 5,
    # It has no digits left if it is not standardised in float64.
    "add": [1e9 + 1, 1e9 + 2, 1e9, 1e9 + 4, float("nan"), 1e9 - 3, 1e9 - 1, 1e9 + 2] * 5,
}
COLUMNS = (
    Categories("mul", ("blue", 'red "q"', "ü"), True),
    Numbers("numbers", 1000.5, 0.1),
    Categories("size (cm)", ("1", "2"), False),
    Numbers("add", 1e9, 2.0),
)


class Case(NamedTuple):
    """A classifier, real raw inputs, and the same as a user of an ONNX file gives them."""

    predictor: Predictor
    raw: Any
    arrays: dict[str, np.ndarray[Any, Any]]
    tensors: tuple[Tensor, ...]  # as a user of a .pt2 file does


def linear(preprocessing: Preprocessing, calibration: Calibration | None = None) -> Predictor:
    """A softmax regression, as a loaded checkpoint is."""
    made = {"num_classes": len(preprocessing.class_names)}
    torch.manual_seed(0)
    linear = nn.Linear(preprocessing.in_features, made["num_classes"])
    net = network(made, {f"model.linear.{key}": t for key, t in linear.state_dict().items()})
    return Predictor(net, preprocessing, calibration, hyper_parameters=made)


def images() -> Case:
    raw = pixels(8, 6)
    temperature = Calibration(*torch.tensor([0.6, 0.0], dtype=torch.float64))
    predictor = linear(ImagePreprocessing((8, 6), False, "abc", 1 / 16), temperature)
    return Case(predictor, raw, {"image": raw.numpy()}, (raw,))


def colour() -> Case:
    """A net that is no matrix, with layers that behave otherwise in training."""
    raw = pixels(3, 9, 7)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.rand(4), torch.rand(4) + 0.5
    layers = [nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    net = nn.Sequential(*layers, nn.Dropout(), nn.Linear(16, 4))
    predictor = Predictor(net, ImagePreprocessing((9, 7), True, "abcd"))
    return Case(predictor, raw, {"image": raw.numpy()}, (raw,))


def net() -> Case:
    """A net by its name, whose weights lie with their channels last."""
    torch.manual_seed(0)
    raw = pixels(9, 7)
    backbone, head = backbones.make("small_cnn").eval(), nn.Linear(128, 3)
    with torch.no_grad():  # or all were of one class
        head.bias -= head(backbone(raw / 255)).mean(0)
    weights = {f"backbone.{key}": t for key, t in backbone.state_dict().items()}
    weights |= {f"model.linear.{key}": t for key, t in head.state_dict().items()}
    made = {"num_classes": 3, "backbone": "small_cnn"}
    preprocessing = ImagePreprocessing((9, 7), False, "abc")
    predictor = Predictor(network(made, weights), preprocessing, hyper_parameters=made)
    return Case(predictor, raw, {"image": raw.numpy()}, (raw,))


def features() -> Case:
    raw = torch.randn(N, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    vector = Calibration(*torch.tensor([[0.5, 2, 1], [0.3, 0, -0.7]], dtype=torch.float64))
    predictor = linear(FeaturesPreprocessing(5, ("ä", "b c", ""), 0.25), vector)
    return Case(predictor, raw, {"features": raw.float().numpy()}, (raw.float(),))


def table() -> Case:
    predictor = linear(TablePreprocessing(COLUMNS, ("yes", "no")))
    text = ["" if value is None else value.strip() for value in TABLE["mul"]]
    size = ["" if value is None else str(value) for value in TABLE["size (cm)"]]
    numbers = {name: np.array(TABLE[name], dtype=np.float64) for name in ("numbers", "add")}
    arrays = {"mul": np.array(text, object), "size (cm)": np.array(size, object), **numbers}
    mul = [{"blue": 0, 'red "q"': 1, "ü": 2, "": 3, "NA": 3}.get(value, -1) for value in text]
    codes = [mul, [{"1": 0, "2": 1}.get(value, -1) for value in size]]
    matrix = torch.from_numpy(np.stack([*numbers.values()], 1))
    return Case(predictor, TABLE, arrays, (matrix, torch.tensor(codes).T))


def pixels(*shape: int) -> Tensor:
    """Noise, from black on to all there is."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randint(256, (N, *shape), generator=generator)
    return (noise * torch.linspace(0, 1, N).view(-1, *(1 for _ in shape))).to(torch.uint8)


CASES = {"images": images, "colour": colour, "net": net, "features": features, "table": table}


@pytest.fixture(scope="module", params=CASES)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Case, Path]:
    """A case, and the folder with all that it can be exported to."""
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
    assert {path.stat().st_mode for path in files} == {plain}  # for others to read, if they may


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
    assert n < N or len(set(label.tolist())) > 1  # or a constant would do


def test_an_onnx_file_says_what_it_takes_and_gives(exported: tuple[Case, Path]) -> None:
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
        assert all(name in text for name in case.predictor.class_names)  # as they are written
        assert metadata["preprocessing"] == case.predictor.preprocessing.state_dict()
        assert metadata["calibration"] == (
            calibration
            and {"scale": calibration.scale.tolist(), "shift": calibration.shift.tolist()}
        )
    inputs = json.loads(found[1])["inputs"]
    assert {value["name"] for value in inputs} == case.arrays.keys()


def test_files_say_nothing_of_where_they_were_made(exported: tuple[Case, Path]) -> None:
    """torch keeps the lines of code that each operation comes from, and an example of inputs."""
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


def test_others_run_it(exported: tuple[Case, Path]) -> None:
    """onnxruntime and numpy run the one, torch the other, in a process without this package."""
    case, folder = exported
    if "mul" not in case.arrays:
        return  # a process takes its time; this one has all there is
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


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```python no-run\n")[1:]
    blocks = [block.split("```")[0] for block in blocks]
    [example] = [block for block in blocks if "onnxruntime" in block]
    monkeypatch.chdir(tmp_path)
    predictor = linear(ImagePreprocessing((8, 8), False, "0123456789", 1 / 16))
    export(predictor, "digits.onnx", pixels(8, 8) // 16)
    names: dict[str, Any] = {}
    exec(example, names)
    p = predictor.predict_proba(names["images"])
    torch.testing.assert_close(torch.from_numpy(names["probabilities"]), p, rtol=0, atol=1e-5)
    assert names["class_name"].tolist() == predictor.predict(names["images"])


def test_images_come_from_files_too(tmp_path: Path) -> None:
    case, folder = images(), tmp_path / "images"
    folder.mkdir()
    for k, image in enumerate(case.raw[:5]):
        Image.fromarray(image.numpy()).resize((50, 40)).save(folder / f"{k}.png")
    files = sorted(folder.iterdir())
    for k, (raw, n) in enumerate(
        [(folder, 5), (str(files[0]), 1), (files, 5), (Image.open(files[1]), 1)]
    ):
        assert export(case.predictor, tmp_path / f"{k}.safetensors", raw).samples == n
    (folder / "5.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"5\.png: expected an image, got one that fails"):
        export(case.predictor, tmp_path / "no.safetensors", folder)


def test_as_many_inputs_are_used_as_are_predicted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """and no more, as a table or a folder may have millions of rows."""
    monkeypatch.setattr(Predictor, "rows", 6)
    for name, make in CASES.items():
        case = make()
        if case.predictor.hyper_parameters is not None:
            assert export(case.predictor, tmp_path / name, case.raw).samples == 6
    (tmp_path / "seen").mkdir()
    np.save(tmp_path / "images.npy", images().raw.numpy())
    np.save(tmp_path / "features.npy", features().raw.numpy())
    pd.DataFrame(TABLE).to_csv(tmp_path / "table.csv", index=False, sep=";")
    for k, image in enumerate(images().raw[:8]):
        Image.fromarray(image.numpy()).save(tmp_path / "seen" / f"{k}.png")
    files = sorted((tmp_path / "seen").iterdir())
    sources = [(images, "images.npy"), (images, "seen"), (features, "features.npy")]
    for k, (make, raw) in enumerate([*sources, (table, "table.csv"), (images, files)]):
        raw, predictor = tmp_path / raw if isinstance(raw, str) else raw, make().predictor
        if make is table:
            predictor.preprocessing.delimiter = ";"
        assert export(predictor, tmp_path / f"{k}.safetensors", raw).samples == 6


def test_one_sample_is_enough(tmp_path: Path) -> None:
    """The size of its batch is not taken for that of all."""
    case = features()
    assert export(case.predictor, tmp_path / "model.pt2", case.raw[:1, None]).samples == 1
    program = torch.export.load(tmp_path / "model.pt2").module()
    expected = case.predictor.predict_proba(case.raw)
    torch.testing.assert_close(program(*case.tensors)[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_predicts_otherwise_is_not_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = features()
    format = import_module(f"softmax_torch.export.{FORMATS[Path(name).suffix].module}")
    write = format.write

    def mutated(path: Path, predictor: Predictor, *args: Any) -> None:
        weight = predictor.network.model.linear.weight
        with torch.no_grad():
            weight[0, 0] += 1e-2
            write(path, predictor, *args)
            weight[0, 0] -= 1e-2

    monkeypatch.setattr(format, "write", mutated)
    with pytest.raises(ArithmeticError, match=r"within 1e-05, got others for \d+ of 40 samples"):
        export(case.predictor, tmp_path / name, case.raw)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_for_one_sample_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = torch_program.opened

    def fixed(path: Path, front: Any) -> Any:
        run = opened(path, front)
        return lambda samples: run(samples if len(samples) > 1 else samples + 1)

    monkeypatch.setattr(torch_program, "opened", fixed)
    with pytest.raises(ArithmeticError, match="got others for 1 of 1 samples"):
        export(features().predictor, tmp_path / "model.pt2", features().raw)
    assert list(tmp_path.iterdir()) == []


def test_large_logits_have_fewer_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A difference that the classifier has from its own values in float64 is no fault."""
    opened = torch_program.opened

    def rounded(path: Path, front: Any) -> Any:
        run = opened(path, front)
        return lambda samples: (run(samples)[0], run(samples)[1] + 2e-5)

    monkeypatch.setattr(torch_program, "opened", rounded)
    raw = torch.randn(N, 50, generator=torch.Generator().manual_seed(1)) + 100
    predictor = linear(FeaturesPreprocessing(50, "abc"))
    with pytest.raises(ArithmeticError, match="probabilities up to 2e-05 apart"):
        export(predictor, tmp_path / "a.pt2", raw - 100)
    weight = predictor.network.model.linear.weight
    with torch.no_grad():
        weight.copy_(torch.stack([weight[0], weight[0] + 1e-4 * weight[1], weight[0] - 1]) * 100)
    written = export(predictor, tmp_path / "b.pt2", raw)
    assert written.difference == pytest.approx(2e-5, rel=0.1)


def test_comparing() -> None:
    expected = torch.tensor([[0.7, 0.3], [0.5 + 2e-6, 0.5 - 2e-6], [0.1, 0.9]])
    labels = torch.tensor([0, 1, 1])  # a tie may go either way
    here = Path("model.onnx")
    compare(here, (labels, expected - 9e-6), expected)
    compare(here, (labels, expected + 2e-5), expected, tolerance=3e-5)
    for labels, p, message in (
        (
            torch.tensor([0, 1, 0]),
            expected,
            "1 of 3 samples, the first of them sample 2: class 0 in",
        ),
        (torch.tensor([0, 1, 1]), expected + 2e-5, "3 of 3 samples, .* up to 2e-05 apart"),
        (torch.tensor([0, 0, 1]), expected * float("nan"), "3 of 3 samples, .* up to nan apart"),
    ):
        with pytest.raises(ArithmeticError, match=message):
            compare(here, (labels, p), expected)


def test_what_a_killed_export_left_is_written_over(tmp_path: Path) -> None:
    case = features()
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "config.json").write_text("half")
    export(case.predictor, tmp_path / "model", case.raw)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_exists_is_left_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"expected a new name, got .*{name}, which exists"):
        export("there is no such checkpoint", tmp_path / name, None)
    assert (tmp_path / name).read_text() == "mine"


def test_outputs_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """are refused before anything is looked at."""
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
def test_inputs_that_do_not_fit(
    case: Any, raw: Any, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export(case().predictor, tmp_path / "model.onnx", raw)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["label", "net/numbers", ""])
def test_columns_that_are_called_as_what_a_graph_has(name: str, tmp_path: Path) -> None:
    predictor = linear(TablePreprocessing([Numbers(name, 0.0, 1.0)], ("yes", "no")))
    with pytest.raises(
        ValueError, match=f"column {name or 'without a name'}: expected a name other than label, pr"
    ):
        export(predictor, tmp_path / "model.onnx", {name: [1.0, 2.0]})
    assert export(predictor, tmp_path / "model.pt2", {name: [1.0, 2.0]}).samples == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_nets_of_other_types(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """take x in their own, as the classifier gives it to them."""
    preprocessing = FeaturesPreprocessing(5, "abc")
    predictor = Predictor(nn.Linear(5, 3, dtype=dtype), preprocessing)
    if name == "model.onnx" and dtype == torch.bfloat16:
        with pytest.raises(ValueError, match="expected a net that onnxruntime has operators for"):
            export(predictor, tmp_path / name, torch.randn(N, 5))
        assert list(tmp_path.iterdir()) == []
    else:
        assert export(predictor, tmp_path / name, torch.randn(N, 5)).samples == N


def test_classifiers_that_cannot_be_exported(tmp_path: Path) -> None:
    predictor = Predictor(nn.Linear(5, 3), object())
    with pytest.raises(ValueError, match="that of images, features or a table, got object"):
        export(predictor, tmp_path / "model.onnx", torch.randn(N, 5))
    predictor.device = torch.device("cuda")
    with pytest.raises(ValueError, match="source: expected a classifier on a CPU, got cuda"):
        export(predictor, tmp_path / "model.onnx", torch.randn(N, 5))


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk(name: str, tmp_path: Path) -> None:
    """is named with the output, of which nothing is left."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=f"File too large: .*{name} could not be written"):
            export(features().predictor, tmp_path / name, features().raw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_classifier_is_as_it_was(tmp_path: Path) -> None:
    case = net()
    parameters = list(case.predictor.network.parameters())
    strides = [t.stride() for t in parameters]
    export(case.predictor, tmp_path / "model.pt2", case.raw)
    assert [t.stride() for t in parameters] == strides
    assert all(t.requires_grad for t in parameters)


def test_nets_that_are_too_large_for_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LIMIT", 3 * 6 * 4 - 1)
    case = features()
    with pytest.raises(
        ValueError, match="expected a net of at most 71 bytes for ONNX, got one of 72"
    ):
        export(case.predictor, tmp_path / "model.onnx", case.raw)


def test_weights_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with pytest.raises(
        FileNotFoundError, match=r"model\.safetensors: expected exported weights, got no such file"
    ):
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
    (path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="model: expected exported weights, got a damaged file"):
        load(path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(
        ValueError, match=r"model\.safetensors: expected exported weights, got a file that is dam"
    ):
        load(file)
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors: expected weights with the configur"):
        load(tmp_path / "other.safetensors")


def test_uncalibrated_weights_are_not_calibrated(tmp_path: Path) -> None:
    predictor = linear(FeaturesPreprocessing(5, "abc"))
    export(predictor, tmp_path / "model.safetensors", torch.ones(1, 5))
    assert load(tmp_path / "model.safetensors").calibration is None
    with pytest.raises(
        ValueError, match="expected a checkpoint with a calibration, got one without"
    ):
        load(tmp_path / "model.safetensors", calibrated=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short run on digits, calibrated."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / "digits" / "version_0" / "best.ckpt"
    cli.main(["fit", "--runs", str(folder), "--trainer.max_epochs", "2"])
    cli.main(["calibrate", "--ckpt_path", str(path)])
    return path


@pytest.mark.parametrize(("name", "calibrated"), [("model.onnx", True), ("model.pt2", False)])
def test_the_command(run: Path, name: str, calibrated: bool, tmp_path: Path, capfd: Any) -> None:
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


def test_the_command_with_inputs(run: Path, tmp_path: Path, capsys: Any) -> None:
    """of one's own, and with no configuration beside the checkpoint."""
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
    export(run, tmp_path / "plain", np.zeros((5, 8, 8), np.uint8))  # of a calibrated checkpoint
    assert load(tmp_path / "plain").calibration is None
    assert "folder, safetensors" in (printed := capsys.readouterr().out)
    assert "compared    5 samples" in printed
    with pytest.raises(SystemExit):  # which would go for nothing
        cli.main([*args, "--input", str(tmp_path / "x.npy"), "--data.seed", "1"])
    assert "unrecognized arguments: --data.seed 1" in capsys.readouterr().err


def test_the_data_of_the_run_may_be_elsewhere(run: Path, tmp_path: Path) -> None:
    args = ["export", "--ckpt_path", str(run), "--output", str(tmp_path / "model")]
    cli.main([*args, "--config", str(run.with_name("config.yaml")), "--data.seed", "1"])
    assert (tmp_path / "model" / "config.json").is_file()
    with pytest.raises(SystemExit):
        cli.main([*args[:-1], str(tmp_path / "more"), "--data.nothing", "1"])


def test_the_command_on_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a user's file to a file that takes its columns."""
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
