"""A head gives further numbers of each sample beside the loss, from the same call of the net."""

import functools
import threading
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from head_nets import C, N, batch, gradients, net
from support import peak_memory, products
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softmax_torch.heads import SoftmaxHead, replace_head

NAMES = ("lse", "log_prob", "argmax", "in_top_k", "entropy")


def expected_outputs(z: Tensor, y: Tensor, top_k: int) -> dict[str, Tensor]:
    log_p = z.log_softmax(-1)
    best = z.topk(top_k).indices
    return {
        "loss": F.cross_entropy(z, y),
        "lse": z.logsumexp(-1),
        "log_prob": log_p.gather(-1, y.unsqueeze(-1)).squeeze(-1),
        "argmax": z.argmax(-1),
        "in_top_k": (best == y.unsqueeze(-1)).any(-1),
        "entropy": -(log_p.exp() * log_p).sum(-1),
    }


def check(outputs: Any, expected: dict[str, Tensor]) -> None:
    assert outputs is not None
    found = {name: value for name, value in outputs._asdict().items() if value is not None}
    torch.testing.assert_close(found, expected)


def replaced() -> tuple[nn.Sequential, SoftmaxHead]:
    model = net()
    return model, replace_head(model)


@pytest.mark.parametrize(
    "mode", [torch.enable_grad, torch.no_grad, torch.inference_mode], ids=lambda m: m.__name__
)
def test_outputs_are_those_of_the_logits(mode: Any) -> None:
    (model, head), (x, y) = replaced(), batch()
    with mode():
        with head.target(y, outputs=NAMES, top_k=2) as request:
            assert request.outputs is None
            loss = model(x)
        expected = expected_outputs(model(x), y, 2)
        result = head.loss_outputs_of(model, x, y, outputs=NAMES, top_k=2)
    expected = {name: value.detach() for name, value in expected.items()}
    torch.testing.assert_close(loss.detach(), expected["loss"])
    check(request.outputs, expected)
    check(result._replace(loss=result.loss.detach()), expected)
    if mode is torch.enable_grad:
        plain = gradients(model, head.loss_of(model, x, y))
        torch.testing.assert_close(gradients(model, loss), plain)
        torch.testing.assert_close(gradients(model, result.loss), plain)


def test_options_apply_to_the_outputs() -> None:
    (model, head), (x, y) = replaced(), batch()
    y[1] = -100
    result = head.loss_outputs_of(
        model, x, y, outputs=("log_prob",), logit_scale=3.0, reduction="sum", label_smoothing=0.1
    )
    z = 3 * model(x)
    torch.testing.assert_close(
        result.loss, F.cross_entropy(z, y, None, None, -100, None, "sum", 0.1)
    )
    torch.testing.assert_close(result.log_prob, -F.cross_entropy(z, y, reduction="none").detach())
    assert result.argmax is None


def test_without_outputs_there_are_none() -> None:
    (model, head), (x, y) = replaced(), batch()
    with head.target(y) as request:
        loss = model(x)
    assert request.outputs is None
    result = head.loss_outputs_of(model, x, y, outputs=())
    assert result.loss.equal(loss)
    assert set(result[1:]) == {None}


def test_outputs_are_of_the_last_call() -> None:
    (model, head), (x, y) = replaced(), batch()
    with head.target(y, outputs=("argmax",)) as request:
        model(x)
        model(-x)
    assert request.outputs is not None
    assert request.outputs.argmax.equal(model(-x).argmax(1))
    assert not request.outputs.argmax.equal(model(x).argmax(1))


