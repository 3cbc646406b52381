"""``SoftmaxRegression`` whose classes, and so parameters, are split over ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from softmax_torch.loss.checks import check_sizes
from softmax_torch.maths import upcast
from softmax_torch.ops.linear_rows import Linear, logits_blocks
from softmax_torch.parallel.functional import linear_cross_entropy
from softmax_torch.parallel.shards import ClassShard, from_shards, initialised, reduced, to_shards

__all__ = ["DRAW_BLOCK", "ShardedSoftmaxRegression"]

DRAW_BLOCK = 8 << 20
"""Random numbers drawn at a time: every rank draws all parameters but holds only its own."""


class ShardedSoftmaxRegression(nn.Module):
    """``SoftmaxRegression`` with its classes split over the ranks of a group.

    Args:
        in_features: D, the number of features of a sample.
        num_classes: C, the number of all classes; not necessarily a multiple of the ranks.
        bias: whether the logits have an intercept per class.
        mesh: the ranks that share the classes: a process group, or a DeviceMesh of one dimension
            (such as ``mesh["classes"]`` of a larger mesh); None for all ranks.
        device: where the parameters live.
        dtype: floating-point type of the parameters.

    Attributes:
        weight, bias: DTensors (C, D) and (C,), split along classes as ``torch.chunk`` does.
            Optimizers work on each rank's part; torch.distributed.checkpoint saves and loads them,
            also on another number of ranks.
        shard: the classes of this rank.

    On a CPU the initial parameters are those of ``SoftmaxRegression`` with the same seed, on any
    number of ranks. A rank never holds more than its own parameters and one block.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        *,
        mesh: DeviceMesh | dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_sizes(in_features, num_classes)
        self.in_features, self.num_classes = in_features, num_classes
        local = torch.empty(0, device=device, dtype=dtype)
        if not isinstance(mesh, DeviceMesh):
            mesh = DeviceMesh.from_group(initialised(mesh), local.device.type)
        if mesh.ndim != 1:
            raise ValueError(
                f"mesh: expected one dimension, got {mesh.ndim}; name the one that shares the "
                f'classes, as in mesh["classes"]'
            )
        self.shard = ClassShard.even(num_classes, mesh.get_group())
        size = self.shard.stop - self.shard.start

        def parameter(*shape: int) -> nn.Parameter:
            whole = torch.Size((num_classes, *shape))
            return nn.Parameter(
                DTensor.from_local(
                    local.new_empty(size, *shape),
                    mesh,
                    (Shard(0),),
                    run_check=False,
                    shape=whole,
                    stride=(*shape, 1),
                )
            )

        self.weight = parameter(in_features)
        self.register_parameter("bias", parameter() if bias else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters as ``nn.Linear`` does: every rank draws all and keeps its own."""
        D = self.in_features
        gain = nn.init.calculate_gain("leaky_relu", math.sqrt(5))
        self._draw(self.weight, math.sqrt(3.0) * (gain / math.sqrt(D)))
        if self.bias is not None:
            self._draw(self.bias, 1 / math.sqrt(D))

    def _draw(self, parameter: Tensor, bound: float) -> None:
        assert isinstance(parameter, DTensor)
        local, (_, start, stop, C) = parameter.to_local(), self.shard
        step = min(C, max(1, DRAW_BLOCK // math.prod(local.shape[1:])))
        block = local.new_empty(step, *local.shape[1:])  # reused, to save memory
        for first in range(0, C, step):
            last = min(first + step, C)
            drawn = block[: last - first].uniform_(-bound, bound)
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                local[begin - start : end - start] = drawn[begin - first : end - first]

    def _linear(self, x: Tensor) -> Linear:
        """Return the layer of this rank's classes with the input x."""
        if x.dim() < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"input: expected shape (..., {self.in_features}), got {tuple(x.shape)}"
            )
        assert isinstance(self.weight, DTensor)
        bias = self.bias
        assert bias is None or isinstance(bias, DTensor)
        return Linear(x, self.weight.to_local(), None if bias is None else bias.to_local())

    def logits(self, x: Tensor, gather: bool = False) -> Tensor:
        """Return the logits (..., C_r) of this rank's classes, or all (..., C) with ``gather``."""
        group, start, stop, C = self.shard
        x, weight, bias = self._linear(x)
        z = F.linear(to_shards(x, group), weight, bias)
        return from_shards(F.pad(z, (start, C - stop)), group) if gather else z

    def forward(self, x: Tensor) -> Tensor:
        """Return the log-probabilities of this rank's classes, of shape (..., C_r)."""
        group = self.shard.group
        z = upcast(self.logits(x))
        largest = z.new_full((*z.shape[:-1], 1), -torch.inf)
        if z.shape[-1] > 0:
            largest = z.detach().amax(-1, keepdim=True)
        z = z - reduced(largest, dist.ReduceOp.MAX, group)
        total = from_shards(z.exp().sum(-1, keepdim=True), group)
        return (z - to_shards(total.log(), group)).to(x.dtype)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return the most probable class of each sample, int64 (...), the same on all ranks."""
        group, start, stop, C = self.shard
        x, weight, bias = self._linear(x)
        linear = Linear(x.reshape(-1, x.shape[-1]), weight, bias)
        best = x.new_full((len(linear.x),), -torch.inf)
        where = torch.full((len(best),), C, device=x.device)
        for at, z, _ in logits_blocks(linear) if stop > start else ():
            best[at], where[at] = z.max(1)
            where[at] += start
        best = torch.where(best.isnan(), torch.inf, best)  # argmax takes NaN for the largest
        most = reduced(best, dist.ReduceOp.MAX, group)
        where = reduced(torch.where(best == most, where, C), dist.ReduceOp.MIN, group)
        return where.reshape(x.shape[:-1])

    def loss(self, x: Tensor, target: Tensor, **options: Any) -> Tensor:
        """Return the cross-entropy of the model's predictions; see ``linear_cross_entropy``.

        Args:
            x: inputs (..., D), the same on all ranks.
            target: class indices (...), or probabilities of this rank's classes (..., C_r).
            **options: the options of ``linear_cross_entropy``.

        Returns:
            A scalar, or one number per sample with ``reduction="none"``; the same on all ranks.
        """
        return linear_cross_entropy(x, self.weight, target, linear_bias=self.bias, **options)
