"""Exported files make the probabilities of a Laplace approximation, if that is asked for."""

import json
from copy import deepcopy
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from export_cases import N, linear, pixels
from torch import Tensor

import softmax_torch
from softmax_torch import laplace
from softmax_torch.calibration import Calibration
from softmax_torch.export import export
from softmax_torch.export.comparison import TOLERANCE, tolerance_of
from softmax_torch.laplace import Method, Structure
from softmax_torch.modules import Classifier
from softmax_torch.predictor import Predictor
from softmax_torch.preprocessing import ImagePreprocessing


def averaging(
    method: Method | None, structure: Structure = "kronecker"
) -> tuple[Predictor, Tensor]:
    """Return a classifier of images with a posterior, and images."""
    raw = pixels(8, 6)
    plain = linear(ImagePreprocessing((8, 6), False, "abc", 1 / 16))
    assert isinstance(plain.network, Classifier)
    head = plain.network.model.linear
    features = raw[:20].flatten(1) / 16
    posterior = laplace.fit(features, head.weight, head.bias, structure=structure)
    predictor = Predictor(
        *(plain.network, plain.preprocessing),
        hyper_parameters=plain.hyper_parameters,
        laplace=posterior,
        laplace_method=method,
    )
    difference = predictor.predict_proba(raw) - plain.predict_proba(raw)
    assert (difference.abs().max() > 0.05) == (method is not None)
    return predictor, raw


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["kronecker", "full"])
def test_programs_have_the_probabilities_of_the_probit(
    structure: Structure, tmp_path: Path
) -> None:
    predictor, raw = averaging("probit", structure)
    expected = predictor.predict_proba(raw)
    onnx_file, program_file = tmp_path / "model.onnx", tmp_path / "model.pt2"
    for file in (onnx_file, program_file):
        assert export(predictor, file, raw).samples == N
    session = onnxruntime.InferenceSession(onnx_file)
    [got] = session.run(["probabilities"], {"image": raw.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), expected, rtol=0, atol=1e-5)
    _, got = torch.export.load(program_file).module()(raw)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    [props] = [p.value for p in onnx.load(onnx_file).metadata_props if p.key == "softmax_torch"]
    assert json.loads(props)["laplace"] == {
        "structure": structure,
        "prior_precision": 1.0,
        "method": "probit",
    }


@pytest.mark.parametrize(
    ("method", "structure"), [(None, "kronecker"), ("probit", "full"), ("sampling", "kronecker")]
)
def test_weights_carry_the_posterior(
    method: Method | None, structure: Structure, tmp_path: Path
) -> None:
    predictor, raw = averaging(method, structure)
    export(predictor, file := tmp_path / "model.safetensors", raw)
    again = softmax_torch.load(file)
    assert again.laplace_method == method
    assert torch.equal(again.predict_proba(raw), predictor.predict_proba(raw))
    if method is None:
        asked = softmax_torch.load(file, laplace="probit")
        assert torch.equal(asked.predict_proba(raw), averaging("probit")[0].predict_proba(raw))


def test_the_tolerance_is_that_of_the_probabilities_with_the_posterior() -> None:
    """Far from 0, logits lose digits; under a wide posterior, probabilities lose fewer."""
    predictor, _ = averaging("probit")
    assert isinstance(predictor.network, Classifier)
    x = 1e4 + torch.randn(N, 48, generator=torch.Generator().manual_seed(0))
    head = predictor.network.model.linear
    head.bias.data -= 1e4 * head.weight.sum(1)
    predictor.laplace = laplace.fit(x, head.weight, head.bias)
    p = predictor.logits(x).softmax(1)
    with torch.no_grad():
        z = deepcopy(predictor.network).double()(x.double())
        exact = predictor.laplace.predict_proba(z, x.double())
    error = float((p - exact).abs().max())
    tolerance = tolerance_of(predictor, x, None, predictor.laplace)
    assert tolerance == pytest.approx(4 * error, rel=0.01)
    assert tolerance > 1.1 * TOLERANCE
    assert tolerance != pytest.approx(tolerance_of(predictor, x, None), rel=0.1)


def test_a_program_does_not_draw(tmp_path: Path) -> None:
    predictor, raw = averaging("sampling")
    with pytest.raises(ValueError, match="laplace: expected probit, as a program draws no samples"):
        export(predictor, tmp_path / "model.pt2", raw)
    assert list(tmp_path.iterdir()) == []


def test_a_predictor_is_refused_what_it_cannot_apply() -> None:
    predictor, _ = averaging("probit")
    temperature = Calibration(*torch.tensor([0.6, 0.0], dtype=torch.float64))
    posterior = predictor.laplace
    for given, says in (
        ({"calibration": temperature, "laplace": posterior}, "expected no calibration beside it"),
        ({}, "laplace_method: expected a checkpoint with a Laplace approximation"),
        ({"network": torch.nn.Flatten(), "laplace": posterior}, "expected a softmax_.*Flatten"),
    ):
        arguments = {"network": predictor.network, "preprocessing": predictor.preprocessing}
        with pytest.raises(ValueError, match=says):
            Predictor(**(arguments | given), laplace_method="probit")  # type: ignore[arg-type]
