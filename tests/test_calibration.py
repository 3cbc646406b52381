"""Calibrations are optima, survive a checkpoint, and refuse unusable samples."""

import doctest
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from softmax_torch import calibration
from softmax_torch.calibration import Calibration, fit, fit_temperature, fit_vector_scaling


def samples(n: int = 400, C: int = 5, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return logits times ``scale``, and classes drawn from the softmax of the logits alone."""
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(n, C, generator=generator, dtype=torch.float64)
    y = torch.multinomial(z.softmax(1), 1, generator=generator).squeeze(1)
    return scale * z, y


def test_the_example_of_the_module() -> None:
    assert doctest.testmod(calibration).failed == 0


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0, 4.0, 1e3])
def test_the_temperature_is_the_optimum(scale: float) -> None:
    z, y = samples(scale=scale)
    got = fit_temperature(z, y)
    a = got.scale.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(z * a, y), a)
    assert abs(slope * got.scale) < 1e-12
    # The classes came from logits of scale 1.
    assert got.scale * scale == pytest.approx(1.0, abs=0.15)
    assert got.shift == 0


@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_vector_scaling_is_the_optimum(shift: float) -> None:
    z, y = samples()
    z = z * torch.tensor([0.5, 1.0, 2.0, 3.0, 0.1]) + shift * torch.tensor([0.0, 0, 1, 0, 0])
    got = fit_vector_scaling(z, y)
    a, b = (t.clone().requires_grad_() for t in got)
    penalty = (a - 1).square().sum() + b.square().sum()
    objective = F.cross_entropy(z * a + b, y, reduction="sum") + penalty / 2
    gradient = torch.cat(torch.autograd.grad(objective, (a, b)))
    assert gradient.abs().max() < 1e-5 * len(y)
    assert F.cross_entropy(got(z), y) < F.cross_entropy(fit_temperature(z, y)(z), y)


def test_gradient_and_hessian_are_those_of_the_objective() -> None:
    z, y = samples(50, 3)
    w = torch.linspace(0.1, 3, 50, dtype=torch.float64)
    theta = torch.tensor([[0.7, 1.2, 1.0], [0.1, -0.3, 0.0]], dtype=torch.float64)

    def objective(theta: Tensor) -> Tensor:
        a, b = theta.view(2, 3)
        penalty = (a - 1).square().sum() + b.square().sum()
        return w @ F.cross_entropy(z * a + b, y, reduction="none") + penalty / 2

    value, gradient, H = calibration._vector_objective(z, y, w, theta)
    assert value == pytest.approx(float(objective(theta)), rel=1e-12)
    expected = torch.func.grad(objective)(theta.flatten()).view(2, 3)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(H, torch.func.hessian(objective)(theta.flatten()))


def test_a_class_without_samples_has_finite_parameters() -> None:
    z, y = samples()
    z, y = z[y != 4], y[y != 4]
    got = fit_vector_scaling(z, y)
    assert torch.stack(tuple(got)).isfinite().all()


def test_a_temperature_keeps_the_order_of_classes() -> None:
    z, y = samples(scale=5.0)
    assert torch.equal(fit_temperature(z, y)(z).argsort(1), z.argsort(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_keep_their_dtype(dtype: torch.dtype) -> None:
    z, y = samples()
    for method in calibration.METHODS:
        assert fit(z.to(dtype), y, method)(z.to(dtype)).dtype == dtype


def test_a_calibration_survives_a_checkpoint() -> None:
    z, y = samples()
    for method in calibration.METHODS:
        got = fit(z, y, method)
        again = Calibration.from_state_dict(got.state_dict())
        assert torch.equal(again(z), got(z))
    assert str(fit_temperature(z, y)).startswith("temperature ")
    assert "5 classes" in str(fit_vector_scaling(z, y))


def test_samples_without_a_best_temperature_are_refused() -> None:
    z, _ = samples()
    with pytest.raises(ValueError, match="got 400 that are all correct"):
        fit_temperature(z, z.argmax(1))
    with pytest.raises(ValueError, match="predict the class better than chance"):
        fit_temperature(z, z.argmin(1))
    assert torch.stack(tuple(fit_vector_scaling(z, z.argmax(1)))).isfinite().all()


def test_the_limit_is_returned_on_request() -> None:
    """As scikit-learn's: 1 / T is clipped to [exp(-10), exp(10)]."""
    z, _ = samples()
    correct, wrong = z.argmax(1), z.argmin(1)
    with pytest.warns(RuntimeWarning, match=r"400 that are all correct.*; clipped to 4.5e-05"):
        got = fit_temperature(z, correct, clip=True)
    assert got.scale.item() == pytest.approx(math.exp(10))
    for logits in (z, torch.zeros_like(z)):
        with pytest.warns(RuntimeWarning, match=r"better than chance.*; clipped to 2.2e\+04"):
            got = fit_temperature(logits, wrong, clip=True)
        assert got.scale.item() == pytest.approx(math.exp(-10))
        assert got.shift == 0
    with pytest.raises(ValueError, match="better than chance"):
        fit_temperature(torch.zeros_like(z), wrong)


@pytest.mark.parametrize("method", calibration.METHODS)
def test_a_sample_weight_is_a_number_of_copies(method: calibration.Method) -> None:
    z, y = samples()
    copies = torch.arange(len(y)) % 4
    repeated = fit(z.repeat_interleave(copies, 0), y.repeat_interleave(copies), method)
    for weight in (copies, copies.float()):
        got = fit(z, y, method, sample_weight=weight)
        torch.testing.assert_close(tuple(got), tuple(repeated), rtol=1e-6, atol=1e-6)
        assert not torch.allclose(got.scale, fit(z, y, method).scale, rtol=1e-3)
    correct = z.argmax(1) == y  # samples of weight 0 are not looked at
    with pytest.raises(ValueError, match=f"got {int(correct.sum())} that are all correct"):
        fit_temperature(z, y, sample_weight=correct.float())


@pytest.mark.parametrize("method", calibration.METHODS)
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(3), r"sample_weight: expected a tensor of shape \(4,\), got torch.Size\(\[3"),
        ([1.0] * 4, "sample_weight: expected a tensor .* got list"),
        (torch.tensor([1.0, -1, 1, 1]), r"finite numbers >= 0 .* least of -1\.0"),
        (torch.tensor([1.0, torch.nan, 1, 1]), "finite numbers >= 0 .* nan"),
        (torch.zeros(4), r"not all 0, .* largest of 0\.0"),
    ],
)
def test_unusable_weights_are_refused(weight, message: str, method: calibration.Method) -> None:
    z = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    with pytest.raises(ValueError, match=message):
        fit(z, torch.tensor([0, 1, 0, 1]), method, sample_weight=weight)