def test_contexts_nest_with_outputs_of_their_own() -> None:
    (model, head), (x, y) = replaced(), batch()
    with head.target(y, outputs=("argmax",)) as outer:
        first = model(x)
        with head.target(y, outputs=("lse",), reduction="sum") as inner:
            model(-x)
        assert inner.outputs is not None
        torch.testing.assert_close(inner.outputs.lse, model_logits(model, -x).logsumexp(1))
        with head.target(y) as without:
            model(-x)
    assert without.outputs is None
    assert outer.outputs is not None
    assert outer.outputs.loss.equal(first)
    assert outer.outputs.argmax.equal(model(x).argmax(1))
    assert (outer.outputs.lse, inner.outputs.argmax) == (None, None)


@torch.no_grad()
def model_logits(model: nn.Sequential, x: Tensor) -> Tensor:
    """Return the logits within a context too."""
    return F.linear(model[:2](x), model[2].weight, model[2].bias)


def test_each_thread_has_outputs_of_its_own() -> None:
    (model, head), (x, y) = replaced(), batch()
    entered, done = threading.Event(), threading.Event()
    found: list[Any] = []

    def other() -> None:
        with head.target(y, outputs=("lse",)) as request:
            entered.set()
            done.wait(60)
            model(-x)
        found.append(request.outputs)

    thread = threading.Thread(target=other)
    with head.target(y, outputs=("argmax",)) as request:
        thread.start()
        assert entered.wait(60)
        model(x)
        done.set()
        thread.join()
    assert request.outputs is not None
    assert request.outputs.argmax.equal(model(x).argmax(1))
    assert request.outputs.lse is None
    torch.testing.assert_close(found[0].lse, model(-x).logsumexp(1).detach())
    assert found[0].argmax is None


def test_outputs_keep_no_graph() -> None:
    """The features, which the graph of the loss holds, are freed with the loss."""
    (model, head), (x, y) = replaced(), batch()
    features: list[Any] = []
    model[1].register_forward_hook(lambda *given: features.append(weakref.ref(given[2])))

    def alive() -> bool:
        return features[-1]() is not None

    with head.target(y, outputs=NAMES) as request:
        loss = model(x)
    assert alive()
    del loss
    assert not alive()
    assert request.outputs is not None
    assert not any(value.requires_grad for value in request.outputs if value is not None)
    result = head.loss_outputs_of(model, x, y, outputs=NAMES)
    kept = result._replace(loss=result.loss.detach())
    result.loss.backward()
    del result
    assert not alive()
    assert kept.lse is not None
    context = head.target(y, outputs=NAMES)
    with pytest.raises(IndexError), context as request:
        model(x).unbind()[1]
    assert request.loss is None


def stepped(head: SoftmaxHead, *given: Any, **options: Any) -> None:
    head.loss_outputs_of(*given, **options).loss.backward()


def test_outputs_take_no_further_product() -> None:
    (model, head), (x, y) = replaced(), batch()
    head = replace_head(model, 97)
    for outputs in (("argmax",), NAMES):
        for weight in (None, torch.ones(97)):  # keeps few logits, and forms blocks of them
            step = functools.partial(stepped, head, model, x, y, outputs=outputs, weight=weight)
            assert products(step, 97) == 3


def test_many_classes_need_no_memory_for_their_logits() -> None:
    """The logits have 80 MB; two blocks of 32 MiB and the gradients have less."""
    model, x, y = net(), torch.randn(1000, 4), torch.randint(20000, (1000,))
    head = replace_head(model, 20000)

    def step() -> None:
        with head.target(y, outputs=NAMES):
            model(x).backward()

    assert peak_memory(step) < 75e6


def composed(after: Any, model: nn.Module, x: Tensor) -> Tensor:
    return after(model(x))


