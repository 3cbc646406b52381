"""``SoftmaxHead``: a net's last ``nn.Linear``, which can return the loss in place of the logits.

    head(x)                                   x W^T + b, as nn.Linear
    with head.target(y): head(x)              mean_i -log softmax(x_i W^T + b)_{y_i}, fused
    head.target(y, outputs=("argmax",))       argmax_c of each row too, from the same pass

A loss that never forms logits needs the features, and a net's ``forward`` does not return them. So
the target is passed to the head instead, and the net is called as usual: by DDP, which has to see
that call; by FSDP, which gathers a layer's weights only for its forward; by ``torch.compile``,
autocast and hooks. The parameters keep their names, so code that loads, splits or saves the net
need not know of the head.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> head = SoftmaxHead(in_features=4, num_classes=3)
>>> net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), head)
>>> x, y = torch.randn(8, 5), torch.randint(3, (8,))
>>> net(x).shape
torch.Size([8, 3])
>>> with head.target(y, label_smoothing=0.1):
...     net(x).backward()
>>> head.loss_of(net, x, y).backward()
>>> result = head.loss_outputs_of(net, x, y, outputs=("argmax",))
>>> result.loss.backward()
>>> result.argmax.equal(net(x).argmax(1))
True
>>> list(net.state_dict())
['0.weight', '0.bias', '2.weight', '2.bias']
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from softmax_torch.loss.checks import check_sizes
from softmax_torch.loss.outputs import CrossEntropyOutputs, Request
from softmax_torch.modules import SoftmaxOfLinear
from softmax_torch.ops import modes

__all__ = ["SoftmaxHead"]


class SoftmaxHead(SoftmaxOfLinear, nn.Linear):
    """``nn.Linear`` with the methods of ``SoftmaxRegression``, and its loss within ``target``.

    Args:
        in_features: D, the number of features of a sample.
        num_classes: C, the number of classes.
        bias: whether the logits have an intercept per class.
        device: device of the parameters.
        dtype: floating-point type of the parameters.

    Inputs are (..., D); the parameters are those of ``nn.Linear``.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(in_features, num_classes)
        nn.Linear.__init__(self, in_features, num_classes, bias, device, dtype)

    @property
    def linear(self) -> nn.Linear:  # type: ignore[override] # an attribute in the base class
        """The head itself."""
        return self

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits z = x W^T + b, of shape (..., C), within ``target`` too."""
        return nn.Linear.forward(self, x)

    def forward(self, input: Tensor) -> Tensor:
        """Return the logits (..., C); within ``target`` the loss."""
        request = _request_of(self)
        if request is None:
            return self.logits(input)
        return request.computed(self, input)

    def __prepare_scriptable__(self) -> nn.Module:
        """Raise RuntimeError: called by ``torch.jit.script``, which cannot compile this module."""
        raise RuntimeError(
            "torch.jit.script: expected a net without a SoftmaxHead, which it cannot compile; use "
            "torch.export or torch.jit.trace, or load the state_dict into the net as it was before "
            "replace_head (the keys are the same) and script that"
        )

    def target(
        self, target: Tensor, *, outputs: Sequence[str] = (), top_k: int = 5, **options: Any
    ) -> LossContext:
        """Return a context in which the head returns the loss: ``with head.target(y): ...``.

        Args:
            target: class indices (...), or class probabilities (..., C).
            outputs: names of further numbers of each sample, from the pass of the loss:
                ``CrossEntropyOutputs`` lists them.
            top_k: the k of "in_top_k".
            **options: the options of ``loss``.

        Returns:
            A context that gives a ``LossRequest``. Its attribute ``outputs`` is the
            ``CrossEntropyOutputs`` of the last call of the head, of samples (...), None before it
            and without ``outputs``. They are constants, the loss among them: no graph is kept.

        The net then returns the loss where it returned logits, alone or among other outputs: in
        ``InceptionOutputs`` the loss is ``.logits``, and auxiliary logits are unchanged. If the net
        transforms its logits (a softmax), it transforms the loss; ``loss_of`` refuses that. A net
        that calls its head several times gets a loss from each call.

        Contexts nest. Each head of a net has its own, and so has each thread. If the head itself is
        recomputed in the backward pass (``torch.utils.checkpoint`` in the net's own forward), call
        ``backward`` within the context. ``DataParallel`` cannot be used: it splits the inputs, not
        the target.

        Raises:
            ValueError, TypeError: ``outputs`` or ``top_k`` is not what ``loss_outputs`` takes.
            RuntimeError: on exit, if the head was not called.
        """
        return LossContext(self, LossRequest.checked(target, outputs, top_k, options))

    def loss_of(self, model: nn.Module, x: Any, target: Tensor, **options: Any) -> Tensor:
        """Return the loss of model(x), a net that ends in this head: ``target`` around one call.

        Args:
            model: the net or its wrapper: DDP, ``torch.compile``, any callable.
            x: the single input of the net.
            target: class indices (...), or class probabilities (..., C).
            **options: the options of ``loss``.

        Returns:
            A scalar, or one number per sample with ``reduction="none"``. Other outputs of the net,
            such as auxiliary logits, are dropped; use ``target`` to keep them.

        Raises:
            RuntimeError: the net does not call this head, or calls it more than once, or does not
                return its output as it is: a function of the logits, such as a softmax or a relu,
                would be applied to the loss instead.
        """
        return self._loss_through(model, x, LossRequest(target, options))

    def loss_outputs_of(
        self,
        model: nn.Module,
        x: Any,
        target: Tensor,
        *,
        outputs: Sequence[str],
        top_k: int = 5,
        **options: Any,
    ) -> CrossEntropyOutputs:
        """Return the loss of model(x), as ``loss_of``, and further numbers of each sample.

        Args:
            model, x, target, **options: as in ``loss_of``.
            outputs, top_k: as in ``target``.

        Returns:
            A named tuple of the loss and the outputs (...), None for those that were not asked for.
            The loss alone is differentiable.

        Raises:
            RuntimeError: as ``loss_of``.
            ValueError, TypeError: ``outputs`` or ``top_k`` is not what ``loss_outputs`` takes.
        """
        request = LossRequest.checked(target, outputs, top_k, options)
        loss = self._loss_through(model, x, request)
        if request.outputs is None:
            return CrossEntropyOutputs(loss)
        return request.outputs._replace(loss=loss)

    def _loss_through(self, model: nn.Module, x: Any, request: LossRequest) -> Tensor:
        """Return the loss that model(x) returns, with a request set; see ``loss_of``."""
        with LossContext(self, request):
            try:
                output = model(x)
            except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
                if request.loss is None or isinstance(error, torch.OutOfMemoryError):
                    raise
                raise RuntimeError(
                    "model: expected it to return the output of its head, got an error after the "
                    f"head had returned the loss of shape {tuple(request.loss.shape)}: {error}; "
                    f"{ADVICE}"
                ) from error
            loss = request.loss
        assert loss is not None
        if request.calls > 1:
            raise RuntimeError(
                f"model: expected one call of its head, got {request.calls}; pick the losses "
                "yourself within head.target(...), which returns one for each call"
            )
        for t in _tensors(output):
            if request.unchanged(t) if t is loss else _is_copy(t, loss):
                return t
        raise RuntimeError(
            f"model: expected it to return the output of its head, got {_described(output)} "
            f"without the loss of shape {tuple(loss.shape)}; {ADVICE}"
        )


ADVICE = (
    "end the model in logits, with no softmax or other function after the head, or pick the loss "
    "yourself within head.target(...)"
)

COPIES = ("AliasBackward0", "CloneBackward0", "ToCopyBackward0", "_DDPSinkBackward")
"""The autograd nodes of wrappers that return a copy of a net's output: DDP with a static graph,
and FSDP or a converter of precision, which cast it."""

REQUESTS = threading.local()
"""``by_head``: the request of each head, by its id, in this thread."""

ENTERED: dict[int, LossRequest] = {}
"""The last request of each head in any thread, for the backward pass: see ``_request_of``."""


@dataclass(eq=False)
class LossRequest:
    """A target and options for the head, and what its last call computed.

    Attributes:
        outputs: the outputs of the last call that were asked for, without a graph; None without.
        loss: the loss of the last call, with its graph; None outside of the context.
    """

    target: Tensor
    options: dict[str, Any]
    wanted: Request | None = None
    outputs: CrossEntropyOutputs | None = None
    loss: Tensor | None = None
    calls: int = 0
    version: int | None = None  # counts the writes into the loss; None if it is compiled

    @classmethod
    def checked(
        cls, target: Tensor, outputs: Sequence[str], top_k: int, options: dict[str, Any]
    ) -> LossRequest:
        """Return a request of the loss and of outputs; an error as ``Request.checked``."""
        wanted = Request.checked(outputs, top_k)
        return cls(target, options, wanted if wanted.names else None)

    def computed(self, head: SoftmaxHead, x: Tensor) -> Tensor:
        """Return the loss of the features x; keep it and the outputs."""
        if self.wanted is None:
            return self.filled(head.loss(x, self.target, **self.options))
        names, top_k, _ = self.wanted
        found = head.loss_outputs(
            x, self.target, outputs=names, top_k=top_k, detach=True, **self.options
        )
        self.outputs = found._replace(loss=found.loss.detach())
        return self.filled(found.loss)

    def filled(self, loss: Tensor) -> Tensor:
        """Keep the loss of a call of the head, and return it."""
        if not torch.compiler.is_compiling():
            if loss.is_inference():
                with torch.inference_mode(False):
                    loss = loss.clone()  # an inference tensor has no version
            self.version = loss._version
        self.calls += 1
        self.loss = loss
        return loss

    def unchanged(self, loss: Tensor) -> bool:
        """Return whether nothing was written into the loss, as by ``nn.ReLU(inplace=True)``.

        Writes in a compiled net cannot be seen.
        """
        return self.version is None or loss._version == self.version


def _request_of(head: SoftmaxHead) -> LossRequest | None:
    """Return the request of this thread for a head, None outside of ``target``.

    torch runs the backward pass of a GPU in threads of its own. A head that is recomputed there
    has the request that was entered last.
    """
    by_head: dict[int, LossRequest] = getattr(REQUESTS, "by_head", {})
    found = by_head.get(id(head))
    if found is None and not torch.compiler.is_compiling() and ENTERED:
        in_backward = modes.in_backward_pass()
        found = ENTERED.get(id(head)) if in_backward else None
    return found


class LossContext:
    """The context of ``SoftmaxHead.target``: a class, for torch.compile of 2.11 to trace it."""

    def __init__(self, head: SoftmaxHead, request: LossRequest) -> None:
        self.head, self.request = head, request
        self.outer: LossRequest | None = None

    def __enter__(self) -> LossRequest:
        by_head = getattr(REQUESTS, "by_head", None)
        if by_head is None:
            by_head = REQUESTS.by_head = {}
        self.outer = by_head.get(id(self.head))
        by_head[id(self.head)] = ENTERED[id(self.head)] = self.request
        return self.request

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for requests in (REQUESTS.by_head, ENTERED):
            if self.outer is None:
                requests.pop(id(self.head), None)
            else:
                requests[id(self.head)] = self.outer
        called, self.request.loss = self.request.loss is not None, None  # with its graph
        if kind is None and not called:
            raise RuntimeError(
                "target: expected the head to be called within the context, got no call; is the "
                "model a copy, or does it have another head?"
            )


def _tensors(output: Any) -> list[Tensor]:
    """Return the tensors in a net's output: a tensor, or a tuple, list or dictionary of them."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    several = output if isinstance(output, (tuple, list)) else (output,)
    return [t for t in several if isinstance(t, Tensor)]


def _is_copy(t: Tensor, loss: Tensor) -> bool:
    """Return whether t is a copy of the loss that a wrapper made, and no other function of it.

    Equal values are no proof: a relu changes none of a positive loss, but it does of logits.
    """
    if torch.compiler.is_compiling() or t.shape != loss.shape:
        return False
    if loss.grad_fn is None or t.grad_fn is None:  # without a graph only a cast is a copy
        cast = t.dtype != loss.dtype and t.grad_fn is loss.grad_fn
        return cast and torch.allclose(t, loss.to(t.dtype), rtol=0, atol=0, equal_nan=True)
    node: Node | None = t.grad_fn
    place = t.output_nr
    while node is not None and node is not loss.grad_fn and node.name() in COPIES:
        node, place = node.next_functions[place]
    return node is loss.grad_fn and place == loss.output_nr


def _described(output: Any) -> str:
    tensors = _tensors(output)
    made_by = [t.grad_fn.name() for t in tensors if t.grad_fn is not None]
    shapes = [tuple(t.shape) for t in tensors]
    by = f" made by {', '.join(made_by)}" if made_by else ""
    return f"{type(output).__name__} of tensors {shapes}{by}"
