"""SoftmaxRegression and CrossEntropyLoss."""

import inspect
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from support import in_group, results
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from softmax_torch import CrossEntropyLoss, SoftmaxRegression, cross_entropy, linear_cross_entropy
from softmax_torch.heads import replace_head

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
    assert list(ours) == [*torchs, "z_loss", "softcap", "logit_scale"]
    assert {n: ours[n].default for n in torchs} == {n: p.default for n, p in torchs.items()}


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


def test_the_loss_with_our_own_options() -> None:
    torch.manual_seed(0)
    z, y = torch.randn(6, 3), torch.randint(3, (6,))
    given = {"z_loss": 0.1, "softcap": 1.5, "logit_scale": 0.7}
    loss = CrossEntropyLoss(**given)
    ours = results(lambda z: loss(z, y), z)
    truth = results(lambda z: cross_entropy(z, y, **given), z)
    torch.testing.assert_close(ours, truth)


def test_the_loss_of_class_probabilities_is_torchs() -> None:
    torch.manual_seed(0)
    z, t = torch.randn(6, 3), torch.randn(6, 3).softmax(1)
    ours, torchs = (
        results(c(torch.tensor([1.0, 2.0, 0.5]), label_smoothing=0.2), z, t)
        for c in (CrossEntropyLoss, nn.CrossEntropyLoss)
    )
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("given", [{"size_average": True}, {"reduce": False}], ids=str)
def test_the_loss_refuses_deprecated_options_at_once(given: dict) -> None:
    with pytest.raises(ValueError, match="size_average and reduce: expected None"):
        CrossEntropyLoss(**given)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"reduction": "average"}, ValueError, "reduction: expected .* got 'average'"),
        ({"label_smoothing": 1.2}, RuntimeError, r"label_smoothing: expected .* got 1\.2"),
        ({"ignore_index": None}, TypeError, "ignore_index: expected an integer, got None"),
    ],
)
def test_a_call_of_the_loss_checks_its_options(
    given: dict, kind: type[Exception], message: str
) -> None:
    """As in torch, the constructor takes them, and options come before shapes."""
    ours, torchs = CrossEntropyLoss(**given), nn.CrossEntropyLoss(**given)
    for target in (torch.zeros(4, dtype=torch.long), torch.ones(3, 4)):
        with pytest.raises(kind):
            torchs(torch.randn(3, 4), target)
        with pytest.raises(kind, match=message):
            ours(torch.randn(3, 4), target)


def test_predictions_have_no_graph_and_take_inference_tensors() -> None:
    model = SoftmaxRegression(4, 3)
    with torch.inference_mode():
        x = torch.randn(5, 4)
    for predict in (model.predict, model.predict_proba):
        assert not predict(torch.randn(5, 4)).requires_grad
        assert predict(x).equal(predict(x.clone()))


def test_the_forward_of_a_target_is_the_loss() -> None:
    model, x, y = SoftmaxRegression(4, 3), torch.randn(5, 4), torch.randint(3, (5,))
    assert model(x, y).equal(model.loss(x, y))
    loss = model.loss(x, y, label_smoothing=0.1, reduction="none")
    assert model(x, y, label_smoothing=0.1, reduction="none").equal(loss)
    with pytest.raises(TypeError, match="target: expected a Tensor with reduction, got None"):
        model(x, reduction="none")


def wrapped_in_ranks(rank: int, folder: str) -> None:
    """Check that a model wrapped in DDP or FSDP2 has the mean gradient of the ranks' halves."""
    torch.manual_seed(0)
    x, y = torch.randn(8, 4), torch.randint(3, (8,))
    half = slice(4 * rank, 4 * rank + 4)
    plain = SoftmaxRegression(4, 3)
    plain.loss(x, y, label_smoothing=0.1).backward()
    expected = [p.grad for p in plain.parameters()]

    def compare(call: nn.Module, model: nn.Module) -> None:
        call(x[half], y[half], label_smoothing=0.1).backward()
        for p, gradient in zip(model.parameters(), expected, strict=True):
            found = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            torch.testing.assert_close(found, gradient)

    def copied() -> SoftmaxRegression:
        model = SoftmaxRegression(4, 3)
        model.load_state_dict(plain.state_dict())
        return model

    model = copied()
    compare(DistributedDataParallel(model), model)
    model = copied()
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    fully_shard(model, mesh=mesh)
    # Outside of its module's forward a parameter is a shard of the classes, and needs the same rows
    # on all ranks.
    for call in (model.loss, lambda x, y: linear_cross_entropy(x, model.linear.weight, y)):
        with pytest.raises(ValueError, match=r"target: expected the same .*FSDP2 call the m"):
            call(x[half], y[half])
        with pytest.raises(ValueError, match=r"input: expected the same values .*FSDP2 call the m"):
            call(x[half], y[:4])
    assert model.loss(x, y).equal(plain.loss(x, y))
    compare(model, model)
    model = copied()
    register_fsdp_forward_method(fully_shard(model, mesh=mesh), "loss")
    compare(model.loss, model)

    # tensor parallelism: the classes of a head are split over ranks
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    for p in net.parameters():
        dist.broadcast(p.data, 0)
    head = replace_head(net)
    one = head.loss_of(net, x, y)
    one.backward()
    expected = head.weight.grad
    net.zero_grad()
    parallelize_module(net, mesh, {"1": ColwiseParallel(output_layouts=Replicate())})
    with head.target(y):
        loss = net(x)
    torch.testing.assert_close(loss, one)
    loss.backward()
    torch.testing.assert_close(head.weight.grad.full_tensor(), expected)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    head = replace_head(net)
    parallelize_module(net, mesh, {"1": ColwiseParallel()})  # its output cannot be a loss
    with pytest.raises(RuntimeError, match=r"got an error after the head had returned the loss"):
        head.loss_of(net, x, y)
    with pytest.raises(RuntimeError, match=r"input: expected a DTensor as target, which has pl"):
        cross_entropy(torch.randn(8, 3), distribute_tensor(y, mesh, (Replicate(),)))


def test_the_loss_of_a_wrapped_model(tmp_path: Path) -> None:
    in_group(wrapped_in_ranks, 2, tmp_path)