def test_a_net_that_changes_the_loss_is_refused_with_outputs() -> None:
    (model, head), (x, y) = replaced(), batch()
    for after in (torch.relu, nn.ReLU(inplace=True), nn.Softmax(-1), nn.LogSoftmax(1)):
        changed = functools.partial(composed, after, model)
        with pytest.raises(RuntimeError, match="expected it to return the output of its head"):
            head.loss_outputs_of(changed, x, y, outputs=("argmax",))
    with pytest.raises(RuntimeError, match="expected one call of its head, got 2"):
        head.loss_outputs_of(lambda x: model(x) + model(x), x, y, outputs=("argmax",))
    with pytest.raises(RuntimeError, match="expected the head to be called within the context"):
        head.loss_outputs_of(net(), x, y, outputs=("argmax",))
    copied = head.loss_outputs_of(lambda x: model(x).clone(), x, y, outputs=("argmax",))
    copied.loss.backward()
    assert model(x).shape == (N, C)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"outputs": ("accuracy",)}, ValueError, "outputs: expected names among lse, .*; got accu"),
        ({"outputs": "argmax"}, TypeError, "outputs: expected a sequence of names"),
        ({"outputs": ("in_top_k",), "top_k": 0}, ValueError, "top_k: expected an integer of at"),
    ],
)
def test_unknown_outputs_are_refused_at_once(given: Any, kind: type, message: str) -> None:
    (model, head), (x, y) = replaced(), batch()
    with pytest.raises(kind, match=message):
        head.target(y, **given)
    with pytest.raises(kind, match=message):
        head.loss_outputs_of(model, x, y, **given)
    with pytest.raises(ValueError, match="outputs: log_prob needs class indices"):
        head.loss_outputs_of(model, x, torch.ones(N, C) / C, outputs=("log_prob",))
    assert model(x).shape == (N, C)


@pytest.mark.slow
def test_a_compiled_net() -> None:
    torch.compiler.reset()
    graphs = []

    def count_and_run(graph: torch.fx.GraphModule, _: Any) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model, head = replaced()
    compiled = torch.compile(model, fullgraph=True, backend=count_and_run)
    for seed in range(3):
        torch.manual_seed(seed)
        x, y = torch.randn(N, 4), torch.randint(C, (N,))
        result = head.loss_outputs_of(compiled, x, y, outputs=NAMES, top_k=2)
        expected = expected_outputs(model(x), y, 2)
        torch.testing.assert_close(
            gradients(model, result.loss), gradients(model, expected["loss"])
        )
        check(result, expected)
        assert not any(value.requires_grad for value in result[1:] if value is not None)
    assert len(graphs) == 1
    torch.compiler.reset()


@pytest.mark.slow
def test_a_compiled_step() -> None:
    torch.compiler.reset()
    (model, head), (x, y) = replaced(), batch()

    def context(x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        with head.target(y, outputs=NAMES, top_k=2) as request:
            loss = model(x)
        return loss, request.outputs

    def one_call(x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
        result = head.loss_outputs_of(model, x, y, outputs=NAMES, top_k=2)
        return result.loss, result

    expected = expected_outputs(model(x), y, 2)
    plain = gradients(model, expected["loss"])
    for step in (context, one_call):
        loss, outputs = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y)
        check(outputs, expected)
        torch.testing.assert_close(gradients(model, loss), plain)
        assert model(x).shape == (N, C)
    torch.compiler.reset()


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
def test_gradient_checkpointing(reentrant: bool) -> None:
    """The head is called again in the backward pass, with the same outputs."""
    (model, head), (x, y) = replaced(), batch()
    expected = expected_outputs(model(x), y, 2)
    x.requires_grad_()  # required by the reentrant kind
    with head.target(y, outputs=NAMES, top_k=2) as request:
        checkpoint(model, x, use_reentrant=reentrant).backward()
    check(request.outputs, expected)
    assert request.loss is None


def test_samples_of_torch_func() -> None:
    (model, head), (x, y) = replaced(), batch()

    def each(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        result = head.loss_outputs_of(model, x, y, outputs=("argmax", "lse"))
        return result.argmax, result.lse

    argmax, lse = torch.func.vmap(each)(x, y)
    assert argmax.equal(model(x).argmax(1))
    torch.testing.assert_close(lse, model(x).logsumexp(1).detach())
