"""A head gives the loss through the net's own call, with every option."""

import copy
import doctest
import threading
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from head_nets import C, D, N, batch, build, gradients, net
from support import every_option, options, peak_memory
from torch import Tensor, nn

import softmax_torch.heads
from softmax_torch import SoftmaxRegression, linear_cross_entropy
from softmax_torch.heads import SoftmaxHead, replace_head


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
@every_option
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


def test_a_net_that_does_not_call_its_head_is_refused() -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    for model_of_another in (copy.deepcopy(model), net()):
        with pytest.raises(
            RuntimeError, match="target: expected the head to be called within the context"
        ):
            head.loss_of(model_of_another, x, y)


# Functions after the head. Most of them leave a positive number as it is, so that the loss itself
# does not show them; the last three raise on a scalar.
AFTER = {
    "relu": torch.relu,
    "relu in place": nn.ReLU(inplace=True),
    "leaky relu": nn.LeakyReLU(),
    "abs": torch.abs,
    "clamp": lambda z: z.clamp(-100, 100),
    "clamp in place": lambda z: z.clamp_(-100, 100),
    "times 1": lambda z: z * 1.0,
    "detach": lambda z: z.detach(),
    "softmax": nn.Softmax(-1),
    "log-softmax": nn.LogSoftmax(-1),
    "log-softmax of dimension 1": nn.LogSoftmax(1),
    "flatten": nn.Flatten(),
    "a slice": lambda z: z[:, :2],
}


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__
)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("after", AFTER.values(), ids=AFTER)
def test_a_function_after_the_head_is_refused(after: Any, reduction: str, mode: Any) -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    with (
        mode(),
        pytest.raises(RuntimeError, match="model: expected it to return the output of its head"),
    ):
        head.loss_of(lambda x: after(model(x)), x, y, reduction=reduction)
    with mode():
        loss = head.loss_of(model, x, y, reduction=reduction)
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y, reduction=reduction))


def test_the_function_after_the_head_is_named() -> None:
    model, (x, y) = net(), batch()
    head = replace_head(model)
    with pytest.raises(RuntimeError, match=r"\[\(\)\] made by LogSoftmax.*end the model in"):
        head.loss_of(nn.Sequential(model, nn.LogSoftmax(-1)), x, y)
    with pytest.raises(
        RuntimeError, match=r"loss of shape \(\): Dimension out of range.*end the model in logits"
    ) as raised:
        head.loss_of(nn.Sequential(model, nn.LogSoftmax(1)), x, y)
    assert isinstance(raised.value.__cause__, IndexError)


def test_copies_of_the_loss_are_accepted() -> None:
    """Wrappers make them: DDP with a static graph copies outputs, FSDP casts them."""
    model, (x, y) = net(), batch()
    head = replace_head(model)
    expected = gradients(model, head.loss_of(model, x, y))
    for copied in (lambda x: model(x).clone(), lambda x: model(x).double().float().clone()):
        found = gradients(model, head.loss_of(copied, x, y))
        assert all(found[n].equal(expected[n]) for n in expected)
    with torch.no_grad():
        head.weight.fill_(torch.nan)
        assert head.loss_of(lambda x: model(x).double(), x, y).isnan()
    assert head.loss_of(lambda x: model(x).clone(), x, y).isnan()
    beside = head.loss_of(lambda x: (head.logits(model[:2](x)), model(x).clone()), x, y)
    assert beside.shape == ()  # the logits are NaN too


def test_a_head_that_is_called_twice_is_refused() -> None:
    model, (x, y) = net(), batch()
    head, logits = replace_head(model), net()(x)
    for twice in (lambda x: model(x) + model(2 * x), lambda x: (model(2 * x), model(x))):
        with pytest.raises(RuntimeError, match="expected one call of its head, got 2; pick the"):
            head.loss_of(twice, x, y)
    with head.target(y):
        first, second = model(x), model(2 * x)
    torch.testing.assert_close(first, F.cross_entropy(logits, y))
    torch.testing.assert_close(second, F.cross_entropy(net()(2 * x), y))


def test_each_thread_has_its_own_target() -> None:
    model, (x, y) = net(), batch()
    head, logits = replace_head(model), net()(x)
    entered, done = threading.Event(), threading.Event()
    found: list[Tensor] = []

    def other() -> None:
        found.append(model(x))  # while the target of the main thread is set
        with head.target(y, reduction="sum"):
            entered.set()
            done.wait(60)
            found.append(model(x))

    thread = threading.Thread(target=other)
    with head.target(y):
        thread.start()
        assert entered.wait(60)
        found.append(model(x))  # while that of the other thread is set
        done.set()
        thread.join()
    assert model(x).equal(logits)
    loss = F.cross_entropy(logits, y)
    torch.testing.assert_close(found, [logits, loss, N * loss])


def test_torch_jit_script_is_refused() -> None:
    model, (x, _) = net(), batch()
    head = replace_head(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated
        with pytest.raises(RuntimeError, match=r"jit\.script: expected a net without a Soft"):
            torch.jit.script(model)
        assert model[2] is head
        assert torch.jit.trace(model, (x,))(x).equal(net()(x))


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
