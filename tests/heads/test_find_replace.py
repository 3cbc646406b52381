"""Heads of nets are found, or refused, and replaced bit for bit."""

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
import torchvision
from head_nets import C, D, batch, build, net
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from softmax_torch.heads import SoftmaxHead, find_head, replace_head

# The names of the heads of torchvision's families; a model belongs to the first family whose name
# begins its own.
PLACES = {
    "alexnet": "classifier.6",
    "convnext": "classifier.2",
    "densenet": "classifier",
    "efficientnet": "classifier.1",
    "googlenet": "fc",
    "inception": "fc",
    "maxvit": "classifier.5",
    "mnasnet": "classifier.1",
    "mobilenet_v2": "classifier.1",
    "mobilenet_v3": "classifier.3",
    "regnet": "fc",
    "resnet": "fc",
    "resnext": "fc",
    "shufflenet": "fc",
    "swin": "head",
    "vgg": "classifier.6",
    "vit": "heads.head",
    "wide_resnet": "fc",
}
# The smallest model of each family, with the smallest image size that it accepts.
SMALLEST = {
    "alexnet": 64,
    "convnext_tiny": 32,
    "densenet121": 32,
    "efficientnet_b0": 32,
    "googlenet": 32,
    "inception_v3": 75,
    "maxvit_t": 224,
    "mnasnet0_5": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "regnet_y_400mf": 32,
    "resnet18": 32,
    "resnext50_32x4d": 32,
    "shufflenet_v2_x0_5": 32,
    "swin_t": 32,
    "swin_v2_t": 32,
    "vgg11": 32,
    "vit_b_32": 32,
}
SQUEEZENET = "squeezenet1_0"  # its head is a convolution, which is refused
MODELS = torchvision.models.list_models(module=torchvision.models)


def through_head(model: nn.Module, layer: nn.Linear, x: Tensor, loss: Any) -> list[Tensor]:
    """Return the net's output, and gradients of its loss in the layer's input and parameters."""
    features = []

    def cut(_: nn.Module, given: tuple[Tensor]) -> Tensor:
        features.append(given[0].detach().requires_grad_())
        return features[0]

    handle = layer.register_forward_pre_hook(cut)
    output = model(x)
    handle.remove()
    leaves = [t for t in (*features, layer.weight, layer.bias) if t is not None]
    return [output.detach(), *torch.autograd.grad(loss(output), leaves)]


@pytest.fixture
def without_memory() -> Iterator[None]:
    """Build nets on the meta device, even if their constructors compute with numbers."""

    def on_meta(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        return None if parameter is None else nn.Parameter(parameter.to("meta"))

    handle = register_module_parameter_registration_hook(on_meta)
    yield
    handle.remove()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in {*SMALLEST, SQUEEZENET} else pytest.mark.slow)
        for name in MODELS
    ],
)
def test_the_head_of_every_classifier_of_torchvision(name: str, without_memory: None) -> None:
    model = build(name)
    if name.startswith("squeezenet"):
        with pytest.raises(ValueError, match=r"got 'classifier\.1', a Conv2d.*end the model in"):
            find_head(model)
        return
    place, layer = find_head(model)
    assert place == next(at for family, at in PLACES.items() if name.startswith(family))
    assert layer is model.get_submodule(place)
    assert (type(layer), layer.out_features) == (nn.Linear, 1000)


QUICK = {"resnet18", "mobilenet_v3_small", "squeezenet1_0"}
"""Nets with the common kinds of heads; the others are slow tests."""


