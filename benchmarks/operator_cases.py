"""The cases of operator_cpu.py: their shapes, and the contestants that compute each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import (
    cross_entropy,
    cross_entropy_outputs,
    linear_cross_entropy,
    linear_cross_entropy_outputs,
    route_of,
)
from softmax_torch.loss.outputs import CrossEntropyOutputs
from softmax_torch.ops import backends

OURS, OURS_TORCH, OURS_FLOAT32, OURS_ALONE = (
    "softmax_torch",
    "softmax_torch, torch kernels",
    "softmax_torch, float32",
    "softmax_torch, loss alone",
)
TORCH, COMPILED, CHUNKED, COPY = "torch", "torch.compile", "torch, in chunks", "copy"

FIGURES = ("argmax", "entropy")
"""The outputs that ours is asked for in cases with accuracy and entropy."""


class Contestant(NamedTuple):
    """A function of leaf tensors and ``target``, and the kernels that it runs with on a CPU.

    It returns the loss, or the loss and further results.
    """

    f: Callable[..., Any]
    leaves: list[Tensor]
    kernels: str = "auto"


class Case(NamedTuple):
    """A shape, its contestants, and the class indices."""

    name: str
    contestants: dict[str, Contestant]
    target: Tensor
    moved: int  # the least bytes read and written
    route: str  # of our call


def cases() -> Iterator[tuple[str, Callable[[str], Case]]]:
    """Yield the name of each case, and a function from it to the case."""
    for N, C in ((128, 10), (60000, 10), (8192, 1000), (4096, 32000)):
        yield f"cross_entropy {N} x {C}", partial(cross_entropy_case, N, C, torch.float32)
    for N, C in ((8192, 1000), (4096, 32000)):
        name = f"cross_entropy {N} x {C}, bfloat16"
        yield name, partial(cross_entropy_case, N, C, torch.bfloat16)
    for N, D, C in ((128, 784, 10), (60000, 784, 10), (4096, 512, 1000), (2048, 512, 32000)):
        frozen = N == 60000  # a data set, whose gradient is not needed
        name = f"linear {N} x {D} x {C}" + (", frozen input" if frozen else "")
        yield name, partial(linear_case, N, D, C, frozen)
    yield "cross_entropy 8192 x 1000, accuracy and entropy", partial(logits_figures, 8192, 1000)
    yield (
        "linear 2048 x 512 x 32000, accuracy and entropy",
        partial(linear_figures, 2048, 512, 32000),
    )


def cross_entropy_case(N: int, C: int, dtype: torch.dtype, name: str) -> Case:
    z, y = torch.randn(N, C).to(dtype), torch.randint(C, (N,))
    contestants = {
        OURS: Contestant(cross_entropy, [z]),
        OURS_TORCH: Contestant(cross_entropy, [z], "torch"),
        TORCH: Contestant(F.cross_entropy, [z]),
        COMPILED: Contestant(torch.compile(F.cross_entropy), [z]),
    }
    if dtype != torch.float32:
        contestants[OURS_FLOAT32] = Contestant(cross_entropy, [z.float()])
    with backends.cpu_kernels("auto"):
        route = str(route_of(cross_entropy, z.clone().requires_grad_(), y))
    return Case(name, contestants, y, 2 * size_of([z]), route)


def linear_case(N: int, D: int, C: int, frozen: bool, name: str) -> Case:
    x, y = torch.randn(N, D), torch.randint(C, (N,))
    weight, bias = torch.randn(C, D) / D**0.5, torch.zeros(C)
    leaves = [weight, bias] if frozen else [weight, bias, x]

    def ours(weight: Tensor, bias: Tensor, *x_leaf: Tensor, target: Tensor) -> Tensor:
        (inputs,) = x_leaf or (x,)
        return linear_cross_entropy(inputs, weight, target, linear_bias=bias)

    def torchs(weight: Tensor, bias: Tensor, *x_leaf: Tensor, target: Tensor) -> Tensor:
        (inputs,) = x_leaf or (x.to(weight.dtype),)
        return F.cross_entropy(F.linear(inputs, weight, bias), target)

    contestants = {
        OURS: Contestant(ours, leaves),
        OURS_TORCH: Contestant(ours, leaves, "torch"),
        TORCH: Contestant(torchs, leaves),
        COMPILED: Contestant(torch.compile(torchs), leaves),
    }
    chunked = torch_chunked(x)
    # With fewer classes than features torch 2.15 takes one row at a time: minutes at 60000 rows.
    if chunked is not None and not frozen:
        contestants[CHUNKED] = Contestant(chunked, leaves)
    trained = weight.clone().requires_grad_()
    with backends.cpu_kernels("auto"):
        route = str(route_of(linear_cross_entropy, x, trained, y, linear_bias=bias))
    moved = 2 * size_of(leaves) + (size_of([x]) if frozen else 0)
    return Case(name, contestants, y, moved, route)


def logits_figures(N: int, C: int, name: str) -> Case:
    z, y = torch.randn(N, C), torch.randint(C, (N,))

    def ours(z: Tensor, *, target: Tensor) -> list[Tensor]:
        found = cross_entropy_outputs(z, target, outputs=FIGURES)
        return our_figures(found, target)

    contestants = {
        OURS: Contestant(ours, [z]),
        OURS_TORCH: Contestant(ours, [z], "torch"),
        OURS_ALONE: Contestant(cross_entropy, [z]),
        TORCH: Contestant(torch_figures, [z]),
        COMPILED: Contestant(torch.compile(torch_figures), [z]),
    }
    leaf = z.clone().requires_grad_()
    with backends.cpu_kernels("auto"):
        route = str(route_of(cross_entropy_outputs, leaf, y, outputs=FIGURES))
    return Case(name, contestants, y, 2 * size_of([z]), route)


def linear_figures(N: int, D: int, C: int, name: str) -> Case:
    case = linear_case(N, D, C, False, name)
    leaves = case.contestants[OURS].leaves

    def ours(weight: Tensor, bias: Tensor, x: Tensor, *, target: Tensor) -> list[Tensor]:
        found = linear_cross_entropy_outputs(x, weight, target, linear_bias=bias, outputs=FIGURES)
        return our_figures(found, target)

    def torchs(weight: Tensor, bias: Tensor, x: Tensor, *, target: Tensor) -> list[Tensor]:
        return torch_figures(F.linear(x, weight, bias), target=target)

    contestants = {
        OURS: Contestant(ours, leaves),
        OURS_TORCH: Contestant(ours, leaves, "torch"),
        OURS_ALONE: case.contestants[OURS],
        TORCH: Contestant(torchs, leaves),
        COMPILED: Contestant(torch.compile(torchs), leaves),
    }
    chunked = torch_chunked(leaves[2])
    if chunked is not None:

        def again(weight: Tensor, bias: Tensor, x: Tensor, *, target: Tensor) -> list[Tensor]:
            with torch.no_grad():
                figures = torch_figures(F.linear(x, weight, bias), target=target)[1:]
            return [chunked(weight, bias, x, target=target), *figures]

        contestants[CHUNKED] = Contestant(again, leaves)
    return case._replace(contestants=contestants)


def our_figures(found: CrossEntropyOutputs, target: Tensor) -> list[Tensor]:
    """Return loss, accuracy and mean entropy."""
    assert found.argmax is not None
    assert found.entropy is not None
    return [found.loss, (found.argmax == target).float().mean(), found.entropy.mean()]


def torch_figures(z: Tensor, *, target: Tensor) -> list[Tensor]:
    """Return loss, accuracy and mean entropy by separate calls of torch."""
    loss = F.cross_entropy(z, target)
    with torch.no_grad():
        accuracy = (z.argmax(1) == target).float().mean()
        log_p = z.log_softmax(1)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
    return [loss, accuracy, entropy]


def torch_chunked(x: Tensor) -> Callable[..., Tensor] | None:
    """Return torch's own chunked form, or None if this torch has none."""
    options = getattr(F, "LinearCrossEntropyOptions", None)
    if options is None:
        options = getattr(torch.nn, "LinearCrossEntropyOptions", None)
    if options is None or not hasattr(F, "linear_cross_entropy"):
        return None

    def chunked(weight: Tensor, bias: Tensor, *x_leaf: Tensor, target: Tensor) -> Tensor:
        (inputs,) = x_leaf or (x,)
        return F.linear_cross_entropy(inputs, weight, target, linear_bias=bias, options=options())

    return chunked


def size_of(tensors: list[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)
