"""Heads under torch.compile, autocast, checkpointing, torch.func, DDP and FSDP."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
import torch.nn.utils.prune
from head_nets import C, N, batch, gradients, net
from support import in_group
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from softmax_torch.heads import SoftmaxHead, find_head, replace_head


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_compiled_step() -> None:
    torch.compiler.reset()
    model, (x, y) = net(), batch()
    head = replace_head(model)

    def context(x: Tensor, y: Tensor) -> Tensor:
        with head.target(y):
            return model(x)

    expected = head.loss_of(model, x, y)
    for step in (context, lambda x, y: head.loss_of(model, x, y)):
        loss = torch.compile(step, fullgraph=True, backend="aot_eager")(x, y)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            gradients(model, loss), gradients(model, head.loss_of(model, x, y))
        )
        assert model(x).shape == (N, C)
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # by torch.compile
def test_a_function_after_the_head_is_refused_when_compiled() -> None:
    torch.compiler.reset()
    model, (x, y) = net(), batch()
    head = replace_head(model)

    def changed(x: Tensor) -> Tensor:
        return torch.relu(model(x))

    compiled = torch.compile(changed, backend="aot_eager")
    step = torch.compile(lambda x, y: head.loss_of(changed, x, y), backend="aot_eager")
    for call in (lambda: head.loss_of(compiled, x, y), lambda: step(x, y)):
        with pytest.raises(RuntimeError, match="expected it to return the output of its head"):
            call()
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


def error_of(call: Callable[[], None]) -> list[BaseException]:
    try:
        call()
    except BaseException as error:
        return [error]
    return []


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
    with head.target(y):  # torch runs the backward pass of a GPU in another thread, as here
        loss = Checkpointed(model, True, reentrant)(x)
        errors: list[BaseException] = []
        thread = threading.Thread(target=lambda: errors.extend(error_of(lambda: compare(loss))))
        thread.start()
        thread.join()
    assert errors == []
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
            result = head.loss_outputs_of(call, x[half], y[half], outputs=("argmax",))
            result.loss.backward()
            with torch.no_grad():
                logits = call(x[half])
            assert logits.shape == (4, C)
            assert result.argmax.equal(logits.argmax(1))

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


@pytest.mark.slow
def test_data_parallel_and_sharded_nets(tmp_path: Path) -> None:
    in_group(in_ranks, 2, tmp_path)