@pytest.mark.parametrize(
    ("logits", "y", "kind", "message"),
    [
        (torch.ones(3), torch.ones(3), ValueError, r"expected shapes .* got \(3,\) and \(3,\)"),
        (torch.ones(3, 2), torch.zeros(2).long(), ValueError, r"got \(3, 2\) and \(2,\)"),
        (torch.ones(0, 2), torch.zeros(0).long(), ValueError, r"n > 0"),
        (torch.ones(3, 2), torch.zeros(3), ValueError, "integer type, got torch.float32"),
        (torch.ones(3, 2), torch.tensor([0, 2, 1]), IndexError, r"in \[0, 2\), got 2"),
        (torch.ones(3, 2), torch.tensor([0, -1, 1]), IndexError, r"in \[0, 2\), got -1"),
        (torch.tensor([[1.0, 2], [3, torch.nan]]), torch.tensor([0, 1]), ValueError, "in row 1"),
    ],
)
@pytest.mark.parametrize("method", calibration.METHODS)
def test_unusable_input_is_refused(
    logits: Tensor, y: Tensor, kind: type[Exception], message: str, method: calibration.Method
) -> None:
    with pytest.raises(kind, match=message):
        fit(logits, y, method)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature or vector, got 'isotonic'"):
        fit(torch.ones(3, 2), torch.zeros(3).long(), "isotonic")  # type: ignore[arg-type]
