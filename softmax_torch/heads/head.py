"""``SoftmaxHead``: a net's last ``nn.Linear``, which can return the loss in place of the logits.

    head(x)                                   x W^T + b, as nn.Linear
    with head.target(y): head(x)              mean_i -log softmax(x_i W^T + b)_{y_i}, fused

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
>>> list(net.state_dict())
['0.weight', '0.bias', '2.weight', '2.bias']
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from softmax_torch.loss.arguments import check_sizes
from softmax_torch.modules import SoftmaxOfLinear

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

    _request: LossRequest | None = None

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
        request = self._request
        if request is None:
            return self.logits(input)
        request.loss = self.loss(input, request.target, **request.options)
        return request.loss

    def target(self, target: Tensor, **options: Any) -> LossContext:
        """Return a context in which the head returns the loss: ``with head.target(y): ...``.

        Args:
            target: class indices (...), or class probabilities (..., C).
            **options: the options of ``loss``.

        The net then returns the loss where it returned logits, alone or among other outputs: in
        ``InceptionOutputs`` the loss is ``.logits``, and auxiliary logits are unchanged. If the net
        transforms its logits (a softmax), it transforms the loss; ``loss_of`` refuses that.

        Contexts nest, and each head of a net has its own. If the head itself is recomputed in the
        backward pass (``torch.utils.checkpoint`` in the net's own forward), call ``backward``
        within the context. ``DataParallel`` cannot be used: it splits the inputs, not the target.

        Raises:
            RuntimeError: on exit, if the head was not called.
        """
        return LossContext(self, LossRequest(target, options))

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
            RuntimeError: the net does not call this head, or does not return its output.
        """
        request = LossRequest(target, options)
        with LossContext(self, request):
            output = model(x)
        loss = request.loss
        assert loss is not None
        found = [t for t in _tensors(output) if t is loss]
        if not found:
            # DDP with a static graph returns a copy, FSDP may cast it. Comparing values waits for
            # the device, which is worth it here.
            found = [t for t in _tensors(output) if t.shape == loss.shape and _same(t, loss)]
        if not found:
            raise RuntimeError(
                f"model: expected it to return the output of its head, got {_described(output)} "
                f"without the loss of shape {tuple(loss.shape)}; end the model in logits, with no "
                "softmax after the head, or pick the loss yourself within head.target(...)"
            )
        return found[0]


@dataclass(eq=False)
class LossRequest:
    """A target and options for the head, and the loss that it computed."""

    target: Tensor
    options: dict[str, Any]
    loss: Tensor | None = None


class LossContext:
    """The context of ``SoftmaxHead.target``: a class, for torch.compile of 2.11 to trace it."""

    def __init__(self, head: SoftmaxHead, request: LossRequest) -> None:
        self.head, self.request = head, request
        self.outer: LossRequest | None = None

    def __enter__(self) -> None:
        self.outer = self.head._request
        self.head._request = self.request

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.head._request = self.outer
        if kind is None and self.request.loss is None:
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


def _same(t: Tensor, loss: Tensor) -> bool:
    """Return whether t has the values of the loss."""
    if torch.compiler.is_compiling():
        return True  # values are not known while compiling
    return torch.allclose(t, loss.to(t.dtype), rtol=0, atol=0, equal_nan=True)


def _described(output: Any) -> str:
    shapes = [tuple(t.shape) for t in _tensors(output)]
    return f"{type(output).__name__} of tensors {shapes}"
