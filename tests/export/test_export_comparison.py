"""A file is compared with the classifier on real inputs, and renamed only if they agree."""

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from export_cases import CASES, NAMES, TABLE, N, features, images, linear, table
from PIL import Image

from softmax_torch.export import FORMATS, check_predictions, export, torch_program
from softmax_torch.predictor import Predictor
from softmax_torch.preprocessing import FeaturesPreprocessing
from softmax_torch.readers.table_format import TableFormat


def test_images_to_compare_may_be_files(tmp_path: Path) -> None:
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


def test_no_more_inputs_are_read_than_are_predicted_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table or a folder may have millions of rows."""
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
            predictor.preprocessing.format = TableFormat(";")
        assert export(predictor, tmp_path / f"{k}.safetensors", raw).samples == 6


def test_one_sample_is_enough(tmp_path: Path) -> None:
    """The exported program does not fix the batch size of 1."""
    case = features()
    assert export(case.predictor, tmp_path / "model.pt2", case.raw[:1, None]).samples == 1
    program = torch.export.load(tmp_path / "model.pt2").module()
    expected = case.predictor.predict_proba(case.raw)
    torch.testing.assert_close(program(*case.tensors)[1], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_with_other_predictions_is_not_written(
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


def change_runner(monkeypatch: pytest.MonkeyPatch, changed: Any) -> None:
    """Let the written program answer ``changed(run, samples)`` in place of ``run(samples)``."""
    open_runner = torch_program.open_runner

    def opened(path: Path, input_module: Any) -> Any:
        return partial(changed, open_runner(path, input_module))

    monkeypatch.setattr(torch_program, "open_runner", opened)


def test_a_file_that_fails_for_one_sample_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_runner(monkeypatch, lambda run, x: run(x if len(x) > 1 else x + 1))
    with pytest.raises(ArithmeticError, match="got others for 1 of 1 samples"):
        export(features().predictor, tmp_path / "model.pt2", features().raw)
    assert list(tmp_path.iterdir()) == []


def test_the_tolerance_grows_with_the_rounding_error_of_large_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A difference as large as that between the classifier and its float64 values is allowed."""
    change_runner(monkeypatch, lambda run, x: (run(x)[0], run(x)[1] + 2e-5))
    raw = torch.randn(N, 50, generator=torch.Generator().manual_seed(1)) + 100
    predictor = linear(FeaturesPreprocessing(50, "abc"))
    with pytest.raises(ArithmeticError, match="probabilities up to 2e-05 apart"):
        export(predictor, tmp_path / "a.pt2", raw - 100)
    weight = predictor.network.model.linear.weight
    with torch.no_grad():
        weight.copy_(torch.stack([weight[0], weight[0] + 1e-4 * weight[1], weight[0] - 1]) * 100)
    written = export(predictor, tmp_path / "b.pt2", raw)
    assert written.difference == pytest.approx(2e-5, rel=0.1)


def test_predictions_must_agree() -> None:
    expected = torch.tensor([[0.7, 0.3], [0.5 + 2e-6, 0.5 - 2e-6], [0.1, 0.9]])
    labels = torch.tensor([0, 1, 1])  # the second row is a tie
    here = Path("model.onnx")
    check_predictions(here, (labels, expected - 9e-6), expected)
    check_predictions(here, (labels, expected + 2e-5), expected, tolerance=3e-5)
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
            check_predictions(here, (labels, p), expected)


def test_leftovers_of_a_killed_export_are_removed(tmp_path: Path) -> None:
    case = features()
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "config.json").write_text("half")
    export(case.predictor, tmp_path / "model", case.raw)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
