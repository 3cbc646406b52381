"""A net's last ``nn.Linear`` that can give the loss in place of the logits.

    head(x)                                   x W^T + b, as nn.Linear
    with head.target(y): head(x)              mean_i -log softmax(x_i W^T + b)_{y_i}, fused

A loss that never forms logits needs the features, and a net's own ``forward`` does not give them
away. So the target comes to the head instead, and the net is called as ever: by DDP, which has to
see that call; by FSDP, which gathers a layer's weights for its forward alone; by ``torch.compile``,
autocast and hooks. The parameters are the net's own, under their old names: what loads or splits
or saves the net need not know of the head.

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
    """``nn.Linear`` with the methods of ``SoftmaxRegression`` and, for a while, its loss.

    Args:
        in_features: D, the number of features of a sample.
        num_classes: C, the number of classes.
        bias: whether the logits have an intercept per class.
        device: where the parameters live.
        dtype: floating-point type of the parameters.

    Attributes:
        weight, bias: (C, D) and (C,), as in ``nn.Linear``.

    Inputs are (..., D).
    """

    _goal: Goal | None = None

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
    def linear(self) -> nn.Linear:  # type: ignore[override] # an attribute there, set by nobody here
        """The head itself."""
        return self

    def logits(self, x: Tensor) -> Tensor:
        """Logits z = x W^T + b, of shape (..., C), within ``target`` too."""
        return nn.Linear.forward(self, x)

    def forward(self, input: Tensor) -> Tensor:
        """Logits (..., C); within ``target`` the loss."""
        goal = self._goal
        if goal is None:
            return self.logits(input)
        goal.loss = self.loss(input, goal.target, **goal.options)
        return goal.loss

    def target(self, target: Tensor, **options: Any) -> Target:
        """Within ``with head.target(y):`` the head gives the loss, whoever calls it.

        Args:
            target: class indices (...), or class probabilities (..., C).
            **options: those of ``loss``.

        The net then returns the loss where it returned logits, alone or among others: in
        ``InceptionOutputs`` it is ``.logits``, and auxiliary logits stay what they are. What a
        net does to its logits (a softmax) it would do to the loss; ``loss_of`` refuses that.

        Contexts nest, and several heads of a net have one each. Where the head itself is
        recomputed in the backward pass (``torch.utils.checkpoint`` in the net's own forward),
        ``backward`` has to be called within. ``DataParallel``, which splits inputs and not the
        target, cannot be used.

        Raises:
            RuntimeError: at the end, where the head was not called.
        """
        return Target(self, Goal(target, options))

    def loss_of(self, model: nn.Module, x: Any, target: Tensor, **options: Any) -> Tensor:
        """The loss of model(x), a net that ends in this head: ``target`` around one call.

        Args:
            model: the net, or what wraps it: DDP, ``torch.compile``, anything that is called.
            x: the net's one input.
            target: class indices (...), or class probabilities (..., C).
            **options: those of ``loss``.

        Returns:
            A scalar, or one number a sample with ``reduction="none"``. Other outputs of the net,
            such as auxiliary logits, are left out; use ``target`` to have them.

        Raises:
            RuntimeError: the net does not call this head, or does not return what it gives.
        """
        goal = Goal(target, options)
        with Target(self, goal):
            output = model(x)
        loss = goal.loss
        assert loss is not None
        found = [t for t in _tensors(output) if t is loss]
        if not found:
            # DDP with a static graph hands on a copy, FSDP may cast it. Its values say so, which is
            # worth waiting for the device.
            found = [t for t in _tensors(output) if t.shape == loss.shape and _same(t, loss)]
        if not found:
            raise RuntimeError(
                f"model: expected it to return what its head gives, got {_described(output)} "
                f"without the loss of shape {tuple(loss.shape)}; end the model in logits, with no "
                "softmax after the head, or pick the loss yourself within head.target(...)"
            )
        return found[0]


@dataclass(eq=False)
class Goal:
    """What the head is to give the loss of, and what it gave."""

    target: Tensor
    options: dict[str, Any]
    loss: Tensor | None = None


class Target:
    """The context of ``SoftmaxHead.target``; a class, which torch.compile follows in 2.11 too."""

    def __init__(self, head: SoftmaxHead, goal: Goal) -> None:
        self.head, self.goal = head, goal
        self.before: Goal | None = None

    def __enter__(self) -> None:
        self.before = self.head._goal
        self.head._goal = self.goal

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.head._goal = self.before
        if kind is None and self.goal.loss is None:
            raise RuntimeError(
                "target: expected the head to be called within, got no call; is the model a copy, "
                "or its head another?"
            )


def _tensors(output: Any) -> list[Tensor]:
    """The tensors that a net returns: one, or a tuple, list or dictionary of them."""
    if isinstance(output, Mapping):
        output = tuple(output.values())
    several = output if isinstance(output, (tuple, list)) else (output,)
    return [t for t in several if isinstance(t, Tensor)]


def _same(t: Tensor, loss: Tensor) -> bool:
    """Whether the values are those of the loss."""
    if torch.compiler.is_compiling():
        return True  # they are not known
    return torch.allclose(t, loss.to(t.dtype), rtol=0, atol=0, equal_nan=True)


def _described(output: Any) -> str:
    shapes = [tuple(t.shape) for t in _tensors(output)]
    return f"{type(output).__name__} of tensors {shapes}"