@pytest.mark.parametrize(
    ("name", "size"),
    [
        pytest.param(*item, marks=[] if item[0] in QUICK else pytest.mark.slow)
        for item in SMALLEST.items()
    ],
)
def test_a_net_with_its_head_replaced_computes_the_same(name: str, size: int) -> None:
    torch.manual_seed(0)
    settings = {"image_size": size} if name.startswith("vit") else {}
    # In float64: logits of some tens have no digits left in float32 for the order of a sum.
    model = build(name, num_classes=10, **settings).double().requires_grad_(False).eval()
    keys, names = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    place, layer = find_head(model)
    nn.init.normal_(layer.requires_grad_().weight)  # a vit's is zero
    x, y = torch.randn(2, 3, size, size, dtype=torch.float64), torch.tensor([3, 7])
    before = through_head(model, layer, x, lambda z: F.cross_entropy(z, y))
    head = replace_head(model)
    assert find_head(model) == (place, head)
    assert (head.weight is layer.weight, head.bias is layer.bias) == (True, True)
    after = through_head(model, head, x, lambda z: F.cross_entropy(z, y))
    assert all(a.equal(b) for a, b in zip(after, before, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in before[1:])
    loss = through_head(lambda x: head.loss_of(model, x, y), head, x, lambda loss: loss)
    expected = [F.cross_entropy(before[0], y), *before[1:]]
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    assert list(model.state_dict()) == keys
    assert [n for n, _ in model.named_parameters()] == names


def test_the_head_of_a_given_name() -> None:
    model = build("googlenet", num_classes=C, init_weights=False)
    assert find_head(model, "aux1.fc2") == ("aux1.fc2", model.aux1.fc2)
    head = replace_head(model, 3, name="aux1.fc2")
    assert model.aux1.fc2 is head
    assert (head.out_features, find_head(model)[1]) == (3, model.fc)


@pytest.mark.parametrize(
    ("model", "name", "kind", "message"),
    [
        ("net", None, TypeError, "model: expected an nn.Module, got str"),
        (nn.ReLU(), None, ValueError, "model: expected an nn.Linear at its end, got a ReLU"),
        (
            nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
            None,
            ValueError,
            "model: expected an nn.Linear as the last module with parameters, got '1', a BatchNorm",
        ),
        (net(), "fc", ValueError, "nn.Linear, such as '2', got 'fc', no module of a Sequential"),
        (
            net(),
            "1",
            ValueError,
            "name: expected the name of an nn.Linear, such as '2', got '1', a ReLU",
        ),
        (nn.ReLU(), "fc", ValueError, "name of an nn.Linear, got 'fc', no module of a ReLU"),
    ],
)
def test_a_net_without_a_head_is_refused(model: Any, name: Any, kind: type, message: str) -> None:
    for call in (find_head, lambda model, name: replace_head(model, name=name)):
        with pytest.raises(kind) as raised:
            call(model, name)
        assert message in str(raised.value)


def test_layers_without_parameters_may_follow() -> None:
    model = nn.Sequential(net(), nn.Dropout(), nn.Flatten())
    assert find_head(model)[0] == "0.2"


def test_a_new_layer() -> None:
    model = net(bias=False, classes=1000).double().requires_grad_(False).eval()
    old = model[2]
    torch.manual_seed(3)
    head = replace_head(model, C)
    torch.manual_seed(3)
    drawn = nn.Linear(D, C, bias=False, dtype=torch.float64)
    assert model[2] is head
    assert head.weight.equal(drawn.weight)
    assert head.bias is None
    assert (head.weight.requires_grad, head.training) == (True, False)
    assert (type(old), old.out_features) == (nn.Linear, 1000)
    assert replace_head(net().to("meta"), 7).weight.is_meta
    assert replace_head(net(), 7).bias.shape == (7,)


def test_a_layer_in_two_places_is_replaced_in_both() -> None:
    model = net()
    model.add_module("again", model[2])
    head = replace_head(model)
    assert model[2] is model.again is head
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)  # the last place counts
    assert find_head(nn.Sequential(one, nn.ReLU(), other, one)) == ("3", one)


class Own(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(F.normalize(input, dim=-1), self.weight)


@pytest.mark.parametrize(
    ("layer", "kind"),
    [
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "ParametrizedLinear"),
        (nn.LazyLinear(2), "LazyLinear"),
        (nn.utils.prune.identity(nn.Linear(3, 2), "weight"), "Linear"),
        (Own(3, 2), "Own"),
    ],
)
def test_more_than_a_linear_layer_is_refused(layer: nn.Linear, kind: str) -> None:
    model = nn.Sequential(layer)
    with pytest.raises(ValueError, match=f"'0' to be a plain nn.Linear .* got a {kind} with"):
        replace_head(model, name="0")
    assert model[0] is layer


def test_other_layers_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a net around its head, got the nn\.Linear"):
        replace_head(nn.Linear(2, 3))
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got 0"):
        replace_head(net(), 0)
    with pytest.raises(ValueError, match="in_features: expected at least 1, got 0"):
        SoftmaxHead(0, 2)


def test_a_state_dict_loads_with_and_without_the_head() -> None:
    """Each of a net with the head and torchvision's own loads the other's, through a file."""
    plain, ours = (build("shufflenet_v2_x0_5", num_classes=C) for _ in range(2))
    replace_head(ours)
    for source, goal in ((ours, plain), (plain, ours)):
        with torch.no_grad():
            source.fc.weight.normal_()
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        goal.load_state_dict(torch.load(file, weights_only=True))
        assert goal.fc.weight.equal(source.fc.weight)
        assert ours.fc.bias.equal(plain.fc.bias)


def test_a_copy_has_a_head_of_its_own() -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    for twin in (copy.deepcopy(model), torch.load(saved(model), weights_only=False)):
        assert twin[2].loss_of(twin, x, y).equal(head.loss_of(model, x, y))


def saved(model: nn.Module) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return file
