"""SoftmaxRegression and CrossEntropyLoss."""

import inspect

import pytest
import torch
import torch.nn.functional as F
from support import results
from torch import nn

from softmax_torch import CrossEntropyLoss, SoftmaxRegression

pytestmark = pytest.mark.usefixtures("kernels")  # every test, with both kernels


def test_it_is_one_linear_layer() -> None:
    model = SoftmaxRegression(4, 3)
    assert list(model.state_dict()) == ["linear.weight", "linear.bias"]
    assert isinstance(model.linear, nn.Linear)
    assert (model.in_features, model.num_classes) == (4, 3)
    assert list(SoftmaxRegression(4, 3, bias=False).state_dict()) == ["linear.weight"]


@pytest.mark.parametrize("rows", [(), (5,), (2, 3), (2, 1, 3)], ids=str)
def test_shapes(rows: tuple[int, ...]) -> None:
    model, x = SoftmaxRegression(4, 3), torch.randn(*rows, 4)
    z = model.linear(x)
    assert torch.equal(model.logits(x), z)
    torch.testing.assert_close(model(x), F.log_softmax(z, -1))
    p = model.predict_proba(x)
    torch.testing.assert_close(p, F.softmax(z, -1))
    torch.testing.assert_close(p.sum(-1), torch.ones(rows))
    assert torch.equal(model.predict(x), z.argmax(-1))
    y = torch.randint(3, rows)
    loss = F.cross_entropy(z.reshape(-1, 3), y.reshape(-1))
    torch.testing.assert_close(model.loss(x, y), loss)
    assert model.loss(x, y, reduction="none").shape == rows


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 1, 28, 28), (5, 14, 56)], ids=str)
def test_images_are_flattened(shape: tuple[int, ...]) -> None:
    model, x = SoftmaxRegression(784, 3), torch.randn(shape)
    assert torch.equal(model(x), model(x.reshape(5, 784)))
    y = torch.randint(3, (5,))
    assert torch.equal(model.loss(x, y), model.loss(x.reshape(5, 784), y))


@pytest.mark.parametrize("shape", [(), (5,), (4, 5), (2, 3, 5), (2, 2)], ids=str)
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    model = SoftmaxRegression(4, 3)
    for call in (model, model.logits, model.predict, model.predict_proba):
        with pytest.raises(ValueError, match=r"expected shape \(\.\.\., 4\)") as raised:
            call(torch.zeros(shape))
        assert f"got {shape}" in str(raised.value)
    with pytest.raises(ValueError, match="in_features=4"):
        model.loss(torch.zeros(shape), torch.zeros((), dtype=torch.long))


@pytest.mark.parametrize(("sizes", "name"), [((0, 3), "in_features"), ((4, 0), "num_classes")])
def test_sizes_are_checked(sizes: tuple[int, int], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        SoftmaxRegression(*sizes)


def test_device_and_dtype_are_those_of_the_parameters() -> None:
    model = SoftmaxRegression(4, 3, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.float64)}


def test_a_model_on_the_meta_device_has_a_loss() -> None:
    """Shapes are then known before memory is allocated."""
    with torch.device("meta"):
        model, x = SoftmaxRegression(4, 3), torch.randn(5, 4)
        loss = model.loss(x, torch.zeros(5, dtype=torch.long))
    assert (loss.shape, loss.device.type) == ((), "meta")


def test_without_an_intercept() -> None:
    torch.manual_seed(0)
    model, x, y = SoftmaxRegression(4, 3, bias=False), torch.randn(5, 4), torch.randint(3, (5,))
    z = x @ model.linear.weight.t()
    torch.testing.assert_close(model(x), z.log_softmax(-1))
    loss = model.loss(x, y)
    torch.testing.assert_close(loss, F.cross_entropy(z, y))
    expected = torch.autograd.grad(F.cross_entropy(z, y), model.linear.weight)
    torch.testing.assert_close(torch.autograd.grad(loss, model.linear.weight), expected)


def test_the_loss_has_the_constructor_of_torchs() -> None:
    ours, torchs = (
        inspect.signature(c).parameters for c in (CrossEntropyLoss, nn.CrossEntropyLoss)
    )
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in torchs.items()}
    assert list(ours) == list(torchs)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"reduction": "sum"},
        {"ignore_index": 1, "label_smoothing": 0.2},
        {"weight": torch.tensor([1.0, 2.0, 0.5]), "reduction": "none"},
    ],
    ids=str,
)
def test_the_loss_is_torchs(given: dict) -> None:
    torch.manual_seed(0)
    z, y = torch.randn(6, 3), torch.randint(3, (6,))
    ours, torchs = CrossEntropyLoss(**given), nn.CrossEntropyLoss(**given)
    torch.testing.assert_close(results(lambda z: ours(z, y), z), results(lambda z: torchs(z, y), z))
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert list(ours.parameters()) == []
    assert ours.double().weight is None or ours.weight.dtype == torch.float64


def test_the_loss_of_class_probabilities_is_torchs() -> None:
    torch.manual_seed(0)
    z, t = torch.randn(6, 3), torch.randn(6, 3).softmax(1)
    ours, torchs = (
        results(c(torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.2), z, t)
        for c in (CrossEntropyLoss, nn.CrossEntropyLoss)
    )
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"size_average": True}, ValueError, "size_average and reduce: expected None"),
        ({"reduce": False}, ValueError, "size_average and reduce: expected None"),
        ({"reduction": "average"}, ValueError, "reduction: expected .* got 'average'"),
        ({"label_smoothing": 2.0}, RuntimeError, r"label_smoothing: expected .* got 2\.0"),
    ],
)
def test_the_loss_checks_its_options_at_once(
    given: dict, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        CrossEntropyLoss(**given)
