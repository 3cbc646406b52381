"""Heads of nets: found, replaced bit for bit, and asked for the loss through the net's call."""

import copy
import doctest
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
import torch.nn.utils.prune
import torchvision
from support import OURS, TORCHS, in_group, options, peak_memory
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import softmax_torch.heads
from softmax_torch import SoftmaxRegression, linear_cross_entropy
from softmax_torch.heads import SoftmaxHead, find_head, replace_head

N, D, C = 6, 8, 5

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
MODELS = torchvision.models.list_models(module=torchvision.models)


def build(name: str, **settings: Any) -> nn.Module:
    with warnings.catch_warnings():  # googlenet and inception_v3 warn that scipy is slow
        warnings.simplefilter("ignore", FutureWarning)
        return torchvision.models.get_model(name, weights=None, **settings)


def net(bias: bool = True, classes: int = C) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, D), nn.ReLU(), nn.Linear(D, classes, bias=bias))


def batch(n: int = N) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(n, 4), torch.randint(C, (n,))


def gradients(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


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


@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.parametrize(("name", "size"), SMALLEST.items())
def test_a_net_with_its_head_replaced_computes_the_same(name: str, size: int) -> None:
    torch.manual_seed(0)
    settings = {"image_size": size} if name.startswith("vit") else {}
    model = build(name, num_classes=10, **settings).requires_grad_(False).eval()
    keys, names = list(model.state_dict()), [n for n, _ in model.named_parameters()]
    place, layer = find_head(model)
    nn.init.normal_(layer.requires_grad_().weight)  # a vit's is zero
    x, y = torch.randn(2, 3, size, size), torch.tensor([3, 7])
    before = through_head(model, layer, x, lambda z: F.cross_entropy(z, y))
    head = replace_head(model)
    assert find_head(model) == (place, head)
    assert (head.weight is layer.weight, head.bias is layer.bias) == (True, True)
    after = through_head(model, head, x, lambda z: F.cross_entropy(z, y))
    assert all(a.equal(b) for a, b in zip(after, before, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in before[1:])
    loss = through_head(lambda x: head.loss_of(model, x, y), head, x, lambda loss: loss)
    expected = [F.cross_entropy(before[0], y), *before[1:]]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
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


def test_it_has_the_methods_of_softmax_regression() -> None:
    head, x = SoftmaxHead(D, C), torch.randn(N, D)
    model, y = SoftmaxRegression(D, C), torch.randint(C, (N,))
    model.linear.load_state_dict(head.state_dict())
    assert head.linear is head
    assert (head.in_features, head.num_classes) == (D, C)
    for method in ("logits", "predict", "predict_proba"):
        assert getattr(head, method)(x).equal(getattr(model, method)(x))
    assert head.loss(x, y, z_loss=0.1).equal(model.loss(x, y, z_loss=0.1))
    assert head(x).equal(model.logits(x))


@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
@pytest.mark.parametrize("chosen", (TORCHS | OURS).values(), ids=(TORCHS | OURS).keys())
def test_the_loss_has_every_option(chosen: dict, soft: bool) -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    target = torch.randn(N, C).softmax(1) if soft else y
    given = options(chosen, C, (N,), torch.float32)
    loss = head.loss_of(model, x, target, **given)
    expected = linear_cross_entropy(
        model[:2](x), head.weight, target, linear_bias=head.bias, **given
    )
    assert loss.equal(expected)
    ours, theirs = (gradients(model, value.sum()) for value in (loss, expected))
    assert all(ours[n].equal(theirs[n]) for n in theirs)


def test_ignored_rows() -> None:
    model, (x, y) = net(), batch()
    head, y = replace_head(model), y.index_fill(0, torch.tensor([1]), 255)
    expected = F.cross_entropy(model(x), y, ignore_index=255)
    torch.testing.assert_close(head.loss_of(model, x, y, ignore_index=255), expected)


def test_tokens() -> None:
    model, x, y = net(), torch.randn(2, 3, 4), torch.randint(C, (2, 3))
    head = replace_head(model)
    assert model(x).equal(net()(x))
    expected = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
    torch.testing.assert_close(head.loss_of(model, x, y), expected)
    assert head.loss_of(model, x, y, reduction="none").shape == (2, 3)


def test_the_loss_refuses_the_features_that_the_logits_refuse() -> None:
    head, x = SoftmaxHead(D, C), torch.randn(N, 2, D // 2)
    for call in (lambda: head(x), lambda: head.loss(x, torch.zeros(N, dtype=torch.int64))):
        with pytest.raises(RuntimeError):
            call()


class Aux(nn.Module):
    """A net with an auxiliary classifier defined before its head."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.body, self.aux, self.fc = nn.Linear(4, D), nn.Linear(D, C), nn.Linear(D, C)
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        return self.kind(self.aux(h), self.fc(h))


@pytest.mark.parametrize(
    "kind",
    [
        lambda *given: given,
        lambda *given: [*given, None],
        lambda aux, logits: {"aux": aux, "logits": logits},
    ],
    ids=["tuple", "list", "dict"],
)
def test_the_loss_among_several_outputs(kind: Any) -> None:
    model, (x, y) = Aux(kind), batch()
    head = replace_head(model)
    with head.target(y):
        output = model(x)
    values = list(output.values()) if isinstance(output, dict) else output
    assert values[0].equal(model.aux(model.body(x).relu()))
    assert head.loss_of(model, x, y).equal(values[1])
    assert values[1].shape == ()


def test_auxiliary_classifiers_of_torchvision_are_unchanged() -> None:
    torch.manual_seed(0)
    model = build("googlenet", num_classes=C, init_weights=False).requires_grad_(False)
    head, x, y = replace_head(model), torch.randn(2, 3, 32, 32), torch.tensor([1, 4])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    plain = model(x)
    with head.target(y):
        given = model(x)
    torch.testing.assert_close(given.logits, F.cross_entropy(plain.logits, y))
    assert given.aux_logits1.equal(plain.aux_logits1)
    assert given.aux_logits2.equal(plain.aux_logits2)
    assert head.loss_of(model, x, y).equal(given.logits)


def test_targets_nest_and_end() -> None:
    model, (x, y) = net(), batch()
    head, logits = replace_head(model), net()(x)
    with head.target(y):
        first = model(x)
        with head.target(y, reduction="sum"):
            torch.testing.assert_close(model(x), N * first)
            assert head.logits(model[:2](x)).equal(logits)
        assert model(x).equal(first)
    assert model(x).equal(logits)
    again = head.target(y)
    for _ in range(2):
        with again:
            assert model(x).equal(first)


def test_each_head_has_its_own_target() -> None:
    model, (x, y) = Aux(lambda *given: given), batch()
    logits = model(x)
    first, second = replace_head(model, name="aux"), replace_head(model)
    with first.target(y), second.target(y, label_smoothing=0.1):
        losses = model(x)
    torch.testing.assert_close(losses[0], F.cross_entropy(logits[0], y))
    torch.testing.assert_close(losses[1], F.cross_entropy(logits[1], y, label_smoothing=0.1))


def test_an_error_leaves_the_head_as_it_was() -> None:
    model, (x, y) = net(), batch()
    head, logits = replace_head(model), net()(x)
    with pytest.raises(IndexError, match=r"target: expected class indices in \[0, 5\)"):
        head.loss_of(model, x, y + C)
    with pytest.raises(TypeError, match="unexpected keyword argument 'smoothing'"):
        head.loss_of(model, x, y, smoothing=0.1)
    with pytest.raises(KeyError, match="mine"), head.target(y):
        raise KeyError("mine")
    assert model(x).equal(logits)


def test_an_output_without_the_loss_is_refused() -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    for model_of_another in (copy.deepcopy(model), net()):
        with pytest.raises(
            RuntimeError, match="target: expected the head to be called within the context"
        ):
            head.loss_of(model_of_another, x, y)
    for after in (nn.Softmax(-1), nn.LogSoftmax(-1)):
        with pytest.raises(
            RuntimeError, match="model: expected it to return the output of its head"
        ):
            head.loss_of(nn.Sequential(model, after), x, y)
    with torch.no_grad():
        head.weight.fill_(torch.nan)
    assert head.loss_of(lambda x: model(x).clone(), x, y).isnan()  # a copy of the loss is accepted
    beside = head.loss_of(lambda x: (head.logits(model[:2](x)), model(x).clone()), x, y)
    assert beside.shape == ()  # the logits are NaN too


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


def test_two_graphs_serve_every_step() -> None:
    torch.compiler.reset()
    graphs = []

    def count_and_run(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model = net()
    head = replace_head(model)
    compiled = torch.compile(model, fullgraph=True, backend=count_and_run)
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(N, 4), torch.randint(C, (N,))
        loss = head.loss_of(compiled, x, y, label_smoothing=0.1)
        expected = head.loss_of(model, x, y, label_smoothing=0.1)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(gradients(model, loss), gradients(model, expected))
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 2
    torch.compiler.reset()


def test_a_compiled_step() -> None:
    torch.compiler.reset()
    model, (x, y) = net(), batch()
    head = replace_head(model)

    def context(x: Tensor, y: Tensor) -> Tensor:
        with head.target(y):
            return model(x)

    expected = head.loss_of(model, x, y)
    for step in (
        context,
        lambda x, y: head.loss_of(model, x, y),
        lambda x, y: head.loss_of(lambda x: model(x).clone(), x, y),
    ):
        loss = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            gradients(model, loss), gradients(model, head.loss_of(model, x, y))
        )
        assert model(x).shape == (N, C)
    torch.compiler.reset()


def test_under_autocast() -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    exact = gradients(model, head.loss_of(model, x, y))
    with torch.autocast("cpu", torch.bfloat16):
        loss, logits = head.loss_of(model, x, y), model(x)
        assert logits.equal(net()(x))
    assert (loss.dtype, logits.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y), rtol=0.02, atol=0)
    torch.testing.assert_close(gradients(model, loss), exact, rtol=0.1, atol=0.01)


class Checkpointed(nn.Module):
    """A net that recomputes its body, or all of itself, in the backward pass."""

    def __init__(self, model: nn.Sequential, whole: bool, reentrant: bool) -> None:
        super().__init__()
        self.model, self.whole, self.reentrant = model, whole, reentrant

    def forward(self, x: Tensor) -> Tensor:
        body = self.model if self.whole else self.model[:2]
        h: Tensor = checkpoint(body, x, use_reentrant=self.reentrant)
        return h if self.whole else self.model[2](h)


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_gradient_checkpointing(reentrant: bool) -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    expected = gradients(model, head.loss_of(model, x, y))
    x.requires_grad_()  # required by the reentrant kind

    def compare(loss: Tensor) -> None:
        model.zero_grad()
        loss.backward()
        assert all(p.grad.equal(expected[n]) for n, p in model.named_parameters())

    compare(head.loss_of(Checkpointed(model, False, reentrant), x, y))
    with head.target(y):  # the head is called again in the backward pass
        compare(Checkpointed(model, True, reentrant)(x))
    compare(checkpoint(lambda x: head.loss_of(model, x, y), x, use_reentrant=reentrant))
    assert model(x).shape == (N, C)


def test_functional_calls_and_gradients_of_samples() -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return head.loss_of(lambda x: torch.func.functional_call(model, parameters, (x,)), x, y)

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, y)
    mean = {name: gradient.mean(0) for name, gradient in each.items()}
    torch.testing.assert_close(mean, gradients(model, head.loss_of(model, x, y)))


def test_many_classes_need_no_memory_for_their_logits() -> None:
    """The logits have 80 MB; two blocks of 32 MiB and the gradients have less."""
    model, x, y = net(), torch.randn(1000, 4), torch.randint(20000, (1000,))
    head = replace_head(model, 20000)
    assert peak_memory(lambda: F.cross_entropy(model(x), y).backward()) > 160e6
    model.zero_grad()
    assert peak_memory(lambda: head.loss_of(model, x, y).backward()) < 75e6


def test_the_examples() -> None:
    for module in (softmax_torch.heads, softmax_torch.heads.head):
        found = doctest.testmod(module)
        assert found.attempted > 5
        assert found.failed == 0


def in_ranks(rank: int, folder: str) -> None:
    """Check that nets of two ranks have the mean gradient of the halves of a batch."""
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    x, y = batch(8)
    half = slice(4 * rank, 4 * rank + 4)
    one = net()
    plain = gradients(one, F.cross_entropy(one(x), y, label_smoothing=0.1))

    def compare(model: nn.Module, call: Any, head: SoftmaxHead, tolerance: float = 1e-6) -> None:
        parameters = dict(model.named_parameters())  # FSDP replaces parameters in between
        for _ in range(3):  # DDP's static graph changes after the first step
            for p in parameters.values():
                p.grad = None
            loss = head.loss_of(call, x[half], y[half], label_smoothing=0.1)
            loss.backward()
            for name, p in parameters.items():
                found = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
                close = torch.allclose(found, plain[name], rtol=0, atol=tolerance)
                assert close, f"{name}: {found} for {plain[name]}"
            with torch.no_grad():
                assert call(x[half]).shape == (4, C)

    for settings in ({}, {"find_unused_parameters": True}, {"static_graph": True}):
        model = net()
        head = replace_head(model)
        call = DistributedDataParallel(model, **settings)
        assert find_head(call) == ("module.2", head)
        compare(model, call, head)
        refused(call)

    low = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.float64)
    for settings, tolerance in (({}, 1e-6), ({"mp_policy": low}, 0.02)):
        for alone in (False, True):
            model = net()
            names = [name for name, _ in model.named_parameters()]
            head = replace_head(model)
            if alone:
                fully_shard(head, mesh=mesh, **settings)
            fully_shard(model, mesh=mesh, **settings)
            compare(model, model, head, tolerance)
            refused(model)
            assert [name for name, _ in model.named_parameters()] == names

    # A checkpoint that ranks saved together loads into a plain net.
    model = net()
    replace_head(model, C)
    fully_shard(model, mesh=mesh)
    dcp.save({"model": model.state_dict()}, checkpoint_id=f"{folder}/saved")
    state = {"model": net().state_dict()}
    dcp.load(state, checkpoint_id=f"{folder}/saved")
    assert state["model"]["2.weight"].equal(model[2].weight.full_tensor())


def refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="replace the head first, then wrap, shard or parametrize"):
        replace_head(model, 3)


def test_data_parallel_and_sharded_nets(tmp_path: Path) -> None:
    in_group(in_ranks, 2, tmp_path)
