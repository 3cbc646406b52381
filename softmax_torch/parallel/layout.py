"""The layout of DTensors over a mesh, and differentiable passages to and from their local parts.

A dimension of the mesh splits the rows of the loss, or the classes, or nothing. Each argument is
split by it along the dimension that holds those rows or classes, or else is whole:

    mesh dimension splits   logits      class probabilities   sample weights, loss   class weights
    dimension d of rows     Shard(d')   Shard(d')             Shard(d)               Replicate
    classes                 Shard(1)    Shard(1)              Replicate              Replicate
    nothing                 Replicate   Replicate             Replicate              Replicate

with d' = d before the class dimension and d + 1 after it. A plain tensor, or a DTensor that is
replicated everywhere, is the whole of an argument: each rank cuts out its part. The gradients of
what ranks share are summed over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from softmax_torch.parallel.shards import to_shards

__all__ = ["FSDP_HINT", "Layout", "Splits", "check_local_shape", "splits_of", "stand_in"]

Splits = tuple[int | None, ...]
"""For each dimension of the mesh the dimension of a tensor that it splits, or None."""

FSDP_HINT = "With FSDP2 call the module, which gathers its weights, not its method loss"


def splits_of(name: str, tensor: DTensor) -> Splits:
    """Return the splits of a DTensor; raise RuntimeError unless each is Shard or Replicate."""
    splits: list[int | None] = []
    for placement in tensor.placements:
        if type(placement) is Shard:
            splits.append(placement.dim % max(1, tensor.dim()))
        elif type(placement) is Replicate:
            splits.append(None)
        else:
            raise RuntimeError(
                f"{name}: expected a DTensor with placements Shard or Replicate, got "
                f"{tensor.placements}. {FSDP_HINT}"
            )
    return tuple(splits)


def own_part(size: int, dim: int, mesh: DeviceMesh, splits: Splits) -> slice:
    """Return this rank's part of a dimension of this size, split as ``torch.chunk`` does."""
    start, stop = 0, size
    for axis, split in enumerate(splits):
        if split == dim:
            step = -(-(stop - start) // mesh.size(axis))
            begin = start + step * mesh.get_local_rank(axis)
            start, stop = min(begin, stop), min(begin + step, stop)
    return slice(start, stop)


def check_local_shape(name: str, tensor: object) -> None:
    """Raise ValueError unless this rank holds the part of a DTensor that ``torch.chunk`` cuts."""
    if not isinstance(tensor, DTensor):
        return
    splits = splits_of(name, tensor)
    parts = [own_part(n, dim, tensor.device_mesh, splits) for dim, n in enumerate(tensor.shape)]
    expected = tuple(part.stop - part.start for part in parts)
    got = tuple(tensor.to_local().shape)
    if got != expected:
        raise ValueError(
            f"{name}: expected a local part of shape {expected} as torch.chunk cuts "
            f"{tuple(tensor.shape)}, got {got}"
        )


def stand_in(value: Any) -> Any:
    """Return for a DTensor a plain tensor of its whole shape, dtype and device, without memory."""
    if not isinstance(value, DTensor):
        return value
    return value.to_local().new_zeros(()).expand(value.shape)


class Layout(NamedTuple):
    """How a mesh splits the rows of a loss and the classes."""

    mesh: DeviceMesh
    rows: Splits  # which dimension of the unreduced loss each dimension of the mesh splits
    classes: tuple[bool, ...]  # whether a dimension of the mesh splits the classes

    @property
    def whole(self) -> Splits:
        """The splits of what all ranks have as a whole."""
        return (None,) * self.mesh.ndim

    @property
    def by_row(self) -> list[bool]:
        """Which dimensions of the mesh split rows."""
        return [split is not None for split in self.rows]

    def groups(self, chosen: Sequence[bool]) -> list[dist.ProcessGroup]:
        """Return the groups of the chosen dimensions of the mesh."""
        return [g for g, c in zip(self.mesh.get_all_groups(), chosen, strict=True) if c]

    def splits(self, class_dim: int | None) -> Splits:
        """Return the splits of a tensor with rows, and with classes in a dimension or without."""
        found: list[int | None] = []
        for row, by_class in zip(self.rows, self.classes, strict=True):
            if by_class:
                found.append(class_dim)
            else:
                behind = row is not None and class_dim is not None and row >= class_dim
                found.append(row + 1 if behind and row is not None else row)
        return tuple(found)

    def own_classes(self, classes: int) -> slice:
        """Return the classes of this rank."""
        splits = tuple(0 if by_class else None for by_class in self.classes)
        return own_part(classes, 0, self.mesh, splits)

    def check(self, name: str, tensor: DTensor, splits: Splits) -> None:
        """Raise RuntimeError unless a DTensor is split this way, or replicated everywhere."""
        if tensor.device_mesh != self.mesh:
            raise RuntimeError(
                f"{name}: expected a DTensor on the mesh of the other arguments, {self.mesh}, got "
                f"{tensor.device_mesh}"
            )
        found = splits_of(name, tensor)
        if found != splits and any(split is not None for split in found):
            raise RuntimeError(
                f"{name}: expected a DTensor with placements {_placements(splits)}, as fit the "
                f"other arguments, or replicated, got {tensor.placements}. {FSDP_HINT}"
            )

    def local(self, tensor: Tensor, splits: Splits, summed: Sequence[bool] | None = None) -> Tensor:
        """Return this rank's part of an argument, plain or a DTensor.

        The gradient of the argument is whole. ``summed`` names the dimensions of the mesh over
        which each rank has only a summand of the gradient of its part.
        """
        cut = True
        if isinstance(tensor, DTensor):
            cut = splits_of("", tensor) != splits
            tensor = _Local.apply(tensor)
        summed = summed or [False] * len(splits)
        if tensor.requires_grad:
            shared = [s or (cut and d is not None) for s, d in zip(summed, splits, strict=True)]
            tensor = to_shards(tensor, *self.groups(shared))
        if cut:
            for dim in {split for split in splits if split is not None}:
                part = own_part(tensor.shape[dim], dim, self.mesh, splits)
                tensor = tensor.narrow(dim, part.start, part.stop - part.start)
        return tensor

    def distributed(self, loss: Tensor, shape: torch.Size) -> DTensor:
        """Return the DTensor of a loss: of a scalar, or of one number per row of this shape."""
        splits = self.rows if loss.dim() > 0 else self.whole
        whole = shape if loss.dim() > 0 else torch.Size()
        result: DTensor = _Distributed.apply(loss, self.mesh, _placements(splits), whole)
        return result


def _placements(splits: Splits) -> tuple[Placement, ...]:
    return tuple(Replicate() if split is None else Shard(split) for split in splits)


# ``DTensor.to_local`` and ``from_local`` with derivatives of every order: their own backward passes
# lose the graph of a gradient that they lay out anew.


class _Local(Function):
    @staticmethod
    def forward(x: DTensor) -> Tensor:
        local = x.to_local()
        if hasattr(local, "wait"):  # a collective may still write it, and kernels read its memory
            local = local.wait()
        return local.view_as(local)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        (x,) = inputs
        ctx.set_materialize_grads(False)
        ctx.like = x.device_mesh, x.placements, x.shape

    @staticmethod
    def backward(ctx: Any, g: Tensor | None) -> Tensor | None:
        dx: Tensor | None = None if g is None else _Distributed.apply(g, *ctx.like)
        return dx


class _Distributed(Function):
    @staticmethod
    def forward(
        x: Tensor, mesh: DeviceMesh, placements: tuple[Placement, ...], shape: torch.Size
    ) -> DTensor:
        stride = torch.empty(shape, device="meta").stride()
        local = x.contiguous()
        return DTensor.from_local(
            local.view_as(local), mesh, placements, run_check=False, shape=shape, stride=stride
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: DTensor) -> None:
        _, ctx.mesh, ctx.placements, _ = inputs
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, g: DTensor | None) -> tuple[Tensor | None, None, None, None]:
        if g is None:
            return None, None, None, None
        if tuple(g.placements) != tuple(ctx.placements):
            g = g.redistribute(ctx.mesh, ctx.placements)
        return _Local.apply(g), None, None, None
